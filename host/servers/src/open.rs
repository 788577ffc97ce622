//! Stores on servers, opened by their URLs.

use std::sync::Arc;

use verrou::AsyncStore;
use verrou_machine::StoreOptions;

use crate::engine::Engine;
use crate::error::ServerError;
#[cfg(feature = "etcd")]
use crate::etcd::EtcdStore;
#[cfg(feature = "postgres")]
use crate::postgres::PostgresStore;
#[cfg(feature = "redis")]
use crate::redis::RedisStore;
use crate::store::ServerStore;
use crate::url::ServerUrl;

/// Connects to the store at `url`, after checking that its server is usable.
///
/// # Errors
///
/// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
pub(crate) async fn connect(
    url: &ServerUrl,
    options: &StoreOptions,
) -> Result<Arc<dyn ServerStore>, ServerError> {
    if let Some(what) = options.for_files() {
        return Err(ServerError::Setup {
            server: url.to_string(),
            why: format!("{what} is an option of file stores only"),
            advice: "leave it out".to_owned(),
        });
    }
    match url.engine() {
        #[cfg(feature = "redis")]
        Engine::Redis => Ok(Arc::new(RedisStore::connect(url, options).await?)),
        #[cfg(feature = "postgres")]
        Engine::Postgres => Ok(Arc::new(PostgresStore::connect(url, options).await?)),
        #[cfg(feature = "etcd")]
        Engine::Etcd => Ok(Arc::new(EtcdStore::connect(url, options).await?)),
        #[cfg(not(all(feature = "redis", feature = "postgres", feature = "etcd")))]
        engine => Err(ServerError::Setup {
            server: url.to_string(),
            why: format!("this program is built without {engine}"),
            advice: format!("build it with the feature `{}`", engine.feature()),
        }),
    }
}

/// Opens the store at `url` for async programs, after checking that its server is usable. It lives in the tokio runtime in
/// which it was opened, which must have time and I/O enabled, and ends with that runtime.
///
/// # Errors
///
/// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
pub async fn open(
    url: &ServerUrl,
    options: &StoreOptions,
) -> Result<Arc<dyn AsyncStore>, ServerError> {
    Ok(connect(url, options).await?)
}
