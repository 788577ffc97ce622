//! Keeping a lease alive, as a value: what to do next, never the doing of it.

use core::mem;
use core::time::Duration;

use crate::claim::{Claim, Fence};
use crate::lease::{Lease, Loss};
use crate::store::{Renewed, StoreError};
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
/// | [`Renew`](RenewStep::Renew) | [`Store::renew`](crate::Store::renew) | [`heard`](Self::heard) with what the store said |
/// | [`Wait`](RenewStep::Wait) | wait this long, or end the keeping | |
/// | [`Released`](RenewStep::Released) | nothing: its owner needs the lock no more | |
/// | [`Lost`](RenewStep::Lost) | nothing: the lock is no longer held | |
///
/// A wait may end early, and may last longer than it should: what has become of the lease is
/// asked of the time given to `next`. To end the keeping, stop driving; the lease is
/// [`lease`](Self::lease).
///
/// # What it sees to
///
/// - The lease is renewed when a third of its ttl has passed, so that two renewals can fail before it
///   expires. A lease without an expiry is confirmed every ten seconds.
/// - A renewal never shortens the lease: one that was extended for longer is only confirmed.
/// - An error makes its state [`Unknown`](Health::Unknown). Only the clock, or the store's word,
///   makes that [`Lost`](Health::Lost).
/// - A lease whose time has passed, as after the machine was suspended, is [lost](Health::Lost),
///   unless its store [takes it back](Self::reviving). A lease is lost, too, when two grants in
///   succession arrive after the time they were granted for: the store is too slow for the ttl.
#[derive(Clone, Debug)]
pub struct Renew {
    ttl: Ttl,
    request: Claim,
    lease: Lease,
    revives: bool,
    due: Timestamp,
    asked: Option<Timestamp>,
    health: Health,
    /// Whether the last grant arrived after its own time had passed.
    was_late: bool,
    failure: Option<StoreError>,
}

/// What the driver of a [`Renew`] is to do next.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a driver has to know every step")]
pub enum RenewStep<'a> {
    /// Request the store to renew this claim, which was granted under this fence.
    Renew(&'a Claim, Option<Fence>),
    /// Wait this long.
    Wait(Duration),
    /// Stop: the owner has released the lock itself.
    Released,
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
    /// The lock is held, and has not been renewed yet.
    Held,
    /// The lock is held: the store has renewed it.
    Renewed,
    /// The lease has not expired, but the last renewal failed: it may not be recorded any more.
    Unknown(StoreError),
    /// The owner has released the lock. That is no loss.
    Released,
    /// It is not held any more.
    Lost(Loss),
}

impl Renew {
    /// Every lease without an end is confirmed this often.
    const CONFIRM: Duration = Duration::from_secs(10);

    /// Returns a machine that renews `lease` for `ttl` each time.
    ///
    /// The first renewal is due when a third of `ttl`, or half of what is left at `now`, has
    /// passed, whichever is sooner.
    pub fn new(lease: Lease, ttl: Ttl, now: Timestamp) -> Self {
        Self {
            ttl,
            request: lease.claim().clone(),
            due: Self::due(&lease, ttl, now),
            lease,
            revives: false,
            asked: None,
            health: Health::Held,
            was_late: false,
            failure: None,
        }
    }

    /// Makes the machine retry the renewal once after the lease has expired, before the lease is lost:
    /// for a store with `revives` among its [`Abilities`](crate::Abilities).
    #[must_use]
    pub fn reviving(self, revives: bool) -> Self {
        Self { revives, ..self }
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Timestamp) -> RenewStep<'_> {
        if let Some(loss) = self.lease.loss() {
            self.health = Health::Lost(loss);
        }
        match self.health {
            Health::Lost(loss) => return RenewStep::Lost(loss),
            Health::Released => return RenewStep::Released,
            _ => {}
        }
        let is_expired = self.lease.is_expired(now);
        if is_expired && !self.revives {
            self.expire();
            return RenewStep::Lost(Loss::Expired);
        }
        if self.asked.is_none() {
            if now < self.due && !is_expired {
                let until = self
                    .lease
                    .ends()
                    .map_or(self.due, |ends| ends.min(self.due));
                return RenewStep::Wait(until.saturating_since(now));
            }
            self.asked = Some(now);
            self.request.ttl = self.longest(now);
        }
        RenewStep::Renew(&self.request, self.lease.fence())
    }

    /// Records the store's reply to a renewal, received at `now`.
    pub fn heard(&mut self, now: Timestamp, reply: Result<Renewed, StoreError>) {
        let Some(sent) = self.asked.take() else {
            return;
        };
        let interval = Self::interval(self.ttl);
        match reply {
            Ok(Renewed::Granted) => {
                let from = mutant!(ExtensionCountedFromReply, now, sent);
                self.lease.extend(self.request.ttl, from);
                // Each renewal is followed by a wait, in which its driver can end the keeping.
                let rest = interval / 8;
                let rest = self
                    .lease
                    .remaining(now)
                    .map_or(rest, |left| rest.min(left / 2));
                self.due = sent.saturating_add(interval).max(now.saturating_add(rest));
                self.health = Health::Renewed;
                // Where it came too late, a store that takes leases back is asked again, once: it
                // could be late each time.
                let is_late = self.lease.is_expired(now);
                if is_late && (self.was_late || !self.revives) {
                    self.expire();
                }
                self.was_late = is_late;
            }
            Ok(Renewed::Released) => self.health = Health::Released,
            Ok(Renewed::Lost) if self.lease.is_expired(sent) => self.expire(),
            Ok(Renewed::Lost) => self.health = Health::Lost(Loss::Revoked),
            Err(err) => {
                self.due = now.saturating_add((interval / 8).max(Duration::from_millis(1)));
                self.health = Health::Unknown(err);
                if self.lease.is_expired(now) {
                    self.expire();
                }
            }
        }
    }

    /// Goes on with `lease`, which somebody else has extended, or let outlive its client, by `now`.
    pub fn adopt(&mut self, lease: Lease, now: Timestamp) {
        self.due = Self::due(&lease, self.ttl, now);
        self.lease = lease;
    }

    /// Records that the owner has released the lock.
    pub(crate) fn release(&mut self) {
        self.health = Health::Released;
    }

    /// Asks the store at once: something happened that the lease may not have outlived.
    pub fn suspect(&mut self) {
        self.due = Timestamp::default();
    }

    /// Returns the ttl of the renewal in flight, and the time at which it was sent.
    pub(crate) fn asks(&self) -> Option<(Ttl, Timestamp)> {
        Some((self.request.ttl, self.asked?))
    }

    /// Returns whether the lease has expired at `now`, but the store can take it back.
    pub(crate) fn is_late(&self, now: Timestamp) -> bool {
        let is_over = matches!(self.health, Health::Lost(_) | Health::Released);
        self.revives && !is_over && self.lease.is_expired(now)
    }

    /// Returns the store's error that prevented a renewal before the lease was [lost](Health::Lost) by
    /// expiry.
    pub fn failure(&self) -> Option<&StoreError> {
        self.failure.as_ref()
    }

    /// What was known of the lease when a step last said or heard something of it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// The lease as it stands.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Records that the lease was lost by expiry.
    fn expire(&mut self) {
        let before = mem::replace(&mut self.health, Health::Lost(Loss::Expired));
        if let Health::Unknown(why) = before {
            self.failure = Some(why);
        }
    }

    /// Returns the ttl to request in a renewal at `now`: the lock's ttl, or the remaining time if that
    /// is longer.
    fn longest(&self, now: Timestamp) -> Ttl {
        match (self.ttl.duration(), self.lease.remaining(now)) {
            (Some(ttl), Some(left)) => Ttl::new(ttl.max(left)).unwrap_or(self.ttl),
            _ => Ttl::NEVER,
        }
    }

    /// Returns the time of the first renewal of `lease`.
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
