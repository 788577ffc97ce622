//! The cost of acquiring and releasing a free lock.
#![cfg(target_os = "linux")]

use std::iter;

use verrou::blocking::LockFactory;
use verrou::{Store, Ttl};
use verrou_files::{FileLockStore, LeaseFileStore};
use verrou_machine::{StoreOptions, System};

/// Returns how often memory is allocated at least to acquire and release a free lock. Some of the pairs also look
/// whether the file is still the same, which takes more.
fn fewest_allocations(store: &impl Store) -> Option<u64> {
    let lock = LockFactory::new(store, System)
        .create_lock("free", Ttl::NEVER)
        .expect("a name");
    let pair = || {
        lock.acquire().expect("a free lock");
        lock.release().expect("a held lock");
    };
    // The first pair creates the file and opens it.
    pair();
    let counts = iter::repeat_with(|| allocation_counter::measure(pair).count_total);
    counts.take(100).min()
}

#[test]
fn free_lock_takes_two_allocations() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = FileLockStore::open(directory.path(), &StoreOptions::default());
    assert_eq!(fewest_allocations(&store.expect("a store")), Some(2));
}

#[test]
fn free_lease_takes_three_allocations() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default());
    assert_eq!(fewest_allocations(&store.expect("a store")), Some(3));
}
