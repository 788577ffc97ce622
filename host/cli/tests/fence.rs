//! `verrou fence check` and the gate that it uses: a process that has lost the lock is rejected by the
//! resource that the lock guards.
#![cfg(target_os = "linux")]

mod common;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::{
    Started, TestDir, assert_passed, code, done, ends_with, eventually, json, lives, prefixed,
    stderr, stdout, stopped, test_process, traced,
};
use nix::libc;
use rustix::fs::{CWD, mkfifoat};
use rustix::process::{Signal, geteuid, kill_process};
use verrou::Fence;
use verrou_host::{FenceError, FenceGate, FileError, OpenError, StoreOptions};

const VERROU: &str = env!("CARGO_BIN_EXE_verrou");

/// Returns the command `verrou fence check --file gate …`, outside of any `verrou run`.
fn check(dir: &TestDir, words: &[&str]) -> Command {
    let mut command = dir.verrou(["fence", "check", "--file", "gate"].iter().chain(words));
    command.env_remove("VERROU_FENCE");
    command
}

/// Asserts that the greatest accepted token is `highest`, as a rejected check reports it.
#[track_caller]
fn assert_highest(dir: &TestDir, highest: u64) {
    let lower = (highest - 1).to_string();
    let output = ends_with(&mut check(dir, &["--json", &lower]), 78);
    assert_eq!(json(stdout(&output))["highest"], highest);
    ends_with(&mut check(dir, &[&highest.to_string()]), 0);
}

fn fence(number: u64) -> Fence {
    Fence::new(number).unwrap()
}

fn gate(path: impl AsRef<Path>) -> FenceGate {
    FenceGate::open(path, &StoreOptions::default()).unwrap()
}

#[test]
fn a_fence_passes_unless_a_greater_one_has() {
    let dir = TestDir::new("lease");
    for passing in ["7", "7", "9"] {
        let output = ends_with(&mut check(&dir, &[passing]), 0);
        assert_eq!((stdout(&output), stderr(&output)), ("", ""));
    }
    let greatest = Fence::LAST.to_string();
    for refused in ["8", "1"] {
        let output = ends_with(&mut check(&dir, &[refused]), 78);
        let said = stderr(&output);
        assert!(
            said.contains(&format!("fencing token {refused} ")),
            "{said}"
        );
        assert!(said.contains("token 9 "), "{said}");
        assert!(said.contains(dir.path("gate").to_str().unwrap()));
        assert!(said.contains("E_FENCE_REFUSED"), "{said}");
    }
    ends_with(&mut check(&dir, &[&greatest]), 0);
    assert_highest(&dir, Fence::LAST.get());
    let metadata = fs::metadata(dir.path("gate")).unwrap();
    assert_eq!(
        metadata.mode() & 0o7777,
        0o600,
        "the file is private to its user"
    );
    assert!(!dir.locks().exists(), "no store is needed");
}

#[test]
fn json_output_says_whether_the_token_passed() {
    let dir = TestDir::new("lease");
    let output = ends_with(&mut check(&dir, &["9", "--json"]), 0);
    let passed = r#"{"fence":9,"file":"gate","highest":9,"passed":true}"#;
    assert_eq!(stdout(&output), format!("{passed}\n"));
    let output = ends_with(&mut check(&dir, &["8", "--json"]), 78);
    let refused = r#"{"fence":8,"file":"gate","highest":9,"passed":false}"#;
    assert_eq!(stdout(&output), format!("{refused}\n"));
    let error = json(stderr(&output));
    assert_eq!(error["error"], "E_FENCE_REFUSED");
    assert_eq!(error["exit"], 78);

    // Characters that could mislead at a terminal are escaped as in JSON.
    let name = "g\u{200e}\u{202e}\u{85}";
    let words = ["fence", "check", "--file", name, "7", "--json"];
    let output = ends_with(&mut dir.verrou(words), 0);
    assert!(stdout(&output).is_ascii(), "{output:?}");
    assert_eq!(json(stdout(&output))["file"], name);

    // The output of the command is not changed.
    let output = ends_with(&mut check(&dir, &["9", "--json", "--", "echo", "x"]), 0);
    assert_eq!(stdout(&output), "x\n");
}

#[test]
fn default_token_is_that_of_the_enclosing_run() {
    for kind in common::KINDS {
        let dir = TestDir::new(kind);
        ends_with(&mut dir.run(&[], "true"), 0);
        let script = format!(
            "{VERROU} fence check --file gate && {VERROU} fence check --file gate -- \
             sh -c 'echo $VERROU_FENCE' && echo $VERROU_FENCE"
        );
        let output = ends_with(&mut dir.run(&[], &script), 0);
        let said: Vec<u64> = stdout(&output)
            .lines()
            .map(|line| line.parse().unwrap())
            .collect();
        assert_eq!(said.len(), 2);
        assert_eq!(said[0], said[1]);
        assert_highest(&dir, said[0]);

        // An argument overrides the environment, and is passed on to the command.
        let greater = (said[0] + 99_999).to_string();
        let words = ["1", "--", "sh", "-c", "echo $VERROU_FENCE"];
        let output = ends_with(check(&dir, &words).env("VERROU_FENCE", &greater), 78);
        assert!(stderr(&output).contains("fencing token 1 "));
        let words = [&greater, "--", "sh", "-c", "echo $VERROU_FENCE"];
        let output = ends_with(check(&dir, &words).env("VERROU_FENCE", "1"), 0);
        assert_eq!(stdout(&output), format!("{greater}\n"));
    }
}

#[test]
fn invalid_argument_is_named_in_the_error() {
    let dir = TestDir::new("lease");
    // 2^62, 2^63, 2^64 - 1 and 2^64.
    let over = [
        "4611686018427387904",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
    ];
    for number in ["0", "-1", "", "7x", "1.5", "0x7"].into_iter().chain(over) {
        let output = ends_with(&mut check(&dir, &[number]), 64);
        let said = stderr(&output);
        assert!(
            said.contains(&format!("`{number}` is not a fencing token")),
            "{said}"
        );
        assert!(said.contains("from 1 to 4611686018427387903"), "{said}");
        assert!(said.starts_with("verrou: "), "{said}");

        let output = ends_with(check(&dir, &[]).env("VERROU_FENCE", number), 64);
        let said = stderr(&output);
        assert!(
            said.contains(&format!("VERROU_FENCE: `{number}`")),
            "{said}"
        );
    }
    let output = ends_with(&mut check(&dir, &[]), 64);
    assert!(stderr(&output).contains("verrou run"), "a way out");
    for (words, said) in [
        (&["7", "touch", "ran"][..], "touch"),
        (&["touch", "--", "ran"], "`touch` is not a fencing token"),
        (&["7", "--wait", "soon"], "not a length of time"),
        (&["7", "--wait", "1s", "--no-wait"], "cannot be used with"),
    ] {
        let output = ends_with(&mut check(&dir, words), 64);
        assert!(stderr(&output).contains(said), "{}", stderr(&output));
    }
    for words in [&["fence"][..], &["fence", "check", "7"], &["fence", "x"]] {
        let output = ends_with(&mut dir.verrou(words), 64);
        assert_ne!(stderr(&output), "");
    }
    assert!(!dir.path("gate").exists(), "nothing was made");
    assert!(!dir.path("ran").exists());
}

/// Writes a gate's file with `number`, as `FORMAT.md` specifies and as earlier versions did.
fn write_gate(dir: &TestDir, number: u64) {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(b"VERROUG\n");
    bytes[12] = 1;
    bytes[16..].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[12..]);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    fs::write(dir.path("gate"), bytes).unwrap();
    fs::set_permissions(dir.path("gate"), Permissions::from_mode(0o600)).unwrap();
}

/// Returns the command `verrou fence reset --file gate …`.
fn reset(dir: &TestDir, words: &[&str]) -> Command {
    dir.verrou(["fence", "reset", "--file", "gate"].iter().chain(words))
}

#[test]
fn poisoned_gate_is_reset_by_its_owner() {
    let dir = TestDir::new("lease");
    for poison in [1 << 63, u64::MAX] {
        write_gate(&dir, poison);
        let refused = ends_with(&mut check(&dir, &["7"]), 78);
        let said = stderr(&refused);
        assert!(said.contains("verrou fence reset --file gate"), "{said}");
        let output = ends_with(&mut reset(&dir, &["--to", "7"]), 0);
        let said = stdout(&output);
        assert!(said.contains(&format!("was {poison}, and is 7")), "{said}");
        assert!(said.contains("earlier holder"), "{said}");
        ends_with(&mut check(&dir, &["6"]), 78);
        ends_with(&mut check(&dir, &["7"]), 0);
    }
    let output = ends_with(&mut reset(&dir, &["--to", "9", "--json"]), 0);
    let expected = r#"{"before":7,"file":"gate","highest":9}"#;
    assert_eq!(stdout(&output), format!("{expected}\n"));
    // Overwritten by a stray write.
    let mut bytes = fs::read(dir.path("gate")).unwrap();
    bytes[17] ^= 8;
    fs::write(dir.path("gate"), bytes).unwrap();
    let refused = ends_with(&mut check(&dir, &["9"]), 74);
    assert!(stderr(&refused).contains("verrou fence reset"));
    ends_with(&mut reset(&dir, &["--to", "9"]), 0);
    assert_highest(&dir, 9);
}

#[test]
fn reset_needs_a_number_and_a_gate_that_is_not_in_use() {
    let dir = TestDir::new("lease");
    ends_with(&mut reset(&dir, &["--to", "7"]), 74);
    assert!(!dir.path("gate").exists(), "nothing was made");
    let stay = ["9", "--", "sh", "-c", "echo $$ > pid; exec sleep 1000"];
    let holder = Started::new(&mut check(&dir, &stay));
    let command = dir.pid();
    let output = ends_with(&mut reset(&dir, &["--to", "7"]), 75);
    assert!(stderr(&output).contains("gate"), "{}", stderr(&output));
    kill_process(command, Signal::KILL).unwrap();
    holder.end();
    for words in [
        &[][..],
        &["7"],
        &["--to", "4611686018427387904"],
        &["--to", "0"],
    ] {
        ends_with(&mut reset(&dir, words), 64);
    }
    assert_highest(&dir, 9);
    // A typing mistake destroys no file.
    fs::write(dir.path("gate"), "24 bytes of another file").unwrap();
    ends_with(&mut reset(&dir, &["--to", "7"]), 74);
    assert_eq!(dir.read("gate"), "24 bytes of another file");
}

#[test]
fn only_the_owner_of_a_gate_resets_it() {
    const MEMBER: u32 = 65_534;

    if !geteuid().is_root() {
        eprintln!("only root can change its user: a reset by another user is not tested");
        return;
    }
    let dir = TestDir::new("lease");
    fs::set_permissions(dir.path(""), Permissions::from_mode(0o770)).unwrap();
    chown(dir.path(""), None, Some(MEMBER)).unwrap();
    let number = MEMBER.to_string();
    ends_with(&mut check(&dir, &["9", "--group", &number]), 0);
    let as_member = |words: &[&str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", &number, "--regid", &number, "--clear-groups"]);
        setpriv.arg(VERROU).args(words).current_dir(dir.path(""));
        setpriv
    };
    // A member may check, and so write the file.
    let words = ["fence", "check", "--file", "gate", "10", "--group", &number];
    ends_with(&mut as_member(&words), 0);
    let words = [
        "fence", "reset", "--file", "gate", "--to", "7", "--group", &number,
    ];
    let output = ends_with(&mut as_member(&words), 74);
    assert!(
        stderr(&output).contains("only its owner"),
        "{}",
        stderr(&output)
    );
    ends_with(&mut reset(&dir, &["--to", "7", "--group", &number]), 0);
}

#[test]
fn help_names_every_exit_code() {
    let dir = TestDir::new("lease");
    let output = ends_with(&mut dir.verrou(["fence", "check", "--help"]), 0);
    for exit in ["64", "73", "74", "75", "78", "126", "127", "128+n"] {
        assert!(stdout(&output).contains(exit), "{exit}");
    }
    let output = ends_with(&mut dir.verrou(["--help"]), 0);
    assert!(stdout(&output).contains("78 "));
}

#[test]
fn exit_code_is_that_of_the_command() {
    let dir = TestDir::new("lease");
    fs::write(dir.path("text"), "not a program").unwrap();
    for (words, expected) in [
        (&["sh", "-c", "exit 0"][..], 0),
        (&["sh", "-c", "exit 5"], 5),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["./text"], 126),
        (&["./nowhere"], 127),
    ] {
        let words: Vec<_> = ["7", "--"].iter().chain(words).copied().collect();
        ends_with(&mut check(&dir, &words), expected);
        ends_with(&mut check(&dir, &["7", "--no-wait"]), 0);
    }
    let refused = ends_with(&mut check(&dir, &["6", "--", "touch", "ran"]), 78);
    assert_eq!(stdout(&refused), "");
    assert!(!dir.path("ran").exists(), "it is not run");
}

#[test]
fn no_check_passes_while_the_command_of_another_runs() {
    let dir = TestDir::new("lease");
    let stay = "trap '' HUP TERM; echo $$ > pid; exec sleep 1000";
    let holder = Started::new(&mut check(&dir, &["7", "--", "sh", "-c", stay]));
    let sleeper = dir.pid();
    // Neither a greater token passes, nor the same, nor one that would be rejected anyway.
    for (words, wait) in [
        (&["8", "--no-wait"][..], "--no-wait"),
        (&["7", "--wait", "0"], "0"),
        (&["6", "--wait", "50ms"], "50ms"),
    ] {
        let words: Vec<_> = words
            .iter()
            .chain(&["--", "touch", "ran"])
            .copied()
            .collect();
        let output = ends_with(&mut check(&dir, &words), 75);
        let said = stderr(&output);
        assert!(said.contains("E_FENCE_TIMEOUT"), "{wait}: {said}");
        assert!(said.contains(dir.path("gate").to_str().unwrap()), "{said}");
    }
    assert!(!dir.path("ran").exists());

    // No token passes while the command is stopped.
    kill_process(sleeper, Signal::STOP).unwrap();
    stopped(sleeper);
    ends_with(&mut check(&dir, &["8", "--no-wait"]), 75);

    // No token passes while the command lives and its check was killed.
    holder.signal(Signal::KILL);
    holder.end();
    assert!(lives(sleeper));
    ends_with(&mut check(&dir, &["8", "--no-wait"]), 75);
    let next = Started::new(&mut check(&dir, &["8", "--", "touch", "ran"]));
    waits(&next);
    assert!(!dir.path("ran").exists());
    kill_process(sleeper, Signal::KILL).unwrap();
    assert_eq!(code(&next.end()), 0);
    assert!(dir.path("ran").exists());
    assert_highest(&dir, 8);
}

/// Waits until the process is blocked in `flock(2)`, by `/proc/PID/syscall` (proc(5)).
///
/// In a PID namespace `/proc/locks` omits a lock whose first holder has ended, and all its waiters.
fn waits(process: &Started) {
    let path = format!("/proc/{}/syscall", process.id());
    eventually("the check waits", || {
        let call = fs::read_to_string(&path).unwrap();
        let words: Vec<_> = call.split_whitespace().collect();
        let flock = libc::SYS_flock.to_string();
        matches!(words[..], [call, _, operation, ..] if call == flock && operation == "0x2")
    });
}

/// In a PID namespace, as in a container, `/proc/locks` omits a lock whose first holder has ended.
#[test]
fn command_outlives_its_check_in_a_pid_namespace() {
    let mut unshare = vec!["unshare", "--pid", "--fork", "--mount-proc"];
    if !geteuid().is_root() {
        unshare.extend(["--user", "--map-root-user"]);
    }
    let possible = done(&mut prefixed(&unshare, &Command::new("true")));
    if code(&possible) != 0 {
        let why = stderr(&possible);
        eprintln!("this user cannot create PID namespaces: checks in them are not tested: {why}");
        return;
    }
    let test = test_process("no_check_passes_while_the_command_of_another_runs");
    assert_passed(&done(&mut prefixed(&unshare, &test)));
}

#[test]
fn waiter_checks_the_file_that_replaced_the_gate() {
    let dir = TestDir::new("lease");
    let stay = ["7", "--", "sh", "-c", "echo $$ > pid; exec sleep 1000"];
    let holder = Started::new(&mut check(&dir, &stay));
    let sleeper = dir.pid();
    let next = Started::new(&mut check(&dir, &["8"]));
    waits(&next);
    fs::rename(dir.path("gate"), dir.path("moved")).unwrap();
    ends_with(&mut check(&dir, &["9"]), 0);
    kill_process(sleeper, Signal::KILL).unwrap();
    holder.end();
    assert_eq!(code(&next.end()), 78);
    fs::rename(dir.path("moved"), dir.path("gate")).unwrap();
    assert_highest(&dir, 7);
}

#[test]
fn process_that_lost_the_lock_is_rejected() {
    let dir = TestDir::new("lease");
    let write = |what: &str| {
        format!("{VERROU} fence check --file gate -- sh -c 'echo {what} > data'; echo $? > {what}")
    };
    let late = format!(
        "echo $$ > pid; until test -e go-on; do sleep 0.01; done; {}",
        write("late")
    );
    let (holder, _) = dir.start(&["--ttl", "200ms"], &late);
    // The stopped wrapper neither renews its lease nor ends its command when the lease has expired.
    holder.signal(Signal::STOP);
    stopped(holder.pid());
    let next = ["--wait", "50s"];
    ends_with(&mut dir.run(&next, &write("next")), 0);
    assert_eq!(dir.read("next"), "0\n");
    fs::write(dir.path("go-on"), "").unwrap();
    eventually("the late one has tried", || dir.read("late") == "78\n");
    assert_eq!(dir.read("data"), "next\n");
}

#[test]
fn greatest_of_concurrent_tokens_wins_and_no_smaller_one_follows() {
    const PROCESSES: u64 = 8;
    const EACH: u64 = 15;

    let dir = TestDir::new("lease");
    let worker = |number: u64| {
        // Its tokens lie between those of the others.
        let script = format!(
            "i=0; while [ $i -lt {EACH} ]; do \
               {VERROU} fence check --file gate $((i * {PROCESSES} + {number} + 1)) -- \
                 sh -c 'echo $VERROU_FENCE >> log'; \
               case $? in 0|78) ;; *) exit 1;; esac; \
               i=$((i + 1)); done"
        );
        let mut shell = Command::new("sh");
        Started::new(shell.args(["-c", &script]).current_dir(dir.path("")))
    };
    let workers: Vec<_> = (0..PROCESSES).map(worker).collect();
    for worker in workers {
        let output = worker.end();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
    let passed = dir.read("log");
    let passed: Vec<u64> = passed.lines().map(|line| line.parse().unwrap()).collect();
    assert!(passed.is_sorted_by(|one, two| one < two), "{passed:?}");
    assert_eq!(passed.last(), Some(&(PROCESSES * EACH)));
    assert_highest(&dir, PROCESSES * EACH);
}

#[test]
fn no_thread_passes_after_a_greater_one_has() {
    let dir = TestDir::new("lease");
    let (shared, own) = (gate(dir.path("gate")), || gate(dir.path("gate")));
    let passed = AtomicU64::new(0);
    let inside = AtomicU64::new(0);
    thread::scope(|scope| {
        for thread in 0..4 {
            let (shared, own, passed, inside) = (&shared, own(), &passed, &inside);
            scope.spawn(move || {
                let gate = if thread % 2 == 0 { shared } else { &own };
                for round in 0..100 {
                    let before = passed.load(Ordering::SeqCst);
                    let mine = fence(round * 4 + thread + 1);
                    match gate.check(mine) {
                        Ok(checked) => {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            assert!(mine.get() >= before, "{mine} passed after {before}");
                            assert!(checked.before() <= Some(mine));
                            passed.fetch_max(mine.get(), Ordering::SeqCst);
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                        Err(FenceError::Refused { highest, .. }) => assert!(highest > mine),
                        Err(err) => panic!("{err}"),
                    }
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 400);
}

#[test]
fn killed_check_loses_no_accepted_token() {
    let dir = TestDir::new("lease");
    let log = "echo $VERROU_FENCE >> log; sleep 0.01";
    for number in 1..=40 {
        let words = [&number.to_string(), "--", "sh", "-c", log];
        let checker = Started::new(&mut check(&dir, &words));
        // The check is killed at an arbitrary moment.
        thread::sleep(Duration::from_micros(500 * number));
        checker.signal(Signal::KILL);
        checker.end();
        let logged = dir.read("log");
        let Some(last) = logged.lines().last() else {
            continue;
        };
        let lower = last.parse::<u64>().unwrap() - 1;
        if lower > 0 {
            ends_with(&mut check(&dir, &[&lower.to_string()]), 78);
        }
    }
    ends_with(&mut check(&dir, &["100"]), 0);
    let logged = dir.read("log");
    let logged: Vec<u64> = logged.lines().map(|line| line.parse().unwrap()).collect();
    assert!(logged.is_sorted_by(|one, two| one < two), "{logged:?}");
}

#[test]
fn check_killed_at_any_system_call_leaves_one_valid_file() {
    for before in [None, Some("5")] {
        let mut call = 1;
        loop {
            let dir = TestDir::new("lease");
            if let Some(before) = before {
                ends_with(&mut check(&dir, &[before]), 0);
            }
            let kill = format!("inject=all:signal=KILL:when={call}");
            let words = ["7", "--", "sh", "-c", "echo x > ran"];
            let Some(mut killed) = traced(&check(&dir, &words), &["-e", &kill]) else {
                return;
            };
            let output = done(&mut killed);
            let is_killed = code(&output) != 0;
            // Waits for the command, if it was started.
            let output = done(&mut check(&dir, &["--wait", "50s", "--json", "6"]));
            let has_passed = code(&output) == 78;
            assert!(
                has_passed || code(&output) == 0,
                "call {call}: {}",
                stderr(&output)
            );
            if dir.path("ran").exists() {
                assert!(has_passed, "call {call}: it was written, and 6 passes");
            }
            if has_passed {
                assert_eq!(json(stdout(&output))["highest"], 7, "call {call}");
            } else if before.is_some() {
                ends_with(&mut check(&dir, &["4"]), 78);
            }
            let entries = fs::read_dir(dir.path("")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name());
            for name in names {
                let is_known = ["gate", "ran", "trace"].iter().any(|known| name == *known);
                assert!(is_known, "call {call} leaves {}", name.display());
            }
            if !is_killed {
                assert!(dir.path("ran").exists());
                break;
            }
            call += 1;
        }
        assert!(call > 30, "{call} system calls are too few to be all");
    }
}

#[test]
fn a_fence_is_on_the_disk_before_it_passes() {
    let dir = TestDir::new("lease");
    let trace = || {
        let calls = "trace=linkat,fsync,pwrite64,fdatasync,execve";
        let words = ["7", "--", "true"];
        ends_with(&mut traced(&check(&dir, &words), &["-f", "-e", calls])?, 0);
        Some(dir.read("trace"))
    };
    let Some(first) = trace() else {
        return;
    };
    let at = |trace: &str, call: &str| {
        trace
            .find(call)
            .unwrap_or_else(|| panic!("{call}: {trace}"))
    };
    let run = |trace: &str| trace.rfind("execve(").unwrap();
    assert!(at(&first, "linkat(") < at(&first, "fsync("), "{first}");
    assert!(at(&first, "fsync(") < at(&first, "pwrite64("), "{first}");
    let written = &first[at(&first, "pwrite64(")..];
    assert!(at(written, "fdatasync(") < run(written), "{first}");
    // The process that wrote the same number may have been killed before the number was on the disk.
    let second = trace().unwrap();
    assert!(
        at(&second, "pwrite64(") < at(&second, "fdatasync("),
        "{second}"
    );
    assert!(at(&second, "fdatasync(") < run(&second), "{second}");
}

#[test]
fn the_stores_counter_is_on_the_disk_before_a_fence_is_granted() {
    let dir = TestDir::new("lease");
    let run = dir.run(&[], "true");
    // The process that creates the counter is killed before the name is on the disk; the next process writes it.
    let killed = "inject=fsync:signal=KILL:error=EIO:when=1";
    let Some(mut killed) = traced(&run, &["-e", killed]) else {
        return;
    };
    done(&mut killed);
    assert!(dir.locks().join("fences").exists());
    let calls = "trace=fsync,pwrite64,fdatasync,clone,clone3,vfork";
    ends_with(&mut traced(&run, &["-e", calls]).unwrap(), 0);
    let trace = dir.read("trace");
    let at = |call: &str| {
        trace
            .find(call)
            .unwrap_or_else(|| panic!("{call}: {trace}"))
    };
    assert!(at("fsync(") < at("fdatasync("), "{trace}");
    let written = &trace[at("pwrite64(")..];
    assert!(
        written.find("fdatasync(").unwrap() < written.rfind("pwrite64(").unwrap(),
        "{trace}"
    );
}

#[test]
fn token_that_cannot_be_written_does_not_pass() {
    let dir = TestDir::new("lease");
    ends_with(&mut check(&dir, &["5"]), 0);
    for (call, error, said) in [
        ("openat", "EACCES", "ermission denied"),
        ("openat", "EROFS", "ead-only"),
        ("openat", "EMFILE", "oo many open files"),
        ("flock", "ENOLCK", "o locks available"),
        ("pread64", "EIO", "nput/output error"),
        ("pwrite64", "ENOSPC", "o space left"),
        ("pwrite64", "EDQUOT", "uota exceeded"),
        ("pwrite64", "EIO", "nput/output error"),
        ("fdatasync", "EIO", "nput/output error"),
    ] {
        let inject = format!("inject={call}:error={error}");
        // `-P` selects calls on the gate by its name in its directory, and by its path.
        let options = ["-e", &inject, "-P", "gate"];
        let refused = check(&dir, &["7", "--", "touch", "ran"]);
        let Some(mut refused) = traced(&refused, &options) else {
            return;
        };
        let output = done(&mut refused);
        let text = stderr(&output);
        assert_eq!(code(&output), 74, "{call} {error}: {text}");
        assert!(text.contains(said), "{call} {error}: {text}");
        assert!(text.contains(dir.path("gate").to_str().unwrap()), "{text}");
        assert!(!dir.path("ran").exists());
        let output = ends_with(&mut check(&dir, &["4", "--json"]), 78);
        let highest = &json(stdout(&output))["highest"];
        // The number is written, but may not be on the disk: the gate treats it as accepted.
        let expected = if call == "fdatasync" { 7 } else { 5 };
        assert_eq!(*highest, expected, "{call} {error}");
    }
}

#[test]
fn corrupt_gate_accepts_no_token() {
    let dir = TestDir::new("lease");
    let path = dir.path("gate");
    ends_with(&mut check(&dir, &["7"]), 0);
    let whole = fs::read(&path).unwrap();
    let mut corrupt: Vec<Vec<u8>> = (0..whole.len())
        .map(|length| whole[..length].to_vec())
        .collect();
    corrupt.extend((0..whole.len() * 8).map(|bit| {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        bytes
    }));
    corrupt.push([&whole[..], b"\0"].concat());
    corrupt.push(vec![0; whole.len()]);
    corrupt.push(vec![b'x'; 1 << 20]);
    // The counter of a store.
    ends_with(&mut dir.run(&[], "true"), 0);
    corrupt.push(fs::read(dir.locks().join("fences")).unwrap());

    let checked = gate(&path);
    for bytes in &corrupt {
        fs::write(&path, bytes).unwrap();
        let err = checked.check(Fence::LAST).unwrap_err();
        assert!(
            matches!(&err, FenceError::File(FileError::Gate { path: named }) if *named == path),
            "{err}"
        );
        assert_eq!(fs::read(&path).unwrap(), *bytes, "nothing is changed");
    }
    let output = ends_with(&mut check(&dir, &["9", "--", "touch", "ran"]), 74);
    let said = stderr(&output);
    assert!(said.contains(path.to_str().unwrap()), "{said}");
    assert!(said.contains("E_LOCK_STORAGE_ERROR"), "{said}");
    assert!(said.contains("move it away"), "a way out: {said}");
    assert!(!dir.path("ran").exists());
    fs::write(&path, whole).unwrap();
    assert_highest(&dir, 7);
}

/// Creates a file at a path.
type Plant<'a> = &'a dyn Fn(&Path);

#[test]
fn planted_file_in_place_of_a_gate_is_refused() {
    let dir = TestDir::new("lease");
    let victim = dir.path("victim");
    let planted: [(&str, Plant<'_>, &str); 6] = [
        (
            "a link",
            &|path| symlink(&victim, path).unwrap(),
            "not a regular file",
        ),
        (
            "a link to nothing",
            &|path| symlink("/nowhere/x", path).unwrap(),
            "not a regular file",
        ),
        (
            "a directory",
            &|path| fs::create_dir(path).unwrap(),
            "not a regular file",
        ),
        (
            "a hard link",
            &|path| fs::hard_link(&victim, path).unwrap(),
            "hard link",
        ),
        (
            "a pipe",
            &|path| mkfifoat(CWD, path, 0o600.into()).unwrap(),
            "not a regular file",
        ),
        (
            "a socket",
            &|path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()),
            "not a regular file",
        ),
    ];
    for (what, plant, why) in planted {
        fs::write(&victim, "precious").unwrap();
        let path = dir.path("gate");
        plant(&path);
        let output = ends_with(&mut check(&dir, &["7", "--", "touch", "ran"]), 74);
        let said = stderr(&output);
        assert!(said.contains(path.to_str().unwrap()), "{what}: {said}");
        assert!(said.contains(why), "{what}: {said}");
        assert_eq!(dir.read("victim"), "precious", "{what}");
        fs::remove_file(&path)
            .or_else(|_| fs::remove_dir(&path))
            .unwrap();
    }
    assert!(!dir.path("ran").exists());
}

#[test]
fn another_users_file_is_refused_unless_it_is_the_groups() {
    if !geteuid().is_root() {
        eprintln!("only root can change a file's owner: files of other users are not tested");
        return;
    }
    let dir = TestDir::new("lease");
    let path = dir.path("gate");
    ends_with(&mut check(&dir, &["7", "--group", "daemon"]), 0);
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o660);
    chown(&path, Some(4711), None).unwrap();
    ends_with(&mut check(&dir, &["8", "--group", "daemon"]), 0);
    let output = ends_with(&mut check(&dir, &["9"]), 74);
    assert!(stderr(&output).contains("user 4711"), "{}", stderr(&output));
    let output = ends_with(&mut check(&dir, &["9", "--group", "no such group"]), 73);
    assert!(stderr(&output).contains("no such group"));
}

#[test]
fn missing_or_unsafe_directory_exits_73() {
    let dir = TestDir::new("lease");
    let file = |path: &str| {
        let mut command = dir.verrou(["fence", "check", "7", "--file", path]);
        let output = ends_with(&mut command, 73);
        stderr(&output).to_owned()
    };
    assert!(file("nowhere/gate").contains("nowhere"));
    assert!(!dir.path("nowhere").exists(), "it is not made");
    for path in ["/", "..", "."] {
        assert!(file(path).contains("not a file's name"), "{path}");
    }
    assert!(file("/proc/gate").contains("unknown file system"));

    let open = dir.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    assert!(file("open/gate").contains("every user may remove files"));
    fs::set_permissions(&open, Permissions::from_mode(0o1777)).unwrap();
    ends_with(
        &mut dir.verrou(["fence", "check", "7", "--file", "open/gate"]),
        0,
    );
    if geteuid().is_root() {
        chown(&open, Some(4711), None).unwrap();
        assert!(file("open/gate").contains("user 4711"));
    }
    let err = FenceGate::open(dir.path("nowhere/gate"), &StoreOptions::default()).unwrap_err();
    assert!(matches!(err, OpenError::Directory { .. }), "{err}");
}

#[test]
fn full_disk_leaves_no_partial_file_and_read_only_disk_accepts_no_token() {
    if !geteuid().is_root() {
        eprintln!("only root can mount a small disk: full disks are not tested");
        return;
    }
    let dir = TestDir::new("lease");
    fs::create_dir(dir.path("disk")).unwrap();
    let script = format!(
        "set -u
         mount -t tmpfs -o size=64k none disk && cd disk || exit 99
         check() {{ {VERROU} fence check --file \"$@\"; echo \"$1 $2 $?\"; }}
         check old 5
         cat /dev/zero > full 2> /dev/null
         check new 5
         check old 7
         ls
         mount -o remount,ro . || exit 99
         check old 8
         check old 7
         check new 8"
    );
    let mut unshare = Command::new("unshare");
    unshare
        .args(["--mount", "sh", "-c", &script])
        .current_dir(dir.path(""));
    let output = ends_with(&mut unshare, 0);
    let said = stdout(&output);
    let expected = "old 5 0\nnew 5 74\nold 7 0\nfull\nold\nold 8 74\nold 7 74\nnew 8 74\n";
    assert_eq!(said, expected, "{}", stderr(&output));
    let errors = stderr(&output);
    for word in [
        "disk/new: cannot create",
        "No space left",
        "disk/old: cannot open",
        "Read-only",
    ] {
        assert!(errors.contains(word), "{word}: {errors}");
    }
}

#[test]
fn gate_is_found_by_a_relative_path_through_a_link() {
    // A relative path must not change its meaning with the working directory; a link in the middle of
    // the path belongs to the user.
    let dir = TestDir::new("lease");
    fs::create_dir(dir.path("real")).unwrap();
    symlink("real", dir.path("linked")).unwrap();
    ends_with(
        &mut dir.verrou(["fence", "check", "7", "--file", "linked/gate"]),
        0,
    );
    ends_with(
        &mut dir.verrou(["fence", "check", "6", "--file", "real/gate"]),
        78,
    );
}

#[test]
fn gate_is_locked_until_the_checked_token_is_dropped() {
    let dir = TestDir::new("lease");
    let path = dir.path("gate");
    let (one, other) = (gate(&path), gate(&path));
    let is_busy = |gate: &FenceGate| {
        let tried = gate.check_within(fence(9), Duration::from_millis(20));
        matches!(tried, Err(FenceError::File(FileError::Busy { .. })))
    };
    let checked = one.check(fence(7)).unwrap();
    assert_eq!(checked.before(), None);
    assert!(is_busy(&one) && is_busy(&other));
    let lifeline: File = checked.lifeline().unwrap();
    drop(checked);
    let checked = other.check_within(fence(8), Duration::ZERO).unwrap();
    assert_eq!(checked.before(), Some(fence(7)));
    drop((checked, lifeline));
    // A gate caches no number that another process may have changed.
    drop(one.check(fence(8)).unwrap());
    assert!(matches!(
        one.check(fence(7)),
        Err(FenceError::Refused { .. })
    ));
}

/// Returns the code blocks of `text` in this language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let begins = format!("```{language}\n");
    let after = text.split(&begins).skip(1);
    after.filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn example_in_security_md_works() {
    let page = include_str!("../../../SECURITY.md");
    let scripts = blocks(page, "sh");
    assert_eq!(scripts.len(), 2, "each is run here");
    let dir = TestDir::new("lease");
    let directories = [Path::new(VERROU).parent().unwrap()];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        directories
            .into_iter()
            .map(Path::to_owned)
            .chain(std::env::split_paths(&path)),
    );
    let run = |script: &str| {
        let mut shell = Command::new("sh");
        shell
            .args(["-euc", script])
            .current_dir(dir.path(""))
            .env("PATH", path.as_ref().unwrap())
            .env("VERROU_STORE", dir.store());
        ends_with(&mut shell, 0)
    };
    run(scripts[0]);
    assert!(!dir.read("report").is_empty());
    let first = fs::read(dir.path("report.fence")).unwrap();
    let output = run(scripts[1]);
    assert_eq!(stdout(&output), blocks(page, "text")[0]);
    assert!(
        stderr(&output).contains("E_FENCE_REFUSED"),
        "{}",
        stderr(&output)
    );
    assert_ne!(fs::read(dir.path("report.fence")).unwrap(), first);
}
