//! A step of a store, and what came of it.

use std::any::Any;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use verrou::{Claim, Name, Owner, Reply, Store, StoreError, Ttl};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions};

use crate::findings::Setting;

/// A store that threads can share.
pub(crate) type AnyStore = Box<dyn Store + Send + Sync>;

/// A kind of store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Lease,
    File,
}

impl Kind {
    pub(crate) const BOTH: [Self; 2] = [Self::Lease, Self::File];

    /// What its locks' files end with.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::File => "lock",
        }
    }

    /// How the command is told of the one in `folder`.
    pub(crate) fn url(self, folder: &Path) -> String {
        format!("{self}:{}", folder.display())
    }

    /// The one in `folder`.
    pub(crate) fn open(self, folder: &Path) -> Result<AnyStore> {
        let options = StoreOptions::default();
        Ok(match self {
            Self::Lease => Box::new(LeaseFileStore::open(folder, &options)?),
            Self::File => Box::new(FileLockStore::open(folder, &options)?),
        })
    }

    /// The one file of a lock in `folder`.
    pub(crate) fn only_file(self, folder: &Path) -> Result<PathBuf> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|it| it == self.extension()) {
                files.push(path);
            }
        }
        match <[PathBuf; 1]>::try_from(files) {
            Ok([file]) => Ok(file),
            Err(files) => bail!("{} has {} such files", folder.display(), files.len()),
        }
    }

    /// Where the file of the lock `name` is in `folder`: as a store puts it into another, `scratch`,
    /// which is there for this.
    pub(crate) fn path_of(self, name: &str, folder: &Path, scratch: &Path) -> Result<PathBuf> {
        let scratch = tempfile::tempdir_in(scratch)?;
        let granted = self.open(scratch.path())?.acquire(&claim(name, 1)?)?;
        if !granted.is_granted() {
            bail!("the lock `{name}` is not free in an empty folder");
        }
        let file = self.only_file(scratch.path())?;
        Ok(folder.join(file.file_name().context("a file has a name")?))
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

/// Where files are made quickly: what is on the disk and what is not, is of no matter to damage.
pub(crate) fn quick(setting: &Setting) -> Result<TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        return Ok(tempfile::tempdir_in(memory)?);
    }
    Ok(tempfile::tempdir_in(&setting.folder)?)
}

/// A wish for the lock `name`, for as long as its process lives.
pub(crate) fn claim(name: &str, owner: u8) -> Result<Claim> {
    Ok(Claim {
        name: Name::new(name)?,
        owner: Owner::from_bytes([owner; 16]),
        ttl: Ttl::NEVER,
        ephemeral: true,
    })
}

/// What came of a step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Told {
    /// It was done, under this fence, or zero.
    Granted(u64),
    Refused,
    /// With all that caused it.
    Error(String),
    /// Which nothing may do.
    Panicked(String),
}

impl Told {
    /// What comes of `step`.
    pub(crate) fn by(step: impl FnOnce() -> Result<Reply, StoreError>) -> Self {
        match caught(step) {
            Ok(Ok(Reply::Granted { fence })) => Self::Granted(fence.map_or(0, verrou::Fence::get)),
            Ok(Ok(Reply::Refused { .. })) => Self::Refused,
            Ok(Err(err)) => Self::Error(format!("{:#}", anyhow::Error::new(err))),
            Err(panic) => Self::Panicked(panic),
        }
    }

    /// The fence of a grant that the rest depends on.
    pub(crate) fn granted(self) -> Result<u64> {
        match self {
            Self::Granted(fence) => Ok(fence),
            other => bail!("a free lock was not granted: {other:?}"),
        }
    }
}

/// What comes of asking `store` for the lock `name`.
pub(crate) fn asked(store: &dyn Store, name: &str, owner: u8) -> Result<Told> {
    let wanted = claim(name, owner)?;
    Ok(Told::by(|| store.acquire(&wanted)))
}

/// What `work` returns, or what it said when it panicked.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| said(&*panic))
}

/// Does `work`, which nothing can end from outside: if it takes minutes, this program ends, having said
/// that it was `what`.
pub(crate) fn watched<T>(what: &str, work: impl FnOnce() -> T) -> T {
    const LONGEST: Duration = Duration::from_mins(2);

    let (working, done) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            if let Err(RecvTimeoutError::Timeout) = done.recv_timeout(LONGEST) {
                eprintln!("torture: VIOLATION {what}: no end after {LONGEST:?}");
                process::exit(1);
            }
        });
        // Also dropped by a panic.
        let _until_then = working;
        work()
    })
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "something that is no text".to_owned())
}

/// Lets the file at `path` have these bytes, and stay the same file.
pub(crate) fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.set_len(bytes.len() as u64)?;
    file.write_all_at(bytes, 0)
}

/// That nothing is there to be removed is no error.
pub(crate) fn absent(err: io::Error) -> io::Result<()> {
    match err.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(err),
    }
}

/// Where the two slots of a lock's file are.
pub(crate) const SLOTS: [usize; 2] = [512, 1024];

/// How many bytes a slot has.
pub(crate) const SLOT_BYTES: usize = 512;

/// Changes a slot's bytes from `at` on, with a checksum that fits.
pub(crate) fn forge(slot: &mut [u8], at: usize, value: &[u8]) {
    slot[at..at + value.len()].copy_from_slice(value);
    let checksum = crc32c::crc32c(&slot[4..]);
    slot[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// [`forge`], in each slot that was ever written.
pub(crate) fn forge_slots(file: &mut [u8], at: usize, value: &[u8]) {
    for start in SLOTS {
        let slot = &mut file[start..start + SLOT_BYTES];
        if slot.iter().any(|&byte| byte != 0) {
            forge(slot, at, value);
        }
    }
}
