//! What waits for a lock in files, dropped at every poll: nothing is left of it.
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

/// Up to how many polls are made of the first who waits: by then it has come to its longest pause.
const POLLS: usize = 13;

/// As many of those behind, who wait longer for each.
const POLLS_BEHIND: usize = 4;

/// How long anything is waited for that has to happen.
const DEADLINE: Duration = Duration::from_secs(30);

/// This machine, for tasks without a runtime: each sleep has a thread.
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

/// Polls `future` whenever it is woken, but so many times at most, and drops it; what it returned if
/// it came to its end.
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

/// A lock called `lock` of a store of its own, as another process has it.
fn lock_of<S: AsyncStore>(store: S) -> FileLock<S> {
    lock_in(&Arc::new(store))
}

fn lock_in<S: AsyncStore>(store: &Arc<S>) -> FileLock<S> {
    let locks = LockFactory::new(Arc::clone(store), Sleeper);
    locks.create_lock("lock", "none").unwrap()
}

/// It waits, is dropped, and the lock is given back, or the other way around; anybody gets it then.
fn one_who_waits<S: AsyncStore>(open: impl Fn() -> S) {
    let (holder, waits, next) = (lock_of(open()), lock_of(open()), lock_of(open()));
    for freed_first in [false, true] {
        for polls in 0..=POLLS {
            block_on(holder.acquire()).unwrap();
            {
                let mut waiting = pin!(waits.acquire());
                let ended = poll_at_most(waiting.as_mut(), polls);
                assert!(ended.is_none(), "the lock is held");
                if freed_first {
                    // Its turn has come, and it never takes it.
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

/// Of three who wait, two tasks of one process and one of another, one is dropped; the others get the
/// lock, each in its turn.
fn one_of_three_who_wait<S: AsyncStore>(open: impl Fn() -> S) {
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

/// A run that keeps its lease alive, dropped at every poll: the lock is free at once.
fn one_who_keeps_it_alive<S: AsyncStore>(open: impl Fn() -> S) {
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
                    // It was extended.
                    Poll::Ready(())
                }
            });
            held.keep(work).await
        });
        match poll_at_most(running, polls) {
            None => assert!(polls < 4, "it was polled at each of its waits"),
            Some(ran) => ran.unwrap().unwrap(),
        }
        let got = block_on(next.try_acquire());
        got.unwrap_or_else(|err| panic!("after {polls} polls: {err}"));
        block_on(next.release()).unwrap();
    }
}

/// The descriptors that are open, and the files that are watched.
fn left() -> (usize, usize) {
    let descriptors = || fs::read_dir("/proc/self/fdinfo").unwrap();
    let watches = descriptors().filter_map(|entry| {
        let info = fs::read_to_string(entry.unwrap().path()).ok()?;
        Some(info.matches("inotify wd:").count())
    });
    (descriptors().count(), watches.sum())
}

/// One test for all: what is open is the whole process's.
#[test]
fn waiter_dropped_while_it_waits_leaves_nothing() {
    fn everything<S: AsyncStore>(open: impl Fn(&Path) -> S) {
        let directory = tempfile::tempdir().unwrap();
        one_who_waits(|| open(directory.path()));
        one_of_three_who_wait(|| open(directory.path()));
        one_who_keeps_it_alive(|| open(directory.path()));
    }

    let options = StoreOptions::default();
    let leases = |path: &Path| LeaseFileStore::open(path, &options).unwrap();
    let locks = |path: &Path| FileLockStore::open(path, &options).unwrap();
    everything(leases);
    let (descriptors, watches) = left();
    assert_eq!(watches, 0, "files that are watched for nobody");
    everything(locks);
    assert_eq!(left(), (descriptors, 0), "what stays open");
}
