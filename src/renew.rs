//! The auto-renewal state machine: it returns the next step, and performs none.

use core::mem;
use core::time::Duration;

use crate::claim::{Claim, Fence};
use crate::lease::{Lease, Loss};
use crate::store::{Renewed, StoreError};
use crate::time::Timestamp;
use crate::ttl::Ttl;

/// The minimum length of a watch for a loss; a driver prolongs one that ends sooner, so that a store that
/// notifies of losses all the time gets fewer requests.
pub(crate) const SHORTEST_WATCH: Duration = Duration::from_millis(1);

/// The auto-renewal of one lease, until it is ended or the lease is lost.
///
/// # Driving it
///
/// A driver calls [`next`](Self::next), performs the step that it returns, passes the result back, and
/// repeats this:
///
/// | step | perform | then call |
/// |---|---|---|
/// | [`Renew`](RenewStep::Renew) | [`Store::renew`](crate::Store::renew) | [`received`](Self::received) with the store's reply |
/// | [`Wait`](RenewStep::Wait) | wait this long, or end the auto-renewal | |
/// | [`Released`](RenewStep::Released) | nothing: the owner has released the lock | |
/// | [`Lost`](RenewStep::Lost) | nothing: the lock is no longer held | |
///
/// A wait may end early, and may last too long: the state of the lease is computed from the time that is
/// passed to `next`. To end the auto-renewal, stop calling it; [`lease`](Self::lease) returns the lease.
///
/// # Guarantees
///
/// - The lease is renewed when a third of its ttl has passed, so that two renewals can fail before it
///   expires. A lease without an expiry is confirmed every ten seconds.
/// - A renewal never shortens the lease: one that was extended for longer is only confirmed.
/// - An error makes the lease's state [`Unknown`](Health::Unknown). Only its expiry, or the store's
///   reply, makes that [`Lost`](Health::Lost).
/// - A lease that has expired, as after a suspension of the machine, is [lost](Health::Lost),
///   unless its store [takes it back](Self::reviving). A lease is lost, too, when two grants in
///   succession arrive after their own expiry: the store is too slow for the ttl.
#[derive(Clone, Debug)]
pub struct Renew {
    ttl: Ttl,
    request: Claim,
    lease: Lease,
    revives: bool,
    due: Timestamp,
    sent: Option<Timestamp>,
    health: Health,
    /// Whether the last grant arrived after its own expiry.
    was_late: bool,
    failure: Option<StoreError>,
}

/// The next step for the driver of a [`Renew`].
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a driver has to handle every step")]
pub enum RenewStep<'a> {
    /// Request the store to renew this claim, which was granted under this fencing token.
    Renew(&'a Claim, Option<Fence>),
    /// Wait this long.
    Wait(Duration),
    /// Stop: the owner has released the lock itself.
    Released,
    /// Stop: the lock is lost.
    Lost(Loss),
}

/// The state of a lease under auto-renewal.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a caller has to handle every state"
)]
pub enum Health {
    /// The lock is held, and has not been renewed yet.
    Held,
    /// The lock is held: the store has renewed it.
    Renewed,
    /// The lease has not expired, but the last renewal failed: the store may no longer record it.
    Unknown(StoreError),
    /// The owner has released the lock. That is not a loss.
    Released,
    /// The lock is no longer held.
    Lost(Loss),
}

impl Renew {
    /// The interval at which a lease without an expiry is confirmed.
    const CONFIRM: Duration = Duration::from_secs(10);

    /// Returns a machine that renews `lease` for `ttl` each time.
    ///
    /// The first renewal is due when a third of `ttl`, or half of the remaining time at `now`, has
    /// passed, whichever is sooner.
    pub fn new(lease: Lease, ttl: Ttl, now: Timestamp) -> Self {
        Self {
            ttl,
            request: lease.claim().clone(),
            due: Self::due(&lease, ttl, now),
            lease,
            revives: false,
            sent: None,
            health: Health::Held,
            was_late: false,
            failure: None,
        }
    }

    /// Makes the machine retry the renewal once after the lease has expired, before the lease is lost:
    /// for a store with `revives` among its [`Capabilities`](crate::Capabilities).
    #[must_use]
    pub fn reviving(self, revives: bool) -> Self {
        Self { revives, ..self }
    }

    /// Returns the step to perform at `now`.
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
        if self.sent.is_none() {
            if now < self.due && !is_expired {
                let until = self
                    .lease
                    .ends()
                    .map_or(self.due, |ends| ends.min(self.due));
                return RenewStep::Wait(until.saturating_since(now));
            }
            self.sent = Some(now);
            self.request.ttl = self.longest(now);
        }
        RenewStep::Renew(&self.request, self.lease.fence())
    }

    /// Records the store's reply to a renewal, received at `now`.
    pub fn received(&mut self, now: Timestamp, reply: Result<Renewed, StoreError>) {
        let Some(sent) = self.sent.take() else {
            return;
        };
        let interval = Self::interval(self.ttl);
        match reply {
            Ok(Renewed::Granted) => {
                event!(
                    DEBUG,
                    self.request.name,
                    fence = self.lease.fence().map(Fence::get),
                    ttl_ms = self.request.ttl.duration().map(|ttl| ttl.as_millis()),
                    "renewed"
                );
                let from = mutant!(ExtensionCountedFromReply, now, sent);
                self.lease.extend(self.request.ttl, from);
                // Each renewal is followed by a wait, in which the driver can end the auto-renewal.
                let rest = interval / 8;
                let rest = self
                    .lease
                    .remaining(now)
                    .map_or(rest, |left| rest.min(left / 2));
                self.due = sent.saturating_add(interval).max(now.saturating_add(rest));
                self.health = Health::Renewed;
                // After a late grant, a store that takes leases back gets one more request: it could
                // be late each time.
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
                event!(WARN, self.request.name, error = %err, "renewal failed");
                self.due = now.saturating_add((interval / 8).max(Duration::from_millis(1)));
                self.health = Health::Unknown(err);
                if self.lease.is_expired(now) {
                    self.expire();
                }
            }
        }
    }

    /// Continues at `now` with `lease`, which other code has extended or detached.
    pub fn adopt(&mut self, lease: Lease, now: Timestamp) {
        self.due = Self::due(&lease, self.ttl, now);
        self.lease = lease;
    }

    /// Records that the owner has released the lock.
    pub(crate) fn release(&mut self) {
        self.health = Health::Released;
    }

    /// Makes a renewal due at once, after an event that may have ended the lease.
    pub fn suspect(&mut self) {
        self.due = Timestamp::default();
    }

    /// Returns the ttl of the renewal in flight, and the time at which it was sent.
    pub(crate) fn in_flight(&self) -> Option<(Ttl, Timestamp)> {
        Some((self.request.ttl, self.sent?))
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

    /// Returns the state of the lease after the last call that changed it.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Returns the lease in its current state.
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
