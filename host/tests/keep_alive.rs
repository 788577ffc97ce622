//! A lease in a file is kept alive, and its loss is detected.
#![cfg(target_os = "linux")]

use std::thread;

use verrou::blocking::LockFactory;
use verrou::{Error, Loss, RunError};
use verrou_host::{LeaseFileStore, StoreOptions, System, keep_alive};

#[test]
fn loss_is_detected_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let open = || LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let (here, there) = (open(), open());
    // The next renewal, after a third of that, is too late for this test.
    let lock = LockFactory::new(&here, System).create_lock("lock", "1h");
    let other = LockFactory::new(&there, System).create_lock("lock", "1h");
    let (lock, other) = (lock.unwrap(), other.unwrap());
    let held = lock.guard().unwrap();
    assert!(
        keep_alive(&held, || !held.is_expired()).unwrap(),
        "the end of the work is detected at once, too"
    );
    let revoked = keep_alive(&held, || {
        other.force_release(None).unwrap();
        while !held.is_expired() {
            thread::yield_now();
        }
    });
    let Err(RunError::Ended {
        error: Error::Lost {
            loss: Loss::Revoked,
            ..
        },
        ..
    }) = revoked
    else {
        panic!("{revoked:?}");
    };
}
