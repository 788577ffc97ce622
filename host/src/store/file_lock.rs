//! Locks of the kernel: one locked file per name. A lock is free as soon as its processes have ended.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use verrou::{
    Abilities, Claim, Clock, Fence, Holder, Name, Owner, Renewed, Reply, Store, StoreError, Waited,
};

use super::directory::{self, Directory, wall_clock};
use super::error::{FileError, OpenError};
use super::flock::{self, Guarded};
use super::host_identity::Machine;
#[cfg(target_os = "linux")]
use super::inotify::Listener;
use super::lease_file::{granted, holder};
use super::open_files::{Location, OpenFile, OpenFiles};
use super::os::Purpose;
use super::queue::{Position, Queue};
use super::record::{Kind, Record};
use super::{Listed, StoreOptions, os};
use crate::System;
use crate::process::{self, PerProcess};
use crate::sync::{Mutex, MutexGuard};

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
    /// The directory of the records, and of the locked files if `exact` is `None`.
    directory: Directory,
    /// The only file that is locked. It is never written.
    exact: Option<Exact>,
    /// Whether locks are taken on a read-only descriptor.
    read_only: bool,
    clock: Arc<dyn Clock + Send + Sync>,
    /// The number of the process that opened the store.
    process: u32,
    grants: PerProcess<Mutex<HashMap<Name, Slot>>>,
    queue: Queue,
}

struct Exact {
    path: PathBuf,
    files: OpenFiles,
}

impl Exact {
    /// Returns the file, if it exists, for exclusive use.
    fn take(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(Some(file));
        }
        let forks = process::forks();
        let opened = os::open_to_look(&self.path);
        match opened.map_err(FileError::io("open this file", &self.path))? {
            Some(file) => OpenFile::new(file, Location::AtPath(self.path.clone()), forks).map(Some),
            None => Ok(None),
        }
    }
}

/// The state of a name in this value.
enum Slot {
    /// A thread of this process tries to take the lock, so that other threads need not. A forked child has
    /// a copy of this value, but does not try.
    Asking {
        process: u32,
    },
    Held(Grant),
}

impl Slot {
    /// Returns whether this process holds the lock for `owner`.
    fn is_ours_for(&self, owner: Owner) -> bool {
        match self {
            Self::Asking { .. } => false,
            Self::Held(grant) => grant.record.owner == owner && grant.locked.is_ours(),
        }
    }

    /// Returns whether the value belongs to this process, and not to one that this process was forked from.
    fn is_ours(&self) -> bool {
        match self {
            Self::Asking { process } => *process == process::this(),
            Self::Held(grant) => grant.locked.is_ours(),
        }
    }
}

/// A lock that this process holds.
struct Grant {
    locked: Locked,
    /// The file of the record, if that is another file.
    recorded: Option<OpenFile>,
    record: Arc<Record>,
    /// When the lock was granted.
    since: Duration,
    /// Whether another program may have a duplicate of the locked descriptor.
    is_shared: bool,
    /// The position of the owner in the queue when the lock was granted.
    position: Position,
    /// Whether the process that released the previous grant notifies the new head waiter.
    is_next_notified: bool,
    /// When the release was recorded.
    recorded_end: Option<Instant>,
}

/// The result of recording a grant, after the kernel's lock was taken.
enum GrantResult {
    Granted {
        record: Arc<Record>,
        since: Duration,
        position: Position,
        is_next_notified: bool,
    },
    /// The lock is reserved for an earlier waiter.
    Kept,
    /// The file at one of the paths was replaced.
    Replaced,
}

/// A file that is locked until this value is dropped.
struct Locked {
    file: Option<OpenFile>,
    /// A forked child has a copy of this value, but is not the holder.
    process: u32,
}

impl FileLockStore {
    /// Opens the store in the directory `path`; creates the directory for this user alone if necessary.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the directory, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        Self::open_for(path.as_ref(), Purpose::Store, options)
    }

    fn open_for(path: &Path, purpose: Purpose, options: &StoreOptions) -> Result<Self, OpenError> {
        Ok(Self {
            directory: Directory::open(path, Kind::Lock, purpose, options)?,
            exact: None,
            // On other file systems, such as NFS, only a writable descriptor can be locked.
            read_only: cfg!(unix) && options.handed_on && !options.any_file_system,
            clock: Arc::new(System),
            process: process::this(),
            grants: PerProcess::new(),
            queue: Queue::new(None, false),
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
        let store = Self {
            queue: Queue::new(Some(exact.clone()), false),
            exact: Some(Exact {
                path: exact,
                files: OpenFiles::new(),
            }),
            ..Self::open_for(records, Purpose::Records, options)?
        };
        Ok((store, name))
    }

    /// Lets leases expire by `clock` instead of the machine's clock, for tests.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock + Send + Sync + 'static) -> Self {
        Self {
            clock: Arc::new(clock),
            ..self
        }
    }

    /// Records `label` as the label of this process in grants from now on, in place of
    /// `StoreOptions::command`; `None` restores that.
    pub fn set_label(&self, label: Option<&str>) {
        self.directory.set_label(label);
    }

    /// Returns the names that are held now and their holders, and an error for each file that cannot be read.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        self.directory.held(|name| self.inspect(name))
    }

    /// Returns a duplicate of the locked descriptor of `claim`'s lock, for a program that inherits it.
    /// The lock is free when it is released, or when all duplicates are closed. The descriptor has a
    /// high number, and cannot write the lock's file if [`StoreOptions::handed_on`] was set. Returns
    /// `None` if this value does not hold that lock.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the descriptor cannot be duplicated.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let mut grants = self.grants();
        let grant = match grants.get_mut(&claim.name) {
            Some(Slot::Held(grant)) if grant.record.owner == claim.owner => grant,
            _ => return Ok(None),
        };
        grant.is_shared = true;
        let file = grant.locked.file.as_ref().map(OpenFile::inheritable);
        file.map(os::duplicate_to_inherit).transpose()
    }

    /// Waits until the lock `name` is free, or its state cannot be determined, but at most for `at_most`. The
    /// caller does not join the wait queue.
    pub fn watch(&self, name: &Name, at_most: Duration) {
        let _ = self.watch_open(name, at_most);
    }

    /// Watches the lock as [`watch`](Self::watch) does, with files that stay open meanwhile: closing
    /// one would wake all waiters.
    fn watch_open(&self, name: &Name, at_most: Duration) -> Result<(), FileError> {
        // Do not create a file only to watch it.
        let Some(recorded) = self.directory.take(name)? else {
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
        self.queue
            .watch_changes(&self.directory, name, at_most, is_over);
        Queue::ignore(&recorded);
        if recorded.is_current()? {
            self.directory.put(name, recorded);
        }
        if let Some(exact) = exact
            && exact.is_current()?
        {
            self.put(name, exact);
        }
        Ok(())
    }

    /// Waits as [`Store::wait`] does, in a task.
    pub(crate) async fn waited(&self, claim: &Claim) {
        self.queue.waited(&self.directory, claim).await;
    }

    /// Waits as [`Store::lost`] does, in a task.
    pub(crate) async fn awaited_loss(&self, claim: &Claim) {
        let holds = || self.may_hold(claim);
        self.queue.awaited_loss(&self.directory, claim, holds).await;
    }

    /// Returns a listener whose descriptor can be polled, and is readable when the lease of `claim` may
    /// be lost.
    #[cfg(target_os = "linux")]
    pub(crate) fn loss_listener(&self, claim: &Claim) -> io::Result<Listener> {
        self.queue.listen(&self.directory, &claim.name)
    }

    /// Returns whether this process may hold the lock of `claim`: it does not if the locked file was
    /// replaced.
    pub(crate) fn may_hold(&self, claim: &Claim) -> bool {
        match self.grants().get(&claim.name) {
            Some(Slot::Held(grant))
                if grant.record.owner == claim.owner && grant.locked.is_ours() =>
            {
                !matches!(grant.locked.is_current(), Ok(false))
            }
            _ => false,
        }
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<Name, Slot>> {
        self.grants.lock()
    }

    fn now(&self) -> Duration {
        self.clock.now().since_start()
    }

    /// Returns the file to lock for `name`, for exclusive use until the caller [puts](Self::put) it back.
    fn take_file(&self, name: &Name) -> Result<OpenFile, FileError> {
        let Some(Exact { path, files }) = &self.exact else {
            return self.directory.take_or_create(name);
        };
        if let Some(file) = files.take(name) {
            return Ok(file);
        }
        let forks = process::forks();
        let open = || os::open_to_lock(path).map_err(FileError::io("open this to lock it", path));
        let location = Location::AtPath(path.clone());
        OpenFile::new(self.directory.with_room(open)?, location, forks)
    }

    /// Puts back a file that [`take_file`](Self::take_file) returned.
    fn put(&self, name: &Name, file: OpenFile) {
        match &self.exact {
            Some(exact) => exact.files.put(name, file),
            None => self.directory.put(name, file),
        }
    }

    /// Ends a grant; keeps its files open for the next one.
    fn end(&self, name: &Name, grant: Grant) {
        /// The time after which a waiter that tries again pauses longer and longer between its tries.
        const LATE: Duration = Duration::from_micros(50);

        let Grant {
            mut locked,
            recorded,
            is_shared,
            position,
            recorded_end,
            ..
        } = grant;
        let file = locked.unlock();
        // A waiter that was woken by the record may have tried in vain since.
        let is_late = || recorded_end.is_none_or(|it| it.elapsed() > LATE);
        if (position == Position::NoWaiters || is_late())
            && let Some(file) = recorded.as_ref().or(file.as_ref())
        {
            // If this fails, the waiters still check from time to time.
            let _ = Queue::wake(file);
        }
        if let Some(file) = file
            && !is_shared
        {
            self.put(name, file);
        }
        if let Some(recorded) = recorded {
            self.directory.put(name, recorded);
        }
    }

    /// Takes the kernel's lock for `claim`, and records the grant. Returns `None` if the lock is held,
    /// or reserved for another waiter.
    fn take(&self, claim: &Claim) -> Result<Option<Grant>, FileError> {
        let name = &claim.name;
        loop {
            let recorded = match &self.exact {
                Some(_) => Some(self.directory.take_or_create(name)?),
                None => None,
            };
            let mut file = self.take_file(name)?;
            if self.read_only && self.exact.is_none() && !file.open_read_only()? {
                continue;
            }
            let is_taken = self.is_kept_for_another(claim, recorded.as_ref().unwrap_or(&file))?
                || !flock::try_lock_despite_lookers(file.inheritable())
                    .map_err(FileError::io("lock this file", file.path()))?;
            if is_taken {
                // A lock on a replaced file does not exclude processes that lock the file in its place.
                let is_current = file.is_current()?;
                if is_current {
                    self.put(name, file);
                }
                if let Some(recorded) = recorded {
                    self.directory.put(name, recorded);
                }
                if is_current {
                    return Ok(None);
                }
                continue;
            }
            let mut locked = Locked::new(file);
            match self.grant(claim, &locked, recorded.as_ref())? {
                GrantResult::Granted {
                    record,
                    since,
                    position,
                    is_next_notified,
                } => {
                    return Ok(Some(Grant {
                        locked,
                        recorded,
                        record,
                        since,
                        is_shared: false,
                        position,
                        is_next_notified,
                        recorded_end: None,
                    }));
                }
                GrantResult::Kept => {
                    if let Some(file) = locked.unlock() {
                        self.put(name, file);
                    }
                    if let Some(recorded) = recorded {
                        self.directory.put(name, recorded);
                    }
                    return Ok(None);
                }
                GrantResult::Replaced => {}
            }
        }
    }

    /// Records a grant of the lock that was just `locked` for `claim`.
    ///
    /// A record in a separate file is guarded: after the locked file is replaced, other processes lock
    /// the new file, and all of them write the same record.
    fn grant(
        &self,
        claim: &Claim,
        locked: &Locked,
        recorded: Option<&OpenFile>,
    ) -> Result<GrantResult, FileError> {
        let Some(file) = recorded.or(locked.file.as_ref()) else {
            return Ok(GrantResult::Replaced);
        };
        let _guarded = guard(recorded)?;
        let is_current = locked.is_current()? && recorded.map_or(Ok(true), OpenFile::is_current)?;
        if !is_current {
            return Ok(GrantResult::Replaced);
        }
        let before = self.directory.read(file, &claim.name)?;
        let position = self.queue.position(claim, file, &before)?;
        file.set_contended(position != Position::NoWaiters);
        let (reservation, now) = (position.reservation(), self.now());
        if !reservation.is_zero()
            && let Some(record) = &before.record
            && (record.held || record.ended_within(reservation, now))
        {
            if record.held {
                // The holder could not record its release, or saw no waiter.
                directory::write(file, &Arc::new(record.ended(now)))?;
            }
            return Ok(GrantResult::Kept);
        }
        let served = position.served(&before);
        let new = self
            .directory
            .new_record(file, claim, &before, served, now)?;
        let Some(record) = new else {
            return Ok(GrantResult::Replaced);
        };
        let record = Record {
            ephemeral: true,
            ..record
        };
        Ok(GrantResult::Granted {
            record: directory::write_grant(file, record, &before)?,
            since: now,
            position,
            is_next_notified: before.record.is_some_and(|record| record.notifies),
        })
    }

    /// Returns whether the lock is free, but reserved for another waiter than the owner of `claim`. By trying
    /// the kernel's lock, this owner would keep that waiter from taking it.
    fn is_kept_for_another(&self, claim: &Claim, file: &OpenFile) -> Result<bool, FileError> {
        match self.queue.is_known_head(claim) {
            None if !file.is_contended() => return Ok(false),
            Some(true) => return Ok(false),
            _ => {}
        }
        // The file cannot be read while it is being written.
        let Ok(view) = self.directory.read(file, &claim.name) else {
            return Ok(false);
        };
        let position = self.queue.position(claim, file, &view)?;
        let ended = view.record.filter(|record| !record.held);
        Ok(ended.is_some_and(|record| record.ended_within(position.reservation(), self.now())))
    }

    /// Returns the holder of the kernel's lock of `name`, which this value does not hold, and the owner in
    /// its record.
    fn other_holder(&self, name: &Name) -> Result<Option<(Option<Owner>, Holder)>, FileError> {
        let recorded = self.directory.open_another(name)?;
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
            .and_then(|recorded| self.directory.read(recorded, name).ok()?.record);
        let current = record.filter(|record| {
            record.held
                && Machine::this().runs_since(record.boot)
                && process.is_none_or(|process| process == record.process.id)
        });
        if let Some(record) = current {
            let left = record.ttl.map(|_| record.ends.saturating_sub(self.now()));
            return Ok(Some((Some(record.owner), holder(&record, left))));
        }
        let process = process.map(|id| Machine::this().other_process(id));
        let unknown = Holder {
            fence: None,
            since: None,
            remaining: None,
            process,
            detached: false,
        };
        Ok(Some((None, unknown)))
    }
}

/// Resolves `path`, creating an empty file if nothing exists there. Returns the resolved path, and the
/// name of its lock.
pub(super) fn exact(path: &Path, options: &StoreOptions) -> Result<(PathBuf, Name), OpenError> {
    let failed = |why: String| OpenError::Path {
        path: path.to_owned(),
        why,
    };
    os::open_to_lock(path).map_err(|err| failed(format!("cannot open this to lock it: {err}")))?;
    let exact = path.canonicalize().map_err(|err| failed(err.to_string()))?;
    if !options.any_file_system {
        directory::refuse_unsuitable(&exact)?;
    }
    let name = Name::new(&name_of(&exact)).map_err(|err| failed(err.to_string()))?;
    Ok((exact, name))
}

/// Returns the name of the lock on `path`: the path itself if it is UTF-8, and otherwise `bytes:` and
/// the path with `%` and all bytes that are not UTF-8 escaped as `%XX`. The escaped name is unique to
/// the path.
fn name_of(path: &Path) -> Cow<'_, str> {
    if let Some(text) = path.to_str() {
        return text.into();
    }
    let mut name = "bytes:".to_owned();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        name.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name.into()
}

/// Guards a record in a separate file against other processes. Any other record is guarded by the
/// kernel's lock itself.
fn guard(recorded: Option<&OpenFile>) -> Result<Option<Guarded<'_>>, FileError> {
    recorded
        .filter(|_| !mutant!(RecordNotGuarded))
        .map(|file| Guarded::new(file.file(), file.path()))
        .transpose()
}

impl Grant {
    /// Extends the lease to the ttl of `claim` from `now` on.
    fn extend(
        &mut self,
        directory: &Directory,
        claim: &Claim,
        now: Duration,
    ) -> Result<(), FileError> {
        let record = Record::clone(&self.record).lasting(claim.ttl, now, wall_clock());
        self.set(directory, &claim.name, record)
    }

    fn set(&mut self, directory: &Directory, name: &Name, record: Record) -> Result<(), FileError> {
        let is_written = self.write(directory, name, &record)?;
        self.record = is_written.unwrap_or_else(|| Arc::new(record));
        Ok(())
    }

    /// Writes `record`, the next record of this grant, to the file of the lock `name`, and returns the
    /// written record. Returns `None` if the file records a later grant, on the file that replaced the
    /// locked one.
    fn write(
        &self,
        directory: &Directory,
        name: &Name,
        record: &Record,
    ) -> Result<Option<Arc<Record>>, FileError> {
        let Some(file) = self.recorded.as_ref().or(self.locked.file.as_ref()) else {
            return Ok(None);
        };
        let _guarded = guard(self.recorded.as_ref())?;
        let found = match directory.read(file, name) {
            Ok(view) => view.record,
            // The kernel's lock is held in any case; the next acquire request reports the corrupt file.
            Err(FileError::Damaged { .. }) => return Ok(None),
            Err(err) => return Err(err),
        };
        match found {
            Some(found) if found.fence > self.record.fence => Ok(None),
            Some(found) if found.fence == self.record.fence && found.owner == record.owner => {
                let record = Arc::new(Record {
                    sequence: found.sequence + 1,
                    ..record.clone()
                });
                directory::write(file, &record)?;
                Ok(Some(record))
            }
            // An older copy was written into the file.
            older => {
                let older = older.map_or(0, |older| older.sequence);
                let record = Record {
                    sequence: record.sequence.max(older + 1),
                    ..record.clone()
                };
                directory::write_both(file, record).map(Some)
            }
        }
    }

    /// Records the release of the lock. A failure is ignored, because the kernel's lock is released in any
    /// case.
    fn record_end(&mut self, directory: &Directory, name: &Name, now: Duration) {
        let began = Instant::now();
        let record = Record {
            notifies: self.position.has_ticket(),
            ..self.record.ended(now)
        };
        if matches!(self.write(directory, name, &record), Ok(Some(_))) {
            self.recorded_end = Some(began);
        }
    }

    /// Returns how long the lease still lasts for its holder: zero once it has expired, `None` if it never
    /// expires.
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
    /// Creates a value for `file`, on which this process has just taken the kernel's lock.
    fn new(file: OpenFile) -> Self {
        Self {
            process: file.process(),
            file: Some(file),
        }
    }

    /// Returns whether the file is still at its path.
    fn is_current(&self) -> Result<bool, FileError> {
        self.file.as_ref().map_or(Ok(false), OpenFile::is_current)
    }

    /// Unlocks the file explicitly, because children may have it open; but not in a forked child, which
    /// shares the lock with the holder. Returns the file if it was unlocked.
    fn unlock(&mut self) -> Option<OpenFile> {
        let file = self.file.take()?;
        // This can only fail for a bad descriptor. Closing the file unlocks it, too, at the latest when the
        // last process that has it open closes it.
        let unlocked = self.is_ours()
            && !mutant!(UnlockedByClosingAlone)
            && flock::unlock(file.inheritable()).is_ok();
        unlocked.then_some(file)
    }

    /// Returns whether this process holds the lock, and was not forked from the holder.
    fn is_ours(&self) -> bool {
        self.process == process::this()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        drop(self.unlock());
    }
}

impl Store for FileLockStore {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let asking = Slot::Asking {
            process: process::this(),
        };
        match self.grants().entry(claim.name.clone()) {
            Entry::Occupied(mut slot) if slot.get().is_ours() => match slot.get_mut() {
                Slot::Held(grant) if grant.record.owner == claim.owner => {
                    grant.extend(&self.directory, claim, self.now())?;
                    return Ok(granted(&grant.record));
                }
                // The time of the release is unknown.
                Slot::Asking { .. } | Slot::Held(_) => return Ok(Reply::REFUSED),
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
                self.queue.granted(&self.directory, claim, is_next_notified);
                Ok(reply)
            }
            Ok(None) => {
                self.grants().remove(&claim.name);
                Ok(Reply::REFUSED)
            }
            Err(err) => {
                self.grants().remove(&claim.name);
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
        // If the file at the path was replaced, other processes lock the new file.
        if !grant.locked.is_current()? {
            return Ok(Reply::REFUSED);
        }
        grant.extend(&self.directory, claim, self.now())?;
        Ok(granted(&grant.record))
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
            let soon = flock::Attempt {
                waited: Duration::ZERO,
                is_last: true,
            };
            let record = Arc::new(renewed.clone());
            if soon
                .make(|| grant.set(&self.directory, &claim.name, renewed))
                .is_err()
            {
                grant.record = record;
            }
        }
        Ok(Renewed::Granted)
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let mut grants = self.grants();
        let grant = match grants.entry(claim.name.clone()) {
            Entry::Occupied(slot) if slot.get().is_ours_for(claim.owner) => slot.remove(),
            _ => return Ok(Reply::REFUSED),
        };
        drop(grants);
        let Slot::Held(mut grant) = grant else {
            return Ok(Reply::REFUSED);
        };
        let now = self.now();
        let expired = grant.is_expired(now);
        let held_for = now.saturating_sub(grant.since);
        let file = grant.locked.file.as_ref();
        let current = file.map_or(Ok(false), |file| file.is_still_there(held_for));
        // If the file at the path was replaced, the record may be that of a later grant. Without waiters the
        // release need not be recorded: the lock is free once the kernel's lock is.
        if grant.position != Position::NoWaiters && matches!(current, Ok(true)) {
            grant.record_end(&self.directory, &claim.name, self.now());
        }
        // Unlock the file even if the operations before have failed.
        self.end(&claim.name, grant);
        self.queue.released(&self.directory, claim);
        self.queue.tidy();
        Ok(if current? && !expired {
            Reply::Granted { fence: None }
        } else {
            Reply::REFUSED
        })
    }

    /// Returns [`FileError::NotEvictable`] if the lock is held: the kernel's lock cannot be taken from its
    /// holder, and the lock would have two holders.
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
        if let Some(Slot::Held(grant)) = self.grants().get(name)
            && grant.locked.is_ours()
        {
            return Ok(Some(holder(&grant.record, grant.remaining(self.now()))));
        }
        Ok(self.other_holder(name)?.map(|(_, holder)| holder))
    }

    /// Returns `false` in a forked child for a lock of its parent.
    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        if let Some(slot @ Slot::Held(_)) = self.grants().get(&claim.name)
            && slot.is_ours()
        {
            return Ok(slot.is_ours_for(claim.owner));
        }
        let owner = self.other_holder(&claim.name)?.and_then(|(owner, _)| owner);
        Ok(self.process == process::this() && owner == Some(claim.owner))
    }

    /// Returns [`Reply::REFUSED`]: a lock of the kernel cannot outlive the processes that hold it.
    fn detach(&self, _claim: &Claim) -> Result<Reply, StoreError> {
        Ok(Reply::REFUSED)
    }

    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.queue.wait(&self.directory, claim, at_most);
        Waited::Done
    }

    fn notifies(&self) -> bool {
        Queue::NOTIFIES
    }

    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        let holds = || self.may_hold(claim);
        if self.queue.lost(&self.directory, claim, at_most, holds) {
            Waited::Done
        } else {
            Waited::Unable
        }
    }

    fn give_up(&self, claim: &Claim) {
        self.queue.leave(&self.directory, claim);
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            expires: false,
            ephemeral: true,
            transfers: false,
            evicts: false,
            fences: true,
            revives: true,
        }
    }
}

impl fmt::Debug for FileLockStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileLockStore")
            .field("directory", &self.directory)
            .field("exact", &self.exact.as_ref().map(|exact| &exact.path))
            .finish_non_exhaustive()
    }
}
