//! Operations on several locks, on a locked file, and beside a started program.

use std::fs::File;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use verrou::{Holder, Name, Store, StoreError};
use verrou_host::{FileError, HostStore};

use crate::lock_files::{leases, locks, only_file};
use crate::store_calls::{done, granted};
use crate::{claim, directory, file_error};

#[test]
fn operation_on_a_locked_file_fails_as_busy_and_can_be_repeated() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    let file = File::open(only_file(directory.path(), "lease")).unwrap();
    file.lock().unwrap();
    let err = store.extend(&claim(1)).expect_err("the file stays locked");
    assert!(matches!(file_error(&err), FileError::Busy { .. }), "{err}");
    assert!(err.is_temporary());
    file.unlock().unwrap();
    done(store.extend(&claim(1)));
}

#[test]
fn inspecting_a_free_lock_delays_no_acquire() {
    let directory = directory();
    let (store, watcher) = (locks(directory.path()), locks(directory.path()));
    granted(store.acquire(&claim(1)));
    done(store.release(&claim(1)));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                watcher.holders(&claim(1).name).unwrap().pop();
            }
        });
        let replies: Vec<_> = (0..1000)
            .map(|_| {
                store
                    .acquire(&claim(1))
                    .and_then(|reply| store.release(&claim(1)).map(|_| reply))
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        for reply in replies {
            granted(reply);
        }
    });
}

#[test]
fn the_held_names_are_listed() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    let names = ["b", "a", "c"].map(|name| Name::new(name).unwrap());
    for name in &names {
        granted(leases.acquire(&claim(1).with_name(name.clone())));
    }
    done(leases.release(&claim(1).with_name(names[2].clone())));
    granted(locks.acquire(&claim(1).with_name(names[2].clone())));
    let listed = |held: Vec<Result<(Name, Holder), StoreError>>| {
        let names = held.into_iter().map(|held| held.map(|(name, _)| name));
        names.collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(
        listed(leases.list().unwrap()),
        [names[1].clone(), names[0].clone()]
    );
    assert_eq!(listed(locks.list().unwrap()), [names[2].clone()]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_program_that_is_started_inherits_no_file_of_a_store() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    granted(leases.acquire(&claim(1)));
    granted(locks.acquire(&claim(1)));
    let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
    let open = String::from_utf8(output.expect("ls(1) is there").stdout).unwrap();
    assert!(open.contains(" 0 -> "), "{open}");
    assert!(!open.contains(directory.path().to_str().unwrap()), "{open}");
}
