//! A model checker: it walks every interleaving of two clients, a store and a clock, breadth-first.
//! Requests and replies are delayed, get lost or turn into errors, waits end early or late, holders
//! release the lock, or stop for any length of time.
//!
//! In every state
//!
//! - a lease that its holder counts as unexpired is recorded in the store, for at least as long; so
//!   at most one lease is unexpired;
//! - the store has no record of a client that has failed, unless its final release was lost, too;
//! - a lease is unexpired when it is returned, with a fencing token greater than any before.
//!
//! It was tested with seeded bugs in `src/acquire.rs`, each of which it detects with every policy: a lease
//! counted from the reply, or for a tick too long; a final release omitted in all cases, after an error,
//! or after a grant that arrived too late; a lease returned after its expiry.

use std::collections::{HashSet, VecDeque};
use std::fmt::{self, Debug, Write};
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use verrou::{
    Acquire, AcquireStep, Acquired, Claim, Error, Fence, Lease, Name, Owner, Retry, StoreError,
    Timestamp, Ttl,
};

/// A tick is a millisecond.
const TTL: u64 = 2;
const END: u64 = 5;

#[derive(Clone, Debug)]
struct State {
    now: u64,
    /// The number of requests and replies that may still get lost.
    faults: u8,
    record: Option<Record>,
    grants: u64,
    clients: [Client; 2],
}

#[derive(Clone, Debug)]
struct Record {
    owner: Owner,
    fence: Fence,
    until: u64,
}

#[derive(Clone)]
struct Client {
    machine: Acquire,
    at: At,
    /// Whether the final release never reached the store.
    undo_lost: bool,
}

/// Writes the parts that affect the states that follow: a machine at its end has no effect.
impl Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = matches!(self.at, At::Holding(_) | At::Left | At::Failed { .. });
        let machine = (!ended).then_some(&self.machine);
        write!(f, "{machine:?} {:?} {}", self.at, self.undo_lost)
    }
}

/// The state of a client.
#[derive(Clone, Debug)]
enum At {
    /// It has not sent a request.
    Ready,
    /// It waits or sleeps until then; a wait may end early.
    Resting { until: u64, early: bool },
    /// Its request is in flight.
    Asking(Request),
    /// The reply is in flight.
    Answered(Acquired),
    /// It holds the lock.
    Holding(Lease),
    /// It has released the lock.
    Left,
    /// Its acquisition has failed.
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
    Claim::new(
        Name::new("lock").expect("a name"),
        Owner::from_bytes([number; 16]),
        Ttl::new(Duration::from_millis(TTL)).expect("a ttl"),
    )
}

impl State {
    fn first(retry: &Retry, faults: u8) -> Self {
        let client = |number| Client {
            machine: Acquire::new(claim(number), retry.clone(), at(0)),
            at: At::Ready,
            undo_lost: false,
        };
        let mut first = Self {
            now: 0,
            faults,
            record: None,
            grants: 0,
            clients: [client(1), client(2)],
        };
        // One of them sends the first request, at time zero.
        first.turn(0);
        first
    }

    /// Returns every state that can follow.
    fn followers(&self) -> Vec<Self> {
        let mut all = Vec::new();
        if self.now < END {
            let mut later = self.clone();
            later.now += 1;
            all.push(later);
        }
        for index in 0..self.clients.len() {
            let mut follows = |change: &dyn Fn(&mut Self)| {
                let mut next = self.clone();
                change(&mut next);
                all.push(next);
            };
            match &self.clients[index].at {
                At::Ready => follows(&|next| next.turn(index)),
                At::Resting { until, early } => {
                    if *early || *until <= self.now {
                        follows(&|next| next.wake(index));
                    }
                }
                At::Asking(request) => {
                    let request = *request;
                    follows(&|next| {
                        let reply = next.answer(index, request);
                        next.clients[index].at = At::Answered(reply);
                    });
                    if self.faults > 0 {
                        for error in [lost(), broken()] {
                            follows(&|next| {
                                next.clients[index].undo_lost |= request == Request::Release;
                                next.fail(index, &error);
                            });
                        }
                    }
                }
                At::Answered(reply) => {
                    let reply = *reply;
                    follows(&|next| next.receive(index, Ok(reply)));
                    if self.faults > 0 {
                        for error in [lost(), broken()] {
                            follows(&|next| next.fail(index, &error));
                        }
                    }
                }
                At::Holding(_) => follows(&|next| {
                    next.answer(index, Request::Release);
                    next.clients[index].at = At::Left;
                }),
                At::Left | At::Failed { .. } => {}
            }
        }
        all
    }

    /// Performs the next step of the client's machine.
    fn turn(&mut self, index: usize) {
        let now = self.now;
        let client = &mut self.clients[index];
        client.at = match client.machine.next(at(now)) {
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
                    "expired when returned: {lease:?}"
                );
                At::Holding(lease)
            }
            AcquireStep::Done(Err(error)) => At::Failed {
                timeout: matches!(error, Error::Timeout { .. }),
            },
        };
    }

    fn wake(&mut self, index: usize) {
        let now = at(self.now);
        self.clients[index].machine.waited(now);
        self.turn(index);
    }

    fn receive(&mut self, index: usize, reply: Result<Acquired, StoreError>) {
        let now = at(self.now);
        let machine = &mut self.clients[index].machine;
        if let AcquireStep::Release(_) = machine.next(now) {
            machine.released();
        } else {
            machine.received(now, reply);
        }
        // The machine's next step follows at once: no time passes inside the machine.
        self.turn(index);
    }

    fn fail(&mut self, index: usize, error: &StoreError) {
        self.faults -= 1;
        self.receive(index, Err(error.clone()));
    }

    /// Performs one operation of the reference store.
    fn answer(&mut self, index: usize, request: Request) -> Acquired {
        let owner = owner(index);
        let now = self.now;
        self.record.take_if(|record| record.until <= now);
        let mine = self
            .record
            .as_ref()
            .is_some_and(|record| record.owner == owner);
        match request {
            Request::Release if mine => {
                self.record = None;
                Acquired::Granted { fence: None }
            }
            Request::Release => Acquired::BUSY,
            Request::Acquire => {
                let fence = match &self.record {
                    Some(record) if mine => record.fence,
                    Some(record) => {
                        let remaining = Some(Duration::from_millis(record.until - now));
                        return Acquired::Busy { remaining };
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
                Acquired::Granted { fence: Some(fence) }
            }
        }
    }

    /// Returns the invariant that this state violates, if any.
    fn fault(&self) -> Option<String> {
        let record = self
            .record
            .as_ref()
            .filter(|record| self.now < record.until);
        let mut alive = 0;
        for (index, client) in self.clients.iter().enumerate() {
            let recorded = record.filter(|record| record.owner == owner(index));
            match &client.at {
                At::Holding(lease) if !lease.is_expired(at(self.now)) => {
                    alive += 1;
                    let covered = recorded.is_some_and(|record| {
                        lease.ends().is_some_and(|ends| ends <= at(record.until))
                            && lease.fence() == Some(record.fence)
                    });
                    if !covered {
                        return Some(format!(
                            "client {index} counts a lease that is not recorded"
                        ));
                    }
                }
                At::Failed { .. } if recorded.is_some() && !client.undo_lost => {
                    return Some(format!("client {index} failed and left its record"));
                }
                _ => {}
            }
        }
        (alive > 1).then(|| "two clients hold the lock".to_owned())
    }
}

fn owner(index: usize) -> Owner {
    claim(u8::try_from(index + 1).expect("a small number")).owner
}

fn lost() -> StoreError {
    StoreError::temporary("lost")
}

fn broken() -> StoreError {
    StoreError::permanent("broken")
}

/// Returns a hash of the state's `Debug` text.
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

/// The numbers of states and events that a walk visited.
#[derive(Debug, Default)]
struct Seen {
    states: usize,
    holders: usize,
    timeouts: usize,
    errors: usize,
    orphans: usize,
}

/// Walks all states that can follow from the first; panics at the first that violates an invariant.
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
        for client in &state.clients {
            match &client.at {
                At::Holding(_) => seen.holders += 1,
                At::Failed { timeout: true } => seen.timeouts += 1,
                At::Failed { timeout: false } => seen.errors += 1,
                _ => {}
            }
            seen.orphans += usize::from(client.undo_lost);
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
    // A walk that visits no such state proves nothing.
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
