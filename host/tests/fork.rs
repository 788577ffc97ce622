//! A forked child has copies of its parent's locks, and releases none of them.
#![cfg(unix)]
#![expect(unsafe_code, reason = "fork(2) without exec(2) is what is tested")]

use std::path::Path;
use std::time::Duration;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use verrou::blocking::LockFactory;
use verrou::{Error, Fence, Store};
use verrou_host::{
    FenceError, FenceGate, FileError, FileLockStore, LeaseFileStore, StoreOptions, System,
};

/// One test for all: this is the only thread that does anything when it forks.
#[test]
fn a_forked_child_releases_nothing_and_keeps_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let leases = || LeaseFileStore::open(folder.path(), &options).unwrap();
    let locks = || FileLockStore::open(folder.path(), &options).unwrap();
    stays_taken(leases);
    stays_taken(locks);
    can_be_had_by_the_child(leases);
    can_be_had_by_the_child(locks);
    is_free_when_it_is_released(leases);
    is_free_when_it_is_released(locks);
    stays_closed(&folder.path().join("gate"));
    if cfg!(target_os = "linux") {
        ends_with_its_process(leases);
        ends_with_its_process(locks);
    }
}

/// A process uses the lock, forks, takes the lock again and ends: its child, which has what was open
/// by the fork, keeps nobody from the lock.
fn ends_with_its_process<S: Store>(open: impl Fn() -> S) {
    use std::io::{Read, Write};

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

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
                // Until the test ends it.
                std::thread::sleep(Duration::from_mins(1));
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

/// Forks; the child asks for the lock by its copy of the store's value: while its parent holds it, and
/// when it has released it.
fn can_be_had_by_the_child<S: Store>(open: impl Fn() -> S) {
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

/// Forks; the child has what was open by then, also when its parent has released the lock.
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
            // Until the test has ended, however it does.
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

/// Forks; the child drops its copies of a guard and of its store, and tries to release.
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
            let refused = matches!(lock.release(), Err(Error::NotOwner { .. }));
            drop(held);
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
                "the child's release was refused"
            );
        }
    }
    let other = open();
    let other = LockFactory::new(&other, System)
        .create_lock("lock", "none")
        .unwrap();
    assert!(matches!(other.try_acquire(), Err(Error::Timeout { .. })));
    held.extend(None).unwrap();
    held.release().unwrap();
    other.try_acquire().unwrap();
}
