//! The lock on exactly one file, at any path: the resolved path, and the name of the lock.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use verrou::Name;

use super::error::{FileError, OpenError};
use super::open_files::{Location, OpenFile, OpenFiles};
use super::{StoreOptions, directory, os};
use crate::process;

pub(super) struct Exact {
    pub(super) path: PathBuf,
    pub(super) files: OpenFiles,
}

impl Exact {
    /// Returns the file, if it exists, for exclusive use.
    pub(super) fn take(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(Some(file));
        }
        let forks = process::forks();
        let opened = os::open_to_look(&self.path);
        match opened.map_err(FileError::io("open this file", &self.path))? {
            Some(file) => OpenFile::new(file, Location::AtPath(self.path.clone()), forks).map(Some),
            None => Ok(None),
        }
    }
}

/// Resolves `path`, creating an empty file if nothing exists there. Returns the resolved path, and the
/// name of its lock.
pub(super) fn exact(path: &Path, options: &StoreOptions) -> Result<(PathBuf, Name), OpenError> {
    let failed = |why: String| OpenError::Path {
        path: path.to_owned(),
        why,
    };
    os::open_to_lock(path).map_err(|err| failed(format!("cannot open this to lock it: {err}")))?;
    let exact = path.canonicalize().map_err(|err| failed(err.to_string()))?;
    if !options.any_file_system {
        directory::refuse_unsuitable(&exact)?;
    }
    let name = Name::new(&name_of(&exact)).map_err(|err| failed(err.to_string()))?;
    Ok((exact, name))
}

/// Returns the name of the lock on `path`: the path itself if it is UTF-8, and otherwise `bytes:` and
/// the path with `%` and all bytes that are not UTF-8 escaped as `%XX`. The escaped name is unique to
/// the path.
fn name_of(path: &Path) -> Cow<'_, str> {
    if let Some(text) = path.to_str() {
        return text.into();
    }
    let mut name = "bytes:".to_owned();
    for chunk in path.as_os_str().as_encoded_bytes().utf8_chunks() {
        name.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    name.into()
}
