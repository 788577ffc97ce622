//! The descriptors that the command of `verrou run` inherits, and their possible uses.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::process::Command;

use common::{
    KINDS, Started, TestDir, code, ends_with, eventually, lives, lock_files, prefixed, stdout,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use rustix::process::{Signal, kill_process};
use verrou::Store;
use verrou::blocking::LockFactory;
use verrou_host::{
    BareLockStore, FileLockStore, HostStore, LeaseFileStore, StoreOptions, System, Zombies,
};

/// Writes to all descriptors but the standard streams, as a stray `echo debug >&5` does, and prints
/// `NUMBER TARGET` of each open one.
const SCRIBBLE: &str = "
import os
for fd in sorted(set(range(3, 21)) | set(map(int, os.listdir('/proc/self/fd')))):
    if fd < 3:
        continue
    try:
        target = os.readlink('/proc/self/fd/%d' % fd)
    except OSError:
        continue
    print(fd, target)
    for spoil in (
        lambda: os.write(fd, b'debug\\n'),
        lambda: os.pwrite(fd, b'debug\\n', 512),
        lambda: os.ftruncate(fd, 0),
    ):
        try:
            spoil()
        except OSError:
            pass
";

/// Asserts that `said` names one descriptor with one of these `numbers`, which is a pipe's, and none of a file in
/// `dir`.
#[track_caller]
fn is_high_pipe(dir: &TestDir, said: &str, numbers: Range<u32>) {
    let directory = dir.path("").display().to_string();
    assert!(!said.contains(&directory), "no file is inherited: {said}");
    let high: Vec<_> = said
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(number, _)| numbers.contains(&number.parse().unwrap()))
        .collect();
    assert_eq!(high.len(), 1, "one descriptor is inherited: {said}");
    assert!(high[0].1.starts_with("pipe:"), "{said}");
}

/// The numbers that the descriptor may have.
const NUMBERS: Range<u32> = 256..1024;

#[test]
fn stray_write_does_not_reach_the_lock_file() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        for _ in 0..2 {
            let scribble = ["run", "k", "--no-wait", "--", "python3", "-c", SCRIBBLE];
            let output = ends_with(&mut dir.verrou(scribble), 0);
            is_high_pipe(&dir, stdout(&output), NUMBERS);
        }
        ends_with(&mut dir.run(&["--no-wait"], "true"), 0);
    }
}

#[test]
fn stray_write_does_not_reach_the_file_of_an_exact_lock() {
    let dir = TestDir::new("file");
    fs::write(dir.path("exact"), "mine").unwrap();
    for _ in 0..2 {
        let scribble = [
            "run",
            "--file",
            "exact",
            "--no-wait",
            "--",
            "python3",
            "-c",
            SCRIBBLE,
        ];
        let output = ends_with(&mut dir.verrou(scribble), 0);
        is_high_pipe(&dir, stdout(&output), NUMBERS);
        assert_eq!(dir.read("exact"), "mine");
    }
}

#[test]
fn stray_write_does_not_reach_the_file_of_a_gate() {
    let dir = TestDir::new("lease");
    for fence in ["7", "7", "8"] {
        let check = [
            "fence", "check", "--file", "gate", fence, "--", "python3", "-c", SCRIBBLE,
        ];
        let output = ends_with(&mut dir.verrou(check), 0);
        is_high_pipe(&dir, stdout(&output), NUMBERS);
    }
    ends_with(
        &mut dir.verrou(["fence", "check", "--file", "gate", "7"]),
        78,
    );
}

#[test]
fn descriptor_is_as_high_as_the_limit_allows() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let verrou = dir.verrou(["run", "k", "--", "python3", "-c", SCRIBBLE]);
        let limit = ["sh", "-c", "ulimit -n 40; exec \"$@\"", "sh"];
        let output = ends_with(&mut prefixed(&limit, &verrou), 0);
        is_high_pipe(&dir, stdout(&output), 35..40);
    }
}

/// Unlocks every byte of each inherited file, and then waits until it is killed.
const UNLOCK: &str = "
import fcntl, os, signal, struct
F_OFD_SETLK = 37
for fd in map(int, os.listdir('/proc/self/fd')):
    if fd >= 3:
        try:
            fcntl.fcntl(fd, F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_UNLCK, 0, 0, 0, 0))
        except OSError:
            pass
open('pid', 'w').write('%d\\n' % os.getpid())
signal.pause()
";

#[test]
fn command_cannot_unlock_the_lease_of_its_wrapper() {
    let dir = TestDir::new("lease");
    let unlock = ["run", "k", "--ttl", "1h", "--", "python3", "-c", UNLOCK];
    let holder = Started::new(&mut dir.verrou(unlock));
    let command = dir.pid();
    ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
    kill_process(command, Signal::KILL).unwrap();
    assert_eq!(code(&holder.end()), 137);
}

/// Writes its fencing token and its process ID to files, and ignores SIGTERM.
const REMAIN: &str = "
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open('fence', 'w').write(os.environ['VERROU_FENCE'])
open('pid', 'w').write('%d\\n' % os.getpid())
signal.pause()
";

/// Tests whether a holder lives, as `FORMAT.md` specifies and as every version does.
const QUERY: &str = "
import fcntl, os, struct, sys
F_OFD_GETLK = 36
file = os.open(sys.argv[1], os.O_RDWR)
byte = (1 << 40) + int(sys.argv[2])
lock = fcntl.fcntl(file, F_OFD_GETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, byte, 1, 0))
print('free' if struct.unpack('hhqqi4x', lock)[0] == fcntl.F_UNLCK else 'held')
";

#[test]
fn shared_liveness_byte_conflicts_with_a_write_lock() {
    let dir = TestDir::new("lease");
    let run = ["run", "k", "--ttl", "1h", "--", "python3", "-c", REMAIN];
    let holder = Started::new(&mut dir.verrou(run));
    let command = dir.pid();
    let file = &lock_files(&dir.locks())[0];
    let query = || {
        let mut query = Command::new("python3");
        query
            .args(["-c", QUERY])
            .arg(file)
            .arg(dir.read("fence").trim());
        stdout(&ends_with(&mut query, 0)).to_owned()
    };
    assert_eq!(query(), "held\n");
    holder.signal(Signal::KILL);
    holder.end();
    assert!(lives(command));
    assert_eq!(query(), "held\n", "the command holds it");
    kill_process(command, Signal::KILL).unwrap();
    eventually("the liveness byte is free", || query() == "free\n");
}

fn is_read_only(file: &File) -> bool {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).unwrap());
    flags & OFlag::O_ACCMODE == OFlag::O_RDONLY
}

#[test]
fn handed_on_lease_ends_by_name_though_its_descriptor_lives() {
    let directory = tempfile::tempdir().unwrap();
    let mut options = StoreOptions::default();
    options.zombies = Zombies::Wait;
    let open = || LeaseFileStore::open(directory.path(), &options).unwrap();
    for released in [true, false] {
        let store = open();
        let lock = LockFactory::new(&store, System)
            .create_lock("lock", "1h")
            .unwrap();
        let held = lock.guard().unwrap();
        let lifeline = store.lifeline(held.lease().claim()).unwrap().unwrap();
        assert!(is_read_only(&lifeline) && lifeline.as_raw_fd() >= 256);
        let again = store.lifeline(held.lease().claim()).unwrap().unwrap();
        assert!(is_read_only(&again));
        if released {
            held.release().unwrap();
        } else {
            std::mem::forget(held);
            drop(store);
        }
        let next = open();
        LockFactory::new(&next, System)
            .create_lock("lock", "1h")
            .unwrap()
            .try_acquire()
            .unwrap();
        drop((lifeline, again));
    }
}

#[test]
fn handed_on_kernel_lock_ends_by_name_though_its_descriptor_lives() {
    let directory = tempfile::tempdir().unwrap();
    for handed_on in [false, true] {
        let mut options = StoreOptions::default();
        options.handed_on = handed_on;
        let store = FileLockStore::open(directory.path(), &options).unwrap();
        let other = FileLockStore::open(directory.path(), &options).unwrap();
        let lock = LockFactory::new(&store, System)
            .create_lock("lock", "none")
            .unwrap();
        let mut lifelines = Vec::new();
        for _ in 0..3 {
            let held = lock.guard().unwrap();
            let lifeline = store.lifeline(held.lease().claim()).unwrap().unwrap();
            assert_eq!(is_read_only(&lifeline), handed_on);
            let name = lock.name().clone();
            let holder = other.holders(&name).unwrap().pop().unwrap();
            assert_eq!(holder.fence, held.fence(), "its record is read");
            held.release().unwrap();
            assert!(other.holders(&name).unwrap().pop().is_none());
            lifelines.push(lifeline);
        }
    }
}

#[test]
fn descriptor_of_a_bare_lock_that_a_program_inherits_has_a_high_number() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lock");
    let (store, name) = BareLockStore::open(&path, &StoreOptions::default()).unwrap();
    let lock = LockFactory::new(&store, System)
        .create_lock(name.as_str(), "none")
        .unwrap();
    let held = lock.guard().unwrap();
    let lifeline = store.lifeline(held.lease().claim()).unwrap().unwrap();
    assert!(lifeline.as_raw_fd() >= 256);
}

/// Runs its arguments with SIGPIPE ignored or with its default disposition.
const WITH_SIGPIPE: &str = "
import os, signal, sys
signal.signal(signal.SIGPIPE, getattr(signal, sys.argv[1]))
os.execv(sys.argv[2], sys.argv[2:])
";

#[test]
fn ignored_sigpipe_stays_ignored() {
    let dir = TestDir::new("lease");
    for (disposition, expected) in [("SIG_IGN", 1), ("SIG_DFL", 0)] {
        for words in [
            &["run", "k", "--"][..],
            &["fence", "check", "--file", "gate", "7", "--"],
        ] {
            let mut verrou = dir.verrou(words);
            verrou.args(["grep", "SigIgn", "/proc/self/status"]);
            let python = ["python3", "-c", WITH_SIGPIPE, disposition];
            let output = ends_with(&mut prefixed(&python, &verrou), 0);
            let mask = stdout(&output).trim_start_matches("SigIgn:").trim();
            let bit = u64::from_str_radix(mask, 16).unwrap() >> 12 & 1;
            assert_eq!(bit, expected, "{disposition}");
        }
    }
}

/// The command is the first process of the new namespace, and has no parent there.
#[test]
fn command_can_be_the_first_process_of_a_pid_namespace() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can create PID namespaces: a command in one is not tested");
        return;
    }
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let verrou = dir.run(&["--no-wait"], "echo $$; sleep 0.3");
        let output = ends_with(&mut prefixed(&["unshare", "--pid"], &verrou), 0);
        assert_eq!(stdout(&output), "1\n");
        assert!(!dir.is_held());
    }
}
