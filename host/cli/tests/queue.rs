//! Waiting for locks in files: the order of the waiters, and what a waiter leaves behind.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::waiters::waiting;
use common::{KINDS, Started, TestDir, ends_with, eventually, lock_files, open_store, switches};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::process::{Signal, kill_process};
use verrou::blocking::{Host, LockFactory};
use verrou::conformance::waited;
use verrou::{Claim, Name, Owner, Retry, Store, Ttl, Waiter};
use verrou_host::{AnyStore, System};

const SOON: Duration = Duration::from_secs(30);

fn open(kind: &str, directory: &Path) -> AnyStore {
    open_store(&format!("{kind}:{}", directory.display()))
}

fn claim(name: &str) -> Claim {
    Claim::new(
        Name::new(name).unwrap(),
        Owner::from_bytes(System.random()),
        Ttl::NEVER,
    )
    .ephemeral(true)
}

fn is_granted(store: &AnyStore, claim: &Claim) -> bool {
    store.acquire(claim).unwrap().is_granted()
}

/// Adds `claim` to the wait queue; returns its waiter. Dropping the waiter leaves the queue.
fn queue<'s>(store: &'s AnyStore, claim: &Claim) -> Box<dyn Waiter + 's> {
    waited(store, claim, Duration::ZERO)
}

/// Waits until `claim` is granted, with its waiter.
fn take(store: &AnyStore, claim: &Claim, mut waiter: Box<dyn Waiter + '_>) {
    let began = Instant::now();
    while !is_granted(store, claim) {
        assert!(began.elapsed() < SOON, "it is the head waiter");
        waiter.wait(SOON);
    }
    waiter.granted();
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

#[test]
fn waiters_are_served_in_order_of_arrival() {
    const WAITERS: usize = 12;

    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let stores = [(); 3].map(|()| open(kind, directory.path()));
        let held = claim("lock");
        assert!(is_granted(&stores[0], &held));
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for number in 0..WAITERS {
                // Some neighbours in the queue share a store, some do not.
                let store = &stores[number / 2 % 3];
                let claim = claim("lock");
                let waiter = queue(store, &claim);
                let order = &order;
                scope.spawn(move || {
                    take(store, &claim, waiter);
                    order.lock().unwrap().push(number);
                    store.release(&claim).unwrap();
                });
            }
            stores[0].release(&held).unwrap();
        });
        let expected: Vec<_> = (0..WAITERS).collect();
        assert_eq!(order.into_inner().unwrap(), expected, "{kind}");
    }
}

/// The mark, which is the ticket that was issued last, has no checksum.
#[test]
fn corrupt_mark_delays_no_waiter() {
    const MARKS: [u64; 9] = [
        1,
        (1 << 59) - 1,
        1 << 59,
        (1 << 60) - 4096,
        (1 << 60) - 1,
        1 << 60,
        1 << 63,
        0x00ff_0000_0000_0000,
        u64::MAX,
    ];

    for kind in KINDS {
        for mark in MARKS {
            for is_read_by_grant in [true, false] {
                corrupt_mark(kind, mark, is_read_by_grant);
            }
        }
    }
}

fn corrupt_mark(kind: &str, mark: u64, is_read_by_grant: bool) {
    const MARK_AT: u64 = 1536;

    let directory = tempfile::tempdir().unwrap();
    let stores = [(); 4].map(|()| open(kind, directory.path()));
    let held = claim("lock");
    assert!(is_granted(&stores[0], &held));
    if is_read_by_grant {
        stores[0].release(&held).unwrap();
    }
    let file = File::options()
        .write(true)
        .open(&lock_files(directory.path())[0]);
    file.unwrap()
        .write_all_at(&mark.to_le_bytes(), MARK_AT)
        .unwrap();
    if is_read_by_grant {
        assert!(is_granted(&stores[0], &held));
    }
    let [_, others @ ..] = stores.each_ref();
    let order = others.map(|store| {
        let claim = claim("lock");
        let waiter = within(SOON, || queue(store, &claim));
        (store, claim, waiter)
    });
    // A waiter can stop to wait, whatever the state of the others.
    let late = claim("lock");
    let late = within(SOON, || waited(others[0], &late, Duration::from_millis(1)));
    drop(late);
    stores[0].release(&held).unwrap();
    if is_read_by_grant {
        // The grant records the mark, and so the order is kept.
        let (last, ..) = &order[2];
        assert!(!is_granted(last, &claim("lock")), "{kind}, {mark:#x}");
    }
    for (store, claim, waiter) in order {
        take(store, &claim, waiter);
        store.release(&claim).unwrap();
    }
}

/// A program may lock all bytes of the file.
#[test]
fn foreign_byte_locks_delay_no_waiter() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (store, other) = (open(kind, directory.path()), open(kind, directory.path()));
        let held = claim("lock");
        assert!(is_granted(&store, &held));
        let file = File::options()
            .write(true)
            .open(&lock_files(directory.path())[0]);
        let file = file.unwrap();
        let all_tickets = libc::flock {
            l_type: i16::try_from(libc::F_WRLCK).unwrap(),
            l_whence: i16::try_from(libc::SEEK_SET).unwrap(),
            l_start: (1 << 62) + (1 << 61),
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&all_tickets)).unwrap();
        let next = claim("lock");
        let waiter = within(SOON, || queue(&other, &next));
        store.release(&held).unwrap();
        take(&other, &next, waiter);
        other.release(&next).unwrap();
    }
}

/// Calls `work`, and returns its result; aborts the test if that takes longer than `deadline`.
#[track_caller]
fn within<T: Send>(deadline: Duration, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let worker = scope.spawn(work);
        let began = Instant::now();
        while !worker.is_finished() {
            if began.elapsed() > deadline {
                // The thread cannot be ended alone.
                eprintln!("it takes more than {deadline:?}");
                std::process::abort();
            }
            thread::sleep(Duration::from_millis(1));
        }
        worker.join().unwrap()
    })
}

#[test]
fn hand_off_reservation_of_the_head_waiter_ends() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (open(kind, directory.path()), open(kind, directory.path()));
        let (held, first, second) = (claim("lock"), claim("lock"), claim("lock"));
        assert!(is_granted(&here, &held));
        let head_waiter = queue(&there, &first);
        let next_waiter = queue(&here, &second);
        let released = Instant::now();
        here.release(&held).unwrap();
        let barged = is_granted(&here, &claim("lock")) || is_granted(&here, &second);
        assert!(
            !barged || released.elapsed() > Duration::from_millis(200),
            "{kind}"
        );
        // The head waiter does not come.
        take(&here, &second, next_waiter);
        assert!(released.elapsed() >= Duration::from_millis(200), "{kind}");
        here.release(&second).unwrap();
        assert!(is_granted(&there, &first), "{kind}");
        head_waiter.granted();
    }
}

#[test]
fn third_waiter_is_granted_when_the_first_two_do_not_come() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (open(kind, directory.path()), open(kind, directory.path()));
        let [first, second, third] = [(); 3].map(|()| claim("lock"));
        let held = claim("lock");
        assert!(is_granted(&here, &held));
        let waiters = [&first, &second, &third].map(|claim| queue(&there, claim));
        let [first_waiter, second_waiter, third_waiter] = waiters;
        let released = Instant::now();
        here.release(&held).unwrap();
        take(&there, &third, third_waiter);
        assert!(released.elapsed() >= Duration::from_millis(400), "{kind}");
        there.release(&third).unwrap();
        // The first two have kept their tickets.
        take(&there, &first, first_waiter);
        assert!(!is_granted(&there, &second), "{kind}");
        there.release(&first).unwrap();
        take(&there, &second, second_waiter);
    }
}

#[test]
fn waiter_that_times_out_leaves_nothing_behind() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (open(kind, directory.path()), open(kind, directory.path()));
        let held = claim("lock");
        let patient = Retry::default().timeout(Duration::from_micros(200));
        let lock = LockFactory::new(&there, System)
            .retry(patient)
            .create_lock("lock", "none")
            .unwrap();
        assert!(is_granted(&here, &held));
        let mut before = None;
        for round in 0..300 {
            lock.acquire().unwrap_err();
            // After 100 rounds everything is open that stays open.
            if round == 100 {
                before = Some((descriptors(), threads()));
            }
        }
        // Other tests of this process have files and threads, too, but not for long.
        let (files, tasks) = before.unwrap();
        eventually("nothing is left", || {
            descriptors() < files + 100 && threads() < tasks + 100
        });
        here.release(&held).unwrap();
        assert!(is_granted(&here, &held), "{kind}: no waiter is left");
    }
}

#[test]
fn a_hundred_thousand_waits_leave_nothing_behind() {
    const WAITS: usize = 100_000;

    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (open(kind, directory.path()), open(kind, directory.path()));
        let held = claim("lock");
        assert!(is_granted(&here, &held));
        let mut before = None;
        for round in 0..WAITS {
            drop(queue(&there, &claim("lock")));
            // After 100 rounds everything is open that stays open.
            if round == 100 {
                before = Some((descriptors(), threads()));
            }
        }
        // Other tests of this process have files and threads, too, but not for long.
        let (files, tasks) = before.unwrap();
        eventually("nothing is left", || {
            descriptors() < files + 100 && threads() < tasks + 100
        });
        here.release(&held).unwrap();
        let last = claim("lock");
        assert!(is_granted(&there, &last), "{kind}: no waiter is left");
    }
}

#[test]
fn planted_files_in_place_of_wake_pipes_block_no_waiter() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (open(kind, directory.path()), open(kind, directory.path()));
        for bell in 0..4096 {
            let path = directory.path().join(format!("{bell:04}.bell"));
            match bell % 3 {
                0 => fs::write(path, "").unwrap(),
                1 => fs::create_dir(path).unwrap(),
                _ => std::os::unix::fs::symlink("/dev/full", path).unwrap(),
            }
        }
        let held = claim("lock");
        assert!(is_granted(&here, &held));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let claim = claim("lock");
                take(&there, &claim, there.waiter(&claim).unwrap());
            });
            thread::yield_now();
            here.release(&held).unwrap();
            waiter.join().unwrap();
        });
    }
}

/// A waiter without a wake pipe polls often enough to be served in order.
#[test]
fn waiters_are_served_in_order_without_wake_pipes() {
    const WAITERS: usize = 5;

    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        for bell in 0..4096 {
            fs::create_dir(directory.path().join(format!("{bell:04}.bell"))).unwrap();
        }
        let stores = [(); WAITERS + 1].map(|()| open(kind, directory.path()));
        let held = claim("lock");
        assert!(is_granted(&stores[0], &held));
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for (number, store) in stores[1..].iter().enumerate() {
                let claim = claim("lock");
                let waiter = queue(store, &claim);
                let order = &order;
                scope.spawn(move || {
                    take(store, &claim, waiter);
                    order.lock().unwrap().push(number);
                    store.release(&claim).unwrap();
                });
            }
            stores[0].release(&held).unwrap();
        });
        let expected: Vec<_> = (0..WAITERS).collect();
        assert_eq!(order.into_inner().unwrap(), expected, "{kind}");
    }
}

/// Returns the number of wake pipes in `directory` that a process has locked.
fn kept_bells(directory: &Path) -> usize {
    let files = fs::read_dir(directory)
        .unwrap()
        .map(|it| it.unwrap().path());
    let bells = files.filter(|it| it.extension().is_some_and(|it| it == "bell"));
    let is_kept = |bell: &PathBuf| {
        let opened = File::options().read(true).write(true).open(bell).unwrap();
        opened.try_lock().is_err()
    };
    bells.filter(is_kept).count()
}

/// All processes that use the directory share 4,096 wake pipes.
#[test]
fn a_process_keeps_one_wake_pipe_when_it_waits_no_more() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (open(kind, directory.path()), open(kind, directory.path()));
        let names = (0..64).map(|number| format!("lock {number}"));
        let all: Vec<_> = names.map(|name| (claim(&name), claim(&name))).collect();
        for (held, waiting) in &all {
            assert!(is_granted(&here, held));
            drop(queue(&there, waiting));
        }
        // A child that another test has just forked may keep them open for a moment.
        eventually("the process keeps one wake pipe", || {
            kept_bells(directory.path()) == 1
        });
        let waiters = all.iter().map(|(_, waiting)| queue(&there, waiting));
        let waiters: Vec<_> = waiters.collect();
        let kept = kept_bells(directory.path());
        assert!((2..=16).contains(&kept), "{kind}: {kept}");
        drop(waiters);
        eventually("the process keeps one wake pipe", || {
            kept_bells(directory.path()) == 1
        });
    }
}

#[test]
fn threads_of_several_stores_hold_the_lock_one_at_a_time() {
    const THREADS: usize = 8;
    const ROUNDS: u32 = 100;

    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let stores: Vec<_> = (0..3).map(|_| open(kind, directory.path())).collect();
        let (inside, done) = (AtomicU32::new(0), AtomicU32::new(0));
        let start = Barrier::new(THREADS);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (inside, done, start) = (&inside, &done, &start);
                let store = &stores[number % stores.len()];
                scope.spawn(move || {
                    let lock = LockFactory::new(store, System)
                        .create_lock("lock", "1m")
                        .unwrap();
                    start.wait();
                    for _ in 0..ROUNDS {
                        lock.run(|_| {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        })
                        .unwrap();
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        let expected = u32::try_from(THREADS).unwrap() * ROUNDS;
        assert_eq!(done.into_inner(), expected, "{kind}");
    }
}

/// Starts a process that waits for the lock and then appends `number` to the file `order`; returns when it waits.
fn waits(dir: &TestDir, number: u32) -> Started {
    let script = format!("echo {number} >> order");
    let before = waiting(&dir.locks());
    let started = Started::new(&mut dir.run(&["--wait", "60s"], &script));
    eventually("the process waits", || waiting(&dir.locks()) > before);
    started
}

/// Waits until a process does nothing but wait: a process stopped inside an operation would delay
/// others for as long as it is stopped.
fn is_quiet(process: &Started) {
    const LONGER_THAN_AN_ATTEMPT: Duration = Duration::from_millis(100);

    let mut seen = (switches(process.pid()), Instant::now());
    eventually("the process only waits", || {
        let now = switches(process.pid());
        if now != seen.0 {
            seen = (now, Instant::now());
        }
        seen.1.elapsed() > LONGER_THAN_AN_ATTEMPT
    });
}

#[test]
fn killed_and_stopped_waiters_are_skipped() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, _) = dir.start(&[], "echo $$ > pid; exec sleep 1000");
        let mut killed = waits(&dir, 1);
        let mut stopped = waits(&dir, 2);
        let mut third = waits(&dir, 3);
        let mut fourth = waits(&dir, 4);
        killed.kill().unwrap();
        killed.wait().unwrap();
        assert_eq!(waiting(&dir.locks()), 3);
        is_quiet(&stopped);
        stopped.signal(Signal::STOP);
        drop(holder);
        assert!(third.wait().unwrap().success());
        assert!(fourth.wait().unwrap().success());
        let order = || fs::read_to_string(dir.path("order")).unwrap();
        assert_eq!(order(), "3\n4\n", "{kind}");
        stopped.signal(Signal::CONT);
        assert!(stopped.wait().unwrap().success());
        assert_eq!(order(), "3\n4\n2\n", "{kind}");
        assert_eq!(waiting(&dir.locks()), 0);
        ends_with(&mut dir.run(&["--no-wait"], "true"), 0);
    }
}

/// Returns the number of context switches of the waiters so far.
fn all_switches(waiters: &[Started]) -> u64 {
    waiters.iter().map(|waiter| switches(waiter.pid())).sum()
}

/// Returns the number of inotify(7) instances that the waiters have.
fn instances(waiters: &[Started]) -> usize {
    let of = |waiter: &Started| {
        let files = fs::read_dir(format!("/proc/{}/fd", waiter.id())).unwrap();
        let targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        targets
            .filter(|to| to.ends_with("anon_inode:inotify"))
            .count()
    };
    waiters.iter().map(of).sum()
}

/// With more waiters than the user's limit of inotify(7) instances, two waiters have an instance, all others
/// sleep, and all are served in order.
#[test]
fn waiters_beyond_the_inotify_limit_sleep_and_are_served_in_order() {
    const WAITERS: u32 = 150;
    const LENGTH: Duration = Duration::from_secs(4);

    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, _) = dir.start(&[], "echo $$ > pid; exec sleep 1000");
        let mut waiters: Vec<_> = (0..WAITERS).map(|number| waits(&dir, number)).collect();
        // The last waiters have tried the lock once, and sleep.
        eventually("all sleep", || {
            let before = all_switches(&waiters);
            thread::sleep(Duration::from_millis(200));
            all_switches(&waiters) - before < u64::from(WAITERS) / 3
        });
        assert_eq!(instances(&waiters), 2, "{kind}");
        let before = all_switches(&waiters);
        thread::sleep(LENGTH);
        let wake_ups = all_switches(&waiters) - before;
        // Polling by the retry delay would be four wake-ups of each waiter a second.
        assert!(wake_ups < 100 * LENGTH.as_secs(), "{kind}: {wake_ups}");
        drop(holder);
        for waiter in &mut waiters {
            assert!(waiter.wait().unwrap().success());
        }
        let order = dir.read("order");
        let order: Vec<u32> = order.lines().map(|line| line.parse().unwrap()).collect();
        // On a busy machine a waiter may not run within its hand-off reservation of 200 ms.
        let skipped = (0..WAITERS)
            .zip(&order)
            .filter(|(number, it)| number != *it);
        let skipped = skipped.count();
        assert!(order.len() == 150 && skipped <= 10, "{kind}: {order:?}");
    }
}

/// The end of a waiter's process wakes the waiter behind it.
#[test]
fn next_waiter_is_served_when_the_holder_and_all_earlier_waiters_are_killed() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (mut holder, command) = dir.start(&[], "echo $$ > pid; exec sleep 1000");
        let mut killed: Vec<_> = (0..20).map(|number| waits(&dir, number)).collect();
        let mut next = waits(&dir, 20);
        is_quiet(&next);
        for process in &mut killed {
            process.kill().unwrap();
        }
        holder.kill().unwrap();
        kill_process(command, Signal::KILL).unwrap();
        assert!(next.wait().unwrap().success());
        assert_eq!(dir.read("order"), "20\n", "{kind}");
    }
}

/// The longest that a waiter may sleep that misses its notification is 10 s.
const WELL_BEFORE_IT_POLLS: Duration = Duration::from_secs(3);

/// Adds so many abandoned tickets to the queue of the lock `k` that a waiter behind them sleeps for
/// 10 s.
fn lengthen_queue(store: &AnyStore) {
    for _ in 0..60 {
        drop(queue(store, &claim("k")));
    }
}

/// Starts a thread that takes and releases `claim`, with its waiter; returns when it sleeps.
fn sleeps<'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    store: &'scope AnyStore,
    claim: Claim,
    waiter: Box<dyn Waiter + 'scope>,
) -> thread::ScopedJoinHandle<'scope, ()> {
    let (sender, receiver) = mpsc::channel();
    let thread = scope.spawn(move || {
        sender.send(rustix::thread::gettid()).unwrap();
        take(store, &claim, waiter);
        store.release(&claim).unwrap();
    });
    let status = format!("/proc/self/task/{}/status", receiver.recv().unwrap());
    let mut since = Instant::now();
    eventually("the thread sleeps", || {
        if !fs::read_to_string(&status).unwrap().contains("State:\tS") {
            since = Instant::now();
        }
        since.elapsed() > Duration::from_millis(50)
    });
    thread
}

/// A waiter behind another one of its process watches the waiter before it as soon as it is the first
/// waiter of its process.
#[test]
fn next_waiter_of_a_process_notices_the_death_of_the_waiter_before_it() {
    for kind in KINDS {
        for has_wake_pipes in [true, false] {
            let dir = TestDir::new(kind);
            fs::create_dir_all(dir.locks()).unwrap();
            for bell in 0..if has_wake_pipes { 0 } else { 4096 } {
                fs::create_dir(dir.locks().join(format!("{bell:04}.bell"))).unwrap();
            }
            let (here, there) = (open(kind, &dir.locks()), open(kind, &dir.locks()));
            let (held, ahead) = (claim("k"), claim("k"));
            let (first, second) = (claim("k"), claim("k"));
            assert!(is_granted(&there, &held));
            // A waiter right behind the head waiter would not sleep for long.
            let ahead_waiter = queue(&there, &ahead);
            let mut first_waiter = queue(&here, &first);
            let second_waiter = queue(&there, &second);
            lengthen_queue(&there);
            let mut killed = waits(&dir, 1);
            let last = claim("k");
            let last_waiter = queue(&here, &last);
            thread::scope(|scope| {
                let last = sleeps(scope, &here, last, last_waiter);
                there.release(&held).unwrap();
                take(&there, &ahead, ahead_waiter);
                // It reads its notification, so that the waiter behind it does not.
                first_waiter.wait(SOON);
                there.release(&ahead).unwrap();
                take(&here, &first, first_waiter);
                here.release(&first).unwrap();
                take(&there, &second, second_waiter);
                killed.kill().unwrap();
                killed.wait().unwrap();
                let released = Instant::now();
                there.release(&second).unwrap();
                last.join().unwrap();
                let after = released.elapsed();
                assert!(
                    after < WELL_BEFORE_IT_POLLS,
                    "{kind}, {has_wake_pipes}: {after:?}"
                );
            });
        }
    }
}

/// A process that has notified a waiter does not keep that waiter's wake pipe open.
#[test]
fn death_of_a_notified_waiter_is_noticed_while_the_notifying_process_lives() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (here, there) = (open(kind, &dir.locks()), open(kind, &dir.locks()));
        let (held, lasting, first) = (claim("k"), claim("k"), claim("k"));
        assert!(is_granted(&there, &held));
        let lasting_waiter = queue(&here, &lasting);
        let first_waiter = queue(&there, &first);
        let mut killed = waits(&dir, 1);
        lengthen_queue(&there);
        let mut last = waits(&dir, 2);
        is_quiet(&last);
        there.release(&held).unwrap();
        take(&here, &lasting, lasting_waiter);
        // It notifies the second waiter, which is killed.
        here.release(&lasting).unwrap();
        take(&there, &first, first_waiter);
        killed.kill().unwrap();
        killed.wait().unwrap();
        let released = Instant::now();
        there.release(&first).unwrap();
        assert!(last.wait().unwrap().success());
        let after = released.elapsed();
        assert!(after < WELL_BEFORE_IT_POLLS, "{kind}: {after:?}");
    }
}
