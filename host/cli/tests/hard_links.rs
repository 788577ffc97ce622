//! The command with a `wasi:` store, whose leases end by their ttl alone.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Started, TestDir, code, done, json, stderr, stdout};
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
