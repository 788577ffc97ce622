//! Files and directories that other programs remove, replace or move.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use verrou::Store;

use crate::lock_files::{KINDS, leases, lock_file, locks, only_file, open};
use crate::store_calls::{done, granted, not_done, refused};
use crate::{claim, detached, directory};

#[test]
fn holder_whose_file_was_replaced_has_lost_the_lock() {
    for kind in KINDS {
        let directory = directory();
        let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
        let before = granted(one.acquire(&claim(1)));
        fs::remove_file(lock_file(kind, directory.path())).unwrap();
        not_done(&one.extend(&claim(1)));
        let after = granted(two.acquire(&claim(2)));
        assert!(after > before, "the fencing token orders the two holders");
        not_done(&one.release(&claim(1)));
        done(two.extend(&claim(2)));
    }
}

/// Removes a lock's file while a store has it open.
fn replaced_while_it_stays_open(kind: &str) {
    let directory = directory();
    let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
    granted(one.acquire(&claim(1)));
    done(one.release(&claim(1)));
    fs::remove_file(lock_file(kind, directory.path())).unwrap();
    granted(two.acquire(&claim(2)));
    refused(&one.acquire(&claim(1)));
    done(two.release(&claim(2)));
    granted(one.acquire(&claim(1)));
}

#[test]
fn a_replaced_lease_file_makes_no_second_holder() {
    replaced_while_it_stays_open("lease");
}

#[test]
fn a_replaced_lock_file_makes_no_second_holder() {
    replaced_while_it_stays_open("file");
}

/// The releasing process still has the moved file open.
#[test]
fn detached_lease_is_released_after_its_file_or_directory_was_moved() {
    let place = directory();
    let (path, moved) = (place.path().join("store"), place.path().join("moved"));
    let long_lived = leases(&path);
    let use_it = || {
        granted(long_lived.acquire(&claim(1)));
        done(long_lived.release(&claim(1)));
    };
    let hand_over = |owner| {
        let other = leases(&path);
        granted(other.acquire(&claim(owner)));
        done(other.detach(&claim(owner)));
    };
    use_it();
    fs::rename(only_file(&path, "lease"), place.path().join("lock.lease")).unwrap();
    hand_over(2);
    done(long_lived.release(&detached(2)));
    use_it();
    fs::rename(&path, moved).unwrap();
    hand_over(3);
    done(long_lived.release(&detached(3)));
    not_done(&long_lived.release(&detached(3)));
}

/// Counts in four threads under the lock, while another thread removes the lock's file whenever the lock is free.
fn count_while_files_are_removed<S: Store>(extension: &str, open: impl Fn(&Path) -> S + Sync) {
    const THREADS: u8 = 4;
    const TURNS: u32 = 250;

    let directory = directory();
    let directory = directory.path();
    let (inside, count, done) = (
        AtomicBool::new(false),
        AtomicU32::new(0),
        AtomicBool::new(false),
    );
    let take = |store: &S, owner: u8| {
        while !store
            .acquire(&claim(owner))
            .expect("the store answers")
            .is_granted()
        {
            thread::yield_now();
        }
        assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
    };
    let give = |store: &S, owner: u8| {
        inside.store(false, Ordering::SeqCst);
        store.release(&claim(owner)).expect("the store answers");
    };
    thread::scope(|scope| {
        let counting: Vec<_> = (1..=THREADS)
            .map(|owner| {
                let (open, take, give, count) = (&open, &take, &give, &count);
                scope.spawn(move || {
                    let store = open(directory);
                    for _ in 0..TURNS {
                        take(&store, owner);
                        let seen = count.load(Ordering::Relaxed);
                        thread::yield_now();
                        count.store(seen + 1, Ordering::Relaxed);
                        give(&store, owner);
                    }
                })
            })
            .collect();
        let (open, take, inside, done) = (&open, &take, &inside, &done);
        scope.spawn(move || {
            let store = open(directory);
            while !done.load(Ordering::Relaxed) {
                take(&store, 100);
                // Removing the file ends the lock.
                inside.store(false, Ordering::SeqCst);
                fs::remove_file(only_file(directory, extension)).unwrap();
                not_done(&store.release(&claim(100)));
            }
        });
        let ended: Vec<_> = counting
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert_eq!(count.into_inner(), u32::from(THREADS) * TURNS);
}

#[test]
fn removing_free_lease_files_never_makes_two_holders() {
    count_while_files_are_removed("lease", leases);
}

#[test]
fn removing_free_lock_files_never_makes_two_holders() {
    count_while_files_are_removed("lock", locks);
}

#[test]
fn release_frees_the_lock_when_its_path_cannot_be_examined() {
    let directory = directory();
    let (there, away) = (
        directory.path().join("there"),
        directory.path().join("away"),
    );
    let store = locks(&there);
    granted(store.acquire(&claim(1)));
    fs::rename(&there, &away).unwrap();
    fs::write(&there, "not a directory").unwrap();
    // The path of a lock that was held for less than 1 ms is not examined.
    thread::sleep(Duration::from_millis(2));
    // Other processes may have recreated the directory, and acquired the lock there.
    not_done(&store.release(&claim(1)));
    fs::remove_file(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    granted(locks(&there).acquire(&claim(2)));
}
