//! The fence counter: fencing tokens grow when files are removed, replaced or restored.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::Instant;

use verrou::{Claim, Name, Store};

use crate::lock_files::{
    BOOT_AT, KINDS, leases, lock_file, locks, only_file, open, rewrite, set_counter,
};
use crate::store_calls::{done, granted, not_done, refused};
use crate::{SECOND, claim, detached, directory};

#[test]
fn fences_grow_when_files_are_removed() {
    for kind in KINDS {
        for is_held in [true, false] {
            for witness in [None, Some("lease"), Some("file")] {
                fence_grows_after_a_removal(kind, is_held, (true, false), witness);
                fence_grows_after_a_removal(kind, is_held, (false, true), witness);
                // Without a file that records a grant: `moved_store.rs`.
                if witness.is_some() {
                    fence_grows_after_a_removal(kind, is_held, (true, true), witness);
                }
            }
        }
    }
}

/// Removes the lock's file, the counter or both, and acquires the lock. A `witness` is a lock of this kind that has a
/// later fencing token.
fn fence_grows_after_a_removal(
    kind: &str,
    is_held: bool,
    (file, counter): (bool, bool),
    witness: Option<&str>,
) {
    let what = format!("{kind}, held {is_held}, file {file}, counter {counter}, {witness:?}");
    let directory = directory();
    let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
    let mut last = granted(one.acquire(&claim(1)));
    for _ in 0..3 {
        done(one.release(&claim(1)));
        let next = granted(one.acquire(&claim(1)));
        assert!(next > last, "{what}: {next} after {last}");
        last = next;
    }
    if !is_held {
        done(one.release(&claim(1)));
    }
    let path = lock_file(kind, directory.path());
    if let Some(kind) = witness {
        let witness = detached(9).with_name(Name::new("witness").unwrap());
        granted(open(kind, directory.path()).acquire(&witness));
    }
    if file {
        fs::remove_file(path).unwrap();
    }
    if counter {
        fs::remove_file(directory.path().join("fences")).unwrap();
    }
    // A process that has the file open, or one that opens it only now.
    let next = if is_held { &two } else { &one };
    let reply = next.acquire(&claim(2));
    if is_held && !file {
        refused(&reply);
        done(one.release(&claim(1)));
        return;
    }
    let next = granted(reply);
    assert!(next > last, "{what}: {next} after {last}");
    if is_held {
        not_done(&one.extend(&claim(1)));
        not_done(&one.release(&claim(1)));
        done(two.extend(&claim(2)));
    }
}

/// Programs that restore or edit files replace a file by another one.
#[test]
fn fences_grow_when_an_older_copy_is_restored() {
    fn check<S: Store>(extension: &str, open: impl Fn(&Path) -> S) {
        let directory = directory();
        let grant = |owner| {
            let store = open(directory.path());
            let fence = granted(store.acquire(&claim(owner)));
            done(store.release(&claim(owner)));
            fence
        };
        grant(1);
        let path = only_file(directory.path(), extension);
        let copy = directory.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        let before = grant(2);
        fs::rename(&copy, &path).unwrap();
        let fence = grant(3);
        assert!(fence > before, "{extension}: {fence} after {before}");
        assert_eq!(
            grant(4),
            fence + 1,
            "{extension}: the counter is asked once"
        );
    }
    check("lease", leases);
    if cfg!(unix) {
        check("lock", locks);
    }
}

#[test]
fn restored_counter_grants_no_fence_twice() {
    let directory = directory();
    let store = leases(directory.path());
    let counter = directory.path().join("fences");
    let other = claim(1).with_name(Name::new("other").unwrap());
    granted(store.acquire(&other));
    let before = fs::read(&counter).unwrap();
    let fence = granted(store.acquire(&detached(1)));
    fs::write(&counter, before).unwrap();
    // Writes another boot ID, so that the file gets new numbers from the counter.
    let files = fs::read_dir(directory.path()).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.to_string_lossy().contains("/lock."));
    rewrite(&file.unwrap(), BOOT_AT, &[0xab; 16]);
    assert!(granted(store.acquire(&claim(2))) > fence);
}

#[cfg(target_os = "linux")]
#[test]
fn counter_replaced_while_it_is_waited_for_is_not_used() {
    const LAST: u64 = 1 << 60;

    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    let path = directory.path().canonicalize().unwrap().join("fences");
    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    let other = claim(2).with_name(Name::new("other").unwrap());
    thread::scope(|scope| {
        let asking = scope.spawn(|| granted_in_time(&store, &other));
        wait_until_open(&path, 2);
        let next = directory.path().join("next");
        fs::copy(&path, &next).unwrap();
        set_counter(&next, LAST);
        fs::rename(&next, &path).unwrap();
        file.unlock().unwrap();
        assert!(asking.join().unwrap() > LAST);
    });
}

/// Waits until this process has `times` descriptors of `path`.
#[cfg(target_os = "linux")]
fn wait_until_open(path: &Path, times: usize) {
    let times_open = || {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let paths = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        paths.filter(|open| open == path).count()
    };
    let began = Instant::now();
    while times_open() < times {
        assert!(began.elapsed() < 30 * SECOND, "the file must be opened");
    }
}

/// Returns the fence of a grant that may take longer than the store waits for a locked file.
#[cfg(target_os = "linux")]
fn granted_in_time(store: &dyn Store, claim: &Claim) -> u64 {
    loop {
        match store.acquire(claim) {
            Err(err) if err.is_temporary() => {}
            reply => break granted(reply),
        }
    }
}

/// The file that replaces it may have been allotted smaller fences.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_removed_while_fences_are_allotted_to_it_is_not_granted() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    let other = claim(1).with_name(Name::new("other").unwrap());
    granted(leases.acquire(&other));
    let counter = directory.path().canonicalize().unwrap().join("fences");
    for (extension, store, claim) in [
        ("lease", &leases as &(dyn Store + Sync), detached(2)),
        ("lease", &leases, claim(2)),
        ("lock", &locks, claim(2)),
    ] {
        let file = File::open(&counter).unwrap();
        file.lock().unwrap();
        thread::scope(|scope| {
            let asking = scope.spawn(|| granted_in_time(store, &claim));
            wait_until_open(&counter, 2);
            let files = fs::read_dir(directory.path()).unwrap();
            let mut paths = files.map(|entry| entry.unwrap().path());
            let path = paths.find(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with("lock.") && name.ends_with(extension)
            });
            fs::remove_file(path.unwrap()).unwrap();
            file.unlock().unwrap();
            asking.join().unwrap();
        });
        assert!(store.holds(&claim, None).unwrap(), "{extension}");
        done(store.release(&claim));
        for entry in fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("/lock.") {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

/// A directory can have locks of both kinds, and has one counter for both.
#[test]
fn lost_counter_is_recreated_from_locks_of_both_kinds() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    for (extension, lost, witness) in [
        ("lease", &leases as &dyn Store, &locks as &dyn Store),
        ("lock", &locks, &leases),
    ] {
        let lost_claim = claim(1).with_name(Name::new("lost").unwrap());
        let before = granted(lost.acquire(&lost_claim));
        done(lost.release(&lost_claim));
        // The fences in the files are greater than the start by the clock.
        set_counter(&directory.path().join("fences"), before + (1 << 60));
        let before = granted(witness.acquire(&claim(2)));
        let files = fs::read_dir(directory.path()).unwrap();
        for path in files.map(|entry| entry.unwrap().path()) {
            if path.extension().is_none_or(|found| found == extension) {
                fs::remove_file(&path).unwrap();
            }
        }
        let after = granted(lost.acquire(&lost_claim));
        assert!(after > before, "{extension}: {after} after {before}");
        done(lost.release(&lost_claim));
        done(witness.release(&claim(2)));
    }
}

#[test]
fn fences_grow_without_end() {
    let directory = directory();
    for store in [
        &leases(directory.path()) as &dyn Store,
        &locks(directory.path()),
    ] {
        let mut last = 0;
        for _ in 0..2500 {
            let fence = granted(store.acquire(&claim(1)));
            assert!(fence > last);
            last = fence;
            done(store.release(&claim(1)));
        }
    }
}

#[test]
fn a_slow_counter_holds_up_no_other_name() {
    let directory = directory();
    let store = locks(directory.path());
    granted(store.acquire(&claim(1)));
    let counter = File::open(directory.path().join("fences")).unwrap();
    counter.lock().unwrap();
    let other = claim(2).with_name(Name::new("other").unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.acquire(&other));
        let mut operations = 0;
        while !waiting.is_finished() {
            done(store.extend(&claim(1)));
            operations += 1;
        }
        let err = waiting
            .join()
            .unwrap()
            .expect_err("the counter stays locked");
        assert!(err.is_temporary(), "{err}");
        assert!(
            operations > 1,
            "operations on another name succeed meanwhile"
        );
    });
    counter.unlock().unwrap();
    granted(store.acquire(&other));
}
