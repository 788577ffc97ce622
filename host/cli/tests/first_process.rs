//! `verrou run` as the first process of a PID namespace, as in a container. There the default disposition
//! ignores signals, and the first process reaps orphans. Also: signals end a waiting `verrou run`.
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;

use common::{
    KINDS, Started, TestDir, children, code, ends_with, eventually, has_signal, polls, prefixed,
    status_field, stderr,
};
use rustix::process::{Pid, Signal, kill_process};

const STAY: &str = "echo $$ > pid; exec sleep 1000";

const FIRST: [&str; 6] = [
    "--user",
    "--map-root-user",
    "--pid",
    "--fork",
    "--mount-proc",
    "--kill-child",
];

/// Returns `command` as the first process of a PID namespace, or `None` where that is not allowed.
fn first(command: &Command) -> Option<Command> {
    let may = Command::new("unshare").args(FIRST).arg("true").output();
    if !may.is_ok_and(|output| output.status.success()) {
        eprintln!("no user namespaces here: a container is not tested");
        return None;
    }
    Some(prefixed(&[&["unshare"], &FIRST[..]].concat(), command))
}

/// Waits until the process that `unshare` started is `verrou`, and has a handler for `signal`.
fn handling(unshare: &Started, signal: Signal) -> Pid {
    let mut found = None;
    eventually("`verrou` handles a signal", || {
        found = children(unshare.pid()).pop();
        found.is_some_and(|process| {
            status_field(process, "Name").is_some_and(|name| name == "verrou")
                && has_signal(process, "SigCgt", signal)
        })
    });
    found.unwrap()
}

#[test]
fn waiting_first_process_is_ended_by_signals() {
    for kind in KINDS {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT] {
            let dir = TestDir::new(kind);
            let (holder, sleep) = dir.start(&[], STAY);
            let Some(mut waiter) = first(&dir.run(&[], "touch ran")) else {
                return;
            };
            let waiter = Started::new(&mut waiter);
            let process = handling(&waiter, signal);
            polls(process);
            let next = Started::new(&mut dir.run(&["--wait", "50s"], "test ! -e ran"));
            polls(next.pid());
            kill_process(process, signal).unwrap();
            let output = waiter.end();
            assert_eq!(code(&output), 128 + signal.as_raw(), "{}", stderr(&output));
            kill_process(sleep, Signal::TERM).unwrap();
            holder.end();
            let output = next.end();
            assert_eq!(code(&output), 0, "{}", stderr(&output));
            assert!(!dir.path("ran").exists());
        }
    }
}

#[test]
fn first_process_forwards_signals_to_its_command() {
    let dir = TestDir::new("lease");
    let script = "trap 'exit 9' TERM; echo > pid; while :; do sleep 0.05; done";
    let Some(mut unshare) = first(&dir.run(&[], script)) else {
        return;
    };
    let unshare = Started::new(&mut unshare);
    eventually("the command runs", || dir.path("pid").exists());
    // SIGCONT is the last signal for which `verrou` installs a handler.
    let process = handling(&unshare, Signal::CONT);
    kill_process(process, Signal::TERM).unwrap();
    let output = unshare.end();
    assert_eq!(code(&output), 9, "{}", stderr(&output));
}

#[test]
fn first_process_reaps_orphans_and_ends_as_its_command() {
    let dir = TestDir::new("lease");
    let script = "for i in 1 2 3; do sh -c 'sleep 0.05 & echo $! > orphan'
            while test -e /proc/$(cat orphan); do sleep 0.02; done; done; exit 7";
    let Some(mut unshare) = first(&dir.run(&[], script)) else {
        return;
    };
    ends_with(&mut unshare, 7);
}

#[test]
fn waiting_first_process_reaps_orphans() {
    let dir = TestDir::new("lease");
    let (_holder, _) = dir.start(&[], STAY);
    let run = dir.run(&[], "true");
    // One orphan ends before it is reparented to the first process, one after.
    let script = "sh -c 'exit' & sleep 0.5 & sleep 0.1; exec \"$@\"";
    let run = prefixed(&["sh", "-c", script, "sh"], &run);
    let Some(mut unshare) = first(&run) else {
        return;
    };
    let unshare = Started::new(&mut unshare);
    let process = handling(&unshare, Signal::TERM);
    polls(process);
    eventually("the first process has no children", || {
        children(process).is_empty()
    });
}

/// Runs its arguments with a signal blocked.
const BLOCKED: &str = "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.execv(sys.argv[1], sys.argv[1:])";

#[test]
fn waiting_process_is_ended_by_a_signal_that_was_blocked_before_it() {
    use std::os::unix::process::ExitStatusExt;

    let dir = TestDir::new("lease");
    let (_holder, _) = dir.start(&[], STAY);
    let run = dir.run(&[], "true");
    let waiter = Started::new(&mut prefixed(&["python3", "-c", BLOCKED], &run));
    polls(waiter.pid());
    waiter.signal(Signal::TERM);
    assert_eq!(waiter.end().status.signal(), Some(Signal::TERM.as_raw()));
}
