//! The grants of this process, each of which keeps a file locked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use verrou::{Claim, Name, Owner};
use verrou_machine::process;
use verrou_machine::sync::MutexGuard;

use super::FileLockStore;
use crate::directory::Directory;
use crate::error::FileError;
use crate::flock::{self, Guarded};
use crate::open_files::OpenFile;
use crate::queue::{Position, Queue};
use crate::record::Record;
use crate::record_file::{self, wall_clock};

/// The state of a name in this value.
pub(super) enum Slot {
    /// A thread of this process tries to take the lock, so that other threads need not. A forked child has
    /// a copy of this value, but does not try.
    Asking {
        process: u32,
    },
    Held(LockGrant),
}

impl Slot {
    /// Returns whether this process holds the lock for `owner`.
    pub(super) fn is_ours_for(&self, owner: Owner) -> bool {
        match self {
            Self::Asking { .. } => false,
            Self::Held(grant) => grant.record.owner == owner && grant.locked.is_ours(),
        }
    }

    /// Returns whether the value belongs to this process, and not to one that this process was forked from.
    pub(super) fn is_ours(&self) -> bool {
        match self {
            Self::Asking { process } => *process == process::this(),
            Self::Held(grant) => grant.locked.is_ours(),
        }
    }
}

/// A lock that this process holds.
pub(super) struct LockGrant {
    pub(super) locked: Locked,
    /// The file of the record, if that is another file.
    pub(super) recorded: Option<OpenFile>,
    pub(super) record: Arc<Record>,
    /// When the lock was granted.
    pub(super) since: Duration,
    /// Whether another program may have a duplicate of the locked descriptor.
    pub(super) is_shared: bool,
    /// The position of the owner in the queue when the lock was granted.
    pub(super) position: Position,
    /// Whether the process that released the previous grant notifies the new head waiter.
    pub(super) is_next_notified: bool,
    /// When the release was recorded.
    pub(super) recorded_end: Option<Instant>,
}

/// A file that is locked until this value is dropped.
pub(super) struct Locked {
    pub(super) file: Option<OpenFile>,
    /// A forked child has a copy of this value, but is not the holder.
    process: u32,
}

impl FileLockStore {
    pub(super) fn grants(&self) -> MutexGuard<'_, HashMap<Name, Slot>> {
        self.grants.lock()
    }

    /// Ends a grant; keeps its files open for the next one.
    pub(super) fn end(&self, name: &Name, grant: LockGrant) {
        /// The time after which a waiter that tries again pauses longer and longer between its tries.
        const LATE: Duration = Duration::from_micros(50);

        let LockGrant {
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
            self.base.directory.put(name, recorded);
        }
    }
}

/// Guards a record in a separate file against other processes. Any other record is guarded by the
/// kernel's lock itself.
pub(super) fn guard(recorded: Option<&OpenFile>) -> Result<Option<Guarded<'_>>, FileError> {
    recorded
        .filter(|_| !mutant!(RecordNotGuarded))
        .map(|file| Guarded::new(file.file(), file.path()))
        .transpose()
}

impl LockGrant {
    /// Extends the lease to the ttl of `claim` from `now` on.
    pub(super) fn extend(
        &mut self,
        directory: &Directory,
        claim: &Claim,
        now: Duration,
    ) -> Result<(), FileError> {
        let record = Record::clone(&self.record).lasting(claim.ttl, now, wall_clock());
        self.set(directory, &claim.name, record)
    }

    pub(super) fn set(
        &mut self,
        directory: &Directory,
        name: &Name,
        record: Record,
    ) -> Result<(), FileError> {
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
            Err(FileError::Corrupt { .. }) => return Ok(None),
            Err(err) => return Err(err),
        };
        match found {
            Some(found) if found.fence > self.record.fence => Ok(None),
            Some(found) if found.fence == self.record.fence && found.owner == record.owner => {
                let record = Arc::new(Record {
                    sequence: found.sequence + 1,
                    ..record.clone()
                });
                record_file::write(file, &record)?;
                Ok(Some(record))
            }
            // An older copy was written into the file.
            older => {
                let older = older.map_or(0, |older| older.sequence);
                let record = Record {
                    sequence: record.sequence.max(older + 1),
                    ..record.clone()
                };
                record_file::write_both(file, record).map(Some)
            }
        }
    }

    /// Records the release of the lock. A failure is ignored, because the kernel's lock is released in any
    /// case.
    pub(super) fn record_end(&mut self, directory: &Directory, name: &Name, now: Duration) {
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
    pub(super) fn remaining(&self, now: Duration) -> Option<Duration> {
        self.record
            .ttl
            .map(|_| self.record.ends.saturating_sub(now))
    }

    pub(super) fn is_expired(&self, now: Duration) -> bool {
        self.remaining(now).is_some_and(|left| left.is_zero())
    }
}

impl Locked {
    /// Creates a value for `file`, on which this process has just taken the kernel's lock.
    pub(super) fn new(file: OpenFile) -> Self {
        Self {
            process: file.process(),
            file: Some(file),
        }
    }

    /// Returns whether the file is still at its path.
    pub(super) fn is_current(&self) -> Result<bool, FileError> {
        self.file.as_ref().map_or(Ok(false), OpenFile::is_current)
    }

    /// Unlocks the file explicitly, because children may have it open; but not in a forked child, which
    /// shares the lock with the holder. Returns the file if it was unlocked.
    pub(super) fn unlock(&mut self) -> Option<OpenFile> {
        let file = self.file.take()?;
        // This can only fail for a bad descriptor. Closing the file unlocks it, too, at the latest when the
        // last process that has it open closes it.
        let unlocked = self.is_ours()
            && !mutant!(UnlockedByClosingAlone)
            && flock::unlock(file.inheritable()).is_ok();
        unlocked.then_some(file)
    }

    /// Returns whether this process holds the lock, and was not forked from the holder.
    pub(super) fn is_ours(&self) -> bool {
        self.process == process::this()
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        drop(self.unlock());
    }
}
