//! Directories and files of other users, stores that members of a group share, and umasks.
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::users::{
    ALICE, GROUP, MALLORY, directory, entries, has_users, of_group, refused, rights, run, set_mode,
    test_dir, verrou, with_umask,
};
use common::waiters::waiting;
use common::{KINDS, Started, TestDir, code, ends_with, eventually, stderr};

/// A user who is not a member of the group.
const OUTSIDER: u32 = 4321;

/// Asserts that a command fails with this exit code, and names the path.
#[track_caller]
fn fails(command: &mut Command, expected: i32, path: &Path) {
    let output = ends_with(command, expected);
    let said = stderr(&output);
    assert!(said.contains(path.to_str().unwrap()), "{said}");
}

/// Returns the only file of a lock in `directory`.
fn lock_file(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).unwrap();
    let files = files.map(|entry| entry.unwrap().path());
    let is_lock = |path: &PathBuf| {
        path.extension()
            .is_some_and(|it| it == "lease" || it == "lock")
    };
    let files: Vec<_> = files.filter(is_lock).collect();
    let [file] = &files[..] else {
        panic!("{files:?}");
    };
    file.clone()
}

#[test]
fn directory_of_another_user_is_not_used_as_a_store() {
    if !has_users("a directory of another user") {
        return;
    }
    // The mode, the owner, the group, the user, and the exit code.
    let directories: [(u32, u32, u32, u32, i32); 12] = [
        (0o700, MALLORY, MALLORY, ALICE, 73),
        (0o700, MALLORY, MALLORY, 0, 73),
        (0o755, MALLORY, MALLORY, ALICE, 73),
        // It is trusted, but no file can be created in it.
        (0o755, 0, 0, ALICE, 74),
        (0o555, ALICE, ALICE, ALICE, 74),
        (0o777, 0, 0, ALICE, 73),
        (0o777, 0, 0, 0, 73),
        (0o777, ALICE, ALICE, ALICE, 73),
        (0o1777, MALLORY, MALLORY, ALICE, 73),
        (0o1777, MALLORY, MALLORY, 0, 73),
        (0o1777, ALICE, ALICE, ALICE, 73),
        (0o775, ALICE, GROUP, ALICE, 73),
    ];
    for kind in KINDS {
        let dir = test_dir(kind);
        for (mode, owner, group, user, code) in directories {
            let name = format!("{mode:o}-{owner}-{user}");
            let locks = directory(dir.path(&name), mode, owner, group);
            let url = format!("{kind}:{}", locks.display());
            fails(&mut run(&dir, user, user, &url), code, &locks);
            assert_eq!(entries(&locks), 0, "{name}");
        }
        // A link of root is followed, and leads to such a directory.
        let private = directory(dir.path("private"), 0o700, MALLORY, MALLORY);
        symlink(&private, dir.path("link")).unwrap();
        let url = format!("{kind}:{}", dir.path("link").display());
        refused(&mut run(&dir, 0, 0, &url), &private, "user 4712");
    }
}

#[test]
fn file_outside_the_group_in_its_store_is_an_error() {
    if !has_users("another user's file in the store of a group") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let member = |user, locks: &Path, words: &[&str]| {
            let store = of_group(kind, locks);
            verrou(&dir, user, GROUP, [&["--store", &store], words].concat())
        };
        let acquire = ["run", "k", "--", "true"];
        let no_wait = ["run", "k", "--no-wait", "--", "true"];
        let show = ["show", "k"];

        // Another user's file, which does not belong to the group.
        let locks = directory(dir.path("others"), 0o2770, 0, GROUP);
        for _ in 0..2 {
            ends_with(&mut member(MALLORY, &locks, &acquire), 0);
        }
        let path = lock_file(&locks);
        assert_eq!(rights(&path), (0o660, MALLORY, GROUP));
        chown(&path, Some(MALLORY), Some(MALLORY)).unwrap();
        set_mode(&path, 0o666);
        for user in [0, ALICE] {
            for words in [&acquire[..], &no_wait, &show] {
                fails(&mut member(user, &locks, words), 74, &path);
            }
        }

        // Root's file, which the members may at most read.
        let locks = directory(dir.path("roots"), 0o2770, 0, GROUP);
        ends_with(&mut member(0, &locks, &acquire), 0);
        let path = lock_file(&locks);
        chown(&path, Some(0), Some(0)).unwrap();
        for mode in [0o600, 0o644, 0o444] {
            set_mode(&path, mode);
            for words in [&no_wait[..], &show] {
                fails(&mut member(ALICE, &locks, words), 74, &path);
            }
        }
    }
}

/// Returns `command` with this umask, as a user and a group.
fn umasked(umask: &str, command: &Command, user: u32, group: u32) -> Command {
    let mut command = with_umask(umask, command);
    if rustix::process::geteuid().is_root() {
        command.uid(user).gid(group);
    }
    command
}

/// Holds a lock by `hold`, which runs the script that it gets; starts `wait` meanwhile, which acquires the lock
/// when it is released. Both must succeed.
fn held_and_waited_for(
    dir: &TestDir,
    locks: &Path,
    hold: impl FnOnce(&str) -> Command,
    meanwhile: impl FnOnce(),
    wait: &mut Command,
) {
    // The holder has no right to create files here.
    let (end, out) = (dir.path("end"), dir.path("held"));
    let _ = fs::remove_file(&end);
    fs::write(&out, "").unwrap();
    set_mode(&out, 0o666);
    let (end_path, out_path) = (end.display(), out.display());
    let script = format!("echo held > {out_path}; until test -e {end_path}; do sleep 0.01; done");
    let holder = Started::new(&mut hold(&script));
    eventually("the lock is held", || {
        fs::read_to_string(&out).unwrap() == "held\n"
    });
    meanwhile();
    let waiter = Started::new(wait);
    eventually("the waiter waits", || waiting(locks) == 1);
    fs::write(&end, "").unwrap();
    for process in [holder, waiter] {
        let output = process.end();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
}

#[test]
fn members_of_a_group_share_locks_whatever_their_umask() {
    if !has_users("a store of a group") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let locks = dir.path("shared");
        let url = of_group(kind, &locks);
        ends_with(&mut run(&dir, 0, 0, &url), 0);
        for umask in ["022", "077", "000", "777"] {
            let name = format!("lock-{umask}");
            let by = |user, group, words: &[&str]| {
                let words = [&["--store", &url, "run", &name], words].concat();
                umasked(umask, &verrou(&dir, user, group, words), user, group)
            };
            held_and_waited_for(
                &dir,
                &locks,
                |script| by(MALLORY, GROUP, &["--", "sh", "-c", script]),
                || {
                    let mut denied = by(ALICE, GROUP, &["--no-wait", "--", "true"]);
                    fails(&mut denied, 75, Path::new(&name));
                },
                &mut by(ALICE, GROUP, &["--wait", "20s", "--", "true"]),
            );
            let outsider = common::done(&mut by(OUTSIDER, OUTSIDER, &["--", "true"]));
            assert!([73, 74].contains(&code(&outsider)), "{}", stderr(&outsider));
            assert!(stderr(&outsider).contains(locks.to_str().unwrap()));
        }
        let files = fs::read_dir(&locks).unwrap();
        let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
        for path in &files {
            let (mode, _, group) = rights(path);
            assert_eq!((mode, group), (0o660, GROUP), "{}", path.display());
        }
        // Five locks have a file each, and their waiters have a few wake pipes.
        assert!(files.len() < 64, "{}", files.len());
    }
}

#[test]
fn files_are_private_to_their_user_whatever_the_umask() {
    let own = rustix::process::geteuid().as_raw();
    let users = if has_users("the umask of another user") {
        vec![0, ALICE]
    } else {
        vec![own]
    };
    for kind in KINDS {
        let dir = test_dir(kind);
        for umask in ["000", "022", "077", "277", "777"] {
            for &user in &users {
                let title = format!("{kind}, umask {umask}, user {user}");
                let group = if user == own {
                    rustix::process::getegid().as_raw()
                } else {
                    user
                };
                let home = directory(dir.path(&format!("{umask}-{user}")), 0o755, user, group);
                let locks = home.join("a/locks");
                let url = format!("{kind}:{}", locks.display());
                let by = |words: &[&str]| {
                    let words = [&["--store", &url, "run", "k"], words].concat();
                    umasked(umask, &verrou(&dir, user, group, words), user, group)
                };
                // A user without access to the directories that it creates gets an error, until they exist.
                if ["277", "777"].contains(&umask) && user != 0 {
                    let output = common::done(&mut by(&["--", "true"]));
                    assert!([73, 74].contains(&code(&output)), "{title}: {output:?}");
                    assert!(stderr(&output).contains(home.to_str().unwrap()), "{title}");
                    if home.join("a").exists() {
                        set_mode(&home.join("a"), 0o700);
                        fs::remove_dir_all(home.join("a")).unwrap();
                    }
                    directory(home.join("a"), 0o700, user, group);
                    directory(locks.clone(), 0o700, user, group);
                }
                held_and_waited_for(
                    &dir,
                    &locks,
                    |script| by(&["--", "sh", "-c", script]),
                    || {},
                    &mut by(&["--wait", "20s", "--", "true"]),
                );
                let (mode, ..) = rights(&locks);
                assert!(mode.trailing_zeros() >= 6, "{title}: {mode:o}");
                for entry in fs::read_dir(&locks).unwrap() {
                    let path = entry.unwrap().path();
                    assert_eq!(rights(&path).0, 0o600, "{title}: {}", path.display());
                }
                // The lock, the fence counter, and two wake pipes.
                assert!(entries(&locks) <= 4, "{title}");
            }
        }
    }
}
