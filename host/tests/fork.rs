//! A forked child has copies of its parent's locks, and releases none of them.
#![cfg(unix)]
#![expect(unsafe_code, reason = "fork(2) without exec(2) is what is tested")]

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use verrou::blocking::LockFactory;
use verrou::{Error, Store};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions, System};

/// Forks; the child drops its copies of a guard and of its store, and tries to release.
///
/// One test for both stores: this is the only thread that does anything when it forks.
#[test]
fn a_forked_child_releases_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    stays_taken(|| LeaseFileStore::open(folder.path(), &options).unwrap());
    stays_taken(|| FileLockStore::open(folder.path(), &options).unwrap());
}

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
