//! The files of the stores, and how the stores handle changes that other programs make to them.
#![cfg(unix)]

#[path = "common/lock_files.rs"]
mod lock_files;
#[path = "common/store_calls.rs"]
mod store_calls;

use std::error::Error;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lock_files::{
    BOOT_AT, KINDS, PROCESS_AT, leases, lock_file, locks, only_file, open, rewrite, set_counter,
};
use store_calls::{done, granted, not_done, refused};
use tempfile::TempDir;
use verrou::conformance::TestClock;
use verrou::conformance::wait;
use verrou::{Acquired, Claim, Fence, Holder, Name, Renewed, Store, StoreError, Ttl};
use verrou_host::{
    Corruption, FileError, FileLockStore, HostStore, LeaseFileStore, OpenError, StoreOptions,
    Zombies,
};

const SECOND: Duration = Duration::from_secs(1);

fn directory() -> TempDir {
    tempfile::tempdir().expect("there is room for a directory")
}

fn claim(owner: u8) -> Claim {
    store_calls::claim("lock", owner)
}

fn detached(owner: u8) -> Claim {
    claim(owner).ephemeral(false)
}

/// Returns the store's own error.
fn file_error(err: &StoreError) -> &FileError {
    err.get_ref()
        .downcast_ref()
        .expect("these stores' errors are about files")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
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
fn refused_path_leaves_no_directory_behind() {
    let top = directory();
    let path = top.path().join("parent/with \0/store");
    let refused = LeaseFileStore::open(&path, &StoreOptions::default());
    let err = refused.unwrap_err();
    let why = err.source().expect("a reason").to_string();
    assert!(why.contains("NUL"), "{why}");
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0);
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
    let (directory, path) = planted(|path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
    });
    assert_refused_as_suspicious(directory.path(), &path, "not a regular file");
}

/// A pipe can be the argument of `verrou run --file`.
#[test]
fn a_pipe_is_locked_without_waiting_for_its_other_end() {
    let directory = directory();
    let pipe = directory.path().join("pipe");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, mode, 0).unwrap();
    let records = directory.path().join("records");
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        let (store, name) =
            FileLockStore::open_path(&pipe, &records, &StoreOptions::default()).unwrap();
        granted(store.acquire(&claim(1).with_name(name)));
        done.send(()).unwrap();
    });
    is_done
        .recv_timeout(10 * SECOND)
        .expect("no process opens the other end");
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
    if !is_root() {
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
    if !is_root() {
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
    if is_root() {
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
fn corrupt_file_is_never_a_free_lock() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&detached(1)));
    done(store.extend(&detached(1)));
    let path = only_file(directory.path(), "lease");
    let whole = fs::read(&path).unwrap();
    let assert_corrupt = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        for reply in [
            store.acquire(&detached(2)).map(drop),
            store.extend(&detached(1)).map(drop),
            store.release(&detached(1)).map(drop),
            store.force_release(&claim(1).name, None).map(drop),
            store.holders(&claim(1).name).map(drop),
        ] {
            let err = reply.expect_err("the file is corrupt");
            assert!(err.to_string().contains(path.to_str().unwrap()), "{err}");
            assert!(
                matches!(file_error(&err), FileError::Corrupt { .. }),
                "{err}"
            );
        }
        assert_eq!(fs::read(&path).unwrap(), bytes, "nothing was written");
    };
    for bytes in [0, 1, 511, 512, 1023, 1536, 4095] {
        assert_corrupt(&whole[..bytes]);
    }
    assert_corrupt(&[whole.clone(), vec![0]].concat());
    for at in [0, 8, 12, 16, 20, 512, 600, 1023, 1024, 1100, 1535, 2048] {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x40;
        assert_corrupt(&flipped);
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    assert_corrupt(&newer);
    fs::write(&path, &whole).unwrap();
    refused(&store.acquire(&detached(2)));
    done(store.release(&detached(1)));
}

/// In a new file, and in a file of an earlier boot, one slot alone records the grant.
#[test]
fn a_first_grant_is_not_lost_with_one_slot() {
    for kind in KINDS {
        for is_new in [true, false] {
            let directory = directory();
            let store = open(kind, directory.path());
            if !is_new {
                granted(store.acquire(&detached(1)));
                done(store.release(&detached(1)));
                let path = lock_file(kind, directory.path());
                rewrite(&path, BOOT_AT, &[0xab; 16]);
            }
            let fence = granted(open(kind, directory.path()).acquire(&detached(1)));
            let path = lock_file(kind, directory.path());
            let whole = fs::read(&path).unwrap();
            for slot in [512..1024, 1024..1536] {
                for corruption in [0, 0xff] {
                    let mut bytes = whole.clone();
                    bytes[slot.clone()].fill(corruption);
                    fs::write(&path, bytes).unwrap();
                    match open(kind, directory.path()).acquire(&detached(2)) {
                        // A kernel lock ended with its store.
                        Ok(Acquired::Granted { fence: Some(next) }) if kind == "file" => {
                            assert!(next.get() > fence);
                        }
                        Ok(Acquired::Granted { .. }) => {
                            panic!("it is held: {slot:?}, {corruption}")
                        }
                        Ok(Acquired::Busy { .. }) | Err(_) => {}
                    }
                }
            }
        }
    }
}

#[test]
fn file_of_another_lock_is_an_error() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    let path = only_file(directory.path(), "lease");
    let other = claim(1).with_name(Name::new("other").unwrap());
    granted(store.acquire(&other));
    let files = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let others = files
        .into_iter()
        .find(|file| file.to_string_lossy().contains("other"))
        .unwrap();
    fs::copy(&others, &path).unwrap();
    let err = store.acquire(&claim(2)).unwrap_err();
    let FileError::Corrupt {
        corruption: Corruption::OtherName { name },
        ..
    } = file_error(&err)
    else {
        panic!("{err}");
    };
    assert_eq!(name, "other");
}

#[test]
fn fences_grow_when_files_are_removed() {
    for kind in KINDS {
        for is_held in [true, false] {
            for witness in [None, Some("lease"), Some("file")] {
                fence_grows_after_a_removal(kind, is_held, (true, false), witness);
                fence_grows_after_a_removal(kind, is_held, (false, true), witness);
                // Without a file that records a grant: `moved_store.rs`.
                if witness.is_some() {
                    fence_grows_after_a_removal(kind, is_held, (true, true), witness);
                }
            }
        }
    }
}

/// Removes the lock's file, the counter or both, and acquires the lock. A `witness` is a lock of this kind that has a
/// later fencing token.
fn fence_grows_after_a_removal(
    kind: &str,
    is_held: bool,
    (file, counter): (bool, bool),
    witness: Option<&str>,
) {
    let what = format!("{kind}, held {is_held}, file {file}, counter {counter}, {witness:?}");
    let directory = directory();
    let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
    let mut last = granted(one.acquire(&claim(1)));
    for _ in 0..3 {
        done(one.release(&claim(1)));
        let next = granted(one.acquire(&claim(1)));
        assert!(next > last, "{what}: {next} after {last}");
        last = next;
    }
    if !is_held {
        done(one.release(&claim(1)));
    }
    let path = lock_file(kind, directory.path());
    if let Some(kind) = witness {
        let witness = detached(9).with_name(Name::new("witness").unwrap());
        granted(open(kind, directory.path()).acquire(&witness));
    }
    if file {
        fs::remove_file(path).unwrap();
    }
    if counter {
        fs::remove_file(directory.path().join("fences")).unwrap();
    }
    // A process that has the file open, or one that opens it only now.
    let next = if is_held { &two } else { &one };
    let reply = next.acquire(&claim(2));
    if is_held && !file {
        refused(&reply);
        done(one.release(&claim(1)));
        return;
    }
    let next = granted(reply);
    assert!(next > last, "{what}: {next} after {last}");
    if is_held {
        not_done(&one.extend(&claim(1)));
        not_done(&one.release(&claim(1)));
        done(two.extend(&claim(2)));
    }
}

/// Programs that restore or edit files replace a file by another one.
#[test]
fn fences_grow_when_an_older_copy_is_restored() {
    fn check<S: Store>(extension: &str, open: impl Fn(&Path) -> S) {
        let directory = directory();
        let grant = |owner| {
            let store = open(directory.path());
            let fence = granted(store.acquire(&claim(owner)));
            done(store.release(&claim(owner)));
            fence
        };
        grant(1);
        let path = only_file(directory.path(), extension);
        let copy = directory.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        let before = grant(2);
        fs::rename(&copy, &path).unwrap();
        let fence = grant(3);
        assert!(fence > before, "{extension}: {fence} after {before}");
        assert_eq!(
            grant(4),
            fence + 1,
            "{extension}: the counter is asked once"
        );
    }
    check("lease", leases);
    if cfg!(unix) {
        check("lock", locks);
    }
}

#[test]
fn restored_counter_grants_no_fence_twice() {
    let directory = directory();
    let store = leases(directory.path());
    let counter = directory.path().join("fences");
    let other = claim(1).with_name(Name::new("other").unwrap());
    granted(store.acquire(&other));
    let before = fs::read(&counter).unwrap();
    let fence = granted(store.acquire(&detached(1)));
    fs::write(&counter, before).unwrap();
    // Writes another boot ID, so that the file gets new numbers from the counter.
    let files = fs::read_dir(directory.path()).unwrap();
    let mut files = files.map(|entry| entry.unwrap().path());
    let file = files.find(|path| path.to_string_lossy().contains("/lock."));
    rewrite(&file.unwrap(), BOOT_AT, &[0xab; 16]);
    assert!(granted(store.acquire(&claim(2))) > fence);
}

#[cfg(target_os = "linux")]
#[test]
fn counter_replaced_while_it_is_waited_for_is_not_used() {
    const LAST: u64 = 1 << 60;

    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    let path = directory.path().canonicalize().unwrap().join("fences");
    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    let other = claim(2).with_name(Name::new("other").unwrap());
    thread::scope(|scope| {
        let asking = scope.spawn(|| granted_in_time(&store, &other));
        wait_until_open(&path, 2);
        let next = directory.path().join("next");
        fs::copy(&path, &next).unwrap();
        set_counter(&next, LAST);
        fs::rename(&next, &path).unwrap();
        file.unlock().unwrap();
        assert!(asking.join().unwrap() > LAST);
    });
}

/// Waits until this process has `times` descriptors of `path`.
#[cfg(target_os = "linux")]
fn wait_until_open(path: &Path, times: usize) {
    let times_open = || {
        let open = fs::read_dir("/proc/self/fd").unwrap();
        let paths = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        paths.filter(|open| open == path).count()
    };
    let began = Instant::now();
    while times_open() < times {
        assert!(began.elapsed() < 30 * SECOND, "the file must be opened");
    }
}

/// Returns the fence of a grant that may take longer than the store waits for a locked file.
#[cfg(target_os = "linux")]
fn granted_in_time(store: &dyn Store, claim: &Claim) -> u64 {
    loop {
        match store.acquire(claim) {
            Err(err) if err.is_temporary() => {}
            reply => break granted(reply),
        }
    }
}

/// The file that replaces it may have been allotted smaller fences.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_removed_while_fences_are_allotted_to_it_is_not_granted() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    let other = claim(1).with_name(Name::new("other").unwrap());
    granted(leases.acquire(&other));
    let counter = directory.path().canonicalize().unwrap().join("fences");
    for (extension, store, claim) in [
        ("lease", &leases as &(dyn Store + Sync), detached(2)),
        ("lease", &leases, claim(2)),
        ("lock", &locks, claim(2)),
    ] {
        let file = File::open(&counter).unwrap();
        file.lock().unwrap();
        thread::scope(|scope| {
            let asking = scope.spawn(|| granted_in_time(store, &claim));
            wait_until_open(&counter, 2);
            let files = fs::read_dir(directory.path()).unwrap();
            let mut paths = files.map(|entry| entry.unwrap().path());
            let path = paths.find(|path| {
                let name = path.file_name().unwrap().to_string_lossy();
                name.starts_with("lock.") && name.ends_with(extension)
            });
            fs::remove_file(path.unwrap()).unwrap();
            file.unlock().unwrap();
            asking.join().unwrap();
        });
        assert!(store.holds(&claim, None).unwrap(), "{extension}");
        done(store.release(&claim));
        for entry in fs::read_dir(directory.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.to_string_lossy().contains("/lock.") {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

/// A directory can have locks of both kinds, and has one counter for both.
#[test]
fn lost_counter_is_recreated_from_locks_of_both_kinds() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    for (extension, lost, witness) in [
        ("lease", &leases as &dyn Store, &locks as &dyn Store),
        ("lock", &locks, &leases),
    ] {
        let lost_claim = claim(1).with_name(Name::new("lost").unwrap());
        let before = granted(lost.acquire(&lost_claim));
        done(lost.release(&lost_claim));
        // The fences in the files are greater than the start by the clock.
        set_counter(&directory.path().join("fences"), before + (1 << 60));
        let before = granted(witness.acquire(&claim(2)));
        let files = fs::read_dir(directory.path()).unwrap();
        for path in files.map(|entry| entry.unwrap().path()) {
            if path.extension().is_none_or(|found| found == extension) {
                fs::remove_file(&path).unwrap();
            }
        }
        let after = granted(lost.acquire(&lost_claim));
        assert!(after > before, "{extension}: {after} after {before}");
        done(lost.release(&lost_claim));
        done(witness.release(&claim(2)));
    }
}

#[test]
fn fences_grow_without_end() {
    let directory = directory();
    for store in [
        &leases(directory.path()) as &dyn Store,
        &locks(directory.path()),
    ] {
        let mut last = 0;
        for _ in 0..2500 {
            let fence = granted(store.acquire(&claim(1)));
            assert!(fence > last);
            last = fence;
            done(store.release(&claim(1)));
        }
    }
}

#[test]
fn lease_ends_with_the_boot_and_its_fence_does_not() {
    let directory = directory();
    let store = leases(directory.path());
    let before = granted(store.acquire(&detached(1)));
    let path = only_file(directory.path(), "lease");
    let last_allotted = u64::from_le_bytes(
        fs::read(&path).unwrap()[1024 + 24..][..8]
            .try_into()
            .unwrap(),
    );
    rewrite(&path, BOOT_AT, &[0xab; 16]);
    assert_eq!(store.holders(&claim(1).name).unwrap().pop(), None);
    not_done(&store.extend(&detached(1)));
    let after = granted(store.acquire(&detached(2)));
    assert!(
        after > last_allotted,
        "grants up to there may have been lost with the power"
    );
    assert!(after > before);
}

#[test]
fn lease_of_another_time_namespace_never_counts_as_expired() {
    let directory = directory();
    let clock = TestClock::running();
    let (one, two) = (
        leases(directory.path()).with_clock(clock.clone()),
        leases(directory.path()).with_clock(clock.clone()),
    );
    let ttl = Ttl::new(SECOND).unwrap();
    granted(one.acquire(&claim(1).with_ttl(ttl)));
    let path = only_file(directory.path(), "lease");
    rewrite(&path, 64, &4711u64.to_le_bytes());
    clock.advance(2 * SECOND);
    refused(&two.acquire(&claim(2)));
    drop(one);
    granted(two.acquire(&detached(2).with_ttl(ttl)));
    rewrite(&path, 64, &4711u64.to_le_bytes());
    let err = two.acquire(&claim(3)).unwrap_err();
    assert!(
        matches!(file_error(&err), FileError::ForeignClock { .. }),
        "{err}"
    );
    done(two.force_release(&claim(1).name, None));
    granted(two.acquire(&claim(3)));
}

/// Process IDs are reused, and differ between namespaces.
#[test]
fn liveness_of_a_holder_does_not_depend_on_its_process_id() {
    let this = std::process::id();
    for kind in KINDS {
        let directory = directory();
        let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
        granted(one.acquire(&claim(1)));
        let path = lock_file(kind, directory.path());
        for id in [0, 1, this, 4_000_000, u32::MAX] {
            rewrite(&path, PROCESS_AT, &id.to_le_bytes());
            refused(&two.acquire(&claim(2)));
        }
        rewrite(&path, PROCESS_AT, &this.to_le_bytes());
        drop(one);
        granted(two.acquire(&claim(2)));
    }
}

/// POSIX locks of fcntl(2), which belong to a process, would be lost.
#[test]
fn a_lease_is_not_lost_when_its_file_is_opened_and_closed_elsewhere() {
    let directory = directory();
    let (one, two) = (leases(directory.path()), leases(directory.path()));
    granted(one.acquire(&claim(1)));
    drop(File::open(only_file(directory.path(), "lease")).unwrap());
    refused(&two.acquire(&claim(2)));
    done(one.release(&claim(1)));
}

#[test]
fn lease_whose_release_cannot_be_recorded_ends_anyway() {
    let directory = directory();
    let (one, two) = (leases(directory.path()), leases(directory.path()));
    granted(one.acquire(&claim(1)));
    let path = only_file(directory.path(), "lease");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, "corrupt").unwrap();
    one.release(&claim(1)).expect_err("the file is corrupt");
    fs::write(&path, whole).unwrap();
    granted(two.acquire(&claim(2)));
}

#[test]
fn a_zombie_is_taken_over_or_waited_for() {
    let directory = directory();
    let clock = TestClock::running();
    let open = |zombies| {
        let mut options = StoreOptions::default();
        options.zombies = zombies;
        options.label = Some("work".to_owned());
        let opened = LeaseFileStore::open(directory.path(), &options);
        opened.unwrap().with_clock(clock.clone())
    };
    let (zombie, patient, bold) = (
        open(Zombies::Take),
        open(Zombies::Wait),
        open(Zombies::Take),
    );
    let ttl = Ttl::new(SECOND).unwrap();
    let fence = granted(zombie.acquire(&claim(1).with_ttl(ttl)));
    clock.advance(SECOND);
    refused(&patient.acquire(&claim(2)));
    assert!(patient.holders(&claim(2).name).unwrap().pop().is_some());
    assert!(bold.holders(&claim(2).name).unwrap().pop().is_none());
    granted(bold.acquire(&claim(3)));
    let Holder {
        fence: taken,
        process,
        ..
    } = bold.taken_over(&claim(3)).expect("a zombie");
    assert_eq!(taken, Fence::new(fence));
    assert_eq!(process.unwrap().command, "work");
    done(bold.release(&claim(3)));
    assert_eq!(bold.taken_over(&claim(3)), None);

    granted(zombie.acquire(&claim(4).with_ttl(ttl)));
    clock.advance(SECOND);
    refused(&patient.acquire(&claim(2)));
    drop(zombie);
    granted(patient.acquire(&claim(2)));
    assert_eq!(patient.taken_over(&claim(2)), None);
    done(patient.release(&claim(2)));
}

#[test]
fn owner_takes_over_its_own_expired_lease_silently() {
    for zombies in [Zombies::Take, Zombies::Wait] {
        let directory = directory();
        let clock = TestClock::running();
        let mut options = StoreOptions::default();
        options.zombies = zombies;
        let store = LeaseFileStore::open(directory.path(), &options).unwrap();
        let store = store.with_clock(clock.clone());
        let ttl = Ttl::new(SECOND).unwrap();
        let late = granted(store.acquire(&claim(1).with_ttl(ttl)));
        clock.advance(SECOND);
        assert!(late < granted(store.acquire(&claim(1).with_ttl(ttl))));
        assert_eq!(store.taken_over(&claim(1)), None);
    }
}

#[test]
fn force_release_of_zombie_depends_on_zombie_policy() {
    let directory = directory();
    let clock = TestClock::running();
    let open = |zombies| {
        let mut options = StoreOptions::default();
        options.zombies = zombies;
        let opened = LeaseFileStore::open(directory.path(), &options);
        opened.unwrap().with_clock(clock.clone())
    };
    let (patient, bold) = (open(Zombies::Wait), open(Zombies::Take));
    let ttl = Ttl::new(SECOND).unwrap();
    let zombie = open(Zombies::Take);
    granted(zombie.acquire(&claim(1).with_ttl(ttl)));
    clock.advance(SECOND);
    refused(&patient.acquire(&claim(2)));
    not_done(&bold.force_release(&claim(1).name, None));
    // The lock is free for the store that waits for zombies.
    granted(patient.acquire(&claim(2)));
    done(patient.release(&claim(2)));

    granted(zombie.acquire(&claim(3).with_ttl(ttl)));
    clock.advance(SECOND);
    done(patient.force_release(&claim(3).name, None));
    granted(patient.acquire(&claim(2)));
}

#[test]
fn force_release_with_a_fence_affects_only_that_grant() {
    let directory = directory();
    let store = leases(directory.path());
    let seen = granted(store.acquire(&claim(1)));
    done(store.release(&claim(1)));
    let now = granted(store.acquire(&claim(2)));
    not_done(&store.force_release(&claim(1).name, Fence::new(seen)));
    done(store.force_release(&claim(1).name, Fence::new(now)));
    not_done(&store.force_release(&claim(1).name, None));
    not_done(&store.extend(&claim(2)));
    not_done(&store.release(&claim(2)));
}

#[test]
fn operation_on_a_locked_file_fails_as_busy_and_can_be_repeated() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    let file = File::open(only_file(directory.path(), "lease")).unwrap();
    file.lock().unwrap();
    let err = store.extend(&claim(1)).expect_err("the file stays locked");
    assert!(matches!(file_error(&err), FileError::Busy { .. }), "{err}");
    assert!(err.is_temporary());
    file.unlock().unwrap();
    done(store.extend(&claim(1)));
}

#[test]
fn store_and_flock_on_the_same_file_exclude_each_other() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    fs::write(&path, "precious").unwrap();
    let (store, name) =
        FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    assert_eq!(
        name.as_str(),
        path.canonicalize().unwrap().to_str().unwrap()
    );
    let claim = claim(1).with_name(name.clone());

    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    refused(&store.acquire(&claim));
    let holder = store.holders(&name).unwrap().pop().expect("a holder");
    assert_eq!(holder.fence, None);
    if cfg!(target_os = "linux") {
        assert_eq!(
            holder.process.map(|process| process.id),
            Some(std::process::id())
        );
    }
    file.unlock().unwrap();

    let first = granted(store.acquire(&claim));
    file.try_lock().expect_err("it is taken");
    done(store.release(&claim));
    file.try_lock().expect("it is free");
    file.unlock().unwrap();
    // Truncates the file, as `9>data` in a shell does before it locks.
    File::create(&path).unwrap();
    assert!(granted(store.acquire(&claim)) > first);
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "",
        "nothing is written to it"
    );
}

/// This happens if a process is stopped while it has the record's file locked, or the file system is full.
#[test]
fn kernel_lock_is_renewed_when_its_record_cannot_be_written() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let clock = TestClock::still();
    let (store, name) =
        FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    let store = store.with_clock(clock.clone());
    let claim = claim(1)
        .with_name(name.clone())
        .with_ttl(Ttl::new(SECOND).unwrap());
    granted(store.acquire(&claim));
    let guard = File::open(only_file(&records, "lock")).unwrap();
    guard.lock().unwrap();
    let err = store.extend(&claim).unwrap_err();
    assert!(matches!(file_error(&err), FileError::Busy { .. }), "{err}");
    clock.advance(2 * SECOND);
    let renewed = store.renew(&claim, None).unwrap();
    assert_eq!(renewed, Renewed::Granted);
    let left = || store.holders(&name).unwrap().pop().unwrap().remaining;
    assert_eq!(left(), Some(SECOND));
    done(store.release(&claim));
    guard.unlock().unwrap();

    granted(store.acquire(&claim));
    fs::rename(&path, path.with_extension("old")).unwrap();
    assert_eq!(store.renew(&claim, None).unwrap(), Renewed::Lost);
}

#[cfg(target_os = "linux")]
#[test]
fn holder_of_a_file_is_found_while_other_files_are_locked() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let (store, name) =
        FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    let file = File::open(&path).unwrap();
    file.lock().unwrap();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..2 {
            let other = File::create(directory.path().join(format!("other-{number}"))).unwrap();
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    other.lock().unwrap();
                    other.unlock().unwrap();
                }
            });
        }
        let process = || Some(store.holders(&name).ok()?.pop()?.process?.id);
        let seen: Vec<_> = (0..200).map(|_| process()).collect();
        over.store(true, Ordering::Relaxed);
        assert_eq!(seen, vec![Some(std::process::id()); 200]);
    });
}

#[test]
fn directory_can_be_locked_and_missing_file_is_created() {
    let directory = directory();
    let records = directory.path().join("records");
    let options = StoreOptions::default();
    let (store, name) = FileLockStore::open_path(directory.path(), &records, &options).unwrap();
    granted(store.acquire(&claim(1).with_name(name)));
    let missing = directory.path().join("missing");
    let (store, name) = FileLockStore::open_path(&missing, &records, &options).unwrap();
    granted(store.acquire(&claim(1).with_name(name)));
    assert_eq!(fs::metadata(&missing).unwrap().len(), 0);
    let nowhere = directory.path().join("no/where");
    let err = FileLockStore::open_path(&nowhere, &records, &options).unwrap_err();
    assert!(err.to_string().contains(nowhere.to_str().unwrap()), "{err}");
}

#[test]
fn watching_does_not_recreate_a_removed_file() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let open = || FileLockStore::open_path(&path, &records, &StoreOptions::default()).unwrap();
    let ((holder, name), (watcher, _)) = (open(), open());
    granted(holder.acquire(&claim(1).with_name(name.clone())));
    fs::remove_file(&path).unwrap();
    watcher.wait_until_free(&name, SECOND);
    assert!(!path.exists());
}

#[test]
fn kernel_lock_cannot_be_force_released() {
    let directory = directory();
    let (one, two) = (locks(directory.path()), locks(directory.path()));
    granted(one.acquire(&claim(1)));
    let err = two.force_release(&claim(1).name, None).unwrap_err();
    assert!(
        matches!(file_error(&err), FileError::NotEvictable { .. }),
        "{err}"
    );
    done(one.extend(&claim(1)));
    done(one.release(&claim(1)));
    not_done(&two.force_release(&claim(1).name, None));
}

#[test]
fn holder_whose_file_was_replaced_has_lost_the_lock() {
    for kind in KINDS {
        let directory = directory();
        let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
        let before = granted(one.acquire(&claim(1)));
        fs::remove_file(lock_file(kind, directory.path())).unwrap();
        not_done(&one.extend(&claim(1)));
        let after = granted(two.acquire(&claim(2)));
        assert!(after > before, "the fencing token orders the two holders");
        not_done(&one.release(&claim(1)));
        done(two.extend(&claim(2)));
    }
}

/// Removes a lock's file while a store has it open.
fn replaced_while_it_stays_open(kind: &str) {
    let directory = directory();
    let (one, two) = (open(kind, directory.path()), open(kind, directory.path()));
    granted(one.acquire(&claim(1)));
    done(one.release(&claim(1)));
    fs::remove_file(lock_file(kind, directory.path())).unwrap();
    granted(two.acquire(&claim(2)));
    refused(&one.acquire(&claim(1)));
    done(two.release(&claim(2)));
    granted(one.acquire(&claim(1)));
}

#[test]
fn a_replaced_lease_file_makes_no_second_holder() {
    replaced_while_it_stays_open("lease");
}

#[test]
fn a_replaced_lock_file_makes_no_second_holder() {
    replaced_while_it_stays_open("file");
}

/// The releasing process still has the moved file open.
#[test]
fn detached_lease_is_released_after_its_file_or_directory_was_moved() {
    let place = directory();
    let (path, moved) = (place.path().join("store"), place.path().join("moved"));
    let long_lived = leases(&path);
    let use_it = || {
        granted(long_lived.acquire(&claim(1)));
        done(long_lived.release(&claim(1)));
    };
    let hand_over = |owner| {
        let other = leases(&path);
        granted(other.acquire(&claim(owner)));
        done(other.detach(&claim(owner)));
    };
    use_it();
    fs::rename(only_file(&path, "lease"), place.path().join("lock.lease")).unwrap();
    hand_over(2);
    done(long_lived.release(&detached(2)));
    use_it();
    fs::rename(&path, moved).unwrap();
    hand_over(3);
    done(long_lived.release(&detached(3)));
    not_done(&long_lived.release(&detached(3)));
}

/// Counts in four threads under the lock, while another thread removes the lock's file whenever the lock is free.
fn count_while_files_are_removed<S: Store>(extension: &str, open: impl Fn(&Path) -> S + Sync) {
    const THREADS: u8 = 4;
    const TURNS: u32 = 250;

    let directory = directory();
    let directory = directory.path();
    let (inside, count, done) = (
        AtomicBool::new(false),
        AtomicU32::new(0),
        AtomicBool::new(false),
    );
    let take = |store: &S, owner: u8| {
        while !store
            .acquire(&claim(owner))
            .expect("the store answers")
            .is_granted()
        {
            thread::yield_now();
        }
        assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
    };
    let give = |store: &S, owner: u8| {
        inside.store(false, Ordering::SeqCst);
        store.release(&claim(owner)).expect("the store answers");
    };
    thread::scope(|scope| {
        let counting: Vec<_> = (1..=THREADS)
            .map(|owner| {
                let (open, take, give, count) = (&open, &take, &give, &count);
                scope.spawn(move || {
                    let store = open(directory);
                    for _ in 0..TURNS {
                        take(&store, owner);
                        let seen = count.load(Ordering::Relaxed);
                        thread::yield_now();
                        count.store(seen + 1, Ordering::Relaxed);
                        give(&store, owner);
                    }
                })
            })
            .collect();
        let (open, take, inside, done) = (&open, &take, &inside, &done);
        scope.spawn(move || {
            let store = open(directory);
            while !done.load(Ordering::Relaxed) {
                take(&store, 100);
                // Removing the file ends the lock.
                inside.store(false, Ordering::SeqCst);
                fs::remove_file(only_file(directory, extension)).unwrap();
                not_done(&store.release(&claim(100)));
            }
        });
        let ended: Vec<_> = counting
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(ended.iter().all(Result::is_ok));
    });
    assert_eq!(count.into_inner(), u32::from(THREADS) * TURNS);
}

#[test]
fn removing_free_lease_files_never_makes_two_holders() {
    count_while_files_are_removed("lease", leases);
}

#[test]
fn removing_free_lock_files_never_makes_two_holders() {
    count_while_files_are_removed("lock", locks);
}

#[test]
fn the_held_names_are_listed() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    let names = ["b", "a", "c"].map(|name| Name::new(name).unwrap());
    for name in &names {
        granted(leases.acquire(&claim(1).with_name(name.clone())));
    }
    done(leases.release(&claim(1).with_name(names[2].clone())));
    granted(locks.acquire(&claim(1).with_name(names[2].clone())));
    let listed = |held: Vec<Result<(Name, Holder), StoreError>>| {
        let names = held.into_iter().map(|held| held.map(|(name, _)| name));
        names.collect::<Result<Vec<_>, _>>().unwrap()
    };
    assert_eq!(
        listed(leases.list().unwrap()),
        [names[1].clone(), names[0].clone()]
    );
    assert_eq!(listed(locks.list().unwrap()), [names[2].clone()]);
}

#[test]
fn holder_of_replaced_file_leaves_the_next_record_alone() {
    let directory = directory();
    let (records, path) = (
        directory.path().join("records"),
        directory.path().join("data"),
    );
    let open = || {
        let opened = FileLockStore::open_path(&path, &records, &StoreOptions::default());
        opened.expect("the path can be locked")
    };
    let (old, name) = open();
    let claim = |owner| claim(owner).with_name(name.clone());
    granted(old.acquire(&claim(1)));
    fs::remove_file(&path).unwrap();
    let (next, _) = open();
    let mut last = granted(next.acquire(&claim(2)));
    done(next.extend(&claim(2)));
    not_done(&old.release(&claim(1)));
    drop(next); // as if its process had been killed
    let (third, _) = open();
    for _ in 0..3 {
        let fence = granted(third.acquire(&claim(3)));
        assert!(fence > last);
        last = fence;
        done(third.release(&claim(3)));
    }
}

#[test]
fn release_frees_the_lock_when_its_path_cannot_be_examined() {
    let directory = directory();
    let (there, away) = (
        directory.path().join("there"),
        directory.path().join("away"),
    );
    let store = locks(&there);
    granted(store.acquire(&claim(1)));
    fs::rename(&there, &away).unwrap();
    fs::write(&there, "not a directory").unwrap();
    // The path of a lock that was held for less than 1 ms is not examined.
    thread::sleep(Duration::from_millis(2));
    // Other processes may have recreated the directory, and acquired the lock there.
    not_done(&store.release(&claim(1)));
    fs::remove_file(&there).unwrap();
    fs::rename(&away, &there).unwrap();
    granted(locks(&there).acquire(&claim(2)));
}

#[test]
fn a_slow_counter_holds_up_no_other_name() {
    let directory = directory();
    let store = locks(directory.path());
    granted(store.acquire(&claim(1)));
    let counter = File::open(directory.path().join("fences")).unwrap();
    counter.lock().unwrap();
    let other = claim(2).with_name(Name::new("other").unwrap());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| store.acquire(&other));
        let mut operations = 0;
        while !waiting.is_finished() {
            done(store.extend(&claim(1)));
            operations += 1;
        }
        let err = waiting
            .join()
            .unwrap()
            .expect_err("the counter stays locked");
        assert!(err.is_temporary(), "{err}");
        assert!(
            operations > 1,
            "operations on another name succeed meanwhile"
        );
    });
    counter.unlock().unwrap();
    granted(store.acquire(&other));
}

#[test]
fn inspecting_a_free_lock_delays_no_acquire() {
    let directory = directory();
    let (store, watcher) = (locks(directory.path()), locks(directory.path()));
    granted(store.acquire(&claim(1)));
    done(store.release(&claim(1)));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                watcher.holders(&claim(1).name).unwrap().pop();
            }
        });
        let replies: Vec<_> = (0..1000)
            .map(|_| {
                store
                    .acquire(&claim(1))
                    .and_then(|reply| store.release(&claim(1)).map(|_| reply))
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        for reply in replies {
            granted(reply);
        }
    });
}

#[test]
fn a_bad_file_hides_no_other_from_the_list() {
    let directory = directory();
    let store = leases(directory.path());
    granted(store.acquire(&claim(1)));
    symlink("/nowhere", directory.path().join("zzz.lease")).unwrap();
    let listed = store.list().unwrap();
    let held: Vec<_> = listed
        .iter()
        .filter_map(|held| held.as_ref().ok())
        .collect();
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].0, claim(1).name);
    assert_eq!(listed.len(), 2);
}

#[test]
fn parent_directories_of_a_group_store_can_be_passed_by_the_group() {
    if !is_root() {
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

/// That clock cannot be set, and counts while the machine is suspended.
#[cfg(target_os = "linux")]
#[test]
fn system_clock_is_the_time_since_boot() {
    use rustix::time::{ClockId, clock_gettime};
    use verrou::Clock;

    let since_start = || Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap();
    let before = since_start();
    let now = verrou_host::System.now().since_start();
    assert!((before..=since_start()).contains(&now), "{now:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_program_that_is_started_inherits_no_file_of_a_store() {
    let directory = directory();
    let (leases, locks) = (leases(directory.path()), locks(directory.path()));
    granted(leases.acquire(&claim(1)));
    granted(locks.acquire(&claim(1)));
    let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output();
    let open = String::from_utf8(output.expect("ls(1) is there").stdout).unwrap();
    assert!(open.contains(" 0 -> "), "{open}");
    assert!(!open.contains(directory.path().to_str().unwrap()), "{open}");
}

/// Returns stores of both kinds, two of each, that share one clock.
#[cfg(target_os = "linux")]
fn pairs(directory: &Path, clock: &TestClock) -> [[Box<dyn Store>; 2]; 2] {
    KINDS.map(|kind| [(); 2].map(|()| lock_files::open_with(kind, directory, clock)))
}

#[cfg(target_os = "linux")]
#[test]
fn released_lock_is_reserved_for_the_head_waiter() {
    let (directory, clock) = (directory(), TestClock::still());
    for [here, there] in pairs(directory.path(), &clock) {
        let [held, first, second, newcomer] = [1, 2, 3, 4].map(claim);
        granted(here.acquire(&held));
        wait(&there, &first, Duration::ZERO);
        wait(&here, &second, Duration::ZERO);
        done(here.release(&held));
        refused(&here.acquire(&newcomer));
        refused(&here.acquire(&second));
        clock.advance(Duration::from_millis(199));
        refused(&here.acquire(&second));
        clock.advance(Duration::from_millis(1));
        refused(&here.acquire(&newcomer));
        // The head waiter does not come.
        granted(here.acquire(&second));
        done(here.release(&second));
        granted(there.acquire(&first));
    }
}

/// Processes that watch the file are notified of the change; unlocking alone changes no file.
#[cfg(target_os = "linux")]
#[test]
fn release_with_a_waiter_changes_the_file() {
    let directory = directory();
    let (here, there) = (locks(directory.path()), locks(directory.path()));
    granted(here.acquire(&claim(1)));
    let path = only_file(directory.path(), "lock");
    wait(&there, &claim(2), Duration::ZERO);
    let touch = || fs::read(&path).unwrap()[1544..1552].to_owned();
    let before = touch();
    done(here.release(&claim(1)));
    assert_ne!(touch(), before);
    granted(there.acquire(&claim(2)));
}

/// The kernel reports a write, and the end of a process, a moment before the lock is free.
#[cfg(target_os = "linux")]
#[test]
fn notified_waiter_retries_until_lock_is_free() {
    const ATTEMPTS: u32 = 10;

    let directory = directory();
    let store = locks(directory.path());
    granted(store.acquire(&claim(1)));
    done(store.release(&claim(1)));
    let path = only_file(directory.path(), "lock");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    file.lock().unwrap();
    let attempt = || {
        refused(&store.acquire(&claim(2)));
        wait(&store, &claim(2), SECOND);
    };
    // After three attempts it watches the file.
    for _ in 0..3 {
        attempt();
    }
    std::os::unix::fs::FileExt::write_all_at(&file, b"touched", 1544).unwrap();
    let began = Instant::now();
    for _ in 0..ATTEMPTS {
        attempt();
    }
    // A wait without a notification takes a quarter of a second, because programs that do not use the
    // queue may have unlocked the file.
    assert!(began.elapsed() < ATTEMPTS / 2 * SECOND / 4);
    file.unlock().unwrap();
    granted(store.acquire(&claim(2)));
}
