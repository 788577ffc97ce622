//! Attacks by other users on the files of a store, and on the store's users.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, makedev, mknodat};
use verrou::{Claim, Store};

use crate::child_process::{self, Ended, Running, as_user};
use crate::results::{Findings, Setting};
use crate::store_call::{
    BoxedStore, Kind, Outcome, claim, fast_directory, ignore_absent, leave, wait, with_time_limit,
};

/// The user who plants files.
const ATTACKER: u32 = 1234;

/// The user of the store, besides root.
const USER: u32 = 65534;

/// The group that shares a store with both users.
const GROUP: u32 = 4242;

/// The time within which every operation without a wait returns.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Returns whether programs can run as other users, and records it if not.
fn can_switch_users(findings: &mut Findings, what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        findings.not_done(format!(
            "{what}: only root can start programs as other users"
        ));
    }
    is_root
}

/// Creates a directory of this mode, which root owns.
fn directory(setting: &Setting, name: &str, mode: u32) -> Result<PathBuf> {
    let directory = setting.directory.join(name);
    fs::create_dir(&directory)?;
    fs::set_permissions(&directory, Permissions::from_mode(mode))?;
    Ok(directory)
}

/// Returns a `verrou` command with a store, run by `user`.
fn verrou(program: &Path, kind: Kind, directory: &Path, user: u32, words: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["--store", &kind.url(directory)]).args(words);
    command.current_dir("/").stdin(Stdio::null());
    as_user(&mut command, user, user);
    command
}

/// Creates a directory that a group shares.
fn shared_directory(setting: &Setting, name: &str) -> Result<PathBuf> {
    let directory = directory(setting, name, 0o700)?;
    share(&directory)?;
    Ok(directory)
}

fn share(directory: &Path) -> Result<()> {
    chown(directory, None, Some(GROUP))?;
    Ok(fs::set_permissions(
        directory,
        Permissions::from_mode(0o2770),
    )?)
}

/// Returns a `verrou` command with a store that the group shares, run by `user`, a member.
fn verrou_of_group(
    program: &Path,
    kind: Kind,
    directory: &Path,
    user: u32,
    words: &[&str],
) -> Command {
    let mut command = Command::new(program);
    let store = format!("{}?group={GROUP}", kind.url(directory));
    command.args(["--store", &store]).args(words);
    command.current_dir("/").stdin(Stdio::null());
    as_user(&mut command, user, GROUP);
    command
}

/// Checks that a program ended soon, with one of `codes`, and named `path` if it failed.
fn check_end(findings: &mut Findings, what: &str, ended: &Ended, codes: &[i32], path: &Path) {
    let code = ended.code().unwrap_or(-1);
    let is_named = code == 0 || ended.err.contains(&*path.to_string_lossy());
    findings.check(!ended.is_abnormal() && ended.took < TIME_LIMIT, || {
        format!(
            "{what}: {code} after {:?}: {}",
            ended.took,
            ended.err.trim_end()
        )
    });
    findings.check(codes.contains(&code) && is_named, || {
        format!(
            "{what}: exit code {code} (expected one of {codes:?}, and {} in the error): {}",
            path.display(),
            ended.err.trim_end()
        )
    });
}

/// The objects that are planted in place of a file.
const PLANTS: [&str; 11] = [
    "a symbolic link to a file",
    "a symbolic link to nowhere",
    "a symbolic link to a directory",
    "a symbolic link to a device",
    "a hard link",
    "a pipe",
    "a socket",
    "a device",
    "a directory",
    "an empty file",
    "a valid file",
];

/// Plants one of [`PLANTS`] at `path`.
fn plant(what: &str, path: &Path, victim: &Path, right: &[u8]) -> Result<()> {
    let nowhere = victim.with_file_name("nowhere");
    match what {
        "a symbolic link to a file" => symlink(victim, path)?,
        "a symbolic link to nowhere" => symlink(nowhere, path)?,
        "a symbolic link to a directory" => symlink(
            victim.parent().context("the file has a parent directory")?,
            path,
        )?,
        "a symbolic link to a device" => symlink("/dev/zero", path)?,
        "a hard link" => fs::hard_link(victim, path)?,
        "a pipe" => mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o666), 0)?,
        "a socket" => drop(UnixListener::bind(path)?),
        "a device" => {
            let mode = Mode::from_raw_mode(0o666);
            mknodat(CWD, path, FileType::CharacterDevice, mode, makedev(1, 5))?;
        }
        "a directory" => fs::create_dir(path)?,
        "an empty file" => fs::write(path, "")?,
        _ => fs::write(path, right)?,
    }
    if what != "a hard link" {
        lchown(path, Some(ATTACKER), Some(ATTACKER))?;
        if fs::symlink_metadata(path)?.is_file() {
            // The file must not be refused only because of its permissions.
            fs::set_permissions(path, Permissions::from_mode(0o666))?;
        }
    }
    Ok(())
}

/// Plants files in a directory in which members of a group may create files.
pub(super) fn planted(setting: &Setting, findings: &mut Findings) -> Result<()> {
    if !can_switch_users(findings, "files planted by another user") {
        return Ok(());
    }
    let program = child_process::verrou(&setting.directory)?;
    let safe = directory(setting, "safe", 0o755)?;
    let victim = safe.join("victim");
    let mut number = 0;
    for kind in Kind::BOTH {
        let scratch = tempfile::tempdir_in(&setting.directory)?;
        let store = kind.open(scratch.path())?;
        let wanted = claim("lock", 1)?;
        Outcome::by(|| store.acquire(&wanted)).granted()?;
        drop(store);
        let file = kind.only_file(scratch.path())?;
        let counter = scratch.path().join("fences");
        for right in [&file, &counter] {
            let name = right.file_name().context("a name")?;
            for what in PLANTS {
                for user in [0, USER] {
                    number += 1;
                    let shared = shared_directory(setting, &format!("planted-{number}"))?;
                    fs::write(&victim, "precious")?;
                    chown(&victim, Some(user), Some(user))?;
                    let path = shared.join(name);
                    plant(what, &path, &victim, &fs::read(right)?)?;
                    let before = fs::symlink_metadata(&path)?;
                    let words = ["run", "lock", "--wait", "2s", "--", "true"];
                    let mut command = verrou_of_group(&program, kind, &shared, user, &words);
                    let ended = Running::start(&mut command)?.end()?;
                    let place = format!("{what} in place of {} for user {user}", path.display());
                    check_end(findings, &place, &ended, &[74], &path);
                    let after = fs::symlink_metadata(&path)?;
                    let is_kept = before.ino() == after.ino()
                        && before.mode() == after.mode()
                        && before.len() == after.len()
                        && fs::read(&victim)? == b"precious"
                        && fs::read_dir(&safe)?.count() == 1;
                    findings.check(is_kept, || {
                        format!("{place}: it, or its target, was changed")
                    });
                    findings.count("files planted", 1);
                }
            }
        }
        // The store does not create temporary files under predictable names.
        for user in [0, USER] {
            number += 1;
            let shared = shared_directory(setting, &format!("planted-{number}"))?;
            fs::write(&victim, "precious")?;
            for right in [&file, &counter] {
                let name = right.file_name().context("a name")?.to_string_lossy();
                for guess in [
                    format!("{name}.tmp"),
                    format!(".{name}.tmp"),
                    format!("{name}.new"),
                    format!("{name}~"),
                    format!("{name}.bak"),
                    format!(".{name}.swp"),
                ] {
                    let path = shared.join(guess);
                    symlink(&victim, &path)?;
                    lchown(&path, Some(ATTACKER), Some(ATTACKER))?;
                    findings.count("files planted", 1);
                }
            }
            let words = ["run", "lock", "--wait", "2s", "--", "true"];
            let mut command = verrou_of_group(&program, kind, &shared, user, &words);
            let ended = Running::start(&mut command)?.end()?;
            check_end(findings, "planted temporary files", &ended, &[0], &shared);
            let is_kept = fs::read(&victim)? == b"precious";
            findings.check(is_kept, || {
                "a planted temporary file was followed".to_owned()
            });
        }
    }
    Ok(())
}

/// Plants objects in place of all wake pipes: waiters must still acquire the lock.
pub(super) fn planted_wake_pipes(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const WAKE_PIPES: usize = 4096;

    if !can_switch_users(findings, "wake pipes planted by another user") {
        return Ok(());
    }
    let program = child_process::verrou(&setting.directory)?;
    let safe = directory(setting, "safe-of-wake-pipes", 0o755)?;
    let victim = safe.join("victim");
    fs::write(&victim, "precious")?;
    let mut longest = Duration::ZERO;
    for what in [
        "a symbolic link to a file",
        "a symbolic link to nowhere",
        "a symbolic link to a device",
        "a pipe",
        "a socket",
        "a directory",
        "a valid file",
    ] {
        for (kind, user) in [(Kind::Lease, 0), (Kind::File, USER)] {
            let shared = fast_directory(setting)?;
            let shared = shared.path();
            share(shared)?;
            for number in 0..WAKE_PIPES {
                let path = shared.join(format!("{number:04}.bell"));
                if number == 0 || what == "a directory" {
                    plant(what, &path, &victim, b"")?;
                } else {
                    fs::hard_link(shared.join("0000.bell"), path)?;
                }
            }
            let hold = ["run", "lock", "--", "sh", "-c", "echo held; sleep 0.1"];
            let mut holder =
                Running::start(&mut verrou_of_group(&program, kind, shared, user, &hold))?;
            holder.wait_for_output("held")?;
            let words = ["run", "lock", "--wait", "20s", "--", "true"];
            let wait = || verrou_of_group(&program, kind, shared, user, &words);
            let waits = (0..2).map(|_| Running::start(&mut wait()));
            let waits = waits.collect::<Result<Vec<_>>>()?;
            let ended = holder.end()?;
            check_end(
                findings,
                &format!("{what} in place of all wake pipes"),
                &ended,
                &[0],
                shared,
            );
            let began = Instant::now();
            for wait in waits {
                let ended = wait.end()?;
                check_end(
                    findings,
                    &format!("{what} in place of all wake pipes"),
                    &ended,
                    &[0],
                    shared,
                );
            }
            longest = longest.max(began.elapsed());
            findings.check(fs::read(&victim)? == b"precious", || {
                format!("{what} in place of all wake pipes: its target was written")
            });
            findings.check(fs::read_dir(&safe)?.count() == 1, || {
                format!("{what} in place of all wake pipes: a file was created at its target")
            });
            findings.count("wake pipes planted", WAKE_PIPES as u64);
        }
    }
    findings.figure(
        "longest time until two waiters were done without wake pipes",
        format!("{} ms", longest.as_millis()),
    );
    Ok(())
}

/// Tests directories and files that belong to other users, or are writable for all.
pub(super) fn other_users(setting: &Setting, findings: &mut Findings) -> Result<()> {
    if !can_switch_users(findings, "stores of other users") {
        return Ok(());
    }
    let program = child_process::verrou(&setting.directory)?;
    let words = ["run", "lock", "--no-wait", "--", "true"];
    let acquire = ["run", "lock", "--", "true"];
    for kind in Kind::BOTH {
        // The mode, the owner, the user, and the exit code.
        let directories: [(u32, u32, u32, i32); 14] = [
            (0o700, ATTACKER, USER, 73),
            (0o700, ATTACKER, 0, 73),
            (0o755, ATTACKER, USER, 73),
            (0o755, 0, USER, 74),
            (0o555, USER, USER, 74),
            (0o777, 0, USER, 73),
            (0o777, 0, 0, 73),
            (0o777, USER, USER, 73),
            (0o1777, ATTACKER, USER, 73),
            (0o1777, ATTACKER, 0, 73),
            (0o1777, 0, USER, 73),
            (0o1777, 0, 0, 73),
            (0o1777, USER, USER, 73),
            (0o775, USER, USER, 73),
        ];
        for (mode, owner, user, code) in directories {
            let name = format!("of-{kind}-{mode:o}-{owner}-{user}");
            let place = directory(setting, &name, mode)?;
            chown(&place, Some(owner), Some(owner))?;
            let ended = Running::start(&mut verrou(&program, kind, &place, user, &words))?.end()?;
            let what = format!(
                "a directory of mode {mode:o} of user {owner}, used by user {user} ({kind})"
            );
            check_end(findings, &what, &ended, &[code], &place);
            let found = fs::read_dir(&place)?.count();
            findings.check(code == 0 || found == 0, || {
                format!("{what}: {found} files were created")
            });
            findings.count("directories of others", 1);
        }
        // Another user's file, which does not belong to the group.
        let shared = shared_directory(setting, &format!("of-others-{kind}"))?;
        let in_group = |directory: &Path, user, words: &[&str]| {
            Running::start(&mut verrou_of_group(&program, kind, directory, user, words))?.end()
        };
        for _ in 0..2 {
            let ended = in_group(&shared, ATTACKER, &acquire)?;
            check_end(findings, "a group's store", &ended, &[0], &shared);
        }
        let path = kind.only_file(&shared)?;
        let is_private = fs::metadata(&path)?.mode() & 0o7777 == 0o660;
        findings.check(is_private, || {
            format!("{}: readable for others", path.display())
        });
        chown(&path, Some(ATTACKER), Some(ATTACKER))?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        for user in [0, USER] {
            for words in [&words[..], &["show", "lock"], &acquire[..]] {
                let ended = in_group(&shared, user, words)?;
                let what = format!("another user's file ({kind})");
                check_end(findings, &what, &ended, &[74], &path);
                findings.count("files of others", 1);
            }
        }
        // Root's files, which users may at most read.
        let roots = shared_directory(setting, &format!("roots-{kind}"))?;
        let ended = in_group(&roots, 0, &acquire)?;
        check_end(findings, "root's store", &ended, &[0], &roots);
        let path = kind.only_file(&roots)?;
        chown(&path, Some(0), Some(0))?;
        for mode in [0o600, 0o644, 0o444] {
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            for words in [&words[..], &["show", "lock"]] {
                let ended = in_group(&roots, USER, words)?;
                let what = format!("root's file ({kind})");
                check_end(findings, &what, &ended, &[74], &path);
                findings.count("files of others", 1);
            }
        }
        // The rules apply to the target of a symbolic link.
        let private = directory(setting, &format!("private-{kind}"), 0o700)?;
        chown(&private, Some(ATTACKER), Some(ATTACKER))?;
        let link = setting.directory.join(format!("link-{kind}"));
        symlink(&private, &link)?;
        let ended = Running::start(&mut verrou(&program, kind, &link, 0, &words))?.end()?;
        check_end(
            findings,
            "a symbolic link to another user's directory",
            &ended,
            &[73],
            &private,
        );
    }
    Ok(())
}

/// Tests stores that a group shares.
pub(super) fn group_stores(setting: &Setting, findings: &mut Findings) -> Result<()> {
    if !can_switch_users(findings, "stores of groups") {
        return Ok(());
    }
    let Ok(Some(group)) = nix::unistd::Group::from_name("daemon") else {
        findings.not_done("stores of groups: there is no group `daemon`");
        return Ok(());
    };
    let members = group.gid.as_raw();
    let program = child_process::verrou(&setting.directory)?;
    let as_member = |kind: Kind, place: &Path, user: u32, group: u32, umask: &str, words: &str| {
        let mut command = Command::new("sh");
        let script = format!(
            "umask {umask}; exec {} --group daemon --store {} {words}",
            program.display(),
            kind.url(place)
        );
        command
            .args(["-c", &script])
            .current_dir("/")
            .stdin(Stdio::null());
        as_user(&mut command, user, group);
        Running::start(&mut command)
    };
    for kind in Kind::BOTH {
        let place = setting.directory.join(format!("group-{kind}"));
        let ended = as_member(kind, &place, 0, 0, "022", "run lock -- true")?.end()?;
        check_end(findings, "a store made for a group", &ended, &[0], &place);
        // One member holds the lock, and another waits, with any umask.
        for umask in ["022", "077", "000", "777"] {
            let name = format!("lock-{umask}");
            let mut holder = as_member(
                kind,
                &place,
                ATTACKER,
                members,
                umask,
                &format!("run {name} -- sh -c 'echo held; sleep 0.1'"),
            )?;
            holder.wait_for_output("held")?;
            let denied = as_member(
                kind,
                &place,
                USER,
                members,
                umask,
                &format!("run {name} --no-wait -- true"),
            )?
            .end()?;
            check_end(
                findings,
                "a lock that another member holds",
                &denied,
                &[75],
                Path::new(&name),
            );
            let waiter = as_member(
                kind,
                &place,
                USER,
                members,
                umask,
                &format!("run {name} --wait 20s -- true"),
            )?;
            check_end(findings, "a member as holder", &holder.end()?, &[0], &place);
            let ended = waiter.end()?;
            check_end(findings, "a member as waiter", &ended, &[0], &place);
            let outsider = as_member(
                kind,
                &place,
                4321,
                4321,
                umask,
                &format!("run {name} -- true"),
            )?
            .end()?;
            check_end(
                findings,
                "a group's store for an outsider",
                &outsider,
                &[73, 74],
                &place,
            );
            findings.count("umasks in a group", 1);
        }
        check_group_files(findings, &place, members)?;
        file_of_outsider(setting, findings, kind, &place, &|words| {
            as_member(kind, &place, USER, members, "022", words)
        })?;
        findings.count("files planted", 1);
    }
    Ok(())
}

/// Checks that all files are accessible only to the group, and that there are few of them.
fn check_group_files(findings: &mut Findings, place: &Path, members: u32) -> Result<()> {
    let entries = fs::read_dir(place)?.collect::<Result<Vec<_>, _>>()?;
    for entry in &entries {
        let metadata = entry.metadata()?;
        let is_right = metadata.mode() & 0o7777 == 0o660 && metadata.gid() == members;
        findings.check(is_right, || {
            format!(
                "{}: mode {:o}, group {}",
                entry.path().display(),
                metadata.mode(),
                metadata.gid()
            )
        });
    }
    findings.check(entries.len() < 64, || {
        format!("{}: {} files of 5 locks", place.display(), entries.len())
    });
    Ok(())
}

/// Tests a directory in which outsiders may create files, which then belong to the group: such
/// files are not trusted.
fn file_of_outsider(
    setting: &Setting,
    findings: &mut Findings,
    kind: Kind,
    place: &Path,
    as_member: &dyn Fn(&str) -> Result<Running>,
) -> Result<()> {
    let path = kind.path_of("planted", place, &setting.directory)?;
    let scratch = tempfile::tempdir_in(&setting.directory)?;
    let store = kind.open(scratch.path())?;
    let planted = claim("planted", 1)?;
    Outcome::by(|| store.acquire(&planted)).granted()?;
    let right = kind.only_file(scratch.path())?;
    fs::set_permissions(place, Permissions::from_mode(0o3777))?;
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
    fs::set_permissions(&right, Permissions::from_mode(0o644))?;
    let mut copy = Command::new("sh");
    let script = format!("umask 0; cat {} > {}", right.display(), path.display());
    copy.args(["-c", &script]);
    ensure!(
        child_process::run(as_user(&mut copy, 4321, 4321))?.code() == Some(0),
        "an outsider cannot create a file in a directory that is writable for all"
    );
    let ended = as_member("run planted --no-wait -- true")?;
    let ended = ended.end()?;
    findings.check(matches!(ended.code(), Some(73 | 74)), || {
        format!(
            "{}: an outsider's file in a group's directory is trusted: {:?} {}",
            path.display(),
            ended.code(),
            ended.err.trim_end()
        )
    });
    Ok(())
}

/// Tests that the umask of a process does not matter.
pub(super) fn umasks(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let program = child_process::verrou(&setting.directory)?;
    let users: &[u32] = if can_switch_users(findings, "umasks of other users") {
        &[0, USER]
    } else {
        &[0]
    };
    for kind in Kind::BOTH {
        for umask in ["000", "022", "077", "277", "777"] {
            for &user in users {
                let parent = directory(setting, &format!("umask-{kind}-{umask}-{user}"), 0o755)?;
                chown(&parent, Some(user), Some(user))?;
                let place = parent.join("a/locks");
                let start = |words: &str| {
                    let mut command = Command::new("sh");
                    let script = format!(
                        "umask {umask}; exec {} --store {} {words}",
                        program.display(),
                        kind.url(&place)
                    );
                    command
                        .args(["-c", &script])
                        .current_dir("/")
                        .stdin(Stdio::null());
                    Running::start(as_user(&mut command, user, user))
                };
                let what = format!("umask {umask} of user {user} ({kind})");
                let mut holder = start("run lock -- sh -c 'echo held; sleep 0.1'")?;
                // A user without access to the directories that it creates gets an error, until
                // they exist.
                if ["277", "777"].contains(&umask) && user != 0 {
                    let ended = holder.end()?;
                    check_end(findings, &what, &ended, &[73, 74], &parent);
                    fs::remove_dir_all(parent.join("a")).or_else(ignore_absent)?;
                    fs::create_dir_all(&place)?;
                    for made in [&parent.join("a"), &place] {
                        fs::set_permissions(made, Permissions::from_mode(0o700))?;
                        chown(made, Some(user), Some(user))?;
                    }
                    holder = start("run lock -- sh -c 'echo held; sleep 0.1'")?;
                }
                holder
                    .wait_for_output("held")
                    .with_context(|| what.clone())?;
                let waiter = start("run lock --wait 20s -- true")?;
                check_end(findings, &what, &holder.end()?, &[0], &place);
                check_end(findings, &what, &waiter.end()?, &[0], &place);
                let mode = fs::metadata(&place)?.mode() & 0o7777;
                findings.check(mode.trailing_zeros() >= 6, || {
                    format!("{what}: mode {mode:o} of the directory")
                });
                let entries = fs::read_dir(&place)?.collect::<Result<Vec<_>, _>>()?;
                for entry in &entries {
                    let mode = entry.metadata()?.mode() & 0o7777;
                    findings.check(mode == 0o600, || {
                        format!("{what}: mode {mode:o} of {}", entry.path().display())
                    });
                }
                findings.check(entries.len() <= 4, || {
                    format!("{what}: {} files of one lock", entries.len())
                });
                findings.count("umasks", 1);
            }
        }
    }
    Ok(())
}

/// Tests a process that keeps a lock file locked all the time.
pub(super) fn locked_files(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for kind in Kind::BOTH {
        for is_held in [true, false] {
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let (store, other) = (kind.open(directory.path())?, kind.open(directory.path())?);
            let (mine, wanted) = (claim("lock", 1)?, claim("lock", 2)?);
            Outcome::by(|| store.acquire(&mine)).granted()?;
            let path = kind.only_file(directory.path())?;
            let file = File::options().read(true).write(true).open(&path)?;
            let lock = |operation| flock(&file, operation).is_ok();
            let mut kept: Vec<(&str, bool)> = Vec::new();
            if !is_held {
                Outcome::by(|| store.release(&mine)).granted()?;
            }
            let operations = |how: &str, findings: &mut Findings| {
                check_each_operation(
                    findings,
                    &*store,
                    &other,
                    (&mine, &wanted),
                    &path,
                    is_held,
                    how,
                );
            };
            if kind == Kind::Lease || !is_held {
                kept.push((
                    "locked exclusively",
                    lock(FlockOperation::NonBlockingLockExclusive),
                ));
                operations("kept locked", findings);
                lock(FlockOperation::Unlock);
            }
            if kind == Kind::Lease || !is_held {
                kept.push((
                    "locked in shared mode",
                    lock(FlockOperation::NonBlockingLockShared),
                ));
                operations("kept locked in shared mode", findings);
                lock(FlockOperation::Unlock);
            }
            for (how, is_locked) in kept {
                ensure!(is_locked, "{} cannot be {how}", path.display());
            }
            // Byte ranges that contain the store's own bytes.
            for (start, length) in [(0, 1 << 40), (1 << 40, 0), ((1 << 62) + (1 << 61), 0)] {
                let bytes = |kind: i32| {
                    anyhow::Ok(libc::flock {
                        l_type: kind.try_into()?,
                        l_whence: libc::SEEK_SET.try_into()?,
                        l_start: start,
                        l_len: length,
                        l_pid: 0,
                    })
                };
                let locked = fcntl(&file, FcntlArg::F_OFD_SETLK(&bytes(libc::F_WRLCK)?));
                if locked.is_err() {
                    // The holder has locked one of these bytes.
                    continue;
                }
                operations(&format!("with its bytes from {start:#x} locked"), findings);
                fcntl(&file, FcntlArg::F_OFD_SETLK(&bytes(libc::F_UNLCK)?))?;
            }
            if is_held {
                let outcome = Outcome::by(|| store.extend(&mine));
                findings.check(matches!(outcome, Outcome::Granted(_)), || {
                    format!("{}: extend by its holder: {outcome:?}", path.display())
                });
            }
            // The fence counter, which the first grant of a name needs.
            let counter = directory.path().join("fences");
            let file = File::open(&counter)?;
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            let began = Instant::now();
            let new = claim("new", 3)?;
            let outcome = Outcome::by(|| other.acquire(&new));
            let is_right = matches!(&outcome, Outcome::Error(text) if text.contains(&*counter.to_string_lossy()));
            findings.check(is_right && began.elapsed() < TIME_LIMIT, || {
                format!(
                    "a locked fence counter: acquire: {outcome:?} after {:?}",
                    began.elapsed()
                )
            });
            flock(&file, FlockOperation::Unlock)?;
            Outcome::by(|| other.acquire(&new)).granted()?;
        }
    }
    Ok(())
}

/// Runs every operation while another process locks the file: each returns soon, with a reply or
/// with an error that names the file.
fn check_each_operation(
    findings: &mut Findings,
    store: &dyn Store,
    other: &BoxedStore,
    (mine, wanted): (&Claim, &Claim),
    path: &Path,
    is_held: bool,
    how: &str,
) {
    let operations: [(&str, &dyn Fn() -> Outcome); 6] = [
        ("acquire", &|| Outcome::by(|| other.acquire(wanted))),
        ("extend", &|| Outcome::by(|| store.extend(mine))),
        ("inspect", &|| {
            Outcome::by(|| other.holders(&mine.name).map(|_| false))
        }),
        ("force-release", &|| {
            Outcome::by(|| other.force_release(&mine.name, verrou::Fence::new(u64::MAX)))
        }),
        ("wait", &|| {
            Outcome::by(|| {
                wait(other, wanted, Duration::from_millis(5));
                Ok(false)
            })
        }),
        ("end a wait", &|| {
            Outcome::by(|| {
                leave(other, wanted);
                other.release(wanted)
            })
        }),
    ];
    for (operation, ask) in operations {
        let began = Instant::now();
        let outcome = with_time_limit(&format!("{} {how}: {operation}", path.display()), ask);
        let took = began.elapsed();
        let is_right = match &outcome {
            Outcome::Granted(_) => operation != "acquire" || !is_held,
            Outcome::Refused => true,
            Outcome::Error(text) => {
                text.contains(&*path.to_string_lossy()) || text.contains("`lock`")
            }
            Outcome::Panicked(_) => false,
        };
        findings.check(is_right && took < TIME_LIMIT, || {
            format!(
                "{} {how}: {operation}: {outcome:?} after {took:?}",
                path.display()
            )
        });
        findings.count("operations on locked files", 1);
    }
}
