//! Opens a file of a store, in whose place another user may have put another file.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::error::FileError;
use crate::os::{self, Names, OpenDirectory};

/// Opens the file `name` in `directory`, if it exists. Rejects a file that is not trusted.
pub(crate) fn open(directory: &OpenDirectory, name: &Path) -> Result<Option<File>, FileError> {
    trusted(directory.open_file(name), directory, name, Names::One)
}

/// Opens the file as [`open`] does, read-only, to read and to lock it.
pub(crate) fn open_read_only(
    directory: &OpenDirectory,
    name: &Path,
) -> Result<Option<File>, FileError> {
    trusted(directory.open_read_only(name), directory, name, Names::One)
}

/// Opens the file as [`open`] does, only to read it. It may have several names.
pub(crate) fn open_linked(
    directory: &OpenDirectory,
    name: &Path,
) -> Result<Option<File>, FileError> {
    let opened = directory.open_read_only(name);
    trusted(opened, directory, name, Names::Several)
}

fn trusted(
    opened: io::Result<Option<File>>,
    directory: &OpenDirectory,
    name: &Path,
    names: Names,
) -> Result<Option<File>, FileError> {
    let path = || directory.path().join(name);
    let file = match opened {
        Ok(Some(file)) => file,
        Ok(None) => return Ok(None),
        // The error of open(2) for a symbolic link, or for a pipe without a reader, needs an explanation.
        Err(_) if directory.is_no_file(name) => {
            return Err(FileError::Suspicious {
                path: path(),
                why: "it is not a regular file".to_owned(),
            });
        }
        Err(source) => return Err(FileError::io("open this file", &path())(source)),
    };
    let inspected = os::suspicion(&file, directory.group(), names);
    match inspected.map_err(|err| FileError::io("inspect this file", &path())(err))? {
        Some(why) => Err(FileError::Suspicious { path: path(), why }),
        None => Ok(Some(file)),
    }
}

/// Returns whether `file` is still the file `name` of `directory`. Without this check, a user who removes or
/// replaces the file would create a second lock of the same name.
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
