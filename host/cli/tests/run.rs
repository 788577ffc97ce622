//! `verrou run`: a command that holds a lock for as long as it runs.
#![cfg(target_os = "linux")]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use common::{
    KINDS, Started, TestDir, code, done, ends_with, eventually, has_signal, listens, lives, polls,
    prefixed, stderr, stdout, stopped,
};
use rustix::process::{Pid, Signal, kill_process};

/// Writes its process ID to a file, and runs until it is killed.
const STAY: &str = "echo $$ > pid; exec sleep 1000";

fn kill(pid: Pid, signal: Signal) {
    kill_process(pid, signal).unwrap();
}

#[test]
fn exit_code_is_that_of_the_command() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        for (script, expected) in [
            ("exit 0", 0),
            ("exit 1", 1),
            ("exit 75", 75),
            ("exit 255", 255),
            ("kill -TERM $$", 143),
            ("kill -KILL $$", 137),
            ("kill -INT $$", 130),
        ] {
            ends_with(&mut dir.run(&["--no-wait"], script), expected);
        }
        let output = ends_with(&mut dir.run(&[], "echo out; echo err >&2"), 0);
        assert_eq!((stdout(&output), stderr(&output)), ("out\n", "err\n"));
    }
}

#[test]
fn lock_of_a_command_that_does_not_start_is_released() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        fs::write(dir.path("text"), "not a program").unwrap();
        for (program, expected) in [
            ("./nowhere", 127),
            ("no-such-program", 127),
            ("./text", 126),
        ] {
            let arguments = ["run", "k", "--no-wait", "--ttl", "1h", "--", program];
            let output = ends_with(&mut dir.verrou(arguments), expected);
            assert!(stderr(&output).contains(program));
        }
        assert!(!dir.is_held());
    }
}

/// A `verrou` in the command uses the same store.
#[test]
fn command_finds_a_store_whose_directory_is_not_unicode() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let directory = dir.path("").join(OsStr::from_bytes(b"\xff:\xfe"));
        fs::create_dir(&directory).unwrap();
        let show = format!("{} show k", env!("CARGO_BIN_EXE_verrou"));
        let mut store = OsString::from(format!("{kind}:"));
        store.push(directory.join("locks"));
        for (directory, store) in [
            (dir.path(""), store),
            (directory, format!("{kind}:locks").into()),
        ] {
            let mut run = dir.run(&[], &show);
            let run = run.current_dir(directory).env("VERROU_STORE", store);
            let output = ends_with(run, 0);
            let said = stdout(&output);
            assert!(said.starts_with("the lock `k` is held by"), "{said}");
        }
        let there = fs::read_dir(dir.path("")).unwrap().count();
        assert_eq!(there, 1, "no other directory is created");
    }
}

#[test]
fn command_gets_its_lock_in_the_environment() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        // Relative to this directory, but not to the command's.
        let mut command = dir.run(
            &["--store", &format!("{kind}:locks")],
            "cd / && echo \"$VERROU_NAME|$VERROU_FENCE|$VERROU_STORE|${VERROU_LOCK-unset}\"",
        );
        let outer = command.env("VERROU_LOCK", "of an outer lock");
        let output = ends_with(outer, 0);
        let said: Vec<_> = stdout(&output).trim_end().splitn(4, '|').collect();
        assert_eq!(said[0], "k");
        assert!(said[1].parse::<u64>().unwrap() > 0);
        assert!(said[2].starts_with(&format!("{kind}:/")), "{}", said[2]);
        match kind {
            "lease" => assert!(said[3].starts_with("{\"version\":1,\"name\":\"k\"")),
            _ => assert_eq!(said[3], "unset"),
        }
    }
}

#[test]
fn fences_grow() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let fence = || {
            let output = ends_with(&mut dir.run(&[], "echo $VERROU_FENCE"), 0);
            stdout(&output).trim_end().parse::<u64>().unwrap()
        };
        let (first, second) = (fence(), fence());
        assert!(first < second);
    }
}

#[test]
fn held_lock_is_waited_for_as_long_as_requested() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, sleeper) = dir.start(&[], STAY);
        for options in [
            &["--no-wait"][..],
            &["--wait", "0"],
            &["--wait", "0s"],
            &["--wait", "50ms"],
            &["--attempts", "1"],
            &["--attempts", "3", "--retry-delay", "10ms"],
        ] {
            let output = ends_with(&mut dir.run(options, "touch ran"), 75);
            let said = stderr(&output);
            assert!(said.contains("E_LOCK_TIMEOUT"), "{said}");
            assert!(said.contains("(sh)"), "the error names the holder: {said}");
            assert_eq!(said.lines().count(), 1, "nothing but the error: {said}");
        }
        for number in ["0", "3", "255"] {
            let options = ["--no-wait", "-E", number];
            ends_with(&mut dir.run(&options, "touch ran"), number.parse().unwrap());
        }
        assert!(!dir.path("ran").exists());

        let waiter = Started::new(&mut dir.run(&["--wait", "50s"], "true"));
        kill(sleeper, Signal::TERM);
        assert_eq!(code(&holder.end()), 143);
        assert_eq!(code(&waiter.end()), 0);
    }
}

#[test]
fn signals_are_forwarded_to_the_command() {
    let dir = TestDir::new("lease");
    let script = |signal: &str| {
        format!("trap 'exit 7' {signal}; echo $$ > pid; while :; do sleep 0.05; done")
    };
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
        (Signal::WINCH, "WINCH"),
    ] {
        let _ = fs::remove_file(dir.path("pid"));
        let (holder, _) = dir.start(&[], &script(name));
        listens(&holder);
        holder.signal(signal);
        let output = holder.end();
        assert_eq!(code(&output), 7, "{name}: {}", stderr(&output));
        assert!(!dir.is_held());
    }
}

#[test]
fn an_unhandled_signal_ends_both() {
    let dir = TestDir::new("lease");
    let (holder, sleeper) = dir.start(&[], STAY);
    listens(&holder);
    holder.signal(Signal::TERM);
    assert_eq!(code(&holder.end()), 143);
    assert!(!lives(sleeper));
}

#[test]
fn the_whole_group_gets_signals() {
    let dir = TestDir::new("lease");
    let script = "sleep 1000 & echo $! > pid; wait";
    let (holder, grandchild) = dir.start(&[], script);
    listens(&holder);
    holder.signal(Signal::HUP);
    assert_eq!(code(&holder.end()), 129);
    eventually("the grandchild is gone", || !lives(grandchild));
}

#[test]
fn ignored_signals_stay_ignored() {
    let dir = TestDir::new("lease");
    let wrapper = dir.run(&[], STAY);
    let wrapper = Started::new(&mut prefixed(&["nohup"], &wrapper));
    dir.pid();
    listens(&wrapper);
    assert!(has_signal(wrapper.pid(), "SigIgn", Signal::HUP));
    assert!(has_signal(wrapper.pid(), "SigCgt", Signal::TERM));
    wrapper.signal(Signal::HUP);
    wrapper.signal(Signal::TERM);
    assert_eq!(code(&wrapper.end()), 143);
}

#[test]
fn an_interrupted_wait_leaves_nothing_behind() {
    use std::os::unix::process::ExitStatusExt;

    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, sleeper) = dir.start(&[], STAY);
        let waiter = Started::new(&mut dir.run(&[], "touch ran"));
        // A waiting process has no signal handler, so the signal may come at any moment.
        waiter.signal(Signal::INT);
        assert_eq!(waiter.end().status.signal(), Some(Signal::INT.as_raw()));
        kill(sleeper, Signal::TERM);
        holder.end();
        ends_with(&mut dir.run(&["--no-wait"], "test ! -e ran"), 0);
    }
}

#[test]
fn a_lease_is_renewed_while_the_command_runs() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, _) = dir.start(&["--ttl", "1s"], "echo $$ > pid; sleep 3; : > end");
        let next = ["--wait", "50s", "--retry-delay", "10ms"];
        ends_with(&mut dir.run(&next, "test -e end"), 0);
        assert_eq!(code(&holder.end()), 0);
    }
}

#[test]
fn wrapper_stopped_past_its_ttl_ends_its_command() {
    let dir = TestDir::new("lease");
    let (holder, sleeper) = dir.start(&["--ttl", "200ms"], STAY);
    holder.signal(Signal::STOP);
    stopped(holder.pid());
    let output = ends_with(&mut dir.run(&["--wait", "50s"], "true"), 0);
    let said = stderr(&output);
    assert!(
        said.contains("warning") && said.contains(&holder.id().to_string()),
        "{said}"
    );
    assert!(lives(sleeper));
    holder.signal(Signal::CONT);
    let output = holder.end();
    assert_eq!(code(&output), 76);
    assert!(
        stderr(&output).contains("E_LOCK_LOST"),
        "{}",
        stderr(&output)
    );
    assert!(!lives(sleeper));
}

#[test]
fn wrapper_stopped_past_its_ttl_revives_a_lease_that_was_not_taken() {
    let dir = TestDir::new("lease");
    let script = "echo $$ > pid; until test -e go; do sleep 0.02; done; echo $VERROU_FENCE";
    let (holder, _) = dir.start(&["--ttl", "300ms"], script);
    holder.signal(Signal::STOP);
    stopped(holder.pid());
    eventually("the lease has expired", || !dir.is_held());
    holder.signal(Signal::CONT);
    eventually("the lease is revived", || dir.is_held());
    ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
    fs::write(dir.path("go"), "").unwrap();
    let output = holder.end();
    assert_eq!((code(&output), stderr(&output)), (0, ""));
    let fence: u64 = stdout(&output).trim_end().parse().unwrap();
    let next = ends_with(&mut dir.run(&[], "echo $VERROU_FENCE"), 0);
    assert!(fence < stdout(&next).trim_end().parse().unwrap());
}

/// The wrapper is stopped until after the end of its command.
#[test]
fn command_that_ends_while_its_wrapper_is_stopped_has_lost_nothing() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, sleeper) = dir.start(&["--ttl", "300ms"], "echo $$ > pid; sleep 0.6; exit 3");
        holder.signal(Signal::STOP);
        stopped(holder.pid());
        eventually("the command has ended", || !lives(sleeper));
        holder.signal(Signal::CONT);
        let output = holder.end();
        assert_eq!((code(&output), stderr(&output)), (3, ""), "{kind}");
        assert!(!dir.is_held());
    }
}

#[test]
fn late_wrapper_does_not_undo_a_force_release() {
    let dir = TestDir::new("lease");
    let (holder, sleeper) = dir.start(&["--ttl", "300ms"], STAY);
    holder.signal(Signal::STOP);
    stopped(holder.pid());
    eventually("the lease has expired", || !dir.is_held());
    done(&mut dir.verrou(["force-release", "k"]));
    holder.signal(Signal::CONT);
    assert_eq!(code(&holder.end()), 76);
    assert!(!lives(sleeper));
}

#[test]
fn a_kernel_lock_outlasts_its_lease() {
    let dir = TestDir::new("file");
    fs::write(dir.path("locked"), "").unwrap();
    let dir = &dir;
    let named = |options: &[&str], script: &str| dir.run(options, script);
    let exact = |options: &[&str], script: &str| {
        let program = ["--", "sh", "-c", script];
        let words = ["run", "--file", "locked"].iter().chain(options);
        let mut command = dir.verrou(words.chain(&program));
        command.env("XDG_STATE_HOME", dir.path("state"));
        command
    };
    for is_exact in [false, true] {
        let run = |options: &[&str], script: &str| {
            if is_exact {
                exact(options, script)
            } else {
                named(options, script)
            }
        };
        let _ = fs::remove_file(dir.path("pid"));
        let holder = Started::new(&mut run(&["--ttl", "200ms"], STAY));
        let sleeper = dir.pid();
        holder.signal(Signal::STOP);
        stopped(holder.pid());
        ends_with(&mut run(&["--wait", "1s"], "true"), 75);
        holder.signal(Signal::CONT);
        // Meanwhile the wrapper has renewed its lease.
        ends_with(&mut run(&["--wait", "1s"], "true"), 75);
        assert!(lives(sleeper));
        kill(sleeper, Signal::TERM);
        let output = holder.end();
        assert_eq!((code(&output), stderr(&output)), (143, ""));
    }
}

#[test]
fn zombies_can_be_waited_for() {
    let dir = TestDir::new("lease");
    let (holder, sleeper) = dir.start(&["--ttl", "200ms"], STAY);
    holder.signal(Signal::STOP);
    stopped(holder.pid());
    let wait = ["--zombie", "wait", "--wait", "1s"];
    ends_with(&mut dir.run(&wait, "true"), 75);
    let next = Started::new(&mut dir.run(&["--zombie", "wait"], "true"));
    kill(sleeper, Signal::KILL);
    drop(holder);
    let output = next.end();
    assert_eq!(code(&output), 0);
    assert_eq!(stderr(&output), "", "no holder was taken over");
}

/// Starts a command, force-releases its lock, and returns the output and the process in the file `pid`.
fn force_released(dir: &TestDir, options: &[&str], script: &str) -> (std::process::Output, Pid) {
    let options: Vec<_> = ["--ttl", "1h"].iter().chain(options).copied().collect();
    let (holder, pid) = dir.start(&options, script);
    ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    let output = holder.end();
    assert_eq!(code(&output), 76, "{}", stderr(&output));
    assert!(stderr(&output).contains("E_LOCK_LOST"));
    (output, pid)
}

#[test]
fn command_that_lost_its_lock_gets_sigterm() {
    let dir = TestDir::new("lease");
    let script = "trap ': > asked; exit 0' TERM; echo $$ > pid; while :; do sleep 0.05; done";
    force_released(&dir, &["--grace", "1h"], script);
    assert!(dir.path("asked").exists());
}

#[test]
fn command_that_lost_its_lock_is_killed_after_the_grace() {
    let dir = TestDir::new("lease");
    // The leader ends at once, the process that it started does not.
    let script = "(trap '' TERM; sleep 1000; sleep 1000) & echo $! > pid; exec sleep 1000";
    let (_, pid) = force_released(&dir, &["--grace", "100ms"], script);
    eventually("the process has ended", || !lives(pid));
}

#[test]
fn stopped_command_that_lost_its_lock_is_ended() {
    let dir = TestDir::new("lease");
    let options = ["--ttl", "300ms", "--grace", "1h"];
    let (holder, sleeper) = dir.start(&options, STAY);
    kill(sleeper, Signal::STOP);
    stopped(sleeper);
    // Without a terminal the command is stopped alone, and its lease is renewed.
    ends_with(&mut dir.run(&["--wait", "1s"], "true"), 75);
    ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    assert_eq!(code(&holder.end()), 76);
    assert!(!lives(sleeper));
}

#[test]
fn command_that_lost_its_lock_is_killed_with_on_lost_kill() {
    let dir = TestDir::new("lease");
    let script = "trap ': > asked' TERM; echo $$ > pid; while :; do sleep 0.05; done";
    let (_, pid) = force_released(&dir, &["--on-lost", "kill"], script);
    assert!(!lives(pid) && !dir.path("asked").exists());
}

#[test]
fn command_that_lost_its_lock_continues_with_on_lost_ignore() {
    let dir = TestDir::new("lease");
    // The command continues until another process has had the lock.
    let script = "echo $$ > pid; until test -e go; do sleep 0.02; done; : > end";
    let options = ["--ttl", "300ms", "--on-lost", "ignore"];
    let (holder, _) = dir.start(&options, script);
    ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    ends_with(&mut dir.run(&["--ttl", "1h"], "sleep 0.4"), 0);
    fs::write(dir.path("go"), "").unwrap();
    let output = holder.end();
    assert_eq!(code(&output), 76);
    assert_eq!(
        stderr(&output).lines().count(),
        1,
        "the loss is reported once"
    );
    assert!(dir.path("end").exists());
}

#[test]
fn a_lock_released_from_within_is_not_lost() {
    let dir = TestDir::new("lease");
    let script = format!("{} release; echo $?", env!("CARGO_BIN_EXE_verrou"));
    let output = ends_with(&mut dir.run(&[], &script), 0);
    assert_eq!((stdout(&output), stderr(&output)), ("0\n", ""));

    // Other processes have held the lock since, and the command runs through several renewals.
    let script = format!(
        "echo $$ > pid; {} release; until test -e go; do sleep 0.02; done; exit 3",
        env!("CARGO_BIN_EXE_verrou")
    );
    for options in [["--ttl", "1h"], ["--ttl", "100ms"]] {
        let _ = fs::remove_file(dir.path("go"));
        let _ = fs::remove_file(dir.path("pid"));
        let (holder, _) = dir.start(&options, &script);
        for _ in 0..3 {
            ends_with(&mut dir.run(&["--wait", "50s"], "true"), 0);
        }
        ends_with(&mut dir.run(&[], "sleep 0.4; : > go"), 0);
        let output = holder.end();
        assert_eq!((code(&output), stderr(&output)), (3, ""), "{options:?}");
    }
}

#[test]
fn a_command_can_extend_its_own_lease() {
    let dir = TestDir::new("lease");
    let script = format!("{} extend --ttl 1h", env!("CARGO_BIN_EXE_verrou"));
    let output = ends_with(&mut dir.run(&[], &script), 0);
    assert!(stdout(&output).starts_with("{\"version\":1"));

    // If a renewal shortened the lease, it would expire before the check below.
    let script = format!("{script}; sleep 0.4; echo $$ > pid; exec sleep 1000");
    let (holder, sleeper) = dir.start(&["--ttl", "300ms"], &script);
    holder.signal(Signal::STOP);
    stopped(holder.pid());
    ends_with(&mut dir.run(&["--wait", "1s"], "true"), 75);
    holder.signal(Signal::CONT);
    kill(sleeper, Signal::TERM);
    assert_eq!(code(&holder.end()), 143);
}

#[test]
fn command_of_a_killed_wrapper_is_ended() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let script = "trap ': > asked' TERM; echo $$ > pid; while :; do sleep 0.05; done";
        let (holder, pid) = dir.start(&["--ttl", "1h", "--grace", "1h"], script);
        holder.signal(Signal::KILL);
        holder.end();
        eventually("the command got the death signal", || {
            dir.path("asked").exists()
        });
        ends_with(&mut dir.run(&["--no-wait"], "true"), 75);
        kill(pid, Signal::KILL);
        let options = ["--wait", "50s", "--zombie", "wait"];
        ends_with(&mut dir.run(&options, "true"), 0);

        let _ = fs::remove_file(dir.path("pid"));
        let _ = fs::remove_file(dir.path("asked"));
        let (holder, pid) = dir.start(&["--on-lost", "kill"], script);
        holder.signal(Signal::KILL);
        holder.end();
        eventually("the command is killed", || !lives(pid));
        assert!(!dir.path("asked").exists());
    }
}

#[test]
fn a_long_lease_ends_with_its_processes() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (holder, sleeper) = dir.start(&["--ttl", "1h"], STAY);
        holder.signal(Signal::KILL);
        let _ = kill_process(sleeper, Signal::KILL);
        holder.end();
        eventually("the command has ended", || !lives(sleeper));
        let began = Instant::now();
        ends_with(&mut dir.run(&["--wait", "5s"], "true"), 0);
        assert!(began.elapsed() < Duration::from_secs(4));
    }
}

#[test]
fn no_increment_is_lost() {
    const PROCESSES: usize = 8;
    const EACH: usize = 15;

    for kind in KINDS {
        let dir = TestDir::new(kind);
        fs::write(dir.path("count"), "0\n").unwrap();
        let wrapper = env!("CARGO_BIN_EXE_verrou");
        let increment = "read n < count; echo $((n + 1)) > count";
        let script = format!(
            "i=0; while [ $i -lt {EACH} ]; do {wrapper} run k -- sh -c '{increment}' || exit 1; \
             i=$((i + 1)); done"
        );
        let taker = || {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-c", &script]).current_dir(dir.path(""));
            Started::new(shell.env("VERROU_STORE", dir.store()))
        };
        let takers: Vec<_> = (0..PROCESSES).map(|_| taker()).collect();
        for taker in takers {
            let output = taker.end();
            assert_eq!(code(&output), 0, "{}", stderr(&output));
        }
        assert_eq!(dir.read("count"), format!("{}\n", PROCESSES * EACH));
    }
}

#[test]
fn the_command_reads_our_standard_input() {
    let dir = TestDir::new("lease");
    fs::write(dir.path("input"), "words\n").unwrap();
    let input = fs::File::open(dir.path("input")).unwrap();
    let output = done(dir.run(&[], "cat").stdin(input));
    assert_eq!(stdout(&output), "words\n");
}

/// Runs its arguments with these signals blocked.
const BLOCKED: &str = "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
os.execv(sys.argv[1], sys.argv[1:])";

#[test]
fn signals_that_were_blocked_before_the_start_are_handled() {
    let dir = TestDir::new("lease");
    let verrou = dir.run(&["--ttl", "1h"], "exec sleep 1000");
    let started = Started::new(&mut prefixed(&["python3", "-c", BLOCKED], &verrou));
    eventually("the wrapper holds the lock", || dir.is_held());
    polls(started.pid());
    started.signal(Signal::TERM);
    assert_eq!(code(&started.end()), 143);
    assert!(!dir.is_held());
}
