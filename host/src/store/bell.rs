//! What wakes a process that waits: a named pipe, fifo(7), that it reads.
//!
//! A pipe and not a file that inotify(7) tells of, for who writes to it and then goes to sleep
//! leaves its core to the one it wakes.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::error::FileError;
use super::{kernel_lock, os};

/// A pipe, open for reading and writing.
#[derive(Debug)]
pub(crate) struct Bell(File);

impl Bell {
    /// The bell at `path`, made if need be, for this user or this group alone.
    pub(crate) fn open(path: PathBuf, group: Option<u32>) -> Result<Self, FileError> {
        let file = loop {
            match open(&path) {
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

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opened for both, it waits for nobody at the other end.
fn open(path: &Path) -> io::Result<File> {
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
    if group.is_some() {
        let file = open(path)?;
        fchown(&file, None, group)?;
        file.set_permissions(Permissions::from_mode(0o660))?;
    }
    Ok(())
}
