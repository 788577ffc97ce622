//! Leases in files: one file per name, read and written under the kernel's lock.
//!
//! The kernel's lock on a file is kept for the microseconds of one step only. Who holds the lease
//! is what the file says, and it ends by the machine's clock. An ephemeral lease ends, too, when
//! the processes that hold it are gone: they keep one byte of the file locked, and the kernel
//! unlocks it when the last of them ends. See `FORMAT.md`.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use verrou::{
    Abilities, Claim, Clock, Fence, Holder, Name, Owner, Reply, Store, StoreError, Waited,
};

use super::directory::{self, Directory};
use super::error::{FileError, OpenError};
#[cfg(target_os = "linux")]
use super::file_events::Listener;
use super::kernel_lock::Guarded;
use super::machine::Machine;
use super::open_files::OpenFile;
use super::queue::{PATIENCE, Queue};
use super::record::{Kind, Record};
use super::{Listed, StoreOptions, Zombies, liveness};
use crate::System;

/// Leases in the files of a folder, for the processes of one machine.
///
/// ```
/// use verrou::blocking::LockFactory;
/// use verrou_host::{LeaseFileStore, StoreOptions, System};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// let store = LeaseFileStore::open(folder, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "2s")?;
/// lock.acquire()?;
///
/// // Another process that opens the same folder:
/// let elsewhere = LeaseFileStore::open(folder, &StoreOptions::default())?;
/// let restored = LockFactory::new(&elsewhere, System).restore_lock(&lock.serialize()?);
/// restored.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct LeaseFileStore {
    directory: Directory,
    clock: Arc<dyn Clock + Send + Sync>,
    zombies: Zombies,
    command: Option<String>,
    grants: Mutex<HashMap<Name, Grant>>,
    queue: Queue,
}

/// What this process keeps of a grant it asked for.
struct Grant {
    owner: Owner,
    fence: u64,
    /// The file whose open file description has the grant's byte locked.
    lifeline: Option<OpenFile>,
    /// Whether others have a duplicate of that descriptor.
    is_shared: bool,
    /// Whose lease had ended by time while its processes still lived.
    taken_over: Option<Holder>,
    /// A forked child has a copy of this value, but is not the holder.
    process: u32,
}

/// What a record means now.
enum State {
    Free,
    Held {
        remaining: Option<Duration>,
    },
    /// Its time has passed, but processes of its holder are alive.
    Zombie,
}

impl LeaseFileStore {
    /// The store in the folder `path`, which is created for this user alone if need be.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the folder, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        if !Machine::this().knows_its_start() {
            return Err(OpenError::UnknownStart {
                path: path.as_ref().to_owned(),
            });
        }
        Ok(Self {
            directory: Directory::open(path.as_ref(), Kind::Lease, options)?,
            clock: Arc::new(System),
            zombies: options.zombies,
            command: options.command.clone(),
            grants: Mutex::default(),
            queue: Queue::new(None),
        })
    }

    /// Lets leases end by `clock` instead of the machine's: for tests. It must be the same for
    /// all who use the folder.
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

    /// A duplicate of the descriptor that keeps the ephemeral lease of `claim` alive: it ends
    /// when all duplicates are closed. `None` when this process keeps no such lease alive.
    ///
    /// # Errors
    ///
    /// What the operating system says when it cannot duplicate it.
    pub fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let mut grants = self.grants();
        let grant = grants.get_mut(&claim.name);
        let Some(grant) = grant.filter(|grant| grant.owner == claim.owner) else {
            return Ok(None);
        };
        let Some(lifeline) = &grant.lifeline else {
            return Ok(None);
        };
        grant.is_shared = true;
        lifeline.file().try_clone().map(Some)
    }

    /// From whom the lease of `claim` was taken although processes of theirs still live: their
    /// time had passed.
    pub fn taken_over(&self, claim: &Claim) -> Option<Holder> {
        self.grants()
            .get(&claim.name)?
            .of(claim.owner)?
            .taken_over
            .clone()
    }

    /// Waits until nobody holds `name`, or something keeps that from being told, but at most
    /// `at_most`; for those who are not to have a place among the ones who wait.
    pub fn watch(&self, name: &Name, at_most: Duration) {
        self.queue.overhear(&self.directory, name, at_most, || {
            !matches!(self.inspect(name), Ok(Some(_)))
        });
    }

    /// [`Store::wait`], for a task.
    pub(crate) async fn waited(&self, claim: &Claim) {
        self.queue.waited(&self.directory, claim).await;
    }

    /// [`Store::lost`], for a task.
    pub(crate) async fn awaited_loss(&self, claim: &Claim) {
        let holds = || self.holds(claim);
        self.queue.awaited_loss(&self.directory, claim, holds).await;
    }

    /// Tells, by a descriptor that can be polled, when the lease of `claim` may be lost.
    #[cfg(target_os = "linux")]
    pub(crate) fn loss_listener(&self, claim: &Claim) -> io::Result<Listener> {
        self.queue.listen(&self.directory, &claim.name)
    }

    /// Whether the record says that the lease of `claim` is held, or cannot be read now.
    pub(crate) fn holds(&self, claim: &Claim) -> bool {
        let file = match self.directory.take(&claim.name) {
            Ok(Some(file)) => file,
            Ok(None) => return false,
            Err(_) => return true,
        };
        let says_so = match self.directory.read(&file, &claim.name) {
            Ok(Some(record)) => record.held && record.owner == claim.owner,
            Ok(None) => false,
            Err(_) => true,
        };
        let holds = says_so && !matches!(file.is_current(), Ok(false));
        self.directory.put(&claim.name, file);
        holds
    }

    /// Whether the record says that another than the owner of `claim` holds the lease, and lives.
    fn is_anothers(&self, claim: &Claim) -> bool {
        let Ok(Some(file)) = self.directory.take(&claim.name) else {
            return false;
        };
        let record = self.directory.read(&file, &claim.name);
        let lease = LeaseFile {
            store: self,
            file: &file,
            name: &claim.name,
        };
        let says_so = record.is_ok_and(|record| {
            record.is_some_and(|record| {
                record.owner != claim.owner
                    && matches!(lease.state(&record), Ok(State::Held { .. }))
            })
        });
        let is_anothers = says_so && matches!(file.is_current(), Ok(true));
        self.directory.put(&claim.name, file);
        is_anothers
    }

    fn grants(&self) -> MutexGuard<'_, HashMap<Name, Grant>> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `step` with the file of `name` and what it says, while nobody else does.
    ///
    /// `Ok(None)` when there is no such file and none is to be made.
    fn with_record<T>(
        &self,
        name: &Name,
        create: bool,
        step: impl FnOnce(&LeaseFile<'_>, Option<Record>) -> Result<T, FileError>,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let file = if create {
                self.directory.take_or_create(name)?
            } else {
                let Some(file) = self.directory.take(name)? else {
                    return Ok(None);
                };
                file
            };
            let guarded = Guarded::new(file.file(), file.path())?;
            if !file.is_current()? {
                continue;
            }
            let lease = LeaseFile {
                store: self,
                file: &file,
                name,
            };
            let record = self.directory.read(&file, name);
            let done = record.and_then(|record| step(&lease, record));
            drop(guarded);
            self.directory.put(name, file);
            return Ok(Some(done?));
        }
    }

    /// Ends what this process keeps of the grant of `claim`.
    fn forget(&self, claim: &Claim) {
        let mut grants = self.grants();
        let ended = match grants.entry(claim.name.clone()) {
            Entry::Occupied(grant) if grant.get().owner == claim.owner => grant.remove(),
            _ => return,
        };
        drop(grants);
        self.end(&claim.name, ended);
    }

    /// Ends what is kept of a grant, of which the file is kept for another.
    fn end(&self, name: &Name, mut grant: Grant) {
        if let Some(lifeline) = grant.let_go()
            && !grant.is_shared
        {
            self.directory.put(name, lifeline);
        }
    }

    /// Whether the grant of `claim` was inherited from the process this one was forked from.
    fn is_parents(&self, claim: &Claim) -> bool {
        let grants = self.grants();
        let grant = grants
            .get(&claim.name)
            .and_then(|grant| grant.of(claim.owner));
        grant.is_some_and(|grant| grant.process != std::process::id())
    }
}

impl Grant {
    fn of(&self, owner: Owner) -> Option<&Self> {
        (self.owner == owner).then_some(self)
    }

    /// Unlocks the grant's byte by name, for children may have the descriptor open; but not in a
    /// forked child, which shares it with the holder. Returns the file if all went well.
    fn let_go(&mut self) -> Option<OpenFile> {
        let lifeline = self.lifeline.take()?;
        // Closing it ends it, too, at the latest with the last process that has it open.
        let gone = self.process == std::process::id()
            && liveness::let_go(lifeline.file(), self.fence).is_ok();
        gone.then_some(lifeline)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        drop(self.let_go());
    }
}

/// The file of one name, while nobody else reads or writes it.
struct LeaseFile<'a> {
    store: &'a LeaseFileStore,
    file: &'a OpenFile,
    name: &'a Name,
}

impl LeaseFile<'_> {
    fn state(&self, record: &Record) -> Result<State, FileError> {
        let machine = Machine::this();
        if !record.held {
            return Ok(State::Free);
        }
        if record.ephemeral {
            let asked = liveness::is_held(self.file.file(), record.fence);
            if !asked.map_err(FileError::io("ask who lives", self.file.path()))? {
                return Ok(State::Free);
            }
        }
        if !machine.runs_since(record.boot) {
            // Whatever a file says, one who lives is one who holds.
            return Ok(if record.ephemeral {
                State::Held { remaining: None }
            } else {
                State::Free
            });
        }
        if record.ttl.is_none() {
            return Ok(State::Held { remaining: None });
        }
        if record.time_namespace != machine.time_namespace {
            if record.ephemeral {
                return Ok(State::Held { remaining: None });
            }
            return Err(FileError::ForeignClock {
                name: self.name.clone(),
            });
        }
        let now = self.now();
        match record.ends.checked_sub(now).filter(|left| !left.is_zero()) {
            Some(left) => Ok(State::Held {
                remaining: Some(left),
            }),
            None if record.ephemeral => Ok(State::Zombie),
            None => Ok(State::Free),
        }
    }

    /// Nothing is done, and `None` said, when the file was replaced meanwhile.
    fn acquire(&self, claim: &Claim, before: Option<Record>) -> Result<Option<Reply>, FileError> {
        let mut taken_over = None;
        if let Some(record) = &before {
            match self.state(record)? {
                State::Held { .. } if record.owner == claim.owner => {
                    self.write(&self.lasting(record, claim))?;
                    return Ok(Some(granted(record)));
                }
                // Only the first in the queue is to look again when the time has passed.
                State::Held { .. } if self.store.queue.is_behind(claim)? => {
                    return Ok(Some(Reply::REFUSED));
                }
                State::Held { remaining } => return Ok(Some(Reply::Refused { remaining })),
                State::Zombie if self.store.zombies == Zombies::Wait => {
                    return Ok(Some(Reply::REFUSED));
                }
                State::Zombie => taken_over = Some(holder(record, Some(Duration::ZERO))),
                State::Free => {}
            }
            if record.ended_within(PATIENCE, self.now())
                && !self.store.queue.is_first(claim, self.file)?
            {
                return Ok(Some(Reply::REFUSED));
            }
        }
        let (fence, last_fence) = self.store.directory.next_fence(before.as_ref())?;
        let machine = Machine::this();
        let wall = wall_clock();
        let record = Record {
            sequence: before.map_or(1, |record| record.sequence + 1),
            held: true,
            ephemeral: claim.ephemeral && liveness::AVAILABLE,
            fence,
            last_fence,
            owner: claim.owner,
            boot: machine.boot(),
            time_namespace: machine.time_namespace,
            ttl: None,
            ends: Duration::ZERO,
            ends_wall: wall,
            since_wall: wall,
            process: machine.process(self.file.process(), self.store.command.as_deref()),
        };
        let mut lifeline = None;
        if record.ephemeral {
            lifeline = self.lifeline(fence)?;
            if lifeline.is_none() {
                return Ok(None);
            }
        }
        self.write(&Record {
            sequence: record.sequence,
            ..self.lasting(&record, claim)
        })?;
        let process = self.file.process();
        let grant = Grant {
            owner: claim.owner,
            fence,
            lifeline,
            is_shared: false,
            taken_over,
            process,
        };
        let ended = self.store.grants().insert(self.name.clone(), grant);
        if let Some(ended) = ended {
            // An earlier grant of this name that this process did not release.
            self.store.end(self.name, ended);
        }
        Ok(Some(granted(&record)))
    }

    /// The file once more, for this one is used for other steps, with the grant's byte locked;
    /// `None` when the file was replaced meanwhile.
    fn lifeline(&self, fence: u64) -> Result<Option<OpenFile>, FileError> {
        let directory = &self.store.directory;
        let Some(lifeline) = directory.take_another(self.name, self.file)? else {
            return Ok(None);
        };
        let held = liveness::hold(lifeline.file(), fence);
        held.map_err(FileError::io("lock a byte of this file", self.file.path()))?;
        Ok(Some(lifeline))
    }

    /// `record`, lasting from now as long as `claim` asks, as the next to be written.
    fn lasting(&self, record: &Record, claim: &Claim) -> Record {
        let now = self.now();
        let ttl = claim.ttl.duration();
        Record {
            sequence: record.sequence + 1,
            ttl,
            ends: ttl.map_or(Duration::ZERO, |ttl| now.saturating_add(ttl)),
            ends_wall: ttl.map_or(Duration::ZERO, |ttl| wall_clock().saturating_add(ttl)),
            ..record.clone()
        }
    }

    fn write(&self, record: &Record) -> Result<(), FileError> {
        directory::write(self.file, record)
    }

    fn free(&self, record: &Record) -> Result<(), FileError> {
        self.write(&record.ended(self.now()))
    }

    fn now(&self) -> Duration {
        self.store.clock.now().since_start()
    }
}

impl Store for LeaseFileStore {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        // Whoever waits behind others looks without keeping them from the file.
        if self.queue.is_behind(claim)? && self.is_anothers(claim) {
            return Ok(Reply::REFUSED);
        }
        loop {
            let reply = self.with_record(&claim.name, true, |lease, record| {
                lease.acquire(claim, record)
            })?;
            if let Some(reply) = reply.flatten() {
                if reply.is_granted() {
                    self.queue.granted(&self.directory, claim);
                }
                return Ok(reply);
            }
        }
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let reply = self.with_record(&claim.name, false, |lease, record| match record {
            Some(record) if record.owner == claim.owner => match lease.state(&record)? {
                State::Held { .. } => {
                    lease.write(&lease.lasting(&record, claim))?;
                    Ok(granted(&record))
                }
                State::Free | State::Zombie => Ok(Reply::REFUSED),
            },
            _ => Ok(Reply::REFUSED),
        })?;
        Ok(reply.unwrap_or(Reply::REFUSED))
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        if self.is_parents(claim) {
            return Ok(Reply::REFUSED);
        }
        let reply = self.with_record(&claim.name, false, |lease, record| match record {
            Some(record) if record.held && record.owner == claim.owner => {
                let state = lease.state(&record)?;
                lease.free(&record)?;
                Ok(if matches!(state, State::Held { .. }) {
                    granted(&record)
                } else {
                    Reply::REFUSED
                })
            }
            _ => Ok(Reply::REFUSED),
        });
        // Also after an error: where no descriptor is to be had, or a disk takes no writes, an
        // ephemeral lease is over all the same without its byte, and the name not held by nobody.
        self.forget(claim);
        self.queue.tidy();
        Ok(reply?.unwrap_or(Reply::REFUSED))
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        let reply = self.with_record(name, false, |lease, record| match record {
            Some(record) if record.held && only.is_none_or(|only| only.get() == record.fence) => {
                match lease.state(&record) {
                    Ok(State::Free) => Ok(Reply::REFUSED),
                    // Nobody can tell whether its time has passed; now it has.
                    Ok(State::Held { .. } | State::Zombie)
                    | Err(FileError::ForeignClock { .. }) => {
                        lease.free(&record)?;
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
        let found = self.with_record(name, false, |lease, record| match record {
            Some(record) => Ok(match lease.state(&record)? {
                State::Held { remaining } => Some(holder(&record, remaining)),
                State::Zombie if self.zombies == Zombies::Wait => {
                    Some(holder(&record, Some(Duration::ZERO)))
                }
                State::Free | State::Zombie => None,
            }),
            None => Ok(None),
        })?;
        Ok(found.flatten())
    }

    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let reply = self.with_record(&claim.name, false, |lease, record| match record {
            Some(record) if record.owner == claim.owner => match lease.state(&record)? {
                State::Held { .. } => {
                    let sequence = record.sequence + 1;
                    lease.write(&Record {
                        sequence,
                        ephemeral: false,
                        ..record.clone()
                    })?;
                    Ok(granted(&record))
                }
                State::Free | State::Zombie => Ok(Reply::REFUSED),
            },
            _ => Ok(Reply::REFUSED),
        })?;
        if reply.is_some_and(Reply::is_granted) {
            self.forget(claim);
        }
        Ok(reply.unwrap_or(Reply::REFUSED))
    }

    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.queue.wait(&self.directory, claim, at_most);
        Waited::Done
    }

    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        let holds = || self.holds(claim);
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

pub(super) fn granted(record: &Record) -> Reply {
    Reply::Granted {
        fence: Fence::new(record.fence),
    }
}

pub(super) fn holder(record: &Record, remaining: Option<Duration>) -> Holder {
    Holder {
        owner: Some(record.owner),
        fence: Fence::new(record.fence),
        since: Some(record.since_wall),
        remaining,
        process: Some(record.process.clone()),
    }
}

/// The wall clock since the start of 1970, in the milliseconds that a record has.
pub(super) fn wall_clock() -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Duration::from_millis(now.as_millis().try_into().unwrap_or(u64::MAX))
}
