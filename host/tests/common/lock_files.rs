//! The stores in files, and changes of the bytes of their files: `host/FORMAT.md`.
#![allow(dead_code, reason = "every program of tests uses its own part of this")]

use std::fs;
use std::path::{Path, PathBuf};

use verrou::Store;
use verrou::conformance::TestClock;
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions};

/// The schemes of the two kinds of store.
pub(crate) const KINDS: [&str; 2] = ["lease", "file"];

/// The offset of the boot ID in a slot.
pub(crate) const BOOT_AT: usize = 48;

/// The offset of the process ID in a slot.
pub(crate) const PROCESS_AT: usize = 104;

/// The length of a slot, in bytes.
pub(crate) const SLOT_BYTES: usize = 512;

/// The offsets of the two slots of a lock's file.
pub(crate) const SLOTS: [usize; 2] = [512, 1024];

pub(crate) fn leases(directory: &Path) -> LeaseFileStore {
    LeaseFileStore::open(directory, &StoreOptions::default()).expect("the directory can be opened")
}

pub(crate) fn locks(directory: &Path) -> FileLockStore {
    FileLockStore::open(directory, &StoreOptions::default()).expect("the directory can be opened")
}

/// Opens a store of this kind.
pub(crate) fn open(kind: &str, directory: &Path) -> Box<dyn Store> {
    match kind {
        "lease" => Box::new(leases(directory)),
        _ => Box::new(locks(directory)),
    }
}

/// Opens a store of this kind that goes by `clock`.
pub(crate) fn open_with(kind: &str, directory: &Path, clock: &TestClock) -> Box<dyn Store> {
    match kind {
        "lease" => Box::new(leases(directory).with_clock(clock.clone())),
        _ => Box::new(locks(directory).with_clock(clock.clone())),
    }
}

/// Returns the only file in the directory with this extension.
pub(crate) fn only_file(directory: &Path, extension: &str) -> PathBuf {
    let files = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files = files.filter(|path| path.extension().is_some_and(|found| found == extension));
    let file = files.next().expect("there is a file");
    assert_eq!(files.next(), None);
    file
}

/// Returns the file of the only lock of this kind in the directory.
pub(crate) fn lock_file(kind: &str, directory: &Path) -> PathBuf {
    only_file(directory, if kind == "lease" { "lease" } else { "lock" })
}

/// Changes the bytes of one slot from `at` on, and its checksum.
pub(crate) fn forge_slot(slot: &mut [u8], at: usize, value: &[u8]) {
    slot[at..at + value.len()].copy_from_slice(value);
    let checksum = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Changes the bytes of all slots of a lock's file that were ever written, checksums included.
pub(crate) fn forge(file: &mut [u8], at: usize, value: &[u8]) {
    for start in SLOTS {
        let slot = &mut file[start..start + SLOT_BYTES];
        if slot.iter().any(|&byte| byte != 0) {
            forge_slot(slot, at, value);
        }
    }
}

/// Does the same as [`forge`] with the file at `path`.
pub(crate) fn rewrite(path: &Path, at: usize, value: &[u8]) {
    let mut file = fs::read(path).unwrap();
    forge(&mut file, at, value);
    fs::write(path, file).unwrap();
}

/// Sets the last allotted number of the fence counter at `path` to `last`.
pub(crate) fn set_counter(path: &Path, last: u64) {
    let mut counter = fs::read(path).unwrap();
    counter[16..].copy_from_slice(&last.to_le_bytes());
    let checksum = crc32c::crc32c(&counter[12..]);
    counter[8..12].copy_from_slice(&checksum.to_le_bytes());
    fs::write(path, counter).unwrap();
}
