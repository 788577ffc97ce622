//! Every interleaving of two askers, a store and a clock, walked breadth-first: requests and
//! replies take their time, get lost or turn into errors, waits end early or late, holders
//! release, or stop for as long as it takes.
//!
//! In every state of it
//!
//! - a lease that its holder counts as alive is recorded in the store, for at least as long; so
//!   at most one lease is alive;
//! - the store holds nothing of an asker that has given up, unless its undoing was lost, too;
//! - a lease was alive when it was handed out, under a fence greater than any before.
//!
//! Tried with seeded bugs in `src/acquire.rs`, each of which it finds in every policy: a lease
//! counted from the reply, or for a tick too long; an undo forgotten altogether, after an error,
//! or after a grant that came too late; a lease handed out when its time has passed.

use std::collections::{HashSet, VecDeque};
use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use verrou::{
    Acquire, AcquireStep, Claim, Error, Fence, Lease, Name, Owner, Reply, Retry, StoreError,
    Timestamp, Ttl,
};

/// A tick is a millisecond.
const TTL: u64 = 2;
const END: u64 = 5;

#[derive(Clone, Debug)]
struct State {
    now: u64,
    /// How many requests and replies may still get lost.
    faults: u8,
    record: Option<Record>,
    grants: u64,
    askers: [Asker; 2],
}

#[derive(Clone, Debug)]
struct Record {
    owner: Owner,
    fence: Fence,
    until: u64,
}

#[derive(Clone)]
struct Asker {
    machine: Acquire,
    at: At,
    /// The request to undo never reached the store.
    undo_lost: bool,
}

/// All that makes a difference from here on: a machine at its end is asked for nothing more.
impl Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = matches!(self.at, At::Holding(_) | At::Left | At::Failed { .. });
        let machine = (!ended).then_some(&self.machine);
        write!(f, "{machine:?} {:?} {}", self.at, self.undo_lost)
    }
}

/// Where an asker is.
#[derive(Clone, Debug)]
enum At {
    /// It has not begun to ask.
    Ready,
    /// It waits or sleeps until then; a wait may end early.
    Resting { until: u64, early: bool },
    /// Its request is on its way.
    Asking(Request),
    /// The reply is on its way.
    Answered(Reply),
    /// It was granted the lock.
    Holding(Lease),
    /// It released the lock it had.
    Left,
    /// It gave up.
    Failed { timeout: bool },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Request {
    Acquire,
    Release,
}

fn at(tick: u64) -> Timestamp {
    Timestamp::new(Duration::from_millis(tick))
}

fn ticks(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn claim(number: u8) -> Claim {
    Claim {
        name: Name::new("lock").expect("a name"),
        owner: Owner::from_bytes([number; 16]),
        ttl: Ttl::new(Duration::from_millis(TTL)).expect("a ttl"),
        ephemeral: false,
    }
}

impl State {
    fn first(retry: &Retry, faults: u8) -> Self {
        let asker = |number| Asker {
            machine: Acquire::new(claim(number), retry.clone(), at(0)),
            at: At::Ready,
            undo_lost: false,
        };
        let mut first = Self {
            now: 0,
            faults,
            record: None,
            grants: 0,
            askers: [asker(1), asker(2)],
        };
        // One of them asks first, and then it is time zero.
        first.turn(0);
        first
    }

    /// Every state that can follow.
    fn followers(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.now < END {
            let mut later = self.clone();
            later.now += 1;
            all.push(later);
        }
        for who in 0..self.askers.len() {
            let mut follows = |change: &dyn Fn(&mut Self)| {
                let mut next = self.clone();
                change(&mut next);
                all.push(next);
            };
            match &self.askers[who].at {
                At::Ready => follows(&|next| next.turn(who)),
                At::Resting { until, early } => {
                    if *early || *until <= self.now {
                        follows(&|next| next.wake(who));
                    }
                }
                At::Asking(request) => {
                    let request = *request;
                    follows(&|next| {
                        let reply = next.answer(who, request);
                        next.askers[who].at = At::Answered(reply);
                    });
                    if self.faults > 0 {
                        for error in [lost(), broken()] {
                            follows(&|next| {
                                next.askers[who].undo_lost |= request == Request::Release;
                                next.fail(who, &error);
                            });
                        }
                    }
                }
                At::Answered(reply) => {
                    let reply = *reply;
                    follows(&|next| next.hear(who, Ok(reply)));
                    if self.faults > 0 {
                        for error in [lost(), broken()] {
                            follows(&|next| next.fail(who, &error));
                        }
                    }
                }
                At::Holding(_) => follows(&|next| {
                    next.answer(who, Request::Release);
                    next.askers[who].at = At::Left;
                }),
                At::Left | At::Failed { .. } => {}
            }
        }
        all
    }

    /// The asker's machine says what it does now.
    fn turn(&mut self, who: usize) {
        let now = self.now;
        let asker = &mut self.askers[who];
        asker.at = match asker.machine.next(at(now)) {
            AcquireStep::Acquire(_) => At::Asking(Request::Acquire),
            AcquireStep::Release(_) => At::Asking(Request::Release),
            AcquireStep::Wait(_, pause) => At::Resting {
                until: now + ticks(pause),
                early: true,
            },
            AcquireStep::Sleep(pause) => At::Resting {
                until: now + ticks(pause),
                early: false,
            },
            AcquireStep::Done(Ok(lease)) => {
                assert!(
                    !lease.is_expired(at(now)),
                    "dead when handed out: {lease:?}"
                );
                At::Holding(lease)
            }
            AcquireStep::Done(Err(error)) => At::Failed {
                timeout: matches!(error, Error::Timeout { .. }),
            },
        };
    }

    fn wake(&mut self, who: usize) {
        let now = at(self.now);
        self.askers[who].machine.waited(now);
        self.turn(who);
    }

    fn hear(&mut self, who: usize, reply: Result<Reply, StoreError>) {
        let now = at(self.now);
        self.askers[who].machine.heard(now, reply);
        // What it makes of that it says at once: no time passes inside of it.
        self.turn(who);
    }

    fn fail(&mut self, who: usize, error: &StoreError) {
        self.faults -= 1;
        self.hear(who, Err(error.clone()));
    }

    /// The reference store: one step.
    fn answer(&mut self, who: usize, request: Request) -> Reply {
        let owner = owner(who);
        let now = self.now;
        self.record.take_if(|record| record.until <= now);
        let mine = self
            .record
            .as_ref()
            .is_some_and(|record| record.owner == owner);
        match request {
            Request::Release if mine => {
                self.record = None;
                Reply::Granted { fence: None }
            }
            Request::Release => Reply::REFUSED,
            Request::Acquire => {
                let fence = match &self.record {
                    Some(record) if mine => record.fence,
                    Some(record) => {
                        let remaining = Some(Duration::from_millis(record.until - now));
                        return Reply::Refused { remaining };
                    }
                    None => {
                        self.grants += 1;
                        Fence::new(self.grants).expect("a fence")
                    }
                };
                self.record = Some(Record {
                    owner,
                    fence,
                    until: now + TTL,
                });
                Reply::Granted { fence: Some(fence) }
            }
        }
    }

    /// What is wrong with this state.
    fn fault(&self) -> Option<String> {
        let record = self
            .record
            .as_ref()
            .filter(|record| self.now < record.until);
        let mut alive = 0;
        for (who, asker) in self.askers.iter().enumerate() {
            let recorded = record.filter(|record| record.owner == owner(who));
            match &asker.at {
                At::Holding(lease) if !lease.is_expired(at(self.now)) => {
                    alive += 1;
                    let covered = recorded.is_some_and(|record| {
                        lease.ends().is_some_and(|ends| ends <= at(record.until))
                            && lease.fence() == Some(record.fence)
                    });
                    if !covered {
                        return Some(format!("asker {who} counts on a lease it has not"));
                    }
                }
                At::Failed { .. } if recorded.is_some() && !asker.undo_lost => {
                    return Some(format!("asker {who} gave up and left its record"));
                }
                _ => {}
            }
        }
        (alive > 1).then(|| "two hold it".to_owned())
    }
}

fn owner(who: usize) -> Owner {
    claim(u8::try_from(who + 1).expect("a small number")).owner
}

fn lost() -> StoreError {
    StoreError::temporary("lost")
}

fn broken() -> StoreError {
    StoreError::permanent("broken")
}

/// A hash of what something looks like.
fn key(state: &impl Debug) -> u64 {
    struct Sink(DefaultHasher);
    impl Write for Sink {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.write(text.as_bytes());
            Ok(())
        }
    }
    let mut sink = Sink(DefaultHasher::new());
    write!(sink, "{state:?}").expect("a sink takes everything");
    sink.0.finish()
}

/// What a walk came across.
#[derive(Debug, Default)]
struct Seen {
    states: usize,
    holders: usize,
    timeouts: usize,
    errors: usize,
    orphans: usize,
}

/// Walks all states that can follow from the first; panics at the first that is wrong.
fn walk(retry: &Retry, faults: u8) -> Seen {
    let first = State::first(retry, faults);
    let mut known = HashSet::from([key(&first)]);
    let mut queue = VecDeque::from([first]);
    let mut seen = Seen::default();
    while let Some(state) = queue.pop_front() {
        if let Some(fault) = state.fault() {
            panic!("{fault}: {state:#?}");
        }
        seen.states += 1;
        for asker in &state.askers {
            match &asker.at {
                At::Holding(_) => seen.holders += 1,
                At::Failed { timeout: true } => seen.timeouts += 1,
                At::Failed { timeout: false } => seen.errors += 1,
                _ => {}
            }
            seen.orphans += usize::from(asker.undo_lost);
        }
        queue.extend(
            state
                .followers()
                .into_iter()
                .filter(|next| known.insert(key(next))),
        );
    }
    seen
}

fn check(retry: &Retry, faults: u8) {
    let seen = walk(retry, faults);
    // A walk that comes across nothing proves nothing.
    let Seen {
        states,
        holders,
        timeouts,
        errors,
        orphans,
    } = seen;
    assert!(states > 1_000, "{states}");
    for count in [holders, timeouts, errors, orphans] {
        assert!(count > 100, "{count}");
    }
}

fn retry() -> Retry {
    Retry::default()
        .delay(Duration::from_millis(1))
        .expect("a delay")
}

#[test]
fn one_attempt_is_safe() {
    check(&Retry::NEVER, 3);
}

#[test]
fn some_attempts_are_safe() {
    check(&retry().attempts(2).expect("attempts"), 1);
}

#[test]
fn attempts_until_a_deadline_are_safe() {
    check(&retry().timeout(Duration::from_millis(2)), 1);
}
