//! A process that requests a lock which its ancestor holds.
#![cfg(target_os = "linux")]

mod common;

use std::fs;

use common::{KINDS, Started, TestDir, code, ends_with, eventually, stderr, stdout};

/// Returns the command that runs `sh -c script` under the lock `a`, with `verrou` as `$0`.
fn under_a(dir: &TestDir, script: &str) -> std::process::Command {
    let program = dir.verrou::<&str>([]).get_program().to_owned();
    let mut run = dir.verrou(["run", "a", "--", "sh", "-c", script]);
    run.arg(program);
    run
}

#[test]
fn nested_run_of_the_same_lock_is_refused_at_once() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        for script in [
            "echo $PPID; \"$0\" run a -- touch ran",
            // At any depth, whatever `--wait` is.
            "echo $PPID; \"$0\" run b -- \"$0\" run c -- \"$0\" run a --wait 1h -- touch ran",
            "echo $PPID; cd / && env -u VERROU_FENCE -u VERROU_NAME \"$0\" run a -- touch ran",
        ] {
            let output = ends_with(&mut under_a(&dir, script), 75);
            let text = stderr(&output);
            let holder = format!("held by process {} ", stdout(&output).trim_end());
            assert!(text.contains(&holder), "{text}");
            assert!(text.contains("E_LOCK_TIMEOUT"), "{text}");
            assert!(text.contains("runs under that one"), "{text}");
            assert!(!dir.path("ran").exists());
        }
        ends_with(&mut under_a(&dir, "\"$0\" run a -E 5 -- true"), 5);
    }
    let dir = TestDir::new("lease");
    ends_with(&mut under_a(&dir, "\"$0\" acquire a"), 75);
}

#[test]
fn nested_lock_on_the_same_file_is_refused_at_once() {
    // The same without a directory for records.
    for state in ["state", "/proc/nowhere"] {
        let dir = TestDir::new("lease");
        let program = dir.verrou::<&str>([]).get_program().to_owned();
        let mut run = dir.verrou(["run", "--file", "x", "--"]);
        run.arg(&program);
        run.args(["run", "--file", "./x", "--", "touch", "ran"]);
        let state = dir.path("").join(state);
        let output = ends_with(run.env("XDG_STATE_HOME", state), 75);
        assert!(
            stderr(&output).contains("runs under that one"),
            "{output:?}"
        );
        assert!(!dir.path("ran").exists());
    }
}

#[test]
fn other_locks_can_be_nested() {
    let dir = TestDir::new("lease");
    let other = format!("lease:{}", dir.path("other").display());
    let script = format!(
        "\"$0\" run b -- true && \"$0\" --store {other} run a -- true && \"$0\" run --file a -- true"
    );
    ends_with(&mut under_a(&dir, &script), 0);
    // Invalid values of the variable are ignored.
    for nonsense in ["", "[", "{}", "[1]", "[{\"name\":\"a\"}]"] {
        let mut run = dir.verrou(["run", "a", "--", "true"]);
        ends_with(run.env("VERROU_HELD", nonsense), 0);
    }
}

#[test]
fn lock_of_an_ancestor_that_has_ended_can_be_waited_for() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let script = "\
            (until test -e go; do sleep 0.01; done; \"$0\" run a -- touch ran) <&- >&- 2>&- &";
        assert_eq!(code(&common::done(&mut under_a(&dir, script))), 0);
        // The ancestor has ended, and another process holds the lock.
        let holder = dir.verrou(["run", "a", "--", "sh", "-c", "echo $$ > pid; cat fifo"]);
        let mut holder = holder;
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path("fifo"), 0o600.into()).unwrap();
        let holder = Started::new(&mut holder);
        dir.pid();
        fs::write(dir.path("go"), "").unwrap();
        fs::write(dir.path("fifo"), "").unwrap();
        assert_eq!(code(&holder.end()), 0);
        eventually("the waiter has had the lock", || dir.path("ran").exists());
    }
}
