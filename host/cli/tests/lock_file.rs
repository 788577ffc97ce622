//! `verrou run --file`, beside flock(1): the file may be missing, a link, or replaced at any time.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Started, TestDir, code, ends_with, eventually, prefixed, stderr, traced};
use store_calls::{granted, not_done, refused};
use verrou::conformance::waited;
use verrou::{Acquired, Claim, Name, Store};
use verrou_host::{FileLockStore, StoreOptions};

/// Returns the command `verrou run --file lock [options] -- sh -c script`.
fn run(dir: &TestDir, options: &[&str], script: &str) -> Command {
    let command = ["--", "sh", "-c", script];
    let words = ["run", "--file", "lock"].iter().chain(options);
    dir.verrou(words.chain(&command))
}

/// Returns whether `flock --nonblock` gets the lock on `file`.
fn is_free_for_flock(dir: &TestDir, file: &str) -> bool {
    let mut flock = Command::new("flock");
    flock.arg("--nonblock").arg(dir.path(file)).arg("true");
    flock.status().expect("flock(1) is there").success()
}

#[test]
fn target_of_dangling_link_is_created_and_locked() {
    let dir = TestDir::new("file");
    symlink("target", dir.path("lock")).unwrap();
    for options in [["--no-wait"], ["--wait=1s"]] {
        let _ = fs::remove_file(dir.path("target"));
        let held = "flock --nonblock target true; test $? -eq 1";
        ends_with(&mut run(&dir, &options, held), 0);
        let made = fs::metadata(dir.path("target")).unwrap();
        assert_eq!(made.len(), 0);
        assert_eq!(
            made.mode() & 0o7777,
            0o600,
            "the file is private to its user"
        );
        assert!(is_free_for_flock(&dir, "target"));
    }
    // flock(1) fails on the same links.
    for (target, verrou, flock) in [("no/where", 73, 66), ("lock", 73, 66)] {
        fs::remove_file(dir.path("lock")).unwrap();
        symlink(target, dir.path("lock")).unwrap();
        let output = ends_with(&mut run(&dir, &["--no-wait"], "true"), verrou);
        assert!(stderr(&output).contains("cannot open"), "{output:?}");
        let mut beside = Command::new("flock");
        beside.arg(dir.path("lock")).arg("true");
        ends_with(&mut beside, flock);
    }
}

/// `fs.protected_regular` applies to calls with `O_CREAT` only.
#[test]
fn every_open_of_the_locked_file_is_protected_by_the_kernel() {
    let dir = TestDir::new("file");
    for _ in 0..2 {
        let plain = run(&dir, &["--no-wait"], "true");
        let Some(mut strace) = traced(&plain, &["--trace=open,openat,openat2"]) else {
            return;
        };
        ends_with(&mut strace, 0);
        let log = dir.read("trace");
        let is_locked = |line: &&str| line.contains("/lock\",") || line.contains("\"lock\",");
        let opened: Vec<_> = log.lines().filter(is_locked).collect();
        assert!(!opened.is_empty(), "{log}");
        for line in opened {
            assert!(line.contains("O_CREAT") && line.contains("0600"), "{line}");
        }
    }
}

/// Opens a store of the lock on `path`, with its records beside it. Returns it, and a function that makes
/// the claim of an owner.
fn open(path: &Path) -> (FileLockStore, impl Fn(u8) -> Claim + use<>) {
    let records = path.with_file_name("records");
    let (store, name) = FileLockStore::open_path(path, &records, &StoreOptions::default()).unwrap();
    let claim = move |owner| store_calls::claim("lock", owner).with_name(name.clone());
    (store, claim)
}

/// Ways to replace a file: `rm -f`, logrotate(8), an editor, and `mv` of another file.
const REPLACED: [fn(&Path); 4] = [
    |path| fs::remove_file(path).unwrap(),
    |path| fs::rename(path, path.with_extension("1")).unwrap(),
    |path| {
        let written = path.with_extension("new");
        fs::write(&written, "edited").unwrap();
        fs::rename(written, path).unwrap();
    },
    |path| {
        let _ = fs::remove_file(path.with_extension("kept"));
        fs::hard_link(path, path.with_extension("kept")).unwrap();
        let other = path.with_extension("other");
        fs::write(&other, "").unwrap();
        fs::rename(other, path).unwrap();
    },
];

#[test]
fn path_whose_file_is_removed_meanwhile_has_the_same_lock() {
    let dir = TestDir::new("file");
    let (path, link) = (dir.path("lock"), dir.path("link"));
    symlink("lock", &link).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = fs::remove_file(&path);
            }
        });
        let records = dir.path("records");
        let name = |path: &Path| {
            let opened = FileLockStore::open_path(path, &records, &StoreOptions::default());
            opened.map(|(_, name)| name).map_err(|err| err.to_string())
        };
        let names: Vec<_> = (0..500).flat_map(|_| [name(&path), name(&link)]).collect();
        done.store(true, Ordering::Relaxed);
        let expected = Ok(Name::new(path.to_str().unwrap()).unwrap());
        for name in names {
            assert_eq!(name, expected);
        }
    });
}

#[test]
fn replaced_file_is_locked_with_greater_fence() {
    for replace in REPLACED {
        let dir = TestDir::new("file");
        let mut last = 0;
        let mut next = |options: &[&str]| {
            ends_with(&mut run(&dir, options, "echo $VERROU_FENCE > fence"), 0);
            let fence = dir.number_in("fence");
            assert!(fence > last, "{fence} after {last}");
            last = fence;
        };
        for _ in 0..3 {
            next(&["--no-wait"]);
            replace(&dir.path("lock"));
        }
        let script = "echo $VERROU_FENCE > first; echo $$ > pid; exec sleep 1000";
        let first = Started::new(&mut run(&dir, &["--ttl=300ms"], script));
        dir.pid();
        replace(&dir.path("lock"));
        for _ in 0..5 {
            next(&["--no-wait"]);
        }
        let output = first.end();
        assert_eq!(code(&output), 76, "{}", stderr(&output));
        next(&["--no-wait"]);
    }
}

/// The holder of the replaced file must not write into the record of later grants.
#[test]
fn holder_of_replaced_file_leaves_record_alone() {
    for replace in REPLACED {
        for grants in 0..6 {
            let dir = TestDir::new("file");
            let path = dir.path("lock");
            let (first, claim) = open(&path);
            let (second, _) = open(&path);
            granted(second.acquire(&claim(1)));
            // With a waiter, the end of a grant is recorded.
            let waiter = waited(&first, &claim(2), Duration::ZERO);
            assert!(second.release(&claim(1)).unwrap());
            let mut last = granted(first.acquire(&claim(2)));
            waiter.granted();
            replace(&path);
            let (second, _) = open(&path);
            for _ in 0..grants {
                let fence = granted(second.acquire(&claim(3)));
                assert!(fence > last, "{fence} after {last}");
                last = fence;
                assert!(second.extend(&claim(3)).unwrap());
                assert!(second.release(&claim(3)).unwrap());
            }
            not_done(&first.extend(&claim(2)));
            let _ = first.release(&claim(2));
            for _ in 0..3 {
                let fence = granted(second.acquire(&claim(4)));
                assert!(fence > last, "{fence} after {last}, {grants} grants");
                last = fence;
                assert!(second.release(&claim(4)).unwrap());
            }
        }
    }
}

#[test]
fn holders_of_two_files_never_have_the_same_fence() {
    let dir = TestDir::new("file");
    ends_with(&mut run(&dir, &["--no-wait"], "true"), 0);
    // The process is stopped between reading and writing the record.
    let plain = run(&dir, &["--no-wait"], "echo $VERROU_FENCE > first");
    let late = [
        "--trace=pwrite64",
        "--inject=pwrite64:delay_enter=2000000:when=1",
    ];
    let Some(mut late) = traced(&plain, &late) else {
        return;
    };
    let first = Started::new(&mut late);
    // The test must not try the lock, because that would exclude the first process.
    let inode = fs::metadata(dir.path("lock")).unwrap().ino();
    let place_of_lock = format!(":{inode} 0 EOF");
    eventually("the first locks the file, or has had it", || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        locks.contains(&place_of_lock) || !dir.read("first").is_empty()
    });
    fs::rename(dir.path("lock"), dir.path("lock.1")).unwrap();
    let script = "echo $VERROU_FENCE > second; until test -s first; do sleep 0.01; done";
    ends_with(&mut run(&dir, &["--wait=30s"], script), 0);
    first.end();
    let check = |fence: &str, expected| {
        let fence = dir.read(fence);
        let words = ["fence", "check", "--file", "gate", fence.trim()];
        ends_with(&mut dir.verrou(words), expected);
    };
    check("second", 0);
    check("first", 78);
}

#[test]
fn waiter_locks_the_file_that_replaced_a_locked_one() {
    for replace in REPLACED {
        let dir = TestDir::new("file");
        let path = dir.path("lock");
        let (first, claim) = open(&path);
        let (second, _) = open(&path);
        let before = granted(first.acquire(&claim(1)));
        refused(&second.acquire(&claim(2)));
        replace(&path);
        assert!(granted(second.acquire(&claim(2))) > before);
        not_done(&first.extend(&claim(1)));
    }
}

#[test]
fn no_fence_is_granted_twice_while_the_file_is_replaced() {
    const GRANTS: usize = 150;

    let dir = TestDir::new("file");
    let path = dir.path("lock");
    let done = AtomicBool::new(false);
    let granted = thread::scope(|scope| {
        let contender = |owner| {
            let (store, claim) = open(&path);
            let claim = claim(owner);
            let mut fences: Vec<u64> = Vec::new();
            while fences.len() < GRANTS {
                match store.acquire(&claim) {
                    Ok(Acquired::Busy { .. }) => thread::yield_now(),
                    Err(err) if err.is_temporary() => {}
                    reply => {
                        fences.push(granted(reply));
                        // The extension fails if the file was replaced meanwhile, which is allowed.
                        let _ = store.extend(&claim);
                        store.release(&claim).unwrap();
                    }
                }
            }
            assert!(fences.is_sorted());
            fences
        };
        let contenders: Vec<_> = (1..=4)
            .map(|owner| scope.spawn(move || contender(owner)))
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for replace in &REPLACED[..3] {
                    if path.exists() {
                        replace(&path);
                    }
                    thread::yield_now();
                }
            }
        });
        let granted = contenders.into_iter().map(thread::ScopedJoinHandle::join);
        let granted: Vec<_> = granted.collect();
        done.store(true, Ordering::Relaxed);
        granted
            .into_iter()
            .flat_map(Result::unwrap)
            .collect::<Vec<_>>()
    });
    assert_eq!(granted.len(), 4 * GRANTS);
    assert_eq!(granted.iter().collect::<HashSet<_>>().len(), 4 * GRANTS);
}

/// Two containers share the user's directory of records, and each has a `/run` of its own.
#[test]
fn another_file_at_the_same_path_of_another_namespace_repeats_no_fence() {
    let dir = TestDir::new("file");
    for name in ["lock", "others"] {
        fs::write(dir.path(name), "").unwrap();
    }
    let elsewhere = |script: &str| {
        let plain = run(&dir, &["--no-wait"], script);
        let mount = "mount --bind others lock && exec \"$@\"";
        let unshare = ["unshare", "--user", "--map-root-user", "--mount"];
        prefixed(&[&unshare[..], &["sh", "-c", mount, "sh"]].concat(), &plain)
    };
    let may = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("no user namespaces here: containers are not tested");
        return;
    }
    let stay = |name: &str| {
        format!(
            "echo $VERROU_FENCE > {name}.new; mv {name}.new {name}; until test -e end; do sleep 0.01; done"
        )
    };
    let mut last = 0;
    let mut both = Vec::new();
    for round in 0..3 {
        for (which, mut command) in [
            (
                "here",
                run(&dir, &["--no-wait"], &stay(&format!("here{round}"))),
            ),
            ("there", elsewhere(&stay(&format!("there{round}")))),
        ] {
            let name = format!("{which}{round}");
            both.push(Started::new(&mut command));
            eventually("the process holds the lock", || !dir.read(&name).is_empty());
            let fence = dir.number_in(&name);
            assert!(fence > last, "{name}: {fence} after {last}");
            last = fence;
        }
        fs::write(dir.path("end"), "").unwrap();
        for one in both.drain(..) {
            let output = one.end();
            assert_eq!(code(&output), 0, "{}", stderr(&output));
        }
        fs::remove_file(dir.path("end")).unwrap();
    }
}
