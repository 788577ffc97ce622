//! The lock component, and guests that use locks, in [wasmtime].
//!
//! [`Runner`] loads the component once and instantiates it with any [`Store`](verrou::Store) of
//! this program as its import; [`AsyncRunner`] does so with any [`AsyncStore`](verrou::AsyncStore).
//! [`ConcurrentRunner`] runs the component of WASI 0.3, in an instance of which many calls can wait at a time.
//! [`locks::add_to_linker`] works without the component: a guest that imports `verrou:lock/locks` uses
//! this program's locks directly; so does a guest of WASI 0.3 by [`async_locks::add_to_linker`]. The [`bindings`] to
//! `wit/` are public for reuse.
//!
//! [wasmtime]: https://docs.rs/wasmtime

mod error;
mod convert;
mod waits;
mod grants;
mod engine;
mod instance_api;
mod instance;
mod async_instance;
mod queue_place;
mod tracked_store;
mod concurrent_imports;
mod concurrent_instance;
mod policy;
pub mod locks;
pub mod async_locks;

/// The version of wasmtime whose types the API has.
pub use wasmtime;
/// The version of `wasi:io` whose pollables guests wait for.
pub use wasmtime_wasi_io;

pub use async_instance::{AsyncInstance, AsyncRunner};
pub use concurrent_imports::{ConcurrentState, StoreWaiter, StoreWatch, add_store_to_linker};
pub use concurrent_instance::{ConcurrentInstance, ConcurrentRunner};
pub use engine::Limits;
pub use error::{ComponentError, LockError};
pub use instance::{Instance, LockHandle, Runner};
pub use waits::{QueuePlace, Wait};

/// The bindings that [`wasmtime::component::bindgen!`] generates from `wit/`.
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::pedantic,
    reason = "generated; the documentation is that of `wit/`"
)]
pub mod bindings {
    /// The world `lock-manager`, for hosts that call it synchronously.
    pub mod blocking {
        wasmtime::component::bindgen!({
            world: "lock-manager",
            path: "../../wit",
            imports: { default: trappable },
            with: {
                "verrou:lock/store.waiter": crate::waits::QueuePlace,
                "wasi:io/poll.pollable": crate::waits::Wait,
            },
        });
    }

    /// The exports of the world `lock-manager`, for hosts with an async store. Its imports have the
    /// types of [`blocking`].
    pub mod nonblocking {
        wasmtime::component::bindgen!({
            world: "lock-manager",
            path: "../../wit",
            exports: { default: async },
            with: {
                "verrou:lock/store": super::blocking::verrou::lock::store,
                "verrou:lock/types": super::blocking::verrou::lock::types,
                "wasi": super::blocking::wasi,
            },
        });
    }

    /// The world `lock-manager` of `verrou:async-lock`, for hosts that call it concurrently.
    pub mod concurrent {
        wasmtime::component::bindgen!({
            world: "verrou:async-lock/lock-manager",
            path: ["../../wit", "../../wit/async"],
            imports: {
                "verrou:async-lock/store.abandon": store | trappable,
                default: trappable,
            },
            exports: { default: async | store },
            with: {
                "verrou:async-lock/store.waiter": crate::concurrent_imports::StoreWaiter,
                "verrou:async-lock/store.loss-watch": crate::concurrent_imports::StoreWatch,
                "verrou:lock/types": super::blocking::verrou::lock::types,
            },
        });
    }

    /// The imports of a guest of WASI 0.3 that uses its host's locks.
    pub mod async_guest {
        wasmtime::component::bindgen!({
            inline: "
                package verrou:async-guest;
                world guest { import verrou:async-lock/locks@0.1.0; }
            ",
            path: ["../../wit", "../../wit/async"],
            imports: {
                "verrou:async-lock/locks.[drop]lock": store | trappable,
                default: trappable,
            },
            with: {
                "verrou:async-lock/locks.lock": crate::async_locks::AsyncLock,
                "verrou:lock/types": super::blocking::verrou::lock::types,
            },
        });
    }

    /// The imports of a guest that uses its host's locks.
    pub mod guest {
        wasmtime::component::bindgen!({
            inline: "
                package verrou:guest;
                world guest { import verrou:lock/locks@0.1.0; }
            ",
            path: "../../wit",
            imports: { default: trappable },
            with: {
                "verrou:lock/locks.lock": crate::locks::Lock,
                "verrou:lock/locks.attempt": crate::locks::Attempt,
                "verrou:lock/locks.renewal": crate::locks::Renewal,
                "verrou:lock/types": super::blocking::verrou::lock::types,
                "wasi:io/poll.pollable": wasmtime_wasi_io::poll::DynPollable,
            },
        });
    }
}
