//! The kernel's own locks: one locked file per name, free as soon as its processes are gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use verrou::{Abilities, Claim, Clock, Fence, Holder, Name, Reply, Store, StoreError, Waited};

use super::directory::{self, Directory};
use super::error::{FileError, OpenError};
use super::lease_file::{granted, holder, wall_clock};
use super::machine::Machine;
use super::record::{Kind, Record};
use super::{Listed, StoreOptions, jitter, kernel_lock, os};
use crate::System;

/// The kernel's lock (`flock(2)`) on a file per name, for the processes of one machine.
///
/// A lock is free when it is released or the processes that hold it are gone, and cannot be taken
/// from them before: its ttl ends the lease for those who hold it, who can no longer extend it,
/// and for nobody else. It cannot be serialized, nor its holder be evicted.
///
/// Any program that locks the same file with flock(2) is excluded, and excludes.
///
/// ```
/// use verrou::blocking::LockFactory;
/// use verrou_host::{FileLockStore, StoreOptions, System};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// let store = FileLockStore::open(folder, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "none")?;
/// let held = lock.guard()?;
///
/// let other = FileLockStore::open(folder, &StoreOptions::default())?;
/// let other = LockFactory::new(&other, System).create_lock("my-resource", "none")?;
/// assert!(other.try_acquire().is_err());
/// drop(held);
/// assert!(other.try_acquire().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FileLockStore {
    /// Where the records are, and, unless there is `exact`, the files that are locked.
    directory: Directory,
    /// The one file that is locked, and never written.
    exact: Option<PathBuf>,
    clock: Arc<dyn Clock + Send + Sync>,
    command: Option<String>,
    grants: Mutex<HashMap<Name, Slot>>,
}

/// What this value does with a name.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all are held, and the others soon are"
)]
enum Slot {
    /// It asks the kernel for it, and others here need not.
    Asking,
    Held(Grant),
}

impl Slot {
    fn grant(&self) -> Option<&Grant> {
        match self {
            Self::Asking => None,
            Self::Held(grant) => Some(grant),
        }
    }
}

/// A lock that this process holds.
struct Grant {
    locked: Locked,
    /// Where its record is, when that is another file.
    recorded: Option<File>,
    record: Record,
}

/// The kernel's lock, just taken, and what was recorded before.
struct Taken {
    locked: Locked,
    recorded: Option<File>,
    before: Option<Record>,
}

/// A file that is locked until this is dropped.
struct Locked {
    file: File,
    /// A forked child has a copy of this value, but is not the holder.
    process: u32,
}

impl FileLockStore {
    /// The store in the folder `path`, which is created for this user alone if need be.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the folder, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        Ok(Self {
            directory: Directory::open(path.as_ref(), Kind::Lock, options)?,
            exact: None,
            clock: Arc::new(System),
            command: options.command.clone(),
            grants: Mutex::default(),
        })
    }

    /// A store whose one lock is the kernel's lock on exactly the file or folder `path`, and that
    /// lock's name: its absolute path. An empty file is created where there is nothing; nothing
    /// is ever written to it. Fences, and who holds the lock, are recorded in the folder
    /// `records`.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the path or the folder, and what to do about it.
    pub fn open_path(
        path: &Path,
        records: &Path,
        options: &StoreOptions,
    ) -> Result<(Self, Name), OpenError> {
        let failed = |why: String| OpenError::Path {
            path: path.to_owned(),
            why,
        };
        os::open_to_lock(path)
            .map_err(|err| failed(format!("cannot open this to lock it: {err}")))?;
        let exact = path.canonicalize().map_err(|err| failed(err.to_string()))?;
        if !options.any_file_system {
            directory::refuse_unsuitable(&exact)?;
        }
        let name = exact
            .to_str()
            .ok_or_else(|| failed("this path is not UTF-8".to_owned()))?;
        let name = Name::new(name).map_err(|err| failed(err.to_string()))?;
        let store = Self {
            exact: Some(exact),
            ..Self::open(records, options)?
        };
        Ok((store, name))
    }

    /// Lets leases end by `clock` instead of the machine's: for tests.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock + Send + Sync + 'static) -> Self {
        Self {
            clock: Arc::new(clock),
            ..self
        }
    }

    /// The names that are held now, and by whom; an error for each file of which that cannot be
    /// told.
    ///
    /// # Errors
    ///
    /// [`StoreError`] when the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        self.directory.held(|name| self.inspect(name))
    }

    /// A duplicate of the locked descriptor of `claim`'s lock, which is free when it is released,
    /// or when all duplicates are closed. `None` when this value does not hold that lock.
    ///
    /// # Errors
    ///
    /// What the operating system says when it cannot duplicate it.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let grants = self.grants();
        let grant = grants.get(&claim.name).and_then(Slot::grant);
        let grant = grant.filter(|grant| grant.record.owner == claim.owner);
        grant.map(|grant| grant.locked.file.try_clone()).transpose()
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<Name, Slot>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.clock.now().since_start()
    }

    /// The file that is locked for `name`.
    fn path_of(&self, name: &Name) -> PathBuf {
        self.exact
            .clone()
            .unwrap_or_else(|| self.directory.path_of(name))
    }

    /// Takes the kernel's lock for `claim`, and records that; `None` when it is taken.
    fn take(&self, claim: &Claim) -> Result<Option<Grant>, FileError> {
        let Some(Taken {
            locked,
            recorded,
            before,
        }) = self.lock(&claim.name)?
        else {
            return Ok(None);
        };
        let record = self.next_record(claim, before.as_ref())?;
        let grant = Grant {
            locked,
            recorded,
            record,
        };
        self.write(&grant, &claim.name, &grant.record)?;
        Ok(Some(grant))
    }

    /// Takes the kernel's lock of `name`, and reads what was recorded; `None` when it is taken.
    fn lock(&self, name: &Name) -> Result<Option<Taken>, FileError> {
        let path = self.path_of(name);
        let locked = loop {
            let file = match &self.exact {
                Some(path) => {
                    os::open_to_lock(path).map_err(FileError::io("open this to lock it", path))?
                }
                None => self.directory.open_or_create(&path, name)?,
            };
            let Some(locked) = Locked::new(file).map_err(FileError::io("lock this file", &path))?
            else {
                return Ok(None);
            };
            if kernel_lock::is_current(&locked.file, &path)? {
                break locked;
            }
        };
        if self.exact.is_none() {
            let before = self.directory.read(&locked.file, &path, name)?;
            return Ok(Some(Taken {
                locked,
                recorded: None,
                before,
            }));
        }
        let path = self.directory.path_of(name);
        let recorded = self.directory.open_or_create(&path, name)?;
        let before = self.directory.read(&recorded, &path, name)?;
        Ok(Some(Taken {
            locked,
            recorded: Some(recorded),
            before,
        }))
    }

    /// The next record: the same grant, lasting from now as long as `claim` asks.
    fn lasting(&self, record: &Record, claim: &Claim) -> Record {
        let ttl = claim.ttl.duration();
        Record {
            sequence: record.sequence + 1,
            ttl,
            ends: ttl.map_or(Duration::ZERO, |ttl| self.now().saturating_add(ttl)),
            ends_wall: ttl.map_or(Duration::ZERO, |ttl| wall_clock().saturating_add(ttl)),
            ..record.clone()
        }
    }

    /// The record of a new grant after `before`.
    fn next_record(&self, claim: &Claim, before: Option<&Record>) -> Result<Record, FileError> {
        let (fence, last_fence) = self.directory.next_fence(before)?;
        let machine = Machine::this();
        let wall = wall_clock();
        let record = Record {
            sequence: before.map_or(0, |record| record.sequence),
            held: true,
            ephemeral: true,
            fence,
            last_fence,
            owner: claim.owner,
            boot: machine.boot(),
            time_namespace: machine.time_namespace,
            ttl: None,
            ends: Duration::ZERO,
            ends_wall: wall,
            since_wall: wall,
            process: machine.process(self.command.as_deref()),
        };
        Ok(self.lasting(&record, claim))
    }

    fn write(&self, grant: &Grant, name: &Name, record: &Record) -> Result<(), FileError> {
        let path = self.directory.path_of(name);
        directory::write(
            grant.recorded.as_ref().unwrap_or(&grant.locked.file),
            &path,
            record,
        )
    }

    /// Records, for people, that a lock is given back. Whether that can be written does not
    /// matter: the lock itself is the kernel's.
    fn record_end(&self, name: &Name, grant: &Grant) {
        let ended = Record {
            sequence: grant.record.sequence + 1,
            held: false,
            ..grant.record.clone()
        };
        let _ = self.write(grant, name, &ended);
    }

    /// Who has the kernel's lock of `name` that this value does not hold.
    fn other_holder(&self, name: &Name) -> Result<Option<Holder>, FileError> {
        let path = self.path_of(name);
        let opened = match &self.exact {
            Some(_) => {
                Some(os::open_to_lock(&path).map_err(FileError::io("open this file", &path))?)
            }
            None => self.directory.open_file(&path)?,
        };
        let Some(file) = opened else { return Ok(None) };
        let recorded = match &self.exact {
            Some(_) => self.directory.open_file(&self.directory.path_of(name))?,
            None => Some(
                file.try_clone()
                    .map_err(FileError::io("read this file", &path))?,
            ),
        };
        // Its holder may be writing it: what cannot be read now is not known.
        let read = || {
            recorded
                .as_ref()
                .and_then(|recorded| self.directory.read(recorded, &path, name).ok()?)
        };
        let (record, process) = loop {
            let record = read();
            let process =
                os::locker(&file).map_err(FileError::io("find out who locked this file", &path))?;
            if process.is_some() {
                break (record, process);
            }
            // The kernel tells of no holder that this process can see. Unless somebody is recorded
            // who may be out of sight, that is enough.
            if os::TELLS_LOCKERS && record.as_ref().is_none_or(|record| !record.held) {
                return Ok(None);
            }
            // Whoever gives it back records that first: what changed meanwhile is looked at again.
            if read() != record {
                continue;
            }
            // Only trying the lock can tell, which refuses others until it is given back.
            if kernel_lock::try_lock_shared(&file)
                .map_err(FileError::io("try this file's lock", &path))?
            {
                return Ok(None);
            }
            break (record, None);
        };
        let current = record.filter(|record| {
            record.held
                && Machine::this().runs_since(record.boot)
                && process.is_none_or(|process| process == record.process.id)
        });
        Ok(Some(match current {
            Some(record) => {
                let left = record.ttl.map(|_| record.ends.saturating_sub(self.now()));
                holder(&record, left)
            }
            None => Holder {
                owner: None,
                fence: None,
                since: None,
                remaining: None,
                process: process.map(|id| Machine::this().other_process(id)),
            },
        }))
    }
}

impl Grant {
    /// How long the lease still lasts for those who hold it, zero once its time has passed;
    /// `None` when it does not end by itself.
    fn remaining(&self, now: Duration) -> Option<Duration> {
        self.record
            .ttl
            .map(|_| self.record.ends.saturating_sub(now))
    }

    fn is_expired(&self, now: Duration) -> bool {
        self.remaining(now).is_some_and(|left| left.is_zero())
    }
}

impl Locked {
    /// Takes the kernel's lock on `file` if it is free.
    fn new(file: File) -> io::Result<Option<Self>> {
        let locked = kernel_lock::try_lock(&file)?;
        Ok(locked.then(|| Self {
            file,
            process: std::process::id(),
        }))
    }

    /// Whether this process holds it, and was not just forked from the one that does.
    fn is_ours(&self) -> bool {
        self.process == std::process::id()
    }
}

impl Drop for Locked {
    /// Unlocks the file by name, for children may have it open; but not in a forked child, which
    /// shares the lock with the holder.
    fn drop(&mut self) {
        if self.is_ours() {
            // It can only fail for a bad descriptor; closing unlocks, too, at the latest with the
            // last process that has it open.
            let _ = kernel_lock::unlock(&self.file);
        }
    }
}

impl Store for FileLockStore {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        match self.grants().entry(claim.name.clone()) {
            Entry::Occupied(mut slot) => match slot.get_mut() {
                Slot::Held(grant) if grant.record.owner == claim.owner => {
                    let record = self.lasting(&grant.record, claim);
                    self.write(grant, &claim.name, &record)?;
                    grant.record = record;
                    return Ok(granted(&grant.record));
                }
                // When its holder gives it back, nobody knows.
                Slot::Asking | Slot::Held(_) => return Ok(Reply::REFUSED),
            },
            Entry::Vacant(slot) => {
                slot.insert(Slot::Asking);
            }
        }
        // Other names are not held up by what this one's file, or the counter, takes.
        let granted_as = self.take(claim);
        let mut grants = self.grants();
        match granted_as {
            Ok(Some(grant)) => {
                let reply = granted(&grant.record);
                grants.insert(claim.name.clone(), Slot::Held(grant));
                Ok(reply)
            }
            Ok(None) => {
                grants.remove(&claim.name);
                Ok(Reply::REFUSED)
            }
            Err(err) => {
                grants.remove(&claim.name);
                Err(err.into())
            }
        }
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let mut grants = self.grants();
        let Some(Slot::Held(grant)) = grants.get_mut(&claim.name) else {
            return Ok(Reply::REFUSED);
        };
        let mine = grant.record.owner == claim.owner && grant.locked.is_ours();
        if !mine || grant.is_expired(self.now()) {
            return Ok(Reply::REFUSED);
        }
        // With another file at its path, others lock that one.
        if !kernel_lock::is_current(&grant.locked.file, &self.path_of(&claim.name))? {
            return Ok(Reply::REFUSED);
        }
        let record = self.lasting(&grant.record, claim);
        self.write(grant, &claim.name, &record)?;
        grant.record = record;
        Ok(granted(&grant.record))
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let mut grants = self.grants();
        let Some(Slot::Held(grant)) = grants.get(&claim.name) else {
            return Ok(Reply::REFUSED);
        };
        if grant.record.owner != claim.owner || !grant.locked.is_ours() {
            return Ok(Reply::REFUSED);
        }
        let expired = grant.is_expired(self.now());
        let current = kernel_lock::is_current(&grant.locked.file, &self.path_of(&claim.name));
        // With another file at its path, the record may be another's by now.
        if matches!(current, Ok(true)) {
            self.record_end(&claim.name, grant);
        }
        // Whatever else fails, it is unlocked.
        grants.remove(&claim.name);
        Ok(if current? && !expired {
            Reply::Granted { fence: None }
        } else {
            Reply::REFUSED
        })
    }

    /// Refuses to take the kernel's lock from anyone: it would have two holders then.
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        match self.inspect(name)? {
            Some(_) => Err(FileError::NotEvictable {
                name: name.clone(),
                fence: only,
            }
            .into()),
            None => Ok(Reply::REFUSED),
        }
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        if let Some(Slot::Held(grant)) = self.grants().get(name) {
            return Ok(Some(holder(&grant.record, grant.remaining(self.now()))));
        }
        Ok(self.other_holder(name)?)
    }

    /// Refuses: a lock of the kernel's cannot outlive its processes.
    fn detach(&self, _claim: &Claim) -> Result<Reply, StoreError> {
        Ok(Reply::REFUSED)
    }

    /// Lets the next attempt look again, every few milliseconds.
    fn wait(&self, _claim: &Claim, at_most: Duration) -> Waited {
        thread::sleep(jitter(Duration::from_millis(10)).min(at_most));
        Waited::Done
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            expires: false,
            ephemeral: true,
            transfers: false,
            evicts: false,
            fences: true,
        }
    }
}

impl fmt::Debug for FileLockStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLockStore")
            .field("directory", &self.directory)
            .field("exact", &self.exact)
            .finish_non_exhaustive()
    }
}
