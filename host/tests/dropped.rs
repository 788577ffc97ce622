//! Futures that wait for a lock in files are dropped at every poll, and leave nothing behind.
#![cfg(target_os = "linux")]

use std::fs;
use std::future::{self, Future};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use pollster::block_on;
use verrou::blocking::Host;
use verrou::nonblocking::{AsyncHost, Lock, LockFactory};
use verrou::{AsyncStore, Clock, Error, Timestamp};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions, System};

/// The greatest number of polls of the head waiter: after them it has reached its longest pause.
const POLLS: usize = 13;

/// The greatest number of polls of the waiters behind it, which wait longer before each.
const POLLS_BEHIND: usize = 4;

/// The longest time that the test waits for an event.
const DEADLINE: Duration = Duration::from_secs(30);

/// The system's clock and randomness for tasks without a runtime; each sleep has a thread.
#[derive(Clone, Copy, Debug)]
struct Sleeper;

impl Clock for Sleeper {
    fn now(&self) -> Timestamp {
        System.now()
    }
}

impl AsyncHost for Sleeper {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> {
        let end = Instant::now() + pause;
        let mut is_begun = false;
        future::poll_fn(move |context| {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut is_begun, true) {
                let waker = context.waker().clone();
                thread::spawn(move || {
                    thread::sleep(left);
                    waker.wake();
                });
            }
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

/// Wakes the thread that polls.
struct Poller {
    thread: Thread,
    is_woken: AtomicBool,
}

impl Wake for Poller {
    fn wake(self: Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

/// Polls `future` whenever it is woken, at most `polls` times, and drops it. Returns its output if it has
/// completed.
fn poll_at_most<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let poller = Arc::new(Poller {
        thread: thread::current(),
        is_woken: AtomicBool::new(true),
    });
    let waker = Waker::from(Arc::clone(&poller));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    for _ in 0..polls {
        let deadline = Instant::now() + DEADLINE;
        while !poller.is_woken.swap(false, Ordering::Acquire) {
            assert!(Instant::now() < deadline, "it is never woken");
            thread::park_timeout(DEADLINE);
        }
        if let Poll::Ready(end) = future.as_mut().poll(&mut context) {
            return Some(end);
        }
    }
    None
}

type FileLock<S> = Lock<Arc<S>, Sleeper>;

/// Returns a lock called `lock` with a store of its own, as in another process.
fn lock_of<S: AsyncStore>(store: S) -> FileLock<S> {
    lock_in(&Arc::new(store))
}

fn lock_in<S: AsyncStore>(store: &Arc<S>) -> FileLock<S> {
    let locks = LockFactory::new(Arc::clone(store), Sleeper);
    locks.create_lock("lock", "none").unwrap()
}

/// Drops a waiter before or after the release of the lock; another client can acquire the lock then.
fn waiter_is_dropped<S: AsyncStore>(open: impl Fn() -> S) {
    let (holder, waits, next) = (lock_of(open()), lock_of(open()), lock_of(open()));
    for freed_first in [false, true] {
        for polls in 0..=POLLS {
            block_on(holder.acquire()).unwrap();
            {
                let mut waiting = pin!(waits.acquire());
                let ended = poll_at_most(waiting.as_mut(), polls);
                assert!(ended.is_none(), "the lock is held");
                if freed_first {
                    // It is the head waiter, and does not acquire the lock.
                    block_on(holder.release()).unwrap();
                }
            }
            if !freed_first {
                block_on(holder.release()).unwrap();
            }
            assert!(matches!(
                block_on(waits.release()),
                Err(Error::NotOwner { .. })
            ));
            let got = block_on(next.try_acquire());
            got.unwrap_or_else(|err| panic!("after {polls} polls: {err}"));
            block_on(next.release()).unwrap();
        }
    }
}

/// Drops one of three waiters, two tasks of one process and one of another; the others get the
/// lock, in order.
fn one_of_three_waiters_is_dropped<S: AsyncStore>(open: impl Fn() -> S) {
    let holder = lock_of(open());
    for (dropped, most) in [POLLS, POLLS_BEHIND, POLLS_BEHIND].into_iter().enumerate() {
        for polls in 1..=most {
            block_on(holder.acquire()).unwrap();
            let (here, elsewhere) = (Arc::new(open()), Arc::new(open()));
            let locks = [lock_in(&here), lock_in(&here), lock_in(&elsewhere)];
            let mut waiting = locks.each_ref().map(|lock| Some(Box::pin(lock.acquire())));
            for (place, waiting) in waiting.iter_mut().flatten().enumerate() {
                let polls = if place == dropped { polls } else { 2 };
                let ended = poll_at_most(waiting.as_mut(), polls);
                assert!(ended.is_none(), "the lock is held");
            }
            waiting[dropped] = None;
            block_on(holder.release()).unwrap();
            let mut order = Vec::new();
            let all_got_it = future::poll_fn(|context| {
                for (place, lock) in locks.iter().enumerate() {
                    if let Some(it) = &mut waiting[place]
                        && let Poll::Ready(got) = it.as_mut().poll(context)
                    {
                        got.unwrap();
                        waiting[place] = None;
                        order.push(place);
                        block_on(lock.release()).unwrap();
                    }
                }
                if waiting.iter().all(Option::is_none) {
                    return Poll::Ready(());
                }
                Poll::Pending
            });
            poll_at_most(all_got_it, usize::MAX);
            assert!(order.is_sorted() && order.len() == 2, "{order:?}");
        }
    }
}

/// Drops a run that renews its lease, at every poll; the lock is free at once.
fn renewing_run_is_dropped<S: AsyncStore>(open: impl Fn() -> S) {
    let (store, next) = (Arc::new(open()), lock_of(open()));
    let locks = LockFactory::new(store, Sleeper);
    let lock = locks.create_lock("lock", "150ms").unwrap();
    for polls in 0..8 {
        let running = lock.run(async |held| {
            let first_end = held.lease().ends();
            let work = future::poll_fn(|_| {
                if held.lease().ends() == first_end {
                    Poll::Pending
                } else {
                    // The lease was extended.
                    Poll::Ready(())
                }
            });
            held.keep(work).await
        });
        match poll_at_most(running, polls) {
            None => assert!(polls < 4, "it completes within four polls"),
            Some(ran) => ran.unwrap().unwrap(),
        }
        let got = block_on(next.try_acquire());
        got.unwrap_or_else(|err| panic!("after {polls} polls: {err}"));
        block_on(next.release()).unwrap();
    }
}

/// Returns the number of open descriptors, and that of watched files.
fn open_and_watched() -> (usize, usize) {
    let descriptors = || fs::read_dir("/proc/self/fdinfo").unwrap();
    let watches = descriptors().filter_map(|entry| {
        let info = fs::read_to_string(entry.unwrap().path()).ok()?;
        Some(info.matches("inotify wd:").count())
    });
    (descriptors().count(), watches.sum())
}

/// One test for all, because the descriptors are those of the whole process.
#[test]
fn waiter_dropped_while_it_waits_leaves_nothing() {
    fn everything<S: AsyncStore>(open: impl Fn(&Path) -> S) {
        let directory = tempfile::tempdir().unwrap();
        waiter_is_dropped(|| open(directory.path()));
        one_of_three_waiters_is_dropped(|| open(directory.path()));
        renewing_run_is_dropped(|| open(directory.path()));
    }

    let options = StoreOptions::default();
    let leases = |path: &Path| LeaseFileStore::open(path, &options).unwrap();
    let locks = |path: &Path| FileLockStore::open(path, &options).unwrap();
    everything(leases);
    let (descriptors, watches) = open_and_watched();
    assert_eq!(watches, 0, "no file is watched without a waiter");
    everything(locks);
    assert_eq!(
        open_and_watched(),
        (descriptors, 0),
        "no descriptor is left"
    );
}
