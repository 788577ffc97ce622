//! The files of the store, by `wasi:filesystem`.

use verrou_hard_links::{Linked, StateFiles};
use wasip2::filesystem::preopens::get_directories;
use wasip2::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorType, ErrorCode, OpenFlags, PathFlags,
};
use wasip2::random::random::get_random_u64;

use crate::exports::verrou::lock::store::{StoreError, StoreErrorCode};
use crate::failure::{self, FileFailure};

/// The name of the preopened directory. Another name would change with the directories that an application gets for
/// other purposes, and so would the locks.
const PREOPENED: &str = "locks";

/// More entries than other processes remove while a directory is listed.
const MOST_REMOVED: u32 = 10_000;

/// An open directory: the store's, or that of a lock.
pub struct Directory {
    descriptor: Descriptor,
    path: String,
}

impl Directory {
    /// Returns the preopened directory of the store.
    pub fn preopened() -> Result<Self, StoreError> {
        let found = get_directories().into_iter().find(|(_, path)| {
            let path = path.strip_prefix("./").unwrap_or(path);
            path.strip_prefix('/').unwrap_or(path) == PREOPENED
        });
        match found {
            Some((descriptor, path)) => Ok(Self { descriptor, path }),
            None => Err(failure::permanent(
                StoreErrorCode::Other("no-directory".to_owned()),
                format!(
                    "this component has no preopened directory `{PREOPENED}`; give it one, as \
                     `wasmtime run --dir DIR::{PREOPENED}` does"
                ),
            )),
        }
    }

    /// Returns the path of this directory, as this component sees it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Opens the directory `name` in this one, and creates it if `create` is set; returns `None` if there is none.
    pub fn below(&self, name: &str, create: bool) -> Result<Option<Self>, FileFailure> {
        let open = || {
            let flags = DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY;
            let opened =
                self.descriptor
                    .open_at(PathFlags::empty(), name, OpenFlags::DIRECTORY, flags);
            if_there(opened).map_err(self.failed("open this directory", name))
        };
        let mut opened = open()?;
        if opened.is_none() && create {
            match self.descriptor.create_directory_at(name) {
                Ok(()) | Err(ErrorCode::Exist) => opened = open()?,
                Err(code) => return Err(self.failed("create this directory", name)(code)),
            }
        }
        Ok(opened.map(|descriptor| Self {
            descriptor,
            path: format!("{}/{name}", self.path),
        }))
    }

    fn failed(&self, action: &'static str, name: &str) -> impl Fn(ErrorCode) -> FileFailure {
        let path = format!("{}/{name}", self.path);
        move |code| FileFailure {
            action,
            path: path.clone(),
            code,
        }
    }
}

/// Returns `None` for a file that does not exist.
fn if_there<T>(opened: Result<T, ErrorCode>) -> Result<Option<T>, ErrorCode> {
    match opened {
        Ok(opened) => Ok(Some(opened)),
        Err(ErrorCode::NoEntry) => Ok(None),
        Err(code) => Err(code),
    }
}

/// Writes all of `bytes` to a new file, and syncs them to the disk.
fn write(file: &Descriptor, bytes: &[u8]) -> Result<(), ErrorCode> {
    let mut written = 0;
    while written < bytes.len() {
        let count = file.write(&bytes[written..], written as u64)?;
        if count == 0 {
            return Err(ErrorCode::Io);
        }
        written += usize::try_from(count).map_err(|_| ErrorCode::Io)?;
    }
    file.sync_data()
}

/// Returns at most `limit` bytes of a file.
fn read(file: &Descriptor, limit: usize) -> Result<Vec<u8>, ErrorCode> {
    let mut bytes = Vec::new();
    while bytes.len() < limit {
        let (more, is_end) = file.read((limit - bytes.len()) as u64, bytes.len() as u64)?;
        let is_end = is_end || more.is_empty();
        bytes.extend(more);
        if is_end {
            break;
        }
    }
    Ok(bytes)
}

impl StateFiles for Directory {
    type Error = FileFailure;

    fn list(&self) -> Result<Vec<String>, FileFailure> {
        let list = || {
            let entries = self.descriptor.read_directory()?;
            let (mut names, mut removed) = (Vec::new(), 0);
            loop {
                match entries.read_directory_entry() {
                    Ok(Some(entry)) => names.push(entry.name),
                    Ok(None) => return Ok(names),
                    // Wasmtime reads the kind of each entry, which another process may have removed meanwhile.
                    Err(ErrorCode::NoEntry) if removed < MOST_REMOVED => removed += 1,
                    Err(code) => return Err(code),
                }
            }
        };
        list().map_err(self.failed("list this directory", "."))
    }

    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, FileFailure> {
        let flags = DescriptorFlags::READ;
        let opened = self
            .descriptor
            .open_at(PathFlags::empty(), name, OpenFlags::empty(), flags);
        let failed = self.failed("read this file", name);
        let Some(file) = if_there(opened).map_err(&failed)? else {
            return Ok(None);
        };
        match file.get_type() {
            Ok(DescriptorType::RegularFile) => read(&file, limit).map(Some).map_err(failed),
            Ok(_) => Err(failed(ErrorCode::Unsupported)),
            Err(code) => Err(failed(code)),
        }
    }

    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), FileFailure> {
        let create = OpenFlags::CREATE | OpenFlags::EXCLUSIVE;
        let opened =
            self.descriptor
                .open_at(PathFlags::empty(), name, create, DescriptorFlags::WRITE);
        let written = opened.and_then(|file| write(&file, bytes));
        written.map_err(self.failed("create this file", name))
    }

    fn link(&self, from: &str, to: &str) -> Result<Linked, FileFailure> {
        let linked = self
            .descriptor
            .link_at(PathFlags::empty(), from, &self.descriptor, to);
        match linked {
            Ok(()) => Ok(Linked::Done),
            Err(ErrorCode::Exist) => Ok(Linked::Exists),
            Err(ErrorCode::NoEntry) => Ok(Linked::Gone),
            Err(ErrorCode::NotPermitted | ErrorCode::Unsupported | ErrorCode::TooManyLinks) => {
                Ok(Linked::Refused)
            }
            Err(code) => Err(self.failed("link this file", from)(code)),
        }
    }

    fn delete(&self, name: &str) -> Result<(), FileFailure> {
        match self.descriptor.unlink_file_at(name) {
            Ok(()) | Err(ErrorCode::NoEntry) => Ok(()),
            Err(code) => Err(self.failed("remove this file", name)(code)),
        }
    }

    fn sync(&self) -> Result<(), FileFailure> {
        match self.descriptor.sync() {
            // Some hosts cannot sync a directory.
            Ok(())
            | Err(ErrorCode::Unsupported | ErrorCode::Invalid | ErrorCode::BadDescriptor) => Ok(()),
            Err(code) => Err(self.failed("sync this directory", ".")(code)),
        }
    }

    fn random(&self) -> u128 {
        u128::from(get_random_u64()) << 64 | u128::from(get_random_u64())
    }
}
