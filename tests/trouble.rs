//! Locks under failures: a store that fails or is slow, futures that are dropped, many waiters; and the
//! errors that are returned.

mod common;

use std::collections::HashSet;
use std::error::Error as _;
use std::future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::script::ms;
use common::world::{Memory, World, world};
use common::{Polled, yield_now};
use pollster::block_on;
use verrou::blocking::Host;
use verrou::conformance::TestClock;
use verrou::nonblocking::Inline;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Clock, Error, Fence,
    Holder, InvalidName, InvalidRetry, InvalidSerializedLock, InvalidTtl, Loss, MemoryStore, Name,
    Owner, Renewed, Retry, RunError, SerializedLock, Store, StoreError, StoreWrapper, Timestamp,
    Ttl, async_trait, blocking, nonblocking,
};

/// A store that can be made to fail.
#[derive(Clone, Debug)]
struct Fragile {
    store: Polled<Memory>,
    fails: Arc<AtomicBool>,
}

impl Fragile {
    fn ok<T>(&self, reply: Result<T, StoreError>) -> Result<T, StoreError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(StoreError::permanent("the disk is on fire"));
        }
        reply
    }
}

impl StoreWrapper for Fragile {
    type Inner = Polled<Memory>;
    fn inner(&self) -> &Self::Inner {
        &self.store
    }
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.ok(Ok(()))?;
        Store::acquire(&self.store, claim)
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.ok(Ok(()))?;
        Store::extend(&self.store, claim)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.ok(Ok(()))?;
        Store::renew(&self.store, claim, fence)
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.ok(Ok(()))?;
        Store::release(&self.store, claim)
    }
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.ok(Ok(()))?;
        Store::force_release(&self.store, name, only)
    }
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.ok(Store::holders(&self.store, name))
    }
    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        self.ok(Store::holds(&self.store, claim, fence))
    }
    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.ok(Ok(()))?;
        Store::detach(&self.store, claim)
    }
}

fn fragile() -> (TestClock, Fragile) {
    let World { clock, memory, .. } = world();
    let store = Fragile {
        store: Polled(memory),
        fails: Arc::default(),
    };
    (clock, store)
}

#[track_caller]
fn assert_storage<T: std::fmt::Debug>(end: Result<T, Error>) {
    let err = end.expect_err("a failing store");
    assert_eq!(err.code(), "E_LOCK_STORAGE_ERROR");
    assert!(!err.is_temporary());
    let source = err.source().expect("the error of the store");
    assert_eq!(source.to_string(), "the disk is on fire");
}

/// A store without fencing tokens that does not implement `holds`.
#[derive(Debug)]
struct Uncounted(Memory);

impl Store for Uncounted {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Ok(match Store::acquire(&self.0, claim)? {
            Acquired::Granted { .. } => Acquired::Granted { fence: None },
            busy @ Acquired::Busy { .. } => busy,
        })
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::extend(&self.0, claim)
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::release(&self.0, claim)
    }
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Store::force_release(&self.0, name, only)
    }
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let mut holders = Store::holders(&self.0, name)?;
        for holder in &mut holders {
            holder.fence = None;
        }
        Ok(holders)
    }
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Store::capabilities(&self.0);
        capabilities.fences = false;
        capabilities
    }
}

/// The store cannot distinguish two grants, so neither `true` nor `false` is certain.
#[test]
fn is_held_is_an_error_in_a_store_without_fencing_tokens() -> Result<(), Error> {
    let World { clock, memory, .. } = world();
    let locks = blocking::LockFactory::new(Arc::new(Uncounted(memory)), clock);
    let (lock, other) = (locks.create_lock("x", None)?, locks.create_lock("x", None)?);
    lock.acquire()?;
    let err = lock.is_held().expect_err("it is unknown");
    assert_eq!(err.code(), "E_LOCK_STORAGE_ERROR");
    assert!(!err.is_temporary());
    let source = err.source().expect("the error of the store");
    assert!(source.to_string().contains("no fencing token"), "{source}");

    // Results that need no comparison are certain.
    assert!(!other.is_held()?);
    other.force_release(None)?;
    assert!(!lock.is_held()?);
    Ok(())
}

/// The holder's clock decides that the lease has expired; the store's error is the cause.
#[test]
fn expired_lease_is_lost_in_a_failing_store_too() -> Result<(), Error> {
    let (clock, store) = fragile();
    let fail = || store.fails.store(true, Ordering::Relaxed);
    let assert_lost = |error: &Error| {
        assert!(
            matches!(error, Error::Lost { loss, .. } if *loss == Loss::Expired),
            "{error:?}"
        );
        let source = error.source().expect("the error of the store");
        assert_eq!(source.to_string(), "the disk is on fire");
    };
    let locks = blocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("one", "10s")?;
    let ran = lock.run(|_| {
        fail();
        clock.advance(ms(10_000));
        "done"
    });
    let Err(RunError::Ended { value, error }) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!(value, "done");
    assert_lost(&error);

    // Before the expiry only the store's answer counts.
    store.fails.store(false, Ordering::Relaxed);
    let lock = locks.create_lock("two", "10s")?;
    let ran = lock.run(|_| {
        fail();
        clock.advance(ms(9_999));
    });
    let Err(RunError::Ended { error, .. }) = ran else {
        panic!("{ran:?}");
    };
    assert_storage(Err::<(), _>(error));

    // The same holds for a renewed lease.
    store.fails.store(false, Ordering::Relaxed);
    let held = locks.create_lock("three", "10s")?;
    let held = held.guard()?;
    fail();
    let kept = held.keep(|_, at_most| -> ControlFlow<()> {
        clock.advance(at_most);
        ControlFlow::Continue(())
    });
    assert_lost(&kept.expect_err("a lock that was lost"));

    store.fails.store(false, Ordering::Relaxed);
    let awaited = nonblocking::LockFactory::new(Inline(store.clone()), clock.clone());
    let lock = awaited.create_lock("four", "10s")?;
    let ran = block_on(lock.run(async |_| {
        fail();
        clock.advance(ms(10_000));
    }));
    let Err(RunError::Ended { error, .. }) = ran else {
        panic!("{ran:?}");
    };
    assert_lost(&error);
    Ok(())
}

#[test]
fn store_error_is_returned_and_changes_nothing() -> Result<(), Error> {
    let (clock, store) = fragile();
    let fail = |fails| store.fails.store(fails, Ordering::Relaxed);
    let locks = blocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("my-resource", "10s")?;
    fail(true);
    assert_storage(lock.acquire());
    assert_eq!(lock.lease(), None);
    fail(false);
    let lease = lock.acquire()?;
    clock.advance(ms(1000));
    fail(true);
    assert_storage(lock.extend(lock.ttl()));
    assert_storage(lock.serialize());
    assert_storage(lock.is_locked());
    assert_storage(lock.is_held());
    assert_storage(lock.force_release(None));
    assert_storage(lock.release());
    assert_eq!(lock.lease(), Some(lease));
    assert_eq!(lock.remaining(), Some(ms(9000)));
    fail(false);
    // The release can be retried.
    lock.release()?;
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn run_keeps_the_result_and_the_failure_to_release() -> Result<(), Error> {
    let (clock, store) = fragile();
    let fail = |fails| store.fails.store(fails, Ordering::Relaxed);
    let locks = blocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("my-resource", "10s")?;
    let ran = lock.run(|_| {
        fail(true);
        Err::<(), _>("the work failed, too")
    });
    let Err(RunError::Ended { value, error }) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!(value, Err("the work failed, too"));
    assert_storage(Err::<(), _>(error));
    let ran = lock.run(|_| "not run");
    let Err(RunError::NotAcquired(error)) = ran else {
        panic!("{ran:?}");
    };
    assert_storage(Err::<(), _>(error));

    fail(false);
    clock.advance(ms(10_000));
    let locks = nonblocking::LockFactory::new(Inline(store.clone()), clock.clone());
    let lock = locks.create_lock("my-resource", "10s")?;
    let ran = block_on(lock.run(async |_| {
        fail(true);
        "done"
    }));
    let Err(RunError::Ended { value, error }) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!(value, "done");
    assert_storage(Err::<(), _>(error));
    Ok(())
}

/// The request took time to reach the store: the record lasts longer than the lease at its holder.
#[test]
fn lease_expired_at_its_holder_is_not_extended() -> Result<(), Error> {
    let World { clock, memory, .. } = world();
    let delayed = DelayedStore(memory, clock.clone());
    let locks = blocking::LockFactory::new(delayed, clock.clone());
    let lock = locks.create_lock("my-resource", "2s")?;
    lock.acquire()?;
    assert_eq!(lock.remaining(), Some(ms(1500)));
    clock.advance(ms(1500));
    assert!(lock.is_held()?, "the store would extend it");
    assert!(matches!(
        lock.extend(lock.ttl()),
        Err(Error::NotOwner { .. })
    ));
    assert!(lock.is_expired());
    lock.release()
}

/// A store whose requests take half a second to arrive.
#[derive(Clone, Debug)]
struct DelayedStore(Memory, TestClock);

impl StoreWrapper for DelayedStore {
    type Inner = Memory;
    fn inner(&self) -> &Memory {
        &self.0
    }
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.1.advance(ms(500));
        Store::acquire(&self.0, claim)
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.1.advance(ms(500));
        Store::extend(&self.0, claim)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.1.advance(ms(500));
        Store::renew(&self.0, claim, fence)
    }
}

/// Polls the future at most `times` times; returns whether it completed.
fn poll_times<T>(future: impl Future<Output = T>, times: usize) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..times).any(|_| future.as_mut().poll(&mut context).is_ready())
}

#[test]
fn an_acquisition_that_is_dropped_while_it_waits_leaves_nothing() -> Result<(), Error> {
    for times in 0..8 {
        for freed_first in [false, true] {
            let World { awaited, .. } = world();
            let (one, two, three) = (
                awaited.create_lock("my-resource", None)?,
                awaited.create_lock("my-resource", None)?,
                awaited.create_lock("my-resource", None)?,
            );
            block_on(one.acquire())?;
            {
                let mut waiting = pin!(two.acquire());
                assert!(!poll_times(waiting.as_mut(), times));
                if freed_first {
                    // The lock is free for the waiter, which is never polled again.
                    block_on(one.release())?;
                }
            }
            if !freed_first {
                block_on(one.release())?;
            }
            block_on(three.try_acquire())?;
            assert!(block_on(two.release()).is_err());
            assert!(block_on(three.is_held())?);
        }
    }
    Ok(())
}

/// A memory store that records its waiters, until they acquire the lock or stop waiting.
#[derive(Debug)]
struct RecordingStore {
    memory: Memory,
    waiting: Mutex<HashSet<Owner>>,
}

#[async_trait]
impl AsyncStore for RecordingStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let reply = Store::acquire(&self.memory, claim)?;
        if reply.is_granted() {
            self.waiting.lock().unwrap().remove(&claim.owner);
        }
        Ok(reply)
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::extend(&self.memory, claim)
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::release(&self.memory, claim)
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Store::force_release(&self.memory, name, only)
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Store::holders(&self.memory, name)
    }
    fn capabilities(&self) -> Capabilities {
        Store::capabilities(&self.memory)
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(Box::new(RecordedWaiter(self, claim.owner)))
    }
}

struct RecordedWaiter<'a>(&'a RecordingStore, Owner);

#[async_trait]
impl AsyncWaiter for RecordedWaiter<'_> {
    async fn wait(&mut self, _: Duration) {
        self.0.waiting.lock().unwrap().insert(self.1);
        future::pending::<()>().await;
    }
}

impl Drop for RecordedWaiter<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().unwrap().remove(&self.1);
    }
}

#[test]
fn acquisition_dropped_in_the_queue_removes_its_ticket() -> Result<(), Error> {
    for times in 0..8 {
        for freed_first in [false, true] {
            let World { clock, memory, .. } = world();
            let store = Arc::new(RecordingStore {
                memory,
                waiting: Mutex::default(),
            });
            let locks = nonblocking::LockFactory::new(Arc::clone(&store), clock);
            let (one, two) = (
                locks.create_lock("my-resource", None)?,
                locks.create_lock("my-resource", None)?,
            );
            block_on(one.acquire())?;
            {
                let mut waiting = pin!(two.acquire());
                assert!(!poll_times(waiting.as_mut(), times));
                let waits = store.waiting.lock().unwrap().len();
                assert_eq!(waits, usize::from(times > 0));
                if freed_first {
                    block_on(one.release())?;
                    assert!(poll_times(waiting.as_mut(), 8));
                }
            }
            assert_eq!(store.waiting.lock().unwrap().len(), 0);
            assert_eq!(block_on(two.is_held())?, freed_first);
        }
    }
    Ok(())
}

#[test]
fn dropped_acquisition_removes_its_waker() -> Result<(), Error> {
    struct NoWake;
    impl Wake for NoWake {
        fn wake(self: Arc<Self>) {}
    }

    let World { awaited, .. } = world();
    let lock = awaited.create_lock("my-resource", None)?;
    block_on(lock.acquire())?;
    let wake = Arc::new(NoWake);
    {
        let waker = Arc::clone(&wake).into();
        let mut waiting = pin!(lock.acquire());
        let poll = waiting.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(poll.is_pending());
        assert!(Arc::strong_count(&wake) > 2, "the store keeps the waker");
    }
    assert_eq!(Arc::strong_count(&wake), 1);
    Ok(())
}

#[test]
fn acquisition_dropped_in_flight_leaves_at_most_one_ttl() -> Result<(), Error> {
    let mut ended = false;
    let mut unknown = 0;
    for times in 0..8 {
        let World {
            clock,
            memory,
            awaited,
            ..
        } = world();
        let slow = Arc::new(slow::Slow(Arc::clone(&memory)));
        let locks = nonblocking::LockFactory::new(slow, clock.clone());
        let lock = locks.create_lock("my-resource", "2s")?;
        ended = poll_times(lock.acquire(), times);
        let next = awaited.create_lock("my-resource", "2s")?;
        if block_on(next.try_acquire()).is_err() {
            unknown += usize::from(!ended);
            clock.advance(ms(2000));
            block_on(next.try_acquire())?;
        }
        assert!(block_on(next.is_held())?);
    }
    assert!(ended, "it completes when polled often enough");
    assert!(
        unknown > 0,
        "it was dropped between its grant and the reply"
    );
    Ok(())
}

mod slow {
    //! A store whose acquisitions wait before and after.

    use verrou::AsyncStore;

    use super::*;

    #[derive(Debug)]
    pub(crate) struct Slow(pub(crate) Memory);

    #[async_trait]
    impl AsyncStore for Slow {
        async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
            yield_now().await;
            let reply = Store::acquire(&self.0, claim);
            yield_now().await;
            reply
        }
        async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
            Store::extend(&self.0, claim)
        }
        async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
            Store::release(&self.0, claim)
        }
        async fn force_release(
            &self,
            name: &Name,
            only: Option<Fence>,
        ) -> Result<bool, StoreError> {
            Store::force_release(&self.0, name, only)
        }
        async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
            Store::holders(&self.0, name)
        }
        fn capabilities(&self) -> Capabilities {
            Store::capabilities(&self.0)
        }
    }
}

mod crowd {
    //! Many waiters that only the store can wake.

    use std::sync::mpsc;
    use std::thread;

    use verrou::nonblocking::AsyncHost;
    use verrou::{Clock, Timestamp};

    use super::*;

    /// A host whose sleep does not end.
    #[derive(Clone)]
    struct Sleeper(TestClock);

    impl Clock for Sleeper {
        fn now(&self) -> Timestamp {
            self.0.now()
        }
    }

    impl AsyncHost for Sleeper {
        fn sleep(&self, _: Duration) -> impl Future<Output = ()> {
            future::pending()
        }
        fn random(&self) -> [u8; 16] {
            AsyncHost::random(&self.0)
        }
        fn wall_clock(&self) -> Duration {
            AsyncHost::wall_clock(&self.0)
        }
    }

    #[test]
    fn release_wakes_the_next_waiter() {
        const TASKS: usize = 16;
        let World { clock, memory, .. } = world();
        let locks = nonblocking::LockFactory::new(memory, Sleeper(clock));
        let (done, dones) = mpsc::channel();
        for _ in 0..TASKS {
            let (locks, done) = (locks.clone(), done.clone());
            // Not joined: a waiter that is never woken would hang the test instead of failing it.
            thread::spawn(move || {
                let lock = locks.create_lock("my-resource", None).expect("a name");
                for _ in 0..10 {
                    block_on(lock.run(async |_| yield_now().await)).expect("a body that ran");
                }
                done.send(()).expect("the receiver is alive");
            });
        }
        for task in 0..TASKS {
            let woken = dones.recv_timeout(Duration::from_mins(1));
            assert!(woken.is_ok(), "only {task} of {TASKS} tasks were woken");
        }
    }
}

#[test]
fn error_codes_are_stable() {
    let name = || Name::new("lock").expect("a name");
    let loss = Loss::Expired;
    let codes = [
        (Error::from(InvalidName::Empty), "E_INVALID_NAME"),
        (InvalidRetry::NoAttempts.into(), "E_INVALID_RETRY"),
        (
            InvalidSerializedLock::ZeroFence.into(),
            "E_INVALID_SERIALIZED_LOCK",
        ),
        (InvalidTtl::Zero.into(), "E_INVALID_TTL"),
        (
            Error::Lost {
                name: name(),
                loss,
                source: None,
            },
            "E_LOCK_LOST",
        ),
        (Error::NotOwner { name: name() }, "E_LOCK_NOT_OWNER"),
        (
            Error::NotSerializable { name: name() },
            "E_LOCK_NOT_SERIALIZABLE",
        ),
        (
            StoreError::temporary("in trouble").into(),
            "E_LOCK_STORAGE_ERROR",
        ),
        (
            Error::Timeout {
                attempts: 1,
                name: name(),
            },
            "E_LOCK_TIMEOUT",
        ),
        (
            Error::UnknownStore {
                store: "redis".into(),
            },
            "E_INVALID_STORE",
        ),
    ];
    for (error, code) in codes {
        assert_eq!(error.code(), code);
        let again = matches!(error, Error::Timeout { .. } | Error::Storage(_));
        assert_eq!(error.is_temporary(), again, "{code}");
        let text = error.to_string();
        assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
    }
    let retry = [
        Retry::default().attempts(0),
        Retry::default().delay(Duration::ZERO),
        Retry::default().backoff(verrou::Backoff::Jittered {
            first: ms(2),
            cap: ms(1),
        }),
    ]
    .map(|made| made.expect_err("no policy"));
    assert_eq!(
        retry,
        [
            InvalidRetry::NoAttempts,
            InvalidRetry::NoDelay,
            InvalidRetry::CapBelowFirst
        ]
    );
}

/// A serialized lock from another program, as received over a message queue.
#[test]
fn corrupt_text_has_its_own_error() {
    let end: Result<SerializedLock, Error> = "{}".parse::<SerializedLock>().map_err(Error::from);
    let err = end.expect_err("no lock");
    assert_eq!(err.code(), "E_INVALID_SERIALIZED_LOCK");
    assert!(err.source().is_some());
}

/// A host like the test's, whose wall clock shows another time.
#[derive(Clone)]
struct AnotherWall(TestClock, Duration);

impl Clock for AnotherWall {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

impl Host for AnotherWall {
    fn sleep(&self, pause: Duration) {
        Host::sleep(&self.0, pause);
    }
    fn random(&self) -> [u8; 16] {
        Host::random(&self.0)
    }
    fn wall_clock(&self) -> Duration {
        self.1
    }
}

#[test]
fn expiry_of_a_restored_lease_is_decided_by_the_store() {
    let clock = TestClock::still();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let here = blocking::LockFactory::new(Arc::clone(&store), clock.clone());
    let lock = here.create_lock("lock", "10s").unwrap();
    lock.acquire().unwrap();
    let text = lock.serialize().unwrap();

    let an_hour_ahead = text.expires().unwrap() + Duration::from_hours(1);
    let there = AnotherWall(clock.clone(), an_hour_ahead);
    let there = blocking::LockFactory::new(store, there);
    let restored = there.restore_lock(&text);
    assert!(restored.is_expired(), "by this wall clock");
    assert!(restored.is_held().unwrap());
    restored.extend(restored.ttl()).unwrap();
    assert!(!restored.is_expired(), "its expiry is certain now");
    clock.advance(Duration::from_secs(10));
    assert!(matches!(
        restored.extend(restored.ttl()),
        Err(Error::NotOwner { .. })
    ));
}

/// Calls the store from within its wake-up, as an executor that polls at once does.
struct InspectOnWake(Arc<MemoryStore<TestClock>>);

impl Wake for InspectOnWake {
    fn wake(self: Arc<Self>) {
        let name = Name::new("lock").unwrap();
        assert_eq!(Store::holders(&self.0, &name).unwrap(), []);
    }
}

#[test]
fn woken_waiter_may_send_a_request_at_once() {
    let clock = TestClock::still();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let locks = blocking::LockFactory::new(Arc::clone(&store), clock);
    let lock = locks.create_lock("lock", "none").unwrap();
    lock.acquire().unwrap();
    let waker = Arc::new(InspectOnWake(Arc::clone(&store))).into();
    let mut context = Context::from_waker(&waker);
    let claim = Claim::new(lock.name().clone(), Owner::from_bytes([2; 16]), Ttl::NEVER);
    let mut waiter = AsyncStore::waiter(&store, &claim).unwrap();
    let mut waiting = pin!(waiter.wait(Duration::MAX));
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    lock.release().unwrap();
    assert!(waiting.as_mut().poll(&mut context).is_ready());
}

#[test]
fn dropped_run_releases_its_lock() {
    let clock = TestClock::still();
    let locks = nonblocking::LockFactory::new(Arc::new(MemoryStore::new(clock.clone())), clock);
    let lock = locks.create_lock("lock", "none").unwrap();
    let mut context = Context::from_waker(Waker::noop());
    {
        let mut running = pin!(lock.run(async |_| future::pending::<()>().await));
        assert!(running.as_mut().poll(&mut context).is_pending());
        assert!(block_on(lock.is_locked()).unwrap());
    }
    assert!(!block_on(lock.is_locked()).unwrap());
}

/// A store whose wait for a loss ends at once, each time.
#[derive(Clone, Debug)]
struct SpuriousLossStore(Memory, Arc<AtomicU32>);

#[async_trait]
impl AsyncStore for SpuriousLossStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Store::acquire(&self.0, claim)
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let extensions = self.1.fetch_add(1, Ordering::Relaxed);
        assert!(extensions < 10_000, "it gets requests in a busy loop");
        Store::extend(&self.0, claim)
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Store::release(&self.0, claim)
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Store::force_release(&self.0, name, only)
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Store::holders(&self.0, name)
    }
    fn capabilities(&self) -> Capabilities {
        Store::capabilities(&self.0)
    }
    fn watch<'s>(&'s self, _: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        Some(Box::new(SpuriousWatch))
    }
}

struct SpuriousWatch;

#[async_trait]
impl AsyncLossWatch for SpuriousWatch {
    async fn wait(&mut self) {}
}

#[test]
fn spurious_notifications_of_losses_are_rate_limited() {
    let clock = TestClock::still();
    let store = SpuriousLossStore(Arc::new(MemoryStore::new(clock.clone())), Arc::default());
    let locks = nonblocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("lock", "1h").expect("a lock");
    let began = clock.elapsed();
    let kept = block_on(lock.run(async |held| {
        held.keep(async {
            for _ in 0..50 {
                yield_now().await;
            }
        })
        .await
    }));
    kept.expect("a lock that is held")
        .expect("a lock that is kept");
    let extensions = store.1.load(Ordering::Relaxed);
    let most = clock.elapsed().saturating_sub(began).as_millis() + 1;
    assert!(u128::from(extensions) <= most, "{extensions}, {most}");
}
