//! The reply of an operation, and the state that follows: decided from the current state and the time, without I/O.

use alloc::vec::Vec;
use core::time::Duration;

use verrou::{Acquired, Claim, Fence, Holder, Name, Process, Renewed};

use crate::file_names::LAST;
use crate::state::{End, State, shortened};

/// The time of an operation.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "the time, and what it is worth")]
pub struct Moment {
    /// The wall-clock time since the start of 1970 (UTC).
    pub now: Duration,
    /// The greatest difference between the wall clocks of any two programs that use the directory.
    pub skew: Duration,
}

/// The current state of a lock: the one with the greatest number.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    /// The number of the file.
    number: u64,
    state: State,
    is_released: bool,
}

/// The reply of an operation, and the state that it needs to have recorded for that.
#[derive(Debug)]
pub(crate) struct Decision<T> {
    pub(crate) reply: T,
    pub(crate) next: Next,
}

/// The state that follows.
#[derive(Debug)]
pub(crate) enum Next {
    /// None: nothing changes.
    None,
    /// The current state's file under the next number, which means that its grant was released; or else this
    /// state, which means the same.
    Released(State),
    /// A new state, for the next number.
    State(State),
}

/// The error that no greater fencing token is left.
#[derive(Debug)]
pub(crate) struct NoFenceLeft;

impl Current {
    /// Returns the current state, which is in the file with this number; `None` if a file with this number
    /// cannot have this state.
    pub(crate) fn new(number: u64, state: State) -> Option<Self> {
        let is_released = match number.checked_sub(state.number)? {
            0 => false,
            // A second name, one number later, is the release.
            1 if state.end == End::Held => true,
            _ => return None,
        };
        let is_released = is_released || state.end == End::Released;
        Some(Self {
            number,
            state,
            is_released,
        })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the name of the lock.
    pub(crate) fn name(&self) -> &Name {
        &self.state.name
    }

    /// Returns whether the grant was neither released nor force-released; it may have expired.
    fn is_granted(&self) -> bool {
        !self.is_released && self.state.end == End::Held
    }

    /// Returns whether the lease of the grant lasts at `moment`, as its owner sees it.
    fn is_held(&self, moment: Moment) -> bool {
        self.is_granted()
            && self
                .state
                .until
                .is_none_or(|until| nanos(moment.now) < until)
    }

    /// Returns whether the lock is unavailable to other owners at `moment`, and for how long.
    #[expect(
        clippy::option_option,
        reason = "not busy, or busy for an unlimited or a limited time"
    )]
    fn busy(&self, moment: Moment) -> Option<Option<Duration>> {
        if !self.is_granted() {
            return None;
        }
        let Some(until) = self.state.until else {
            return Some(None);
        };
        let skew = mutant!(SkewIgnored, 0, nanos(moment.skew));
        let end = until.saturating_add(skew);
        let left = end.checked_sub(nanos(moment.now))?;
        (left > 0).then_some(Some(Duration::from_nanos(left)))
    }

    fn is_of(&self, claim: &Claim) -> bool {
        self.state.owner == claim.owner
    }

    /// Returns the state as the next one.
    fn following(&self) -> State {
        State {
            number: self.number + 1,
            ..self.state.clone()
        }
    }

    /// Returns the next state, in which the lease lasts the ttl of `claim` from now.
    fn lasting(&self, claim: &Claim, moment: Moment) -> State {
        let (until, ttl) = ends(claim, moment);
        State {
            until,
            ttl,
            ..self.following()
        }
    }
}

pub(crate) fn acquire(
    current: Option<&Current>,
    claim: &Claim,
    process: Option<&Process>,
    moment: Moment,
) -> Result<Decision<Acquired>, NoFenceLeft> {
    let granted = |state: State| Decision {
        reply: Acquired::Granted {
            fence: Some(state.fence),
        },
        next: Next::State(state),
    };
    if let Some(current) = current {
        // A retry: the reply was lost.
        if current.is_of(claim) && current.is_held(moment) {
            return Ok(granted(current.lasting(claim, moment)));
        }
        if let Some(remaining) = current.busy(moment)
            && !current.is_of(claim)
        {
            return Ok(unchanged(Acquired::Busy { remaining }));
        }
    }
    let mut state = match current {
        Some(current) => current.following(),
        None => first(claim, moment),
    };
    if let Some(current) = current {
        if current.is_released {
            state.note_released(state.fence);
        }
        let next = state.fence.get().checked_add(1).and_then(Fence::new);
        state.fence = next
            .filter(|fence| *fence <= Fence::LAST)
            .ok_or(NoFenceLeft)?;
    }
    (state.until, state.ttl) = ends(claim, moment);
    state.owner = claim.owner;
    state.end = End::Held;
    state.since = nanos(moment.now);
    state.process = process.map(shortened);
    Ok(granted(state))
}

/// Returns the state of a first grant. Its fencing token is greater than any of a directory that was removed, if
/// the clock is right.
fn first(claim: &Claim, moment: Moment) -> State {
    let fence = u64::try_from(moment.now.as_millis()).unwrap_or(LAST);
    let fence = fence.saturating_mul(1024).clamp(1, LAST / 2);
    State {
        number: 1,
        name: claim.name.clone(),
        fence: Fence::new(fence).unwrap_or(Fence::FIRST),
        owner: claim.owner,
        end: End::Held,
        since: 0,
        until: None,
        ttl: None,
        process: None,
        released: Vec::new(),
    }
}

pub(crate) fn extend(current: Option<&Current>, claim: &Claim, moment: Moment) -> Decision<bool> {
    match current {
        Some(current) if current.is_of(claim) && current.is_held(moment) => Decision {
            reply: true,
            next: Next::State(current.lasting(claim, moment)),
        },
        _ => unchanged(false),
    }
}

pub(crate) fn renew(
    current: Option<&Current>,
    claim: &Claim,
    fence: Option<Fence>,
    moment: Moment,
) -> Decision<Renewed> {
    let Some(current) = current else {
        return unchanged(Renewed::Lost);
    };
    let state = &current.state;
    let is_same_grant = current.is_of(claim) && fence.is_none_or(|fence| fence == state.fence);
    if !is_same_grant {
        let is_released = fence.is_some_and(|fence| state.released.contains(&fence.get()))
            || current.is_released && fence == Some(state.fence);
        return unchanged(if is_released {
            Renewed::Released
        } else {
            Renewed::Lost
        });
    }
    if !current.is_granted() {
        return unchanged(if current.is_released {
            Renewed::Released
        } else {
            Renewed::Lost
        });
    }
    let renewed = current.lasting(claim, moment);
    let is_later = match (state.until, renewed.until) {
        (Some(before), Some(then)) => before < then,
        (Some(_), None) => true,
        (None, _) => false,
    };
    Decision {
        reply: Renewed::Granted,
        next: if is_later {
            Next::State(renewed)
        } else {
            Next::None
        },
    }
}

pub(crate) fn release(current: Option<&Current>, claim: &Claim, moment: Moment) -> Decision<bool> {
    match current {
        Some(current) if current.is_of(claim) && current.is_granted() => Decision {
            reply: current.is_held(moment),
            next: Next::Released(State {
                end: End::Released,
                ..current.following()
            }),
        },
        _ => unchanged(false),
    }
}

pub(crate) fn force_release(
    current: Option<&Current>,
    only: Option<Fence>,
    moment: Moment,
) -> Decision<bool> {
    match current {
        Some(current)
            if current.is_granted() && only.is_none_or(|only| only == current.state.fence) =>
        {
            Decision {
                reply: current.busy(moment).is_some(),
                // An expired lease cannot be renewed after this.
                next: Next::State(State {
                    end: End::ForceReleased,
                    ..current.following()
                }),
            }
        }
        _ => unchanged(false),
    }
}

pub(crate) fn holder(current: Option<&Current>, moment: Moment) -> Option<Holder> {
    let current = current?;
    let remaining = current.busy(moment)?;
    let mut holder = Holder::new(Some(current.state.fence), remaining);
    holder.since = Some(Duration::from_nanos(current.state.since));
    holder.process.clone_from(&current.state.process);
    Some(holder)
}

pub(crate) fn holds(current: Option<&Current>, claim: &Claim, moment: Moment) -> bool {
    current.is_some_and(|current| current.is_of(claim) && current.is_held(moment))
}

/// Returns the end and the length of a lease of `claim` that begins now.
fn ends(claim: &Claim, moment: Moment) -> (Option<u64>, Option<u64>) {
    let ttl = claim.ttl.duration().map(nanos);
    let until = ttl.map(|ttl| nanos(moment.now).saturating_add(ttl));
    (until, ttl)
}

fn unchanged<T>(reply: T) -> Decision<T> {
    Decision {
        reply,
        next: Next::None,
    }
}

fn nanos(length: Duration) -> u64 {
    u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use verrou::{Owner, Ttl};

    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const SKEW: Duration = Duration::from_secs(1);
    const START: Duration = Duration::from_hours(489_970);

    fn at(seconds: u64) -> Moment {
        Moment {
            now: START + Duration::from_secs(seconds),
            skew: SKEW,
        }
    }

    fn claim(owner: u8) -> Claim {
        Claim::new(
            Name::new("n").unwrap(),
            Owner::from_bytes([owner; 16]),
            Ttl::new(TTL).unwrap(),
        )
    }

    /// Returns the state after a grant, in the file for which it was written.
    fn granted(current: Option<&Current>, owner: u8, moment: Moment) -> Current {
        let decision = acquire(current, &claim(owner), None, moment).unwrap();
        assert!(decision.reply.is_granted(), "{decision:?}");
        made(decision)
    }

    fn made<T: core::fmt::Debug>(decision: Decision<T>) -> Current {
        let Next::State(state) = decision.next else {
            panic!("{decision:?}");
        };
        Current::new(state.number, state).unwrap()
    }

    #[test]
    fn expired_lease_is_unavailable_to_others_for_the_skew() {
        let one = granted(None, 1, at(0));
        for (seconds, left) in [(0, 11), (9, 2), (10, 1)] {
            let decision = acquire(Some(&one), &claim(2), None, at(seconds)).unwrap();
            let remaining = Some(Duration::from_secs(left));
            assert_eq!(decision.reply, Acquired::Busy { remaining });
            let holder = holder(Some(&one), at(seconds)).unwrap();
            assert_eq!(holder.remaining, remaining);
        }
        let two = granted(Some(&one), 2, at(11));
        assert_eq!(two.state.fence.get(), one.state.fence.get() + 1);
        assert_eq!((one.number, two.number), (1, 2));
        assert_eq!(holder(Some(&one), at(11)), None);
    }

    #[test]
    fn owner_has_the_lease_until_its_end_and_no_longer() {
        let one = granted(None, 1, at(0));
        for (seconds, is_held) in [(9, true), (10, false), (11, false)] {
            assert_eq!(extend(Some(&one), &claim(1), at(seconds)).reply, is_held);
            assert_eq!(release(Some(&one), &claim(1), at(seconds)).reply, is_held);
            assert_eq!(holds(Some(&one), &claim(1), at(seconds)), is_held);
        }
        assert!(!holds(Some(&one), &claim(2), at(0)));
        // The same owner need not wait for the skew.
        let again = granted(Some(&one), 1, at(10));
        assert_eq!(again.state.fence.get(), one.state.fence.get() + 1);
    }

    #[test]
    fn second_name_of_a_held_state_is_its_release() {
        let one = granted(None, 1, at(0));
        let released = Current::new(2, one.state.clone()).unwrap();
        assert_eq!(holder(Some(&released), at(0)), None);
        let renewed = renew(Some(&released), &claim(1), Some(one.state.fence), at(0));
        assert_eq!(renewed.reply, Renewed::Released);
        let two = granted(Some(&released), 2, at(0));
        assert_eq!((two.number, two.state.number), (3, 3));
        assert!(two.state.fence > one.state.fence);

        // Where that link fails, a state of its own means the same.
        let Next::Released(written) = release(Some(&one), &claim(1), at(0)).next else {
            panic!("it is held");
        };
        let written = Current::new(2, written).unwrap();
        let renewed = renew(Some(&written), &claim(1), Some(one.state.fence), at(0));
        assert_eq!(renewed.reply, Renewed::Released);
        assert_eq!(granted(Some(&written), 2, at(0)).state, two.state);
        assert!(Current::new(3, written.state).is_none());

        // No other difference of the numbers is a state.
        assert!(Current::new(3, one.state.clone()).is_none());
        assert!(Current::new(1, two.state).is_none());
        let ended = made(force_release(Some(&one), None, at(0)));
        assert!(Current::new(3, ended.state).is_none());
    }

    #[test]
    fn release_is_reported_to_a_renewal_after_sixteen_later_grants() {
        let mut current = granted(None, 1, at(0));
        let fence = Some(current.state.fence);
        for owner in 2..18 {
            current = Current::new(current.number + 1, current.state).unwrap();
            current = granted(Some(&current), owner, at(0));
            let renewed = renew(Some(&current), &claim(1), fence, at(0));
            assert_eq!(renewed.reply, Renewed::Released, "{owner}");
        }
        current = Current::new(current.number + 1, current.state).unwrap();
        current = granted(Some(&current), 18, at(0));
        let renewed = renew(Some(&current), &claim(1), fence, at(0));
        assert_eq!(renewed.reply, Renewed::Lost);
    }

    #[test]
    fn force_released_lease_is_never_renewed() {
        let one = granted(None, 1, at(0));
        let fence = Some(one.state.fence);
        let other = Fence::new(1);
        assert!(!force_release(Some(&one), other, at(0)).reply);
        for (seconds, was_held) in [(0, true), (11, false)] {
            let decision = force_release(Some(&one), fence, at(seconds));
            assert_eq!(decision.reply, was_held);
            let ended = made(decision);
            assert_eq!(holder(Some(&ended), at(0)), None);
            let renewed = renew(Some(&ended), &claim(1), fence, at(seconds));
            assert_eq!(renewed.reply, Renewed::Lost);
            assert!(!release(Some(&ended), &claim(1), at(0)).reply);
            let next = granted(Some(&ended), 2, at(0));
            assert_eq!(next.state.released, []);
        }
    }

    #[test]
    fn renewal_never_shortens_and_takes_an_expired_lease_back() {
        let one = granted(None, 1, at(0));
        let fence = Some(one.state.fence);
        let short = claim(1).with_ttl(Ttl::new(Duration::from_secs(1)).unwrap());
        let decision = renew(Some(&one), &short, fence, at(0));
        assert_eq!(decision.reply, Renewed::Granted);
        assert!(matches!(decision.next, Next::None));
        let late = made(renew(Some(&one), &claim(1), fence, at(1000)));
        assert_eq!(late.state.fence, one.state.fence);
        assert!(holds(Some(&late), &claim(1), at(1009)));
        let endless = claim(1).with_ttl(Ttl::NEVER);
        let endless = made(renew(Some(&one), &endless, fence, at(0)));
        assert_eq!(endless.state.until, None);
        assert!(matches!(
            renew(Some(&endless), &claim(1), fence, at(0)).next,
            Next::None
        ));
    }

    #[test]
    fn last_fence_is_followed_by_none() {
        let mut one = granted(None, 1, at(0));
        one.state.fence = Fence::LAST;
        let one = Current::new(2, one.state).unwrap();
        acquire(Some(&one), &claim(2), None, at(0)).unwrap_err();
    }

    #[test]
    fn first_fence_follows_those_of_a_removed_directory() {
        let before = granted(None, 1, at(0)).state.fence;
        let after = granted(None, 1, at(1)).state.fence;
        assert_eq!(after.get() - before.get(), 1024 * 1000);
        let unset = Moment {
            now: Duration::ZERO,
            skew: SKEW,
        };
        assert_eq!(granted(None, 1, unset).state.fence, Fence::FIRST);
    }
}
