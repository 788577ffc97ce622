//! Stores that are used, and attacked, by several users.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{TestDir, ends_with, stderr};

/// The attacked user.
pub(crate) const ALICE: u32 = 4711;
/// The attacker.
pub(crate) const MALLORY: u32 = 4712;
/// A group, of which both may be members.
pub(crate) const GROUP: u32 = 4713;

/// Returns whether processes of other users can be started; prints that `what` is not tested if not.
pub(crate) fn has_users(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        eprintln!("only root can change its user: {what} is not tested");
    }
    is_root
}

/// Creates a test directory that all users can pass through, with the command in it.
pub(crate) fn test_dir(kind: &'static str) -> TestDir {
    let dir = TestDir::new(kind);
    set_mode(&dir.path(""), 0o755);
    copy_program(&dir.path("verrou"));
    dir
}

/// Copies the command by another process: as long as a child that another test has just started has a
/// descriptor to write the copy, it cannot be executed (`ETXTBSY`).
pub(crate) fn copy_program(path: &Path) {
    let mut copy = Command::new("cp");
    ends_with(copy.arg(env!("CARGO_BIN_EXE_verrou")).arg(path), 0);
    set_mode(path, 0o755);
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Creates a directory of this mode, owner and group.
pub(crate) fn directory(path: PathBuf, mode: u32, owner: u32, group: u32) -> PathBuf {
    fs::create_dir(&path).unwrap();
    chown(&path, Some(owner), Some(group)).unwrap();
    set_mode(&path, mode);
    path
}

/// Returns `verrou` with these arguments, as a user and a group.
pub(crate) fn verrou<I: AsRef<OsStr>>(
    dir: &TestDir,
    user: u32,
    group: u32,
    words: impl IntoIterator<Item = I>,
) -> Command {
    let mut command = Command::new(dir.path("verrou"));
    command.args(words).current_dir("/").stdin(Stdio::null());
    for variable in ["VERROU_STORE", "VERROU_LOCK", "XDG_STATE_HOME", "HOME"] {
        command.env_remove(variable);
    }
    command.uid(user).gid(group);
    command
}

/// Returns `verrou run k -- true` with the store `url`, as a user and a group.
pub(crate) fn run(dir: &TestDir, user: u32, group: u32, url: &str) -> Command {
    verrou(dir, user, group, ["run", "--store", url, "k", "--", "true"])
}

pub(crate) fn of_group(kind: &str, path: &Path) -> String {
    format!("{kind}:{}?group={GROUP}", path.display())
}

/// Asserts that the store is refused because of `path`, for a reason that contains `why`.
#[track_caller]
pub(crate) fn refused(command: &mut Command, path: &Path, why: &str) {
    let output = ends_with(command, 73);
    let said = stderr(&output);
    assert!(
        said.contains(path.to_str().unwrap()),
        "{}: {said}",
        path.display()
    );
    assert!(said.contains(why), "{why}: {said}");
}

pub(crate) fn entries(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

/// Returns the mode, the owner and the group of a file.
pub(crate) fn rights(path: &Path) -> (u32, u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.mode() & 0o7777, found.uid(), found.gid())
}

/// Returns `command`, without its user, in a process with this umask.
pub(crate) fn with_umask(umask: &str, command: &Command) -> Command {
    let script = format!("umask {umask}; exec \"$@\"");
    let mut umasked = Command::new("sh");
    umasked
        .args(["-c", &script, "sh"])
        .arg(command.get_program());
    umasked.args(command.get_args()).stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => umasked.env(name, value),
            None => umasked.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        umasked.current_dir(directory);
    }
    umasked
}
