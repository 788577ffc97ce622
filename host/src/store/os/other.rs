//! Files where there is no Unix: what the standard library has.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Which file it is. Locked files cannot be replaced here, so one is as good as another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileId;

pub(crate) fn id(_file: &File) -> io::Result<FileId> {
    Ok(FileId)
}

/// Nothing is known that tells a file from its copies.
pub(crate) fn number(_file: &File) -> io::Result<u64> {
    Ok(0)
}

pub(crate) fn id_at(path: &Path) -> io::Result<Option<FileId>> {
    Ok(path.try_exists()?.then_some(FileId))
}

pub(crate) fn is_linked(_file: &File) -> io::Result<bool> {
    Ok(true)
}

pub(crate) fn open(path: &Path) -> io::Result<Option<File>> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
}

pub(crate) fn open_read_only(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(err) => Err(err),
    }
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
    open(path)
}

pub(crate) fn create(path: &Path, bytes: &[u8], _group: Option<u32>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(bytes)?;
    file.as_file().sync_data()?;
    match file.persist_noclobber(path) {
        Err(err) if err.error.kind() != io::ErrorKind::AlreadyExists => Err(err.error),
        _ => Ok(()),
    }
}

/// What the files in a folder are called.
pub(crate) fn names(path: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name()))
        .collect()
}

pub(crate) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

pub(crate) fn create_directory(path: &Path, _group: Option<u32>) -> io::Result<()> {
    fs::create_dir_all(path)
}

pub(crate) fn group_of_directory(_path: &Path) -> Option<u32> {
    None
}

pub(crate) fn suspicion(file: &File, _group: Option<u32>) -> io::Result<Option<String>> {
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

pub(crate) fn unsuitable_file_system(_path: &Path) -> io::Result<Option<String>> {
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
