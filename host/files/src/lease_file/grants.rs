//! The grants of this process, each of which may keep a file open.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use verrou::{Claim, Holder, Name, Owner, Ttl};
use verrou_machine::process;
use verrou_machine::sync::MutexGuard;
use verrou_machine::sync::atomic::Ordering;

use super::LeaseFileStore;
use crate::flock::Guarded;
use crate::liveness;
use crate::open_files::OpenFile;
use crate::record::Record;
use crate::record_file::{self, View};

/// The number of grants of this process, each with an open file, that are kept without looking for
/// expired ones among them.
pub(super) const GRANTS: usize = 64;

/// A grant that was acquired through this value.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they are independent of each other"
)]
pub(super) struct LeaseGrant {
    pub(super) owner: Owner,
    pub(super) fence: u64,
    /// The file whose open file description has the grant's byte locked.
    pub(super) lifeline: Option<OpenFile>,
    /// Whether an operation currently uses that file.
    pub(super) is_lent: bool,
    /// When the lease expires, unless it was extended since.
    pub(super) ends: Option<Duration>,
    /// Whether the lease is auto-renewed. It may then be renewed even after it has expired, as after a
    /// suspension of the machine.
    pub(super) is_renewed: bool,
    /// The time until which the grant is kept although its lease was seen to have expired, because its first
    /// renewal may be due.
    pub(super) spared_until: Option<Duration>,
    /// Whether another program may have a duplicate of that descriptor.
    pub(super) is_shared: bool,
    /// The previous holder, if its lease had expired while its processes still lived.
    pub(super) taken_over: Option<Holder>,
    /// A forked child has a copy of this value, but is not the holder.
    pub(super) process: u32,
    /// Whether the owner had a ticket when the lease was granted.
    pub(super) has_waited: bool,
    /// When the lease was granted.
    pub(super) since: Duration,
}

/// Which of this process's grants that have expired are ended.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Expired {
    /// Grants that were not renewed in the ttl after they were first seen to have expired. A process that
    /// was suspended has that time for the first renewal.
    Abandoned,
    /// Grants that were never renewed.
    Unrenewed,
    All,
}

impl LeaseFileStore {
    pub(super) fn grants(&self) -> MutexGuard<'_, HashMap<Name, LeaseGrant>> {
        self.grants.lock()
    }

    /// Lends the file of a grant of this process, for an operation that cannot open another descriptor.
    pub(super) fn lend(&self, name: &Name) -> Option<OpenFile> {
        let mut grants = self.grants();
        let grant = grants.get_mut(name).filter(|grant| grant.is_ours())?;
        let lent = grant.lifeline.take()?;
        grant.is_lent = true;
        Some(lent)
    }

    /// Puts back the file that [`lend`](Self::lend) returned.
    pub(super) fn take_back(&self, name: &Name, mut lent: OpenFile) {
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
    pub(super) fn end_expired(&self, which: Expired) -> bool {
        let now = self.base.now();
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
                let claim = Claim::new(name, grant.owner, Ttl::NEVER).ephemeral(true);
                drop(grant);
                self.base.queue.released(&self.base.directory, &claim);
            } else if let Entry::Vacant(place) = self.grants().entry(name) {
                place.insert(grant);
            }
        }
        has_ended
    }

    /// Ends expired grants whenever there are twice as many grants as the last such search left, apart from
    /// spared grants.
    pub(super) fn keep_few_expired(&self) {
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
    fn has_ended(
        &self,
        name: &Name,
        grant: &mut LeaseGrant,
        which: Expired,
        now: Duration,
    ) -> bool {
        let Some(file) = &grant.lifeline else {
            return true;
        };
        let Ok(Some(_guarded)) = Guarded::try_new(file.file()) else {
            return false;
        };
        let Ok(View { record, .. }) = self.base.directory.read(file, name) else {
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
            Some(record) => record_file::write(file, &Arc::new(record.ended(now))).is_ok(),
            None => true,
        }
    }

    /// Returns whether this process keeps the lease in `record` alive.
    pub(super) fn keeps_alive(&self, name: &Name, record: &Record) -> bool {
        self.grants().get(name).is_some_and(|grant| {
            grant.owner == record.owner && grant.fence == record.fence && grant.lives()
        })
    }

    /// Drops this process's grant of `claim`. `is_recorded` states whether the file records its release.
    pub(super) fn drop_grant(&self, claim: &Claim, is_recorded: bool) {
        let mut grants = self.grants();
        let ended = match grants.entry(claim.name.clone()) {
            Entry::Occupied(grant) if grant.get().owner == claim.owner => grant.remove(),
            _ => return,
        };
        drop(grants);
        self.end(&claim.name, ended, is_recorded);
    }

    /// Ends a grant; keeps its file open for the next one.
    pub(super) fn end(&self, name: &Name, mut grant: LeaseGrant, is_recorded: bool) {
        let lifeline = if is_recorded && !grant.is_shared && grant.is_ours() {
            grant.lifeline.take()
        } else {
            grant.unlock().filter(|_| !grant.is_shared)
        };
        if let Some(lifeline) = lifeline {
            self.base.directory.put(name, lifeline);
        }
    }
}

impl LeaseGrant {
    pub(super) fn of(&self, owner: Owner) -> Option<&Self> {
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
    pub(super) fn lives(&self) -> bool {
        self.lifeline.is_some() || self.is_lent
    }

    fn is_ours(&self) -> bool {
        self.process == process::this()
    }
}

impl Drop for LeaseGrant {
    fn drop(&mut self) {
        drop(self.unlock());
    }
}
