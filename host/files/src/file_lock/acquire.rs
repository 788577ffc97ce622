//! The acquisition of the kernel's lock for a claim, and the record of the grant.

use std::sync::Arc;
use std::time::Duration;

use verrou::Claim;

use super::FileLockStore;
use super::grants::{LockGrant, Locked, guard};
use crate::error::FileError;
use crate::open_files::OpenFile;
use crate::queue::Position;
use crate::record::Record;
use crate::{flock, record_file};

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

impl FileLockStore {
    /// Takes the kernel's lock for `claim`, and records the grant. Returns `None` if the lock is held,
    /// or reserved for another waiter.
    pub(super) fn take(&self, claim: &Claim) -> Result<Option<LockGrant>, FileError> {
        let name = &claim.name;
        loop {
            let recorded = match &self.exact {
                Some(_) => Some(self.base.directory.take_or_create(name)?),
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
                    self.base.directory.put(name, recorded);
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
                    return Ok(Some(LockGrant {
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
                        self.base.directory.put(name, recorded);
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
        let before = self.base.directory.read(file, &claim.name)?;
        let position = self.base.queue.position(claim, file, &before)?;
        file.set_contended(position != Position::NoWaiters);
        let (reservation, now) = (position.reservation(), self.now());
        if !reservation.is_zero()
            && let Some(record) = &before.record
            && (record.held || record.ended_within(reservation, now))
        {
            if record.held {
                // The holder could not record its release, or saw no waiter.
                record_file::write(file, &Arc::new(record.ended(now)))?;
            }
            return Ok(GrantResult::Kept);
        }
        let served = position.served(&before);
        let new = self
            .base
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
            record: record_file::write_grant(file, record, &before)?,
            since: now,
            position,
            is_next_notified: before.record.is_some_and(|record| record.notifies),
        })
    }

    /// Returns whether the lock is free, but reserved for another waiter than the owner of `claim`. By trying
    /// the kernel's lock, this owner would keep that waiter from taking it.
    fn is_kept_for_another(&self, claim: &Claim, file: &OpenFile) -> Result<bool, FileError> {
        match self.base.queue.is_known_head(claim) {
            None if !file.is_contended() => return Ok(false),
            Some(true) => return Ok(false),
            _ => {}
        }
        // The file cannot be read while it is being written.
        let Ok(view) = self.base.directory.read(file, &claim.name) else {
            return Ok(false);
        };
        let position = self.base.queue.position(claim, file, &view)?;
        let ended = view.record.filter(|record| !record.held);
        Ok(ended.is_some_and(|record| record.ended_within(position.reservation(), self.now())))
    }
}
