//! One operation of a store, and its outcome.

use std::any::Any;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use tempfile::TempDir;
use verrou::{Acquired, Claim, Fence, Name, Owner, Store, StoreError, Ttl};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions};

use crate::results::Setting;

/// A store that threads can share.
pub(crate) type BoxedStore = Box<dyn Store>;

/// A kind of store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Lease,
    File,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Lease, Self::File];

    /// Returns the extension of the store's lock files.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::File => "lock",
        }
    }

    /// Opens the store in `directory`.
    pub(crate) fn open(self, directory: &Path) -> Result<BoxedStore> {
        let options = StoreOptions::default();
        Ok(match self {
            Self::Lease => Box::new(LeaseFileStore::open(directory, &options)?),
            Self::File => Box::new(FileLockStore::open(directory, &options)?),
        })
    }

    /// Returns the path of the only lock file in `directory`.
    pub(crate) fn only_file(self, directory: &Path) -> Result<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == self.extension()) {
                files.push(path);
            }
        }
        match <[PathBuf; 1]>::try_from(files) {
            Ok([file]) => Ok(file),
            Err(files) => bail!(
                "{} has {} lock files instead of one",
                directory.display(),
                files.len()
            ),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::File => "file",
        })
    }
}

/// Creates a temporary directory, in memory if possible: corruption does not depend on the disk.
pub(crate) fn fast_directory(setting: &Setting) -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return Ok(tempfile::tempdir_in(memory)?);
    }
    Ok(tempfile::tempdir_in(&setting.directory)?)
}

/// Returns an ephemeral claim without a TTL for the lock `name`.
pub(crate) fn claim(name: &str, owner: u8) -> Result<Claim> {
    Ok(Claim::new(Name::new(name)?, Owner::from_bytes([owner; 16]), Ttl::NEVER).ephemeral(true))
}

/// The outcome of an operation.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    /// The operation was done; with the grant's fencing token, or zero.
    Granted(u64),
    Refused,
    /// The error, with its chain of causes.
    Error(String),
    /// The message of a panic, which is always a violation.
    Panicked(String),
}

impl Outcome {
    /// Runs `operation`, and returns its outcome.
    pub(crate) fn by<R: Reply>(operation: impl FnOnce() -> Result<R, StoreError>) -> Self {
        let operation = || operation().map(Reply::into_acquired);
        match catch_panic(operation) {
            Ok(Ok(Acquired::Granted { fence })) => Self::Granted(fence.map_or(0, Fence::get)),
            Ok(Ok(Acquired::Busy { .. })) => Self::Refused,
            Ok(Err(err)) => Self::Error(format!("{:#}", anyhow::Error::new(err))),
            Err(panic) => Self::Panicked(panic),
        }
    }

    /// Returns the fencing token of a grant; any other outcome is an error.
    pub(crate) fn granted(self) -> Result<u64> {
        match self {
            Self::Granted(fence) => Ok(fence),
            other => bail!("a free lock was not granted: {other:?}"),
        }
    }
}

/// A store's reply to any operation.
pub(crate) trait Reply {
    /// Returns the reply as that to an acquire request: a grant without a fencing token if the operation was
    /// done.
    fn into_acquired(self) -> Acquired;
}

impl Reply for Acquired {
    fn into_acquired(self) -> Acquired {
        self
    }
}

impl Reply for bool {
    fn into_acquired(self) -> Acquired {
        if self {
            Acquired::Granted { fence: None }
        } else {
            Acquired::BUSY
        }
    }
}

/// Runs `work`, and returns its result, or the message of its panic.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| panic_text(&*panic))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text message".to_owned())
}

/// Replaces the contents of the file at `path` in place; the inode stays the same.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(bytes.len() as u64)?;
    file.write_all_at(bytes, 0)
}

/// Turns the error that a file to be removed does not exist into success.
pub(crate) fn ignore_absent(err: io::Error) -> io::Result<()> {
    match err.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(err),
    }
}

/// The offsets of the two slots of a lock file.
pub(crate) const SLOTS: [usize; 2] = [512, 1024];

/// The length of a slot, in bytes.
pub(crate) const SLOT_BYTES: usize = 512;

/// Overwrites a slot's bytes from `at` on, and updates its checksum.
pub(crate) fn forge(slot: &mut [u8], at: usize, value: &[u8]) {
    slot[at..at + value.len()].copy_from_slice(value);
    let checksum = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Calls [`forge`] for each slot that has been written.
pub(crate) fn forge_slots(file: &mut [u8], at: usize, value: &[u8]) {
    for start in SLOTS {
        let slot = &mut file[start..start + SLOT_BYTES];
        if slot.iter().any(|&byte| byte != 0) {
            forge(slot, at, value);
        }
    }
}
