//! The file of one name while it is locked: the state of its lease, and the changes of its record.

use std::sync::Arc;
use std::time::Duration;

use verrou::{Acquired, Claim, Fence, Name, Renewed};
use verrou_machine::Zombies;

use super::LeaseFileStore;
use super::grants::LeaseGrant;
use crate::error::FileError;
use crate::host_identity::Machine;
use crate::open_files::OpenFile;
use crate::queue::Position;
use crate::record::{self, Record};
use crate::record_file::{self, View, wall_clock};
use crate::reply::{granted, holder};
use crate::{liveness, os};

/// The current state of the lease in a record.
pub(super) enum RecordState {
    Free,
    Held {
        remaining: Option<Duration>,
    },
    /// The lease has expired, but processes of its holder live.
    Zombie,
}

/// The file of one name, while no other process reads or writes it.
pub(super) struct LeaseFile<'a> {
    pub(super) store: &'a LeaseFileStore,
    pub(super) file: &'a OpenFile,
    pub(super) name: &'a Name,
}

impl LeaseFile<'_> {
    /// Returns whether the lease is held by, or reserved for, an owner other than that of `claim`, as
    /// far as a reading without the kernel's lock shows. An owner for which this returns true need not
    /// lock the file.
    pub(super) fn is_held_or_reserved_for_other(&self, claim: &Claim) -> Result<bool, FileError> {
        let queue = &self.store.base.queue;
        match queue.is_known_head(claim) {
            None if !self.file.is_contended() => return Ok(false),
            Some(true) => return Ok(false),
            _ => {}
        }
        // The file cannot be read while it is being written.
        let Ok(view) = self.store.base.directory.read(self.file, self.name) else {
            return Ok(false);
        };
        let reservation = queue.position(claim, self.file, &view)?.reservation();
        let Some(record) = &view.record else {
            return Ok(false);
        };
        Ok(!reservation.is_zero()
            && record.owner != claim.owner
            && (matches!(self.state(record), Ok(RecordState::Held { .. }))
                || record.ended_within(reservation, self.now()))
            && self.file.is_current()?)
    }

    /// Returns whether the lease in `record` is that of `claim`, and this process may act for its
    /// holder.
    pub(super) fn is_of(&self, record: &Record, claim: &Claim) -> bool {
        record.owner == claim.owner && !self.store.is_parents(self.name, record)
    }

    pub(super) fn state(&self, record: &Record) -> Result<RecordState, FileError> {
        if !record.held {
            return Ok(RecordState::Free);
        }
        if record.ephemeral && !self.store.keeps_alive(self.name, record) {
            let is_alive = mutant!(
                LifeToldByProcessNumber,
                std::fs::exists(format!("/proc/{}", record.process.id)),
                liveness::is_held(self.file.file(), record.fence)
            );
            let failed = FileError::io("check whether the holder lives", self.file.path());
            if !is_alive.map_err(failed)? {
                return Ok(RecordState::Free);
            }
        }
        self.state_of_living(record)
    }

    /// Returns the [`state`](Self::state) of a record with `held` set, whose processes live if it is
    /// ephemeral.
    pub(super) fn state_of_living(&self, record: &Record) -> Result<RecordState, FileError> {
        let machine = Machine::this();
        if !machine.runs_since(record.boot) {
            return match record.ephemeral {
                // A live process holds its lease, whatever its record contains.
                true => Ok(RecordState::Held { remaining: None }),
                false if machine.is_containers() => Err(FileError::ForeignBoot {
                    name: self.name.clone(),
                }),
                false => Ok(RecordState::Free),
            };
        }
        if record.ttl.is_none() {
            return Ok(RecordState::Held { remaining: None });
        }
        if record.time_namespace != machine.time_namespace && !mutant!(TimeNamespaceIgnored) {
            if record.ephemeral {
                return Ok(RecordState::Held { remaining: None });
            }
            return Err(FileError::ForeignClock {
                name: self.name.clone(),
            });
        }
        let now = self.now();
        match record.ends.checked_sub(now).filter(|left| !left.is_zero()) {
            Some(left) => Ok(RecordState::Held {
                remaining: Some(left),
            }),
            None if record.ephemeral => Ok(RecordState::Zombie),
            None => Ok(RecordState::Free),
        }
    }

    /// Records an event if `claim` was granted although `before` records a grant of another owner.
    fn record_take_over(&self, claim: &Claim, before: &View) {
        let before = before.record.as_ref();
        if before.is_some_and(|record| record.held && record.owner != claim.owner) {
            #[cfg(feature = "tracing")]
            tracing::info!(
                target: "verrou",
                name = %verrou::Printable(self.name.as_str()),
                before = before.map(|record| record.fence),
                "taken over from a holder that has ended, or whose lease has expired"
            );
        }
    }

    /// Acquires the lease for `claim`; returns `None`, without any change, if the file was replaced
    /// meanwhile.
    pub(super) fn acquire(
        &self,
        claim: &Claim,
        before: &View,
    ) -> Result<Option<Acquired>, FileError> {
        let mut taken_over = None;
        let queue = &self.store.base.queue;
        if let Some(record) = &before.record {
            match self.state(record)? {
                RecordState::Held { .. }
                    if self.is_of(record, claim) && !mutant!(AskingAgainRefused) =>
                {
                    self.extend(record, claim)?;
                    return Ok(Some(granted(record)));
                }
                // Only the head waiter tries again when the lease expires.
                RecordState::Held { remaining } => {
                    let position = queue.position(claim, self.file, before)?;
                    let is_behind = position.has_ticket() && !position.reservation().is_zero();
                    let remaining = remaining.filter(|_| !is_behind);
                    return Ok(Some(Acquired::Busy { remaining }));
                }
                // An earlier grant to the same request, which received it after the lease had expired.
                RecordState::Zombie if self.is_of(record, claim) => {}
                RecordState::Zombie if self.store.zombies == Zombies::Wait => {
                    return Ok(Some(Acquired::BUSY));
                }
                RecordState::Zombie => taken_over = Some(holder(record, Some(Duration::ZERO))),
                RecordState::Free => {}
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
                return Ok(Some(Acquired::BUSY));
            }
            if record.ended_within(reservation, now) {
                return Ok(Some(Acquired::BUSY));
            }
        }
        let directory = &self.store.base.directory;
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
        record_file::write_grant(self.file, record, before)?;
        let process = self.file.process();
        let grant = LeaseGrant {
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
        self.record_take_over(claim, before);
        let ended = self.store.grants().insert(self.name.clone(), grant);
        if let Some(ended) = ended {
            // An earlier grant of this name that this process did not release.
            self.store.end(self.name, ended, false);
        }
        Ok(Some(Acquired::Granted {
            fence: Fence::new(fence),
        }))
    }

    /// Opens the file again, because this description is used for other operations, and locks the
    /// grant's byte. Returns `None` if the file was replaced meanwhile.
    fn lifeline(&self, fence: u64) -> Result<Option<OpenFile>, FileError> {
        let directory = &self.store.base.directory;
        let Some(mut lifeline) = directory.take_another(self.name, self.file)? else {
            return Ok(None);
        };
        let held = liveness::hold(&mut lifeline, fence);
        held.map_err(FileError::io("lock a byte of this file", self.file.path()))?;
        Ok(Some(lifeline))
    }

    /// Renews the lease of `claim`, granted under `fence`, if `record` is still its record, even if it
    /// has expired.
    pub(super) fn renew(
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
            RecordState::Held { .. } | RecordState::Zombie => true,
            RecordState::Free => Self::is_merely_expired(record),
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
    pub(super) fn is_merely_expired(record: &Record) -> bool {
        record.held && !record.ephemeral && Machine::this().runs_since(record.boot)
    }

    /// Records that the owner of the grant `fence` has released it through another process than the one
    /// that keeps it alive.
    pub(super) fn note_release(&self, fence: u64) {
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
    pub(super) fn may_outlive_its_process(&self) -> Result<(), FileError> {
        if Machine::this().is_containers() {
            return Err(FileError::ContainersBoot {
                name: self.name.clone(),
            });
        }
        Ok(())
    }

    /// Extends the lease in `record` to the ttl of `claim` from now on.
    pub(super) fn extend(&self, record: &Record, claim: &Claim) -> Result<(), FileError> {
        self.write(record.clone().lasting(claim.ttl, self.now(), wall_clock()))
    }

    pub(super) fn write(&self, record: Record) -> Result<(), FileError> {
        record_file::write(self.file, &Arc::new(record))
    }

    /// Records the end of the lease in `record`. `notifies` states whether this process notifies the second
    /// waiter.
    pub(super) fn free(&self, record: &Record, notifies: bool) -> Result<(), FileError> {
        self.write(Record {
            notifies,
            ..record.ended(self.now())
        })
    }

    fn now(&self) -> Duration {
        self.store.now()
    }
}
