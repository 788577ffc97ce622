//! Leases in files: one file per name, read and written under the kernel's lock.
//!
//! The kernel's lock on a file is kept only for the microseconds of one operation. The file records the
//! holder of the lease, which expires by the machine's clock. An ephemeral lease also ends when the
//! processes that hold it have ended: they keep one byte of the file locked, and the kernel unlocks it
//! when the last of them ends. See `FORMAT.md`.

mod grants;
mod locked_file;
mod record_access;

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use grants::{Expired, GRANTS, LeaseGrant};
use locked_file::{LeaseFile, RecordState};
use record_access::Which;
use verrou::{
    Acquired, AsyncWaiter, Capabilities, Claim, Clock, Fence, Holder, LossWatch, Name, Renewed,
    Store, StoreError, Waiter,
};
use verrou_machine::process::PerProcess;
use verrou_machine::sync::Mutex;
use verrou_machine::sync::atomic::AtomicUsize;
use verrou_machine::{HostStore, Listed, LossSignal, StoreOptions, Zombies};

use crate::directory::Directory;
use crate::error::{FileError, OpenError};
use crate::file_store::{Base, FileStore};
use crate::host_identity::Machine;
use crate::os::Purpose;
use crate::queue::Queue;
use crate::record::{Kind, Record};
use crate::record_file::View;
use crate::reply::holder;
use crate::{flock, liveness, os};

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
    base: Base,
    zombies: Zombies,
    grants: PerProcess<Mutex<HashMap<Name, LeaseGrant>>>,
    /// The number of grants at which the store next looks for expired ones.
    most_grants: AtomicUsize,
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
            base: Base::new(directory, Queue::new(None, true)),
            zombies: options.zombies,
            grants: PerProcess::new(),
            most_grants: AtomicUsize::new(GRANTS),
        })
    }

    /// Lets leases expire by `clock` instead of the machine's clock, for tests. All users of the
    /// directory must use the same clock.
    #[must_use]
    pub fn with_clock(mut self, clock: impl Clock + Send + Sync + 'static) -> Self {
        self.base.clock = Arc::new(clock);
        self
    }

    fn now(&self) -> Duration {
        let now = self.base.now();
        mutant!(LeasesEndByWallClock, crate::record_file::wall_clock(), now)
    }

    /// Returns the record under which `name` is held now.
    fn held_record(&self, name: &Name) -> Result<Option<HeldRecord>, StoreError> {
        let found = self.with_record(name, Which::There, |lease, view| match view.record {
            Some(record) => Ok(match lease.state(&record)? {
                RecordState::Held { remaining } => Some(HeldRecord { record, remaining }),
                RecordState::Zombie if self.zombies == Zombies::Wait => Some(HeldRecord {
                    record,
                    remaining: Some(Duration::ZERO),
                }),
                RecordState::Free | RecordState::Zombie => None,
            }),
            None => Ok(None),
        })?;
        Ok(found.flatten())
    }

    /// Returns whether the lease in `record` is bound to a process that this one was forked from, as
    /// far as can be determined. A forked child is not its holder.
    fn is_parents(&self, name: &Name, record: &Record) -> bool {
        let is_own =
            |grant: &LeaseGrant| grant.owner == record.owner && grant.fence == record.fence;
        !self.base.is_of_this_process()
            && record.ephemeral
            && !self.grants().get(name).is_some_and(is_own)
    }
}

impl FileStore for LeaseFileStore {
    fn base(&self) -> &Base {
        &self.base
    }

    fn holder(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let found = self.held_record(name)?;
        Ok(found.map(|held| holder(&held.record, held.remaining)))
    }

    /// Returns whether the lease of `claim` is held according to its record, or the record cannot be
    /// read now.
    fn may_hold(&self, claim: &Claim) -> bool {
        let file = loop {
            match self.base.directory.take(&claim.name) {
                // The file was replaced: open the new one.
                Ok(Some(file)) if matches!(file.is_current(), Ok(false)) => {}
                Ok(Some(file)) => break file,
                Ok(None) => return false,
                Err(_) => return true,
            }
        };
        let says_so = self
            .base
            .directory
            .read(&file, &claim.name)
            .map_or(true, |view| {
                let record = view.record;
                let is_of = |record: &Record| {
                    record.owner == claim.owner && !self.is_parents(&claim.name, record)
                };
                record.is_some_and(|record| record.held && is_of(&record))
            });
        self.base.directory.put(&claim.name, file);
        says_so
    }
}

impl HostStore for LeaseFileStore {
    fn list(&self) -> Result<Vec<Listed>, StoreError> {
        self.held()
    }

    /// The caller does not join the wait queue.
    fn wait_until_free(&self, name: &Name, at_most: Duration) {
        self.base
            .queue
            .watch_changes(&self.base.directory, name, at_most, || {
                !matches!(self.holder(name), Ok(Some(_)))
            });
    }

    fn async_waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(Box::new(self.queue_waiter(claim)))
    }

    fn set_label(&self, label: Option<&str>) {
        self.base.directory.set_label(label);
    }

    fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
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

    fn taken_over(&self, claim: &Claim) -> Option<Holder> {
        self.grants()
            .get(&claim.name)?
            .of(claim.owner)?
            .taken_over
            .clone()
    }

    fn loss_signal<'s>(&'s self, claim: &Claim) -> io::Result<Box<dyn LossSignal + 's>> {
        Ok(Box::new(self.loss_watch(claim)?))
    }
}

impl Store for LeaseFileStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
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
                return Ok(Acquired::BUSY);
            };
            if let Some(reply) = reply {
                if reply.is_granted() {
                    self.base
                        .queue
                        .granted(&self.base.directory, claim, is_next_notified);
                    self.keep_few_expired();
                }
                return Ok(reply);
            }
        }
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let reply =
            self.with_record(&claim.name, Which::There, |lease, view| match view.record {
                Some(record) if lease.is_of(&record, claim) => match lease.state(&record)? {
                    RecordState::Held { .. } => {
                        lease.extend(&record, claim)?;
                        Ok(true)
                    }
                    RecordState::Free | RecordState::Zombie => Ok(false),
                },
                _ => Ok(false),
            })?;
        Ok(reply.unwrap_or(false))
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

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
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
                    Ok(matches!(state, RecordState::Held { .. }) && is_there?)
                }
                _ => Ok(false),
            }
        };
        let mut reply = self.with_record(&claim.name, Which::Held, operation);
        if !matches!(reply, Ok(Some(true)) | Err(_)) && !mutant!(MovedFileBelieved) {
            // The lease may be in the file that replaced this one.
            reply = self.with_record(&claim.name, Which::There, operation);
        }
        if matches!(reply, Err(FileError::Busy { .. })) && flock::LockAttempt::is_to_be_repeated() {
            return Ok(reply?.unwrap_or(false));
        }
        // Drop the grant also after an error: if there is no free descriptor, or the disk rejects writes, an
        // ephemeral lease still ends when its byte is unlocked, and the name does not stay held without a
        // holder.
        if reply.is_ok() || !mutant!(FailedReleaseKeepsLease) {
            self.drop_grant(claim, matches!(reply, Ok(Some(true))));
        }
        if reply.is_err()
            && let Ok(Some(file)) = self.base.directory.take(&claim.name)
        {
            // Nothing else notifies the waiters.
            let _ = Queue::wake(&file);
            self.base.directory.put(&claim.name, file);
        }
        self.base.queue.released(&self.base.directory, claim);
        self.base.queue.tidy();
        Ok(reply?.unwrap_or(false))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let reply = self.with_record(name, Which::There, |lease, view| match view.record {
            Some(record)
                if record.held
                    && (only.is_none_or(|only| only.get() == record.fence)
                        || mutant!(EvictionIgnoresFence)) =>
            {
                match lease.state(&record) {
                    // From now on the lease must not be renewed any more.
                    Ok(RecordState::Free) if LeaseFile::is_merely_expired(&record) => {
                        lease.free(&record, false)?;
                        Ok(false)
                    }
                    Ok(RecordState::Free) => Ok(false),
                    // The lease was free already, except for processes that choose to wait for its processes.
                    Ok(RecordState::Zombie) if self.zombies == Zombies::Take => {
                        lease.free(&record, false)?;
                        Ok(false)
                    }
                    // If the clock or the boot is foreign, whether the lease has expired is unknown;
                    // now it has ended.
                    Ok(RecordState::Held { .. } | RecordState::Zombie)
                    | Err(FileError::ForeignClock { .. } | FileError::ForeignBoot { .. }) => {
                        lease.free(&record, false)?;
                        Ok(true)
                    }
                    Err(err) => Err(err),
                }
            }
            _ => Ok(false),
        })?;
        Ok(reply.unwrap_or(false))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Ok(self.holder(name)?.into_iter().collect())
    }

    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let found = self.held_record(&claim.name)?;
        Ok(found.is_some_and(|HeldRecord { record, .. }| {
            record.owner == claim.owner && !self.is_parents(&claim.name, &record)
        }))
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let reply =
            self.with_record(&claim.name, Which::There, |lease, view| match view.record {
                Some(record) if lease.is_of(&record, claim) => match lease.state(&record)? {
                    RecordState::Held { .. } => {
                        lease.may_outlive_its_process()?;
                        let sequence = record.sequence + 1;
                        lease.write(Record {
                            sequence,
                            ephemeral: false,
                            ..Record::clone(&record)
                        })?;
                        Ok(true)
                    }
                    RecordState::Free | RecordState::Zombie => Ok(false),
                },
                _ => Ok(false),
            })?;
        if reply == Some(true) {
            self.base.queue.released(&self.base.directory, claim);
            self.drop_grant(claim, false);
        }
        Ok(reply.unwrap_or(false))
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        Some(Box::new(self.queue_waiter(claim)))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        Some(Box::new(self.loss_watch(claim).ok()?))
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.expires = true;
        capabilities.ephemeral = liveness::AVAILABLE;
        capabilities.transfers = true;
        capabilities.force_releases = true;
        capabilities.fences = true;
        capabilities.revives = true;
        capabilities
    }
}

impl fmt::Debug for LeaseFileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaseFileStore")
            .field("directory", &self.base.directory)
            .finish_non_exhaustive()
    }
}

/// A record under which a lock is held now, and the remaining time of its lease.
struct HeldRecord {
    record: Arc<Record>,
    remaining: Option<Duration>,
}
