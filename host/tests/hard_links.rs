//! The files of `wasi:` stores, as `FORMAT.md` of `verrou-hard-links` specifies them, and the processes that use them.
#![cfg(unix)]

#[path = "common/mod.rs"]
mod common;
#[path = "common/namespaces.rs"]
mod namespaces;
mod places;
#[path = "common/store_calls.rs"]
mod store_calls;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::{Started, assert_passed, eventually, test_process};
use namespaces::{DIRECTORY, in_namespaces};
use store_calls::{done, granted, not_done, refused};
use tempfile::TempDir;
use verrou::blocking::LockFactory;
use verrou::conformance::TestClock;
use verrou::{Acquired, Claim, Fence, Name, Renewed, Retry, Store, StoreError, Ttl};
use verrou_host::{FileError, HardLinkStore, HostStore, OpenError, StoreOptions, System, Zombies};

const TTL: Duration = Duration::from_secs(10);

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(directory: &Path) -> HardLinkStore {
    HardLinkStore::open(directory, &StoreOptions::default()).unwrap()
}

fn claim(owner: u8) -> Claim {
    store_calls::claim("lock", owner).with_ttl(Ttl::new(TTL).unwrap())
}

/// Returns the directory of the only lock in a store's directory.
fn lock_directory(directory: &Path) -> PathBuf {
    let mut found = entries(directory);
    found.retain(|name| name.contains(".states"));
    let [name] = &*found else {
        panic!("{found:?}");
    };
    directory.join(name)
}

/// Returns the names in a directory, in their order.
fn entries(directory: &Path) -> Vec<String> {
    let names = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn state(number: u64) -> String {
    format!("{number:019}.state")
}

/// Makes a store whose lock `lock` has the state `golden` of the directory `golden`, for that clock's time.
fn with_golden(golden: &str, number: u64) -> (TempDir, HardLinkStore, TestClock) {
    let golden_files = Path::new(env!("CARGO_MANIFEST_DIR")).join("hard-links/tests/golden");
    let directory = directory();
    let lock = "lock.bqbqlbuul7sqjnqe5tboq5odr3.states";
    fs::create_dir(directory.path().join(lock)).unwrap();
    let to = directory.path().join(lock).join(state(number));
    fs::copy(golden_files.join(golden), to).unwrap();
    fs::copy(golden_files.join("store"), directory.path().join("store")).unwrap();
    let clock = TestClock::still();
    let store = open(directory.path()).with_clock(clock.clone());
    (directory, store, clock)
}

#[test]
fn files_of_version_1_are_read() {
    let name = Name::new("lock").unwrap();
    let fence = Fence::new(1_806_225_408_000_007);

    let (_directory, store, clock) = with_golden("held.state", 42);
    let holders = store.holders(&name).unwrap();
    let [holder] = &*holders else {
        panic!("{holders:?}");
    };
    assert_eq!((holder.fence, holder.remaining), (fence, Some(TTL)));
    assert_eq!(holder.since, Some(Duration::from_hours(489_970)));
    let process = holder.process.as_ref().unwrap();
    assert_eq!(process.to_string(), "process 4711 on web1 (back%up)");
    let listed = store.list().unwrap().remove(0).unwrap();
    assert_eq!((listed.0, &listed.1), (name.clone(), holder));
    done(store.extend(&claim(1)));
    clock.advance(TTL);
    assert_eq!(granted(store.acquire(&claim(2))), fence.unwrap().get() + 1);
    let earlier = Fence::new(1_806_225_408_000_005);
    assert_eq!(store.renew(&claim(9), earlier).unwrap(), Renewed::Released);

    // The same file under the next number is a release.
    let (_directory, store, _) = with_golden("held.state", 43);
    assert_eq!(store.holders(&name).unwrap(), []);
    assert_eq!(store.renew(&claim(1), fence).unwrap(), Renewed::Released);
    assert_eq!(granted(store.acquire(&claim(2))), fence.unwrap().get() + 1);

    let (_directory, store, clock) = with_golden("never.state", 42);
    clock.advance(Duration::from_hours(24 * 365));
    assert_eq!(store.holders(&name).unwrap()[0].remaining, None);
    done(store.release(&claim(1)));

    for (golden, renewed) in [
        ("released.state", Renewed::Released),
        ("force-released.state", Renewed::Lost),
    ] {
        let (_directory, store, _) = with_golden(golden, 42);
        assert_eq!(store.holders(&name).unwrap(), [], "{golden}");
        assert_eq!(store.renew(&claim(1), fence).unwrap(), renewed, "{golden}");
        assert_eq!(granted(store.acquire(&claim(2))), fence.unwrap().get() + 1);
    }
}

#[test]
fn fences_grow_by_one_and_few_files_are_left() {
    let directory = directory();
    let store = open(directory.path());
    let first = granted(store.acquire(&claim(1)));
    for grants in 1..50 {
        done(store.extend(&claim(1)));
        if grants % 3 == 0 {
            done(store.force_release(&claim(1).name, None));
        } else {
            done(store.release(&claim(1)));
        }
        assert_eq!(granted(store.acquire(&claim(1))), first + grants);
        let left = entries(&lock_directory(directory.path()));
        assert!(left.len() <= 3, "{left:?}");
    }
    assert_eq!(entries(directory.path()).len(), 2, "`store` and the lock");

    // A lock whose directory was removed begins with a greater fencing token.
    fs::remove_dir_all(lock_directory(directory.path())).unwrap();
    assert!(granted(store.acquire(&claim(1))) > first + 50);
}

#[test]
fn draft_of_a_crashed_process_is_deleted() {
    let directory = directory();
    let store = open(directory.path());
    granted(store.acquire(&claim(1)));
    let lock = lock_directory(directory.path());
    for base in [0, 1] {
        let draft = format!("{base:019}.0123456789abcdef0123456789abcdef.draft");
        fs::write(lock.join(draft), "torn").unwrap();
    }
    done(store.extend(&claim(1)));
    done(store.extend(&claim(1)));
    assert_eq!(entries(&lock), [state(2), state(3)]);
}

/// Asserts that no operation takes the lock for a free one, and that each error contains `path` and `why`.
#[track_caller]
fn assert_fails(store: &HardLinkStore, path: &Path, why: &str) {
    let fence = Fence::new(1);
    for reply in [
        store.acquire(&claim(2)).map(drop),
        store.extend(&claim(1)).map(drop),
        store.renew(&claim(1), fence).map(drop),
        store.release(&claim(1)).map(drop),
        store.force_release(&claim(1).name, None).map(drop),
        store.holders(&claim(1).name).map(drop),
        store.holds(&claim(1), fence).map(drop),
        store.list().unwrap().remove(0).map(drop),
    ] {
        let err = reply.expect_err("the file is not a state");
        let text = err.to_string();
        assert!(!err.is_temporary(), "{text}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        assert!(text.contains(why), "{text}");
    }
}

#[test]
fn corrupt_or_foreign_file_is_never_a_free_lock() {
    let directory = directory();
    let store = open(directory.path());
    granted(store.acquire(&claim(1)));
    done(store.extend(&claim(1)));
    let lock = lock_directory(directory.path());
    let path = lock.join(state(2));
    let whole = fs::read_to_string(&path).unwrap();

    let move_away = "if nothing holds its lock, move its directory away";
    for bytes in [0, 1, 40, whole.len() - 1] {
        fs::write(&path, &whole[..bytes]).unwrap();
        assert_fails(&store, &path, move_away);
    }
    fs::write(&path, whole.replace("state held", "state gone")).unwrap();
    assert_fails(&store, &path, "checksum");
    fs::write(&path, whole.replacen("state 1", "state 2", 1)).unwrap();
    assert_fails(&store, &path, "newer version");
    fs::write(&path, vec![b'x'; 100_000]).unwrap();
    assert_fails(&store, &path, move_away);
    fs::write(&path, &whole).unwrap();

    // A copy in the place of another state.
    let later = lock.join(state(4));
    fs::copy(&path, &later).unwrap();
    assert_fails(&store, &later, "in the place of another state");
    fs::remove_file(later).unwrap();

    for foreign in ["notes.txt", "1.state", "0000000000000000001.draft"] {
        let planted = lock.join(foreign);
        fs::write(&planted, "").unwrap();
        assert_fails(
            &store,
            &planted,
            "does not belong to the store; move it away",
        );
        fs::remove_file(planted).unwrap();
    }
    // Files of file systems, such as those that NFS makes, are no foreign ones.
    fs::write(lock.join(".nfs000000000000001"), "").unwrap();
    refused(&store.acquire(&claim(2)));
    done(store.extend(&claim(1)));
    done(store.release(&claim(1)));
}

#[test]
fn state_of_another_lock_is_refused() {
    let directory = directory();
    let store = open(directory.path());
    granted(store.acquire(&claim(1)));
    let lock = lock_directory(directory.path());
    let other = store_calls::claim("other", 1);
    granted(store.acquire(&other));
    let theirs = directory.path().join(
        entries(directory.path())
            .into_iter()
            .find(|name| name.starts_with("other."))
            .unwrap(),
    );
    fs::copy(lock.join(state(1)), theirs.join(state(1))).unwrap();
    let err = store.acquire(&other).unwrap_err();
    assert!(err.to_string().contains("state of another lock"), "{err}");
    let listed = store.list().unwrap();
    assert!(listed[0].is_err() && listed[1].is_ok(), "{listed:?}");
}

#[test]
fn planted_links_directories_and_pipes_are_refused() {
    let directory = directory();
    let elsewhere = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    granted(store.acquire(&claim(1)));
    let lock = lock_directory(directory.path());
    let (path, whole) = (lock.join(state(1)), elsewhere.path().join("whole"));
    fs::rename(&path, &whole).unwrap();

    let why = "not a regular file";
    symlink(&whole, &path).unwrap();
    assert_fails(&store, &path, why);
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_fails(&store, &path, why);
    fs::remove_dir(&path).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    assert_fails(&store, &path, why);
    fs::remove_file(&path).unwrap();
    fs::rename(&whole, &path).unwrap();
    refused(&store.acquire(&claim(2)));

    // The directory of a lock.
    let moved = elsewhere.path().join("moved");
    fs::rename(&lock, &moved).unwrap();
    symlink(&moved, &lock).unwrap();
    assert_fails(&store, &lock, "it is a link");
    fs::remove_file(&lock).unwrap();
    fs::write(&lock, "").unwrap();
    let err = store.acquire(&claim(2)).unwrap_err();
    assert!(err.to_string().contains(lock.to_str().unwrap()), "{err}");
    fs::remove_file(&lock).unwrap();
    fs::rename(&moved, &lock).unwrap();

    // Every user may write it.
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o777)).unwrap();
    assert_fails(&store, &lock, "every user may remove files from it");
    fs::set_permissions(&lock, fs::Permissions::from_mode(0o755)).unwrap();
    done(store.release(&claim(1)));
}

#[test]
fn directory_of_another_version_is_refused() {
    for text in ["", "verrou hard links 2\nskew-milliseconds 0\n", "skew 5"] {
        let directory = directory();
        let settings = directory.path().join("store");
        fs::write(&settings, text).unwrap();
        let opened = HardLinkStore::open(directory.path(), &StoreOptions::default());
        let err = opened.unwrap_err();
        assert!(
            matches!(&err, OpenError::File(FileError::State { path, .. }) if *path == settings),
            "{err}"
        );
        assert_eq!(fs::read_to_string(settings).unwrap(), text);
    }
}

#[test]
fn probe_of_a_crashed_process_is_deleted() {
    let directory = directory();
    open(directory.path());
    fs::hard_link(
        directory.path().join("store"),
        directory.path().join("probe"),
    )
    .unwrap();
    open(directory.path());
    assert_eq!(entries(directory.path()), ["store"]);
}

#[test]
fn zombies_cannot_be_waited_for() {
    let directory = directory();
    let mut options = StoreOptions::default();
    options.zombies = Zombies::Wait;
    let err = HardLinkStore::open(directory.path(), &options).unwrap_err();
    assert!(err.to_string().contains("use a `lease:` store"), "{err}");
}

#[test]
fn allowance_keeps_an_expired_lease_from_others() {
    let directory = directory();
    let settings = "verrou hard links 1\nskew-milliseconds 1500\n";
    fs::write(directory.path().join("store"), settings).unwrap();
    let clock = TestClock::still();
    let store = open(directory.path()).with_clock(clock.clone());
    let ahead = open(directory.path());
    let their_clock = TestClock::still();
    let ahead = ahead.with_clock(their_clock.clone());
    their_clock.advance(Duration::from_millis(1499));

    granted(store.acquire(&claim(1)));
    let pass = |time| {
        clock.advance(time);
        their_clock.advance(time);
    };
    pass(TTL.checked_sub(Duration::from_millis(1)).unwrap());
    // Their clock is past the end of the lease.
    refused(&ahead.acquire(&claim(2)));
    done(store.extend(&claim(1)));
    pass(TTL);
    not_done(&store.extend(&claim(1)));
    let remaining = Some(Duration::from_millis(1));
    assert_eq!(
        ahead.acquire(&claim(2)).unwrap(),
        Acquired::Busy { remaining }
    );
    pass(Duration::from_millis(1));
    granted(ahead.acquire(&claim(2)));
    assert_eq!(store.renew(&claim(1), None).unwrap(), Renewed::Lost);
}

#[test]
fn files_are_for_their_user_alone() {
    let directory = directory();
    let path = directory.path().join("store");
    let store = open(&path);
    granted(store.acquire(&claim(1)));
    let lock = lock_directory(&path);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&path), 0o700);
    assert_eq!(mode(&lock), 0o700);
    assert_eq!(mode(&path.join("store")), 0o600);
    assert_eq!(mode(&lock.join(state(1))), 0o600);
}

/// The names of the environment variables of [`contender`].
const STORE: &str = "HARD_LINKS_STORE";
const LOG: &str = "HARD_LINKS_LOG";

const THREADS: usize = 3;
const GRANTS: usize = 5;

/// A process that contends for a lock with several threads; not a test.
#[test]
#[ignore = "this is the process that another test starts"]
fn contender() {
    let store = open(Path::new(&env::var_os(STORE).unwrap()));
    let log = env::var_os(LOG).unwrap();
    let retry = Retry::FOR_EVER.delay(Duration::from_millis(2)).unwrap();
    let locks = LockFactory::new(&store, System).retry(retry);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let lock = locks.create_lock("contended", "1m").unwrap();
                for _ in 0..GRANTS {
                    lock.run(|held| {
                        let fence = held.fence().unwrap();
                        let mut log = File::options()
                            .append(true)
                            .create(true)
                            .open(&log)
                            .unwrap();
                        writeln!(log, "begin {fence}").unwrap();
                        thread::yield_now();
                        writeln!(log, "end {fence}").unwrap();
                    })
                    .unwrap();
                }
            });
        }
    });
}

#[test]
fn threads_of_several_processes_exclude_each_other() {
    const PROCESSES: usize = 4;

    let directory = directory();
    let log = directory.path().join("log");
    let processes = [(); PROCESSES].map(|()| {
        let mut process = test_process("contender");
        process.arg("--ignored");
        process
            .env(STORE, directory.path().join("locks"))
            .env(LOG, &log);
        Started::new(&mut process)
    });
    for process in processes {
        assert_passed(&process.end());
    }
    let log = fs::read_to_string(log).unwrap();
    let lines: Vec<_> = log.lines().collect();
    let first: u64 = lines[0].strip_prefix("begin ").unwrap().parse().unwrap();
    let expected: Vec<_> = (first..)
        .take(PROCESSES * THREADS * GRANTS)
        .flat_map(|fence| [format!("begin {fence}"), format!("end {fence}")])
        .collect();
    assert_eq!(lines, expected);
    let left = entries(&lock_directory(&directory.path().join("locks")));
    assert!(left.len() <= 3, "{left:?}");
}

/// Mounts a new file system of 16 MiB, made by the command `maker`, or a tmpfs; `None`, after it has printed the
/// reason, if this machine has none.
fn mounted(directory: &Path, name: &str, maker: Option<&[&str]>) -> Option<PathBuf> {
    let root = directory.join(name);
    fs::create_dir(&root).unwrap();
    let runs = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    let mut mount = Command::new("mount");
    let mut is_made = true;
    match maker {
        None => {
            mount.args(["-t", "tmpfs", "-o", "size=256k,nr_inodes=64", "tmpfs"]);
        }
        Some(maker) => {
            let image = root.with_extension("image");
            File::create(&image).unwrap().set_len(16 << 20).unwrap();
            is_made = runs(Command::new(maker[0]).args(&maker[1..]).arg(&image));
            mount.args(["-o", "loop"]).arg(&image);
        }
    }
    if is_made && runs(mount.arg(&root)) {
        return Some(root);
    }
    eprintln!("{name} is not tested");
    None
}

/// Leaves no free byte, and no free inode.
fn fill(root: &Path) {
    let mut ballast = File::create(root.join("ballast")).unwrap();
    for length in [1 << 16, 512, 1] {
        while ballast.write_all(&vec![7; length]).is_ok() {}
        let _ = ballast.sync_data();
    }
    let mut inodes = (0..).map(|number| root.join(format!("inode-{number}")));
    while File::create(inodes.next().unwrap()).is_ok() {}
}

#[track_caller]
fn is_full<T: std::fmt::Debug>(reply: Result<T, StoreError>) {
    let err = reply.unwrap_err();
    let cause = std::error::Error::source(&err).map(ToString::to_string);
    assert!(cause.unwrap().contains("No space left"), "{err}");
}

#[test]
fn full_disk_prevents_no_release_and_leaves_no_half_a_state() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        let name = "full_disk_prevents_no_release_and_leaves_no_half_a_state";
        return in_namespaces("a full file system", name, &["--mount"]);
    };
    for (name, maker) in [
        ("tmpfs", None),
        ("ext4", Some(&["mkfs.ext4", "-q", "-N", "96"][..])),
    ] {
        let Some(root) = mounted(Path::new(&directory), name, maker) else {
            continue;
        };
        let path = root.join("locks");
        let (store, other) = (open(&path), open(&path));
        let new = store_calls::claim("new", 1);
        granted(store.acquire(&claim(1)));
        done(store.extend(&claim(1)));
        fill(&root);

        let lock = lock_directory(&path);
        is_full(store.extend(&claim(1)));
        is_full(other.acquire(&new));
        refused(&other.acquire(&claim(2)));
        assert_eq!(entries(&lock), [state(1), state(2)], "{name}");
        done(open(&path).release(&claim(1)));
        assert_eq!(other.holders(&claim(1).name).unwrap(), [], "{name}");
        is_full(other.acquire(&claim(2)));
        let left = entries(&lock);
        assert!(!left.iter().any(|name| name.contains("draft")), "{left:?}");

        for entry in entries(&root) {
            if entry != "locks" && entry != "lost+found" {
                fs::remove_file(root.join(entry)).unwrap();
            }
        }
        granted(other.acquire(&claim(2)));
        granted(store.acquire(&new));
    }
}

#[test]
fn file_system_without_hard_links_is_refused() {
    let Some(directory) = env::var_os(DIRECTORY) else {
        let name = "file_system_without_hard_links_is_refused";
        return in_namespaces("a file system without hard links", name, &["--mount"]);
    };
    let maker = ["mkfs.vfat"];
    let Some(root) = mounted(Path::new(&directory), "vfat", Some(&maker)) else {
        return;
    };
    let path = root.join("locks");
    let err = HardLinkStore::open(&path, &StoreOptions::default()).unwrap_err();
    assert!(
        matches!(&err, OpenError::File(FileError::NoHardLinks { path: named }) if *named == path),
        "{err}"
    );
    assert!(err.to_string().contains("use a `lease:` store"), "{err}");
}

/// A process that waits for a lock polls it, and is granted the lock after its release.
#[test]
fn waiter_polls() {
    let directory = directory();
    let store = open(directory.path());
    granted(store.acquire(&claim(1)));
    assert!(store.waiter(&claim(2)).is_none());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let retry = Retry::FOR_EVER.delay(Duration::from_millis(1)).unwrap();
            let locks = LockFactory::new(&store, System).retry(retry);
            let lock = locks.create_lock("lock", "1m").unwrap();
            lock.run(|held| held.fence().unwrap().get()).unwrap()
        });
        done(store.release(&claim(1)));
        eventually("the waiter is granted the lock", || waiting.is_finished());
        waiting.join().unwrap();
    });
}
