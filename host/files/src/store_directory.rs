//! The directory of a store, or of a gate, held open; opened again when it was moved or recreated.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use verrou_machine::StoreOptions;
use verrou_machine::process::PerProcess;
use verrou_machine::sync::Mutex;

use crate::error::{FileError, OpenError};
use crate::os::{DirectoryAccess, DirectoryError, OpenDirectory, Purpose};

/// The time after which an operation walks the path of its directory again, to notice that a directory
/// above was moved.
pub(crate) const WALKED_AGAIN: Duration = Duration::from_secs(1);

/// An open directory.
#[derive(Debug)]
pub(crate) struct StoreDirectory {
    first: Arc<OpenDirectory>,
    /// The directory that was found at the path later.
    later: PerProcess<Mutex<Option<Arc<OpenDirectory>>>>,
}

impl StoreDirectory {
    /// Opens the directory at `path`; creates it, if it is not a gate's and does not exist.
    pub(crate) fn open(
        path: &Path,
        purpose: Purpose,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        let io = |action, source| OpenError::Directory {
            action,
            path: path.to_owned(),
            source,
        };
        // Before the directories above it are created.
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            let why = "a path cannot contain a NUL byte";
            let invalid = std::io::Error::new(std::io::ErrorKind::InvalidInput, why);
            return Err(io("open this directory", invalid));
        }
        let access = DirectoryAccess {
            purpose,
            group: group_id(options)?,
            create: purpose != Purpose::Gate,
        };
        let opened = match OpenDirectory::open(path, &access) {
            Ok(Some(opened)) => opened,
            Ok(None) => {
                let missing = std::io::ErrorKind::NotFound.into();
                return Err(io("open this directory", missing));
            }
            Err(DirectoryError::Untrusted { path, why }) => {
                return Err(OpenError::Suspicious { path, why });
            }
            Err(DirectoryError::Io { action, source }) => return Err(io(action, source)),
        };
        if !options.any_file_system && !mutant!(AnyFileSystem) {
            let unsuitable = opened.unsuitable_file_system();
            let unsuitable =
                unsuitable.map_err(|err| io("determine the file system of this directory", err))?;
            if let Some(kind) = unsuitable {
                return Err(OpenError::UnsuitableFileSystem {
                    path: opened.path().to_owned(),
                    kind,
                });
            }
        }
        Ok(Self {
            first: Arc::new(opened),
            later: PerProcess::new(),
        })
    }

    /// Returns the directory's path, without links.
    pub(crate) fn path(&self) -> &Path {
        self.first.path()
    }

    /// Returns the directory that was found at the path last.
    pub(crate) fn known(&self) -> Arc<OpenDirectory> {
        let later = self
            .later
            .get()
            .is_some()
            .then(|| self.later.lock().clone());
        later.flatten().unwrap_or_else(|| Arc::clone(&self.first))
    }

    /// Returns the directory that is now at the path; `None` if there is none.
    pub(crate) fn current(&self) -> Result<Option<Arc<OpenDirectory>>, FileError> {
        let known = self.known();
        let inspect = FileError::io("inspect this directory", self.path());
        if known.is_there(WALKED_AGAIN).map_err(inspect)? {
            return Ok(Some(known));
        }
        match OpenDirectory::open(self.path(), known.access()) {
            Ok(None) => Ok(None),
            Ok(Some(found)) => {
                let found = Arc::new(found);
                *self.later.lock() = Some(Arc::clone(&found));
                Ok(Some(found))
            }
            Err(DirectoryError::Untrusted { path, why }) => {
                Err(FileError::Suspicious { path, why })
            }
            Err(DirectoryError::Io { action, source }) => {
                Err(FileError::io(action, self.path())(source))
            }
        }
    }

    /// Returns the directory that is now at the path, to create a file in it.
    pub(crate) fn current_to_create(&self) -> Result<Arc<OpenDirectory>, FileError> {
        let missing = || std::io::ErrorKind::NotFound.into();
        let create = FileError::io("create a file in this directory", self.path());
        self.current()?.ok_or_else(|| create(missing()))
    }
}

/// Returns the number of the group that shares the directory, if there is one.
#[cfg(unix)]
fn group_id(options: &StoreOptions) -> Result<Option<u32>, OpenError> {
    let Some(group) = &options.group else {
        return Ok(None);
    };
    match nix::unistd::Group::from_name(group) {
        Ok(Some(found)) => Ok(Some(found.gid.as_raw())),
        // As in chown(1), a group name that consists of digits takes precedence over a number.
        _ => match group.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(OpenError::UnknownGroup {
                group: group.clone(),
            }),
        },
    }
}

#[cfg(not(unix))]
fn group_id(options: &StoreOptions) -> Result<Option<u32>, OpenError> {
    match &options.group {
        Some(group) => Err(OpenError::UnknownGroup {
            group: group.clone(),
        }),
        None => Ok(None),
    }
}
