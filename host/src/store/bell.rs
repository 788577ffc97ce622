//! What wakes a process that waits: a named pipe, fifo(7), that it reads.
//!
//! A pipe and not a file that inotify(7) tells of, for who writes to it and then goes to sleep
//! leaves its core to the one it wakes.

use std::collections::hash_map::{Entry, HashMap};
use std::fs::{self, File, Permissions};
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crc32c::crc32c;
use lru::LruCache;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::geteuid;
use verrou::Name;

use super::directory::Directory;
use super::error::FileError;
use super::{kernel_lock, os};
use crate::process;

/// A pipe, open for reading and writing.
#[derive(Debug)]
pub(crate) struct Bell(File);

impl Bell {
    /// The bell at `path`, made if need be, for this user or this group alone.
    pub(crate) fn open(path: PathBuf, group: Option<u32>) -> Result<Self, FileError> {
        let file = loop {
            match open_both_ways(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {
                    make(&path, group).map_err(FileError::io("make this pipe", &path))?;
                }
                opened => break opened.map_err(FileError::io("open this pipe", &path))?,
            }
        };
        let metadata = file
            .metadata()
            .map_err(FileError::io("inspect this pipe", &path))?;
        let why = if !metadata.file_type().is_fifo() {
            "it is not a pipe".to_owned()
        } else if !os::is_trusted(&metadata, group) {
            format!("it belongs to user {}", metadata.uid())
        } else {
            return Ok(Self(file));
        };
        Err(FileError::Suspicious { path, why })
    }

    /// Keeps it for this value, whose process alone reads it, as long as this is open; `false` when
    /// it is another's.
    pub(crate) fn claim(&self) -> bool {
        kernel_lock::try_lock(&self.0).unwrap_or(false)
    }

    /// Wakes whoever listens.
    pub(crate) fn ring(&self) {
        // One that is full has been rung.
        let _ = rustix::io::write(&self.0, &[0]);
    }

    /// Whether it was rung since this was asked last.
    pub(crate) fn was_rung(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 64]).is_ok_and(|bytes| bytes > 0)
    }
}

/// How many bells a folder has.
pub(crate) const BELLS: u32 = 4096;

/// How many bells of a folder are one process's: each name has one of them.
const BELLS_OF_ONE: u32 = 16;

/// How many bells of others stay open to be rung again.
const OTHERS: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// The bells of a folder that this process has open.
#[derive(Debug)]
pub(crate) struct Bells {
    /// Ours, each for some of all names, and their numbers. Whoever listens hears them being closed
    /// when this process ends.
    ours: HashMap<u32, (u32, Arc<Bell>)>,
    others: LruCache<u32, Bell>,
}

impl Default for Bells {
    fn default() -> Self {
        Self {
            ours: HashMap::new(),
            others: LruCache::new(OTHERS),
        }
    }
}

impl Bells {
    /// Where the bell of that number is in the folder of `directory`.
    pub(crate) fn path(directory: &Directory, number: u32) -> PathBuf {
        let (folder, _) = directory.place();
        folder.join(format!("{number:04}.bell"))
    }

    /// This process's bell for the lock `name`, and its number.
    pub(crate) fn of_name(
        &mut self,
        directory: &Directory,
        name: &Name,
    ) -> Result<(u32, Arc<Bell>), FileError> {
        let some_names = crc32c(name.as_str().as_bytes()) % BELLS_OF_ONE;
        match self.ours.entry(some_names) {
            Entry::Occupied(bell) => Ok(bell.get().clone()),
            Entry::Vacant(bell) => Ok(bell.insert(free_bell(directory, some_names)?).clone()),
        }
    }

    /// Rings the bell of that number. Whoever does not hear it looks by itself.
    pub(crate) fn ring(&mut self, directory: &Directory, number: u32) {
        let mut ours = self.ours.values();
        if let Some((_, bell)) = ours.find(|(ours, _)| *ours == number) {
            bell.ring();
        } else if let Some(bell) = self.others.get(&number) {
            bell.ring();
        } else if let Ok(opened) = open_bell(directory, number) {
            opened.ring();
            self.others.push(number, opened);
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opened for both, it waits for nobody at the other end.
fn open_both_ways(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    File::options()
        .read(true)
        .write(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

fn make(path: &Path, group: Option<u32>) -> io::Result<()> {
    match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let_us_open(path)?;
    if group.is_some() {
        let file = open_both_ways(path)?;
        fchown(&file, None, group)?;
        file.set_permissions(Permissions::from_mode(0o660))?;
    }
    Ok(())
}

/// Lets this user open the pipe at `path` that it made, if its umask does not.
fn let_us_open(path: &Path) -> io::Result<()> {
    const OURS: u32 = 0o600;

    // The pipe itself, for a member of a group could put a link to another file in its place.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let pipe = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = pipe.metadata()?;
    let is_our_pipe = found.file_type().is_fifo() && found.uid() == geteuid().as_raw();
    if is_our_pipe && found.mode() & OURS != OURS {
        let itself = format!("/proc/self/fd/{}", pipe.as_raw_fd());
        fs::set_permissions(itself, Permissions::from_mode(OURS))?;
    }
    Ok(())
}

/// A bell that nobody has, for `some_names` of all, and its number.
fn free_bell(directory: &Directory, some_names: u32) -> Result<(u32, Arc<Bell>), FileError> {
    let first = process::id()
        .wrapping_mul(BELLS_OF_ONE)
        .wrapping_add(some_names);
    for next in 0..BELLS {
        let number = first.wrapping_add(next) % BELLS;
        match open_bell(directory, number) {
            Ok(bell) if bell.claim() => return Ok((number, Arc::new(bell))),
            // It is another's, or somebody has put something else there.
            Ok(_) | Err(FileError::Suspicious { .. }) => {}
            Err(FileError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied => {}
            Err(err) => return Err(err),
        }
    }
    let (folder, _) = directory.place();
    Err(FileError::io(
        "find a pipe of its own in this folder",
        folder,
    )(io::ErrorKind::ResourceBusy.into()))
}

fn open_bell(directory: &Directory, number: u32) -> Result<Bell, FileError> {
    let (_, group) = directory.place();
    Bell::open(Bells::path(directory, number), group)
}
