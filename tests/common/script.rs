//! A scripted world: the store's replies and their durations, and the ends of waits. It logs the
//! requests, and is both the store and the host, blocking and async.

use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use verrou::blocking::Host;
use verrou::nonblocking::AsyncHost;
use verrou::{
    Acquired, AsyncStore, AsyncWaiter, Capabilities, Claim, Clock, Fence, Holder, Name, Owner,
    Renewed, Store, StoreError, Timestamp, Ttl, Waiter, async_trait,
};

/// One line of a script.
#[derive(Debug)]
pub(crate) enum In {
    /// The next request gets this reply, after this time.
    Reply(Duration, Result<Acquired, StoreError>),
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
    In::Reply(Duration::ZERO, Ok(Acquired::Granted { fence }))
}

pub(crate) fn held() -> In {
    In::Reply(Duration::ZERO, Ok(Acquired::BUSY))
}

pub(crate) fn held_for(millis: u64) -> In {
    let remaining = Some(ms(millis));
    In::Reply(Duration::ZERO, Ok(Acquired::Busy { remaining }))
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
    Claim::new(
        Name::new("lock").expect("a name"),
        Owner::from_bytes([7; 16]),
        ttl,
    )
    .ephemeral(true)
}

#[derive(Debug)]
pub(crate) struct World(Mutex<State>, bool);

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
            Mutex::new(State {
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
        let state = self.0.into_inner().expect("a script without a panic");
        assert!(
            state.script.is_empty(),
            "{:?} left of the script after {:?}",
            state.script,
            state.log
        );
        state.log
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, what: impl Into<String>) {
        self.state().log.push(what.into());
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    fn answer(&self, operation: &str, requested: &Claim) -> Result<Acquired, StoreError> {
        // A retry must have the same owner.
        assert_eq!(requested.owner, claim(requested.ttl).owner);
        let mut state = self.state();
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
        let mut state = self.state();
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
        Timestamp::new(self.state().now)
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
        self.state().now
    }
}

impl AsyncHost for World {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> + Send {
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
        self.state().now
    }
}

impl Store for World {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.answer("acquire", claim)
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self.answer("extend", claim)?.is_granted())
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self.answer("release", claim)?.is_granted())
    }
    fn force_release(&self, _: &Name, _: Option<Fence>) -> Result<bool, StoreError> {
        panic!("no script force-releases")
    }
    fn holders(&self, _: &Name) -> Result<Vec<Holder>, StoreError> {
        panic!("no script requests the holders")
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        assert!(fence.is_some());
        let reply = self.answer("renew", claim)?;
        Ok(Renewed::by_extension(reply.is_granted()))
    }
    fn waiter<'s>(&'s self, _: &Claim) -> Option<Box<dyn Waiter + 's>> {
        Some(Box::new(WorldWaiter(self)))
    }
}

#[async_trait]
impl AsyncStore for World {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Store::acquire(self, claim)
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::extend(self, claim)
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::release(self, claim)
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Store::force_release(self, name, only)
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Store::holders(self, name)
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        Store::renew(self, claim, fence)
    }
    fn waiter<'s>(&'s self, _: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(Box::new(WorldWaiter(self)))
    }
}

struct WorldWaiter<'a>(&'a World);

impl Waiter for WorldWaiter<'_> {
    fn wait(&mut self, at_most: Duration) {
        self.0.rest("wait", at_most);
    }
    fn notifies(&self) -> bool {
        self.0.1
    }
}

#[async_trait]
impl AsyncWaiter for WorldWaiter<'_> {
    async fn wait(&mut self, at_most: Duration) {
        self.0.rest("wait", at_most);
    }
    fn notifies(&self) -> bool {
        self.0.1
    }
}
