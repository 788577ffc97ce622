//! The lock on exactly one file, at any path: the resolved path, and the name of the lock.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use verrou::Name;
use verrou_machine::{StoreOptions, process};

use crate::error::{FileError, OpenError};
use crate::open_files::{Location, OpenFile, OpenFiles};
use crate::os;

pub(crate) struct Exact {
    pub(crate) path: PathBuf,
    pub(crate) files: OpenFiles,
}

impl Exact {
    /// Returns the file, if it exists, for exclusive use.
    pub(crate) fn take(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
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
pub(crate) fn exact(path: &Path, options: &StoreOptions) -> Result<(PathBuf, Name), OpenError> {
    let failed = |why: String| OpenError::Path {
        path: path.to_owned(),
        why,
    };
    let file = os::open_to_lock(path)
        .map_err(|err| failed(format!("cannot open this to lock it: {err}")))?;
    let exact = resolved(path).map_err(|err| failed(err.to_string()))?;
    if !options.any_file_system {
        let kind = os::unsuitable_file_system(&file).map_err(|source| OpenError::Directory {
            action: "determine the file system of this file",
            path: exact.clone(),
            source,
        })?;
        if let Some(kind) = kind {
            return Err(OpenError::UnsuitableFileSystem { path: exact, kind });
        }
    }
    let name = Name::new(&name_of(&exact)).map_err(|err| failed(err.to_string()))?;
    Ok((exact, name))
}

/// Returns the absolute path of the file at `path`, without links, also if that file was removed after it was
/// opened, as logrotate(8) and editors do.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    /// As many as the kernel follows: `path_resolution(7)`.
    const LINKS: usize = 40;

    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match path.canonicalize() {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let name = path.file_name().ok_or(io::ErrorKind::NotFound)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        match path.read_link() {
            Ok(target) => path = directory.join(target),
            Err(_) => return Ok(Path::new(".").join(directory).canonicalize()?.join(name)),
        }
    }
    Err(io::ErrorKind::NotFound.into())
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
