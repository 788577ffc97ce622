//! Keeping a lease alive, as a value: what to do next, never the doing of it.

use core::time::Duration;

use crate::claim::Claim;
use crate::lease::{Lease, Loss};
use crate::store::{Reply, StoreError};
use crate::time::Timestamp;
use crate::ttl::Ttl;

/// The keeping alive of one lease, until it is given up or lost.
///
/// # Driving it
///
/// Ask [`next`](Self::next) what to do, do it, say how it went, and ask again:
///
/// | step | do | then |
/// |---|---|---|
/// | [`Extend`](RenewStep::Extend) | [`Store::extend`](crate::Store::extend) | [`heard`](Self::heard) with what the store said |
/// | [`Wait`](RenewStep::Wait) | wait this long, or end the keeping | |
/// | [`Lost`](RenewStep::Lost) | nothing: the lock is no longer held | |
///
/// A wait may end early, and may last longer than it should: what has become of the lease is
/// asked of the time given to `next`. To end the keeping, stop driving; the lease is
/// [`lease`](Self::lease).
///
/// # What it sees to
///
/// - The lease is extended when a third of its ttl has passed, so that two extensions can fail
///   before it runs out. One that does not end by itself is confirmed every ten seconds.
/// - An extension may set an end that is sooner: as long as its reply is not heard, the lease
///   counts as ending by the sooner of both.
/// - An error makes its state [`Unknown`](Health::Unknown). Only the clock, or the store's word,
///   makes that [`Lost`](Health::Lost).
#[derive(Clone, Debug)]
pub struct Renew {
    request: Claim,
    lease: Lease,
    due: Timestamp,
    asked: Option<Timestamp>,
    health: Health,
}

/// What the driver of a [`Renew`] is to do next.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a driver has to know every step")]
pub enum RenewStep<'a> {
    /// Ask the store to extend this claim.
    Extend(&'a Claim),
    /// Wait this long.
    Wait(Duration),
    /// The lock is lost.
    Lost(Loss),
}

/// What is known of a lease that is being kept.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever keeps a lease has to know every state"
)]
pub enum Health {
    /// It is held, and has not been extended yet.
    Held,
    /// It is held: the store has extended it.
    Renewed,
    /// Its time has not passed, but the last extension failed: it may not be recorded any more.
    Unknown(StoreError),
    /// It is not held any more.
    Lost(Loss),
}

impl Renew {
    /// Every lease without an end is confirmed this often.
    const CONFIRM: Duration = Duration::from_secs(10);

    /// Keeps `lease`, extending it by `ttl` each time.
    ///
    /// The first extension is due when a third of `ttl`, or half of what is left at `now`, has
    /// passed, whichever is sooner.
    pub fn new(lease: Lease, ttl: Ttl, now: Timestamp) -> Self {
        Self {
            request: Claim {
                ttl,
                ..lease.claim().clone()
            },
            due: Self::due(&lease, ttl, now),
            lease,
            asked: None,
            health: Health::Held,
        }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Timestamp) -> RenewStep<'_> {
        if let Health::Lost(loss) = self.health {
            return RenewStep::Lost(loss);
        }
        if self.lease.is_expired(now) {
            self.health = Health::Lost(Loss::Expired);
            return RenewStep::Lost(Loss::Expired);
        }
        if self.asked.is_none() {
            if now < self.due {
                let until = self
                    .lease
                    .ends()
                    .map_or(self.due, |ends| ends.min(self.due));
                return RenewStep::Wait(until.saturating_since(now));
            }
            self.asked = Some(now);
            self.lease.doubt(self.request.ttl, now);
        }
        RenewStep::Extend(&self.request)
    }

    /// What the store said to an extension, heard at `now`.
    pub fn heard(&mut self, now: Timestamp, reply: Result<Reply, StoreError>) {
        let Some(sent) = self.asked.take() else {
            return;
        };
        let interval = Self::interval(self.request.ttl);
        match reply {
            Ok(Reply::Granted { .. }) => {
                let from = mutant!(ExtensionCountedFromReply, now, sent);
                self.lease.extend(self.request.ttl, from);
                self.due = sent.saturating_add(interval);
                self.health = Health::Renewed;
            }
            Ok(Reply::Refused { .. }) => {
                self.health = Health::Lost(Loss::Revoked);
            }
            Err(err) => {
                self.due = now.saturating_add((interval / 8).max(Duration::from_millis(1)));
                self.health = Health::Unknown(err);
            }
        }
        if self.lease.is_expired(now) && !matches!(self.health, Health::Lost(_)) {
            self.health = Health::Lost(Loss::Expired);
        }
    }

    /// Goes on with `lease`, which somebody else has extended, or let outlive its client, by `now`.
    pub fn adopt(&mut self, lease: Lease, now: Timestamp) {
        self.due = Self::due(&lease, self.request.ttl, now);
        self.lease = lease;
    }

    /// Asks the store at once: something happened that the lease may not have outlived.
    pub fn suspect(&mut self) {
        self.due = Timestamp::default();
    }

    /// For how long the store is being asked to extend the lease, and when that request left.
    pub(crate) fn asks(&self) -> Option<(Ttl, Timestamp)> {
        Some((self.request.ttl, self.asked?))
    }

    /// What was known of the lease when a step last said or heard something of it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The lease as it stands.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// When to extend `lease` for the first time.
    fn due(lease: &Lease, ttl: Ttl, now: Timestamp) -> Timestamp {
        let mut first = Self::interval(ttl);
        if let Some(left) = lease.remaining(now) {
            first = first.min(left / 2);
        }
        now.saturating_add(first)
    }

    fn interval(ttl: Ttl) -> Duration {
        ttl.duration()
            .map_or(Self::CONFIRM, |ttl| ttl / mutant!(RenewedTooLate, 1, 3))
    }
}
