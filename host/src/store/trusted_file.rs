//! Opening a store's file where others may have put something else.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::error::FileError;
use super::os;

/// The file at `path`, if there is one and it is to be trusted; `group` is whose the store is.
pub(crate) fn open(path: &Path, group: Option<u32>) -> Result<Option<File>, FileError> {
    trusted(os::open(path), path, group)
}

/// Opens the file as [`open`] does, read-only, to read and to lock it.
pub(crate) fn open_read_only(path: &Path, group: Option<u32>) -> Result<Option<File>, FileError> {
    trusted(os::open_read_only(path), path, group)
}

fn trusted(
    opened: io::Result<Option<File>>,
    path: &Path,
    group: Option<u32>,
) -> Result<Option<File>, FileError> {
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        Err(source) => return Err(open_error(path, source)),
    };
    match os::suspicion(&file, group).map_err(FileError::io("inspect this file", path))? {
        Some(why) => Err(FileError::Suspicious {
            path: path.to_owned(),
            why,
        }),
        None => Ok(Some(file)),
    }
}

/// What open(2) says of a symbolic link, and of a pipe that nobody reads, needs a word.
fn open_error(path: &Path, source: io::Error) -> FileError {
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.is_file() => FileError::Suspicious {
            path: path.to_owned(),
            why: "it is not a regular file".to_owned(),
        },
        _ => FileError::io("open this file", path)(source),
    }
}
