//! A granted claim, when it runs out, and how it was lost.

use core::time::Duration;

use crate::claim::{Claim, Fence, Owner};
use crate::name::Name;
use crate::time::Timestamp;
use crate::ttl::Ttl;

/// A granted claim, as its holder has to count it.
///
/// Its time is counted from *before* the request left, so that it ends here no later than in the
/// store, whatever the way of request and reply took.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Lease {
    claim: Claim,
    fence: Option<Fence>,
    until: Option<Timestamp>,
    estimated: bool,
    lost: Option<Loss>,
}

impl Lease {
    /// What a store granted to the request for `claim` that left at `sent`.
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

    /// A lease that somebody else was granted, and that ends at about `until`.
    pub(crate) fn about(claim: Claim, fence: Option<Fence>, until: Option<Timestamp>) -> Self {
        Self {
            claim,
            fence,
            until,
            estimated: true,
            lost: None,
        }
    }

    /// Lets it last `ttl` from `sent`, when the granted request for that left.
    pub fn extend(&mut self, ttl: Ttl, sent: Timestamp) {
        self.until = ttl.duration().map(|ttl| sent.saturating_add(ttl));
        self.estimated = false;
    }

    /// Lets it end at `until`, by what the store granted.
    pub(crate) fn end_at(&mut self, until: Option<Timestamp>) {
        self.until = until;
        self.estimated = false;
    }

    /// Lets it last no longer than `ttl` from `sent`, when a request for that leaves: as long as its
    /// reply is not heard, it may end by that.
    pub(crate) fn doubt(&mut self, ttl: Ttl, sent: Timestamp) {
        if let Some(ttl) = ttl.duration() {
            let until = sent.saturating_add(ttl);
            self.until = Some(self.until.map_or(until, |before| before.min(until)));
        }
    }

    /// Notes that it was lost.
    pub(crate) fn end(&mut self, loss: Loss) {
        self.lost = Some(loss);
        self.estimated = false;
    }

    /// How it was lost, as far as was noted.
    pub(crate) fn loss(&self) -> Option<Loss> {
        self.lost
    }

    /// Notes that it outlives its client.
    pub(crate) fn detach(&mut self) {
        self.claim.ephemeral = false;
    }

    /// What was granted.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Which lock it is.
    pub fn name(&self) -> &Name {
        &self.claim.name
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.claim.owner
    }

    /// The grant's fencing token; `None` from a store that does not count.
    pub fn fence(&self) -> Option<Fence> {
        self.fence
    }

    /// When it runs out; `None` when it does not end by itself.
    pub fn ends(&self) -> Option<Timestamp> {
        self.until
    }

    /// Whether its time has passed at `now`, or whoever keeps it alive knows that it is lost. Its
    /// time has passed from the instant it ends.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.lost.is_some() || self.until.is_some_and(|until| until <= now)
    }

    /// Whether its time has certainly passed at `now`. Of a lease that was restored from text
    /// only the store can tell, for its end goes by wall clocks, and it may have been extended
    /// since.
    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        !self.estimated && self.is_expired(now)
    }

    /// How much of it is left at `now`, zero once its time has passed or it is known to be lost;
    /// `None` when it does not end by itself.
    pub fn remaining(&self, now: Timestamp) -> Option<Duration> {
        match self.lost {
            Some(_) => Some(Duration::ZERO),
            None => self.until.map(|until| until.saturating_since(now)),
        }
    }
}

/// How a lease was lost.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// Its time passed before it was extended; another may hold the lock.
    #[error("its time ran out before it was extended")]
    Expired,
    /// The store says that this owner no longer holds it: it was evicted, or taken over.
    #[error("the store no longer records it for this owner")]
    Revoked,
}
