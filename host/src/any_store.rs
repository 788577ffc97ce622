//! Stores of any kind, opened by their URLs.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Renewed, StoreError, StoreWrapper, async_trait,
};
use verrou_files::{BareLockStore, FileLockStore, OpenError};
use verrou_machine::{HostStore, StoreOptions};
#[cfg(feature = "server")]
use verrou_servers::{BlockingServerStore, ServerError};

use crate::store_url::{StorePath, StoreUrl, default_directory};

/// A store of any kind, as a [`StoreUrl`] specifies it, for programs that block. It has the methods of
/// [`HostStore`]; async programs use [`AnyAsyncStore`].
#[derive(Debug)]
pub struct AnyStore(Box<dyn HostStore>);

impl StoreWrapper for AnyStore {
    type Inner = dyn HostStore;

    fn inner(&self) -> &Self::Inner {
        &*self.0
    }
}

impl Deref for AnyStore {
    type Target = dyn HostStore;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// An error of opening a store of any kind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenStoreError {
    /// The files of the store cannot be used.
    #[error(transparent)]
    Files(#[from] OpenError),
    /// The server cannot be used.
    #[cfg(feature = "server")]
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The store is not a directory, where one is required.
    #[error("{url} is not a directory")]
    NoDirectory {
        /// The URL of the store.
        url: String,
    },
}

impl OpenStoreError {
    /// Returns whether the store may be opened later without an administrator's help: its server does not answer.
    pub fn is_temporary(&self) -> bool {
        match self {
            #[cfg(feature = "server")]
            Self::Server(err) => err.is_temporary(),
            Self::Files(_) | Self::NoDirectory { .. } => false,
        }
    }
}

/// The kernel's lock on exactly one file, as [`AnyStore::open_path`] returns it.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpenedPath {
    /// The store that has this one lock.
    pub store: AnyStore,
    /// The lock's name.
    pub name: Name,
    /// Why grants cannot be recorded, and therefore have no fencing token.
    pub unrecorded: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl AnyStore {
    /// Opens the store at `url`; creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenStoreError`] that names the problem with the directory or the server, and what to do
    /// about it.
    pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, OpenStoreError> {
        Ok(Self(match url {
            StoreUrl::Local(url) => (url.scheme.open)(&url.path.path, &url.path.shared(options))?,
            #[cfg(feature = "server")]
            StoreUrl::Server(url) => Box::new(BlockingServerStore::open(url, options)?),
        }))
    }

    /// Opens the lock as [`open_path`](Self::open_path) does, recorded in the store directory `directory`.
    fn open_path_in(
        path: &Path,
        directory: &StorePath,
        options: &StoreOptions,
    ) -> Result<(Self, Name), OpenError> {
        let options = directory.shared(options);
        // A subdirectory, because a `file:` store in the directory may have the same names.
        let records = directory.path.join("paths");
        let (store, name) = FileLockStore::open_path(path, &records, &options)?;
        Ok((Self(Box::new(store)), name))
    }

    /// Opens the kernel's lock on exactly the file or directory `path`, as `flock(1)` takes it. Its
    /// grants are recorded in the directory of the store `records`, or in this user's default
    /// directory. If `records` is `None` and the default directory cannot be used, grants are not
    /// recorded.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenStoreError`] that names the problem with the path or with the directory of
    /// `records`, and what to do about it.
    pub fn open_path(
        path: &Path,
        records: Option<&StoreUrl>,
        options: &StoreOptions,
    ) -> Result<OpenedPath, OpenStoreError> {
        let recorded = |(store, name)| OpenedPath {
            store,
            name,
            unrecorded: None,
        };
        let why = match records {
            Some(url) => {
                let Some(directory) = url.records() else {
                    let url = url.to_string();
                    return Err(OpenStoreError::NoDirectory { url });
                };
                return Ok(recorded(Self::open_path_in(path, directory, options)?));
            }
            None => match default_directory() {
                Ok(directory) => match Self::open_path_in(path, &directory.into(), options) {
                    Err(err @ (OpenError::Path { .. } | OpenError::UnknownGroup { .. })) => {
                        return Err(err.into());
                    }
                    Err(err) => err.into(),
                    Ok(opened) => return Ok(recorded(opened)),
                },
                Err(err) => err.into(),
            },
        };
        let (store, name) = BareLockStore::open(path, options)?;
        Ok(OpenedPath {
            store: Self(Box::new(store)),
            name,
            unrecorded: Some(why),
        })
    }

    /// Opens the lock on an existing file, as [`open_path`](Self::open_path) does, to inspect it.
    /// Creates nothing. Returns `None` if there is no such file.
    ///
    /// # Errors
    ///
    /// Returns the errors of `open_path`.
    pub fn find_path(
        path: &Path,
        records: Option<&StoreUrl>,
        options: &StoreOptions,
    ) -> Result<Option<OpenedPath>, OpenStoreError> {
        if matches!(path.metadata(), Err(err) if err.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let directory = match records {
            Some(url) => url.records().map(|directory| directory.path.clone()),
            None => default_directory().ok(),
        };
        if directory.is_some_and(|directory| directory.join("paths").is_dir()) {
            return Self::open_path(path, records, options).map(Some);
        }
        let (store, name) = BareLockStore::open(path, options)?;
        Ok(Some(OpenedPath {
            store: Self(Box::new(store)),
            name,
            unrecorded: None,
        }))
    }

    /// Returns the descriptor that [`HostStore::lifeline`] returns.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when the descriptor cannot be duplicated.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        if mutant!(CommandInheritsNoLock) {
            return Ok(None);
        }
        self.0.lifeline(claim)
    }
}

/// A store of any kind, as a [`StoreUrl`] specifies it, for async programs. A clone is the same store.
///
/// ```
/// # #[cfg(feature = "tokio")]
/// # async fn work() -> Result<(), Box<dyn std::error::Error>> {
/// use verrou::nonblocking::LockFactory;
/// use verrou_host::{AnyAsyncStore, StoreOptions, StoreUrl, Tokio};
///
/// let url: StoreUrl = "redis://locks.example".parse()?; // or `lease:/var/lib/verrou`
/// let store = AnyAsyncStore::open(&url, &StoreOptions::default()).await?;
/// let locks = LockFactory::new(store, Tokio);
/// let lock = locks.create_lock("report", "30s")?;
/// let answer = lock.run(async |guard| guard.keep(async { 6 * 7 }).await);
/// assert_eq!(answer.await.ok().and_then(Result::ok), Some(42));
/// # Ok(())
/// # }
/// ```
// A type without a trait object in its name: in tasks that may move between threads, the compiler does not infer
// enough about the lifetime of a `dyn AsyncStore`, so `Lock::run` could not be awaited there.
#[derive(Clone, Debug)]
pub struct AnyAsyncStore(Arc<dyn AsyncStore>);

impl AnyAsyncStore {
    /// Opens the store at `url`; creates it if it does not exist.
    ///
    /// A store on a server lives in the tokio runtime in which it was opened, which must have time and I/O
    /// enabled, and ends with that runtime.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenStoreError`] that names the problem with the directory or the server, and what to do
    /// about it.
    #[cfg_attr(
        not(feature = "server"),
        expect(clippy::unused_async, reason = "a store on a server is awaited")
    )]
    pub async fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, OpenStoreError> {
        Ok(Self(match url {
            StoreUrl::Local(url) => {
                (url.scheme.open_async)(&url.path.path, &url.path.shared(options))?
            }
            #[cfg(feature = "server")]
            StoreUrl::Server(url) => Arc::new(verrou_servers::open(url, options).await?),
        }))
    }
}

#[deny(
    clippy::missing_trait_methods,
    reason = "a wrapper passes every method on"
)]
#[async_trait]
impl AsyncStore for AnyAsyncStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.0.acquire(claim).await
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.extend(claim).await
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.release(claim).await
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.0.force_release(name, only).await
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.0.holders(name).await
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.0.renew(claim, fence).await
    }
    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        self.0.holds(claim, fence).await
    }
    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.detach(claim).await
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        self.0.waiter(claim)
    }
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        self.0.watch(claim)
    }
}
