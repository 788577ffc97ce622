//! `verrou run` and the processes of its command.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::{TestDir, code, ends_with, eventually, state, stderr, stdout, traced};
use rustix::process::{Signal, kill_process};

#[test]
fn ended_leader_keeps_its_number_while_its_group_may_be_signalled() {
    let dir = TestDir::new("lease");
    let script = "(trap '' TERM; echo > ignores; exec sleep 1000) & echo $! > left
        trap 'exit 0' TERM; echo $$ > pid; while :; do sleep 0.05; done";
    let (holder, leader) = dir.start(&["--ttl", "1h", "--grace", "1h"], script);
    eventually("the other process ignores SIGTERM", || {
        dir.path("ignores").exists()
    });
    ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    eventually("the leader has ended", || state(leader) == Some('Z'));
    // Meanwhile `verrou` looks for remaining processes more than once.
    for _ in 0..5 {
        assert!(!dir.is_held());
    }
    assert_eq!(state(leader), Some('Z'), "it is not reaped");
    kill_process(dir.pid_in("left"), Signal::KILL).unwrap();
    // The end does not take the grace of an hour.
    let output = holder.end();
    assert_eq!(code(&output), 76, "{}", stderr(&output));
    assert_eq!(state(leader), None);
}

#[test]
fn store_that_cannot_answer_is_not_polled() {
    let dir = TestDir::new("lease");
    // The lock's file is replaced as soon as `verrou` watches it.
    let script = "until ls -l /proc/$PPID/fd | grep -q inotify; do sleep 0.02; done
        echo garbage > garbage
        for file in locks/*.lease; do ln $file kept; mv garbage $file; done
        sleep 1; mv kept $file";
    let run = dir.run(&["--ttl", "1m"], script);
    let Some(mut run) = traced(&run, &["--trace=poll,ppoll"]) else {
        return;
    };
    ends_with(&mut run, 0);
    let log = fs::read_to_string(dir.path("trace")).unwrap();
    assert!(log.lines().count() < 100, "{log}");
}

#[test]
fn command_blocks_no_signal() {
    let dir = TestDir::new("lease");
    let output = ends_with(&mut dir.run(&[], "grep SigBlk /proc/self/status"), 0);
    assert_eq!(stdout(&output), "SigBlk:\t0000000000000000\n");
}
