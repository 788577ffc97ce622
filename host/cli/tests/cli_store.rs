//! The command's choice of a store, the files that it creates, and the lock of `--file`.
#![cfg(target_os = "linux")]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{KINDS, Started, TestDir, code, done, ends_with, json, lock_files, stderr, stdout};

/// A directory that no user can create.
const NOWHERE: &str = "/proc/nowhere";

/// Returns the command `verrou run --file path [options] -- sh -c script`.
fn run_file(dir: &TestDir, path: &OsStr, options: &[&str], script: &str) -> Command {
    let mut words: Vec<OsString> = vec!["run".into(), "--file".into(), path.into()];
    words.extend(options.iter().map(OsString::from));
    words.extend(["--", "sh", "-c", script].map(OsString::from));
    dir.verrou(words)
}

/// Returns whether `flock -n path true` finds the file locked.
fn is_flocked(dir: &TestDir, path: &OsStr) -> bool {
    let mut flock = Command::new("flock");
    flock.arg("-n").arg(dir.path("").join(path)).arg("true");
    code(&done(&mut flock)) == 1
}

#[test]
fn commands_that_only_inspect_create_nothing_and_name_the_store() {
    let dir = TestDir::new("lease");
    let missing = format!("there is no store {}", dir.store());
    let lock = ends_with(
        &mut TestDir::new("lease").verrou(["acquire", "k", "--ttl", "1h"]),
        0,
    );
    let lock = stdout(&lock).trim_end();
    for (words, exit) in [
        (&["show", "k"][..], 0),
        (&["list"], 0),
        (&["list", "--json"], 0),
        (&["force-release", "k"], 0),
        (&["force-release", "k", "--json"], 0),
        (&["force-release", "k", "--fence", "7"], 77),
        (&["extend", lock], 77),
        (&["release", lock], 77),
    ] {
        let output = ends_with(&mut dir.verrou(words), exit);
        let said = format!("{}{}", stdout(&output), stderr(&output));
        assert!(said.contains(&missing), "{words:?} printed {said}");
        assert!(!dir.locks().exists(), "{words:?} created the store");
    }
    let output = ends_with(&mut dir.verrou(["show", "k", "--json"]), 0);
    assert_eq!(json(stdout(&output))["store"], dir.store());
    assert_eq!(json(stdout(&output))["held"], false);
    assert!(!dir.locks().exists());

    ends_with(&mut dir.run(&[], "true"), 0);
    let output = ends_with(&mut dir.verrou(["show", "k"]), 0);
    let free = format!("the lock `k` is free in {}\n", dir.store());
    assert_eq!(stdout(&output), free);
    let output = ends_with(&mut dir.verrou(["list"]), 0);
    let none = format!("verrou: no lock is held in {}\n", dir.store());
    assert_eq!(stderr(&output), none);
}

#[test]
fn store_url_is_printed() {
    let dir = TestDir::new("file");
    let output = ends_with(&mut dir.verrou(["store"]), 0);
    assert_eq!(stdout(&output), format!("{}\n", dir.store()));
    let output = ends_with(&mut dir.verrou(["store", "--json"]), 0);
    assert_eq!(json(stdout(&output))["store"], dir.store());

    let output = ends_with(&mut dir.verrou(["--store", "lease:here", "store"]), 0);
    let here = format!("lease:{}\n", dir.path("here").display());
    assert_eq!(stdout(&output), here, "the same from any directory");

    let mut by_default = dir.verrou(["store"]);
    let output = ends_with(by_default.env_remove("VERROU_STORE"), 0);
    let by_default = format!("lease:{}\n", dir.path("state/verrou").display());
    assert_eq!(stdout(&output), by_default);
    assert!(!dir.locks().exists() && !dir.path("state").exists());
}

#[test]
fn error_of_the_default_store_names_the_alternatives() {
    let dir = TestDir::new("lease");
    for words in [
        &["run", "k", "--", "true"][..],
        &["acquire", "k"],
        &["serve"],
    ] {
        let mut verrou = dir.verrou(words);
        verrou.env("XDG_STATE_HOME", NOWHERE);
        let output = ends_with(verrou.env_remove("VERROU_STORE"), 73);
        for way in ["default store", "--store", "VERROU_STORE", "XDG_STATE_HOME"] {
            assert!(
                stderr(&output).contains(way),
                "{words:?}: {}",
                stderr(&output)
            );
        }
    }
    let named = format!("lease:{NOWHERE}");
    let mut verrou = dir.verrou(["run", "k", "--", "true"]);
    let output = ends_with(verrou.env("VERROU_STORE", named), 73);
    assert!(!stderr(&output).contains("default store"));
}

/// A system user has no home directory.
#[test]
fn file_is_locked_without_a_directory_for_records() {
    let dir = TestDir::new("lease");
    let file = OsStr::new("app.lock");
    let script = "echo ${VERROU_FENCE-no fence}; flock -n app.lock true; echo $?";
    let mut run = run_file(&dir, file, &[], script);
    let output = ends_with(run.env("XDG_STATE_HOME", NOWHERE), 0);
    assert_eq!(stdout(&output), "no fence\n1\n");
    for part in ["without a fencing token", NOWHERE, "--store"] {
        assert!(stderr(&output).contains(part), "{}", stderr(&output));
    }
    assert!(!is_flocked(&dir, file));
    let mut run = run_file(&dir, file, &["--json"], "true");
    let output = ends_with(run.env("XDG_STATE_HOME", NOWHERE), 0);
    assert!(json(stderr(&output))["warning"].is_string());

    // A process with a record and a process without one exclude each other, in both orders.
    for (holder, waiter) in [("state", NOWHERE), (NOWHERE, "state")] {
        let _ = fs::remove_file(dir.path("pid"));
        let place_of = |state: &str| dir.path("").join(state);
        let script = "echo $$ > pid; exec sleep 1000";
        let mut run = run_file(&dir, file, &[], script);
        let holder = Started::new(run.env("XDG_STATE_HOME", place_of(holder)));
        let sleeper = dir.pid();
        let mut run = run_file(&dir, file, &["--no-wait"], "true");
        let output = ends_with(run.env("XDG_STATE_HOME", place_of(waiter)), 75);
        assert!(stderr(&output).contains("held by"), "{}", stderr(&output));
        let mut run = run_file(&dir, file, &["--wait", "1m"], "true");
        let waiter = Started::new(run.env("XDG_STATE_HOME", place_of(waiter)));
        rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
        assert_eq!(code(&holder.end()), 128 + 9);
        assert_eq!(code(&waiter.end()), 0);
    }

    // An explicit group, and a file that cannot be locked, are errors.
    let mut run = run_file(&dir, file, &["--group", "no such group"], "true");
    ends_with(run.env("XDG_STATE_HOME", NOWHERE), 73);
    let mut run = run_file(&dir, OsStr::new("no/such/directory"), &[], "true");
    ends_with(run.env("XDG_STATE_HOME", NOWHERE), 73);
}

#[test]
fn explicit_store_has_the_records_of_file_locks() {
    let dir = TestDir::new("lease");
    let records = format!("lease:{}", dir.path("records").display());
    let file = OsStr::new("app.lock");
    let fences: Vec<u64> = (0..2)
        .map(|_| {
            let script = "echo $VERROU_FENCE";
            let mut run = run_file(&dir, file, &["--store", &records], script);
            let output = ends_with(run.env("XDG_STATE_HOME", NOWHERE), 0);
            assert_eq!(stderr(&output), "");
            stdout(&output).trim_end().parse().unwrap()
        })
        .collect();
    assert!(fences[0] < fences[1], "{fences:?}");
    assert!(dir.path("records").exists() && !dir.path("state").exists());

    let mut run = run_file(&dir, file, &["--store", "lease:/proc/nowhere"], "true");
    ends_with(&mut run, 73);
}

#[test]
fn command_under_a_file_finds_the_store_of_the_environment() {
    let dir = TestDir::new("lease");
    let file = OsStr::new("app.lock");
    // Relative to this directory, but not to the command's.
    for store in [dir.store(), "lease:locks".to_owned()] {
        let script = "cd / && \"$0\" store";
        let mut run = run_file(&dir, file, &[], script);
        run.arg(env!("CARGO_BIN_EXE_verrou"));
        let output = ends_with(run.env("VERROU_STORE", store), 0);
        assert_eq!(stdout(&output), format!("{}\n", dir.store()));
    }
    // A variable that is not set or invalid is left as it is.
    let show = "echo \"${VERROU_STORE-unset}\"";
    let mut run = run_file(&dir, file, &[], show);
    let output = ends_with(run.env_remove("VERROU_STORE"), 0);
    assert_eq!(stdout(&output), "unset\n");
    let mut run = run_file(&dir, file, &[], show);
    let output = ends_with(run.env("VERROU_STORE", "nonsense"), 0);
    assert_eq!(stdout(&output), "nonsense\n");
}

#[test]
fn file_whose_path_is_not_unicode_can_be_locked() {
    let dir = TestDir::new("lease");
    for (path, name) in [
        (&b"caf\xe9"[..], Some("caf%E9")),
        (b"100%\xff\xfe", Some("100%25%FF%FE")),
        (b"caf%E9", None),
    ] {
        let file = OsStr::from_bytes(path);
        let mut run = run_file(&dir, file, &[], "printf %s \"$VERROU_NAME\"");
        let output = ends_with(&mut run, 0);
        let directory = dir.path("").canonicalize().unwrap();
        let expected = match name {
            Some(name) => format!("bytes:{}/{name}", directory.display()),
            None => directory.join(file).display().to_string(),
        };
        assert_eq!(stdout(&output), expected);
        fs::remove_file(dir.path("pid")).ok();
        let script = "echo $$ > pid; exec sleep 1000";
        let holder = Started::new(&mut run_file(&dir, file, &[], script));
        dir.pid();
        assert!(is_flocked(&dir, file));
        ends_with(&mut run_file(&dir, file, &["--no-wait"], "true"), 75);
        let mut show: Vec<OsString> = vec!["show".into(), "--file".into()];
        show.push(file.into());
        let output = ends_with(&mut dir.verrou(show), 0);
        assert!(stdout(&output).contains("held by process"), "{output:?}");
        drop(holder);
    }
}

#[test]
fn holder_of_a_file_is_shown() {
    let dir = TestDir::new("lease");
    let show = || ends_with(&mut dir.verrou(["show", "--file", "app.lock"]), 0);
    assert_eq!(
        stdout(&show()),
        "`app.lock` is free: there is no such file\n"
    );
    assert!(!dir.path("app.lock").exists() && !dir.path("state").exists());

    // The holder is flock(1), which keeps no record.
    let mut flock = Command::new("flock");
    flock.args(["app.lock", "sh", "-c", "echo $$ > pid; exec sleep 1000"]);
    let flock = Started::new(flock.current_dir(dir.path("")));
    let sleeper = dir.pid();
    assert!(stdout(&show()).contains("`app.lock` is held by process"));
    rustix::process::kill_process(sleeper, rustix::process::Signal::KILL).unwrap();
    flock.end();
    assert_eq!(stdout(&show()), "`app.lock` is free\n");
    assert!(!dir.path("state").exists(), "`show` creates no records");

    fs::remove_file(dir.path("pid")).unwrap();
    let script = "echo $$ > pid; exec sleep 1000";
    let holder = Started::new(&mut run_file(&dir, OsStr::new("app.lock"), &[], script));
    dir.pid();
    let shown = show();
    assert!(stdout(&shown).contains("(sh)"), "{shown:?}");
    assert!(stdout(&shown).contains("fence 1"), "{shown:?}");
    let shown = ends_with(&mut dir.verrou(["show", "--json", "--file", "app.lock"]), 0);
    assert_eq!(json(stdout(&shown))["process"]["id"], holder.id());
    ends_with(&mut dir.verrou(["show", "k", "--file", "app.lock"]), 64);
}

/// Returns the name, or the number as text, and the number of this process's group.
fn own_group() -> (String, u32) {
    let number = rustix::process::getegid().as_raw();
    let name = done(Command::new("id").arg("-gn"));
    (stdout(&name).trim_end().to_owned(), number)
}

/// Returns the mode and the group of the file at `path`.
fn shared_with(path: &std::path::Path) -> (u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.gid())
}

#[test]
fn a_group_can_be_named_in_the_url_and_by_number() {
    let (name, number) = own_group();
    for kind in KINDS {
        for (group, url) in [(&name, false), (&name, true), (&number.to_string(), true)] {
            let dir = TestDir::new(kind);
            let shared = format!("{}?group={group}", dir.store());
            let mut words = vec!["run", "k"];
            if url {
                words.extend(["--store", &shared]);
            } else {
                words.extend(["--group", group]);
            }
            words.extend(["--", "sh", "-c", "echo $VERROU_STORE"]);
            let output = ends_with(&mut dir.verrou(words), 0);
            assert_eq!(
                stdout(&output).trim_end(),
                shared,
                "the group is passed to the command"
            );
            assert_eq!(shared_with(&dir.locks()), (0o2770, number));
            assert_eq!(shared_with(&lock_files(&dir.locks())[0]), (0o660, number));
        }
    }
    let dir = TestDir::new("lease");
    for group in ["no such group", "", "4294967296", "-1"] {
        let shared = format!("{}?group={group}", dir.store());
        let output = ends_with(
            &mut dir.verrou(["--store", &shared, "run", "k", "--", "true"]),
            73,
        );
        assert!(
            stderr(&output).contains(&format!("no group `{group}`")),
            "{output:?}"
        );
    }
    assert!(!dir.locks().exists());
}

#[test]
fn omitted_group_option_keeps_the_group() {
    let (name, number) = own_group();
    for kind in KINDS {
        let dir = TestDir::new(kind);
        ends_with(&mut dir.run(&["--group", &name], "true"), 0);
        ends_with(&mut dir.verrou(["run", "other", "--", "true"]), 0);
        let files = lock_files(&dir.locks());
        assert_eq!(files.len(), 2);
        for file in &files {
            assert_eq!(shared_with(file), (0o660, number), "{}", file.display());
        }
        assert_eq!(shared_with(&dir.locks().join("fences")), (0o660, number));

        // The records of `--file` have the group, too.
        let file = OsStr::new("app.lock");
        let store = dir.store();
        ends_with(&mut run_file(&dir, file, &["--store", &store], "true"), 0);
        assert_eq!(shared_with(&dir.locks().join("paths")), (0o2770, number));

        // A directory that was not made for a group stays private to this user.
        let dir = TestDir::new(kind);
        ends_with(&mut dir.run(&[], "true"), 0);
        assert_eq!(shared_with(&lock_files(&dir.locks())[0]).0, 0o600);
    }
}

#[test]
fn command_extends_lock_whose_file_another_member_owns() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can change a file's owner: files of other members are not tested");
        return;
    }
    let dir = TestDir::new("lease");
    let member = Some(12_345);
    ends_with(&mut dir.run(&["--group", "daemon"], "true"), 0);
    // Another member of the group owns the lock's file.
    std::os::unix::fs::chown(&lock_files(&dir.locks())[0], member, None).unwrap();
    let script = "\"$0\" extend";
    let program = dir.verrou::<&str>([]).get_program().to_owned();
    let mut run = dir.verrou(["run", "k", "--group", "daemon", "--", "sh", "-c", script]);
    ends_with(run.arg(program), 0);

    // A set-group-ID directory of another user is not trusted.
    std::os::unix::fs::chown(dir.locks(), member, None).unwrap();
    let output = ends_with(&mut dir.run(&[], "true"), 73);
    assert!(stderr(&output).contains("12345"), "{output:?}");
    ends_with(&mut dir.run(&["--group", "daemon"], "true"), 0);
}
