//! A program's locks, opened by a store URL.

use std::sync::Arc;

use verrou::Locks;
use verrou::blocking::LockFactory;
use verrou_machine::{StoreOptions, System};

use crate::any_store::{AnyStore, OpenStoreError};
use crate::store_url::{InvalidStoreUrl, StoreUrl};

/// Opens the one store of a program by its URL: [`Locks::open`](Self::open).
///
/// ```
/// use verrou::Locks;
/// use verrou_host::OpenLocks;
///
/// # let directory = tempfile::tempdir()?;
/// # let url = format!("lease:{}", directory.path().display());
/// // `lease:DIR`, `file:DIR`, `redis://HOST`, `postgres://HOST/DATABASE` or `etcd://HOST`
/// let locks = Locks::open(&url)?;
/// let lock = locks.create_lock("my-resource", "10s")?;
/// lock.run(|_| println!("got the lock"))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait OpenLocks: Sized {
    /// Opens the store at `url`, and returns its locks. Creates the store if it does not exist.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenLocksError`] that names the problem with the URL or the store, and what to do
    /// about it.
    fn open(url: &str) -> Result<Self, OpenLocksError>;
}

/// The reason why the store at a URL cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenLocksError {
    /// The URL is invalid.
    #[error(transparent)]
    Url(#[from] InvalidStoreUrl),
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenStoreError),
}

impl OpenLocks for Locks<LockFactory<Arc<AnyStore>, System>> {
    fn open(url: &str) -> Result<Self, OpenLocksError> {
        let url: StoreUrl = url.parse()?;
        let store = AnyStore::open(&url, &StoreOptions::default())?;
        let factory = LockFactory::new(Arc::new(store), System);
        let one = "default";
        Self::new(one, [(one, factory)]).map_err(|_| unreachable!("it is among them"))
    }
}
