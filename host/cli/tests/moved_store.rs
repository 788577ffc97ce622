//! Store directories that are moved away, or recreated, while a lock in them is held.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::thread;
use std::time::Duration;

use common::{KINDS, Started, TestDir, code, ends_with, eventually, stderr};
use rustix::process::Pid;

/// Writes its fencing token and its process ID to files, and runs until there is a file `end`.
const STAY: &str =
    "echo $VERROU_FENCE > first; echo $$ > pid; until test -e end; do sleep 0.01; done";

fn held(dir: &TestDir) -> (Started, Pid) {
    dir.start(&["--ttl=1h"], STAY)
}

/// Acquires the lock once more with `options`, and returns the fencing token.
#[track_caller]
fn next_fence(dir: &TestDir, options: &[&str]) -> u64 {
    ends_with(&mut dir.run(options, "echo $VERROU_FENCE > next"), 0);
    dir.number_in("next")
}

#[test]
fn holder_in_a_moved_directory_has_lost_the_lock_and_the_next_fence_is_greater() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (first, _) = held(&dir);
        let moved = format!("--store={kind}:{}", dir.path("moved").display());
        fs::rename(dir.locks(), dir.path("moved")).unwrap();
        // The lock is held under the new path; under the old path there is no lock.
        ends_with(&mut dir.run(&[&moved, "--no-wait"], "true"), 75);
        let recreated = next_fence(&dir, &["--no-wait"]);
        let before = dir.number_in("first");
        assert!(recreated > before, "{kind}: {recreated} after {before}");
        assert!(next_fence(&dir, &["--no-wait"]) > recreated);
        fs::write(dir.path("end"), "").unwrap();
        let output = first.end();
        let said = stderr(&output);
        assert_eq!(code(&output), 76, "{kind}: {said}");
        assert!(said.contains("E_LOCK_LOST"), "{kind}: {said}");
        assert!(next_fence(&dir, &[&moved, "--no-wait"]) > before);
    }
}

#[test]
fn directory_that_is_moved_and_moved_back_loses_no_lock() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (first, _) = held(&dir);
        fs::rename(dir.locks(), dir.path("moved")).unwrap();
        fs::rename(dir.path("moved"), dir.locks()).unwrap();
        ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
        fs::write(dir.path("end"), "").unwrap();
        let output = first.end();
        assert_eq!(code(&output), 0, "{kind}: {}", stderr(&output));
    }
}

/// Nothing has moved, although the store would not be opened any more.
#[test]
fn changed_permissions_above_a_held_store_lose_no_lock() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let above = dir.path("above");
        fs::create_dir(&above).unwrap();
        let url = format!("{kind}:{}", above.join("locks").display());
        let store = format!("--store={url}");
        // Renewals examine the path, too.
        let (first, _) = dir.start(&[&store, "--ttl=2s"], STAY);
        fs::set_permissions(&above, Permissions::from_mode(0o777)).unwrap();
        ends_with(&mut dir.run(&[&store, "--no-wait"], "true"), 73);
        thread::sleep(Duration::from_secs(3));
        fs::write(dir.path("end"), "").unwrap();
        let output = first.end();
        assert_eq!(code(&output), 0, "{kind}: {}", stderr(&output));
    }
}

/// No record of the earlier grants is left.
#[test]
fn fences_of_a_directory_that_was_removed_grow() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let mut last = 0;
        for _ in 0..3 {
            for _ in 0..3 {
                let fence = next_fence(&dir, &["--no-wait"]);
                assert!(fence > last, "{kind}: {fence} after {last}");
                last = fence;
            }
            // Numbers in JavaScript are exact below 2⁵³.
            assert!(last < 1 << 53);
            fs::remove_dir_all(dir.locks()).unwrap();
        }
    }
}

#[test]
fn lease_of_a_moved_directory_is_free_at_its_new_path_when_it_was_released() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (first, _) = held(&dir);
        fs::rename(dir.locks(), dir.path("moved")).unwrap();
        fs::write(dir.path("end"), "").unwrap();
        assert_eq!(code(&first.end()), 76);
        let moved = format!("{kind}:{}", dir.path("moved").display());
        eventually("the lease is free", || {
            let shown = dir
                .verrou(["show", "k", "--json", "--store", &moved])
                .output();
            String::from_utf8(shown.unwrap().stdout)
                .unwrap()
                .contains("\"held\":false")
        });
    }
}
