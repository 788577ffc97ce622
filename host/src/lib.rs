//! Hosts and stores for [`verrou`]: this machine's clock, and lock stores in files and on servers.
//!
//! [`System`] implements a lock's host with this machine's clock, sleep and randomness.
//! [`LeaseFileStore`] and [`FileLockStore`] exclude processes of one machine from each other;
//! [`AnyStore`] is a store of any kind, as a [`StoreUrl`] specifies. [`FenceGate`] protects the resource
//! that a lock guards: it rejects the writes of processes that have lost the lock. `FORMAT.md`
//! specifies the files byte by byte.
#![cfg_attr(
    fuzzing,
    allow(
        dead_code,
        unused_imports,
        reason = "the fuzzers are built without a server's client"
    )
)]

/// Returns whether a deliberate bug is switched on, or selects between the wrong and the right
/// behaviour. No bug is ever on except in programs that are built with `--cfg verrou_mutants`.
#[cfg(not(verrou_mutants))]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
    ($name:ident, $wrong:expr, $right:expr) => {
        $right
    };
}
#[cfg(verrou_mutants)]
macro_rules! mutant {
    ($name:ident) => {
        verrou::Mutant::$name.is_on()
    };
    ($name:ident, $wrong:expr, $right:expr) => {
        if mutant!($name) { $wrong } else { $right }
    };
}

/// Records an event of the lock with a name, as the core does.
#[cfg(feature = "tracing")]
macro_rules! event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        tracing::event!(
            target: "verrou",
            tracing::Level::$level,
            name = %verrou::Printable($name.as_str()),
            $($field)*
        )
    };
}
#[cfg(not(feature = "tracing"))]
macro_rules! event {
    ($level:ident, $name:expr, $($field:tt)*) => {
        let _ = &$name;
    };
}

// The fuzzers compile a module of the command, which refers to this library by its name.
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
extern crate self as verrou_host;

mod alarm;
mod any_store;
mod async_file_stores;
#[cfg(all(
    feature = "server",
    not(any(feature = "redis", feature = "postgres", feature = "etcd", fuzzing))
))]
compile_error!("the feature `server` is part of `redis`, `postgres` and `etcd`: name one of them");

#[cfg(all(target_os = "linux", any(fuzzing, test)))]
#[doc(hidden)]
pub mod fuzzing;
mod host_store;
mod keep_alive;
mod open_locks;
mod process;
mod server;
mod store;
mod store_url;
mod sync;
mod system;
#[cfg(feature = "tokio")]
mod tokio;

#[doc(hidden)]
pub use alarm::Alarm;
pub use any_store::{AnyAsyncStore, AnyStore, OpenedPath};
pub use host_store::{HostStore, Listed, LossSignal};
pub use keep_alive::keep_alive;
pub use open_locks::{OpenLocks, OpenLocksError};
pub use server::Engine;
#[cfg(feature = "etcd")]
pub use server::EtcdStore;
#[cfg(feature = "postgres")]
pub use server::PostgresStore;
#[cfg(feature = "redis")]
pub use server::RedisStore;
#[cfg(feature = "server")]
pub use server::{ServerError, ServerUrl};
pub use store::{
    BareLockStore, Checked, Corruption, FenceError, FenceGate, FileError, FileLockStore,
    LeaseFileStore, OpenError, StoreOptions, Zombies,
};
pub use store_url::{InvalidStoreUrl, LocalUrl, StorePath, StoreUrl, password_range};
pub use system::System;
#[cfg(feature = "tokio")]
pub use tokio::Tokio;
#[cfg(feature = "wasmtime")]
pub use verrou_wasmtime as component;

/// Tests the Rust examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Tests the Rust examples of the server guides.
#[cfg(all(doctest, feature = "redis", feature = "postgres", feature = "etcd"))]
mod guides {
    #[doc = include_str!("../REDIS.md")]
    struct Redis;
    #[doc = include_str!("../POSTGRES.md")]
    struct Postgres;
    #[doc = include_str!("../ETCD.md")]
    struct Etcd;
}

/// Tests the Rust examples of the security page.
#[cfg(doctest)]
#[doc = include_str!("../../SECURITY.md")]
struct Security;
