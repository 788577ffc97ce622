//! Lock stores on servers, for the processes of several machines.

mod engine;
#[cfg(feature = "server")]
mod blocking_store;
#[cfg(feature = "server")]
mod error;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "server")]
mod cancelled_acquire;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod notifications;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod queue_heartbeat;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(feature = "server")]
mod store;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod tls;
#[cfg(feature = "server")]
mod url;

#[cfg(feature = "server")]
pub(crate) use blocking_store::BlockingServerStore;
pub use engine::Engine;
#[cfg(feature = "server")]
pub use error::ServerError;
#[cfg(feature = "etcd")]
pub use etcd::EtcdStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(feature = "redis")]
pub use redis::RedisStore;
#[cfg(feature = "server")]
pub(crate) use store::{ServerStore, connect};
#[cfg(feature = "server")]
pub use url::ServerUrl;
