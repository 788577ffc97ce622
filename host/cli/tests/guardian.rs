//! The guardian in the command's group ends the command's processes when `verrou` is killed.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{
    KINDS, Started, TestDir, all_processes, code, done, ends_with, eventually, listens, lives,
    prefixed, stat_field, status_field, stderr, stopped,
};
use rustix::process::{Pid, Signal, geteuid, kill_process, kill_process_group, test_kill_process};

/// Starts two workers, writes its own process ID and theirs to files, and waits for them.
const WORKERS: &str = "sleep 1000 & echo $! > one; sleep 1000 & echo $! > two; echo $$ > pid; wait";

/// A worker that handles SIGTERM by creating a file, and a group leader that ends.
const STUBBORN: &str = "
sh -c 'trap \": > asked\" TERM; echo $$ > one; while :; do sleep 0.05; done' &
until test -s one; do sleep 0.01; done
echo $$ > pid
wait";

fn find_guardian(group: Pid) -> Option<Pid> {
    let group = group.to_string();
    all_processes().find(|&process| {
        stat_field(process, 2).as_ref() == Some(&group)
            && status_field(process, "Name").is_some_and(|name| name == "verrou-guardian")
    })
}

/// Waits until the guardian of a command has closed all descriptors but its three, and returns it.
fn guardian_of(group: Pid) -> Pid {
    guardian_with(group, 3)
}

fn guardian_with(group: Pid, descriptors: usize) -> Pid {
    let mut found = None;
    eventually("there is a guardian", || {
        found = find_guardian(group);
        found.is_some_and(|guardian| open(guardian).len() == descriptors)
    });
    found.unwrap()
}

/// Returns the targets of a process's open descriptors.
fn open(process: Pid) -> Vec<String> {
    let Ok(open) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return Vec::new();
    };
    open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .map(|target| target.display().to_string())
        .collect()
}

fn gone(what: &str, process: Pid) {
    eventually(what, || !lives(process));
}

#[test]
fn workers_end_when_the_group_of_the_wrapper_is_killed() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        // A CI runner starts a step in a process group, and kills the group.
        let mut run = dir.run(&["--ttl", "1h", "--grace", "1h"], WORKERS);
        let wrapper = Started::new(run.process_group(0));
        let guardian = guardian_of(dir.pid());
        kill_process_group(wrapper.pid(), Signal::KILL).unwrap();
        wrapper.end();
        for worker in ["one", "two"] {
            gone("a worker ends", dir.pid_in(worker));
        }
        let next = ["--wait", "50s", "--zombie", "wait"];
        ends_with(&mut dir.run(&next, "true"), 0);
        gone("the guardian ends with the command", guardian);
    }
}

#[test]
fn workers_of_a_killed_wrapper_get_sigterm_and_then_sigkill() {
    let dir = TestDir::new("lease");
    let (wrapper, command) = dir.start(&["--grace", "300ms"], STUBBORN);
    guardian_of(command);
    wrapper.signal(Signal::KILL);
    wrapper.end();
    gone("the worker is killed", dir.pid_in("one"));
    assert!(dir.path("asked").exists(), "the worker got SIGTERM before");
}

#[test]
fn workers_of_a_killed_wrapper_are_killed_at_once_if_wished() {
    let dir = TestDir::new("lease");
    let options = ["--on-lost", "kill", "--grace", "1h"];
    let (wrapper, command) = dir.start(&options, STUBBORN);
    guardian_of(command);
    wrapper.signal(Signal::KILL);
    wrapper.end();
    gone("the worker is killed", dir.pid_in("one"));
    assert!(!dir.path("asked").exists());
}

#[test]
fn command_of_a_killed_fence_check_ends() {
    let dir = TestDir::new("lease");
    let check = [
        "fence", "check", "--file", "gate", "7", "--", "sh", "-c", WORKERS,
    ];
    let wrapper = Started::new(&mut dir.verrou(check));
    guardian_of(dir.pid());
    wrapper.signal(Signal::KILL);
    wrapper.end();
    gone("a worker ends", dir.pid_in("one"));
    ends_with(
        &mut dir.verrou(["fence", "check", "--file", "gate", "7"]),
        0,
    );
}

#[test]
fn guardian_has_nothing_open_but_the_lock_a_socket_and_a_pipe() {
    for kind in KINDS {
        let dir = TestDir::new(kind);
        let (_wrapper, command) = dir.start(&[], WORKERS);
        let mut open = open(guardian_of(command));
        open.sort();
        assert!(open[0].ends_with(&format!(".{}", if kind == "file" { "lock" } else { kind })));
        assert!(open[1].starts_with("pipe:"), "{open:?}");
        assert!(open[2].starts_with("socket:"), "{open:?}");
    }
}

#[test]
fn guardian_ends_with_the_command_and_what_that_left_behind_does_not() {
    let dir = TestDir::new("lease");
    let script = "sleep 1000 & echo $! > one; echo $$ > pid; until test -e go; do sleep 0.02; done";
    let (wrapper, command) = dir.start(&[], script);
    let guardian = guardian_of(command);
    fs::write(dir.path("go"), "").unwrap();
    assert_eq!(code(&wrapper.end()), 0);
    assert!(!lives(guardian));
    let left = dir.pid_in("one");
    assert!(lives(left));
    kill_process(left, Signal::KILL).unwrap();
}

#[test]
fn command_that_lost_its_lock_ends_with_its_guardian() {
    let dir = TestDir::new("lease");
    let (wrapper, command) = dir.start(&["--ttl", "1h", "--grace", "1h"], WORKERS);
    let guardian = guardian_of(command);
    ends_with(&mut dir.verrou(["force-release", "k"]), 0);
    assert_eq!(code(&wrapper.end()), 76);
    assert!(!lives(guardian) && !lives(dir.pid_in("one")));
}

/// Writes its process ID to a file, and ignores every signal but SIGKILL.
const IGNORES_SIGNALS: &str = "trap '' HUP INT QUIT TERM USR1 USR2 TSTP; echo $$ > pid; \
    while :; do sleep 0.05; done";

#[test]
fn guardian_outlives_the_signals_of_the_command() {
    let dir = TestDir::new("lease");
    let (wrapper, command) = dir.start(&["--grace", "100ms"], IGNORES_SIGNALS);
    let guardian = guardian_of(command);
    for signal in [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::TSTP,
    ] {
        wrapper.signal(signal);
        kill_process_group(command, signal).unwrap();
        kill_process(guardian, signal).unwrap();
    }
    assert!(lives(guardian));
    wrapper.signal(Signal::KILL);
    wrapper.end();
    gone("the command is killed", command);
}

#[test]
fn stopped_command_of_a_killed_wrapper_ends() {
    let dir = TestDir::new("file");
    let (wrapper, command) = dir.start(&["--grace", "1h"], WORKERS);
    let guardian = guardian_of(command);
    kill_process_group(command, Signal::STOP).unwrap();
    let workers = ["one", "two"].map(|worker| dir.pid_in(worker));
    for process in [command, guardian].into_iter().chain(workers) {
        stopped(process);
    }
    wrapper.signal(Signal::KILL);
    wrapper.end();
    // Without a terminal no shell continues the stopped processes.
    let _ = kill_process(guardian, Signal::CONT);
    for process in [command, guardian].into_iter().chain(workers) {
        gone("all of it ends", process);
    }
}

/// The kernel clears the death signal of a command that changes its user.
#[test]
fn command_that_changed_its_user_ends_with_its_wrapper() {
    if !geteuid().is_root() {
        eprintln!("only root can change its user: the end of such a command is not tested");
        return;
    }
    let dir = TestDir::new("lease");
    let script = "setpriv --reuid 65534 --clear-groups sleep 1000 & echo $! > one; echo $$ > pid; \
                  exec setpriv --reuid 65534 --clear-groups sleep 1000";
    let (wrapper, command) = dir.start(&["--grace", "1h"], script);
    guardian_of(command);
    let changed = || status_field(command, "Uid").is_some_and(|user| user.starts_with("65534"));
    eventually("the command has changed its user", changed);
    wrapper.signal(Signal::KILL);
    wrapper.end();
    gone("the command ends", command);
    gone("its worker ends", dir.pid_in("one"));
}

/// The user of a `verrou` whose command changes to root.
const UNPRIVILEGED: u32 = 65_534;

/// Returns `verrou run` as a user that may not signal the command: the command becomes root by a set-user-ID
/// program, and writes its process ID to a file. Returns `None` where this test cannot run.
fn run_as_other_user(dir: &TestDir, options: &[&str]) -> Option<Command> {
    let stay = "echo $$ > pid; exec sleep 1000";
    run_script_as_other_user(dir, options, stay)
}

fn run_script_as_other_user(dir: &TestDir, options: &[&str], script: &str) -> Option<Command> {
    if !geteuid().is_root() {
        eprintln!("only root can change its user: messages about such a command are not tested");
        return None;
    }
    let become_root = dir.path("setpriv");
    fs::copy("/usr/bin/setpriv", &become_root).unwrap();
    fs::set_permissions(&become_root, fs::Permissions::from_mode(0o4755)).unwrap();
    chown(dir.path(""), Some(UNPRIVILEGED), Some(UNPRIVILEGED)).unwrap();
    let command = ["--reuid", "0", "sh", "-c", script];
    let run = ["run", "k", "--ttl", "1h"].iter().chain(options);
    let run = run.chain(&["--", "./setpriv"]).chain(&command);
    let mut proved = as_other_user(dir, ["./setpriv", "--reuid", "0", "true"]);
    if code(&done(&mut proved)) != 0 {
        eprintln!("no program is set-user-ID here: messages about such a command are not tested");
        return None;
    }
    let verrou = [env!("CARGO_BIN_EXE_verrou")].into_iter();
    Some(as_other_user(dir, verrou.chain(run.copied())))
}

fn as_other_user<'a>(dir: &TestDir, words: impl IntoIterator<Item = &'a str>) -> Command {
    as_user(UNPRIVILEGED, dir, words)
}

fn as_user<'a>(user: u32, dir: &TestDir, words: impl IntoIterator<Item = &'a str>) -> Command {
    let user = user.to_string();
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .args(words)
        .current_dir(dir.path(""))
        .env("VERROU_STORE", dir.store())
        .env_remove("VERROU_LOCK")
        .stdin(Stdio::null());
    setpriv
}

#[test]
fn lost_command_of_another_user_is_waited_for_no_longer_than_the_grace() {
    for on_lost in ["term", "kill"] {
        let dir = TestDir::new("lease");
        let options = ["--grace", "300ms", "--on-lost", on_lost];
        let Some(mut run) = run_as_other_user(&dir, &options) else {
            return;
        };
        let wrapper = Started::new(&mut run);
        let command = dir.pid();
        guardian_of(command);
        let force = [env!("CARGO_BIN_EXE_verrou"), "force-release", "k"];
        ends_with(&mut as_other_user(&dir, force), 0);
        let output = wrapper.end();
        let said = stderr(&output);
        assert_eq!(code(&output), 76, "{said}");
        assert!(said.contains("Operation not permitted"), "{said}");
        assert!(said.contains("sudo verrou"), "{said}");
        assert!(said.contains("continues without the lock"), "{said}");
        assert!(
            !said.contains("is sent") && !said.contains("is killed"),
            "{said}"
        );
        assert!(lives(command));
        kill_process(command, Signal::KILL).unwrap();
    }
}

#[test]
fn signal_that_the_command_cannot_be_sent_is_reported() {
    let dir = TestDir::new("lease");
    let Some(mut run) = run_as_other_user(&dir, &[]) else {
        return;
    };
    let wrapper = Started::new(&mut run);
    let command = dir.pid();
    guardian_of(command);
    listens(&wrapper);
    wrapper.signal(Signal::TERM);
    kill_process(command, Signal::KILL).unwrap();
    let output = wrapper.end();
    assert_eq!(code(&output), 137);
    let said = stderr(&output);
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(said.contains("sudo verrou"), "{said}");
}

/// A command of another user can be neither signalled nor, with `hidepid`, seen by the guardian.
#[test]
fn lock_of_a_killed_wrapper_lasts_as_long_as_its_group_of_another_user() {
    // The command closes what it inherited.
    let script = "exec python3 -c 'import os
os.closerange(3, 65536)
open(\"pid\", \"w\").write(str(os.getpid()) + chr(10))
os.execvp(\"sleep\", [\"sleep\", \"1000\"])'";
    let hidden = "mount -t proc -o hidepid=2 proc /proc && exec \"$@\"";
    let hidden = ["unshare", "--mount", "sh", "-c", hidden, "sh"];
    let before = if may_run(&hidden) && orphans_are_reaped() {
        &hidden[..]
    } else {
        eprintln!("no proc to mount, or no init: a guardian of hidden processes is not tested");
        &[]
    };
    for kind in KINDS {
        for (options, descriptors) in [
            (&["--grace", "100ms"][..], 3),
            (&["--grace", "100ms", "--close"], 2),
        ] {
            let dir = TestDir::new(kind);
            let Some(run) = run_script_as_other_user(&dir, options, script) else {
                return;
            };
            let wrapper = Started::new(&mut prefixed(before, &run));
            let command = dir.pid();
            guardian_with(command, descriptors);
            wrapper.signal(Signal::KILL);
            wrapper.end();
            let next = |wait: &[&'static str]| {
                let next = ["run", "k", "--ttl", "1h", "--zombie", "wait"];
                let next = next.iter().chain(wait).chain(&["--", "true"]).copied();
                let verrou = [env!("CARGO_BIN_EXE_verrou")];
                as_other_user(&dir, verrou.into_iter().chain(next))
            };
            // Longer than the grace.
            ends_with(&mut next(&["--wait", "2s"]), 75);
            assert!(lives(command));
            kill_process(command, Signal::KILL).unwrap();
            ends_with(&mut next(&["--wait", "50s"]), 0);
        }
    }
}

/// Returns whether the first process reaps orphans. A hidden zombie cannot be distinguished from a running process.
fn orphans_are_reaped() -> bool {
    let dir = TestDir::new("file");
    let orphan = "(sleep 0.1 & echo $! > pid)";
    let mut shell = Command::new("sh");
    done(shell.args(["-c", orphan]).current_dir(dir.path("")));
    let orphan = dir.pid();
    eventually("the orphan ends", || !lives(orphan));
    (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        test_kill_process(orphan).is_err()
    })
}

fn may_run(before: &[&str]) -> bool {
    code(&done(&mut prefixed(before, &Command::new("true")))) == 0
}

/// A limit that stops the guardian must not stop the protection of the lock.
#[test]
fn command_whose_guardian_cannot_be_started_is_not_run() {
    if !geteuid().is_root() {
        eprintln!("only root can become a user without processes: a limit is not tested");
        return;
    }
    // Another test's processes must not count.
    let user = 10_000 + std::process::id() % 50_000;
    let namespace = ["unshare", "--pid"];
    for kind in KINDS {
        for close in [&[][..], &["--close"]] {
            for before in [&[][..], &namespace] {
                let dir = TestDir::new(kind);
                chown(dir.path(""), Some(user), Some(user)).unwrap();
                let limited = |processes: &str, script: &str| {
                    let limit = format!("--nproc={processes}");
                    let verrou = env!("CARGO_BIN_EXE_verrou");
                    let run = ["prlimit", &limit, verrou, "run", "k", "--ttl", "1h"];
                    let run = run.iter().chain(&["--no-wait"]).chain(close);
                    let command = ["--", "sh", "-c", script];
                    let run = run.chain(&command);
                    prefixed(before, &as_user(user, &dir, run.copied()))
                };
                if !may_run(before) {
                    eprintln!("no PID namespaces: a limit in one is not tested");
                    continue;
                }
                let stay = "echo $$ > pid; exec sleep 1000";
                // Too few for the command, and for its guardian.
                for processes in ["1", "2"] {
                    let said = ends_with(&mut limited(processes, stay), 126);
                    assert!(
                        stderr(&said).contains("temporarily unavailable"),
                        "{said:?}"
                    );
                    assert!(!before.is_empty() || !dir.path("pid").exists());
                }
                ends_with(&mut limited("3", "true"), 0);
            }
        }
    }
}
