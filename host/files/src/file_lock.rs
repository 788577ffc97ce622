//! Locks of the kernel: one locked file per name. A lock is free as soon as its processes have ended.

mod acquire;
mod grants;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use grants::Slot;
use verrou::{
    Acquired, AsyncWaiter, Capabilities, Claim, Clock, Fence, Holder, LossWatch, Name, Owner,
    Renewed, Store, StoreError, Waiter,
};
use verrou_machine::process::{self, PerProcess};
use verrou_machine::sync::Mutex;
use verrou_machine::{HostStore, Listed, LossSignal, StoreOptions};

use crate::directory::Directory;
use crate::error::{FileError, OpenError};
use crate::exact_file::{Exact, exact};
use crate::file_store::{Base, FileStore};
use crate::host_identity::Machine;
use crate::open_files::{Location, OpenFile, OpenFiles};
use crate::os::Purpose;
use crate::queue::{Position, Queue};
use crate::record::Kind;
use crate::record_file::wall_clock;
use crate::reply::{granted, holder};
use crate::{flock, os};

/// The kernel's lock (`flock(2)`) on a file per name, for the processes of one machine.
///
/// A lock is free when it is released, or when the processes that hold it have ended; it cannot be
/// taken over before. After its ttl the lease is expired only for its holder, which can then no longer
/// extend it, but only [renew](Store::renew) it. For all other processes the lock stays held. The lock
/// cannot be serialized, and its holder cannot be force-released.
///
/// Any program that locks the same file with flock(2) is excluded, and excludes.
///
/// A forked child may use its copy of this value. The child does not hold its parent's locks:
/// [`is_held`](verrou::blocking::Lock::is_held) returns false for them, and they can be neither
/// extended nor released.
///
/// ```
/// use verrou::blocking::LockFactory;
/// use verrou_host::{FileLockStore, StoreOptions, System};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let store = FileLockStore::open(directory, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "none")?;
/// let held = lock.guard()?;
///
/// let other = FileLockStore::open(directory, &StoreOptions::default())?;
/// let other = LockFactory::new(&other, System).create_lock("my-resource", "none")?;
/// assert!(other.try_acquire().is_err());
/// drop(held);
/// assert!(other.try_acquire().is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FileLockStore {
    /// Its directory is that of the records, and of the locked files if `exact` is `None`.
    base: Base,
    /// The only file that is locked. It is never written.
    exact: Option<Exact>,
    /// Whether locks are taken on a read-only descriptor.
    read_only: bool,
    grants: PerProcess<Mutex<HashMap<Name, Slot>>>,
}

impl FileLockStore {
    /// Opens the store in the directory `path`; creates the directory for this user alone if necessary.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the directory, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        let queue = Queue::new(None, false);
        Self::open_for(path.as_ref(), Purpose::Store, queue, options)
    }

    fn open_for(
        path: &Path,
        purpose: Purpose,
        queue: Queue,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        let directory = Directory::open(path, Kind::Lock, purpose, options)?;
        Ok(Self {
            base: Base::new(directory, queue),
            exact: None,
            // On other file systems, such as NFS, only a writable descriptor can be locked.
            read_only: cfg!(unix) && options.handed_on && !options.any_file_system,
            grants: PerProcess::new(),
        })
    }

    /// Opens a store whose only lock is the kernel's lock on exactly the file or directory `path`.
    /// Returns it with the lock's name: the absolute path, escaped if it is not UTF-8. Creates an empty
    /// file if nothing exists at `path`, and never writes to it. Fences and the holder are recorded in
    /// the directory `records`, which is shared with a group if the directory above was created for it.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the path or the directory, and what to do about
    /// it.
    pub fn open_path(
        path: &Path,
        records: &Path,
        options: &StoreOptions,
    ) -> Result<(Self, Name), OpenError> {
        let (exact, name) = exact(path, options)?;
        let queue = Queue::new(Some(exact.clone()), false);
        let store = Self {
            exact: Some(Exact {
                path: exact,
                files: OpenFiles::new(),
            }),
            ..Self::open_for(records, Purpose::Records, queue, options)?
        };
        Ok((store, name))
    }

    /// Lets leases expire by `clock` instead of the machine's clock, for tests.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + Send + Sync + 'static) -> Self {
        self.base.clock = Arc::new(clock);
        self
    }

    /// Watches the lock as [`watch`](Self::watch) does, with files that stay open meanwhile: closing
    /// one would wake all waiters.
    fn watch_open(&self, name: &Name, at_most: Duration) -> Result<(), FileError> {
        // Do not create a file only to watch it.
        let Some(recorded) = self.base.directory.take(name)? else {
            return Ok(());
        };
        let exact = match &self.exact {
            Some(exact) => match exact.take(name)? {
                Some(file) => Some(file),
                // A lock on a removed file excludes no process.
                None => return Ok(()),
            },
            None => None,
        };
        let locked = exact.as_ref().unwrap_or(&recorded);
        // Without this, a release without waiters changes nothing in the file.
        Queue::watch(&recorded)?;
        let is_over = || {
            !matches!(flock::is_locked(locked.file()), Ok(true))
                || !matches!(locked.is_current(), Ok(true))
        };
        self.base
            .queue
            .watch_changes(&self.base.directory, name, at_most, is_over);
        Queue::ignore(&recorded);
        if recorded.is_current()? {
            self.base.directory.put(name, recorded);
        }
        if let Some(exact) = exact
            && exact.is_current()?
        {
            self.put(name, exact);
        }
        Ok(())
    }

    fn now(&self) -> Duration {
        self.base.now()
    }

    /// Returns the file to lock for `name`, for exclusive use until the caller [puts](Self::put) it back.
    fn take_file(&self, name: &Name) -> Result<OpenFile, FileError> {
        let Some(Exact { path, files }) = &self.exact else {
            return self.base.directory.take_or_create(name);
        };
        if let Some(file) = files.take(name) {
            return Ok(file);
        }
        let forks = process::forks();
        let open = || os::open_to_lock(path).map_err(FileError::io("open this to lock it", path));
        let location = Location::AtPath(path.clone());
        OpenFile::new(self.base.directory.with_room(open)?, location, forks)
    }

    /// Puts back a file that [`take_file`](Self::take_file) returned.
    fn put(&self, name: &Name, file: OpenFile) {
        match &self.exact {
            Some(exact) => exact.files.put(name, file),
            None => self.base.directory.put(name, file),
        }
    }

    /// Returns the holder of the kernel's lock of `name`, which this value does not hold, and the owner in
    /// its record.
    fn other_holder(&self, name: &Name) -> Result<Option<(Option<Owner>, Holder)>, FileError> {
        let recorded = self.base.directory.open_another(name)?;
        let (path, locked);
        let file = match (&self.exact, &recorded) {
            (Some(exact), _) => {
                path = exact.path.as_path();
                let opened = os::open_to_look(path);
                match opened.map_err(FileError::io("open this file", path))? {
                    Some(file) => locked = file,
                    // A lock on a removed file excludes no process.
                    None => return Ok(None),
                }
                &locked
            }
            (None, Some(recorded)) => {
                path = recorded.path();
                recorded.file()
            }
            (None, None) => return Ok(None),
        };
        let is_locked =
            || flock::is_locked(file).map_err(FileError::io("try this file's lock", path));
        let holder_process = || {
            os::locker(file).map_err(FileError::io(
                "determine which process locked this file",
                path,
            ))
        };
        if !is_locked()? {
            return Ok(None);
        }
        let mut process = holder_process()?;
        if process.is_none() {
            // The lock was released meanwhile without a record, or its holder is not visible from this
            // process's namespace.
            if !is_locked()? {
                return Ok(None);
            }
            process = holder_process()?;
        }
        // The holder may be writing the record: a record that cannot be read now is ignored.
        let record = recorded
            .as_ref()
            .and_then(|recorded| self.base.directory.read(recorded, name).ok()?.record);
        let current = record.filter(|record| {
            record.held
                && Machine::this().runs_since(record.boot)
                && process.is_none_or(|process| process == record.process.id)
        });
        if let Some(record) = current {
            let left = record.ttl.map(|_| record.ends.saturating_sub(self.now()));
            return Ok(Some((Some(record.owner), holder(&record, left))));
        }
        let mut unknown = Holder::default();
        unknown.process = process.map(|id| Machine::this().other_process(id));
        Ok(Some((None, unknown)))
    }
}

impl FileStore for FileLockStore {
    fn base(&self) -> &Base {
        &self.base
    }

    fn holder(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        if let Some(Slot::Held(grant)) = self.grants().get(name)
            && grant.locked.is_ours()
        {
            return Ok(Some(holder(&grant.record, grant.remaining(self.now()))));
        }
        Ok(self.other_holder(name)?.map(|(_, holder)| holder))
    }

    /// Returns whether this process may hold the lock of `claim`: it does not if the locked file was
    /// replaced.
    fn may_hold(&self, claim: &Claim) -> bool {
        match self.grants().get(&claim.name) {
            Some(Slot::Held(grant))
                if grant.record.owner == claim.owner && grant.locked.is_ours() =>
            {
                !matches!(grant.locked.is_current(), Ok(false))
            }
            _ => false,
        }
    }
}

impl HostStore for FileLockStore {
    fn list(&self) -> Result<Vec<Listed>, StoreError> {
        self.held()
    }

    /// The caller does not join the wait queue.
    fn wait_until_free(&self, name: &Name, at_most: Duration) {
        let _ = self.watch_open(name, at_most);
    }

    fn async_waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(Box::new(self.queue_waiter(claim)))
    }

    fn set_label(&self, label: Option<&str>) {
        self.base.directory.set_label(label);
    }

    fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let mut grants = self.grants();
        let grant = match grants.get_mut(&claim.name) {
            Some(Slot::Held(grant)) if grant.record.owner == claim.owner => grant,
            _ => return Ok(None),
        };
        grant.is_shared = true;
        let file = grant.locked.file.as_ref().map(OpenFile::inheritable);
        file.map(os::duplicate_to_inherit).transpose()
    }

    fn loss_signal<'s>(&'s self, claim: &Claim) -> io::Result<Box<dyn LossSignal + 's>> {
        Ok(Box::new(self.loss_watch(claim)?))
    }
}

impl Store for FileLockStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let asking = Slot::Asking {
            process: process::this(),
        };
        match self.grants().entry(claim.name.clone()) {
            Entry::Occupied(mut slot) if slot.get().is_ours() => match slot.get_mut() {
                Slot::Held(grant) if grant.record.owner == claim.owner => {
                    grant.extend(&self.base.directory, claim, self.now())?;
                    return Ok(granted(&grant.record));
                }
                // The time of the release is unknown.
                Slot::Asking { .. } | Slot::Held(_) => return Ok(Acquired::BUSY),
            },
            Entry::Occupied(mut slot) => {
                slot.insert(asking);
            }
            Entry::Vacant(slot) => {
                slot.insert(asking);
            }
        }
        // Other names do not wait for the file of this one, or for the counter.
        match self.take(claim) {
            Ok(Some(grant)) => {
                let reply = granted(&grant.record);
                let is_next_notified = grant.is_next_notified;
                self.grants().insert(claim.name.clone(), Slot::Held(grant));
                self.base
                    .queue
                    .granted(&self.base.directory, claim, is_next_notified);
                Ok(reply)
            }
            Ok(None) => {
                self.grants().remove(&claim.name);
                Ok(Acquired::BUSY)
            }
            Err(err) => {
                self.grants().remove(&claim.name);
                Err(err.into())
            }
        }
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let mut grants = self.grants();
        let Some(Slot::Held(grant)) = grants.get_mut(&claim.name) else {
            return Ok(false);
        };
        let mine = grant.record.owner == claim.owner && grant.locked.is_ours();
        if !mine || grant.is_expired(self.now()) {
            return Ok(false);
        }
        // If the file at the path was replaced, other processes lock the new file.
        if !grant.locked.is_current()? {
            return Ok(false);
        }
        grant.extend(&self.base.directory, claim, self.now())?;
        Ok(true)
    }

    /// Renews the lease, also after it has expired: the kernel's lock cannot have been granted to
    /// another owner meanwhile.
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let mut grants = self.grants();
        let Some(Slot::Held(grant)) = grants.get_mut(&claim.name) else {
            return Ok(Renewed::Lost);
        };
        let is_its = fence.is_none_or(|fence| fence.get() == grant.record.fence);
        let mine = grant.record.owner == claim.owner && grant.locked.is_ours();
        // If the file at the path was replaced, other processes lock the new file.
        if !mine || !is_its || !grant.locked.is_current()? {
            return Ok(Renewed::Lost);
        }
        if let Some(renewed) = grant.record.renewed(claim.ttl, self.now(), wall_clock()) {
            // The kernel's lock stays held even if the record is not written, so do not wait long for the
            // record's file.
            let soon = flock::LockAttempt {
                waited: Duration::ZERO,
                is_last: true,
            };
            let record = Arc::new(renewed.clone());
            if soon
                .make(|| grant.set(&self.base.directory, &claim.name, renewed))
                .is_err()
            {
                grant.record = record;
            }
        }
        Ok(Renewed::Granted)
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let mut grants = self.grants();
        let grant = match grants.entry(claim.name.clone()) {
            Entry::Occupied(slot) if slot.get().is_ours_for(claim.owner) => slot.remove(),
            _ => return Ok(false),
        };
        drop(grants);
        let Slot::Held(mut grant) = grant else {
            return Ok(false);
        };
        let now = self.now();
        let expired = grant.is_expired(now);
        let held_for = now.saturating_sub(grant.since);
        let file = grant.locked.file.as_ref();
        let current = file.map_or(Ok(false), |file| file.is_still_there(held_for));
        // If the file at the path was replaced, the record may be that of a later grant. Without waiters the
        // release need not be recorded: the lock is free once the kernel's lock is.
        if grant.position != Position::NoWaiters && matches!(current, Ok(true)) {
            grant.record_end(&self.base.directory, &claim.name, self.now());
        }
        // Unlock the file even if the operations before have failed.
        self.end(&claim.name, grant);
        self.base.queue.released(&self.base.directory, claim);
        self.base.queue.tidy();
        Ok(current? && !expired)
    }

    /// Returns [`FileError::NotEvictable`] if the lock is held: the kernel's lock cannot be taken from its
    /// holder, and the lock would have two holders.
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        match self.holder(name)? {
            Some(_) => Err(FileError::NotEvictable {
                name: name.clone(),
                fence: only,
            }
            .into()),
            None => Ok(false),
        }
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Ok(self.holder(name)?.into_iter().collect())
    }

    /// Returns `false` in a forked child for a lock of its parent.
    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        if let Some(slot @ Slot::Held(_)) = self.grants().get(&claim.name)
            && slot.is_ours()
        {
            return Ok(slot.is_ours_for(claim.owner));
        }
        let owner = self.other_holder(&claim.name)?.and_then(|(owner, _)| owner);
        Ok(self.base.is_of_this_process() && owner == Some(claim.owner))
    }

    /// Returns `false`: a lock of the kernel cannot outlive the processes that hold it.
    fn detach(&self, _claim: &Claim) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        Some(Box::new(self.queue_waiter(claim)))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        Some(Box::new(self.loss_watch(claim).ok()?))
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.ephemeral = true;
        capabilities.fences = true;
        capabilities.revives = true;
        capabilities
    }
}

impl fmt::Debug for FileLockStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLockStore")
            .field("directory", &self.base.directory)
            .field("exact", &self.exact.as_ref().map(|exact| &exact.path))
            .finish_non_exhaustive()
    }
}
