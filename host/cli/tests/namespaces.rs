//! Locks that are shared with processes in other namespaces, such as those of containers.
#![cfg(target_os = "linux")]

#[path = "../../tests/common/lock_files.rs"]
mod lock_files;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use lock_files::leases;
use store_calls::{done, granted, not_done, refused};
use tempfile::TempDir;
use verrou::{Claim, Store};

fn directory() -> TempDir {
    tempfile::tempdir().expect("there is room for a directory")
}

fn claim(owner: u8) -> Claim {
    store_calls::claim("lock", owner)
}

fn detached(owner: u8) -> Claim {
    claim(owner).ephemeral(false)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The kernel reuses the number of a time namespace that has ended.
#[test]
fn lease_of_a_removed_time_namespace_does_not_count_as_expired() {
    if !is_root() {
        eprintln!("only root can create time namespaces: their leases are not tested");
        return;
    }
    let directory = directory();
    let url = format!("lease:{}", directory.path().display());
    let verrou = |ahead: &str, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--time", "--boottime", ahead, "--fork", "--"]);
        command
            .args([env!("CARGO_BIN_EXE_verrou"), "--store", &url])
            .args(arguments);
        let output = command.output().expect("unshare(1) is there");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    let try_run = ["run", "lock", "--no-wait", "--", "true"];
    assert_eq!(verrou("10", &["acquire", "lock", "--ttl", "1h"]).0, Some(0));
    let (code, said) = verrou("100000", &try_run);
    assert_eq!(code, Some(74), "{said}");
    assert!(said.contains("time namespace"), "{said}");
    let (code, said) = verrou("10", &try_run);
    assert_eq!(code, Some(75), "the clock is the same: {said}");
    assert_eq!(verrou("10", &["force-release", "lock"]).0, Some(0));
    // If the clock is the machine's, the namespace does not matter.
    assert_eq!(verrou("0", &["acquire", "lock", "--ttl", "1h"]).0, Some(0));
    refused(&leases(directory.path()).acquire(&claim(1)));
}

/// Some containers, and systemd's `ProcSubset=pid`, hide the boot ID.
#[test]
fn lease_is_not_expired_for_a_process_without_boot_id() {
    if !is_root() {
        eprintln!("only root can hide files of /proc: a process without them is not tested");
        return;
    }
    let directory = directory();
    granted(leases(directory.path()).acquire(&detached(1)));
    let hidden = |store: &str| {
        let script = "mount -t tmpfs none /proc/sys && exec \"$@\"";
        let verrou = env!("CARGO_BIN_EXE_verrou");
        let url = format!("{store}:{}", directory.path().display());
        let arguments = ["--store", &url, "run", "lock", "--no-wait", "--", "true"];
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", script, "sh", verrou])
            .args(arguments);
        command.output().expect("unshare(1) is there")
    };
    let output = hidden("lease");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("boot_id"), "{said}");
    for _ in 0..2 {
        let output = hidden("file");
        assert!(output.status.success(), "{output:?}");
    }
}

/// LXC, Incus and systemd-nspawn mount a `boot_id` of its own into each container.
#[test]
fn a_container_with_a_boot_id_of_its_own_makes_no_second_holder() {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

    let place = directory();
    let own = place.path().join("boot_id");
    fs::write(&own, "01234567-89ab-cdef-0123-456789abcdef\n").unwrap();
    let inside = |script: &str| {
        let script = format!("mount --bind \"$0\" {BOOT_ID} && echo mounted && {script}");
        let url = format!("lease:{}", place.path().join("store").display());
        let mut command = Command::new("unshare");
        // In a chroot there are no user namespaces, and root needs none.
        if !rustix::process::geteuid().is_root() {
            command.args(["--user", "--map-root-user"]);
        }
        command
            .args(["--mount", "sh", "-c", &script])
            .arg(&own)
            .env("VERROU", env!("CARGO_BIN_EXE_verrou"))
            .env("VERROU_STORE", url);
        command
    };
    let tried = inside("true").output().expect("unshare(1) is there");
    if tried.stdout != b"mounted\n" {
        eprintln!("no file can be mounted over {BOOT_ID} here: another boot ID is not tested");
        return;
    }
    let ends_with = |code: i32, script: &str| {
        let output = inside(script).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{script}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(code != 74 || said.contains("boot_id"), "{said}");
    };
    let try_to_run = "\"$VERROU\" run lock --no-wait -- true";
    let store = leases(&place.path().join("store"));

    // A detached lease, acquired outside.
    granted(store.acquire(&detached(1)));
    ends_with(74, try_to_run);
    done(store.release(&detached(1)));
    ends_with(0, try_to_run);
    granted(store.acquire(&detached(1)));
    ends_with(0, "\"$VERROU\" force-release lock");
    not_done(&store.release(&detached(1)));

    // A detached lease acquired inside would look free outside, so it is refused.
    ends_with(74, "\"$VERROU\" acquire lock");
    granted(store.acquire(&claim(2)));
    ends_with(75, try_to_run);
    done(store.release(&claim(2)));

    // An ephemeral lease is held on both sides for as long as its processes live.
    let mut runs = inside("exec \"$VERROU\" run lock -- sh -c 'echo runs; read line'")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(runs.stdout.take().unwrap()).lines();
    assert_eq!(lines.map_while(Result::ok).nth(1).as_deref(), Some("runs"));
    refused(&store.acquire(&claim(3)));
    drop(runs.stdin.take());
    runs.wait().unwrap();
    granted(store.acquire(&claim(3)));
}
