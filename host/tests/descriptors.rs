//! A process that has no descriptor left can still give its locks back.
#![cfg(target_os = "linux")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use verrou::blocking::LockFactory;
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions, System};

/// One test for both stores: the limit is the whole process's.
#[test]
fn a_release_needs_no_new_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let leases = || LeaseFileStore::open(folder.path(), &options).unwrap();
    let locks = || FileLockStore::open(folder.path(), &options).unwrap();

    // Nothing is known of the machine yet, and what cannot be learnt now can be later.
    without_descriptors(|| {
        let failed = LeaseFileStore::open(folder.path(), &options).unwrap_err();
        assert!(
            matches!(failed, verrou_host::OpenError::Directory { .. }),
            "{failed}"
        );
        FileLockStore::open(folder.path(), &options).unwrap_err();
    });

    let store = leases();
    let lock = LockFactory::new(&store, System)
        .create_lock("lock", "none")
        .unwrap();
    let held = lock.guard().unwrap();
    without_descriptors(|| drop(held));
    let other = leases();
    LockFactory::new(&other, System)
        .create_lock("lock", "none")
        .unwrap()
        .try_acquire()
        .unwrap();

    let store = locks();
    let lock = LockFactory::new(&store, System)
        .create_lock("lock", "none")
        .unwrap();
    let held = lock.guard().unwrap();
    without_descriptors(|| held.release().unwrap());
    let other = locks();
    LockFactory::new(&other, System)
        .create_lock("lock", "none")
        .unwrap()
        .try_acquire()
        .unwrap();
}

fn without_descriptors(body: impl FnOnce()) {
    let usual = getrlimit(Resource::Nofile);
    let none = Rlimit {
        current: Some(0),
        ..usual
    };
    setrlimit(Resource::Nofile, none).unwrap();
    body();
    setrlimit(Resource::Nofile, usual).unwrap();
}
