//! A forked child has copies of its parent's locks, and releases none of them.
#![cfg(unix)]
#![expect(unsafe_code, reason = "fork(2) without exec(2) is what is tested")]

#[cfg(target_os = "linux")]
#[path = "common/namespaces.rs"]
mod namespaces;

use std::env;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[cfg(target_os = "linux")]
use namespaces::{DIRECTORY, in_namespaces};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};
use verrou::blocking::{Host, LockFactory};
use verrou::{Clock, Error, Fence, Store, StoreError, Timestamp};
use verrou_host::{
    FenceError, FenceGate, FileError, FileLockStore, HardLinkStore, HostStore, LeaseFileStore,
    StoreOptions, System,
};

/// One test for all, because no other thread may be active when the process forks.
#[test]
fn a_forked_child_releases_nothing_and_keeps_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let leases = || LeaseFileStore::open(directory.path(), &options).unwrap();
    let locks = || FileLockStore::open(directory.path(), &options).unwrap();
    let links = || HardLinkStore::open(directory.path().join("links"), &options).unwrap();
    stays_taken(leases);
    stays_taken(locks);
    stays_taken(links);
    child_can_acquire_it(leases);
    child_can_acquire_it(locks);
    child_can_acquire_it(links);
    is_free_when_it_is_released(leases);
    is_free_when_it_is_released(locks);
    is_free_when_it_is_released(links);
    stays_closed(&directory.path().join("gate"));
    if cfg!(target_os = "linux") {
        detached_lease_is_held_for_a_child_that_sets_a_label(&leases());
        ends_with_its_process(leases);
        ends_with_its_process(locks);
        is_free_when_its_process_is_killed_inside_an_operation(|clock| leases().with_clock(clock));
        is_free_when_its_process_is_killed_inside_an_operation(|clock| locks().with_clock(clock));
        threads_of_the_parent_hang_no_child(leases);
        threads_of_the_parent_hang_no_child(locks);
        threads_of_the_parent_hang_no_child(links);
    }
}

/// Forks; the child sets its label before it reads a lock's file.
fn detached_lease_is_held_for_a_child_that_sets_a_label(store: &LeaseFileStore) {
    let create = || LockFactory::new(store, System).create_lock("detached", "none");
    let lock = create().unwrap();
    lock.acquire().unwrap();
    // Serializing detaches the lease.
    lock.serialize().unwrap();
    // SAFETY: as below.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            store.set_label(Some("child"));
            let taken = create().and_then(|other| other.try_acquire());
            let is_refused = matches!(taken, Err(Error::Timeout { .. }));
            // SAFETY: as below.
            unsafe { nix::libc::_exit(i32::from(!is_refused)) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Exited(child, 0), "one holder");
        }
    }
    lock.release().unwrap();
}

/// The system clock, which kills the calling process once it is armed.
#[derive(Clone)]
struct DeadlyClock(Arc<AtomicBool>);

impl Clock for DeadlyClock {
    fn now(&self) -> Timestamp {
        if self.0.load(Ordering::Relaxed) {
            kill(Pid::this(), Signal::SIGKILL).unwrap();
        }
        System.now()
    }
}

/// A process uses the lock, forks, and is killed inside an operation, which reads the clock. Its child has
/// inherited the open files; the lock must be free for other processes all the same.
fn is_free_when_its_process_is_killed_inside_an_operation<S: Store>(
    open: impl Fn(DeadlyClock) -> S,
) {
    use std::io::Read;

    let clock = DeadlyClock(Arc::new(AtomicBool::new(false)));
    let (mut reader, writer) = std::io::pipe().unwrap();
    // SAFETY: as below; both processes end without returning.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(writer);
            let store = open(clock.clone());
            let lock = LockFactory::new(&store, System)
                .create_lock("in an operation", "none")
                .unwrap();
            lock.acquire().unwrap();
            lock.release().unwrap();
            // SAFETY: as above.
            if let ForkResult::Child = unsafe { fork() }.unwrap() {
                // This child waits until the test has ended.
                let _ = reader.read(&mut [0]);
            } else {
                clock.0.store(true, Ordering::Relaxed);
                let _ = lock.acquire();
            }
            // SAFETY: as below.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Signaled(child, Signal::SIGKILL, false));
            let other = open(clock);
            let other = LockFactory::new(&other, System)
                .create_lock("in an operation", "none")
                .unwrap();
            other.try_acquire().unwrap();
            drop(writer);
        }
    }
}

/// A program forks while its threads use the store. The child acquires two locks through its copy of the
/// store: a free one, and one that it has to wait for.
fn threads_of_the_parent_hang_no_child<S: Store + Sync>(open: impl Fn() -> S) {
    const CHILDREN: usize = 60;

    let store = open();
    let ends = AtomicBool::new(false);
    let use_lock = |name: &str| {
        let lock = LockFactory::new(&store, System).create_lock(name, "none")?;
        lock.acquire()?;
        lock.release()
    };
    let hung = thread::scope(|threads| {
        for number in 0..4 {
            let (ends, use_lock) = (&ends, &use_lock);
            threads.spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    use_lock("wanted by all").unwrap();
                    use_lock(&format!("of thread {number}")).unwrap();
                }
            });
        }
        let mut hung = 0;
        for _ in 0..CHILDREN {
            // SAFETY: the child uses this library, which supports that, and the allocator, which the C
            // library makes usable after a fork; the child ends without returning.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let done = use_lock("of a child").and_then(|()| use_lock("wanted by all"));
                    // SAFETY: as below.
                    unsafe { nix::libc::_exit(i32::from(done.is_err())) }
                }
                ForkResult::Parent { child } => hung += usize::from(!ends_well(child)),
            }
        }
        ends.store(true, Ordering::Relaxed);
        hung
    });
    assert_eq!(hung, 0, "of {CHILDREN}");
}

/// Returns whether `child` ends with 0 within the deadline; kills it afterwards.
fn ends_well(child: Pid) -> bool {
    const DEADLINE: Duration = Duration::from_secs(20);

    let began = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive if began.elapsed() < DEADLINE => {
                thread::sleep(Duration::from_millis(1));
            }
            WaitStatus::StillAlive => {
                kill(child, Signal::SIGKILL).unwrap();
                waitpid(child, None).unwrap();
                return false;
            }
            ended => return ended == WaitStatus::Exited(child, 0),
        }
    }
}

/// The first process of a PID namespace forks into another: parent and child have the process ID 1.
#[test]
#[cfg(target_os = "linux")]
fn child_with_its_parents_process_id_is_another_process() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        let name = "child_with_its_parents_process_id_is_another_process";
        return in_namespaces(
            "a forked child in a PID namespace",
            name,
            &["--pid", "--fork"],
        );
    };
    let options = StoreOptions::default();
    let leases = || LeaseFileStore::open(&directory, &options).unwrap();
    let locks = || FileLockStore::open(&directory, &options).unwrap();
    assert_eq!(std::process::id(), 1);
    // SAFETY: the call changes the PID namespace of this process's children, and nothing else.
    let unshared = unsafe { nix::libc::unshare(nix::libc::CLONE_NEWPID) };
    assert_eq!(unshared, 0);
    // The first child is the first process of the namespace. After its end, none can be created there.
    let (store, other) = (leases(), locks());
    let lease = LockFactory::new(&store, System)
        .create_lock("lock", "none")
        .unwrap();
    let lock = LockFactory::new(&other, System)
        .create_lock("lock", "none")
        .unwrap();
    let (lease_held, lock_held) = (lease.guard().unwrap(), lock.guard().unwrap());
    let gate = || FenceGate::open(Path::new(&directory).join("gate"), &options).unwrap();
    let checked = gate().check(Fence::FIRST).unwrap();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: as below.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            use std::io::Write;

            let has_number = std::process::id() == 1;
            let is_held = lease.release().is_ok() || lock.release().is_ok();
            drop((lease_held, lock_held, checked));
            writer.write_all(&System.random()).unwrap();
            // SAFETY: as below.
            unsafe { nix::libc::_exit(i32::from(is_held) + 2 * i32::from(!has_number)) }
        }
        ForkResult::Parent { child } => {
            use std::io::Read;

            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            let mut owner = [0; 16];
            reader.read_exact(&mut owner).unwrap();
            assert_ne!(owner, System.random());
        }
    }
    let (store, other) = (leases(), locks());
    let taken = LockFactory::new(&store, System).create_lock("lock", "none");
    assert!(taken.unwrap().try_acquire().is_err());
    let taken = LockFactory::new(&other, System).create_lock("lock", "none");
    assert!(taken.unwrap().try_acquire().is_err());
    let passed = gate().check_within(Fence::FIRST, Duration::ZERO);
    assert!(passed.is_err(), "the child's copy was dropped, and no more");
    lease_held.release().unwrap();
    lock_held.release().unwrap();
    drop(checked);
}

/// A process forks into a time namespace, where the leases of other processes seem to have expired.
#[test]
#[cfg(target_os = "linux")]
fn child_in_another_time_namespace_takes_no_lease_for_expired() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        let name = "child_in_another_time_namespace_takes_no_lease_for_expired";
        return in_namespaces("a forked child in a time namespace", name, &["--mount"]);
    };
    let options = StoreOptions::default();
    let store = LeaseFileStore::open(&directory, &options).unwrap();
    let lock = LockFactory::new(&store, System)
        .create_lock("lock", "1h")
        .unwrap();
    lock.acquire().unwrap();
    // Serializing detaches the lease.
    lock.serialize().unwrap();
    // SAFETY: the call changes the time namespace of this process's children, and nothing else.
    let unshared = unsafe { nix::libc::unshare(nix::libc::CLONE_NEWTIME) };
    assert_eq!(unshared, 0);
    // The offsets are those of this thread, which is not the main thread.
    let offsets = format!("/proc/{}/timens_offsets", nix::unistd::gettid());
    fs::write(offsets, "boottime 100000 0").unwrap();
    // SAFETY: as below.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let other = LockFactory::new(&store, System).create_lock("lock", "1h");
            let taken = other.and_then(|other| other.try_acquire());
            let is_error = matches!(&taken, Err(Error::Storage(err)) if is_of_another_clock(err));
            // SAFETY: as below.
            unsafe { nix::libc::_exit(i32::from(!is_error)) }
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    }
    lock.release().unwrap();
}

fn is_of_another_clock(err: &StoreError) -> bool {
    matches!(
        err.get_ref().downcast_ref(),
        Some(FileError::ForeignClock { .. })
    )
}

/// A process uses the lock, forks, acquires the lock again and ends. Its child, which has inherited the open
/// files, does not block the lock.
fn ends_with_its_process<S: Store>(open: impl Fn() -> S) {
    use std::io::{Read, Write};

    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: as below; both processes end without returning.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let store = open();
            let lock = LockFactory::new(&store, System)
                .create_lock("between", "none")
                .unwrap();
            lock.acquire().unwrap();
            lock.release().unwrap();
            // SAFETY: as above.
            if let ForkResult::Parent { child } = unsafe { fork() }.unwrap() {
                lock.acquire().unwrap();
                writer.write_all(&child.as_raw().to_ne_bytes()).unwrap();
            } else {
                // The test kills this child.
                thread::sleep(Duration::from_mins(1));
            }
            // SAFETY: as below.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(writer);
            waitpid(child, None).unwrap();
            let mut number = [0; 4];
            reader.read_exact(&mut number).unwrap();
            let other = open();
            let other = LockFactory::new(&other, System)
                .create_lock("between", "none")
                .unwrap();
            let taken = other.try_acquire();
            kill(Pid::from_raw(i32::from_ne_bytes(number)), Signal::SIGKILL)
                .expect("the forked child lives");
            taken.unwrap();
        }
    }
}

/// Forks; the child tries the lock with its copy of the store while its parent holds the lock, and
/// after the release.
fn child_can_acquire_it<S: Store>(open: impl Fn() -> S) {
    use std::io::Read;

    let (mut asked, asks) = std::io::pipe().unwrap();
    let (mut free, frees) = std::io::pipe().unwrap();
    let store = open();
    let lock = LockFactory::new(&store, System)
        .create_lock("asked for by a child", "none")
        .unwrap();
    lock.acquire().unwrap();
    // SAFETY: as below.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(frees);
            let is_refused = lock.try_acquire().is_err();
            drop(asks);
            let _ = free.read(&mut [0]);
            let is_granted = lock.try_acquire().and_then(|_| lock.release()).is_ok();
            // SAFETY: as below.
            unsafe { nix::libc::_exit(i32::from(!is_refused) + 2 * i32::from(!is_granted)) }
        }
        ForkResult::Parent { child } => {
            drop(asks);
            let _ = asked.read(&mut [0]);
            lock.release().unwrap();
            drop(frees);
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Exited(child, 0));
        }
    }
}

/// Forks; the child keeps the inherited files open, also after its parent has released the lock.
fn is_free_when_it_is_released<S: Store>(open: impl Fn() -> S) {
    use std::io::Read;

    let (mut reader, writer) = std::io::pipe().unwrap();
    let store = open();
    let lock = LockFactory::new(&store, System)
        .create_lock("inherited", "none")
        .unwrap();
    lock.acquire().unwrap();
    // SAFETY: as below.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(writer);
            // The child waits until the test has ended.
            let _ = reader.read(&mut [0]);
            // SAFETY: as below.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            lock.release().unwrap();
            let other = open();
            let other = LockFactory::new(&other, System)
                .create_lock("inherited", "none")
                .unwrap();
            other.try_acquire().unwrap();
            drop(writer);
            waitpid(child, None).unwrap();
        }
    }
}

/// Forks; the child drops its copy of a checked fence.
fn stays_closed(path: &Path) {
    let gate = || FenceGate::open(path, &StoreOptions::default()).unwrap();
    let checked = gate().check(Fence::FIRST).unwrap();
    // SAFETY: as below.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            drop(checked);
            // SAFETY: as below.
            unsafe { nix::libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Exited(child, 0));
        }
    }
    let other = gate();
    let closed = other.check_within(Fence::FIRST, Duration::ZERO);
    assert!(
        matches!(closed, Err(FenceError::File(FileError::Busy { .. }))),
        "{closed:?}"
    );
    drop(checked);
    drop(other.check_within(Fence::FIRST, Duration::ZERO).unwrap());
}

/// Forks. In the child every method of the guard's copy answers that the child is not the holder; then
/// the child drops its copies of the guard and the store.
fn stays_taken<S: Store>(open: impl Fn() -> S) {
    let store = open();
    let lock = LockFactory::new(&store, System)
        .create_lock("lock", "none")
        .unwrap();
    let held = lock.guard().unwrap();
    // SAFETY: the child runs this function's next lines and ends without returning; the test's
    // other thread only waits for this one, so no lock of the allocator is held.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let refused = [
                matches!(lock.is_held(), Ok(false)),
                matches!(lock.is_locked(), Ok(true)),
                matches!(held.extend(held.ttl()), Err(Error::NotOwner { .. })),
                matches!(lock.extend(lock.ttl()), Err(Error::NotOwner { .. })),
                matches!(lock.release(), Err(Error::NotOwner { .. })),
                matches!(held.release(), Err(Error::Lost { .. })),
            ];
            let refused = refused == [true; 6];
            drop(lock);
            drop(store);
            // SAFETY: ends this process, without running its parent's exit handlers.
            unsafe { nix::libc::_exit(i32::from(!refused)) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(
                ended,
                WaitStatus::Exited(child, 0),
                "the child is not the holder"
            );
        }
    }
    let other = open();
    let other = LockFactory::new(&other, System)
        .create_lock("lock", "none")
        .unwrap();
    assert!(matches!(other.try_acquire(), Err(Error::Timeout { .. })));
    held.extend(held.ttl()).unwrap();
    held.release().unwrap();
    other.try_acquire().unwrap();
}
