//! The number of descriptors that locks take, and the behaviour of a process that has none left.
#![cfg(target_os = "linux")]

#[path = "common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use verrou::blocking::LockFactory;
use verrou::conformance::TestClock;
use verrou::{Claim, Renewed, Store};
use verrou_host::{FileError, FileLockStore, LeaseFileStore, StoreOptions, System};

/// Serializes the tests: the limit and the descriptors are those of the whole process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    static FIRST: Once = Once::new();
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    FIRST.call_once(failure_without_descriptors_is_not_cached);
    alone
}

/// Runs before all other tests, because the host identity must not be cached yet.
fn failure_without_descriptors_is_not_cached() {
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    without_descriptors(|| {
        let failed = LeaseFileStore::open(directory.path(), &options).unwrap_err();
        assert!(
            matches!(failed, verrou_host::OpenError::Directory { .. }),
            "{failed}"
        );
        FileLockStore::open(directory.path(), &options).unwrap_err();
    });
}

fn open_descriptors() -> u64 {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    // One of them is the descriptor of the directory.
    descriptors.count() as u64 - 1
}

fn claim(name: &str, seconds: u64) -> Claim {
    let ttl = Some(Duration::from_secs(seconds)).try_into().unwrap();
    store_calls::claim(name, 7).with_ttl(ttl)
}

#[test]
fn expired_leases_keep_few_descriptors() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::still();
    let open = || {
        let store = LeaseFileStore::open(directory.path(), &StoreOptions::default());
        store.unwrap().with_clock(clock.clone())
    };
    let store = open();
    assert!(store.acquire(&claim("extended", 1)).unwrap().is_granted());
    // A second process that has the owner token extends the lease in this way.
    let extended = open().extend(&claim("extended", 1_000_000));
    assert!(extended.unwrap());
    let before = open_descriptors();
    for number in 0..300 {
        let claim = claim(&format!("left {number}"), 1);
        assert!(store.acquire(&claim).unwrap().is_granted());
        clock.advance(Duration::from_secs(1));
    }
    // 64 descriptors of expired leases, and one for each of the 64 names that were used last.
    let after = open_descriptors();
    assert!(after <= before + 128, "{before}, then {after}");
    let late = store.extend(&claim("left 0", 1)).unwrap();
    assert!(!late, "its lease has expired");
    let holder = open().holders(&claim("extended", 1).name).unwrap().pop();
    assert!(holder.is_some(), "its lease was extended");
}

/// When the machine continues, the lease has not been renewed yet.
#[test]
fn lease_of_a_suspended_process_is_not_ended_before_its_first_renewal() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let clock = TestClock::still();
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let store = store.with_clock(clock.clone());
    let kept = claim("kept", 30);
    assert!(store.acquire(&kept).unwrap().is_granted());
    for number in 0..63 {
        let claim = claim(&format!("other {number}"), 1_000_000);
        assert!(store.acquire(&claim).unwrap().is_granted());
    }
    clock.advance(Duration::from_hours(8));
    // Expired leases are looked for from the 65th on.
    assert!(store.acquire(&claim("next", 1)).unwrap().is_granted());
    assert!(store.acquire(&claim("last", 1)).unwrap().is_granted());
    assert_eq!(store.renew(&kept, None).unwrap(), Renewed::Granted);
}

#[test]
fn idle_files_are_closed_before_an_acquire_request_fails() {
    const LEFT: u64 = 40;

    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let usual = getrlimit(Resource::Nofile);
    let limit = open_descriptors() + LEFT;
    let low = Rlimit {
        current: Some(limit),
        ..usual
    };
    setrlimit(Resource::Nofile, low).unwrap();
    let mut held = 0;
    let refused = loop {
        match store.acquire(&claim(&format!("lock {held}"), 1_000)) {
            Ok(reply) => assert!(reply.is_granted()),
            Err(err) => break err,
        }
        held += 1;
    };
    let claims = (0..held).map(|number| claim(&format!("lock {number}"), 2_000));
    let claims: Vec<_> = claims.collect();
    let extended: Vec<_> = claims.iter().map(|claim| store.extend(claim)).collect();
    let released: Vec<_> = claims.iter().map(|claim| store.release(claim)).collect();
    setrlimit(Resource::Nofile, usual).unwrap();

    // The acquire operation itself needs a descriptor.
    assert!(LEFT - 2 < held, "{held}");
    assert!(
        matches!(
            refused.get_ref().downcast_ref(),
            Some(FileError::TooManyOpenFiles { limit: Some(named), .. }) if *named == limit
        ),
        "{refused:?}"
    );
    assert!(!refused.is_temporary());
    let text = refused.to_string();
    assert!(text.contains("`ulimit -n`"), "{text}");
    for reply in extended.into_iter().chain(released) {
        assert!(reply.unwrap());
    }
}

#[test]
fn a_release_needs_no_new_descriptor() {
    let _alone = alone();
    let directory = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let leases = || LeaseFileStore::open(directory.path(), &options).unwrap();
    let locks = || FileLockStore::open(directory.path(), &options).unwrap();

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
