//! A model of a lock, and a check whether a history is linearizable with respect to it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use todc_utils::linearizability::WGLChecker;
use todc_utils::linearizability::history::{Action, History};
use todc_utils::specifications::Specification;

/// Returns the number of the `number`th owner of `client`.
pub(crate) fn owner(client: u32, number: u32) -> u64 {
    (u64::from(client) << 32) | u64::from(number)
}

/// Returns the client of an owner.
fn client_of(owner: u64) -> u32 {
    u32::try_from(owner >> 32).unwrap_or(u32::MAX)
}

/// A request to a lock, with its times and its reply.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Operation {
    /// The process that sent the request.
    pub(crate) client: u32,
    /// The time before the request, in nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) began: u64,
    /// The time after the reply; [`NEVER`] if there is none.
    pub(crate) ended: u64,
    pub(crate) request: Request,
    pub(crate) reply: Reply,
}

/// The end of an operation that has not ended.
pub(crate) const NEVER: u64 = u64::MAX;

/// A request to a lock, or an event that changes it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Request {
    /// The start of a history: the lock is free, and its last fencing token is `fence`.
    Begin {
        rules: Rules,
        fence: u64,
    },
    Acquire {
        owner: u64,
        is_ephemeral: bool,
        ttl: Option<u64>,
    },
    Extend {
        owner: u64,
        ttl: Option<u64>,
    },
    Release {
        owner: u64,
    },
    Detach {
        owner: u64,
    },
    Evict {
        only: Option<u64>,
    },
    Inspect,
    /// The process ends, or is killed.
    Death,
}

/// The reply of a lock.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Reply {
    Granted {
        fence: Option<u64>,
    },
    Refused,
    /// The lock is held, and cannot be force-released.
    NotEvictable,
    Free,
    Held {
        owner: Option<u64>,
        fence: Option<u64>,
    },
    /// The reply was lost: the outcome is unknown.
    Unknown,
}

/// The differences between stores, and between their uses.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Rules {
    /// Every process with the owner token acts as the owner, and every process can force-release.
    pub(crate) transfers: bool,
    /// A free lock is never refused, and never inspected as held: there are no waiters, for which
    /// it may be reserved, and no inspections, which may lock the file for a moment.
    pub(crate) is_prompt: bool,
}

/// A possible state of the lock.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Lock {
    rules: Rules,
    /// The fencing token of every later grant is greater than this one.
    fence: u64,
    held: Option<Held>,
    /// The processes that have ended.
    dead: BTreeSet<u32>,
}

#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Held {
    owner: u64,
    /// `None` while no process has received it: then it is greater than [`Lock::fence`], or not yet
    /// recorded, because the flock(2) lock is taken before the fencing token is written.
    fence: Option<u64>,
    client: u32,
    is_ephemeral: bool,
    /// When the holder had recorded the grant, and received the reply.
    recorded: u64,
    /// The earliest and the latest time at which it expires.
    ends: Option<(u64, u64)>,
}

impl Lock {
    fn new(rules: Rules, fence: u64) -> Self {
        Self {
            rules,
            fence,
            held: None,
            dead: BTreeSet::new(),
        }
    }

    fn free(&self) -> Self {
        Self {
            held: None,
            ..self.clone()
        }
    }

    /// Returns the possible states at the time of `operation`: the lease may have expired.
    fn at_time_of(&self, operation: &Operation) -> Vec<Self> {
        let Some((earliest, latest)) = self.held.as_ref().and_then(|held| held.ends) else {
            return vec![self.clone()];
        };
        let mut may_be = Vec::new();
        if operation.began < latest {
            may_be.push(self.clone());
        }
        if earliest <= operation.ended {
            may_be.push(self.free());
        }
        may_be
    }

    /// Returns the possible states after `operation`; none if its reply is impossible in this state.
    fn after(&self, operation: &Operation) -> Vec<Self> {
        let Operation {
            client,
            request,
            reply,
            ..
        } = operation;
        if let Request::Death = request {
            let mut after = self.clone();
            after.dead.insert(*client);
            after
                .held
                .take_if(|held| held.is_ephemeral && held.client == *client);
            return vec![after];
        }
        let is_dead = self.dead.contains(client);
        match reply {
            Reply::Unknown if is_dead => vec![self.clone()],
            Reply::Unknown => {
                let mut may_be = self.done(operation);
                may_be.push(self.clone());
                may_be
            }
            _ if is_dead => Vec::new(),
            Reply::Granted { fence: None } if matches!(request, Request::Acquire { .. }) => {
                Vec::new()
            }
            Reply::Granted { fence } => {
                let done = self.done(operation);
                let fits = |lock: Self| match (lock.held.is_some(), fence) {
                    (true, Some(fence)) => lock.has_fence(*fence),
                    _ => Some(lock),
                };
                // The reply to a release has the fencing token of the ended grant.
                let was_received = |fence: &u64| self.has_fence(*fence).is_some();
                if done.iter().any(|lock| lock.held.is_none())
                    && !fence.as_ref().is_none_or(was_received)
                {
                    return Vec::new();
                }
                done.into_iter().filter_map(fits).collect()
            }
            Reply::Refused if self.refuses(operation) => vec![self.clone()],
            Reply::NotEvictable
            | Reply::Held {
                owner: None,
                fence: None,
            } if self.seems_held() => vec![self.clone()],
            Reply::Free if self.held.is_none() => vec![self.clone()],
            Reply::Held { owner, fence } => {
                if self.may_return_earlier_grant(operation, *owner, *fence) {
                    return vec![self.clone()];
                }
                let is_holder = |held: &Held| *owner == Some(held.owner);
                let owner_fits = self.held.as_ref().is_some_and(is_holder);
                let fits = match fence {
                    Some(fence) => self.has_fence(*fence),
                    None => Some(self.clone()),
                };
                fits.filter(|_| owner_fits).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the state after `operation` was done; none if it cannot be done in this state.
    fn done(&self, operation: &Operation) -> Vec<Self> {
        let client = operation.client;
        let ends = |ttl: Option<u64>| {
            let ends = |from: u64| ttl.map(|ttl| from.saturating_add(ttl));
            ends(operation.began).zip(ends(operation.ended))
        };
        let held = |held: Held| {
            let held = Some(held);
            vec![Self {
                held,
                ..self.clone()
            }]
        };
        match (&operation.request, &self.held) {
            (Request::Acquire { owner, ttl, .. }, Some(mine)) if mine.owner == *owner => {
                held(Held {
                    ends: ends(*ttl),
                    ..mine.clone()
                })
            }
            (
                &Request::Acquire {
                    owner,
                    is_ephemeral,
                    ttl,
                },
                None,
            ) => vec![Self {
                held: Some(Held {
                    owner,
                    fence: None,
                    client,
                    is_ephemeral: is_ephemeral || !self.rules.transfers,
                    recorded: operation.ended,
                    ends: ends(ttl),
                }),
                ..self.clone()
            }],
            (Request::Extend { owner, ttl }, Some(it)) if self.is_of(it, *owner, client) => {
                held(Held {
                    ends: ends(*ttl),
                    ..it.clone()
                })
            }
            (Request::Release { owner }, Some(it)) if self.is_of(it, *owner, client) => {
                vec![self.free()]
            }
            (Request::Detach { owner }, Some(it)) if self.rules.transfers && it.owner == *owner => {
                held(Held {
                    is_ephemeral: false,
                    ..it.clone()
                })
            }
            (Request::Evict { only }, Some(_)) if self.rules.transfers => match only {
                Some(only) => self.has_fence(*only).iter().map(Self::free).collect(),
                None => vec![self.free()],
            },
            _ => Vec::new(),
        }
    }

    /// Returns whether `operation` may be refused.
    fn refuses(&self, operation: &Operation) -> bool {
        let is_fence_known = |held: &Held| held.fence.is_some();
        match &operation.request {
            Request::Acquire { .. } if self.held.is_none() => !self.rules.is_prompt,
            Request::Evict { .. } if !self.rules.transfers => self.held.is_none(),
            // The lock may have another fencing token than the requested one.
            Request::Evict { only: Some(_) } if !self.held.as_ref().is_none_or(is_fence_known) => {
                true
            }
            Request::Acquire { .. }
            | Request::Extend { .. }
            | Request::Release { .. }
            | Request::Detach { .. }
            | Request::Evict { .. } => self.done(operation).is_empty(),
            Request::Begin { .. } | Request::Inspect | Request::Death => false,
        }
    }

    /// Returns whether a process may have the flock(2) lock without having recorded its grant.
    fn seems_held(&self) -> bool {
        !self.rules.transfers && (self.held.is_some() || !self.rules.is_prompt)
    }

    /// Returns whether `operation` may return an earlier grant instead of the current one: a flock(2)
    /// lock is taken before its grant is recorded, and a record counts if it names the right process.
    fn may_return_earlier_grant(
        &self,
        operation: &Operation,
        owner: Option<u64>,
        fence: Option<u64>,
    ) -> bool {
        !self.rules.transfers
            && fence.is_some_and(|fence| fence <= self.fence)
            && self.held.as_ref().is_some_and(|held| {
                owner.map(client_of) == Some(held.client) && operation.began < held.recorded
            })
    }

    fn is_of(&self, held: &Held, owner: u64, client: u32) -> bool {
        held.owner == owner && (self.rules.transfers || held.client == client)
    }

    /// Returns this state with `fence` as the holder's fencing token, if that is possible.
    fn has_fence(&self, fence: u64) -> Option<Self> {
        let held = self.held.as_ref()?;
        match held.fence {
            Some(recorded) => (recorded == fence).then(|| self.clone()),
            None => (self.fence < fence).then(|| Self {
                fence,
                held: Some(Held {
                    fence: Some(fence),
                    ..held.clone()
                }),
                ..self.clone()
            }),
        }
    }
}

/// The specification for the checker: the set of all possible states of the lock.
struct Model;

impl Specification for Model {
    type State = BTreeSet<Lock>;
    type Operation = Operation;

    fn init() -> Self::State {
        BTreeSet::new()
    }

    fn apply(operation: &Operation, state: &Self::State) -> (bool, Self::State) {
        if let Request::Begin { rules, fence } = operation.request {
            return (true, BTreeSet::from([Lock::new(rules, fence)]));
        }
        let at_that_time = state.iter().flat_map(|lock| lock.at_time_of(operation));
        let after: Self::State = at_that_time
            .flat_map(|lock| lock.after(operation))
            .collect();
        (!after.is_empty(), after)
    }
}

/// Returns whether a history is linearizable for a lock with these `rules` that was free, with
/// `fence` as its last fencing token: each operation takes effect at one moment between its request
/// and its reply.
pub(crate) fn is_linearizable(rules: Rules, fence: u64, operations: &[Operation]) -> bool {
    let begin = Operation {
        client: 0,
        began: 0,
        ended: 0,
        request: Request::Begin { rules, fence },
        reply: Reply::Granted { fence: None },
    };
    let mut events = Vec::with_capacity(2 * operations.len());
    // The death of a process that cannot have held the lock changes nothing, and fits anywhere in
    // the history.
    let may_have_held: BTreeSet<_> = operations
        .iter()
        .filter(|it| matches!(it.request, Request::Acquire { .. }) && it.reply != Reply::Refused)
        .map(|it| it.client)
        .collect();
    for (number, operation) in operations.iter().enumerate() {
        if operation.request == Request::Death && !may_have_held.contains(&operation.client) {
            continue;
        }
        events.push((operation.began, false, number));
        events.push((operation.ended, true, number));
    }
    // Events of the same moment may have occurred in either order.
    events.sort_unstable();
    let start = [
        (operations.len(), Action::Call(begin.clone())),
        (operations.len(), Action::Response(begin)),
    ];
    let actions = events.into_iter().map(|(_, is_reply, number)| {
        let operation = operations[number].clone();
        let action = if is_reply {
            Action::Response(operation)
        } else {
            Action::Call(operation)
        };
        (number, action)
    });
    WGLChecker::<Model>::is_linearizable(History::from_actions(
        start.into_iter().chain(actions).collect(),
    ))
}

/// Reduces a history that is not linearizable: cuts it after the first impossible reply, and removes
/// operations that change nothing, as long as it stays not linearizable.
pub(crate) fn least(rules: Rules, fence: u64, operations: &[Operation]) -> Vec<Operation> {
    let mut ends: Vec<_> = operations.iter().map(|it| it.ended).collect();
    ends.sort_unstable();
    let up_to = |end: u64| -> Vec<_> {
        // An inspection whose reply is unknown does not matter.
        let matters = |it: &&Operation| it.ended <= end || it.request != Request::Inspect;
        let begun = operations.iter().filter(|it| it.began <= end);
        let cut_off = |it: &Operation| {
            if it.ended <= end {
                return it.clone();
            }
            Operation {
                ended: NEVER,
                reply: Reply::Unknown,
                ..it.clone()
            }
        };
        begun.filter(matters).map(cut_off).collect()
    };
    let first = ends.partition_point(|end| is_linearizable(rules, fence, &up_to(*end)));
    let mut least = ends
        .get(first)
        .map_or(operations.to_vec(), |end| up_to(*end));
    let mut at = 0;
    while at < least.len() {
        let changed_nothing = matches!(
            least[at].reply,
            Reply::Refused | Reply::NotEvictable | Reply::Free | Reply::Held { .. }
        ) || (least[at].request == Request::Inspect);
        if changed_nothing {
            let mut without = least.clone();
            without.remove(at);
            if !is_linearizable(rules, fence, &without) {
                least = without;
                continue;
            }
        }
        at += 1;
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASES: Rules = Rules {
        transfers: true,
        is_prompt: true,
    };
    const LOCKS: Rules = Rules {
        transfers: false,
        is_prompt: true,
    };

    /// Returns an operation of `client` between `began` and `ended`.
    fn request(client: u32, began: u64, ended: u64, request: Request, reply: Reply) -> Operation {
        Operation {
            client,
            began,
            ended,
            request,
            reply,
        }
    }

    /// Returns an acquire operation; each client has one owner.
    fn acquire(client: u32, began: u64, ended: u64, reply: Reply) -> Operation {
        let acquire = Request::Acquire {
            owner: owner(client, 0),
            is_ephemeral: true,
            ttl: None,
        };
        request(client, began, ended, acquire, reply)
    }

    fn release(client: u32, began: u64, ended: u64, reply: Reply) -> Operation {
        let owner = owner(client, 0);
        request(client, began, ended, Request::Release { owner }, reply)
    }

    fn extend(client: u32, began: u64, ended: u64, ttl: Option<u64>, reply: Reply) -> Operation {
        let owner = owner(client, 0);
        request(client, began, ended, Request::Extend { owner, ttl }, reply)
    }

    fn inspect(began: u64, ended: u64, reply: Reply) -> Operation {
        request(99, began, ended, Request::Inspect, reply)
    }

    fn death(client: u32, began: u64, ended: u64) -> Operation {
        request(client, began, ended, Request::Death, Reply::Unknown)
    }

    fn fence(fence: u64) -> Reply {
        Reply::Granted { fence: Some(fence) }
    }

    const DONE: Reply = Reply::Granted { fence: None };

    fn held(client: u32, fence: u64) -> Reply {
        Reply::Held {
            owner: Some(owner(client, 0)),
            fence: Some(fence),
        }
    }

    #[track_caller]
    fn accepted(operations: &[Operation]) {
        for rules in [LEASES, LOCKS] {
            assert!(is_linearizable(rules, 0, operations), "{rules:?}");
        }
    }

    #[track_caller]
    fn refused(operations: &[Operation]) {
        for rules in [LEASES, LOCKS] {
            assert!(!is_linearizable(rules, 0, operations), "{rules:?}");
        }
    }

    #[test]
    fn sequential_operations_are_linearizable() {
        accepted(&[
            acquire(1, 1, 2, fence(1)),
            acquire(2, 3, 4, Reply::Refused),
            inspect(5, 6, held(1, 1)),
            acquire(1, 7, 8, fence(1)),
            extend(1, 9, 10, None, fence(1)),
            release(1, 11, 12, DONE),
            inspect(13, 14, Reply::Free),
            acquire(2, 15, 16, fence(7)),
        ]);
    }

    #[test]
    fn two_holders_are_not_linearizable() {
        refused(&[acquire(1, 1, 2, fence(1)), acquire(2, 3, 4, fence(2))]);
        refused(&[acquire(1, 1, 4, fence(1)), acquire(2, 2, 3, fence(2))]);
        // The first holder may have released the lock before the second grant.
        accepted(&[
            acquire(1, 1, 2, fence(1)),
            acquire(2, 3, 5, fence(2)),
            release(1, 4, 6, DONE),
        ]);
        refused(&[
            acquire(1, 1, 2, fence(1)),
            acquire(2, 3, 5, fence(2)),
            release(1, 6, 7, DONE),
        ]);
    }

    #[test]
    fn fencing_tokens_grow_and_are_kept_by_extensions() {
        let again = |fences: [u64; 2]| {
            [
                acquire(1, 1, 2, fence(fences[0])),
                release(1, 3, 4, DONE),
                acquire(2, 5, 6, fence(fences[1])),
            ]
        };
        accepted(&again([4, 5]));
        refused(&again([4, 4]));
        refused(&again([4, 3]));
        assert!(
            !is_linearizable(LEASES, 4, &again([4, 5])),
            "the last fencing token again"
        );
        // A grant keeps its fencing token.
        refused(&[acquire(1, 1, 2, fence(1)), acquire(1, 3, 4, fence(2))]);
        refused(&[acquire(1, 1, 2, fence(1)), extend(1, 3, 4, None, fence(2))]);
        refused(&[acquire(1, 1, 2, fence(1)), inspect(3, 4, held(1, 2))]);
    }

    #[test]
    fn stale_owner_is_refused() {
        let freed = [acquire(1, 1, 2, fence(1)), release(1, 3, 4, DONE)];
        let then = |operation: Operation| [&freed[..], &[operation]].concat();
        accepted(&then(release(1, 5, 6, Reply::Refused)));
        refused(&then(release(1, 5, 6, DONE)));
        accepted(&then(extend(1, 5, 6, None, Reply::Refused)));
        refused(&then(extend(1, 5, 6, None, fence(1))));
        refused(&then(inspect(5, 6, held(1, 1))));
        refused(&[acquire(1, 1, 2, fence(1)), release(2, 3, 4, DONE)]);
        refused(&[acquire(1, 1, 2, fence(1)), release(1, 3, 4, Reply::Refused)]);
        refused(&[acquire(1, 1, 2, fence(1)), inspect(3, 4, Reply::Free)]);
        refused(&[acquire(1, 1, 2, Reply::Refused)]);
    }

    #[test]
    fn unknown_outcome_is_done_or_not_done() {
        // The lock may have been granted or not.
        for then in [fence(1), Reply::Refused] {
            accepted(&[acquire(1, 1, 2, Reply::Unknown), acquire(2, 3, 4, then)]);
        }
        // If it was granted, the grant has its own fencing token.
        let unknown = acquire(1, 1, 2, Reply::Unknown);
        accepted(&[
            unknown.clone(),
            inspect(3, 4, held(1, 1)),
            release(1, 5, 6, DONE),
            acquire(2, 7, 8, fence(2)),
        ]);
        refused(&[
            unknown.clone(),
            inspect(3, 4, held(1, 1)),
            release(1, 5, 6, DONE),
            acquire(2, 7, 8, fence(1)),
        ]);
        // The lock cannot have been both granted and not granted.
        refused(&[
            unknown.clone(),
            inspect(3, 4, held(1, 1)),
            acquire(2, 5, 6, fence(2)),
        ]);
        // The operation cannot take effect after its end.
        refused(&[
            unknown,
            inspect(3, 4, Reply::Free),
            inspect(5, 6, held(1, 1)),
        ]);
        accepted(&[
            acquire(1, 1, 5, Reply::Unknown),
            inspect(3, 4, Reply::Free),
            inspect(5, 6, held(1, 1)),
        ]);
    }

    #[test]
    fn ephemeral_lease_ends_with_its_process() {
        // The lease may end from the kill on, and has ended when the process is gone.
        let killed = [acquire(1, 1, 2, fence(1)), death(1, 5, 9)];
        let then = |operation: Operation| [&killed[..], &[operation]].concat();
        refused(&then(acquire(2, 3, 4, fence(2))));
        accepted(&then(acquire(2, 6, 7, fence(2))));
        accepted(&then(acquire(2, 6, 7, Reply::Refused)));
        accepted(&then(acquire(2, 10, 11, fence(2))));
        refused(&then(acquire(2, 10, 11, Reply::Refused)));
        // Its last request may have been done, but not after the process was gone.
        let pending = |then: Operation| [acquire(1, 1, 9, Reply::Unknown), death(1, 5, 9), then];
        accepted(&pending(acquire(2, 6, 7, Reply::Refused)));
        accepted(&pending(acquire(2, 6, 7, fence(1))));
        refused(&pending(acquire(2, 10, 11, Reply::Refused)));
    }

    #[test]
    fn lease_expires_between_earliest_and_latest_end() {
        let extended_for_ten = extend(1, 3, 5, Some(10), fence(1));
        let then = |operation: Operation| {
            [
                acquire(1, 1, 2, fence(1)),
                extended_for_ten.clone(),
                operation,
            ]
        };
        // The lease ends between 13 and 15.
        accepted(&then(acquire(2, 11, 12, Reply::Refused)));
        refused(&then(acquire(2, 11, 12, fence(2))));
        accepted(&then(acquire(2, 14, 14, fence(2))));
        accepted(&then(acquire(2, 14, 14, Reply::Refused)));
        accepted(&then(acquire(2, 15, 16, fence(2))));
        refused(&then(acquire(2, 15, 16, Reply::Refused)));
        // An expired lease stays expired.
        refused(&[
            acquire(1, 1, 2, fence(1)),
            extended_for_ten.clone(),
            inspect(14, 14, Reply::Free),
            inspect(15, 15, held(1, 1)),
        ]);
    }

    #[test]
    fn force_release_is_possible_only_for_leases() {
        let force_release = |only, reply| request(9, 3, 4, Request::Evict { only }, reply);
        let taken = acquire(1, 1, 2, fence(1));
        let leases = |operations: &[Operation]| is_linearizable(LEASES, 0, operations);
        let locks = |operations: &[Operation]| is_linearizable(LOCKS, 0, operations);
        assert!(leases(&[taken.clone(), force_release(None, fence(1))]));
        assert!(leases(&[taken.clone(), force_release(Some(1), fence(1))]));
        assert!(!leases(&[taken.clone(), force_release(Some(2), fence(2))]));
        assert!(!leases(&[taken.clone(), force_release(None, fence(2))]));
        assert!(leases(&[
            taken.clone(),
            force_release(Some(2), Reply::Refused)
        ]));
        assert!(!leases(&[
            taken.clone(),
            force_release(Some(1), Reply::Refused)
        ]));
        assert!(!leases(&[
            taken.clone(),
            force_release(None, Reply::Refused)
        ]));
        assert!(!leases(&[force_release(None, DONE)]));
        let evicted = [
            taken.clone(),
            force_release(None, fence(1)),
            release(1, 5, 6, Reply::Refused),
        ];
        assert!(leases(&evicted));
        assert!(locks(&[
            taken.clone(),
            force_release(None, Reply::NotEvictable)
        ]));
        assert!(!locks(&[taken, force_release(None, fence(1))]));
        assert!(!locks(&[force_release(None, Reply::NotEvictable)]));
    }

    #[test]
    fn owner_token_is_transferable_only_for_leases() {
        let by_another = Operation {
            client: 2,
            ..release(1, 3, 4, DONE)
        };
        let history = [acquire(1, 1, 2, fence(1)), by_another];
        assert!(is_linearizable(LEASES, 0, &history));
        assert!(!is_linearizable(LOCKS, 0, &history));
        // A detached lease outlives its process.
        let detach = request(1, 3, 4, Request::Detach { owner: owner(1, 0) }, DONE);
        let detached = |then| {
            [
                acquire(1, 1, 2, fence(1)),
                detach.clone(),
                death(1, 5, 6),
                then,
            ]
        };
        assert!(is_linearizable(
            LEASES,
            0,
            &detached(acquire(2, 7, 8, Reply::Refused))
        ));
        assert!(!is_linearizable(
            LEASES,
            0,
            &detached(acquire(2, 7, 8, fence(2)))
        ));
    }

    /// While a process acquires a flock(2) lock again, the file has the record of its earlier grant.
    #[test]
    fn inspection_may_return_earlier_record_of_flock() {
        let again = |began| {
            let again = Request::Acquire {
                owner: owner(1, 1),
                is_ephemeral: true,
                ttl: None,
            };
            [
                acquire(1, 1, 2, fence(1)),
                release(1, 3, 4, DONE),
                request(1, 5, 8, again, fence(2)),
                inspect(began, began, held(1, 1)),
            ]
        };
        assert!(is_linearizable(LOCKS, 0, &again(6)));
        assert!(!is_linearizable(LOCKS, 0, &again(9)));
        assert!(!is_linearizable(LEASES, 0, &again(6)));
    }

    #[test]
    fn free_lock_with_waiters_may_be_refused() {
        let refused = [acquire(1, 1, 2, Reply::Refused)];
        let queued = Rules {
            is_prompt: false,
            ..LEASES
        };
        assert!(is_linearizable(queued, 0, &refused));
        let two = [acquire(1, 1, 2, fence(1)), acquire(2, 3, 4, fence(2))];
        assert!(!is_linearizable(queued, 0, &two));
    }

    #[test]
    fn reduced_history_ends_with_impossible_reply() {
        let history = [
            acquire(1, 1, 2, fence(1)),
            inspect(3, 4, held(1, 1)),
            acquire(2, 5, 6, Reply::Refused),
            release(1, 7, 8, DONE),
            acquire(2, 9, 10, fence(1)),
            inspect(11, 12, Reply::Free),
            acquire(3, 13, 14, Reply::Refused),
        ];
        let least = least(LEASES, 0, &history);
        let expected = [&history[0], &history[3], &history[4]].map(Clone::clone);
        assert_eq!(least, expected);
    }
}
