//! Objects that another user plants in the directory of a group's store, in place of the store's files.
#![cfg(target_os = "linux")]

mod common;
#[path = "../../tests/common/store_calls.rs"]
mod store_calls;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, lchown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use common::users::{
    ALICE, GROUP, MALLORY, directory, entries, has_users, of_group, run, set_mode, test_dir, verrou,
};
use common::waiters::waiting;
use common::{KINDS, Started, TestDir, code, ends_with, eventually, stderr};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use store_calls::{claim, done, granted};
use verrou::Store;
use verrou_host::{AnyStore, StoreOptions};

/// The objects that are planted in place of a file, and why each is refused.
const PLANTS: [(&str, &str); 11] = [
    ("a symbolic link to a file", "not a regular file"),
    ("a symbolic link to nowhere", "not a regular file"),
    ("a symbolic link to a directory", "not a regular file"),
    ("a symbolic link to a device", "not a regular file"),
    ("a hard link", "hard link"),
    ("a pipe", "not a regular file"),
    ("a socket", "not a regular file"),
    ("a device", "not a regular file"),
    ("a directory", "not a regular file"),
    ("an empty file", "user 4712"),
    ("a valid file", "user 4712"),
];

/// A file that an attack must not change, alone in its directory.
struct Victim(PathBuf);

impl Victim {
    fn new(dir: &TestDir) -> Self {
        let safe = directory(dir.path("safe"), 0o755, 0, 0);
        let victim = Self(safe.join("victim"));
        victim.restore(0);
        victim
    }

    /// Makes it the file of this user, because another user's file would be refused for that alone.
    fn restore(&self, user: u32) {
        fs::write(&self.0, "precious").unwrap();
        chown(&self.0, Some(user), Some(user)).unwrap();
    }

    #[track_caller]
    fn assert_unchanged(&self, what: &str) {
        assert_eq!(fs::read(&self.0).unwrap(), b"precious", "{what}");
        assert_eq!(entries(self.0.parent().unwrap()), 1, "{what}");
    }

    /// Plants one of [`PLANTS`] at `path`; `valid` is the content of a valid file.
    fn plant(&self, what: &str, path: &Path, valid: &[u8]) {
        let Self(victim) = self;
        let mode = Mode::from_raw_mode(0o666);
        let linked = match what {
            "a symbolic link to a file" => symlink(victim, path),
            "a symbolic link to nowhere" => symlink(victim.with_file_name("nowhere"), path),
            "a symbolic link to a directory" => symlink(victim.parent().unwrap(), path),
            "a symbolic link to a device" => symlink("/dev/zero", path),
            "a hard link" => return fs::hard_link(victim, path).unwrap(),
            "a pipe" => mknodat(CWD, path, FileType::Fifo, mode, 0).map_err(Into::into),
            "a socket" => UnixListener::bind(path).map(drop),
            "a device" => {
                let zero = makedev(1, 5);
                mknodat(CWD, path, FileType::CharacterDevice, mode, zero).map_err(Into::into)
            }
            "a directory" => fs::create_dir(path),
            "an empty file" => fs::write(path, ""),
            "a valid file" => fs::write(path, valid),
            other => panic!("unknown object {other}"),
        };
        linked.unwrap();
        lchown(path, Some(MALLORY), Some(MALLORY)).unwrap();
        if what.ends_with("file") && !what.contains("link") {
            // The file must not be refused only because of its permissions.
            set_mode(path, 0o666);
        }
    }
}

/// Creates the directory of a store of the group.
fn shared(path: PathBuf) -> PathBuf {
    directory(path, 0o2770, 0, GROUP)
}

/// Returns the files of a lock `k` and of the fence counter, in a store of this kind.
fn files_of_a_store(dir: &TestDir) -> Vec<PathBuf> {
    ends_with(&mut dir.run(&[], "true"), 0);
    let files = fs::read_dir(dir.locks()).unwrap();
    let files: Vec<_> = files.map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 2, "{files:?}");
    files
}

#[test]
fn planted_object_in_place_of_a_file_is_refused_and_left_as_it_is() {
    if !has_users("a file planted by another user") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let victim = Victim::new(&dir);
        let cases = files_of_a_store(&dir)
            .into_iter()
            .flat_map(|file| PLANTS.map(|plant| (file.clone(), plant)))
            .flat_map(|(file, plant)| [0, ALICE].map(|user| (file.clone(), plant, user)));
        for (number, (file, (what, why), user)) in cases.enumerate() {
            let locks = shared(dir.path(&format!("planted-{number}")));
            victim.restore(user);
            let path = locks.join(file.file_name().unwrap());
            victim.plant(what, &path, &fs::read(&file).unwrap());
            let seen = || {
                let found = fs::symlink_metadata(&path).unwrap();
                (found.ino(), found.mode(), found.uid(), found.len())
            };
            let before = seen();
            let title = format!("{what} in place of {} for user {user}", path.display());
            let output = ends_with(&mut run(&dir, user, GROUP, &of_group(kind, &locks)), 74);
            let said = stderr(&output);
            assert!(said.contains(path.to_str().unwrap()), "{title}: {said}");
            assert!(said.contains(why), "{title}: {said}");
            assert_eq!(seen(), before, "{title}");
            victim.assert_unchanged(&title);
        }
    }
}

#[test]
fn planted_links_in_place_of_temporary_files_are_not_followed() {
    if !has_users("a link planted by another user") {
        return;
    }
    for kind in KINDS {
        let dir = test_dir(kind);
        let victim = Victim::new(&dir);
        let names = files_of_a_store(&dir);
        for user in [0, ALICE] {
            let locks = shared(dir.path(&format!("links-{user}")));
            victim.restore(user);
            for name in &names {
                let name = name.file_name().unwrap().to_str().unwrap();
                for guess in [
                    format!("{name}.tmp"),
                    format!(".{name}.tmp"),
                    format!("{name}.new"),
                    format!("{name}~"),
                    format!("{name}.bak"),
                    format!(".{name}.swp"),
                ] {
                    victim.plant("a symbolic link to a file", &locks.join(guess), b"");
                }
            }
            ends_with(&mut run(&dir, user, GROUP, &of_group(kind, &locks)), 0);
            victim.assert_unchanged("a planted link");
        }
    }
}

/// A waiter tries 256 of the 4,096 wake pipes, and so finds objects of each kind.
#[test]
fn planted_objects_in_place_of_all_wake_pipes_block_no_waiter() {
    const WAKE_PIPES: usize = 4096;
    const PLANTED: [&str; 7] = [
        "a symbolic link to a file",
        "a symbolic link to nowhere",
        "a symbolic link to a device",
        "a pipe",
        "a socket",
        "a directory",
        "a valid file",
    ];

    if !has_users("a wake pipe planted by another user") {
        return;
    }
    let mut options = StoreOptions::default();
    options.group = Some(GROUP.to_string());
    for (kind, user) in [("lease", 0), ("file", ALICE)] {
        let dir = test_dir(kind);
        let victim = Victim::new(&dir);
        let locks = shared(dir.locks());
        for number in 0..WAKE_PIPES {
            let path = |number| locks.join(format!("{number:04}.bell"));
            let (first, what) = (number % PLANTED.len(), PLANTED[number % PLANTED.len()]);
            if number == first || what == "a directory" {
                victim.plant(what, &path(number), b"");
            } else {
                fs::hard_link(path(first), path(number)).unwrap();
            }
        }
        let store = AnyStore::open(&dir.store().parse().unwrap(), &options).unwrap();
        let held = claim("k", 1);
        granted(store.acquire(&held));
        let store_url = of_group(kind, &locks);
        let words = [
            "run", "--store", &store_url, "k", "--wait", "20s", "--", "true",
        ];
        let waiters = [(); 2].map(|()| Started::new(&mut verrou(&dir, user, GROUP, words)));
        eventually("both wait", || waiting(&locks) == 2);
        done(store.release(&held));
        for waiter in waiters {
            let output = waiter.end();
            assert_eq!(code(&output), 0, "{kind}: {}", stderr(&output));
        }
        victim.assert_unchanged(kind);
    }
}
