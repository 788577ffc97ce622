//! `verrou run --file`, beside flock(1): the file may be missing, a link, or replaced at any time.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::Command;

use common::{Place, ends_with, stderr};

/// `verrou run --file lock [options] -- sh -c script`.
fn run(place: &Place, options: &[&str], script: &str) -> Command {
    let command = ["--", "sh", "-c", script];
    let words = ["run", "--file", "lock"].iter().chain(options);
    place.verrou(words.chain(&command))
}

/// `command`, run by strace(1) with these options; nothing where that does not work.
fn traced(command: &Command, options: &[&str]) -> Option<Command> {
    let works = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status();
    if !works.is_ok_and(|status| status.success()) {
        eprintln!("strace(1) does not work here: what the kernel is asked is not shown");
        return None;
    }
    let mut strace = Command::new("strace");
    strace.args(options);
    Some(through(strace, command))
}

/// `command`, run by `program`.
fn through(mut program: Command, command: &Command) -> Command {
    program.arg(command.get_program()).args(command.get_args());
    program.current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => program.env(name, value),
            None => program.env_remove(name),
        };
    }
    program
}

/// Whether `flock --nonblock` gets the lock on `file`.
fn is_free_for_flock(place: &Place, file: &str) -> bool {
    let mut flock = Command::new("flock");
    flock.arg("--nonblock").arg(place.path(file)).arg("true");
    flock.status().expect("flock(1) is there").success()
}

#[test]
fn target_of_dangling_link_is_created_and_locked() {
    let place = Place::new("file");
    symlink("target", place.path("lock")).unwrap();
    for options in [["--no-wait"], ["--wait=1s"]] {
        let _ = fs::remove_file(place.path("target"));
        let held = "flock --nonblock target true; test $? -eq 1";
        ends_with(&mut run(&place, &options, held), 0);
        let made = fs::metadata(place.path("target")).unwrap();
        assert_eq!(made.len(), 0);
        assert_eq!(made.mode() & 0o7777, 0o600, "it is for its user alone");
        assert!(is_free_for_flock(&place, "target"));
    }
    // As flock(1) does with the same links.
    for (target, verrou, flock) in [("no/where", 73, 66), ("lock", 73, 66)] {
        fs::remove_file(place.path("lock")).unwrap();
        symlink(target, place.path("lock")).unwrap();
        let output = ends_with(&mut run(&place, &["--no-wait"], "true"), verrou);
        assert!(stderr(&output).contains("cannot open"), "{output:?}");
        let mut beside = Command::new("flock");
        beside.arg(place.path("lock")).arg("true");
        ends_with(&mut beside, flock);
    }
}

/// `fs.protected_regular` looks at calls with `O_CREAT` alone.
#[test]
fn every_open_of_the_locked_file_is_protected_by_the_kernel() {
    let place = Place::new("file");
    let log = place.path("log");
    let options = [
        "--trace=open,openat,openat2",
        "--output",
        log.to_str().unwrap(),
    ];
    for _ in 0..2 {
        let plain = run(&place, &["--no-wait"], "true");
        let Some(mut strace) = traced(&plain, &options) else {
            return;
        };
        ends_with(&mut strace, 0);
        let log = place.read("log");
        let is_locked = |line: &&str| line.contains("/lock\",") || line.contains("\"lock\",");
        let opened: Vec<_> = log.lines().filter(is_locked).collect();
        assert!(!opened.is_empty(), "{log}");
        for line in opened {
            assert!(line.contains("O_CREAT") && line.contains("0600"), "{line}");
        }
    }
}
