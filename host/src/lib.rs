//! The machine under [`verrou`]: its clock, and lock stores made of its files.
//!
//! [`System`] is the machine as a lock's host. [`LeaseFileStore`] and [`FileLockStore`] are for
//! the processes of one machine; [`FileStore`] is whichever of them a [`StoreUrl`] names.
//! [`FenceGate`] is for what a lock guards: it refuses those who have lost the lock. The files are
//! described byte by byte in `FORMAT.md`.

/// Whether a deliberate bug is switched on, and what is wrong then, and right: nothing is wrong but
/// in programs that are built with `--cfg verrou_mutants`.
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

// What is compiled of the command for the fuzzers calls this library by its name.
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
extern crate self as verrou_host;

mod alarm;
mod awaited;
#[cfg(all(
    feature = "server",
    not(any(feature = "redis", feature = "postgres", feature = "etcd"))
))]
compile_error!("the feature `server` is part of `redis`, `postgres` and `etcd`: name one of them");

#[cfg(feature = "wasmtime")]
pub mod component;
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
#[doc(hidden)]
pub mod fuzzing;
mod keep_alive;
mod open;
mod open_locks;
mod process;
mod server;
mod store;
mod sync;
mod system;
#[cfg(feature = "tokio")]
mod tokio;

#[doc(hidden)]
pub use alarm::Alarm;
pub use keep_alive::keep_alive;
pub use open::{
    AnyStore, FileStore, InvalidStoreUrl, LossWatch, OpenedPath, StoreFolder, StoreUrl,
    password_range,
};
pub use open_locks::{OpenLocks, OpenLocksError};
pub use server::Engine;
#[cfg(feature = "etcd")]
pub use server::EtcdStore;
#[cfg(feature = "postgres")]
pub use server::PostgresStore;
#[cfg(feature = "redis")]
pub use server::RedisStore;
#[cfg(feature = "server")]
pub use server::{Driven, ServerError, ServerStore, ServerUrl};
pub use store::{
    BareLockStore, Checked, Damage, FenceError, FenceGate, FileError, FileLockStore,
    LeaseFileStore, Listed, OpenError, StoreOptions, Zombies,
};
pub use system::System;
#[cfg(feature = "tokio")]
pub use tokio::Tokio;

/// The README's Rust is tested.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// And that of the guides to servers.
#[cfg(all(doctest, feature = "redis", feature = "postgres", feature = "etcd"))]
mod guides {
    #[doc = include_str!("../REDIS.md")]
    struct Redis;
    #[doc = include_str!("../POSTGRES.md")]
    struct Postgres;
    #[doc = include_str!("../ETCD.md")]
    struct Etcd;
}

/// And that of the page on security.
#[cfg(doctest)]
#[doc = include_str!("../../SECURITY.md")]
struct Security;
