//! Threads and tasks that share locks, in one interleaving after another.
//!
//! Built with `--cfg verrou_shuttle`, their synchronization primitives are those of
//! [shuttle](https://docs.rs/shuttle): one of them runs at a time, chosen at random at each step. No wait
//! times out, so a waiter that is not woken hangs, and shuttle detects that.
//!
//! ```text
//! RUSTC_WORKSPACE_WRAPPER=$PWD/host/torture/rustc-with/verrou_shuttle VERROU_SCHEDULES=100000 VERROU_SEED=7 \
//!     cargo test --test interleavings --target-dir target/cfg
//! ```
//!
//! A failure prints the schedule that led to it, for `shuttle::replay`.
#![cfg(verrou_shuttle)]

use std::collections::BTreeSet;
use std::env;
use std::future::{self, Future};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::sync::{Condvar, Mutex};
use shuttle::{Config, Runner, thread};
use verrou::blocking::Host;
use verrou::conformance::TestClock;
use verrou::nonblocking::AsyncHost;
use verrou::{
    AsyncStore, Claim, Clock, Error, Fence, Holder, Loss, LossWatch, MemoryStore, Name, Owner,
    RunError, Store, StoreError, StoreWrapper, Timestamp, Ttl, Waiter, blocking, nonblocking,
};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions, keep_alive};

/// Returns the number of interleavings that each of the two schedulers tries.
fn schedules() -> usize {
    let given = env::var("VERROU_SCHEDULES").ok();
    given.map_or(2_000, |given| given.parse().expect("a number of schedules"))
}

/// Runs `scene` in one interleaving after another.
fn explore(name: &str, scene: impl Fn() + Send + Sync + 'static) {
    explore_some(name, schedules(), scene);
}

fn explore_some(name: &str, schedules: usize, scene: impl Fn() + Send + Sync + 'static) {
    let given = env::var("VERROU_SEED").ok();
    let seed = given.map_or(1, |given| given.parse().expect("a seed"));
    let scene = Arc::new(scene);
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let scene = Arc::clone(&scene);
        let mut config = Config::new();
        // Shuttle's default of 32 KiB is too small for the stores in files.
        config.stack_size = 256 * 1024;
        Runner::new(scheduler, config).run(move || scene())
    };
    let done = run(Box::new(RandomScheduler::new_from_seed(seed, schedules)))
        + run(Box::new(PctScheduler::new_from_seed(seed, 3, schedules)));
    println!("schedules of {name}: {done}, seed {seed}");
}

/// A clock that stands still until it is moved, or a thread sleeps; tasks that sleep are not woken.
#[derive(Clone, Debug)]
struct Still(TestClock);

impl Still {
    fn new() -> Self {
        Self(TestClock::still())
    }
}

impl Clock for Still {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

impl Host for Still {
    fn sleep(&self, pause: Duration) {
        thread::yield_now();
        self.0.advance(pause);
    }
    fn random(&self) -> [u8; 16] {
        Host::random(&self.0)
    }
    fn wall_clock(&self) -> Duration {
        Host::wall_clock(&self.0)
    }
}

impl AsyncHost for Still {
    fn sleep(&self, _pause: Duration) -> impl Future<Output = ()> {
        future::pending()
    }
    fn random(&self) -> [u8; 16] {
        Host::random(&self.0)
    }
    fn wall_clock(&self) -> Duration {
        Host::wall_clock(&self.0)
    }
}

type Memory = Arc<MemoryStore<Still>>;

fn memory() -> (Still, Memory) {
    let clock = Still::new();
    (clock.clone(), Arc::new(MemoryStore::new(clock)))
}

fn blocking_locks(clock: &Still, store: &Memory) -> blocking::LockFactory<Memory, Still> {
    blocking::LockFactory::new(Arc::clone(store), clock.clone())
}

fn awaited_locks(clock: &Still, store: &Memory) -> nonblocking::LockFactory<Memory, Still> {
    nonblocking::LockFactory::new(Arc::clone(store), clock.clone())
}

fn holder(store: &Memory) -> Option<Holder> {
    Store::holders(store, &Name::new("lock").unwrap())
        .unwrap()
        .pop()
}

/// Adds one in two steps, which only a lock makes atomic.
fn add_one(count: &AtomicU64) {
    let seen = count.load(Ordering::SeqCst);
    thread::yield_now();
    count.store(seen + 1, Ordering::SeqCst);
}

/// Runs `work` in this many threads at once.
fn together(threads: u64, work: impl Fn(u64) + Sync) {
    let work = &work;
    thread::scope(|scope| {
        for number in 0..threads {
            scope.spawn(move || work(number));
        }
    });
}

#[test]
fn threads_that_share_one_lock_exclude_each_other() {
    explore("threads of one lock", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "none")
            .unwrap();
        let count = AtomicU64::new(0);
        together(3, |_| {
            for _ in 0..2 {
                lock.run(|_| add_one(&count)).unwrap();
            }
        });
        assert_eq!(count.load(Ordering::SeqCst), 6);
        assert_eq!(holder(&store), None);
    });
}

/// Threads and tasks, each with its own lock: each waiter is woken.
#[test]
fn threads_and_tasks_exclude_and_wake_each_other() {
    explore("threads and tasks", || {
        let (clock, store) = memory();
        let count = AtomicU64::new(0);
        together(4, |number| {
            if number % 2 == 0 {
                let locks = blocking_locks(&clock, &store);
                let lock = locks.create_lock("lock", "none").unwrap();
                lock.run(|_| add_one(&count)).unwrap();
            } else {
                let locks = awaited_locks(&clock, &store);
                let lock = locks.create_lock("lock", "none").unwrap();
                block_on(lock.run(async |_| add_one(&count))).unwrap();
            }
        });
        assert_eq!(count.load(Ordering::SeqCst), 4);
        assert_eq!(holder(&store), None);
    });
}

/// The waiters for one lock are not confused with those for another.
#[test]
fn waiter_for_one_of_two_locks_is_woken() {
    explore("two locks", || {
        let (clock, store) = memory();
        let locks = blocking_locks(&clock, &store);
        let lock = |name| locks.create_lock(name, "none").unwrap();
        let (one, two) = (lock("one"), lock("two"));
        one.acquire().unwrap();
        two.acquire().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| lock("two").run(|_| ()).unwrap());
            together(2, |number| {
                if number == 0 {
                    one.release().unwrap();
                } else {
                    lock("one").run(|_| ()).unwrap();
                }
            });
            two.release().unwrap();
        });
    });
}

/// One future is polled, perhaps woken, and dropped; the other waiter still acquires the lock.
#[test]
fn dropped_future_consumes_no_wake_up() {
    explore("dropped futures", || {
        let (clock, store) = memory();
        let lock = || {
            let locks = awaited_locks(&clock, &store);
            locks.create_lock("lock", "none").unwrap()
        };
        let held = lock();
        block_on(held.acquire()).unwrap();
        let locks = [lock(), lock(), held];
        together(3, |number| match number {
            0 => {
                let mut context = Context::from_waker(Waker::noop());
                let mut waiting = pin!(locks[0].acquire());
                for _ in 0..3 {
                    if let Poll::Ready(lease) = waiting.as_mut().poll(&mut context) {
                        lease.unwrap();
                        block_on(locks[0].release()).unwrap();
                        break;
                    }
                    thread::yield_now();
                }
            }
            1 => {
                block_on(locks[1].acquire()).unwrap();
                block_on(locks[1].release()).unwrap();
            }
            _ => block_on(locks[2].release()).unwrap(),
        });
        assert_eq!(holder(&store), None);
    });
}

/// A lease expires while others wait for it; the next operation of any client wakes them.
#[test]
fn waiters_are_woken_by_an_expiry_that_another_client_detects() {
    explore("ends", || {
        let (clock, store) = memory();
        let claim = |number, ttl| {
            Claim::new(
                Name::new("lock").unwrap(),
                Owner::from_bytes([number; 16]),
                ttl,
            )
        };
        let ttl = Ttl::new(Duration::from_secs(1)).unwrap();
        Store::acquire(&store, &claim(0, ttl)).unwrap();
        together(3, |number| match number {
            0 => {
                let mut waiter = Store::waiter(&store, &claim(1, ttl)).unwrap();
                waiter.wait(Duration::MAX);
            }
            1 => {
                let mut waiter = AsyncStore::waiter(&store, &claim(2, ttl)).unwrap();
                block_on(waiter.wait(Duration::MAX));
            }
            _ => {
                clock.0.advance(Duration::from_secs(1));
                assert_eq!(holder(&store), None);
            }
        });
    });
}

/// Asserts that the store records the lease for at least as long as it counts, unless the lock was freed.
fn assert_lease_is_recorded(clock: &Still, store: &Memory, lease: &verrou::Lease) {
    let Some(held) = holder(store).filter(|held| held.fence == lease.fence()) else {
        return;
    };
    if let Some(recorded) = held.remaining {
        let counted = lease
            .remaining(clock.now())
            .expect("a lease that expires in the store expires here");
        assert!(counted <= recorded, "{counted:?} of {recorded:?}");
    }
}

#[test]
fn concurrent_extensions_leave_no_lease_longer_than_its_record() {
    explore("extensions", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "2s")
            .unwrap();
        lock.acquire().unwrap();
        together(3, |number| {
            let ttl = Ttl::new(Duration::from_secs(1 + 10 * number)).unwrap();
            lock.extend(ttl).unwrap();
        });
        assert_lease_is_recorded(&clock, &store, &lock.lease().unwrap());
        // Only the next extension counts.
        lock.extend(lock.ttl()).unwrap();
        assert_eq!(lock.remaining(), Some(Duration::from_secs(2)));
    });
}

#[test]
fn renewed_and_extended_lease_is_no_longer_than_its_record() {
    explore("keeping and extending", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "2s")
            .unwrap();
        let held = lock.guard().unwrap();
        together(2, |number| {
            if number == 0 {
                let mut pauses = 0;
                let kept = held.keep(|machine, _| {
                    machine.suspect();
                    pauses += 1;
                    if pauses < 4 {
                        ControlFlow::Continue(())
                    } else {
                        ControlFlow::Break(())
                    }
                });
                kept.unwrap();
            } else {
                for seconds in [60, 1] {
                    let ttl = Ttl::new(Duration::from_secs(seconds)).unwrap();
                    held.extend(ttl).unwrap();
                    thread::yield_now();
                }
            }
        });
        assert_lease_is_recorded(&clock, &store, &held.lease());
        held.release().unwrap();
        assert_eq!(holder(&store), None);
    });
}

#[test]
fn guard_dropped_during_an_extension_leaves_nothing() {
    explore("a guard and an extension", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "2s")
            .unwrap();
        let held = Mutex::new(Some(lock.guard().unwrap()));
        together(3, |number| match number {
            0 => drop(held.lock().unwrap().take()),
            1 => {
                let extended = lock.extend(lock.ttl());
                assert!(matches!(extended, Ok(()) | Err(Error::NotOwner { .. })));
            }
            _ => lock.run(|_| thread::yield_now()).unwrap(),
        });
        assert_eq!(holder(&store), None);
        assert_eq!(lock.lease(), None);
    });
}

#[test]
fn only_one_of_two_releases_succeeds() {
    explore("releases", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "none")
            .unwrap();
        lock.acquire().unwrap();
        let released = AtomicU64::new(0);
        together(2, |_| {
            if lock.release().is_ok() {
                released.fetch_add(1, Ordering::SeqCst);
            }
        });
        assert_eq!(released.load(Ordering::SeqCst), 1);
        assert_eq!(lock.lease(), None);
    });
}

/// One thread force-releases the lock while others acquire it: the latest holder can release it.
#[test]
fn force_release_keeps_a_later_acquisition() {
    explore("forced releases", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "none")
            .unwrap();
        together(3, |number| {
            if number == 0 {
                lock.force_release(None).unwrap();
            } else {
                // One of them may be refused until the other was force-released.
                let _ = lock.try_acquire();
            }
        });
        if holder(&store).is_some() {
            assert!(
                lock.is_held().unwrap(),
                "the latest acquisition is recorded"
            );
            lock.release().unwrap();
        }
        assert_eq!(holder(&store), None);
    });
}

/// A memory store that notifies of losses.
#[derive(Clone, Debug)]
struct Watched {
    store: Memory,
    /// The number of releases.
    releases: Arc<(Mutex<u64>, Condvar)>,
}

impl Watched {
    fn new(store: &Memory) -> Self {
        Self {
            store: Arc::clone(store),
            releases: Arc::default(),
        }
    }

    /// Notifies the watches.
    fn notify(&self) {
        let (releases, changed) = &*self.releases;
        *releases.lock().unwrap() += 1;
        changed.notify_all();
    }
}

impl StoreWrapper for Watched {
    type Inner = MemoryStore<Still>;
    fn inner(&self) -> &Self::Inner {
        &self.store
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let released = Store::release(&self.store, claim);
        self.notify();
        released
    }
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let released = Store::force_release(&self.store, name, only);
        self.notify();
        released
    }
    fn watch<'s>(&'s self, _: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        let (releases, _) = &*self.releases;
        Some(Box::new(Watch {
            store: self,
            seen: Mutex::new(*releases.lock().unwrap()),
            is_cancelled: AtomicBool::new(false),
        }))
    }
}

struct Watch<'a> {
    store: &'a Watched,
    seen: Mutex<u64>,
    is_cancelled: AtomicBool,
}

impl LossWatch for Watch<'_> {
    fn wait(&self, _at_most: Duration) {
        let (releases, changed) = &*self.store.releases;
        let mut seen = self.seen.lock().unwrap();
        let is_unchanged =
            |count: &mut u64| *count == *seen && !self.is_cancelled.load(Ordering::SeqCst);
        let count = changed.wait_while(releases.lock().unwrap(), is_unchanged);
        *seen = *count.unwrap();
    }
    fn cancel(&self) {
        let (releases, changed) = &*self.store.releases;
        let count = releases.lock().unwrap();
        self.is_cancelled.store(true, Ordering::SeqCst);
        drop(count);
        changed.notify_all();
    }
}

/// The work ends, or the lock is lost, at any moment of the auto-renewal: both are detected.
#[test]
fn keep_alive_ends_with_the_work_and_detects_a_loss() {
    explore("keep_alive with notifications of losses", || {
        let (clock, memory) = memory();
        let store = Watched::new(&memory);
        let locks = blocking::LockFactory::new(store, clock.clone());
        let lock = locks.create_lock("lock", "none").unwrap();
        let other = locks.create_lock("lock", "none").unwrap();
        let held = lock.guard().unwrap();
        let is_revoked = thread_rng().r#gen::<bool>();
        let kept = keep_alive(&held, || {
            if is_revoked {
                other.force_release(None).unwrap();
                while !held.is_expired() {
                    thread::yield_now();
                }
            }
            "done"
        });
        if is_revoked {
            let lost = matches!(
                kept,
                Err(RunError::Ended {
                    value: "done",
                    error: Error::Lost {
                        loss: Loss::Revoked,
                        ..
                    }
                })
            );
            assert!(lost, "{kept:?}");
        } else {
            assert_eq!(kept.unwrap(), "done");
            held.release().unwrap();
        }
        assert_eq!(holder(&memory), None);
    });
}

#[test]
fn lease_renewed_in_its_own_thread_is_no_longer_than_its_record() {
    explore("keep_alive", || {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "2s")
            .unwrap();
        let held = lock.guard().unwrap();
        let work = || {
            let ttl = Ttl::new(Duration::from_mins(1)).unwrap();
            held.extend(ttl).unwrap();
            clock.0.advance(Duration::from_secs(1));
            thread::yield_now();
        };
        keep_alive(&held, work).unwrap();
        assert_lease_is_recorded(&clock, &store, &held.lease());
        held.release().unwrap();
        assert_eq!(holder(&store), None);
    });
}

/// A store that cannot wait.
#[derive(Debug)]
struct Polled<S>(S);

impl<S: Store> StoreWrapper for Polled<S> {
    type Inner = S;
    fn inner(&self) -> &S {
        &self.0
    }
    fn waiter<'s>(&'s self, _: &Claim) -> Option<Box<dyn Waiter + 's>> {
        None
    }
}

/// Threads of one store, and of two stores that stand for two processes, take turns without a queue.
fn threads_share_files<S: Store + Sync>(open: impl Fn() -> S) {
    let stores = [Polled(open()), Polled(open())];
    let clock = Still::new();
    let count = AtomicU64::new(0);
    let fences = Mutex::new(BTreeSet::new());
    together(3, |number| {
        let store = &stores[usize::from(number == 2)];
        let lock = blocking::LockFactory::new(store, clock.clone())
            .create_lock("lock", "none")
            .unwrap();
        let ran = lock.run(|held| {
            add_one(&count);
            assert!(lock.is_held().unwrap());
            held.fence()
        });
        let fence = ran.unwrap().expect("a fence");
        assert!(fences.lock().unwrap().insert(fence), "{fence} again");
    });
    assert_eq!(count.load(Ordering::SeqCst), 3);
    for store in &stores {
        let left = Store::holders(store, &Name::new("lock").unwrap());
        assert_eq!(left.unwrap(), []);
    }
}

/// Files take longer than memory.
const FEWER: usize = 20;

#[test]
fn threads_share_a_lease_file_store() {
    explore_some("leases in files", schedules() / FEWER, || {
        let directory = tempfile::tempdir().unwrap();
        threads_share_files(|| {
            LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap()
        });
    });
}

#[test]
fn threads_share_a_file_lock_store() {
    explore_some("locks of the kernel", schedules() / FEWER, || {
        let directory = tempfile::tempdir().unwrap();
        threads_share_files(|| {
            FileLockStore::open(directory.path(), &StoreOptions::default()).unwrap()
        });
    });
}

/// Both kinds of faults are detected: a missing mutual exclusion, and a waiter that is never woken.
#[test]
fn faults_are_detected() {
    let is_detected = |scene: fn()| {
        let explored = AssertUnwindSafe(|| explore("faults", scene));
        catch_unwind(explored).is_err()
    };
    assert!(is_detected(|| {
        let count = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&count);
        together(2, move |_| add_one(&counted));
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }));
    assert!(is_detected(|| {
        let (clock, store) = memory();
        let lock = blocking_locks(&clock, &store)
            .create_lock("lock", "none")
            .unwrap();
        lock.acquire().unwrap();
        // The lock is never released.
        together(2, |_| drop(lock.guard().unwrap()));
    }));
}
