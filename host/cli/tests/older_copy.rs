//! An older copy that `cp` writes into a lock's file: the inode stays the same.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/lock_files.rs"]
mod lock_files;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::time::Duration;

use common::{KINDS, TestDir, ends_with};
use lock_files::{lock_file, open};
use store_calls::granted;
use verrou::conformance::waited;
use verrou::{Claim, Store};

fn claim(owner: u8) -> Claim {
    store_calls::claim("k", owner)
}

fn grant(store: &dyn Store, owner: u8) -> u64 {
    let fence = granted(store.acquire(&claim(owner)));
    assert!(store.release(&claim(owner)).unwrap());
    fence
}

#[test]
fn process_that_has_the_file_open_grants_no_fence_twice() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let store = open(kind, &dir.locks());
        grant(&*store, 1);
        let path = lock_file(kind, &dir.locks());
        fs::copy(&path, dir.path("copy")).unwrap();
        let mut last = 0;
        for _ in 0..3 {
            last = grant(&*store, 2);
        }
        fs::copy(dir.path("copy"), &path).unwrap();
        // `inspect` changes nothing.
        assert_eq!(store.holders(&claim(1).name).unwrap().pop(), None);
        let next = grant(&*store, 3);
        assert!(next > last, "{kind}: {next} after {last}");
        assert_eq!(
            grant(&*store, 4),
            next + 1,
            "{kind}: the counter is asked once"
        );
    }
}

/// The process has read a smaller fence than the one that it granted last.
#[test]
fn process_that_granted_the_last_fence_grants_it_once() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let store = open(kind, &dir.locks());
        grant(&*store, 1);
        let path = lock_file(kind, &dir.locks());
        fs::copy(&path, dir.path("copy")).unwrap();
        let last = grant(&*store, 2);
        fs::copy(dir.path("copy"), &path).unwrap();
        let next = grant(&*store, 3);
        assert!(next > last, "{kind}: {next} after {last}");
    }
}

/// An idle process keeps bytes of the file locked for the grants that it released.
#[test]
fn idle_process_does_not_block_a_restored_file() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let idle = open(kind, &dir.locks());
        grant(&*idle, 1);
        let path = lock_file(kind, &dir.locks());
        fs::copy(&path, dir.path("copy")).unwrap();
        let mut last = 0;
        for _ in 0..3 {
            last = grant(&*idle, 1);
        }
        fs::copy(dir.path("copy"), &path).unwrap();
        for _ in 0..5 {
            ends_with(
                &mut dir.run(&["--no-wait"], "echo $VERROU_FENCE > fence"),
                0,
            );
        }
        let fence = dir.number_in("fence");
        if kind == "lease" {
            assert!(fence > last, "{fence} after {last}");
        }
        assert!(grant(&*idle, 1) > last, "{kind}");
    }
}

/// The kernel lock stays held, and its record is corrected.
#[test]
fn restored_file_of_a_held_lock_is_not_corrupt() {
    let dir = TestDir::new("file");
    let (holder, other) = (open("file", &dir.locks()), open("file", &dir.locks()));
    grant(&*holder, 1);
    let path = lock_file("file", &dir.locks());
    for extensions in 0..4 {
        fs::copy(&path, dir.path("copy")).unwrap();
        for _ in 0..3 {
            grant(&*holder, 1);
        }
        let held = granted(holder.acquire(&claim(1)));
        fs::copy(dir.path("copy"), &path).unwrap();
        for _ in 0..extensions {
            assert!(holder.extend(&claim(1)).unwrap());
        }
        let waiter = waited(&*other, &claim(2), Duration::ZERO);
        assert!(holder.release(&claim(1)).unwrap());
        let next = granted(other.acquire(&claim(2)));
        waiter.granted();
        if extensions > 0 {
            assert!(next > held, "{next} after {held}");
        }
        assert!(other.release(&claim(2)).unwrap());
    }
}
