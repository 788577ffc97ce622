//! The command with a `wasi:` store, whose leases end by their ttl alone.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Started, TestDir, code, done, json, stderr, stdout, traced};
use rustix::process::Signal;

/// Returns the number in the line `key` of the current state of the only lock.
fn field(dir: &TestDir, key: &str) -> u64 {
    let paths = |directory: PathBuf| {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().path())
    };
    let lock = paths(dir.locks()).find(|path| path.is_dir()).unwrap();
    let current = paths(lock).max().unwrap();
    let text = fs::read_to_string(&current).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.unwrap().trim().parse().unwrap()
}

#[test]
fn killed_holder_is_taken_over_when_its_lease_has_expired() {
    let dir = TestDir::new("wasi");
    let (holder, _) = dir.start(&["--ttl", "2s"], "echo $$ > pid; exec sleep 600");
    holder.signal(Signal::KILL);
    holder.end();
    let (until, fence) = (field(&dir, "until"), field(&dir, "fence"));
    let next = done(&mut dir.run(&["--retry-delay", "10ms"], "echo $VERROU_FENCE"));
    assert_eq!(code(&next), 0, "{}", stderr(&next));
    assert_eq!(stdout(&next).trim(), (fence + 1).to_string());
    assert!(field(&dir, "since") >= until);
}

#[test]
fn held_lock_is_renewed_and_released() {
    let dir = TestDir::new("wasi");
    let (holder, _) = dir.start(&["--ttl", "1s"], "echo $$ > pid; exec sleep 600");
    let first = field(&dir, "until");
    common::eventually("the lease is renewed", || field(&dir, "until") > first);
    let refused = done(&mut dir.run(&["--no-wait"], "exit 3"));
    assert_eq!(code(&refused), 75, "{}", stderr(&refused));
    drop(holder);
}

#[test]
fn lock_is_transferred_shown_and_force_released() {
    let dir = TestDir::new("wasi");
    let serialized = done(&mut dir.verrou(["acquire", "k", "--ttl", "10m", "--label", "payment"]));
    assert_eq!(code(&serialized), 0, "{}", stderr(&serialized));
    let shown = done(&mut dir.verrou(["--json", "list"]));
    let shown = json(stdout(&shown));
    assert!(shown.to_string().contains("payment"), "{shown}");
    let mut extend = dir.verrou(["extend", "--ttl", "20m"]);
    extend.env("VERROU_LOCK", stdout(&serialized).trim());
    assert_eq!(code(&done(&mut extend)), 0);
    let freed = done(&mut dir.verrou(["force-release", "k"]));
    assert_eq!(code(&freed), 0, "{}", stderr(&freed));
    let mut release = dir.verrou(["release"]);
    release.env("VERROU_LOCK", stdout(&serialized).trim());
    assert_eq!(code(&done(&mut release)), 77);
    assert_eq!(code(&done(&mut dir.run(&["--no-wait"], "true"))), 0);
}

#[test]
fn lost_lock_ends_the_command() {
    let dir = TestDir::new("wasi");
    let mut run = dir.run(&["--ttl", "1s"], "echo $$ > pid; exec sleep 600");
    let holder = Started::new(&mut run);
    dir.pid();
    let freed = done(&mut dir.verrou(["force-release", "k"]));
    assert_eq!(code(&freed), 0, "{}", stderr(&freed));
    let ended = holder.end();
    assert_eq!(code(&ended), 76, "{}", stderr(&ended));
}

/// The system calls that access files.
const CALLS: &str =
    "openat,mkdirat,getdents64,read,pread64,write,fchown,fchmod,fdatasync,fsync,linkat,unlinkat";

/// Returns the names of the files in the directory of the only lock.
fn states(dir: &TestDir) -> Vec<String> {
    let entries = fs::read_dir(dir.locks()).unwrap();
    let mut paths = entries.map(|entry| entry.unwrap().path());
    let lock = paths.find(|path| path.is_dir()).unwrap();
    let names = fs::read_dir(lock).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect()
}

#[test]
fn process_killed_at_any_access_to_a_file_leaves_a_lock_that_others_acquire() {
    for is_new in [true, false] {
        let mut call = 1;
        loop {
            let dir = TestDir::new("wasi");
            let acquire = || dir.verrou(["acquire", "k", "--ttl", "1h"]);
            let release = || dir.verrou(["force-release", "k"]);
            let before = (!is_new).then(|| {
                assert_eq!(code(&done(&mut acquire())), 0);
                assert_eq!(code(&done(&mut release())), 0);
                field(&dir, "fence")
            });
            let kill = format!("inject={CALLS}:signal=KILL:when={call}");
            let Some(mut killed) = traced(&acquire(), &["-e", &kill]) else {
                return;
            };
            let is_killed = code(&done(&mut killed)) != 0;
            // There may be no store yet, and no lock.
            done(&mut release());
            let next = done(&mut acquire());
            assert_eq!(code(&next), 0, "call {call}: {}", stderr(&next));
            let fence = field(&dir, "fence");
            if let Some(before) = before {
                assert!([before + 1, before + 2].contains(&fence), "call {call}");
            }
            for _ in 0..2 {
                assert_eq!(code(&done(&mut release())), 0);
                assert_eq!(code(&done(&mut acquire())), 0);
            }
            assert_eq!(field(&dir, "fence"), fence + 2);
            let left = states(&dir);
            assert!(left.len() <= 3, "call {call} leaves {left:?}");
            assert!(
                !left.iter().any(|name| name.contains("draft")),
                "call {call} leaves {left:?}"
            );
            if !is_killed {
                break;
            }
            call += 1;
        }
        assert!(call > 25, "{call} accesses are too few to be all");
    }
}

#[test]
fn grant_is_on_the_disk_before_it_is_reported() {
    let dir = TestDir::new("wasi");
    assert_eq!(code(&done(&mut dir.run(&[], "true"))), 0);
    let calls = "trace=linkat,fdatasync,fsync,write";
    let acquire = dir.verrou(["acquire", "k", "--ttl", "1h"]);
    let Some(mut acquire) = traced(&acquire, &["-e", calls]) else {
        return;
    };
    assert_eq!(code(&done(&mut acquire)), 0);
    let trace = dir.read("trace");
    let mut rest = &*trace;
    for call in ["write(", "fdatasync(", ".state\"", "fsync(", "write(1,"] {
        let at = rest.find(call);
        let at = at.unwrap_or_else(|| panic!("no {call} in its place:\n{trace}"));
        rest = &rest[at + call.len()..];
    }
}
