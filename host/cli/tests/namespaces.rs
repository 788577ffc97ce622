//! Locks that are shared with processes in other namespaces, such as those of containers.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/lock_files.rs"]
mod lock_files;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    KINDS, Started, TestDir, code, done as ended, ends_with, eventually, prefixed, stderr, stdout,
};
use lock_files::{leases, open};
use rustix::process::geteuid;
use store_calls::{done, granted, not_done, refused};
use tempfile::TempDir;
use verrou::blocking::Host;
use verrou::{Acquired, Claim, Clock, Fence, SerializedLock, Store, Ttl};
use verrou_host::System;

fn directory() -> TempDir {
    tempfile::tempdir().expect("there is room for a directory")
}

fn claim(owner: u8) -> Claim {
    store_calls::claim("lock", owner)
}

fn detached(owner: u8) -> Claim {
    claim(owner).ephemeral(false)
}

/// The kernel reuses the number of a time namespace that has ended.
#[test]
fn lease_of_a_removed_time_namespace_does_not_count_as_expired() {
    if !geteuid().is_root() {
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
    if !geteuid().is_root() {
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
        if !geteuid().is_root() {
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

/// Namespaces in which processes are started: a name, the options of `unshare(1)`, and shell code that runs inside
/// first.
struct Namespace(&'static str, &'static [&'static str], &'static str);

/// Namespaces with the machine's `CLOCK_BOOTTIME`.
const SAME_CLOCK: [Namespace; 5] = [
    Namespace(
        "PID",
        &["--pid", "--fork", "--kill-child", "--mount-proc"],
        "",
    ),
    Namespace("host name", &["--uts"], "hostname elsewhere &&"),
    Namespace("user", &["--user", "--map-root-user"], ""),
    Namespace("IPC and network", &["--ipc", "--net"], ""),
    Namespace(
        "container",
        &[
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--uts",
            "--ipc",
            "--net",
            "--cgroup",
        ],
        "hostname container &&",
    ),
];

/// Namespaces whose `CLOCK_BOOTTIME` differs from the machine's by seconds.
const OTHER_CLOCK: [Namespace; 3] = [
    Namespace(
        "100000 s ahead",
        &["--time", "--boottime", "100000", "--fork", "--kill-child"],
        "",
    ),
    Namespace(
        "50 s behind",
        &["--time", "--boottime", "-50", "--fork", "--kill-child"],
        "",
    ),
    Namespace(
        "30 years ahead",
        &[
            "--time",
            "--boottime",
            "1000000000",
            "--fork",
            "--kill-child",
        ],
        "",
    ),
];

impl Namespace {
    /// Returns whether this machine supports these namespaces; prints that they are not tested if not.
    fn is_supported(&self) -> bool {
        let probe = ended(&mut self.command(&Command::new("true")));
        let is_supported = code(&probe) == 0;
        if !is_supported {
            let why = stderr(&probe).trim_end();
            eprintln!("locks across namespaces ({}) are not tested: {why}", self.0);
        }
        is_supported
    }

    /// Returns `command`, to be run in new namespaces.
    fn command(&self, command: &Command) -> Command {
        let script = format!("{} exec \"$@\"", self.2);
        let shell = ["--", "sh", "-c", &script, "sh"];
        prefixed(&[&["unshare"], self.1, &shell].concat(), command)
    }

    /// Asserts that `command` ends inside with this exit code, and returns its standard output.
    #[track_caller]
    fn ends_with(&self, command: &Command, expected: i32) -> String {
        let output = ends_with(&mut self.command(command), expected);
        stdout(&output).trim_end().to_owned()
    }
}

fn lasting(owner: u8) -> Claim {
    let hour = Ttl::new(Duration::from_hours(1)).unwrap();
    store_calls::claim("k", owner)
        .with_ttl(hour)
        .ephemeral(false)
}

#[test]
fn lock_is_held_in_all_namespaces_as_long_as_its_holder_lives() {
    for namespace in SAME_CLOCK.iter().chain(&OTHER_CLOCK) {
        if !namespace.is_supported() {
            continue;
        }
        for kind in KINDS {
            for ttl in [Ttl::NEVER, lasting(1).ttl] {
                let dir = TestDir::new(kind);
                let fence = held_outside(&dir, kind, namespace, ttl);
                held_inside(&dir, kind, namespace, ttl, fence);
            }
        }
    }
}

/// Acquires the lock outside and then inside, and returns the last fencing token.
fn held_outside(dir: &TestDir, kind: &str, namespace: &Namespace, ttl: Ttl) -> u64 {
    let store = open(kind, &dir.locks());
    let mine = store_calls::claim("k", 1).with_ttl(ttl);
    let fence = granted(store.acquire(&mine));
    namespace.ends_with(&dir.run(&["--no-wait"], "true"), 75);
    let shown = namespace.ends_with(&dir.verrou(["show", "k", "--json"]), 0);
    assert!(shown.contains("\"held\":true"), "{}: {shown}", namespace.0);
    done(store.extend(&mine));
    let holder = store.holders(&mine.name).unwrap().pop().expect("a holder");
    assert_eq!(holder.fence, Fence::new(fence));
    done(store.release(&mine));
    let run = dir.run(&["--no-wait"], "echo $VERROU_FENCE");
    let next = namespace.ends_with(&run, 0).parse().unwrap();
    assert!(next > fence, "{}: {next} after {fence}", namespace.0);
    next
}

/// Acquires the lock inside, and outside when the holder was killed.
fn held_inside(dir: &TestDir, kind: &str, namespace: &Namespace, ttl: Ttl, fence: u64) {
    let store = open(kind, &dir.locks());
    let ttl = format!("--ttl={ttl}");
    let run = dir.run(&[&ttl], "echo $$ > pid; exec sleep 1000");
    let mut holder = Started::new(&mut namespace.command(&run));
    dir.pid();
    let wanted = store_calls::claim("k", 2);
    refused(&store.acquire(&wanted));
    assert!(!store.holders(&wanted.name).unwrap().is_empty());
    holder.kill().unwrap();
    let mut reply = Ok(Acquired::BUSY);
    eventually("the lock of a killed holder is free", || {
        reply = store.acquire(&wanted);
        !matches!(reply, Ok(Acquired::Busy { .. }))
    });
    let next = granted(reply);
    assert!(next > fence, "{}: {next} after {fence}", namespace.0);
}

#[test]
fn detached_lease_is_held_in_all_namespaces_with_the_same_clock() {
    for namespace in &SAME_CLOCK {
        if !namespace.is_supported() {
            continue;
        }
        let dir = TestDir::new("lease");
        let store = leases(&dir.locks());
        granted(store.acquire(&lasting(1)));
        namespace.ends_with(&dir.run(&["--no-wait"], "true"), 75);
        done(store.release(&lasting(1)));
        let text = namespace.ends_with(&dir.verrou(["acquire", "k", "--ttl", "1h"]), 0);
        refused(&store.acquire(&lasting(1)));
        let lock: SerializedLock = text.parse().unwrap();
        let lease = lock.lease(System.now(), System.wall_clock());
        done(store.extend(lease.claim()));
        namespace.ends_with(&dir.verrou(["release", &text]), 0);
    }
}

/// Whether the lease has expired cannot be determined.
#[test]
fn lease_with_a_ttl_is_an_error_for_processes_with_another_clock() {
    for namespace in &OTHER_CLOCK {
        if !namespace.is_supported() {
            continue;
        }
        let dir = TestDir::new("lease");
        let store = leases(&dir.locks());
        let run = dir.run(&["--no-wait"], "true");
        granted(store.acquire(&lasting(1)));
        for command in [&run, &dir.verrou(["show", "k"]), &dir.verrou(["list"])] {
            let output = ends_with(&mut namespace.command(command), 74);
            assert!(stderr(&output).contains("force-release"), "{output:?}");
        }
        done(store.extend(&lasting(1)));
        namespace.ends_with(&dir.verrou(["force-release", "k"]), 0);
        not_done(&store.extend(&lasting(1)));

        let endless = lasting(1).with_ttl(Ttl::NEVER);
        granted(store.acquire(&endless));
        namespace.ends_with(&run, 75);
        done(store.release(&endless));

        let text = namespace.ends_with(&dir.verrou(["acquire", "k", "--ttl", "1h"]), 0);
        let err = store.acquire(&lasting(1)).expect_err("another clock");
        assert!(err.to_string().contains("force-release"), "{err}");
        namespace.ends_with(&dir.verrou(["extend", &text]), 0);
        done(store.force_release(&lasting(1).name, None));
        granted(store.acquire(&lasting(1)));
    }
}

/// In a PID namespace the next process ID can be chosen: `pid_namespaces(7)`.
#[test]
fn lock_of_a_dead_holder_is_free_although_its_process_id_is_reused() {
    // Exit codes: 1 for a lock that is not free, 2 for one that is not held, 3 and 4 for what cannot be tested.
    const SCRIPT: &str = r#"
        next_is() { echo $(($1 - 1)) > /proc/sys/kernel/ns_last_pid || exit 4; }
        hold() { "$VERROU" run k -- sleep 1000 & id=$!; until is_held; do :; done; }
        is_held() { "$VERROU" show k --json | grep -q '"held":true'; }
        for attempt in $(seq 100); do
            hold
            first=$id
            kill -KILL $first; wait $first
            next_is $first
            sleep 1000 & other=$!
            test $other = $first || continue
            "$VERROU" run k --wait 20s -- true || exit 1
            kill -KILL $other; wait $other
            next_is $first
            hold
            "$VERROU" run k --no-wait -- true; test $? = 75 || exit 2
            test $id != $first || exit 0
            kill -KILL $id; wait $id
        done
        exit 3"#;

    let [namespace, ..] = &SAME_CLOCK;
    if !namespace.is_supported() {
        return;
    }
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", SCRIPT])
            .env("VERROU", env!("CARGO_BIN_EXE_verrou"))
            .env("VERROU_STORE", dir.store())
            .current_dir(dir.path(""));
        let output = ended(&mut namespace.command(&shell));
        match code(&output) {
            0 => {}
            3 | 4 => eprintln!("a reused process ID is not tested: {}", stderr(&output)),
            code => panic!("{kind}: {code}: {}", stderr(&output)),
        }
    }
}
