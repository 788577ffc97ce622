//! Taking a lock, as a value: what to do next, never the doing of it.

use core::fmt;
use core::time::Duration;

use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::lease::{Lease, Loss};
use crate::retry::Retry;
use crate::store::{Reply, StoreError};
use crate::time::Timestamp;

/// One wish to hold a lock, from the first request to the lease, or to why there is none.
///
/// # Driving it
///
/// Ask [`next`](Self::next) what to do, do it, say how it went, and ask again:
///
/// | step | do | then |
/// |---|---|---|
/// | [`Acquire`](AcquireStep::Acquire) | [`Store::acquire`](crate::Store::acquire) | [`heard`](Self::heard) with what the store said |
/// | [`Release`](AcquireStep::Release) | [`Store::release`](crate::Store::release) | [`heard`](Self::heard) with what the store said |
/// | [`Wait`](AcquireStep::Wait) | [`Store::wait`](crate::Store::wait), or let this long pass; a store that notifies may wait for [`longest_wait`](Self::longest_wait) | [`waited`](Self::waited) |
/// | [`Sleep`](AcquireStep::Sleep) | let this long pass | [`waited`](Self::waited) |
/// | [`Done`](AcquireStep::Done) | nothing: this is the end | |
///
/// `next` repeats itself until it is told how the step went. Each call takes the time of the
/// call, by one clock; a wait may end early. A request that is never answered is an error for
/// [`heard`](Self::heard): the machine then asks again with the same owner, or gives back what it
/// may have been granted.
///
/// [`blocking::acquire`](crate::blocking::acquire) is such a driver in 20 lines.
///
/// # What it sees to
///
/// - The lease is counted from before the request left.
/// - A grant that has run out by the time it is heard is no grant.
/// - Whoever stops asking gives back what it may hold: after an error, or a late grant, the last
///   step is a release.
/// - The last attempt is made at the deadline of the [`Retry`] policy.
/// - A grant whose fence is not greater than that of an earlier grant is given back.
/// - An attempt that is made because a wait ended early counts toward no limit. A store whose waits
///   end at once, again and again, is asked once in a millisecond.
#[derive(Clone, Debug)]
pub struct Acquire {
    claim: Claim,
    retry: Retry,
    random: u64,
    began: Timestamp,
    attempts: u32,
    extra: Extra,
    in_doubt: bool,
    seen: Option<Fence>,
    state: State,
}

/// What the driver of an [`Acquire`] is to do next.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a driver has to know every step")]
pub enum AcquireStep<'a> {
    /// Ask the store to record this claim.
    Acquire(&'a Claim),
    /// Ask the store to release this claim, in case it was granted.
    Release(&'a Claim),
    /// Wait until this claim may be granted, but at most this long.
    Wait(&'a Claim, Duration),
    /// Let this long pass: the store is in trouble, or its waits are.
    Sleep(Duration),
    /// It is over: this is the lease, or why there is none.
    Done(Result<Lease, Error>),
}

/// How many attempts were made because a wait ended early.
///
/// Two machines that differ in this alone look the same: unless the store is out of order, it makes no
/// difference to what they do.
#[derive(Clone)]
struct Extra(u32);

impl fmt::Debug for Extra {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("_")
    }
}

#[derive(Clone, Debug)]
enum State {
    /// Another owner holds the lock, until `ends` at most; the next attempt is due at `due`.
    Waiting {
        due: Timestamp,
        ends: Option<Timestamp>,
    },
    /// The next attempt is due at `due`, and none is made before `until`: the store failed, or lets
    /// nobody wait.
    Pausing { due: Timestamp, until: Timestamp },
    /// The store is to be asked; not counted when it is before the time.
    Ready { due: Timestamp },
    /// The store is being asked.
    Asking { sent: Timestamp, due: Timestamp },
    /// The store is being asked to take back what it may have granted.
    Undoing { why: Error },
    /// It is over.
    Over(Result<Lease, Error>),
}

impl Acquire {
    /// Starts, at `now`, to ask for `claim` as `retry` says.
    ///
    /// The owner's random bits are the source of the jitter, too.
    pub fn new(claim: Claim, retry: Retry, now: Timestamp) -> Self {
        let random = u128::from_le_bytes(*claim.owner.as_bytes());
        Self {
            claim,
            retry,
            random: (random >> 64) as u64,
            began: now,
            attempts: 0,
            extra: Extra(0),
            in_doubt: false,
            seen: None,
            state: State::Ready { due: now },
        }
    }

    /// Takes no grant whose fence is not greater than `seen`, that of an earlier grant of the
    /// name: whoever holds both would be refused by what the lock guards.
    #[must_use]
    pub fn after(self, seen: Option<Fence>) -> Self {
        Self { seen, ..self }
    }

    /// What is asked for.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Whether it may hold the lock without knowing, but for what the store is being asked.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.in_doubt && !matches!(self.state, State::Over(_))
    }

    /// What to do at `now`.
    pub fn next(&mut self, now: Timestamp) -> AcquireStep<'_> {
        if let State::Ready { due } = self.state {
            if due <= now {
                self.attempts = self.attempts.saturating_add(1);
            }
            self.state = State::Asking { sent: now, due };
        }
        match &self.state {
            State::Waiting { due, ends } => {
                let look = ends.map_or(*due, |ends| ends.min(*due));
                AcquireStep::Wait(&self.claim, look.saturating_since(now))
            }
            State::Pausing { until, .. } => AcquireStep::Sleep(until.saturating_since(now)),
            State::Ready { .. } | State::Asking { .. } => AcquireStep::Acquire(&self.claim),
            State::Undoing { .. } => AcquireStep::Release(&self.claim),
            State::Over(end) => AcquireStep::Done(end.clone()),
        }
    }

    /// Returns the longest time for the wait that [`next`](Self::next) requests, in a store that
    /// [notifies](crate::Store::notifies). It is longer than the pause between two attempts, unless the
    /// policy counts attempts, and ends at the policy's deadline at the latest.
    pub fn longest_wait(&self, now: Timestamp) -> Duration {
        /// A notification may be lost.
        const SAFETY_LOOK: Duration = Duration::from_secs(10);

        let State::Waiting { due, ends } = self.state else {
            return Duration::ZERO;
        };
        let mut until = due;
        if self.retry.most_attempts().is_none() {
            until = until.max(now.saturating_add(SAFETY_LOOK));
            if let Some(timeout) = self.retry.longest() {
                until = until.min(self.began.saturating_add(timeout));
            }
        }
        ends.map_or(until, |ends| ends.min(until))
            .saturating_since(now)
    }

    /// The wait or the sleep ended.
    pub fn waited(&mut self, now: Timestamp) {
        match self.state {
            State::Waiting { due, .. } => self.state = State::Ready { due },
            State::Pausing { due, until } if until <= now => self.state = State::Ready { due },
            _ => {}
        }
    }

    /// What the store said, heard at `now`.
    pub fn heard(&mut self, now: Timestamp, reply: Result<Reply, StoreError>) {
        match &self.state {
            State::Asking { sent, due } => self.answered(*sent, *due, now, reply),
            State::Undoing { why } => self.state = State::Over(Err(why.clone())),
            _ => {}
        }
    }

    fn answered(
        &mut self,
        sent: Timestamp,
        due: Timestamp,
        now: Timestamp,
        reply: Result<Reply, StoreError>,
    ) {
        match reply {
            Ok(Reply::Granted { fence }) => {
                if let (Some(seen), Some(fence)) = (self.seen, fence)
                    && fence <= seen
                    && !mutant!(LowerFenceAccepted)
                {
                    self.in_doubt = true;
                    return self.stop(StoreError::permanent(FenceWentBack { fence, seen }).into());
                }
                let from = mutant!(LeaseCountedFromReply, now, sent);
                let lease = Lease::granted(self.claim.clone(), fence, from);
                if lease.is_expired(now) && !mutant!(ExpiredGrantAccepted) {
                    self.in_doubt = true;
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
                    self.state = State::Over(Ok(lease));
                }
            }
            Ok(Reply::Refused { remaining }) => self.wait(sent, due, now, remaining),
            Err(_) if mutant!(ErrorTakenForRefusal) => self.wait(sent, due, now, None),
            Err(err) => {
                self.in_doubt = true;
                if err.is_temporary() {
                    self.pause(now, err.into());
                } else {
                    self.stop(err.into());
                }
            }
        }
    }

    /// Another holds the lock, for `remaining` at most.
    fn wait(
        &mut self,
        sent: Timestamp,
        due: Timestamp,
        now: Timestamp,
        remaining: Option<Duration>,
    ) {
        let due = if sent < due {
            // This was an extra attempt; the pause it interrupted goes on.
            self.extra.0 = self.extra.0.saturating_add(1);
            if self.is_hasty(now) {
                let until = now.saturating_add(Retry::SHORTEST_PAUSE).min(due);
                self.state = State::Pausing { due, until };
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
        // A record that ends any moment now is looked at again in a moment, not at once.
        let ends = remaining.map(|left| now.saturating_add(left.max(Retry::SHORTEST_PAUSE)));
        self.state = State::Waiting { due, ends };
    }

    /// Whether waits end so early that the store would be asked without a break.
    fn is_hasty(&self, now: Timestamp) -> bool {
        /// So many are made in a row where the lock changes hands quickly.
        const AT_ONCE: u128 = 100;

        let pauses = now.saturating_since(self.began).as_nanos() / Retry::SHORTEST_PAUSE.as_nanos();
        u128::from(self.extra.0) > AT_ONCE + pauses
    }

    /// The store is in trouble: ask again later, or stop with `why`.
    fn pause(&mut self, now: Timestamp, why: Error) {
        match self.next_pause(now) {
            Some(pause) => {
                let due = now.saturating_add(pause);
                self.state = State::Pausing { due, until: due };
            }
            None => self.stop(why),
        }
    }

    fn stop(&mut self, why: Error) {
        self.state = if self.in_doubt && !mutant!(UndoForgotten) {
            State::Undoing { why }
        } else {
            State::Over(Err(why))
        };
    }

    fn next_pause(&mut self, now: Timestamp) -> Option<Duration> {
        // SplitMix64 (Steele, Lea, Flood 2014): enough for a jitter.
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

/// What a store said that has forgotten, or never counted, its grants.
#[derive(Clone, Copy, thiserror::Error)]
#[error(
    "the store granted the lock under fencing token {fence}, after {seen}: it has lost count, and \
     the token protects nothing"
)]
struct FenceWentBack {
    fence: Fence,
    seen: Fence,
}

/// In the words for people: those for programmers would be two kilobytes of the component.
impl fmt::Debug for FenceWentBack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
