//! Locks on files of other programs, as `verrou run --file` acquires them.

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use rustix::fs::{CWD, mkfifoat};
use verrou::conformance::TestClock;
use verrou::{Renewed, Store, Ttl};
use verrou_host::{FileError, FileLockStore, HostStore, StoreOptions};

use crate::lock_files::only_file;
use crate::store_calls::{done, granted, not_done, refused};
use crate::{SECOND, claim, directory, file_error};

/// A pipe can be the argument of `verrou run --file`.
#[test]
fn a_pipe_is_locked_without_waiting_for_its_other_end() {
    let directory = directory();
    let pipe = directory.path().join("pipe");
    mkfifoat(CWD, &pipe, 0o600.into()).unwrap();
    let records = directory.path().join("records");
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let (store, name) =
            FileLockStore::open_path(&pipe, &records, &StoreOptions::default()).unwrap();
        granted(store.acquire(&claim(1).with_name(name)));
        done.send(()).unwrap();
    });
    is_done
        .recv_timeout(10 * SECOND)
        .expect("no process opens the other end");
}

#[test]
fn store_and_flock_on_the_same_file_exclude_each_other() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    fs::write(&path, "precious").unwrap();
    let (store, name) =
        FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    assert_eq!(
        name.as_str(),
        path.canonicalize().unwrap().to_str().unwrap()
    );
    let claim = claim(1).with_name(name.clone());

    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    refused(&store.acquire(&claim));
    let holder = store.holders(&name).unwrap().pop().expect("a holder");
    assert_eq!(holder.fence, None);
    if cfg!(target_os = "linux") {
        assert_eq!(
            holder.process.map(|process| process.id),
            Some(std::process::id())
        );
    }
    file.unlock().unwrap();

    let first = granted(store.acquire(&claim));
    file.try_lock().expect_err("it is taken");
    done(store.release(&claim));
    file.try_lock().expect("it is free");
    file.unlock().unwrap();
    // Truncates the file, as `9>data` in a shell does before it locks.
    File::create(&path).unwrap();
    assert!(granted(store.acquire(&claim)) > first);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "",
        "nothing is written to it"
    );
}

/// This happens if a process is stopped while it has the record's file locked, or the file system is full.
#[test]
fn kernel_lock_is_renewed_when_its_record_cannot_be_written() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let clock = TestClock::still();
    let (store, name) =
        FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    let store = store.with_clock(clock.clone());
    let claim = claim(1)
        .with_name(name.clone())
        .with_ttl(Ttl::new(SECOND).unwrap());
    granted(store.acquire(&claim));
    let guard = File::open(only_file(&records, "lock")).unwrap();
    guard.lock().unwrap();
    let err = store.extend(&claim).unwrap_err();
    assert!(matches!(file_error(&err), FileError::Busy { .. }), "{err}");
    clock.advance(2 * SECOND);
    let renewed = store.renew(&claim, None).unwrap();
    assert_eq!(renewed, Renewed::Granted);
    let left = || store.holders(&name).unwrap().pop().unwrap().remaining;
    assert_eq!(left(), Some(SECOND));
    done(store.release(&claim));
    guard.unlock().unwrap();

    granted(store.acquire(&claim));
    fs::rename(&path, path.with_extension("old")).unwrap();
    assert_eq!(store.renew(&claim, None).unwrap(), Renewed::Lost);
}

#[cfg(target_os = "linux")]
#[test]
fn holder_of_a_file_is_found_while_other_files_are_locked() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let (store, name) =
        FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..2 {
            let other = File::create(directory.path().join(format!("other-{number}"))).unwrap();
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    other.lock().unwrap();
                    other.unlock().unwrap();
                }
            });
        }
        let process = || Some(store.holders(&name).ok()?.pop()?.process?.id);
        let seen: Vec<_> = (0..200).map(|_| process()).collect();
        over.store(true, Ordering::Relaxed);
        assert_eq!(seen, vec![Some(std::process::id()); 200]);
    });
}

#[test]
fn directory_can_be_locked_and_missing_file_is_created() {
    let directory = directory();
    let records = directory.path().join("records");
    let options = StoreOptions::default();
    let (store, name) = FileLockStore::open_path(directory.path(), &records, &options).unwrap();
    granted(store.acquire(&claim(1).with_name(name)));
    let missing = directory.path().join("missing");
    let (store, name) = FileLockStore::open_path(&missing, &records, &options).unwrap();
    granted(store.acquire(&claim(1).with_name(name)));
    assert_eq!(fs::metadata(&missing).unwrap().len(), 0);
    let nowhere = directory.path().join("no/where");
    let err = FileLockStore::open_path(&nowhere, &records, &options).unwrap_err();
    assert!(err.to_string().contains(nowhere.to_str().unwrap()), "{err}");
}

#[test]
fn watching_does_not_recreate_a_removed_file() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let open = || FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    let ((holder, name), (watcher, _)) = (open(), open());
    granted(holder.acquire(&claim(1).with_name(name.clone())));
    fs::remove_file(&path).unwrap();
    watcher.wait_until_free(&name, SECOND);
    assert!(!path.exists());
}

#[test]
fn holder_of_replaced_file_leaves_the_next_record_alone() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let open = || {
        let opened = FileLockStore::open_path(&path, &records, &StoreOptions::default());
        opened.expect("the path can be locked")
    };
    let (old, name) = open();
    let claim = |owner| claim(owner).with_name(name.clone());
    granted(old.acquire(&claim(1)));
    fs::remove_file(&path).unwrap();
    let (next, _) = open();
    let mut last = granted(next.acquire(&claim(2)));
    done(next.extend(&claim(2)));
    not_done(&old.release(&claim(1)));
    drop(next); // as if its process had been killed
    let (third, _) = open();
    for _ in 0..3 {
        let fence = granted(third.acquire(&claim(3)));
        assert!(fence > last);
        last = fence;
        done(third.release(&claim(3)));
    }
}
