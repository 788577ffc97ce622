//! Every future of a lock, dropped at every point at which it waits.
//!
//! Each async operation of a lock is repeated, and dropped at its first wait, at its second, and so on
//! until it completes. Afterwards it may have left nothing but the grant of a request whose outcome is
//! unknown: a lease that ends by its ttl.

mod common;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::script::ms;
use common::world::Memory;
use common::yield_now;
use pollster::block_on;
use verrou::conformance::TestClock;
use verrou::nonblocking::{Lock, LockFactory};
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Clock, Error, Fence,
    Holder, Loss, MemoryStore, Name, Owner, Renewed, Retry, RunError, Store, StoreError, Ttl,
    async_trait,
};

/// The length of the leases of the locks under test.
const TTL: Duration = Duration::from_secs(2);

/// The points at which an operation of the store waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Waits {
    /// It does not wait: it completes in one poll.
    Nowhere,
    /// Before the store performs it.
    Before,
    /// After the store has performed it.
    After,
    /// Before and after.
    Both,
}

/// A store whose operations may wait, and which records the tickets and unknown outcomes that are left.
#[derive(Debug)]
struct WaitingStore {
    memory: Memory,
    waits: Waits,
    recorded: Mutex<Recorded>,
    /// The number of current waits for a lock, or for its loss.
    waiting: AtomicUsize,
}

#[derive(Debug, Default)]
struct Recorded {
    /// The owners that have a ticket in the wait queue.
    tickets: Vec<Owner>,
    /// The requests that were dropped before their reply, and their owners.
    unknown: Vec<(Option<Owner>, Operation)>,
    /// Whether a release or force-release was requested.
    is_ended: bool,
    /// The fencing token of the latest grant.
    fence: Option<Fence>,
    /// The errors that the store returns for the next operations after performing them.
    errors: Vec<StoreError>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operation {
    Acquire,
    Extend,
    Release,
    ForceRelease,
    Holders,
    Detach,
}

/// A request in flight, which records its outcome as unknown when it is dropped before its reply.
struct InFlight<'a> {
    store: &'a WaitingStore,
    owner: Option<Owner>,
    operation: Operation,
    is_answered: bool,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let outcome = (self.owner, self.operation);
            self.store.recorded.lock().unwrap().unknown.push(outcome);
        }
    }
}

/// A wait, which is counted until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl WaitingStore {
    async fn operate<T>(
        &self,
        owner: Option<Owner>,
        operation: Operation,
        perform: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut request = InFlight {
            store: self,
            owner,
            operation,
            is_answered: false,
        };
        if matches!(operation, Operation::Release | Operation::ForceRelease) {
            self.recorded.lock().unwrap().is_ended = true;
        }
        if matches!(self.waits, Waits::Before | Waits::Both) {
            yield_now().await;
        }
        let reply = perform();
        if matches!(self.waits, Waits::After | Waits::Both) {
            yield_now().await;
        }
        request.is_answered = true;
        match self.recorded.lock().unwrap().errors.pop() {
            Some(error) => Err(error),
            None => reply,
        }
    }

    /// Makes the next operations return these errors, the last one first.
    fn fail(&self, errors: impl IntoIterator<Item = StoreError>) {
        self.recorded.lock().unwrap().errors = errors.into_iter().collect();
    }

    fn unknown(&self) -> Vec<(Option<Owner>, Operation)> {
        self.recorded.lock().unwrap().unknown.clone()
    }

    fn holder(&self) -> Option<Holder> {
        Store::holders(&self.memory, &name()).unwrap().pop()
    }

    fn is_held_by(&self, owner: Owner) -> bool {
        let claim = Claim::new(name(), owner, Ttl::NEVER);
        Store::holds(&self.memory, &claim, None).unwrap()
    }
}

#[async_trait]
impl AsyncStore for WaitingStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let perform = || {
            let reply = Store::acquire(&self.memory, claim);
            if let Ok(Acquired::Granted { fence }) = reply {
                let mut recorded = self.recorded.lock().unwrap();
                recorded.tickets.retain(|ticket| *ticket != claim.owner);
                recorded.fence = fence;
            }
            reply
        };
        self.operate(Some(claim.owner), Operation::Acquire, perform)
            .await
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let perform = || Store::extend(&self.memory, claim);
        self.operate(Some(claim.owner), Operation::Extend, perform)
            .await
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let perform = || Store::release(&self.memory, claim);
        self.operate(Some(claim.owner), Operation::Release, perform)
            .await
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let perform = || Store::force_release(&self.memory, name, only);
        self.operate(None, Operation::ForceRelease, perform).await
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let perform = || Store::holders(&self.memory, name);
        self.operate(None, Operation::Holders, perform).await
    }
    fn capabilities(&self) -> Capabilities {
        Store::capabilities(&self.memory)
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let perform = || Store::renew(&self.memory, claim, fence);
        self.operate(Some(claim.owner), Operation::Extend, perform)
            .await
    }
    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let perform = || Store::detach(&self.memory, claim);
        self.operate(Some(claim.owner), Operation::Detach, perform)
            .await
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(Box::new(WaitingWaiter {
            waiter: AsyncStore::waiter(&self.memory, claim)?,
            store: self,
            owner: claim.owner,
        }))
    }
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        Some(Box::new(WaitingWatch(self, claim.owner)))
    }
}

/// A waiter whose ticket is recorded.
struct WaitingWaiter<'a> {
    waiter: Box<dyn AsyncWaiter + 'a>,
    store: &'a WaitingStore,
    owner: Owner,
}

#[async_trait]
impl AsyncWaiter for WaitingWaiter<'_> {
    async fn wait(&mut self, at_most: Duration) {
        let _waiting = Waiting::new(&self.store.waiting);
        {
            let mut recorded = self.store.recorded.lock().unwrap();
            if !recorded.tickets.contains(&self.owner) {
                recorded.tickets.push(self.owner);
            }
        }
        self.waiter.wait(at_most).await;
    }
}

impl Drop for WaitingWaiter<'_> {
    fn drop(&mut self) {
        let mut recorded = self.store.recorded.lock().unwrap();
        recorded.tickets.retain(|ticket| *ticket != self.owner);
    }
}

/// A watch that ends when the owner is no longer the holder.
struct WaitingWatch<'a>(&'a WaitingStore, Owner);

#[async_trait]
impl AsyncLossWatch for WaitingWatch<'_> {
    async fn wait(&mut self) {
        let _waiting = Waiting::new(&self.0.waiting);
        poll_fn(|_| {
            if self.0.is_held_by(self.1) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}

fn name() -> Name {
    Name::new("lock").unwrap()
}

/// A lock under test, and another client that requests it.
struct Fixture {
    clock: TestClock,
    store: Arc<WaitingStore>,
    lock: Lock<Arc<WaitingStore>, TestClock>,
    other: Lock<Memory, TestClock>,
}

impl Fixture {
    fn new(waits: Waits) -> Self {
        let clock = TestClock::still();
        let memory = Arc::new(MemoryStore::new(clock.clone()));
        let store = Arc::new(WaitingStore {
            memory: Arc::clone(&memory),
            waits,
            recorded: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        let locks = LockFactory::new(Arc::clone(&store), clock.clone());
        let others = LockFactory::new(memory, clock.clone());
        Self {
            lock: locks.create_lock("lock", TTL).unwrap(),
            other: others.create_lock("lock", "1h").unwrap(),
            clock,
            store,
        }
    }

    fn lease_owner(&self) -> Option<Owner> {
        Some(self.lock.lease()?.owner())
    }

    /// Asserts that the store records the lock's lease, for at least as long, unless its end was requested.
    fn assert_lease_is_recorded(&self) {
        let unknown = self.store.unknown();
        let Some(lease) = self.lock.lease() else {
            return;
        };
        let now = self.clock.now();
        if lease.is_expired(now) || self.store.recorded.lock().unwrap().is_ended {
            return;
        }
        let holder = self.store.holder();
        let holder = holder.unwrap_or_else(|| panic!("{lease:?} is recorded, after {unknown:?}"));
        assert!(self.store.is_held_by(lease.owner()), "after {unknown:?}");
        if let Some(recorded) = holder.remaining {
            let counted = lease
                .remaining(now)
                .expect("a lease that expires in the store expires here");
            assert!(
                counted <= recorded,
                "the lease counts {counted:?}, the store records {recorded:?}, after {unknown:?}"
            );
        }
    }

    /// Asserts that no waiter is left, that the holder is the lock, the other client, or a request with an
    /// unknown outcome, whose lease then expires, and that the lock can be acquired afterwards.
    fn assert_only_unknown_outcomes_are_left(&self) {
        assert_eq!(self.store.waiting.load(Ordering::Relaxed), 0, "waiters");
        let unknown = self.store.unknown();
        self.store.fail([]);
        {
            let recorded = self.store.recorded.lock().unwrap();
            assert_eq!(recorded.tickets, [], "a ticket is left, after {unknown:?}");
        }
        self.assert_lease_is_recorded();
        if let Some(holder) = self.store.holder() {
            let is_its = |owner: Option<Owner>| owner.is_some_and(|it| self.store.is_held_by(it));
            if is_its(self.other.lease().map(|lease| lease.owner())) {
                block_on(self.other.release()).unwrap();
            } else {
                let is_unknown = unknown.iter().any(|(of, _)| is_its(*of));
                let is_the_locks = is_its(self.lease_owner());
                assert!(
                    is_unknown || is_the_locks,
                    "{holder:?} belongs to no client, after {unknown:?}"
                );
                if is_the_locks {
                    block_on(self.lock.release()).unwrap();
                } else {
                    let left = holder.remaining.expect("an end");
                    assert!(left <= TTL, "{left:?} are left, after {unknown:?}");
                    self.clock.advance(left);
                }
            }
        }
        assert_eq!(self.store.holder(), None);
        block_on(self.other.try_acquire()).expect("a free lock");
        block_on(self.other.release()).unwrap();
        // The lock can be used again.
        let before = self.store.recorded.lock().unwrap().fence;
        let lease = block_on(self.lock.try_acquire()).expect("it can be acquired again");
        assert!(before < lease.fence(), "{before:?} before {lease:?}");
        assert!(block_on(self.lock.is_held()).unwrap());
        block_on(self.lock.release()).expect("it can be released");
        assert_eq!(self.store.holder(), None);
    }
}

struct NoWake;

impl Wake for NoWake {
    fn wake(self: Arc<Self>) {}
}

/// Repeats `what`, each time up to one wait more, and drops it there; calls `meanwhile` before each poll,
/// and `check` with the result of `what`. Returns the number of waits until its completion, summed over
/// all [`Waits`] of the store.
#[expect(
    clippy::needless_pass_by_value,
    reason = "each is written where it is passed"
)]
fn at_every_wait<T>(
    before: impl Fn(&Fixture),
    what: impl AsyncFn(&Fixture) -> T,
    meanwhile: impl Fn(&Fixture, usize),
    check: impl Fn(&Fixture, Waits, Option<T>),
) -> usize {
    let mut waited = 0;
    for waits in [Waits::Nowhere, Waits::Before, Waits::After, Waits::Both] {
        for polls in 0.. {
            assert!(polls < 200, "it completes");
            let fixture = Fixture::new(waits);
            before(&fixture);
            let wake = Arc::new(NoWake);
            let ended = {
                let waker = Waker::from(Arc::clone(&wake));
                let mut context = Context::from_waker(&waker);
                let mut future = pin!(what(&fixture));
                (0..polls).find_map(|poll| {
                    meanwhile(&fixture, poll);
                    match future.as_mut().poll(&mut context) {
                        Poll::Ready(end) => Some(end),
                        Poll::Pending => None,
                    }
                })
            };
            assert_eq!(Arc::strong_count(&wake), 1, "its waker is dropped with it");
            let is_over = ended.is_some();
            check(&fixture, waits, ended);
            fixture.assert_only_unknown_outcomes_are_left();
            if is_over {
                waited += polls - 1;
                break;
            }
        }
    }
    waited
}

fn nothing(_: &Fixture) {}

fn nothing_happens(_: &Fixture, _: usize) {}

fn held_by_another(fixture: &Fixture) {
    block_on(fixture.other.acquire()).unwrap();
}

fn held(fixture: &Fixture) {
    block_on(fixture.lock.acquire()).unwrap();
}

/// Panics if it ended with an error.
fn assert_ok<T: std::fmt::Debug>(ended: Option<Result<T, Error>>) {
    if let Some(ended) = ended {
        ended.expect("no error");
    }
}

#[test]
fn dropped_acquisition_of_a_free_lock() {
    let waits = at_every_wait(
        nothing,
        async |fixture| fixture.lock.acquire().await,
        nothing_happens,
        |_, _, ended| assert_ok(ended),
    );
    assert_eq!(waits, 4);
    let waits = at_every_wait(
        nothing,
        async |fixture| fixture.lock.try_acquire().await,
        nothing_happens,
        |_, _, ended| assert_ok(ended),
    );
    assert_eq!(waits, 4);
}

#[test]
fn dropped_acquisition_that_is_refused() {
    let is_refused = |ended: Option<Result<_, Error>>| {
        if let Some(ended) = ended {
            assert!(matches!(ended, Err(Error::Timeout { .. })), "{ended:?}");
        }
    };
    let waits = at_every_wait(
        held_by_another,
        async |fixture| fixture.lock.try_acquire().await,
        nothing_happens,
        |_, _, ended| is_refused(ended),
    );
    assert_eq!(waits, 4);
    let waits = at_every_wait(
        held_by_another,
        async |fixture| {
            let retry = Retry::default().attempts(4).unwrap();
            fixture.lock.acquire_with(&retry).await
        },
        nothing_happens,
        |_, _, ended| is_refused(ended),
    );
    assert_eq!(waits, 4 * 4 + 3 * 4, "four attempts, and three pauses");
}

/// The lock is released at any moment, also just before the drop.
#[test]
fn dropped_acquisition_that_waits() {
    let mut waits = 0;
    for freed in 0..8 {
        waits += at_every_wait(
            held_by_another,
            async |fixture| fixture.lock.acquire().await,
            |fixture, poll| {
                if poll == freed {
                    block_on(fixture.other.release()).unwrap();
                }
            },
            |_, _, ended| assert_ok(ended),
        );
    }
    assert!(waits > 80, "{waits}");
}

/// The next waiter acquires the lock as soon as the first is dropped, and so does the one after it.
#[test]
fn dropped_acquisition_with_several_waiters() {
    for freed in 0..6 {
        at_every_wait(
            held_by_another,
            async |fixture| {
                let locks = LockFactory::new(Arc::clone(&fixture.store), fixture.clock.clone());
                let second = locks.create_lock("lock", TTL).unwrap();
                let mut first = pin!(fixture.lock.acquire());
                let mut next = pin!(second.acquire());
                let mut ends = (None, None);
                poll_fn(|context| {
                    if let (None, Poll::Ready(end)) = (&ends.0, first.as_mut().poll(context)) {
                        ends.0 = Some(end);
                        return Poll::Ready(());
                    }
                    if let (None, Poll::Ready(end)) = (&ends.1, next.as_mut().poll(context)) {
                        ends.1 = Some(end);
                        return Poll::Ready(());
                    }
                    Poll::Pending
                })
                .await;
                if let Some(lease) = ends.1 {
                    lease.unwrap();
                    second.release().await.unwrap();
                }
            },
            |fixture, poll| {
                if poll == freed {
                    block_on(fixture.other.release()).unwrap();
                }
            },
            |_, _, _| (),
        );
    }
}

/// After lost replies, a dropped acquisition releases the grant that it may have.
#[test]
fn dropped_acquisition_whose_replies_are_lost() {
    let lost = || StoreError::temporary("the reply was lost");
    let waits = at_every_wait(
        |fixture| fixture.store.fail([lost(), lost()]),
        async |fixture| fixture.lock.acquire().await,
        nothing_happens,
        |fixture, waits, ended| {
            if ended.is_none() && waits == Waits::Nowhere {
                assert_eq!(fixture.store.holder(), None, "dropped in a pause");
            }
            assert_ok(ended);
        },
    );
    assert_eq!(waits, 3 * 4 + 2 * 4, "three attempts, and two pauses");
    let waits = at_every_wait(
        |fixture| fixture.store.fail([StoreError::permanent("it is broken")]),
        async |fixture| fixture.lock.acquire().await,
        nothing_happens,
        |fixture, _, ended| {
            if let Some(ended) = ended {
                assert!(matches!(ended, Err(Error::Storage(_))), "{ended:?}");
                assert_eq!(fixture.store.holder(), None, "it was released");
            }
        },
    );
    assert_eq!(waits, 2 * 4, "an attempt, and a release");
}

#[test]
fn dropped_extension() {
    for ttl in [None, Some(ms(100)), Some(ms(60_000))] {
        let ttl = ttl.map(|ttl| Ttl::new(ttl).unwrap());
        let waits = at_every_wait(
            held,
            async |fixture| fixture.lock.extend(ttl.unwrap_or(fixture.lock.ttl())).await,
            nothing_happens,
            |_, _, ended| assert_ok(ended),
        );
        assert_eq!(waits, 4);
        at_every_wait(
            |fixture| {
                held(fixture);
                fixture
                    .store
                    .fail([StoreError::temporary("the reply was lost")]);
            },
            async |fixture| fixture.lock.extend(ttl.unwrap_or(fixture.lock.ttl())).await,
            nothing_happens,
            |_, _, _| (),
        );
    }
}

/// The store may perform a dropped extension after one that was sent before the drop.
#[test]
fn dropped_extension_limits_the_one_in_flight_beside_it() {
    let fixture = Fixture::new(Waits::Before);
    held(&fixture);
    let [short, long] = [ms(100), ms(60_000)].map(|ttl| Ttl::new(ttl).unwrap());
    let mut context = Context::from_waker(Waker::noop());
    let mut dropped = Box::pin(fixture.lock.extend(short));
    let mut beside = pin!(fixture.lock.extend(long));
    assert!(dropped.as_mut().poll(&mut context).is_pending());
    assert!(beside.as_mut().poll(&mut context).is_pending());
    drop(dropped);
    let mut after = pin!(fixture.lock.extend(long));
    assert!(after.as_mut().poll(&mut context).is_pending());
    block_on(beside).unwrap();
    assert_eq!(fixture.lock.remaining(), short.duration());
    block_on(after).unwrap();
    assert_eq!(fixture.lock.remaining(), long.duration());
}

#[test]
fn extension_in_flight_limits_all_that_are_granted_meanwhile() {
    let fixture = Fixture::new(Waits::Before);
    held(&fixture);
    let [short, long] = [ms(100), ms(60_000)].map(|ttl| Ttl::new(ttl).unwrap());
    let mut in_flight = Box::pin(fixture.lock.extend(short));
    let mut context = Context::from_waker(Waker::noop());
    assert!(in_flight.as_mut().poll(&mut context).is_pending());
    for _ in 0..2 {
        block_on(fixture.lock.extend(long)).unwrap();
        assert_eq!(fixture.lock.remaining(), short.duration());
    }
    drop(in_flight);
    block_on(fixture.lock.extend(long)).unwrap();
    assert_eq!(fixture.lock.remaining(), long.duration());
}

#[test]
fn dropped_release() {
    let waits = at_every_wait(
        held,
        async |fixture| fixture.lock.release().await,
        nothing_happens,
        |fixture, waits, ended| {
            if ended.is_some() || waits == Waits::After && !fixture.store.unknown().is_empty() {
                assert_eq!(fixture.store.holder(), None);
            }
            assert_ok(ended);
        },
    );
    assert_eq!(waits, 4);
}

#[test]
fn dropped_force_release() {
    for before in [held, held_by_another] {
        let waits = at_every_wait(
            before,
            async |fixture| fixture.lock.force_release(None).await,
            nothing_happens,
            |fixture, _, ended| {
                if ended.is_some() {
                    assert_eq!(fixture.store.holder(), None);
                }
                assert_ok(ended);
            },
        );
        assert_eq!(waits, 4);
    }
}

#[test]
fn dropped_serialization() {
    let waits = at_every_wait(
        held,
        async |fixture| fixture.lock.serialize().await,
        nothing_happens,
        |_, _, ended| assert_ok(ended),
    );
    assert_eq!(waits, 4);
}

#[test]
fn dropped_query() {
    let waits = at_every_wait(
        held,
        async |fixture| fixture.lock.is_locked().await,
        nothing_happens,
        |_, _, ended| assert_ok(ended),
    );
    assert_eq!(waits, 4);
    let waits = at_every_wait(
        held,
        async |fixture| fixture.lock.is_held().await,
        nothing_happens,
        |_, _, ended| assert_ok(ended),
    );
    assert_eq!(waits, 4);
}

/// Asserts that after a dropped `run` the lock is free at once in a store whose release completes in one
/// poll. In other stores it is held for at most its ttl.
fn assert_released<T>(fixture: &Fixture, waits: Waits, ended: Option<&T>) {
    let unknown = fixture.store.unknown();
    let was_acquiring = unknown
        .iter()
        .any(|(_, operation)| *operation == Operation::Acquire);
    let at_once = matches!(waits, Waits::Nowhere | Waits::After);
    if ended.is_some() || (at_once && !was_acquiring) {
        assert_eq!(fixture.store.holder(), None, "after {unknown:?}");
    }
}

#[test]
fn dropped_run() {
    let waits = at_every_wait(
        nothing,
        async |fixture| {
            let ran = fixture.lock.run(async |held| {
                yield_now().await;
                held.extend(held.ttl()).await.unwrap();
                yield_now().await;
                "done"
            });
            ran.await
        },
        nothing_happens,
        |fixture, waits, ended| {
            assert_released(fixture, waits, ended.as_ref());
            if let Some(ended) = ended {
                assert_eq!(ended.unwrap(), "done");
            }
        },
    );
    assert_eq!(
        waits,
        3 * 4 + 2 * 4,
        "three operations, and two waits of its own"
    );
}

/// Yields until the clock has advanced by this many ttls.
async fn outlast(fixture: &Fixture, ttls: u32) {
    let end = fixture.clock.elapsed() + ttls * TTL;
    while fixture.clock.elapsed() < end {
        yield_now().await;
    }
}

#[test]
fn dropped_run_with_auto_renewal() {
    let waits = at_every_wait(
        nothing,
        async |fixture| {
            let ran = fixture
                .lock
                .run(async |held| held.keep(outlast(fixture, 2)).await);
            ran.await
        },
        |fixture, _| fixture.assert_lease_is_recorded(),
        |fixture, waits, ended| {
            assert_released(fixture, waits, ended.as_ref());
            if let Some(ended) = ended {
                ended.unwrap().unwrap();
            }
        },
    );
    assert!(
        waits > 2 * 4 + 5 * 8,
        "{waits}: two operations, and five renewals"
    );
}

/// The lease was extended for longer than the lock's own ttl before.
#[test]
fn dropped_run_with_auto_renewal_of_a_longer_lease() {
    let longer = Ttl::new(ms(60_000)).unwrap();
    let waits = at_every_wait(
        nothing,
        async |fixture| {
            let ran = fixture.lock.run(async |held| {
                held.extend(longer).await?;
                held.keep(outlast(fixture, 1)).await
            });
            ran.await
        },
        |fixture, _| fixture.assert_lease_is_recorded(),
        |fixture, waits, ended| {
            assert_released(fixture, waits, ended.as_ref());
            if let Some(ended) = ended {
                ended.unwrap().unwrap();
            }
        },
    );
    assert!(waits > 0);
}

/// The work ends at each moment of the auto-renewal; the lease stays held.
#[test]
fn dropped_run_whose_work_ends_during_auto_renewal() {
    let longer = Ttl::new(ms(60_000)).unwrap();
    for extended in [None, Some(longer)] {
        for yields in 0..12 {
            at_every_wait(
                nothing,
                async |fixture| {
                    let ran = fixture.lock.run(async |held| {
                        held.extend(extended.unwrap_or(held.ttl())).await?;
                        let kept = held.keep(async {
                            for _ in 0..yields {
                                yield_now().await;
                            }
                        });
                        kept.await?;
                        // Regardless of the outcome of the last renewal.
                        fixture.assert_lease_is_recorded();
                        yield_now().await;
                        fixture.assert_lease_is_recorded();
                        Ok::<_, Error>(())
                    });
                    ran.await
                },
                |fixture, _| fixture.assert_lease_is_recorded(),
                |fixture, waits, ended| {
                    assert_released(fixture, waits, ended.as_ref());
                    if let Some(ended) = ended {
                        ended.unwrap().unwrap();
                    }
                },
            );
        }
    }
}

#[test]
fn dropped_run_that_loses_its_lease() {
    for revoked in 0..8 {
        at_every_wait(
            nothing,
            async |fixture| {
                let ran = fixture
                    .lock
                    .run(async |held| held.keep(outlast(fixture, 3)).await);
                ran.await
            },
            |fixture, poll| {
                if poll == revoked {
                    block_on(fixture.other.force_release(None)).unwrap();
                }
            },
            |_, _, ended| match ended {
                // The run was dropped, or the lock was force-released before the grant.
                None | Some(Ok(Ok(()))) => {}
                Some(Err(RunError::Ended {
                    value: Err(Error::Lost { loss, .. }),
                    error: Error::Lost { loss: again, .. },
                })) => {
                    assert_eq!((loss, again), (Loss::Revoked, Loss::Revoked));
                }
                Some(ended) => panic!("{ended:?}"),
            },
        );
    }
}
