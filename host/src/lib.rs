//! Hosts and stores for [`verrou`]: this machine's clock, and lock stores in files and on servers.
//!
//! [`System`] implements a lock's host with this machine's clock, sleep and randomness.
//! [`LeaseFileStore`], [`FileLockStore`] and [`HardLinkStore`] exclude processes of one machine from each other;
//! [`AnyStore`] is a store of any kind, as a [`StoreUrl`] specifies. [`FenceGate`] protects the resource
//! that a lock guards: it rejects the writes of processes that have lost the lock. `FORMAT.md` of `verrou-files`
//! specifies the files byte by byte.

#[macro_use(mutant)]
extern crate verrou;
// The fuzzers compile a module of the command, which refers to this library by its name.
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
extern crate self as verrou_host;

// The order of dependence: a module may use modules above it in this list, never modules below it.
// The core's `tests/layers.rs` checks that.
mod local_schemes;
mod store_url;
mod any_store;
mod open_locks;
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
#[doc(hidden)]
pub mod fuzzing;

pub use any_store::{AnyAsyncStore, AnyStore, OpenStoreError, OpenedPath};
pub use open_locks::{OpenLocks, OpenLocksError};
pub use store_url::{InvalidStoreUrl, LocalUrl, StorePath, StoreUrl};
pub use verrou_files::{
    BareLockStore, Checked, Corruption, FenceError, FenceGate, FileError, FileLockStore,
    HardLinkStore, LeaseFileStore, OpenError,
};
#[cfg(feature = "tokio")]
pub use verrou_machine::Tokio;
#[doc(hidden)]
pub use verrou_machine::alarm::Alarm;
pub use verrou_machine::{
    HostStore, Listed, LossSignal, StoreOptions, System, Zombies, keep_alive,
};
#[cfg(feature = "etcd")]
pub use verrou_servers::EtcdStore;
#[cfg(feature = "postgres")]
pub use verrou_servers::PostgresStore;
#[cfg(feature = "redis")]
pub use verrou_servers::RedisStore;
pub use verrou_servers::{Engine, InvalidServerUrl, password_range};
#[cfg(feature = "server")]
pub use verrou_servers::{ServerError, ServerUrl};
#[cfg(feature = "wasmtime")]
pub use verrou_wasmtime as component;

/// Tests the Rust examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Tests the Rust examples of the server guides.
#[cfg(all(doctest, feature = "redis", feature = "postgres", feature = "etcd"))]
mod guides {
    #[doc = include_str!("../servers/REDIS.md")]
    struct Redis;
    #[doc = include_str!("../servers/POSTGRES.md")]
    struct Postgres;
    #[doc = include_str!("../servers/ETCD.md")]
    struct Etcd;
}

/// Tests the Rust examples of the security page.
#[cfg(doctest)]
#[doc = include_str!("../../SECURITY.md")]
struct Security;
