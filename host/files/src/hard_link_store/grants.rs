//! The grants of this process, so that a forked child does not use those of its parent.

use std::collections::{HashMap, HashSet};
use std::sync::PoisonError;
use std::time::Duration;

use verrou::{Claim, Clock, Owner};
use verrou_machine::System;
use verrou_machine::process::PerProcess;
use verrou_machine::sync::{Mutex, MutexGuard};

/// The grants of each process that uses a store.
pub(super) struct Grants(PerProcess<Mutex<Owners>>);

/// The owner tokens of a process.
#[derive(Default)]
struct Owners {
    /// Those of this process's grants, each with the time at which its lease has expired.
    own: HashMap<Owner, Option<Duration>>,
    /// Those of the processes that this one was forked from.
    inherited: HashSet<Owner>,
    /// Whether another thread was changing the parent's tokens during the fork, so that they are unknown.
    is_unknown: bool,
}

/// The number of grants from which on expired ones are looked for.
const MANY: usize = 64;

impl Grants {
    pub(super) fn new() -> Self {
        Self(PerProcess::new())
    }

    /// Records a grant of this process.
    pub(super) fn note(&self, claim: &Claim) {
        let now = System.now().since_start();
        let mut owners = self.owners();
        let owners = &mut *owners;
        if owners.own.len() >= MANY && owners.own.len().is_power_of_two() {
            // A renewal that takes an expired lease back records it again.
            owners.own.retain(|_, end| end.is_none_or(|end| now < end));
        }
        let end = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
        owners.own.insert(claim.owner, end);
    }

    /// Records another end of the lease of `claim`, unless the lease was detached, or comes from another process.
    pub(super) fn prolong(&self, claim: &Claim) {
        let is_own = self.owners().own.contains_key(&claim.owner);
        if is_own || claim.ephemeral {
            self.note(claim);
        }
    }

    /// Removes a grant of this process.
    pub(super) fn remove(&self, owner: Owner) {
        self.owners().own.remove(&owner);
    }

    /// Returns whether the grant with this owner token is one of a process that this one was forked from.
    pub(super) fn is_parents(&self, owner: Owner) -> bool {
        let owners = self.owners();
        let is_known = owners.own.contains_key(&owner);
        !is_known && (owners.is_unknown || owners.inherited.contains(&owner))
    }

    fn owners(&self) -> MutexGuard<'_, Owners> {
        let owners = self.0.get_or_init(|| {
            let Some(parents) = self.0.of_parent() else {
                return Mutex::default();
            };
            let Ok(parents) = parents.try_lock() else {
                return Mutex::new(Owners {
                    is_unknown: true,
                    ..Owners::default()
                });
            };
            let own = parents.own.keys();
            Mutex::new(Owners {
                own: HashMap::new(),
                inherited: own.chain(&parents.inherited).copied().collect(),
                is_unknown: parents.is_unknown,
            })
        });
        owners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
