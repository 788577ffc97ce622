//! A scripted world: the store's replies and their durations, and the ends of waits. It logs the
//! requests, and is both the store and the host, blocking and async.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::{Future, poll_fn, ready};
use std::task::Poll;
use std::time::Duration;

use verrou::blocking::Host;
use verrou::nonblocking::AsyncHost;
use verrou::{
    Abilities, AsyncStore, Claim, Clock, Fence, Holder, Name, Owner, Renewed, Reply, Store,
    StoreError, Timestamp, Ttl, Waited,
};

/// One line of a script.
#[derive(Debug)]
pub(crate) enum In {
    /// The next request gets this reply, after this time.
    Reply(Duration, Result<Reply, StoreError>),
    /// The next wait ends after this time, regardless of its requested length.
    Wake(Duration),
    /// The auto-renewal ends when the next wait begins.
    Stop,
}

impl In {
    /// Returns the same reply, after `millis` milliseconds.
    pub(crate) fn after(self, millis: u64) -> Self {
        match self {
            Self::Reply(_, reply) => Self::Reply(ms(millis), reply),
            other => panic!("{other:?} is not a reply"),
        }
    }
}

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn granted(number: u64) -> In {
    let fence = Fence::new(number);
    In::Reply(Duration::ZERO, Ok(Reply::Granted { fence }))
}

pub(crate) fn held() -> In {
    In::Reply(Duration::ZERO, Ok(Reply::REFUSED))
}

pub(crate) fn held_for(millis: u64) -> In {
    let remaining = Some(ms(millis));
    In::Reply(Duration::ZERO, Ok(Reply::Refused { remaining }))
}

/// Returns a temporary error.
pub(crate) fn trouble() -> In {
    In::Reply(Duration::ZERO, Err(StoreError::temporary("in trouble")))
}

/// Returns a permanent error.
pub(crate) fn broken() -> In {
    In::Reply(Duration::ZERO, Err(StoreError::permanent("broken")))
}

pub(crate) fn woken(millis: u64) -> In {
    In::Wake(ms(millis))
}

pub(crate) fn claim(ttl: Ttl) -> Claim {
    Claim {
        name: Name::new("lock").expect("a name"),
        owner: Owner::from_bytes([7; 16]),
        ttl,
        ephemeral: true,
    }
}

#[derive(Debug)]
pub(crate) struct World(RefCell<State>, bool);

#[derive(Debug)]
struct State {
    now: Duration,
    script: VecDeque<In>,
    log: Vec<String>,
    stopped: bool,
}

impl World {
    pub(crate) fn new(script: Vec<In>) -> Self {
        Self(
            RefCell::new(State {
                now: Duration::ZERO,
                script: script.into(),
                log: Vec::new(),
                stopped: false,
            }),
            false,
        )
    }

    /// Returns a world whose store notifies waiters.
    pub(crate) fn notifying(script: Vec<In>) -> Self {
        Self(Self::new(script).0, true)
    }

    /// Returns the log; the script must have been played to its end.
    pub(crate) fn log(self) -> Vec<String> {
        let state = self.0.into_inner();
        assert!(
            state.script.is_empty(),
            "{:?} left of the script after {:?}",
            state.script,
            state.log
        );
        state.log
    }

    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.borrow_mut().log.push(what.into());
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.0.borrow().stopped
    }

    fn answer(&self, operation: &str, requested: &Claim) -> Result<Reply, StoreError> {
        // A retry must have the same owner.
        assert_eq!(requested.owner, claim(requested.ttl).owner);
        let mut state = self.0.borrow_mut();
        let line = format!("{operation}@{:?}", state.now);
        state.log.push(line);
        match state.script.pop_front() {
            Some(In::Reply(takes, reply)) => {
                state.now += takes;
                reply
            }
            other => panic!("{other:?} for {:?}", state.log),
        }
    }

    /// Performs a wait or a sleep; returns `false` when the script stops there.
    pub(crate) fn rest(&self, kind: &str, at_most: Duration) -> bool {
        let mut state = self.0.borrow_mut();
        state.log.push(format!("{kind} {at_most:?}"));
        let lasts = match state.script.front() {
            Some(In::Stop) => {
                state.script.pop_front();
                state.stopped = true;
                return false;
            }
            Some(In::Wake(lasts)) => {
                let lasts = *lasts;
                state.script.pop_front();
                lasts
            }
            _ => at_most,
        };
        state.now += lasts;
        true
    }
}

impl Clock for World {
    fn now(&self) -> Timestamp {
        Timestamp::new(self.0.borrow().now)
    }
}

impl Host for World {
    fn sleep(&self, pause: Duration) {
        self.rest("sleep", pause);
    }
    fn random(&self) -> [u8; 16] {
        [7; 16]
    }
    fn wall_clock(&self) -> Duration {
        self.0.borrow().now
    }
}

impl AsyncHost for World {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> {
        poll_fn(move |context| {
            if self.is_stopped() || !self.rest("sleep", pause) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
    }
    fn random(&self) -> [u8; 16] {
        [7; 16]
    }
    fn wall_clock(&self) -> Duration {
        self.0.borrow().now
    }
}

impl Store for World {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.answer("acquire", claim)
    }
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.answer("extend", claim)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        assert!(fence.is_some());
        Ok(self.answer("renew", claim)?.into())
    }
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.answer("release", claim)
    }
    fn evict(&self, _: &Name, _: Option<Fence>) -> Result<Reply, StoreError> {
        panic!("no script evicts")
    }
    fn inspect(&self, _: &Name) -> Result<Option<Holder>, StoreError> {
        panic!("no script inspects")
    }
    fn wait(&self, _: &Claim, at_most: Duration) -> Waited {
        self.rest("wait", at_most);
        Waited::Done
    }
    fn notifies(&self) -> bool {
        self.1
    }
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }
}

impl AsyncStore for World {
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        ready(Store::acquire(self, claim))
    }
    fn extend(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        ready(Store::extend(self, claim))
    }
    fn renew(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Renewed, StoreError>> {
        ready(Store::renew(self, claim, fence))
    }
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        ready(Store::release(self, claim))
    }
    fn evict(
        &self,
        name: &Name,
        only: Option<Fence>,
    ) -> impl Future<Output = Result<Reply, StoreError>> {
        ready(Store::evict(self, name, only))
    }
    fn inspect(&self, name: &Name) -> impl Future<Output = Result<Option<Holder>, StoreError>> {
        ready(Store::inspect(self, name))
    }
    async fn wait(&self, claim: &Claim, at_most: Duration) {
        Store::wait(self, claim, at_most);
    }
    fn notifies(&self) -> bool {
        Store::notifies(self)
    }
    fn abilities(&self) -> Abilities {
        Abilities::default()
    }
}
