//! A program's use of the component of WASI 0.3: many waits in one instance, and waits that are dropped.

use std::collections::BTreeSet;
use std::future::{self, Future, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use futures::channel::oneshot;
use futures::future::{join, join_all};
use pollster::block_on;
use verrou::blocking::{self, Host};
use verrou::nonblocking::{AsyncHost, LockFactory};
use verrou::{
    Acquired, AsyncStore, Capabilities, Claim, Clock, Fence, Holder, MemoryStore, Name, Retry,
    Store, StoreError, Timestamp, async_trait,
};
use verrou_host::component::{ConcurrentInstance, ConcurrentRunner, Limits};
use verrou_host::{LeaseFileStore, StoreOptions, System};

use crate::awaited::{Memory, Stuck};
use crate::sleepless::Sleepless;
use crate::through::compiled_async_component;

/// Every hour, so that only a notification ends a wait in time.
static HOURLY: LazyLock<Retry> = LazyLock::new(|| {
    let hour = Some(Duration::from_hours(1));
    Retry::new(None, hour, None, None).expect("a policy")
});

fn with_limits<S, H>(limits: &Limits) -> ConcurrentRunner<S, H>
where
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    let runner = ConcurrentRunner::from_component(compiled_async_component(), limits);
    runner.expect("the component")
}

fn runner<S, H>() -> ConcurrentRunner<S, H>
where
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    with_limits(&Limits::default())
}

fn lease_files(directory: &Path) -> Arc<LeaseFileStore> {
    Arc::new(LeaseFileStore::open(directory, &StoreOptions::default()).expect("a store"))
}

/// Polls `future`, which must wait, until it is not woken any more.
fn wait_until_asleep<F: Future>(mut future: Pin<&mut F>) {
    let woken = Arc::<Woken>::default();
    let waker = Waker::from(Arc::clone(&woken));
    loop {
        let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        if !woken.0.swap(false, Ordering::AcqRel) {
            return;
        }
    }
}

fn instance<C, H>(store: &Memory<C>, host: H) -> ConcurrentInstance<Memory<C>, H>
where
    C: Clock + Send + Sync + 'static,
    H: AsyncHost + 'static,
{
    let runner = ConcurrentRunner::from_component(compiled_async_component(), &Limits::default());
    let runner = runner.expect("the component");
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
    let instance = instance(&store, Sleepless);
    let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
    let policy = Retry::default();
    let woken = Arc::<Woken>::default();
    let fence = {
        let mut acquired = pin!(sendable(instance.acquire(lock, &policy)));
        let waker = Waker::from(Arc::clone(&woken));
        let polled = acquired.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        woken.0.store(false, Ordering::Release);
        assert!(
            acquired
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        assert!(!woken.0.load(Ordering::Acquire));
        block_on(held.release()).expect("this lock's grant");
        assert!(woken.0.load(Ordering::Acquire));
        block_on(acquired).expect("a free lock")
    };
    assert!(fence.is_some());
    assert!(block_on(instance.is_held(lock)).expect("an answer"));
}

/// A waiter in one process is notified by the release in another: no sleep of the component's host ends.
#[test]
fn release_in_another_store_wakes_the_component() {
    let directory = tempfile::tempdir().expect("a directory");
    let natively = blocking::LockFactory::new(lease_files(directory.path()), System);
    let held = natively.create_lock("lock", "none").expect("a lock");
    held.acquire().expect("a free lock");
    let runner = runner();
    let instance = block_on(runner.instance(lease_files(directory.path()), Sleepless));
    let instance = instance.expect("an instance");
    let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
    let mut acquired = pin!(instance.acquire(lock, &HOURLY));
    wait_until_asleep(acquired.as_mut());
    thread::scope(|scope| {
        scope.spawn(|| held.release().expect("its own"));
        block_on(acquired).expect("a free lock");
    });
}

/// Three native waiters take turns; a component beside them gets its share.
#[test]
fn component_gets_its_share_beside_native_waiters() {
    const LENGTH: Duration = Duration::from_secs(3);

    let directory = tempfile::tempdir().expect("a directory");
    let grants = [const { AtomicU32::new(0) }; 3];
    let is_over = AtomicBool::new(false);
    let instance = block_on(runner().instance(lease_files(directory.path()), Brief));
    let instance = instance.expect("an instance");
    let ttl = Some(Duration::from_secs(30));
    let lock = block_on(instance.create_lock("lock", ttl)).expect("a lock");
    let of_component = thread::scope(|scope| {
        for count in &grants {
            scope.spawn(|| {
                let native = blocking::LockFactory::new(lease_files(directory.path()), System);
                let lock = native.create_lock("lock", "30s").expect("a lock");
                while !is_over.load(Ordering::Relaxed) {
                    lock.acquire().expect("a grant");
                    thread::sleep(Duration::from_millis(5));
                    lock.release().expect("its own");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let (began, mut count) = (Instant::now(), 0);
        while began.elapsed() < LENGTH {
            block_on(instance.acquire(lock, &HOURLY)).expect("a grant");
            thread::sleep(Duration::from_millis(5));
            block_on(instance.release(lock)).expect("its own");
            count += 1;
        }
        is_over.store(true, Ordering::Relaxed);
        count
    });
    let natives = grants.map(AtomicU32::into_inner);
    let fair = natives.iter().sum::<u32>() / 3;
    println!("the component had {of_component} grants, the native waiters {natives:?}");
    assert!(
        of_component * 10 >= fair * 7,
        "{of_component} beside {natives:?}"
    );
}

/// Many calls wait in one instance at a time, for locks of their own and for the same one.
#[test]
fn many_calls_wait_in_one_instance() {
    const NAMES: usize = 10;
    const WAITS: usize = 5;

    let store = Arc::new(MemoryStore::new(System));
    let natively = LockFactory::new(Arc::clone(&store), Sleepless);
    let instance = instance(&store, Sleepless);
    let names: Vec<_> = (0..NAMES).map(|name| name.to_string()).collect();
    let held: Vec<_> = names
        .iter()
        .map(|name| natively.create_lock(name, "none").expect("a lock"))
        .collect();
    for lock in &held {
        block_on(lock.acquire()).expect("a free lock");
    }
    let instance = &instance;
    let taken = async |name: &str| {
        let lock = instance.create_lock(name, None).await.expect("a lock");
        let fence = instance.acquire(lock, &HOURLY).await.expect("a grant");
        instance.release(lock).await.expect("its own");
        fence.expect("a store with fences").get()
    };
    let waits = names
        .iter()
        .flat_map(|name| [(); WAITS].map(|()| taken(name)));
    let mut waits = pin!(join_all(waits));
    wait_until_asleep(waits.as_mut());
    for lock in &held {
        block_on(lock.release()).expect("its own");
    }
    let fences: BTreeSet<_> = block_on(waits).into_iter().collect();
    assert_eq!(fences.len(), NAMES * WAITS);
}

/// Dropping the future ends the wait; the instance stays usable.
#[test]
fn a_wait_can_be_dropped() {
    let store = Arc::new(MemoryStore::new(System));
    let instance = instance(&store, Sleepless);
    let [one, two] = [(); 2].map(|()| {
        let lock = block_on(instance.create_lock("lock", None));
        lock.expect("a lock")
    });
    let policy = Retry::default();
    block_on(instance.acquire(one, &policy)).expect("a free lock");
    for _ in 0..1_000 {
        let mut waits = pin!(instance.acquire(two, &policy));
        let polled = poll_fn(|context| Poll::Ready(waits.as_mut().poll(context).is_pending()));
        assert!(block_on(polled));
    }
    assert!(block_on(instance.is_held(one)).expect("an answer"));
    block_on(instance.release(one)).expect("this lock's grant");
    assert!(!block_on(instance.is_locked(one)).expect("an answer"));
    assert!(block_on(instance.try_acquire(two)).expect("an answer"));
}

/// A dropped `acquire` leaves the queue at once, and so does a dropped instance. A ticket that was left behind would
/// reserve the lock for its owner after the release.
#[test]
fn dropped_acquire_leaves_the_queue() {
    let directory = tempfile::tempdir().expect("a directory");
    let natively = blocking::LockFactory::new(lease_files(directory.path()), System);
    let [held, other] = [(); 2].map(|()| natively.create_lock("lock", "none").expect("a lock"));
    let runner = runner();
    let instance = block_on(runner.instance(lease_files(directory.path()), Sleepless));
    let instance = instance.expect("an instance");
    let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
    let assert_free = |what: &str| {
        held.release().expect("its own");
        other.try_acquire().expect(what);
        other.release().expect("its own");
    };

    held.acquire().expect("a free lock");
    let mut waits = Box::pin(instance.acquire(lock, &HOURLY));
    wait_until_asleep(waits.as_mut());
    drop(waits);
    assert_free("the place of a dropped future");

    held.acquire().expect("a free lock");
    let mut waits = Box::pin(async move { instance.acquire(lock, &HOURLY).await.map(drop) });
    wait_until_asleep(waits.as_mut());
    drop(waits);
    assert_free("the place of a dropped instance");
}

/// A store whose requests to acquire wait for a gate: before they reach the memory, or before their reply.
#[derive(Debug)]
struct Gated {
    memory: Memory<System>,
    is_open: AtomicBool,
    before: bool,
}

impl Gated {
    async fn gate(&self) {
        poll_fn(|_| {
            if self.is_open.load(Ordering::Acquire) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

#[async_trait]
impl AsyncStore for Gated {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        if self.before {
            self.gate().await;
        }
        let reply = AsyncStore::acquire(&self.memory, claim).await;
        if !self.before {
            self.gate().await;
        }
        reply
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        AsyncStore::extend(&self.memory, claim).await
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        AsyncStore::release(&self.memory, claim).await
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        AsyncStore::force_release(&self.memory, name, only).await
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        AsyncStore::holders(&self.memory, name).await
    }
    fn capabilities(&self) -> Capabilities {
        AsyncStore::capabilities(&self.memory)
    }
}

/// A future that is dropped during an operation of the store leaves no lock: neither at once, nor later.
#[test]
fn acquire_that_is_dropped_during_its_request_leaves_no_lock() {
    for before in [true, false] {
        let memory = Arc::new(MemoryStore::new(System));
        let store = Gated {
            memory: Arc::clone(&memory),
            is_open: AtomicBool::new(false),
            before,
        };
        let instance = block_on(runner().instance(store, Sleepless)).expect("an instance");
        let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
        let name: Name = "lock".parse().expect("a name");
        let holders = || Store::holders(&memory, &name).expect("an answer").len();
        for tries in [false, true] {
            let is_granted = usize::from(!before);
            if tries {
                let mut acquiring = Box::pin(instance.try_acquire(lock));
                wait_until_asleep(acquiring.as_mut());
                assert_eq!(holders(), is_granted);
            } else {
                let mut acquiring = Box::pin(instance.acquire(lock, &HOURLY));
                wait_until_asleep(acquiring.as_mut());
                assert_eq!(holders(), is_granted);
            }
            assert_eq!(holders(), 0, "the lock of a dropped future");
        }
        instance.store().is_open.store(true, Ordering::Release);
        assert!(!block_on(instance.is_locked(lock)).expect("an answer"));
        assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    }
}

/// A host whose time passes when the test lets it.
#[derive(Clone, Debug, Default)]
struct Paced(Arc<Mutex<(Duration, Vec<Waker>)>>);

impl Paced {
    fn advance(&self, time: Duration) {
        let (now, wakers) = &mut *self.0.lock().expect("no panic");
        *now += time;
        wakers.drain(..).for_each(Waker::wake);
    }
}

impl Clock for Paced {
    fn now(&self) -> Timestamp {
        Timestamp::new(self.0.lock().expect("no panic").0)
    }
}

impl AsyncHost for Paced {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> {
        let end = self.now().saturating_add(pause);
        poll_fn(move |context| {
            let (now, wakers) = &mut *self.0.lock().expect("no panic");
            if Timestamp::new(*now) >= end {
                return Poll::Ready(());
            }
            wakers.push(context.waker().clone());
            Poll::Pending
        })
    }
    fn random(&self) -> [u8; 16] {
        Host::random(&System)
    }
    fn wall_clock(&self) -> Duration {
        Host::wall_clock(&System)
    }
}

/// A lease is renewed for as long as the work takes. A renewal whose future is dropped ends: the lease expires.
#[test]
fn lease_is_renewed_during_the_work_and_no_longer() {
    const TTL: Duration = Duration::from_secs(3);

    let host = Paced::default();
    let store = Arc::new(MemoryStore::new(host.clone()));
    let instance = instance(&store, host.clone());
    let lock = block_on(instance.create_lock("lock", Some(TTL))).expect("a lock");
    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    let mut seconds = 0;
    let work = poll_fn(|context| {
        if seconds == 10 {
            return Poll::Ready("done");
        }
        seconds += 1;
        host.advance(Duration::from_secs(1));
        context.waker().wake_by_ref();
        Poll::Pending
    });
    let kept = block_on(sendable(instance.keep(lock, work)));
    assert_eq!(kept.expect("a lease"), "done");
    assert!(block_on(instance.is_held(lock)).expect("an answer"));

    let mut keeping = Box::pin(instance.keep(lock, future::pending::<()>()));
    wait_until_asleep(keeping.as_mut());
    drop(keeping);
    for _ in 0..4 {
        host.advance(Duration::from_secs(1));
        // Runs the instance, also the tasks that it may have left.
        block_on(instance.remaining(lock)).expect("an answer");
    }
    assert!(!block_on(instance.is_locked(lock)).expect("an answer"));
    assert!(block_on(instance.is_expired(lock)).expect("an answer"));
}

/// A host whose sleeps end if they are shorter than a minute: not those between two renewals.
#[derive(Clone, Copy)]
struct Brief;

impl Clock for Brief {
    fn now(&self) -> Timestamp {
        System.now()
    }
}

impl AsyncHost for Brief {
    async fn sleep(&self, pause: Duration) {
        if pause >= Duration::from_mins(1) {
            future::pending::<()>().await;
        }
        let (sender, receiver) = oneshot::channel::<()>();
        thread::spawn(move || {
            thread::sleep(pause);
            drop(sender);
        });
        let _ = receiver.await;
    }
    fn random(&self) -> [u8; 16] {
        Host::random(&System)
    }
    fn wall_clock(&self) -> Duration {
        Host::wall_clock(&System)
    }
}

/// A renewal ends when the lock is released, and when the store notifies of its loss, long before the next renewal.
#[test]
fn keep_ends_with_the_lease() {
    let directory = tempfile::tempdir().expect("a directory");
    let runner = runner();
    let instance = block_on(runner.instance(lease_files(directory.path()), Brief));
    let instance = instance.expect("an instance");
    let ttl = Some(Duration::from_hours(1));
    let lock = block_on(instance.create_lock("lock", ttl)).expect("a lock");
    let natively = blocking::LockFactory::new(lease_files(directory.path()), System);
    let other = natively.create_lock("lock", "none").expect("a lock");

    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    let kept = block_on(join(instance.keep(lock, future::pending::<()>()), async {
        instance.release(lock).await.expect("its own");
    }));
    assert_eq!(kept.0.expect_err("a released lock").code(), "E_LOCK_LOST");

    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    let mut keeping = pin!(instance.keep(lock, future::pending::<()>()));
    wait_until_asleep(keeping.as_mut());
    let kept = thread::scope(|scope| {
        scope.spawn(|| assert!(other.force_release(None).expect("an answer")));
        block_on(keeping)
    });
    assert_eq!(kept.expect_err("a lost lock").code(), "E_LOCK_LOST");
}

/// `forget` ends the calls that wait, and releases the lock.
#[test]
fn forgotten_lock_is_released_and_its_waits_end() {
    let store = Arc::new(MemoryStore::new(System));
    let instance = instance(&store, Sleepless);
    let lock = block_on(instance.create_lock("lock", None)).expect("a lock");
    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    let keeping = instance.keep(lock, future::pending::<()>());
    let (kept, forgotten) = block_on(join(keeping, instance.forget(lock)));
    forgotten.expect("its own");
    assert_eq!(kept.expect_err("no lock").code(), "E_INVALID_HANDLE");
    let name: Name = "lock".parse().expect("a name");
    assert_eq!(Store::holders(&store, &name).expect("an answer"), []);
    let again = block_on(instance.try_acquire(lock));
    assert_eq!(again.expect_err("no lock").code(), "E_INVALID_HANDLE");
    let again = block_on(instance.forget(lock));
    assert_eq!(again.expect_err("no lock").code(), "E_INVALID_HANDLE");
}

/// An instance that stops ends all its calls, and its locks are released when it is dropped.
#[test]
fn stopped_instance_ends_its_calls_and_releases_its_locks() {
    let store = Arc::new(MemoryStore::new(System));
    let limits = Limits::default().memory(2 << 20);
    let runner = with_limits(&limits);
    let instance = block_on(runner.instance(Arc::clone(&store), Sleepless));
    let instance = instance.expect("an instance");
    let [lock, second] = [(); 2].map(|()| {
        let lock = block_on(instance.create_lock("lock", None));
        lock.expect("a lock")
    });
    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    let name = "x".repeat(Name::MAX_BYTES);
    let (waited, stopped) = block_on(join(instance.acquire(second, &HOURLY), async {
        loop {
            if let Err(err) = instance.create_lock(&name, None).await {
                return err;
            }
        }
    }));
    assert_eq!(stopped.code(), "E_COMPONENT_STOPPED", "{stopped:?}");
    let waited = waited.expect_err("a stopped instance");
    assert_eq!(waited.code(), "E_COMPONENT_STOPPED", "{waited:?}");
    let after = block_on(instance.is_locked(lock)).expect_err("a stopped instance");
    assert_eq!(after.code(), "E_COMPONENT_STOPPED", "{after:?}");
    let name: Name = "lock".parse().expect("a name");
    assert_eq!(Store::holders(&store, &name).expect("an answer").len(), 1);
    drop(instance);
    assert_eq!(Store::holders(&store, &name).expect("an answer"), []);
}

/// A store that does not answer requests for the lock "stuck" delays no other call, and an instance that is dropped then
/// releases its locks.
#[test]
fn store_that_does_not_answer_delays_no_other_call() {
    let memory = Arc::new(MemoryStore::new(System));
    let runner = runner();
    let store = Stuck(Arc::clone(&memory));
    let instance = block_on(runner.instance(store, Sleepless)).expect("an instance");
    let [lock, stuck] = ["lock", "stuck"].map(|name| {
        let lock = block_on(instance.create_lock(name, None));
        lock.expect("a lock")
    });
    let mut acquiring = Box::pin(instance.try_acquire(stuck));
    wait_until_asleep(acquiring.as_mut());
    assert!(block_on(instance.try_acquire(lock)).expect("an answer"));
    wait_until_asleep(acquiring.as_mut());
    drop(acquiring);
    assert!(block_on(instance.is_held(lock)).expect("an answer"));
    drop(instance);
    let name: Name = "lock".parse().expect("a name");
    assert_eq!(Store::holders(&memory, &name).expect("an answer"), []);
}

/// Waiting is not counted as running.
#[test]
fn wait_may_take_longer_than_the_limit_of_a_call() {
    const LIMIT: Duration = Duration::from_millis(100);

    let store = Arc::new(MemoryStore::new(System));
    let limits = Limits::default().time(LIMIT);
    let runner = with_limits(&limits);
    let instance = block_on(runner.instance(Arc::clone(&store), Sleepless));
    let instance = instance.expect("an instance");
    let [one, two] = [(); 2].map(|()| {
        let lock = block_on(instance.create_lock("lock", None));
        lock.expect("a lock")
    });
    assert!(block_on(instance.try_acquire(one)).expect("an answer"));
    let mut acquired = pin!(instance.acquire(two, &HOURLY));
    wait_until_asleep(acquired.as_mut());
    thread::sleep(LIMIT * 3);
    block_on(instance.release(one)).expect("its own");
    block_on(acquired).expect("a free lock");
}
