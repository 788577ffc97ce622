//! Files of a store with other contents than the store wrote, and objects in place of its files.
//!
//! However a file is changed, a held lock is granted to no other owner, no fencing token is granted twice, and
//! each operation either succeeds or names the file in its error. The torture changes every byte.
#![cfg(target_os = "linux")]

#[path = "common/lock_files.rs"]
mod lock_files;
#[path = "common/store_calls.rs"]
mod store_calls;

use std::error::Error;
use std::fmt::Debug;
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use lock_files::{
    BOOT_AT, KINDS, PROCESS_AT, SLOT_BYTES, SLOTS, forge, forge_slot, lock_file, open, rewrite,
    set_counter,
};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use store_calls::{claim, done, granted, not_done, refused};
use tempfile::TempDir;
use verrou::{Acquired, Claim, Fence, Store, StoreError};

/// The length of a lock's file, in bytes.
const FILE_BYTES: usize = 4096;

/// The offset of the mark of the wait queue, which has no checksum; the touch follows it.
const MARK_AT: usize = 1536;

/// The state of a lock whose file is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Held,
    /// Held for the first time: both slots record the grant.
    HeldFirst,
    /// Held for the first time since the boot: both slots record the grant.
    HeldFirstSinceBoot,
    Detached,
    Free,
}

/// The states of the locks of each kind. Without its process, no lock of the kernel is held.
const STATES: [(&str, State); 8] = [
    ("lease", State::Held),
    ("lease", State::HeldFirst),
    ("lease", State::HeldFirstSinceBoot),
    ("lease", State::Detached),
    ("lease", State::Free),
    ("file", State::Held),
    ("file", State::HeldFirst),
    ("file", State::Free),
];

/// A lock in a [`State`], whose file is changed again and again.
struct Scene {
    kind: &'static str,
    state: State,
    directory: TempDir,
    path: PathBuf,
    holder: Box<dyn Store>,
    held: Claim,
    other: Box<dyn Store>,
    wanted: Claim,
    /// The last fencing token that was granted.
    fence: u64,
    whole: Vec<u8>,
}

impl Scene {
    fn new(kind: &'static str, state: State) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let other = open(kind, directory.path());
        let mut holder = open(kind, directory.path());
        let held = claim("lock", 1).ephemeral(state != State::Detached);
        let mut fence = granted(holder.acquire(&held));
        let path = lock_file(kind, directory.path());
        if state != State::HeldFirst {
            done(holder.release(&held));
            if state == State::HeldFirstSinceBoot {
                rewrite(&path, BOOT_AT, &[0xab; 16]);
                holder = open(kind, directory.path());
            }
            fence = granted(holder.acquire(&held));
        }
        if state == State::Free {
            done(holder.release(&held));
        }
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), FILE_BYTES);
        Self {
            kind,
            state,
            directory,
            path,
            holder,
            held,
            other,
            wanted: claim("lock", 2),
            fence,
            whole,
        }
    }

    fn is_held(&self) -> bool {
        self.state != State::Free
    }

    /// Runs the operations on the changed file, and the remedy that their error names.
    fn check(&self, change: &str) {
        let what = format!("{} {:?}, {change}", self.kind, self.state);
        let reply = self.other.acquire(&self.wanted);
        assert_names(&self.path, &reply, &what);
        match reply {
            Ok(Acquired::Granted { fence }) => {
                assert!(!self.is_held(), "{what}: a second holder");
                let fence = fence.map_or(0, Fence::get);
                assert!(fence > self.fence, "{what}: {fence} after {}", self.fence);
                let released = self.other.release(&self.wanted);
                assert_names(&self.path, &released, &what);
                return;
            }
            Ok(Acquired::Busy { .. }) => assert!(self.is_held(), "{what}: no holder"),
            Err(_) => self.move_away(&what),
        }
        assert_names(&self.path, &self.holder.extend(&self.held), &what);
        assert_names(&self.path, &self.other.extend(&self.wanted), &what);
        assert_names(&self.path, &self.other.holders(&self.wanted.name), &what);
    }

    /// Moves the file away, after which the lock is free and its holder has lost it; moves the file back.
    fn move_away(&self, what: &str) {
        let away = self.directory.path().join("moved");
        fs::rename(&self.path, &away).unwrap();
        let next = granted(self.other.acquire(&self.wanted));
        assert!(next > self.fence, "{what}: {next} after {}", self.fence);
        if self.is_held() {
            not_done(&self.holder.extend(&self.held));
        }
        done(self.other.release(&self.wanted));
        fs::remove_file(&self.path).unwrap();
        fs::rename(&away, &self.path).unwrap();
    }

    /// Checks that the lock is in its original state after the file was restored.
    fn end(&self) {
        if self.is_held() {
            refused(&self.other.acquire(&self.wanted));
            done(self.holder.release(&self.held));
        }
        assert!(granted(self.other.acquire(&self.wanted)) > self.fence);
    }
}

/// Returns an error with its causes.
fn text_of(err: &StoreError) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}

/// Asserts that an operation succeeded, or that its error names `path`.
#[track_caller]
fn assert_names<T: Debug>(path: &Path, reply: &Result<T, StoreError>, what: &str) {
    if let Err(err) = reply {
        let text = text_of(err);
        assert!(text.contains(path.to_str().unwrap()), "{what}: {text}");
    }
}

/// Returns the bytes of the file of a lock in a directory of its own.
fn bytes_of(kind: &str, name: &str) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    granted(open(kind, directory.path()).acquire(&claim(name, 3)));
    fs::read(lock_file(kind, directory.path())).unwrap()
}

/// Returns contents of other versions, programs and locks, and with lost sectors.
fn changed_contents(kind: &str, whole: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let with = |at: usize, value: &[u8]| {
        let mut bytes = whole.to_vec();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    let slot = |at: usize| &whole[SLOTS[at]..SLOTS[at] + SLOT_BYTES];
    let mut both_slots = with(SLOTS[0] + 200, &[0x5a]);
    both_slots[SLOTS[1] + 200] = 0x5a;
    let other_kind = if kind == "lease" { "file" } else { "lease" };
    let mut changes = vec![
        ("version 2", with(8, &2_u32.to_le_bytes())),
        ("the maximum version", with(8, &u32::MAX.to_le_bytes())),
        ("version 0", with(8, &0_u32.to_le_bytes())),
        ("zeros", vec![0; FILE_BYTES]),
        ("ones", vec![0xff; FILE_BYTES]),
        ("another program", b"#!/bin/sh\nexit 1\n".to_vec()),
        (
            "another program's length",
            b"another\n".repeat(FILE_BYTES / 8),
        ),
        ("an additional byte", [whole, &[0]].concat()),
        ("twice as long", whole.repeat(2)),
        ("both slots corrupt", both_slots),
        ("another kind of lock", bytes_of(other_kind, "lock")),
        ("another lock", bytes_of(kind, "another")),
        ("two copies of the first slot", with(SLOTS[1], slot(0))),
        ("two copies of the second slot", with(SLOTS[0], slot(1))),
        (
            "its slots exchanged",
            with(SLOTS[0], &[slot(1), slot(0)].concat()),
        ),
        ("a mark of ones", with(MARK_AT, &[0xff; 8])),
        ("mark and touch of ones", with(MARK_AT, &[0xff; 16])),
    ];
    // One sector at a time: without both slots the file would look like a new one.
    for start in (0..FILE_BYTES).step_by(SLOT_BYTES) {
        changes.push(("a sector of zeros", with(start, &[0; SLOT_BYTES])));
        changes.push(("a sector of ones", with(start, &[0xff; SLOT_BYTES])));
    }
    changes
}

#[test]
fn changed_contents_make_no_second_holder_and_repeat_no_fence() {
    for (kind, state) in STATES {
        let scene = Scene::new(kind, state);
        for (what, bytes) in changed_contents(kind, &scene.whole) {
            fs::write(&scene.path, bytes).unwrap();
            scene.check(what);
            fs::write(&scene.path, &scene.whole).unwrap();
        }
        for length in [FILE_BYTES as u64 + 1, 1 << 20, 2 << 30] {
            let file = File::options().write(true).open(&scene.path).unwrap();
            file.set_len(length).unwrap();
            scene.check(&format!("grown to {length} bytes"));
            fs::write(&scene.path, &scene.whole).unwrap();
        }
        scene.end();
    }
}

/// A description of an object in place of a file, and the function that creates it at a path. It gets the path
/// where the file itself is.
type Plant = (&'static str, fn(&Path, &Path) -> Result<(), Box<dyn Error>>);

const PLANTS: [Plant; 11] = [
    ("a directory", |path, _| Ok(fs::create_dir(path)?)),
    ("a pipe", |path, _| node(path, FileType::Fifo, 0)),
    ("the null device", |path, _| {
        node(path, FileType::CharacterDevice, makedev(1, 3))
    }),
    ("the full device", |path, _| {
        node(path, FileType::CharacterDevice, makedev(1, 7))
    }),
    ("a terminal", |path, _| {
        node(path, FileType::CharacterDevice, makedev(5, 0))
    }),
    ("a block device without a disk", |path, _| {
        node(path, FileType::BlockDevice, makedev(7, 99))
    }),
    (
        "a socket",
        |path, _| Ok(UnixListener::bind(path).map(drop)?),
    ),
    ("a link to the file itself", |path, aside| {
        Ok(symlink(aside, path)?)
    }),
    ("a link to nowhere", |path, _| {
        Ok(symlink("/nowhere/at/all", path)?)
    }),
    ("a link to itself", |path, _| Ok(symlink(path, path)?)),
    ("a hard link to the file", |path, aside| {
        Ok(fs::hard_link(aside, path)?)
    }),
];

fn node(path: &Path, kind: FileType, device: u64) -> Result<(), Box<dyn Error>> {
    Ok(mknodat(CWD, path, kind, Mode::RUSR | Mode::WUSR, device)?)
}

/// Moves the file at `path` aside, and calls `check` with each object in its place.
fn with_plants(path: &Path, check: impl Fn(&str)) {
    let aside = path.with_file_name("aside");
    for (what, plant) in PLANTS {
        fs::rename(path, &aside).unwrap();
        if let Err(err) = plant(path, &aside) {
            eprintln!("{what} in place of a file is not tested: {err}");
        } else {
            check(what);
            if fs::symlink_metadata(path).unwrap().is_dir() {
                fs::remove_dir(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
        fs::rename(&aside, path).unwrap();
    }
}

#[test]
fn objects_in_place_of_a_lock_file_make_no_second_holder() {
    for (kind, state) in STATES {
        let scene = Scene::new(kind, state);
        with_plants(&scene.path, |what| {
            scene.check(what);
        });
        // Releases and extensions of the holder may have changed the file aside.
        fs::write(&scene.path, &scene.whole).unwrap();
        scene.end();
    }
}

/// Locks with an allotment of fencing tokens do not need the counter.
#[test]
fn corrupt_counter_stops_new_locks_alone_until_it_is_moved_away() {
    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let store = open(kind, directory.path());
        let (known, new) = (claim("known", 1), claim("new", 2));
        let first = granted(store.acquire(&known));
        let path = directory.path().join("fences");
        let whole = fs::read(&path).unwrap();
        let check = |what: &str| {
            let what = format!("{kind}, counter: {what}");
            let reply = store.acquire(&new);
            assert!(reply.is_err(), "{what}: {reply:?}");
            assert_names(&path, &reply, &what);
            let before = store.holders(&known.name).unwrap().pop().unwrap().fence;
            done(store.release(&known));
            let next = granted(store.acquire(&known));
            assert!(Fence::new(next) > before, "{what}: {next} after {before:?}");
        };

        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x80;
            bytes
        };
        let mut changes = vec![
            ("an additional byte", [&whole[..], &[0]].concat()),
            ("zeros", vec![0; whole.len()]),
            ("the length of a lock's file", vec![0; FILE_BYTES]),
            ("another program", b"17\n".to_vec()),
        ];
        changes.extend([0, 8, 12, 16, 23].map(|at| ("a changed byte", flipped(at))));
        changes.extend([0, 1, 16, 23].map(|length| ("truncated", whole[..length].to_vec())));
        for (what, bytes) in changes {
            fs::write(&path, bytes).unwrap();
            check(what);
        }
        for last in [u64::MAX, u64::MAX - 16_383] {
            fs::write(&path, &whole).unwrap();
            set_counter(&path, last);
            check("a number without a successor");
        }
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(2 << 30).unwrap();
        check("grown to 2 GiB");

        fs::write(&path, &whole).unwrap();
        with_plants(&path, check);
        fs::remove_file(&path).unwrap();
        assert!(granted(store.acquire(&new)) > first);
    }
}

/// The fields of a slot: the name, the offset, and the length in bytes.
const FIELDS: [(&str, usize, usize); 13] = [
    ("flags", 4, 4),
    ("sequence", 8, 8),
    ("fence", 16, 8),
    ("last fence", 24, 8),
    ("time namespace", 64, 8),
    ("ttl", 72, 8),
    ("end", 80, 8),
    ("end by the wall clock", 88, 8),
    ("grant by the wall clock", 96, 8),
    ("process", PROCESS_AT, 4),
    ("length of host", 108, 2),
    ("length of command", 110, 2),
    ("served", 496, 8),
];

/// Extreme numbers for any field; sequences and fences are less than 2⁶².
const NUMBERS: [u64; 9] = [
    0,
    1,
    u64::MAX,
    u64::MAX - 1,
    1 << 63,
    (1 << 60) - 1,
    (1 << 62) - 1,
    (1 << 62) - 2,
    (1 << 62) - 3,
];

/// Changes a field of both slots to `number`; the sequences of the slots stay consecutive.
fn forge_field(file: &mut [u8], at: usize, bytes: usize, number: u64) {
    const SEQUENCE_AT: usize = 8;

    forge(file, at, &number.to_le_bytes()[..bytes]);
    if at == SEQUENCE_AT {
        let [even, odd] = SLOTS;
        let older = if number % 2 == 1 { even } else { odd };
        let before = number.wrapping_sub(1).to_le_bytes();
        forge_slot(&mut file[older..older + SLOT_BYTES], at, &before);
    }
}

/// The checksum of the record is right. An operation whose number would overflow changes nothing.
#[test]
fn extreme_numbers_in_a_record_cause_errors_and_leave_it_readable() {
    const FENCE_AT: usize = 16;
    const LAST_FENCE_AT: usize = 24;

    for kind in KINDS {
        let directory = tempfile::tempdir().unwrap();
        let (mine, wanted) = (claim("lock", 1), claim("lock", 2));
        let store = open(kind, directory.path());
        granted(store.acquire(&mine));
        done(store.release(&mine));
        let path = lock_file(kind, directory.path());
        let counter = directory.path().join("fences");
        let (whole, allotted) = (fs::read(&path).unwrap(), fs::read(&counter).unwrap());
        for (field, at, bytes) in FIELDS {
            for number in NUMBERS {
                for also_at in [None, Some(FENCE_AT), Some(LAST_FENCE_AT)] {
                    let what = format!("{kind}, {field}: {number:#x}, also at {also_at:?}");
                    let mut file = whole.clone();
                    forge_field(&mut file, at, bytes, number);
                    if let Some(at) = also_at {
                        forge(&mut file, at, &number.to_le_bytes());
                    }
                    fs::write(&path, file).unwrap();
                    fs::write(&counter, &allotted).unwrap();

                    let store = open(kind, directory.path());
                    let was_readable = store.holders(&mine.name).is_ok();
                    let ends = [
                        store.extend(&mine).map(drop),
                        store.acquire(&wanted).map(drop),
                        store.extend(&wanted).map(drop),
                        store.holders(&wanted.name).map(drop),
                        store.release(&wanted).map(drop),
                        store.force_release(&wanted.name, None).map(drop),
                        store.acquire(&mine).map(drop),
                        store.release(&mine).map(drop),
                    ];
                    for end in ends {
                        // The error about a lease of another time namespace names the lock instead.
                        let is_about_lock =
                            matches!(&end, Err(err) if text_of(err).contains("`lock`"));
                        if !is_about_lock {
                            assert_names(directory.path(), &end, &what);
                        }
                    }
                    let end = open(kind, directory.path()).holders(&mine.name);
                    assert!(end.is_ok() || !was_readable, "{what}: {end:?}");
                }
            }
        }
    }
}
