//! Leases in files: one file per name, read and written under the kernel's lock.
//!
//! The kernel's lock on a file is kept only for the microseconds of one operation. The file records the
//! holder of the lease, which expires by the machine's clock. An ephemeral lease also ends when the
//! processes that hold it have ended: they keep one byte of the file locked, and the kernel unlocks it
//! when the last of them ends. See `FORMAT.md`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use verrou::{
    Abilities, Claim, Clock, Fence, Holder, Name, Owner, Process, Renewed, Reply, Store,
    StoreError, Ttl, Waited,
};

use super::directory::{self, Directory, View, wall_clock};
use super::error::{FileError, OpenError};
use super::flock::{self, Guarded};
use super::host_identity::Machine;
#[cfg(target_os = "linux")]
use super::inotify::Listener;
use super::open_files::OpenFile;
use super::os::Purpose;
use super::queue::{Position, Queue};
use super::record::{self, Kind, Record};
use super::{Listed, StoreOptions, Zombies, liveness, os};
use crate::System;
use crate::process::{self, PerProcess};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// A store of leases in the files of a directory, for the processes of one machine.
///
/// A forked child may use its copy of this value. The child does not hold its parent's locks:
/// [`is_held`](verrou::blocking::Lock::is_held) returns false for them, and they can be neither
/// extended nor released.
///
/// ```
/// use verrou::blocking::LockFactory;
/// use verrou_host::{LeaseFileStore, StoreOptions, System};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let store = LeaseFileStore::open(directory, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "2s")?;
/// lock.acquire()?;
///
/// // Another process that opens the same directory:
/// let elsewhere = LeaseFileStore::open(directory, &StoreOptions::default())?;
/// let restored = LockFactory::new(&elsewhere, System).restore_lock(&lock.serialize()?);
/// restored.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LeaseFileStore {
    directory: Directory,
    clock: Arc<dyn Clock + Send + Sync>,
    zombies: Zombies,
    /// The number of the process that opened the store.
    process: u32,
    grants: PerProcess<Mutex<HashMap<Name, Grant>>>,
    /// The number of grants at which the store next looks for expired ones.
    most_grants: AtomicUsize,
    queue: Queue,
}

/// The number of grants of this process, each with an open file, that are kept without looking for
/// expired ones among them.
const GRANTS: usize = 64;

/// A grant that was acquired through this value.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
struct Grant {
    owner: Owner,
    fence: u64,
    /// The file whose open file description has the grant's byte locked.
    lifeline: Option<OpenFile>,
    /// Whether an operation currently uses that file.
    is_lent: bool,
    /// When the lease expires, unless it was extended since.
    ends: Option<Duration>,
    /// Whether the lease is auto-renewed. It may then be renewed even after it has expired, as after a
    /// suspension of the machine.
    is_renewed: bool,
    /// The time until which the grant is kept although its lease was seen to have expired, because its first
    /// renewal may be due.
    spared_until: Option<Duration>,
    /// Whether another program may have a duplicate of that descriptor.
    is_shared: bool,
    /// The previous holder, if its lease had expired while its processes still lived.
    taken_over: Option<Holder>,
    /// A forked child has a copy of this value, but is not the holder.
    process: u32,
    /// Whether the owner had a ticket when the lease was granted.
    has_waited: bool,
    /// When the lease was granted.
    since: Duration,
}

/// The file that an operation uses.
#[derive(Clone, Copy)]
enum Which<'a> {
    /// The file at its path, which is created if necessary, unless the lease is held by, or reserved for,
    /// another owner.
    Wanted(&'a Claim),
    /// The file at its path, if there is one.
    There,
    /// The file of a lease that is to end, wherever the file is now.
    Held,
}

/// Which of this process's grants that have expired are ended.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Expired {
    /// Grants that were not renewed in the ttl after they were first seen to have expired. A process that
    /// was suspended has that time for the first renewal.
    Abandoned,
    /// Grants that were never renewed.
    Unrenewed,
    All,
}

/// The result of an attempt to run an operation with a file.
enum AttemptResult<T> {
    /// The operation was done, or did not apply to this claim.
    Done(Result<Option<T>, FileError>),
    /// As `Done`, and the file must be closed.
    Closing(Result<Option<T>, FileError>),
    /// The file was replaced: the operation must be repeated.
    Again,
}

/// The current state of the lease in a record.
enum LeaseState {
    Free,
    Held {
        remaining: Option<Duration>,
    },
    /// The lease has expired, but processes of its holder live.
    Zombie,
}

impl LeaseFileStore {
    /// Opens the store in the directory `path`; creates the directory for this user alone if necessary.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the directory, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        let directory = Directory::open(path.as_ref(), Kind::Lease, Purpose::Store, options)?;
        if !Machine::this().has_boot_id() {
            return Err(OpenError::UnknownStart {
                path: path.as_ref().to_owned(),
            });
        }
        Ok(Self {
            directory,
            clock: Arc::new(System),
            zombies: options.zombies,
            process: process::this(),
            grants: PerProcess::new(),
            most_grants: AtomicUsize::new(GRANTS),
            queue: Queue::new(None, true),
        })
    }

    /// Lets leases expire by `clock` instead of the machine's clock, for tests. All users of the
    /// directory must use the same clock.
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

    /// Returns a descriptor that keeps the ephemeral lease of `claim` alive, for a program that
    /// inherits it. The lease ends when all duplicates are closed. The descriptor has a high number,
    /// and cannot write the lease's file. Returns `None` if this process keeps no such lease alive.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the descriptor cannot be opened or duplicated.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let mut grants = self.grants();
        let grant = grants.get_mut(&claim.name);
        let Some(grant) = grant.filter(|grant| grant.owner == claim.owner) else {
            return Ok(None);
        };
        let Some(lifeline) = &mut grant.lifeline else {
            return Ok(None);
        };
        grant.is_shared = true;
        // If its file was moved away, only the first description exists.
        if lifeline.open_read_only().map_err(io::Error::other)? {
            liveness::share(lifeline, grant.fence)?;
        }
        os::duplicate_to_inherit(lifeline.inheritable()).map(Some)
    }

    /// Returns the previous holder from which `claim` took over the lease: its lease had expired, but
    /// processes of it still lived.
    pub fn taken_over(&self, claim: &Claim) -> Option<Holder> {
        self.grants()
            .get(&claim.name)?
            .of(claim.owner)?
            .taken_over
            .clone()
    }

    /// Waits until the lock `name` is free, or its state cannot be determined, but at most for `at_most`. The
    /// caller does not join the wait queue.
    pub fn watch(&self, name: &Name, at_most: Duration) {
        self.queue
            .watch_changes(&self.directory, name, at_most, || {
                !matches!(self.inspect(name), Ok(Some(_)))
            });
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

    /// Returns whether the lease of `claim` is held according to its record, or the record cannot be
    /// read now.
    pub(crate) fn may_hold(&self, claim: &Claim) -> bool {
        let file = loop {
            match self.directory.take(&claim.name) {
                // The file was replaced: open the new one.
                Ok(Some(file)) if matches!(file.is_current(), Ok(false)) => {}
                Ok(Some(file)) => break file,
                Ok(None) => return false,
                Err(_) => return true,
            }
        };
        let says_so = self
            .directory
            .read(&file, &claim.name)
            .map_or(true, |view| {
                let record = view.record;
                let is_of = |record: &Record| {
                    record.owner == claim.owner && !self.is_parents(&claim.name, record)
                };
                record.is_some_and(|record| record.held && is_of(&record))
            });
        self.directory.put(&claim.name, file);
        says_so
    }

    fn now(&self) -> Duration {
        let now = self.clock.now().since_start();
        mutant!(LeasesEndByWallClock, wall_clock(), now)
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<Name, Grant>> {
        self.grants.lock()
    }

    /// Runs `operation` with the file of `name` and its contents, while no other process reads or writes it.
    ///
    /// Returns `Ok(None)` if there is no such file and `which` does not create one, or if the lease is
    /// held by, or reserved for, another owner.
    fn with_record<T>(
        &self,
        name: &Name,
        which: Which<'_>,
        operation: impl FnOnce(&LeaseFile<'_>, View) -> Result<T, FileError>,
    ) -> Result<Option<T>, FileError> {
        let mut operation = Some(operation);
        loop {
            let file = match which {
                Which::Wanted(_) => self.directory.take_or_create(name).map(Some),
                Which::There | Which::Held => self.directory.take(name),
            };
            let file = match file {
                Err(err) if err.is_for_want_of_descriptors() => {
                    let Some(lent) = self.lend(name) else {
                        return Err(err);
                    };
                    let attempt = self.attempt(&lent, name, which, &mut operation);
                    self.take_back(name, lent);
                    return match attempt? {
                        AttemptResult::Done(done) | AttemptResult::Closing(done) => done,
                        AttemptResult::Again => Err(err),
                    };
                }
                file => file?,
            };
            let Some(file) = file else {
                return Ok(None);
            };
            match self.attempt(&file, name, which, &mut operation)? {
                AttemptResult::Done(done) => {
                    self.directory.put(name, file);
                    return done;
                }
                AttemptResult::Closing(done) => return done,
                AttemptResult::Again => {}
            }
        }
    }

    /// Runs `operation`, which is `Some` until then, on `file`.
    fn attempt<T, S>(
        &self,
        file: &OpenFile,
        name: &Name,
        which: Which<'_>,
        operation: &mut Option<S>,
    ) -> Result<AttemptResult<T>, FileError>
    where
        S: FnOnce(&LeaseFile<'_>, View) -> Result<T, FileError>,
    {
        let lease = LeaseFile {
            store: self,
            file,
            name,
        };
        // A waiter that is not at the head must not contend for the file lock.
        if let Which::Wanted(claim) = which
            && lease.is_held_or_reserved_for_other(claim)?
        {
            return Ok(AttemptResult::Done(Ok(None)));
        }
        let guarded = Guarded::new(file.file(), file.path())?;
        let mut counts = match which {
            Which::Wanted(_) | Which::There => file.is_current()?,
            Which::Held => true,
        };
        let view = self.directory.read(file, name);
        if matches!(which, Which::Held) && view.is_err() {
            // Reading a corrupt file moves it away.
            counts = file.is_current()?;
        }
        let Some(operation) = operation.take_if(|_| counts) else {
            return Ok(AttemptResult::Again);
        };
        let done = view.and_then(|view| operation(&lease, view)).map(Some);
        Ok(match guarded.end() {
            Ok(()) => AttemptResult::Done(done),
            // Closing the file unlocks it, too.
            Err(_) => AttemptResult::Closing(done),
        })
    }

    /// Lends the file of a grant of this process, for an operation that cannot open another descriptor.
    fn lend(&self, name: &Name) -> Option<OpenFile> {
        let mut grants = self.grants();
        let grant = grants.get_mut(name).filter(|grant| grant.is_ours())?;
        let lent = grant.lifeline.take()?;
        grant.is_lent = true;
        Some(lent)
    }

    /// Puts back the file that [`lend`](Self::lend) returned.
    fn take_back(&self, name: &Name, mut lent: OpenFile) {
        let mut grants = self.grants();
        match grants.get_mut(name) {
            Some(grant) if grant.is_lent && lent.lived().contains(&grant.fence) => {
                grant.is_lent = false;
                grant.lifeline = Some(lent);
            }
            // The lease was released meanwhile. Closing the file unlocks the byte, too.
            _ => drop(liveness::unlock_all(&mut lent)),
        }
    }

    /// Ends the grants of this process that have expired and were not released, each of which keeps a file
    /// open; returns whether there were any.
    fn end_expired(&self, which: Expired) -> bool {
        let now = self.clock.now().since_start();
        let expired: Vec<_> = self
            .grants()
            .extract_if(|_, grant| {
                grant.ends.is_some_and(|ends| ends <= now)
                    && grant.is_ours()
                    && !grant.is_shared
                    && !grant.is_lent
                    && match which {
                        Expired::Abandoned => {
                            !grant.is_renewed && grant.spared_until.is_none_or(|it| it <= now)
                        }
                        Expired::Unrenewed => !grant.is_renewed,
                        Expired::All => true,
                    }
            })
            .collect();
        let mut has_ended = false;
        for (name, mut grant) in expired {
            if self.has_ended(&name, &mut grant, which, now) {
                has_ended = true;
                let claim = Claim {
                    name,
                    owner: grant.owner,
                    ttl: Ttl::NEVER,
                    ephemeral: true,
                };
                drop(grant);
                self.queue.released(&self.directory, &claim);
            } else if let Entry::Vacant(place) = self.grants().entry(name) {
                place.insert(grant);
            }
        }
        has_ended
    }

    /// Ends expired grants whenever there are twice as many grants as the last such search left, apart from
    /// spared grants.
    fn keep_few_expired(&self) {
        let count = self.grants().len();
        if count > self.most_grants.load(Ordering::Relaxed) && !mutant!(ExpiredLeasesKept) {
            self.end_expired(Expired::Abandoned);
            let grants = self.grants();
            let left = grants.values().filter(|grant| grant.spared_until.is_none());
            let most = GRANTS.max(2 * left.count());
            self.most_grants.store(most, Ordering::Relaxed);
        }
    }

    /// Returns whether the lease of `grant` has expired. If so, it is recorded as ended, so that it cannot be
    /// extended any more.
    fn has_ended(&self, name: &Name, grant: &mut Grant, which: Expired, now: Duration) -> bool {
        let Some(file) = &grant.lifeline else {
            return true;
        };
        let Ok(Some(_guarded)) = Guarded::try_new(file.file()) else {
            return false;
        };
        let Ok(View { record, .. }) = self.directory.read(file, name) else {
            return false;
        };
        match record.filter(|record| record.held && record.fence == grant.fence) {
            Some(record) if record.ttl.is_none() || now < record.ends => {
                grant.ends = record.ttl.map(|_| record.ends);
                grant.spared_until = None;
                false
            }
            Some(record) if which == Expired::Abandoned && grant.spared_until.is_none() => {
                grant.spared_until = record.ttl.map(|ttl| now.saturating_add(ttl));
                false
            }
            Some(record) => directory::write(file, &Arc::new(record.ended(now))).is_ok(),
            None => true,
        }
    }

    /// Returns whether this process keeps the lease in `record` alive.
    fn keeps_alive(&self, name: &Name, record: &Record) -> bool {
        self.grants().get(name).is_some_and(|grant| {
            grant.owner == record.owner && grant.fence == record.fence && grant.lives()
        })
    }

    /// Returns the record under which `name` is held now.
    fn held_record(&self, name: &Name) -> Result<Option<HeldRecord>, StoreError> {
        let found = self.with_record(name, Which::There, |lease, view| match view.record {
            Some(record) => Ok(match lease.state(&record)? {
                LeaseState::Held { remaining } => Some(HeldRecord { record, remaining }),
                LeaseState::Zombie if self.zombies == Zombies::Wait => Some(HeldRecord {
                    record,
                    remaining: Some(Duration::ZERO),
                }),
                LeaseState::Free | LeaseState::Zombie => None,
            }),
            None => Ok(None),
        })?;
        Ok(found.flatten())
    }

    /// Returns whether the lease in `record` is bound to a process that this one was forked from, as
    /// far as can be determined. A forked child is not its holder.
    fn is_parents(&self, name: &Name, record: &Record) -> bool {
        let is_own = |grant: &Grant| grant.owner == record.owner && grant.fence == record.fence;
        self.process != process::this()
            && record.ephemeral
            && !self.grants().get(name).is_some_and(is_own)
    }

    /// Drops this process's grant of `claim`. `is_recorded` states whether the file records its release.
    fn drop_grant(&self, claim: &Claim, is_recorded: bool) {
        let mut grants = self.grants();
        let ended = match grants.entry(claim.name.clone()) {
            Entry::Occupied(grant) if grant.get().owner == claim.owner => grant.remove(),
            _ => return,
        };
        drop(grants);
        self.end(&claim.name, ended, is_recorded);
    }

    /// Ends a grant; keeps its file open for the next one.
    fn end(&self, name: &Name, mut grant: Grant, is_recorded: bool) {
        let lifeline = if is_recorded && !grant.is_shared && grant.is_ours() {
            grant.lifeline.take()
        } else {
            grant.unlock().filter(|_| !grant.is_shared)
        };
        if let Some(lifeline) = lifeline {
            self.directory.put(name, lifeline);
        }
    }
}

impl Grant {
    fn of(&self, owner: Owner) -> Option<&Self> {
        (self.owner == owner).then_some(self)
    }

    /// Unlocks the grant's byte explicitly, because children may have the descriptor open; but not in a
    /// forked child, which shares the description with the holder. Returns the file if the byte was
    /// unlocked.
    fn unlock(&mut self) -> Option<OpenFile> {
        let mut lifeline = self.lifeline.take()?;
        // Closing the file unlocks the byte, too, at the latest when the last process that has it open
        // closes it.
        let gone = self.is_ours() && liveness::unlock_all(&mut lifeline).is_ok();
        gone.then_some(lifeline)
    }

    /// Returns whether this process keeps the lease alive.
    fn lives(&self) -> bool {
        self.lifeline.is_some() || self.is_lent
    }

    fn is_ours(&self) -> bool {
        self.process == process::this()
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        drop(self.unlock());
    }
}

/// The file of one name, while no other process reads or writes it.
struct LeaseFile<'a> {
    store: &'a LeaseFileStore,
    file: &'a OpenFile,
    name: &'a Name,
}

impl LeaseFile<'_> {
    /// Returns whether the lease is held by, or reserved for, an owner other than that of `claim`, as
    /// far as a reading without the kernel's lock shows. An owner for which this returns true need not
    /// lock the file.
    fn is_held_or_reserved_for_other(&self, claim: &Claim) -> Result<bool, FileError> {
        let queue = &self.store.queue;
        match queue.is_known_head(claim) {
            None if !self.file.is_contended() => return Ok(false),
            Some(true) => return Ok(false),
            _ => {}
        }
        // The file cannot be read while it is being written.
        let Ok(view) = self.store.directory.read(self.file, self.name) else {
            return Ok(false);
        };
        let reservation = queue.position(claim, self.file, &view)?.reservation();
        let Some(record) = &view.record else {
            return Ok(false);
        };
        Ok(!reservation.is_zero()
            && record.owner != claim.owner
            && (matches!(self.state(record), Ok(LeaseState::Held { .. }))
                || record.ended_within(reservation, self.now()))
            && self.file.is_current()?)
    }

    /// Returns whether the lease in `record` is that of `claim`, and this process may act for its
    /// holder.
    fn is_of(&self, record: &Record, claim: &Claim) -> bool {
        record.owner == claim.owner && !self.store.is_parents(self.name, record)
    }

    fn state(&self, record: &Record) -> Result<LeaseState, FileError> {
        if !record.held {
            return Ok(LeaseState::Free);
        }
        if record.ephemeral && !self.store.keeps_alive(self.name, record) {
            let is_alive = mutant!(
                LifeToldByProcessNumber,
                std::fs::exists(format!("/proc/{}", record.process.id)),
                liveness::is_held(self.file.file(), record.fence)
            );
            let failed = FileError::io("check whether the holder lives", self.file.path());
            if !is_alive.map_err(failed)? {
                return Ok(LeaseState::Free);
            }
        }
        self.state_of_living(record)
    }

    /// Returns the [`state`](Self::state) of a record with `held` set, whose processes live if it is
    /// ephemeral.
    fn state_of_living(&self, record: &Record) -> Result<LeaseState, FileError> {
        let machine = Machine::this();
        if !machine.runs_since(record.boot) {
            return match record.ephemeral {
                // A live process holds its lease, whatever its record contains.
                true => Ok(LeaseState::Held { remaining: None }),
                false if machine.is_containers() => Err(FileError::ForeignBoot {
                    name: self.name.clone(),
                }),
                false => Ok(LeaseState::Free),
            };
        }
        if record.ttl.is_none() {
            return Ok(LeaseState::Held { remaining: None });
        }
        if record.time_namespace != machine.time_namespace && !mutant!(TimeNamespaceIgnored) {
            if record.ephemeral {
                return Ok(LeaseState::Held { remaining: None });
            }
            return Err(FileError::ForeignClock {
                name: self.name.clone(),
            });
        }
        let now = self.now();
        match record.ends.checked_sub(now).filter(|left| !left.is_zero()) {
            Some(left) => Ok(LeaseState::Held {
                remaining: Some(left),
            }),
            None if record.ephemeral => Ok(LeaseState::Zombie),
            None => Ok(LeaseState::Free),
        }
    }

    /// Acquires the lease for `claim`; returns `None`, without any change, if the file was replaced
    /// meanwhile.
    fn acquire(&self, claim: &Claim, before: &View) -> Result<Option<Reply>, FileError> {
        let mut taken_over = None;
        let queue = &self.store.queue;
        if let Some(record) = &before.record {
            match self.state(record)? {
                LeaseState::Held { .. }
                    if self.is_of(record, claim) && !mutant!(AskingAgainRefused) =>
                {
                    self.extend(record, claim)?;
                    return Ok(Some(granted(record)));
                }
                // Only the head waiter tries again when the lease expires.
                LeaseState::Held { remaining } => {
                    let position = queue.position(claim, self.file, before)?;
                    let is_behind = position.has_ticket() && !position.reservation().is_zero();
                    let remaining = remaining.filter(|_| !is_behind);
                    return Ok(Some(Reply::Refused { remaining }));
                }
                LeaseState::Zombie if self.store.zombies == Zombies::Wait => {
                    return Ok(Some(Reply::REFUSED));
                }
                LeaseState::Zombie => taken_over = Some(holder(record, Some(Duration::ZERO))),
                LeaseState::Free => {}
            }
        }
        let position = queue.position(claim, self.file, before)?;
        self.file.set_contended(position != Position::NoWaiters);
        let reservation = position.reservation();
        if !reservation.is_zero()
            && let Some(record) = &before.record
        {
            let now = self.now();
            if record.held && record.ttl.is_none_or(|_| now < record.ends) {
                // The holder has died without recording the end of its lease.
                self.free(record, false)?;
                return Ok(Some(Reply::REFUSED));
            }
            if record.ended_within(reservation, now) {
                return Ok(Some(Reply::REFUSED));
            }
        }
        let directory = &self.store.directory;
        let served = position.served(before);
        let now = self.now();
        let new = |before: &View| {
            let new = directory.new_record(self.file, claim, before, served, now)?;
            Ok::<_, FileError>(new.map(|record| Record {
                ephemeral: record.ephemeral && liveness::AVAILABLE,
                ..record
            }))
        };
        let Some(mut record) = new(before)? else {
            return Ok(None);
        };
        if !record.ephemeral {
            self.may_outlive_its_process()?;
        }
        let mut lifeline = None;
        if record.ephemeral && !mutant!(NoLivenessByte) {
            let mut held = self.lifeline(record.fence);
            // Another process has locked the byte of this fence: the fence was granted before, to a
            // process that still has the file open, and an older copy was written into the file since.
            if held.as_ref().is_err_and(FileError::is_resource_busy) {
                match new(&before.of_older_copy())? {
                    Some(later) => record = later,
                    None => return Ok(None),
                }
                held = self.lifeline(record.fence);
            }
            lifeline = held?;
            if lifeline.is_none() {
                return Ok(None);
            }
        }
        let fence = record.fence;
        let ends = record.ttl.map(|_| record.ends);
        directory::write_grant(self.file, record, before)?;
        let process = self.file.process();
        let grant = Grant {
            owner: claim.owner,
            fence,
            lifeline,
            is_lent: false,
            ends,
            is_renewed: false,
            spared_until: None,
            is_shared: false,
            taken_over,
            process,
            has_waited: position.has_ticket(),
            since: now,
        };
        let ended = self.store.grants().insert(self.name.clone(), grant);
        if let Some(ended) = ended {
            // An earlier grant of this name that this process did not release.
            self.store.end(self.name, ended, false);
        }
        Ok(Some(Reply::Granted {
            fence: Fence::new(fence),
        }))
    }

    /// Opens the file again, because this description is used for other operations, and locks the
    /// grant's byte. Returns `None` if the file was replaced meanwhile.
    fn lifeline(&self, fence: u64) -> Result<Option<OpenFile>, FileError> {
        let directory = &self.store.directory;
        let Some(mut lifeline) = directory.take_another(self.name, self.file)? else {
            return Ok(None);
        };
        let held = liveness::hold(&mut lifeline, fence);
        held.map_err(FileError::io("lock a byte of this file", self.file.path()))?;
        Ok(Some(lifeline))
    }

    /// Renews the lease of `claim`, granted under `fence`, if `record` is still its record, even if it
    /// has expired.
    fn renew(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
        record: &Record,
    ) -> Result<Renewed, FileError> {
        let is_its = fence.is_none_or(|fence| fence.get() == record.fence);
        if !record.held || !self.is_of(record, claim) || !is_its {
            return Ok(match fence {
                Some(fence) if self.was_released(fence.get())? => Renewed::Released,
                _ => Renewed::Lost,
            });
        }
        let is_held = match self.state(record)? {
            LeaseState::Held { .. } | LeaseState::Zombie => true,
            LeaseState::Free => Self::is_merely_expired(record),
        };
        if !is_held {
            return Ok(Renewed::Lost);
        }
        if let Some(renewed) = record.renewed(claim.ttl, self.now(), wall_clock()) {
            self.write(renewed)?;
        }
        Ok(Renewed::Granted)
    }

    /// Returns whether the lease in `record`, which is free, has ended only by expiry.
    fn is_merely_expired(record: &Record) -> bool {
        record.held && !record.ephemeral && Machine::this().runs_since(record.boot)
    }

    /// Records that the owner of the grant `fence` has released it through another process than the one
    /// that keeps it alive.
    fn note_release(&self, fence: u64) {
        let at = record::released_at(fence);
        // If this fails, the process that keeps the lease alive reports it as lost.
        let _ = os::write_at(self.file.file(), &fence.to_le_bytes(), at);
    }

    fn was_released(&self, fence: u64) -> Result<bool, FileError> {
        let mut buffer = [0; 8];
        let read = os::read_at(self.file.file(), &mut buffer, record::released_at(fence));
        let read = read.map_err(FileError::io("read this file", self.file.path()))?;
        Ok(*read == fence.to_le_bytes())
    }

    /// Rejects a lease that ends only by expiry, if other processes could not determine that expiry.
    fn may_outlive_its_process(&self) -> Result<(), FileError> {
        if Machine::this().is_containers() {
            return Err(FileError::ContainersBoot {
                name: self.name.clone(),
            });
        }
        Ok(())
    }

    /// Extends the lease in `record` to the ttl of `claim` from now on.
    fn extend(&self, record: &Record, claim: &Claim) -> Result<(), FileError> {
        self.write(record.clone().lasting(claim.ttl, self.now(), wall_clock()))
    }

    fn write(&self, record: Record) -> Result<(), FileError> {
        directory::write(self.file, &Arc::new(record))
    }

    /// Records the end of the lease in `record`. `notifies` states whether this process notifies the second
    /// waiter.
    fn free(&self, record: &Record, notifies: bool) -> Result<(), FileError> {
        self.write(Record {
            notifies,
            ..record.ended(self.now())
        })
    }

    fn now(&self) -> Duration {
        self.store.now()
    }
}

impl Store for LeaseFileStore {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        loop {
            let mut is_next_notified = false;
            let reply = self.with_record(&claim.name, Which::Wanted(claim), |lease, view| {
                is_next_notified = view.record.as_ref().is_some_and(|record| record.notifies);
                lease.acquire(claim, &view)
            });
            let reply = match reply {
                Err(err)
                    if err.is_for_want_of_descriptors()
                        && (self.end_expired(Expired::Unrenewed)
                            || self.end_expired(Expired::All)) =>
                {
                    continue;
                }
                reply => reply?,
            };
            let Some(reply) = reply else {
                return Ok(Reply::REFUSED);
            };
            if let Some(reply) = reply {
                if reply.is_granted() {
                    self.queue.granted(&self.directory, claim, is_next_notified);
                    self.keep_few_expired();
                }
                return Ok(reply);
            }
        }
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let reply =
            self.with_record(&claim.name, Which::There, |lease, view| match view.record {
                Some(record) if lease.is_of(&record, claim) => match lease.state(&record)? {
                    LeaseState::Held { .. } => {
                        lease.extend(&record, claim)?;
                        Ok(granted(&record))
                    }
                    LeaseState::Free | LeaseState::Zombie => Ok(Reply::REFUSED),
                },
                _ => Ok(Reply::REFUSED),
            })?;
        Ok(reply.unwrap_or(Reply::REFUSED))
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        if let Some(grant) = self.grants().get_mut(&claim.name)
            && grant.owner == claim.owner
        {
            grant.is_renewed = true;
            grant.spared_until = None;
        }
        let renewed = self.with_record(&claim.name, Which::There, |lease, view| {
            view.record.map_or(Ok(Renewed::Lost), |record| {
                lease.renew(claim, fence, &record)
            })
        })?;
        Ok(renewed.unwrap_or(Renewed::Lost))
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let mut has_waited = false;
        let mut lives = None;
        let mut held_for = Duration::MAX;
        if let Some(grant) = self.grants().get(&claim.name)
            && grant.owner == claim.owner
        {
            has_waited = grant.has_waited;
            held_for = self.now().saturating_sub(grant.since);
            lives = grant.lives().then_some(grant.fence);
        }
        let operation = |lease: &LeaseFile<'_>, view: View| {
            // Other processes may have acquired the lease through the file that is now at the path.
            let is_there = lease.file.is_still_there(held_for);
            match view.record {
                Some(record)
                    if record.held
                        && (lease.is_of(&record, claim) || mutant!(ReleasedByAnybody)) =>
                {
                    let state = if lives == Some(record.fence) {
                        lease.state_of_living(&record)?
                    } else {
                        lease.state(&record)?
                    };
                    if lives.is_none() {
                        lease.note_release(record.fence);
                    }
                    lease.free(&record, has_waited)?;
                    Ok(if matches!(state, LeaseState::Held { .. }) && is_there? {
                        granted(&record)
                    } else {
                        Reply::REFUSED
                    })
                }
                _ => Ok(Reply::REFUSED),
            }
        };
        let mut reply = self.with_record(&claim.name, Which::Held, operation);
        if !matches!(reply, Ok(Some(Reply::Granted { .. })) | Err(_)) && !mutant!(MovedFileBelieved)
        {
            // The lease may be in the file that replaced this one.
            reply = self.with_record(&claim.name, Which::There, operation);
        }
        if matches!(reply, Err(FileError::Busy { .. })) && flock::Attempt::is_to_be_repeated() {
            return Ok(reply?.unwrap_or(Reply::REFUSED));
        }
        // Drop the grant also after an error: if there is no free descriptor, or the disk rejects writes, an
        // ephemeral lease still ends when its byte is unlocked, and the name does not stay held without a
        // holder.
        if reply.is_ok() || !mutant!(FailedReleaseKeepsLease) {
            self.drop_grant(claim, matches!(reply, Ok(Some(Reply::Granted { .. }))));
        }
        if reply.is_err()
            && let Ok(Some(file)) = self.directory.take(&claim.name)
        {
            // Nothing else notifies the waiters.
            let _ = Queue::wake(&file);
            self.directory.put(&claim.name, file);
        }
        self.queue.released(&self.directory, claim);
        self.queue.tidy();
        Ok(reply?.unwrap_or(Reply::REFUSED))
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        let reply = self.with_record(name, Which::There, |lease, view| match view.record {
            Some(record)
                if record.held
                    && (only.is_none_or(|only| only.get() == record.fence)
                        || mutant!(EvictionIgnoresFence)) =>
            {
                match lease.state(&record) {
                    // From now on the lease must not be renewed any more.
                    Ok(LeaseState::Free) if LeaseFile::is_merely_expired(&record) => {
                        lease.free(&record, false)?;
                        Ok(Reply::REFUSED)
                    }
                    Ok(LeaseState::Free) => Ok(Reply::REFUSED),
                    // The lease was free already, except for processes that choose to wait for its processes.
                    Ok(LeaseState::Zombie) if self.zombies == Zombies::Take => {
                        lease.free(&record, false)?;
                        Ok(Reply::REFUSED)
                    }
                    // If the clock or the boot is foreign, whether the lease has expired is unknown;
                    // now it has ended.
                    Ok(LeaseState::Held { .. } | LeaseState::Zombie)
                    | Err(FileError::ForeignClock { .. } | FileError::ForeignBoot { .. }) => {
                        lease.free(&record, false)?;
                        Ok(granted(&record))
                    }
                    Err(err) => Err(err),
                }
            }
            _ => Ok(Reply::REFUSED),
        })?;
        Ok(reply.unwrap_or(Reply::REFUSED))
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let found = self.held_record(name)?;
        Ok(found.map(|held| holder(&held.record, held.remaining)))
    }

    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let found = self.held_record(&claim.name)?;
        Ok(found.is_some_and(|HeldRecord { record, .. }| {
            record.owner == claim.owner && !self.is_parents(&claim.name, &record)
        }))
    }

    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let reply =
            self.with_record(&claim.name, Which::There, |lease, view| match view.record {
                Some(record) if lease.is_of(&record, claim) => match lease.state(&record)? {
                    LeaseState::Held { .. } => {
                        lease.may_outlive_its_process()?;
                        let sequence = record.sequence + 1;
                        lease.write(Record {
                            sequence,
                            ephemeral: false,
                            ..Record::clone(&record)
                        })?;
                        Ok(granted(&record))
                    }
                    LeaseState::Free | LeaseState::Zombie => Ok(Reply::REFUSED),
                },
                _ => Ok(Reply::REFUSED),
            })?;
        if reply.is_some_and(Reply::is_granted) {
            self.queue.released(&self.directory, claim);
            self.drop_grant(claim, false);
        }
        Ok(reply.unwrap_or(Reply::REFUSED))
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
            expires: true,
            ephemeral: liveness::AVAILABLE,
            transfers: true,
            evicts: true,
            fences: true,
            revives: true,
        }
    }
}

impl fmt::Debug for LeaseFileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseFileStore")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// A record under which a lock is held now, and the remaining time of its lease.
struct HeldRecord {
    record: Arc<Record>,
    remaining: Option<Duration>,
}

pub(super) fn granted(record: &Record) -> Reply {
    Reply::Granted {
        fence: Fence::new(record.fence),
    }
}

pub(super) fn holder(record: &Record, remaining: Option<Duration>) -> Holder {
    Holder {
        fence: Fence::new(record.fence),
        since: Some(record.since_wall),
        remaining,
        process: Some(Process::clone(&record.process)),
        detached: liveness::AVAILABLE && !record.ephemeral,
    }
}
