//! A program's use of the component in futures: waiting, renewing a lease, cancelling a wait.

use std::future::{self, Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use pollster::block_on;
use verrou::conformance::TestClock;
use verrou::nonblocking::{AsyncHost, Inline, LockFactory};
use verrou::{
    Acquired, AsyncStore, Capabilities, Claim, Clock, Fence, Holder, MemoryStore, Name, Retry,
    StoreError, async_trait,
};
use verrou_host::System;
use verrou_host::component::{AsyncInstance, AsyncRunner, ComponentError, Limits};

use crate::places::SharedStore;
use crate::sleepless::Sleepless;
use crate::through::{Yielding, component};

pub(crate) type Memory<C> = Arc<MemoryStore<C>>;

fn instance<C, H>(store: &Memory<C>, host: H) -> AsyncInstance<Memory<C>, H>
where
    C: Clock + Send + Sync + 'static,
    H: AsyncHost + 'static,
{
    let runner = AsyncRunner::new(&component(), &Limits::default()).expect("the component");
    block_on(runner.instance(Arc::clone(store), host)).expect("an instance")
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn sendable<F: Send>(future: F) -> F {
    future
}

#[test]
fn release_wakes_future_that_waits_in_the_component() {
    let store = Arc::new(MemoryStore::new(System));
    let natively = LockFactory::new(Arc::clone(&store), Sleepless);
    let held = natively.create_lock("lock", "none").expect("a lock");
    block_on(held.acquire()).expect("a free lock");
    let mut instance = instance(&store, Sleepless);
    let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
    let policy = Retry::default();
    let woken = Arc::<Woken>::default();
    let fence = {
        let mut acquired = pin!(sendable(instance.acquire(lock, &policy)));
        let waker = Waker::from(Arc::clone(&woken));
        let polled = acquired.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        assert!(!woken.0.load(Ordering::Acquire));
        block_on(held.release()).expect("this lock's grant");
        assert!(woken.0.load(Ordering::Acquire));
        block_on(acquired).expect("a free lock")
    };
    assert!(fence.is_some());
    assert!(block_on(instance.is_held(lock)).expect("an answer"));
}

/// Dropping the future ends the wait; the instance stays usable.
#[test]
fn a_wait_can_be_dropped() {
    let store = Arc::new(MemoryStore::new(System));
    let mut instance = instance(&store, Sleepless);
    let [one, two] = [(); 2].map(|()| {
        let lock = block_on(instance.create_lock("lock", None));
        lock.expect("a lock")
    });
    let policy = Retry::default();
    block_on(instance.acquire(one, &policy)).expect("a free lock");
    // More often than an instance can have handles.
    for _ in 0..(1 << 15) + 10 {
        let mut waits = pin!(instance.acquire(two, &policy));
        let polled = poll_fn(|context| Poll::Ready(waits.as_mut().poll(context).is_pending()));
        assert!(block_on(polled));
    }
    assert!(block_on(instance.is_held(one)).expect("an answer"));
    block_on(instance.release(one)).expect("this lock's grant");
    assert!(block_on(instance.try_acquire(two)).expect("an answer"));
    let end = block_on(instance.acquire(one, &Retry::NEVER));
    match end {
        Err(ComponentError::Timeout { attempts: 1 }) => {}
        other => panic!("{other:?}"),
    }
}

/// Drops a future after so many polls, or at its end.
fn drop_after<T>(polls: usize, future: impl Future<Output = T>) {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..polls {
        if future.as_mut().poll(&mut context).is_ready() {
            return;
        }
    }
}

/// A future that is dropped during an operation of the store does not stop the instance: the next call completes the
/// call of the component first.
#[test]
fn instance_outlives_futures_that_are_dropped_at_any_poll() {
    let shared: SharedStore = Arc::new(MemoryStore::new(System));
    let runner = AsyncRunner::new(&component(), &Limits::default()).expect("the component");
    let store = Yielding(Inline(Arc::clone(&shared)));
    let mut instance = block_on(runner.instance(store, Sleepless)).expect("an instance");
    let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
    let policy = Retry::default();
    for polls in 1..6 {
        drop_after(polls, instance.acquire(lock, &policy));
        assert!(
            block_on(instance.is_held(lock)).expect("an answer"),
            "{polls} polls"
        );
        drop_after(polls, instance.release(lock));
        assert!(
            !block_on(instance.is_locked(lock)).expect("an answer"),
            "{polls} polls"
        );
    }
}

/// A store that does not answer requests for the lock "stuck".
#[derive(Debug)]
pub(crate) struct Stuck(pub(crate) Memory<System>);

#[async_trait]
impl AsyncStore for Stuck {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        if claim.name.as_str() == "stuck" {
            future::pending::<()>().await;
        }
        AsyncStore::acquire(&self.0, claim).await
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        AsyncStore::extend(&self.0, claim).await
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        AsyncStore::release(&self.0, claim).await
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        AsyncStore::force_release(&self.0, name, only).await
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        AsyncStore::holders(&self.0, name).await
    }
    fn capabilities(&self) -> Capabilities {
        AsyncStore::capabilities(&self.0)
    }
}

#[test]
fn instance_dropped_during_a_call_releases_its_locks() {
    let memory = Arc::new(MemoryStore::new(System));
    let runner = AsyncRunner::new(&component(), &Limits::default()).expect("the component");
    let store = Stuck(Arc::clone(&memory));
    let mut instance = block_on(runner.instance(store, Sleepless)).expect("an instance");
    let [lock, stuck] = ["lock", "stuck"].map(|name| {
        let lock = block_on(instance.create_lock(name, None));
        lock.expect("a lock")
    });
    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    drop_after(3, instance.try_acquire(stuck));
    drop(instance);
    let name = "lock".parse().expect("a name");
    let holders = block_on(AsyncStore::holders(&memory, &name));
    assert_eq!(holders.expect("an answer"), []);
}

/// The lease is renewed for as long as the work takes; when the lease is lost, the work is dropped.
#[test]
fn lease_is_renewed_during_the_work() {
    let clock = TestClock::still();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let mut instance = instance(&store, clock.clone());
    let ttl = Duration::from_secs(3);
    let lock = block_on(instance.create_lock("lock", Some(ttl))).expect("a lock");
    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    let began = clock.now();
    let done = poll_fn(|_| {
        if clock.now().saturating_since(began) > ttl * 3 {
            Poll::Ready("done")
        } else {
            Poll::Pending
        }
    });
    let kept = block_on(sendable(instance.keep(lock, done)));
    assert_eq!(kept.ok(), Some("done"));
    assert!(block_on(instance.is_held(lock)).expect("an answer"));

    let natively = LockFactory::new(Arc::clone(&store), clock.clone());
    let other = natively.create_lock("lock", "none").expect("a lock");
    let forced = async {
        other.force_release(None).await.expect("a force-release");
        future::pending::<()>().await;
    };
    let lost = block_on(instance.keep(lock, forced));
    assert_eq!(lost.expect_err("a loss").code(), "E_LOCK_LOST");
}
