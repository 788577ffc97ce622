//! The acquire state machine: it returns the next step, and performs none.

use core::fmt;
use core::time::Duration;

use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::lease::{Lease, Loss};
use crate::retry::Retry;
use crate::store::{Acquired, StoreError};
use crate::time::Timestamp;

/// One acquire request, from the first attempt to the lease or the error.
///
/// # Driving it
///
/// A driver calls [`next`](Self::next), performs the step that it returns, passes the result back, and
/// repeats this:
///
/// | step | perform | then call |
/// |---|---|---|
/// | [`Acquire`](AcquireStep::Acquire) | [`Store::acquire`](crate::Store::acquire) | [`received`](Self::received) with the store's reply |
/// | [`Release`](AcquireStep::Release) | [`Store::release`](crate::Store::release) | [`released`](Self::released) |
/// | [`Wait`](AcquireStep::Wait) | wait by the store's [`waiter`](crate::Store::waiter), or sleep this long; a waiter that is notified may wait for [`longest_wait`](Self::longest_wait) | [`waited`](Self::waited) |
/// | [`Sleep`](AcquireStep::Sleep) | sleep this long | [`waited`](Self::waited) |
/// | [`Done`](AcquireStep::Done) | nothing: this is the end | |
///
/// `next` returns the same step until the result of that step is passed back. Each call takes the
/// current time, by one clock; a wait may end early. A request without a reply is an error for
/// [`received`](Self::received): the machine then retries with the same owner, or releases the grant that it
/// may have.
///
/// [`blocking::acquire`](crate::blocking::acquire) is such a driver in 20 lines.
///
/// # Guarantees
///
/// - The lease is counted from before the request was sent.
/// - A grant that has expired when its reply arrives is not used.
/// - A request that ends without a lease leaves no grant behind: after an error, or a late grant, the
///   last step is a release.
/// - The last attempt is made at the deadline of the [`Retry`] policy.
/// - A grant whose fencing token is not greater than that of an earlier grant is released.
/// - An attempt that is made because a wait ended early counts toward no limit. A store whose waits
///   repeatedly end at once gets at most one request per millisecond.
#[derive(Clone, Debug)]
pub struct Acquire {
    claim: Claim,
    retry: Retry,
    random: u64,
    began: Timestamp,
    attempts: u32,
    extra: Extra,
    outcome_unknown: bool,
    seen: Option<Fence>,
    state: AcquireState,
}

/// The next step for the driver of an [`Acquire`].
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a driver has to handle every step")]
pub enum AcquireStep<'a> {
    /// Request the store to record this claim.
    Acquire(&'a Claim),
    /// Request the store to release this claim, in case it was granted.
    Release(&'a Claim),
    /// Wait until this claim may be granted, but at most this long.
    Wait(&'a Claim, Duration),
    /// Sleep this long: the store failed, or its waits end too early.
    Sleep(Duration),
    /// The request has ended with this lease or error.
    Done(Result<Lease, Error>),
}

/// The number of attempts that were made because a wait ended early.
///
/// Its `Debug` text is constant, because two machines that differ only in this behave in the same way,
/// unless the store is faulty.
#[derive(Clone)]
struct Extra(u32);

impl fmt::Debug for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

#[derive(Clone, Debug)]
enum AcquireState {
    /// Another owner holds the lock, until `ends` at most; the next attempt is due at `due`.
    Waiting {
        due: Timestamp,
        ends: Option<Timestamp>,
    },
    /// The next attempt is due at `due`, and none is made before `until`: the store failed, or its waits
    /// end too early.
    Pausing { due: Timestamp, until: Timestamp },
    /// The next attempt can be made; one before `due` is not counted.
    Ready { due: Timestamp },
    /// An acquire request is in flight.
    InFlight { sent: Timestamp, due: Timestamp },
    /// A release of a possible grant is in flight.
    Releasing { why: Error },
    /// The request has ended.
    Ended(Result<Lease, Error>),
}

impl Acquire {
    /// Returns a machine that requests `claim` from `now` on, by the policy `retry`.
    ///
    /// The owner token's random bits are the source of the jitter, too.
    pub fn new(claim: Claim, retry: Retry, now: Timestamp) -> Self {
        let random = u128::from_le_bytes(*claim.owner.as_bytes());
        Self {
            claim,
            retry,
            random: (random >> 64) as u64,
            began: now,
            attempts: 0,
            extra: Extra(0),
            outcome_unknown: false,
            seen: None,
            state: AcquireState::Ready { due: now },
        }
    }

    /// Makes the machine reject a grant whose fencing token is not greater than `seen`, that of an earlier
    /// grant of the name: the resource that the lock guards would reject such a token.
    #[must_use]
    pub fn after(self, seen: Option<Fence>) -> Self {
        Self { seen, ..self }
    }

    /// Returns the requested claim.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Returns whether the store may have granted the lock without a usable reply. A request in flight is
    /// not counted.
    pub(crate) fn has_unknown_outcome(&self) -> bool {
        self.outcome_unknown && !matches!(self.state, AcquireState::Ended(_))
    }

    /// Returns the step to perform at `now`.
    pub fn next(&mut self, now: Timestamp) -> AcquireStep<'_> {
        if let AcquireState::Ready { due } = self.state {
            if due <= now {
                self.attempts = self.attempts.saturating_add(1);
            }
            self.state = AcquireState::InFlight { sent: now, due };
        }
        match &self.state {
            AcquireState::Waiting { due, ends } => {
                let until = ends.map_or(*due, |ends| ends.min(*due));
                AcquireStep::Wait(&self.claim, until.saturating_since(now))
            }
            AcquireState::Pausing { until, .. } => AcquireStep::Sleep(until.saturating_since(now)),
            AcquireState::Ready { .. } | AcquireState::InFlight { .. } => {
                AcquireStep::Acquire(&self.claim)
            }
            AcquireState::Releasing { .. } => AcquireStep::Release(&self.claim),
            AcquireState::Ended(end) => AcquireStep::Done(end.clone()),
        }
    }

    /// Returns the longest time for the wait that [`next`](Self::next) requests, by a waiter that
    /// [is notified](crate::Waiter::notifies). It is longer than the pause between two attempts, unless the
    /// policy counts attempts, and ends at the policy's deadline at the latest.
    pub fn longest_wait(&self, now: Timestamp) -> Duration {
        /// The time after which a waiter retries, because a notification may be lost.
        const SAFETY_RETRY: Duration = Duration::from_secs(10);

        let AcquireState::Waiting { due, ends } = self.state else {
            return Duration::ZERO;
        };
        let mut until = due;
        if self.retry.most_attempts().is_none() {
            until = until.max(now.saturating_add(SAFETY_RETRY));
            if let Some(timeout) = self.retry.longest() {
                until = until.min(self.began.saturating_add(timeout));
            }
        }
        ends.map_or(until, |ends| ends.min(until))
            .saturating_since(now)
    }

    /// Records that the wait or the sleep has ended.
    pub fn waited(&mut self, now: Timestamp) {
        match self.state {
            AcquireState::Waiting { due, .. } => self.state = AcquireState::Ready { due },
            AcquireState::Pausing { due, until } if until <= now => {
                self.state = AcquireState::Ready { due };
            }
            _ => {}
        }
    }

    /// Records the store's reply to the acquire request, received at `now`.
    pub fn received(&mut self, now: Timestamp, reply: Result<Acquired, StoreError>) {
        if let AcquireState::InFlight { sent, due } = self.state {
            self.process_reply(sent, due, now, reply);
        }
    }

    /// Records that the release was requested. Its reply does not matter: after an error, the record that may
    /// be left expires.
    pub fn released(&mut self) {
        if let AcquireState::Releasing { why } = &self.state {
            self.state = AcquireState::Ended(Err(why.clone()));
        }
    }

    fn process_reply(
        &mut self,
        sent: Timestamp,
        due: Timestamp,
        now: Timestamp,
        reply: Result<Acquired, StoreError>,
    ) {
        match reply {
            Ok(Acquired::Granted { fence }) => {
                if let (Some(seen), Some(fence)) = (self.seen, fence)
                    && fence <= seen
                    && !mutant!(LowerFenceAccepted)
                {
                    self.outcome_unknown = true;
                    return self.stop(StoreError::permanent(FenceWentBack { fence, seen }).into());
                }
                let from = mutant!(LeaseCountedFromReply, now, sent);
                let lease = Lease::granted(self.claim.clone(), fence, from);
                if lease.is_expired(now) && !mutant!(ExpiredGrantAccepted) {
                    self.outcome_unknown = true;
                    let name = self.claim.name.clone();
                    self.pause(
                        now,
                        Error::Lost {
                            name,
                            loss: Loss::Expired,
                            source: None,
                        },
                    );
                } else {
                    event!(
                        INFO,
                        self.claim.name,
                        fence = fence.map(Fence::get),
                        waited_ms = now.saturating_since(self.began).as_millis(),
                        attempts = self.attempts,
                        "granted"
                    );
                    self.state = AcquireState::Ended(Ok(lease));
                }
            }
            Ok(Acquired::Busy { remaining }) => {
                event!(
                    DEBUG,
                    self.claim.name,
                    remaining_ms = remaining.map(|remaining| remaining.as_millis()),
                    "held by another owner"
                );
                self.wait(sent, due, now, remaining);
            }
            Err(_) if mutant!(ErrorTakenForRefusal) => self.wait(sent, due, now, None),
            Err(err) => {
                event!(WARN, self.claim.name, error = %err, "acquire request failed");
                self.outcome_unknown = true;
                if err.is_temporary() {
                    self.pause(now, err.into());
                } else {
                    self.stop(err.into());
                }
            }
        }
    }

    /// Enters a wait: another owner holds the lock, for `remaining` at most.
    fn wait(
        &mut self,
        sent: Timestamp,
        due: Timestamp,
        now: Timestamp,
        remaining: Option<Duration>,
    ) {
        let due = if sent < due {
            // This was an extra attempt; the pause that it interrupted continues.
            self.extra.0 = self.extra.0.saturating_add(1);
            if self.is_busy_looping(now) {
                let until = now.saturating_add(Retry::SHORTEST_PAUSE).min(due);
                self.state = AcquireState::Pausing { due, until };
                return;
            }
            due
        } else {
            let Some(pause) = self.next_pause(now) else {
                return self.stop(Error::Timeout {
                    attempts: self.attempts,
                    name: self.claim.name.clone(),
                });
            };
            now.saturating_add(pause)
        };
        // A record that is about to expire is requested again after the shortest pause, not at once.
        let ends = remaining.map(|left| now.saturating_add(left.max(Retry::SHORTEST_PAUSE)));
        self.state = AcquireState::Waiting { due, ends };
    }

    /// Returns whether waits end so early that attempts would be made in a busy loop.
    fn is_busy_looping(&self, now: Timestamp) -> bool {
        /// The number of extra attempts without a pause, as when the lock's holder changes quickly.
        const UNPAUSED: u128 = 100;

        let pauses = now.saturating_since(self.began).as_nanos() / Retry::SHORTEST_PAUSE.as_nanos();
        u128::from(self.extra.0) > UNPAUSED + pauses
    }

    /// Pauses before the next attempt after a failure of the store, or stops with `why`.
    fn pause(&mut self, now: Timestamp, why: Error) {
        match self.next_pause(now) {
            Some(pause) => {
                let due = now.saturating_add(pause);
                self.state = AcquireState::Pausing { due, until: due };
            }
            None => self.stop(why),
        }
    }

    fn stop(&mut self, why: Error) {
        self.state = if self.outcome_unknown && !mutant!(UndoForgotten) {
            AcquireState::Releasing { why }
        } else {
            AcquireState::Ended(Err(why))
        };
    }

    fn next_pause(&mut self, now: Timestamp) -> Option<Duration> {
        // SplitMix64 (Steele, Lea, Flood 2014) is enough for jitter.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut roll = self.random;
        roll = (roll ^ (roll >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        roll = (roll ^ (roll >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        self.retry.pause(
            self.attempts,
            now.saturating_since(self.began),
            (roll >> 32) as u32,
        )
    }
}

/// The error for a store whose fencing tokens went back, because it lost, or never had, its count of
/// grants.
#[derive(Clone, Copy, thiserror::Error)]
#[error(
    "the store granted the lock under fencing token {fence} after token {seen}: its count of grants \
     went back, so the token protects nothing"
)]
struct FenceWentBack {
    fence: Fence,
    seen: Fence,
}

/// Writes the `Display` text: the derived `Debug` would add two kilobytes to the component.
impl fmt::Debug for FenceWentBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
