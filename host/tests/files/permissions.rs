//! The owners and permissions of files and directories; files and directories that a store refuses.

use std::error::Error;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{CWD, mkfifoat};
use rustix::process::geteuid;
use tempfile::TempDir;
use verrou::Store;
use verrou_host::{FileError, FileLockStore, LeaseFileStore, OpenError, StoreOptions};

use crate::lock_files::{leases, locks, only_file};
use crate::store_calls::{done, granted};
use crate::{SECOND, claim, directory, file_error};

#[test]
fn refused_path_leaves_no_directory_behind() {
    let top = directory();
    let path = top.path().join("parent/with \0/store");
    let refused = LeaseFileStore::open(&path, &StoreOptions::default());
    let err = refused.unwrap_err();
    let why = err.source().expect("a reason").to_string();
    assert!(why.contains("NUL"), "{why}");
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
}

/// Creates a directory in which `plant` instead of a store creates the file of `claim`'s lock; returns both.
fn planted(plant: impl Fn(&Path)) -> (TempDir, PathBuf) {
    let directory = directory();
    granted(leases(directory.path()).acquire(&claim(1)));
    let path = only_file(directory.path(), "lease");
    fs::remove_file(&path).unwrap();
    plant(&path);
    (directory, path)
}

fn assert_refused_as_suspicious(directory: &Path, path: &Path, reason: &str) {
    let began = Instant::now();
    let err = leases(directory)
        .acquire(&claim(2))
        .expect_err("the file must not be trusted");
    assert!(began.elapsed() < 2 * SECOND, "the store must not wait");
    assert!(!err.is_temporary());
    match file_error(&err) {
        FileError::Suspicious { path: named, why } => {
            assert_eq!(named, path);
            assert!(why.contains(reason), "{why}");
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_planted_symbolic_link_is_not_followed() {
    let victim = directory();
    let victim = victim.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let (directory, path) = planted(|path| symlink(&victim, path).unwrap());
    assert_refused_as_suspicious(directory.path(), &path, "not a regular file");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn a_planted_pipe_is_not_waited_for() {
    let (directory, path) = planted(|path| mkfifoat(CWD, path, 0o600.into()).unwrap());
    assert_refused_as_suspicious(directory.path(), &path, "not a regular file");
}

#[test]
fn planted_directory_is_refused() {
    let (directory, path) = planted(|path| fs::create_dir(path).unwrap());
    assert_refused_as_suspicious(directory.path(), &path, "not a regular file");
}

#[test]
fn a_hard_link_to_another_file_is_refused() {
    let victim = directory();
    let victim = victim.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    let (directory, path) = planted(|path| fs::hard_link(&victim, path).unwrap());
    assert_refused_as_suspicious(directory.path(), &path, "hard link");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
}

#[test]
fn another_users_file_is_refused_unless_it_is_the_groups() {
    if !geteuid().is_root() {
        eprintln!("only root can change a file's owner: files of other users are not tested");
        return;
    }
    let directory = directory();
    granted(leases(directory.path()).acquire(&claim(1)));
    let path = only_file(directory.path(), "lease");
    chown(&path, Some(4711), Some(4711)).unwrap();
    assert_refused_as_suspicious(directory.path(), &path, "user 4711");

    let mut group = StoreOptions::default();
    group.group = Some("daemon".to_owned());
    let shared = directory.path().join("shared");
    let store = LeaseFileStore::open(&shared, &group).unwrap();
    granted(store.acquire(&claim(1)));
    let path = only_file(&shared, "lease");
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o660);
    assert_eq!(fs::metadata(&shared).unwrap().mode() & 0o7777, 0o2770);
    chown(&path, Some(4711), None).unwrap();
    done(store.release(&claim(1)));
}

#[test]
fn group_directory_that_all_users_may_write_is_refused() {
    if !geteuid().is_root() {
        eprintln!("only root can change a directory's group: that it is refused is not tested");
        return;
    }
    let directory = directory();
    let shared = directory.path().join("shared");
    let mut group = StoreOptions::default();
    group.group = Some("daemon".to_owned());
    granted(
        LeaseFileStore::open(&shared, &group)
            .unwrap()
            .acquire(&claim(1)),
    );
    // A file that a user outside the group creates there would belong to the group.
    fs::set_permissions(&shared, Permissions::from_mode(0o3777)).unwrap();
    let err = LeaseFileStore::open(&shared, &group).unwrap_err();
    assert!(matches!(err, OpenError::Suspicious { .. }), "{err}");
    assert!(err.to_string().contains("chmod o-w"), "{err}");
}

#[test]
fn an_unknown_group_is_named() {
    let mut options = StoreOptions::default();
    options.group = Some("no such group".to_owned());
    let err = LeaseFileStore::open(directory().path(), &options).unwrap_err();
    assert!(
        matches!(&err, OpenError::UnknownGroup { group } if group == "no such group"),
        "{err}"
    );
}

#[test]
fn directories_and_files_are_private_to_their_user() {
    let directory = directory();
    let deep = directory.path().join("a/b");
    granted(leases(&deep).acquire(&claim(1)));
    granted(locks(&deep).acquire(&claim(1)));
    assert_eq!(fs::metadata(&deep).unwrap().mode() & 0o777, 0o700);
    for entry in fs::read_dir(&deep).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn directory_that_all_users_may_write_is_refused() {
    let directory = directory();
    let open = || LeaseFileStore::open(directory.path(), &StoreOptions::default());
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(open().unwrap_err(), OpenError::Suspicious { .. }));
    fs::set_permissions(directory.path(), Permissions::from_mode(0o1777)).unwrap();
    // The user who creates the file of a lock first keeps the lock from all others.
    let err = open().unwrap_err();
    assert!(matches!(err, OpenError::Suspicious { .. }), "{err}");
    for way_out in ["directory of your own", "--group"] {
        assert!(err.to_string().contains(way_out), "{err}");
    }
    LeaseFileStore::open(directory.path().join("own"), &StoreOptions::default())
        .expect("no other user can remove that directory");
    fs::set_permissions(directory.path(), Permissions::from_mode(0o700)).unwrap();
    if geteuid().is_root() {
        chown(directory.path(), Some(4711), None).unwrap();
        let err = open().unwrap_err();
        assert!(
            err.to_string().contains("user 4711"),
            "its owner can remove files: {err}"
        );
    }
}

#[test]
fn directory_that_cannot_be_created_is_named() {
    let directory = directory();
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    for path in [file.clone(), file.join("below")] {
        let err = LeaseFileStore::open(&path, &StoreOptions::default()).unwrap_err();
        assert!(err.to_string().contains(path.to_str().unwrap()), "{err}");
    }
}

#[test]
fn unknown_file_system_is_refused_unless_overridden() {
    let proc = Path::new("/proc/self");
    if !proc.exists() {
        return;
    }
    let err = FileLockStore::open(proc, &StoreOptions::default()).unwrap_err();
    assert!(
        matches!(err, OpenError::UnsuitableFileSystem { .. }),
        "{err}"
    );
    let mut options = StoreOptions::default();
    options.any_file_system = true;
    let store = FileLockStore::open(proc, &options).expect("the option allows any file system");
    store
        .acquire(&claim(1))
        .expect_err("no file can be created there");
}

#[test]
fn parent_directories_of_a_group_store_can_be_passed_by_the_group() {
    if !geteuid().is_root() {
        eprintln!(
            "only root can change a directory's group: that the group can reach it is not tested"
        );
        return;
    }
    let directory = directory();
    let deep = directory.path().join("parent/store");
    let mut group = StoreOptions::default();
    group.group = Some("daemon".to_owned());
    LeaseFileStore::open(&deep, &group).unwrap();
    let parent = fs::metadata(directory.path().join("parent")).unwrap();
    assert_ne!(parent.mode() & 0o011, 0, "{:o}", parent.mode());
}
