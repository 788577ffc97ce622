//! Leases, their expiry and their losses.

use core::time::Duration;

use crate::claim::{Claim, Fence, Owner};
use crate::name::Name;
use crate::time::Timestamp;
use crate::ttl::Ttl;

/// A granted claim, from its holder's point of view.
///
/// Its time is counted from *before* the request was sent, so that it expires here no later than in the
/// store, however long the request and the reply took.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Lease {
    claim: Claim,
    fence: Option<Fence>,
    until: Option<Timestamp>,
    estimated: bool,
    lost: Option<Loss>,
}

impl Lease {
    /// Returns the lease that a store granted in reply to the request for `claim` sent at `sent`.
    pub fn granted(claim: Claim, fence: Option<Fence>, sent: Timestamp) -> Self {
        let until = claim.ttl.duration().map(|ttl| sent.saturating_add(ttl));
        Self {
            claim,
            fence,
            until,
            estimated: false,
            lost: None,
        }
    }

    /// Returns a lease that was granted to another process, and that expires at about `until`.
    pub(crate) fn restored(claim: Claim, fence: Option<Fence>, until: Option<Timestamp>) -> Self {
        Self {
            claim,
            fence,
            until,
            estimated: true,
            lost: None,
        }
    }

    /// Extends the lease to `ttl` from `sent`, the time at which the granted request was sent.
    pub fn extend(&mut self, ttl: Ttl, sent: Timestamp) {
        self.until = ttl.duration().map(|ttl| sent.saturating_add(ttl));
        self.estimated = false;
    }

    /// Sets the expiry to `until`, which the store granted.
    pub(crate) fn set_expiry(&mut self, until: Option<Timestamp>) {
        self.until = until;
        self.estimated = false;
    }

    /// Limits the lease to `ttl` from `sent`, the time at which an extension is requested: until its
    /// reply arrives, the lease may have either length.
    pub(crate) fn limit(&mut self, ttl: Ttl, sent: Timestamp) {
        if let Some(ttl) = ttl.duration() {
            let until = sent.saturating_add(ttl);
            self.until = Some(self.until.map_or(until, |before| before.min(until)));
        }
    }

    /// Records that the lease was lost.
    pub(crate) fn record_loss(&mut self, loss: Loss) {
        self.lost = Some(loss);
        self.estimated = false;
    }

    /// Returns how the lease was lost, if a loss was recorded.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lost
    }

    /// Records that the lease outlives its client.
    pub(crate) fn detach(&mut self) {
        self.claim.ephemeral = false;
    }

    /// Returns the claim that was granted.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns the lock's name.
    pub fn name(&self) -> &Name {
        &self.claim.name
    }

    /// Returns the owner token.
    pub fn owner(&self) -> Owner {
        self.claim.owner
    }

    /// Returns the grant's fencing token; `None` from a store that does not count grants.
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }

    /// Returns the time at which the lease expires; `None` when it does not end by itself.
    pub fn ends(&self) -> Option<Timestamp> {
        self.until
    }

    /// Returns whether the lease has expired at `now`, or its auto-renewal has recorded a loss. It is
    /// expired from the instant its ttl has passed.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.lost.is_some() || self.until.is_some_and(|until| until <= now)
    }

    /// Returns whether the lease has certainly expired at `now`. For a lease that was restored from text
    /// only the store can determine that: its expiry was computed from wall clocks, and it may have been
    /// extended since.
    pub(crate) fn is_certainly_expired(&self, now: Timestamp) -> bool {
        !self.estimated && self.is_expired(now)
    }

    /// Returns the remaining time at `now`, zero once the lease has expired or its loss was recorded;
    /// `None` when it does not end by itself.
    pub fn remaining(&self, now: Timestamp) -> Option<Duration> {
        match self.lost {
            Some(_) => Some(Duration::ZERO),
            None => self.until.map(|until| until.saturating_since(now)),
        }
    }
}

/// The way in which a lease was lost.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The lease expired before it was extended; another owner may hold the lock.
    #[error("its lease expired before it was extended")]
    Expired,
    /// The store no longer records this owner: the lock was force-released, or taken over.
    #[error("the store no longer records it for this owner")]
    Revoked,
}
