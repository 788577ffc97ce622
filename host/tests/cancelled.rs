//! Waits that another thread cancels, in the stores of this machine.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use verrou::blocking::{Cancellation, LockFactory};
use verrou::{MemoryStore, Retry, Store};
use verrou_host::{AnyStore, StoreOptions, System};

fn stores() -> Vec<(Arc<dyn Store>, Option<tempfile::TempDir>)> {
    let in_files = ["lease", "file"].map(|kind| {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("{kind}:{}", directory.path().display());
        let store = AnyStore::open(&url.parse().unwrap(), &StoreOptions::default()).unwrap();
        (Arc::new(store) as Arc<dyn Store>, Some(directory))
    });
    let memory: Arc<dyn Store> = Arc::new(MemoryStore::new(System));
    in_files.into_iter().chain([(memory, None)]).collect()
}

/// The wait is cancelled at different moments: before the first attempt, in the first wait, and in later ones.
#[test]
fn cancelled_wait_holds_nothing_and_leaves_the_queue() {
    for (store, _directory) in stores() {
        let locks = LockFactory::new(store, System);
        let lock = locks.create_lock("lock", "1h").unwrap();
        for round in 0..12 {
            let held = lock.guard().unwrap();
            let cancellation = Cancellation::new();
            thread::scope(|scope| {
                let waits = scope.spawn(|| {
                    lock.guard_or_cancel(&Retry::default(), &cancellation)
                        .unwrap()
                });
                thread::sleep(Duration::from_millis(10) * round);
                cancellation.cancel();
                assert!(waits.join().unwrap().is_none());
            });
            held.release().unwrap();
            // A ticket that was left behind would reserve the lock for its owner.
            drop(lock.try_guard().expect("it is free"));
        }
    }
}

#[test]
fn wait_that_is_not_cancelled_ends_with_the_grant() {
    for (store, _directory) in stores() {
        let locks = LockFactory::new(store, System);
        let lock = locks.create_lock("lock", "1h").unwrap();
        let held = lock.guard().unwrap();
        let cancellation = Cancellation::new();
        thread::scope(|scope| {
            let waits = scope.spawn(|| {
                lock.guard_or_cancel(&Retry::default(), &cancellation)
                    .unwrap()
            });
            // Longer than the parts in which the wait looks at the cancellation.
            thread::sleep(Duration::from_millis(120));
            held.release().unwrap();
            assert!(waits.join().unwrap().is_some());
        });
    }
}

#[test]
fn cancelled_cancellation_grants_nothing() {
    for (store, _directory) in stores() {
        let locks = LockFactory::new(store, System);
        let lock = locks.create_lock("lock", "1h").unwrap();
        let cancellation = Cancellation::new();
        cancellation.clone().cancel();
        let free = lock.guard_or_cancel(&Retry::default(), &cancellation);
        assert!(free.unwrap().is_none());
        assert!(!lock.is_locked().unwrap());
    }
}
