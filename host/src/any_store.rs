//! Stores of any kind, opened by their URLs.

use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsFd;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

use verrou::{Abilities, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError, Waited};

#[cfg(feature = "server")]
use crate::server::Driven;
#[cfg(all(unix, feature = "server"))]
use crate::server::ServerWatch;
#[cfg(target_os = "linux")]
use crate::store::Listener;
use crate::store::{BareLockStore, FileLockStore, LeaseFileStore, Listed, OpenError, StoreOptions};
use crate::store_url::{StoreFolder, StoreUrl, default_directory};

/// A store of files, of either kind.
#[derive(Debug)]
#[non_exhaustive]
pub enum FileStore {
    /// Leases in files.
    Lease(LeaseFileStore),
    /// The kernel's locks on files.
    Lock(FileLockStore),
}

impl FileStore {
    /// Opens the store at `url`; creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the directory, and what to do about it.
    pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, OpenError> {
        Ok(match url {
            StoreUrl::Lease(directory) => Self::Lease(LeaseFileStore::open(
                &directory.path,
                &directory.shared(options),
            )?),
            StoreUrl::File(directory) => Self::Lock(FileLockStore::open(
                &directory.path,
                &directory.shared(options),
            )?),
            #[cfg(feature = "server")]
            StoreUrl::Server(url) => {
                return Err(OpenError::NoFolder {
                    url: url.to_string(),
                });
            }
        })
    }

    /// Opens the kernel's lock on exactly the file or directory `path`, and returns it with the lock's
    /// name. Its grants are recorded in this user's default directory.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the path or the directory, and what to do
    /// about it.
    pub fn open_path(path: &Path, options: &StoreOptions) -> Result<(Self, Name), OpenError> {
        let no_home = |_| OpenError::Path {
            path: path.to_owned(),
            why:
                "there is no directory to record the holder of its lock: set XDG_STATE_HOME or HOME"
                    .to_owned(),
        };
        let records = default_directory().map_err(no_home)?;
        Self::open_path_in(path, &records.into(), options)
    }

    /// Opens the lock as [`open_path`](Self::open_path) does, recorded in the store directory `directory`.
    fn open_path_in(
        path: &Path,
        directory: &StoreFolder,
        options: &StoreOptions,
    ) -> Result<(Self, Name), OpenError> {
        let options = directory.shared(options);
        // A subdirectory, because a `file:` store in the directory may have the same names.
        let records = directory.path.join("paths");
        let (store, name) = FileLockStore::open_path(path, &records, &options)?;
        Ok((Self::Lock(store), name))
    }

    /// Returns the locks that are held now, with their holders, and an error for each file whose state
    /// cannot be determined.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        match self {
            Self::Lease(store) => store.list(),
            Self::Lock(store) => store.list(),
        }
    }

    /// Returns a duplicate of the descriptor that keeps the kernel's lock for the grant of `claim`, if
    /// this process has one.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when the descriptor cannot be duplicated.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        if mutant!(CommandInheritsNoLock) {
            return Ok(None);
        }
        match self {
            Self::Lease(store) => store.lifeline(claim),
            Self::Lock(store) => store.lifeline(claim),
        }
    }

    /// Returns the previous holder from which the lease of `claim` was taken over although processes
    /// of that holder were still alive.
    pub fn taken_over(&self, claim: &Claim) -> Option<Holder> {
        match self {
            Self::Lease(store) => store.taken_over(claim),
            Self::Lock(_) => None,
        }
    }

    /// Waits until `name` is free, or its state cannot be determined, but at most for `at_most`.
    ///
    /// Unlike [`Store::wait`], it does not enter the wait queue: it is for programs that observe a lock
    /// without acquiring it.
    pub fn watch(&self, name: &Name, at_most: Duration) {
        match self {
            Self::Lease(store) => store.watch(name, at_most),
            Self::Lock(store) => store.watch(name, at_most),
        }
    }

    /// Waits in a task as [`Store::wait`] does in a thread.
    pub(crate) async fn waited(&self, claim: &Claim) {
        match self {
            Self::Lease(store) => store.waited(claim).await,
            Self::Lock(store) => store.waited(claim).await,
        }
    }

    /// Waits in a task for a loss, as [`Store::lost`] does in a thread.
    pub(crate) async fn awaited_loss(&self, claim: &Claim) {
        match self {
            Self::Lease(store) => store.awaited_loss(claim).await,
            Self::Lock(store) => store.awaited_loss(claim).await,
        }
    }

    /// Returns a watch for the loss of the lease of `claim` before its expiry, for programs that poll
    /// descriptors.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when its resources are exhausted, or when it cannot notify
    /// of losses.
    pub fn loss_watch(&self, claim: &Claim) -> io::Result<LossWatch<'_>> {
        FileWatch::new(self, claim).map(|watch| LossWatch(Watch::File(watch)))
    }

    fn store(&self) -> &dyn Store {
        match self {
            Self::Lease(store) => store,
            Self::Lock(store) => store,
        }
    }
}

/// A notification that a lease may be lost before its expiry: it was force-released or taken over, or
/// its file was replaced.
#[derive(Debug)]
pub struct LossWatch<'a>(Watch<'a>);

#[derive(Debug)]
enum Watch<'a> {
    File(FileWatch<'a>),
    #[cfg(all(unix, feature = "server"))]
    Server(ServerWatch<'a>),
}

impl LossWatch<'_> {
    /// Returns whether the lease is lost. Consumes pending notifications: the descriptor is not
    /// readable again before the next one.
    pub fn is_lost(&self) -> bool {
        match &self.0 {
            Watch::File(watch) => watch.is_lost(),
            #[cfg(all(unix, feature = "server"))]
            Watch::Server(watch) => watch.is_lost(),
        }
    }

    /// Returns a descriptor that is readable when a notification is pending for any lock that this
    /// process watches: only for this one if no other thread of the program waits for locks.
    #[cfg(unix)]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Watch::File(watch) => watch.descriptor(),
            #[cfg(feature = "server")]
            Watch::Server(watch) => Some(watch.descriptor()),
        }
    }
}

/// A [`LossWatch`] of files.
#[derive(Debug)]
struct FileWatch<'a> {
    #[cfg(target_os = "linux")]
    listener: Listener,
    #[cfg(target_os = "linux")]
    descriptor: Option<std::sync::Arc<std::os::fd::OwnedFd>>,
    store: &'a FileStore,
    claim: Claim,
}

impl<'a> FileWatch<'a> {
    #[cfg(target_os = "linux")]
    fn new(store: &'a FileStore, claim: &Claim) -> io::Result<Self> {
        let listener = match store {
            FileStore::Lease(store) => store.loss_listener(claim),
            FileStore::Lock(store) => store.loss_listener(claim),
        };
        let listener = listener?;
        Ok(Self {
            descriptor: listener.descriptor(),
            listener,
            store,
            claim: claim.clone(),
        })
    }

    #[cfg(not(target_os = "linux"))]
    fn new(_store: &'a FileStore, _claim: &Claim) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn is_lost(&self) -> bool {
        #[cfg(target_os = "linux")]
        self.listener.has_notification();
        !match self.store {
            FileStore::Lease(store) => store.may_hold(&self.claim),
            FileStore::Lock(store) => store.may_hold(&self.claim),
        }
    }

    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        #[cfg(target_os = "linux")]
        let descriptor = self.descriptor.as_ref().map(|it| it.as_fd());
        #[cfg(not(target_os = "linux"))]
        let descriptor = None;
        descriptor
    }
}

/// A store of any kind, as a [`StoreUrl`] specifies it, for programs that block.
#[derive(Debug)]
#[non_exhaustive]
#[allow(
    clippy::large_enum_variant,
    reason = "a program has few of them; without servers the difference is large"
)]
pub enum AnyStore {
    /// A store of files.
    Files(FileStore),
    /// The kernel's lock on one file, without a directory for records of its grants.
    Bare(BareLockStore),
    /// A store on a server.
    #[cfg(feature = "server")]
    Server(Driven),
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
    /// Returns an [`OpenError`] that names the problem with the directory or the server, and what to do
    /// about it.
    pub fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Self, OpenError> {
        match url {
            #[cfg(feature = "server")]
            StoreUrl::Server(url) => Ok(Self::Server(Driven::open(url, options)?)),
            url => FileStore::open(url, options).map(Self::Files),
        }
    }

    /// Opens the kernel's lock on exactly the file or directory `path`, as `flock(1)` takes it. Its
    /// grants are recorded in the directory of the store `records`, or in this user's default
    /// directory. If `records` is `None` and the default directory cannot be used, grants are not
    /// recorded.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the path or with the directory of
    /// `records`, and what to do about it.
    pub fn open_path(
        path: &Path,
        records: Option<&StoreUrl>,
        options: &StoreOptions,
    ) -> Result<OpenedPath, OpenError> {
        let recorded = |(store, name)| OpenedPath {
            store: Self::Files(store),
            name,
            unrecorded: None,
        };
        let why = match records {
            Some(StoreUrl::Lease(directory) | StoreUrl::File(directory)) => {
                return FileStore::open_path_in(path, directory, options).map(recorded);
            }
            #[cfg(feature = "server")]
            Some(url @ StoreUrl::Server(_)) => {
                let url = url.to_string();
                return Err(OpenError::NoFolder { url });
            }
            None => match default_directory() {
                Ok(directory) => match FileStore::open_path_in(path, &directory.into(), options) {
                    Err(err @ (OpenError::Path { .. } | OpenError::UnknownGroup { .. })) => {
                        return Err(err);
                    }
                    Err(err) => err.into(),
                    Ok(opened) => return Ok(recorded(opened)),
                },
                Err(err) => err.into(),
            },
        };
        let (store, name) = BareLockStore::open(path, options)?;
        Ok(OpenedPath {
            store: Self::Bare(store),
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
    ) -> Result<Option<OpenedPath>, OpenError> {
        if matches!(path.metadata(), Err(err) if err.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        let directory = match records {
            Some(url) => url.folder().map(|directory| directory.path.clone()),
            None => default_directory().ok(),
        };
        if directory.is_some_and(|directory| directory.join("paths").is_dir()) {
            return Self::open_path(path, records, options).map(Some);
        }
        let (store, name) = BareLockStore::open(path, options)?;
        Ok(Some(OpenedPath {
            store: Self::Bare(store),
            name,
            unrecorded: None,
        }))
    }

    /// Returns the locks that are held now, with their holders, and an error for each lock whose state
    /// cannot be determined.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`] when the store cannot list its locks.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        match self {
            Self::Files(store) => store.list(),
            Self::Bare(_) => Ok(Vec::new()),
            #[cfg(feature = "server")]
            Self::Server(store) => store.list(),
        }
    }

    /// Records `label` as the label of this process in grants from now on; `None` restores the default.
    /// A store on a server keeps the label with which it was opened.
    pub fn set_label(&self, label: Option<&str>) {
        match self {
            Self::Files(FileStore::Lease(store)) => store.set_label(label),
            Self::Files(FileStore::Lock(store)) => store.set_label(label),
            Self::Bare(_) => {}
            #[cfg(feature = "server")]
            Self::Server(_) => {}
        }
    }

    /// Returns the descriptor that [`FileStore::lifeline`] returns; `None` for a store on a server,
    /// whose locks no descriptor keeps.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when the descriptor cannot be duplicated.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        match self {
            Self::Files(store) => store.lifeline(claim),
            Self::Bare(store) => store.lifeline(claim),
            #[cfg(feature = "server")]
            Self::Server(_) => Ok(None),
        }
    }

    /// Returns the previous holder that [`FileStore::taken_over`] returns; `None` for a store on a
    /// server, which does not track processes.
    pub fn taken_over(&self, claim: &Claim) -> Option<Holder> {
        match self {
            Self::Files(store) => store.taken_over(claim),
            Self::Bare(_) => None,
            #[cfg(feature = "server")]
            Self::Server(_) => None,
        }
    }

    /// Waits until `name` is free, or its state cannot be determined, but at most for `at_most`.
    pub fn watch(&self, name: &Name, at_most: Duration) {
        match self {
            Self::Files(store) => store.watch(name, at_most),
            Self::Bare(store) => store.watch(name, at_most),
            #[cfg(feature = "server")]
            Self::Server(store) => store.watch(name, at_most),
        }
    }

    /// Returns a watch for the loss of the lease of `claim`, as [`FileStore::loss_watch`] does.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when its resources are exhausted, or when it cannot notify
    /// of losses.
    pub fn loss_watch(&self, claim: &Claim) -> io::Result<LossWatch<'_>> {
        match self {
            Self::Files(store) => store.loss_watch(claim),
            Self::Bare(_) => Err(io::ErrorKind::Unsupported.into()),
            #[cfg(all(unix, feature = "server"))]
            Self::Server(store) => Ok(LossWatch(Watch::Server(store.loss_watch(claim)?))),
            #[cfg(all(not(unix), feature = "server"))]
            Self::Server(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn store(&self) -> &dyn Store {
        match self {
            Self::Files(store) => store,
            Self::Bare(store) => store,
            #[cfg(feature = "server")]
            Self::Server(store) => store,
        }
    }
}

/// Implements [`Store`] by delegation to the `store` method.
macro_rules! delegate_store {
    ($store:ty) => {
        impl Store for $store {
            fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
                self.store().acquire(claim)
            }
            fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
                self.store().extend(claim)
            }
            fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
                self.store().renew(claim, fence)
            }
            fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
                self.store().release(claim)
            }
            fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
                self.store().evict(name, only)
            }
            fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
                self.store().inspect(name)
            }
            fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
                self.store().holds(claim, fence)
            }
            fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
                self.store().detach(claim)
            }
            fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
                self.store().wait(claim, at_most)
            }
            fn notifies(&self) -> bool {
                self.store().notifies()
            }
            fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
                self.store().lost(claim, at_most)
            }
            fn give_up(&self, claim: &Claim) {
                self.store().give_up(claim);
            }
            fn abilities(&self) -> Abilities {
                self.store().abilities()
            }
        }
    };
}

delegate_store!(FileStore);
delegate_store!(AnyStore);
