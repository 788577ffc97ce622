//! Lock stores on servers, for the processes of several machines. Programs use them through `verrou-host`.
//!
//! [`RedisStore`], [`PostgresStore`] and [`EtcdStore`] are for async programs, [`BlockingServerStore`] is any of them for
//! programs that block. Without a feature for an engine, there are only the schemes of their URLs.
#![cfg_attr(
    fuzzing,
    allow(
        dead_code,
        unused_imports,
        reason = "the fuzzers are built without a server's client"
    )
)]

#[cfg(all(
    feature = "server",
    not(any(feature = "redis", feature = "postgres", feature = "etcd", fuzzing))
))]
compile_error!("the feature `server` is part of `redis`, `postgres` and `etcd`: name one of them");

// The order of dependence: a module may use modules above it in this list, never modules below it.
// The core's `tests/layers.rs` checks that.
mod engine;
mod password;
#[cfg(feature = "server")]
mod error;
#[cfg(feature = "server")]
mod url;
#[cfg(feature = "server")]
mod store;
#[cfg(feature = "server")]
mod cancelled_acquire;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod notifications;
#[cfg(feature = "server")]
mod tickets;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod queue_heartbeat;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod tls;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "server")]
mod open;
#[cfg(feature = "server")]
mod blocking_store;

#[cfg(feature = "server")]
pub use blocking_store::BlockingServerStore;
pub use engine::{Engine, InvalidServerUrl};
#[cfg(feature = "server")]
pub use error::ServerError;
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
#[cfg(feature = "server")]
pub use open::open;
pub use password::password_range;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
#[cfg(feature = "server")]
pub use url::ServerUrl;

/// The clients of the servers, for tests and benchmarks that send the requests of the stores themselves.
#[doc(hidden)]
pub mod clients {
    #[cfg(feature = "etcd")]
    pub use crate::etcd::client as etcd;
    #[cfg(feature = "redis")]
    pub use ::redis;
    #[cfg(feature = "postgres")]
    pub use tokio_postgres;
}
