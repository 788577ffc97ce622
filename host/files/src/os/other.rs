//! The functions of files that the stores use, on systems other than Unix: those of the standard library.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{DirectoryAccess, DirectoryError, Names};

/// The identity of a file. Locked files cannot be replaced on this system, so all identities are equal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileId;

pub(crate) fn id(_file: &File) -> io::Result<FileId> {
    Ok(FileId)
}

/// Returns zero: this system has no number that distinguishes a file from its copies.
pub(crate) fn number(_file: &File) -> io::Result<u64> {
    Ok(0)
}

pub(crate) fn id_at(path: &Path) -> io::Result<Option<FileId>> {
    Ok(path.try_exists()?.then_some(FileId))
}

pub(crate) fn is_linked(_file: &File) -> io::Result<bool> {
    Ok(true)
}

/// A directory, identified by its path.
#[derive(Debug)]
pub(crate) struct OpenDirectory {
    path: PathBuf,
    access: DirectoryAccess,
}

impl OpenDirectory {
    /// Opens the directory at `path`, and creates it if `access.create` is set; returns `None` if there
    /// is none.
    pub(crate) fn open(
        path: &Path,
        access: &DirectoryAccess,
    ) -> Result<Option<Self>, DirectoryError> {
        if access.create {
            fs::create_dir_all(path).map_err(DirectoryError::io("create this directory"))?;
        }
        match fs::canonicalize(path) {
            Ok(path) => Ok(Some(Self {
                path,
                access: DirectoryAccess {
                    create: false,
                    ..access.clone()
                },
            })),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(DirectoryError::io("open this directory")(err)),
        }
    }

    /// Opens the directory `name` in this one, and creates it if `create` is set; returns `None` if there is none.
    pub(crate) fn open_below(
        &self,
        name: &Path,
        create: bool,
    ) -> Result<Option<Self>, DirectoryError> {
        let access = DirectoryAccess {
            create,
            ..self.access.clone()
        };
        Self::open(&self.path.join(name), &access)
    }

    pub(crate) fn create_draft(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::create_new(self.path.join(name))?;
        file.write_all(bytes)?;
        file.sync_data()
    }

    pub(crate) fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(self.path.join(from), self.path.join(to))
    }

    pub(crate) fn remove(&self, name: &Path) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn group(&self) -> Option<u32> {
        self.access.group
    }

    pub(crate) fn access(&self) -> &DirectoryAccess {
        &self.access
    }

    pub(crate) fn path_below_parent(&self, name: &Path) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn id_below_parent(&self, path: &Path) -> io::Result<Option<FileId>> {
        id_at(path)
    }

    pub(crate) fn is_there(&self, _at_most: Duration) -> io::Result<bool> {
        self.path.try_exists()
    }

    pub(crate) fn is_parent_there(&self, _at_most: Duration) -> io::Result<bool> {
        Ok(true)
    }

    pub(crate) fn open_file(&self, name: &Path) -> io::Result<Option<File>> {
        if_there(
            File::options()
                .read(true)
                .write(true)
                .open(self.path.join(name)),
        )
    }

    pub(crate) fn open_read_only(&self, name: &Path) -> io::Result<Option<File>> {
        if_there(File::open(self.path.join(name)))
    }

    pub(crate) fn is_no_file(&self, name: &Path) -> bool {
        fs::symlink_metadata(self.path.join(name)).is_ok_and(|found| !found.is_file())
    }

    pub(crate) fn create(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
        file.write_all(bytes)?;
        file.as_file().sync_data()?;
        match file.persist_noclobber(self.path.join(name)) {
            Err(err) if err.error.kind() != io::ErrorKind::AlreadyExists => Err(err.error),
            _ => Ok(()),
        }
    }

    pub(crate) fn names(&self) -> io::Result<Vec<OsString>> {
        fs::read_dir(&self.path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect()
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    pub(crate) fn unsuitable_file_system(&self) -> io::Result<Option<String>> {
        Ok(None)
    }
}

fn if_there(opened: io::Result<File>) -> io::Result<Option<File>> {
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

/// Returns whether the error of a link means that the file system has no hard links.
pub(crate) fn is_link_refused(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::Unsupported
}

/// Returns a duplicate; descriptors are not inherited on this system.
pub(crate) fn duplicate_to_inherit(file: &File) -> io::Result<File> {
    file.try_clone()
}

pub(crate) fn open_to_lock(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

pub(crate) fn open_to_look(path: &Path) -> io::Result<Option<File>> {
    if_there(File::options().read(true).write(true).open(path))
}

pub(crate) fn suspicion(
    file: &File,
    _group: Option<u32>,
    _names: Names,
) -> io::Result<Option<String>> {
    Ok((!file.metadata()?.is_file()).then(|| "it is not a regular file".to_owned()))
}

/// Returns true: access is not checked on this system.
#[expect(clippy::unnecessary_wraps, reason = "other systems ask for the owner")]
pub(crate) fn is_owned(_file: &File) -> io::Result<bool> {
    Ok(true)
}

pub(crate) fn suspicious_directory(
    _path: &Path,
    _group: Option<u32>,
) -> io::Result<Option<String>> {
    Ok(None)
}

pub(crate) fn unsuitable_file_system(_file: &File) -> io::Result<Option<String>> {
    Ok(None)
}

pub(crate) fn locker(_file: &File) -> io::Result<Option<u32>> {
    Ok(None)
}

pub(crate) fn read_at<'a>(file: &File, buffer: &'a mut [u8], offset: u64) -> io::Result<&'a [u8]> {
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    let mut read = 0;
    while read < buffer.len() {
        match file.read(&mut buffer[read..]) {
            Ok(0) => break,
            Ok(count) => read += count,
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(err),
        }
    }
    Ok(&buffer[..read])
}

pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut file = file;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(bytes)
}

pub(crate) fn is_kernels(_file: &File) -> bool {
    true
}
