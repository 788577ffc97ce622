//! The lock component, and guests that want locks, in [wasmtime].
//!
//! [`Runner`] loads the component once and instantiates it with any [`Store`](verrou::Store) of
//! this program behind its import; [`AsyncRunner`] does so with any
//! [`AsyncStore`](verrou::AsyncStore). [`locks::add_to_linker`] is the other way round: a guest that
//! imports `verrou:lock/locks` gets locks from this program directly. The [`bindings`] to `wit/` are
//! there to be reused.
//!
//! [wasmtime]: https://docs.rs/wasmtime

mod async_instance;
mod calls;
mod convert;
mod engine;
mod error;
mod instance;
pub mod locks;

pub use async_instance::{AsyncInstance, AsyncRunner};
pub use engine::Limits;
pub use error::{ComponentError, LockError};
pub use instance::{Instance, LockHandle, Runner};

/// What [`wasmtime::component::bindgen!`] makes of `wit/`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::pedantic,
    reason = "generated; the words are those of `wit/`"
)]
pub mod bindings {
    /// The world `lock-manager`, for hosts that call it synchronously.
    pub mod blocking {
        wasmtime::component::bindgen!({
            world: "lock-manager",
            path: "../wit",
        });
    }

    /// The exports of the world `lock-manager`, for hosts whose store is awaited. What it imports
    /// has the types of [`blocking`].
    pub mod nonblocking {
        wasmtime::component::bindgen!({
            world: "lock-manager",
            path: "../wit",
            exports: { default: async },
            with: {
                "verrou:lock/store": super::blocking::verrou::lock::store,
                "wasi": super::blocking::wasi,
            },
        });
    }

    /// What a guest imports that wants locks from its host.
    pub mod guest {
        wasmtime::component::bindgen!({
            inline: "
                package verrou:guest;
                world guest { import verrou:lock/locks@0.1.0; }
            ",
            path: "../wit",
            imports: { default: trappable },
            with: {
                "verrou:lock/locks.lock": crate::component::locks::Lock,
                "verrou:lock/locks.attempt": crate::component::locks::Attempt,
                "verrou:lock/locks.renewal": crate::component::locks::Renewal,
            },
        });
    }
}
