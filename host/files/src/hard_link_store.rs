//! Locks as hard links in a directory, which WebAssembly programs use, too.

mod grants;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use grants::Grants;
use verrou::blocking::Host;
use verrou::{
    Acquired, Capabilities, Claim, Fence, Holder, Name, Process, Renewed, Store, StoreError,
};
use verrou_hard_links::{
    Linked, LockDirectory, Moment, OperationError, StateFiles, lock_directory_name, locked_name,
};
use verrou_machine::process::{self, PerProcess};
use verrou_machine::sync::Mutex;
use verrou_machine::{HostStore, Listed, StoreOptions, System, Zombies};

use crate::error::{FileError, OpenError};
use crate::os::{self, DirectoryError, OpenDirectory, Purpose};
use crate::store_directory::StoreDirectory;
use crate::trusted_file;

/// A store of leases as hard links in a directory: `wasi:DIR`. WebAssembly programs use the same directory through
/// the component `provider-filesystem`, in any runtime that gives it to them.
///
/// A lease ends by its ttl and the wall clock alone, also when its process has ended. Waiters poll. A grant is synced to
/// the disk, which takes milliseconds, and blocks a task's thread. A [`LeaseFileStore`](crate::LeaseFileStore) does
/// better for native programs alone.
///
/// A forked child may use its copy of this value. The child does not hold its parent's locks:
/// [`is_held`](verrou::blocking::Lock::is_held) returns false for them, and they can be neither
/// extended nor released, unless they were detached.
///
/// ```
/// use verrou::blocking::LockFactory;
/// use verrou_host::{HardLinkStore, StoreOptions, System};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let store = HardLinkStore::open(directory, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "2s")?;
/// lock.run(|held| println!("fence {:?}", held.fence()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct HardLinkStore {
    directory: StoreDirectory,
    skew: Duration,
    host: Arc<dyn Host + Send + Sync>,
    label: Option<String>,
    grants: Grants,
    /// The label that replaces the one with which the store was opened.
    other_label: PerProcess<Mutex<Option<String>>>,
}

impl HardLinkStore {
    /// Opens the store in the directory `path`; creates the directory for this user alone if necessary.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the directory, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        if options.zombies == Zombies::Wait {
            return Err(OpenError::Path {
                path: path.to_owned(),
                why: "a `wasi:` store does not detect whether processes of a holder still live; use a `lease:` \
                      store, or do not wait for zombies"
                    .to_owned(),
            });
        }
        let directory = StoreDirectory::open(path, Purpose::Store, options)?;
        let files = Files(directory.known());
        let settings = verrou_hard_links::open(&files).map_err(|err| files.failed(err))?;
        Ok(Self {
            directory,
            skew: settings.skew,
            host: Arc::new(System),
            label: options.label.clone(),
            grants: Grants::new(),
            other_label: PerProcess::new(),
        })
    }

    /// Lets leases expire by the wall clock of `host` instead of the machine's, for tests.
    #[must_use]
    pub fn with_clock(mut self, host: impl Host + Send + Sync + 'static) -> Self {
        self.host = Arc::new(host);
        self
    }

    fn moment(&self) -> Moment {
        Moment {
            now: self.host.wall_clock(),
            skew: self.skew,
        }
    }

    /// Does an operation in the directory of the lock `name`; returns `None` if there is none, and `create` is not
    /// set.
    fn operate<T>(
        &self,
        name: &Name,
        create: bool,
        operation: impl FnOnce(&LockDirectory<'_, Files>) -> Result<T, OperationError<FileError>>,
    ) -> Result<Option<T>, FileError> {
        let root = if create {
            self.directory.current_to_create()?
        } else {
            match self.directory.current()? {
                Some(root) => root,
                None => return Ok(None),
            }
        };
        let Some(files) = below(&root, &lock_directory_name(name), create)? else {
            return Ok(None);
        };
        let done = operation(&LockDirectory::new(&files, name, self.moment()));
        done.map(Some).map_err(|err| files.failed(err))
    }

    /// Returns this process, for a record.
    fn process(&self) -> Process {
        let other = self
            .other_label
            .get()
            .and_then(|_| self.other_label.lock().clone());
        process::described(other.as_deref().or(self.label.as_deref()))
    }

    /// Returns the lock whose directory is the entry `entry` of the store's directory, and its holder, if it is held.
    fn listed(
        &self,
        root: &OpenDirectory,
        entry: &str,
    ) -> Result<Option<(Name, Holder)>, FileError> {
        let path = root.path().join(entry);
        let Some(files) = below(root, entry, false)? else {
            return Ok(None);
        };
        let name = locked_name(&files).map_err(|err| files.failed(err))?;
        let Some(name) = name else {
            return Ok(None);
        };
        if lock_directory_name(&name) != entry {
            let corruption = verrou_hard_links::Corruption::OtherName;
            return Err(FileError::State { path, corruption });
        }
        let lock = LockDirectory::new(&files, &name, self.moment());
        let holder = lock.holder().map_err(|err| files.failed(err))?;
        Ok(holder.map(|holder| (name, holder)))
    }
}

/// Opens the directory `name` of a lock in the store's directory.
fn below(root: &OpenDirectory, name: &str, create: bool) -> Result<Option<Files>, FileError> {
    let name = PathBuf::from(name);
    match root.open_below(&name, create) {
        Ok(found) => Ok(found.map(|found| Files(Arc::new(found)))),
        Err(DirectoryError::Untrusted { path, why }) => Err(FileError::Suspicious { path, why }),
        Err(DirectoryError::Io { action, source }) => {
            Err(FileError::io(action, &root.path().join(name))(source))
        }
    }
}

impl fmt::Debug for HardLinkStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.directory.path();
        f.debug_struct("HardLinkStore")
            .field("path", &path)
            .finish_non_exhaustive()
    }
}

impl HostStore for HardLinkStore {
    fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let path = self.directory.path();
        let Some(root) = self.directory.current()? else {
            let missing = io::ErrorKind::NotFound.into();
            return Err(FileError::io("list this directory", path)(missing).into());
        };
        let entries = root
            .names()
            .map_err(FileError::io("list this directory", path))?;
        let mut entries: Vec<_> = entries
            .into_iter()
            .filter_map(|entry| entry.into_string().ok())
            .filter(|entry| verrou_hard_links::is_lock_directory(entry))
            .collect();
        entries.sort_unstable();
        let locks = entries.iter().map(|entry| self.listed(&root, entry));
        let mut locks: Vec<_> = locks.filter_map(Result::transpose).collect();
        locks.sort_by(|one, two| {
            let name = |listed: &Result<(Name, Holder), FileError>| {
                listed.as_ref().ok().map(|(name, _)| name.clone())
            };
            name(one).cmp(&name(two))
        });
        let locks = locks.into_iter();
        Ok(locks.map(|lock| lock.map_err(StoreError::from)).collect())
    }

    fn set_label(&self, label: Option<&str>) {
        *self.other_label.lock() = label.map(str::to_owned);
    }
}

impl Store for HardLinkStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let process = self.process();
        let acquired = self.operate(&claim.name, true, |lock| {
            lock.acquire(claim, Some(&process))
        })?;
        let acquired = acquired.unwrap_or(Acquired::BUSY);
        if acquired.is_granted() && claim.ephemeral {
            self.grants.note(claim);
        }
        Ok(acquired)
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        if self.grants.is_parents(claim.owner) {
            return Ok(false);
        }
        let extended = self.operate(&claim.name, false, |lock| lock.extend(claim))?;
        let is_extended = extended.unwrap_or(false);
        if is_extended {
            self.grants.prolong(claim);
        }
        Ok(is_extended)
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        if self.grants.is_parents(claim.owner) {
            return Ok(Renewed::Lost);
        }
        let renewed = self.operate(&claim.name, false, |lock| lock.renew(claim, fence))?;
        let renewed = renewed.unwrap_or(Renewed::Lost);
        if renewed == Renewed::Granted {
            self.grants.prolong(claim);
        }
        Ok(renewed)
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        if self.grants.is_parents(claim.owner) {
            return Ok(false);
        }
        let released = self.operate(&claim.name, false, |lock| lock.release(claim))?;
        self.grants.remove(claim.owner);
        Ok(released.unwrap_or(false))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let released = self.operate(name, false, |lock| lock.force_release(only))?;
        Ok(released.unwrap_or(false))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let holders = self.operate(name, false, |lock| Ok(lock.holder()?.into_iter().collect()))?;
        Ok(holders.unwrap_or_default())
    }

    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        if self.grants.is_parents(claim.owner) {
            return Ok(false);
        }
        let holds = self.operate(&claim.name, false, |lock| lock.holds(claim))?;
        Ok(holds.unwrap_or(false))
    }

    /// From now on, a forked child can use the lease.
    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let holds = self.holds(claim, None)?;
        if holds {
            self.grants.remove(claim.owner);
        }
        Ok(holds)
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.expires = true;
        capabilities.transfers = true;
        capabilities.force_releases = true;
        capabilities.fences = true;
        capabilities.revives = true;
        capabilities
    }
}

/// An open directory: the store's, or that of a lock.
struct Files(Arc<OpenDirectory>);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn failed(&self, err: OperationError<FileError>) -> FileError {
        let path = self.0.path().to_owned();
        match err {
            OperationError::Files(err) => err,
            OperationError::Corrupt { file, corruption } => FileError::State {
                path: self.path(&file),
                corruption,
            },
            OperationError::NoFenceLeft => FileError::NoFenceLeft { path },
            OperationError::Contended { attempts } => FileError::Contended { path, attempts },
            // The only other one.
            _ => FileError::NoHardLinks { path },
        }
    }
}

impl StateFiles for Files {
    type Error = FileError;

    fn list(&self) -> Result<Vec<String>, FileError> {
        let names = self.0.names();
        let names = names.map_err(FileError::io("list this directory", self.0.path()))?;
        // A name that is no Unicode is none of the store.
        let names = names.iter().map(|name| name.to_string_lossy().into_owned());
        Ok(names.collect())
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileError> {
        let Some(file) = trusted_file::open_linked(&self.0, Path::new(name))? else {
            return Ok(None);
        };
        let mut buffer = vec![0; limit];
        let bytes = os::read_at(&file, &mut buffer, 0);
        let bytes = bytes.map_err(FileError::io("read this file", &self.path(name)))?;
        Ok(Some(bytes.to_vec()))
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), FileError> {
        let created = self.0.create_draft(Path::new(name), bytes);
        created.map_err(FileError::io("create this file", &self.path(name)))
    }

    fn link(&self, from: &str, to: &str) -> Result<Linked, FileError> {
        match self.0.link(Path::new(from), Path::new(to)) {
            Ok(()) => Ok(Linked::Done),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(Linked::Exists),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(Linked::Gone),
            Err(err) if os::is_link_refused(&err) => Ok(Linked::Refused),
            Err(err) => Err(FileError::io("link this file", &self.path(from))(err)),
        }
    }

    fn delete(&self, name: &str) -> Result<(), FileError> {
        match self.0.remove(Path::new(name)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(FileError::io("remove this file", &self.path(name))(err))
            }
            _ => Ok(()),
        }
    }

    fn sync(&self) -> Result<(), FileError> {
        let synced = self.0.sync();
        synced.map_err(FileError::io("sync this directory", self.0.path()))
    }

    /// # Panics
    ///
    /// Panics when the operating system provides no random numbers, as [`System`] does.
    fn random(&self) -> u128 {
        u128::from_ne_bytes(System.random())
    }
}
