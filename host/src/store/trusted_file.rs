//! Opening a store's file where others may have put something else.

use std::fs::File;
use std::io;
use std::path::Path;

use super::error::FileError;
use super::os::{self, OpenDirectory};

/// The file `name` in `directory`, if there is one and it is to be trusted.
pub(crate) fn open(directory: &OpenDirectory, name: &Path) -> Result<Option<File>, FileError> {
    trusted(directory.open_file(name), directory, name)
}

/// Opens the file as [`open`] does, read-only, to read and to lock it.
pub(crate) fn open_read_only(
    directory: &OpenDirectory,
    name: &Path,
) -> Result<Option<File>, FileError> {
    trusted(directory.open_read_only(name), directory, name)
}

fn trusted(
    opened: io::Result<Option<File>>,
    directory: &OpenDirectory,
    name: &Path,
) -> Result<Option<File>, FileError> {
    let path = || directory.path().join(name);
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        // What open(2) says of a symbolic link, and of a pipe that nobody reads, needs a word.
        Err(_) if directory.is_no_file(name) => {
            return Err(FileError::Suspicious {
                path: path(),
                why: "it is not a regular file".to_owned(),
            });
        }
        Err(source) => return Err(FileError::io("open this file", &path())(source)),
    };
    let inspected = os::suspicion(&file, directory.group());
    match inspected.map_err(|err| FileError::io("inspect this file", &path())(err))? {
        Some(why) => Err(FileError::Suspicious { path: path(), why }),
        None => Ok(Some(file)),
    }
}

/// Returns whether `file` is still the file `name` of `directory`: whoever removes or replaces files must
/// not make two locks of one.
pub(crate) fn is_current(
    file: &File,
    directory: &OpenDirectory,
    name: &Path,
) -> Result<bool, FileError> {
    let there = directory.id_below_parent(&directory.path_below_parent(name));
    let same = there.and_then(|there| Ok(there == Some(os::id(file)?)));
    let failed = |err| FileError::io("inspect this file", &directory.path().join(name))(err);
    Ok(same.map_err(failed)? || mutant!(InodeNotChecked))
}
