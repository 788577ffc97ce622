//! A folder of lock files: which file is whose, and opening one safely.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};
use verrou::{Holder, Name, StoreError};

use super::counter::Counter;
use super::error::{FileError, OpenError};
use super::machine::Machine;
use super::open_files::{OpenFile, OpenFiles};
use super::os;
use super::record::{self, FILE_BYTES, Kind, Record};
use super::trusted_file;
use super::{Listed, StoreOptions};

/// A folder of lock files of one kind.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    kind: Kind,
    group: Option<u32>,
    counter: Counter,
    files: OpenFiles,
}

impl Directory {
    /// The folder at `path`, made if need be.
    pub(crate) fn open(path: &Path, kind: Kind, options: &StoreOptions) -> Result<Self, OpenError> {
        let failed = |action| {
            move |source| OpenError::Directory {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let group = options.group_id()?;
        os::create_directory(path, group).map_err(failed("create this folder"))?;
        // One spelling for all, whatever the working folder is later.
        let path = &fs::canonicalize(path).map_err(failed("read this folder"))?;
        if let Some(why) =
            os::suspicious_directory(path, group).map_err(failed("read this folder"))?
        {
            return Err(OpenError::Suspicious {
                path: path.clone(),
                why,
            });
        }
        if !options.any_file_system {
            refuse_unsuitable(path)?;
        }
        let counter = Counter::new(path.join("fences"), group);
        Ok(Self {
            path: path.clone(),
            kind,
            group,
            counter,
            files: OpenFiles::new(),
        })
    }

    /// The file of the lock `name`, if there is one, for the caller alone, who
    /// [puts](Self::put) it back.
    pub(crate) fn take(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(Some(file));
        }
        let path = self.path_of(name);
        match self.open_file(&path)? {
            Some(file) => OpenFile::new(file, path).map(Some),
            None => Ok(None),
        }
    }

    /// [`take`](Self::take), of a file that is made if need be.
    pub(crate) fn take_or_create(&self, name: &Name) -> Result<OpenFile, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(file);
        }
        let path = self.path_of(name);
        OpenFile::new(self.open_or_create(&path, name)?, path)
    }

    /// Another open file description of `file`, which is the lock `name`'s; `None` when there is
    /// another file at its path.
    pub(crate) fn take_another(
        &self,
        name: &Name,
        file: &OpenFile,
    ) -> Result<Option<OpenFile>, FileError> {
        while let Some(another) = self.files.take(name) {
            if another.is_same(file) {
                return Ok(Some(another));
            }
        }
        let Some(opened) = self.open_file(file.path())? else {
            return Ok(None);
        };
        let another = OpenFile::new(opened, file.path().to_owned())?;
        Ok(another.is_same(file).then_some(another))
    }

    /// Keeps the files of the lock `name` open until [`unwant`](Self::unwant).
    pub(crate) fn want(&self, name: &Name) {
        self.files.want(name);
    }

    /// The end of a [`want`](Self::want).
    pub(crate) fn unwant(&self, name: &Name) {
        self.files.unwant(name);
    }

    /// Where the bell of that number is.
    pub(crate) fn bell_path(&self, bell: u32) -> PathBuf {
        self.path.join(format!("{bell:02}.bell"))
    }

    /// The bell of that number, made if need be.
    pub(crate) fn open_bell(&self, bell: u32) -> Result<OpenFile, FileError> {
        let path = self.bell_path(bell);
        loop {
            if let Some(file) = self.open_file(&path)? {
                return OpenFile::new(file, path);
            }
            os::create(&path, &[0], self.group)
                .map_err(FileError::io("create this file", &path))?;
        }
    }

    /// The end of a [`take`](Self::take).
    pub(crate) fn put(&self, name: &Name, file: OpenFile) {
        self.files.put(name, file);
    }

    /// The file of the lock `name`.
    ///
    /// Some of the name, for people, and enough of its SHA-256 that no two names share a file:
    /// no name is too long or too odd, and no file system's view of case or Unicode matters.
    pub(crate) fn path_of(&self, name: &Name) -> PathBuf {
        const READABLE: usize = 40;
        const HASHED: usize = 26; // 130 bits

        let keep = |char: char| {
            if char.is_ascii_alphanumeric() {
                char.to_ascii_lowercase()
            } else {
                '_'
            }
        };
        let readable: String = name.as_str().chars().take(READABLE).map(keep).collect();
        let hash = BASE32_NOPAD
            .encode(&Sha256::digest(name.as_str()))
            .to_ascii_lowercase();
        self.path.join(format!(
            "{readable}.{}.{}",
            &hash[..HASHED],
            self.extension()
        ))
    }

    fn extension(&self) -> &'static str {
        match self.kind {
            Kind::Lease => "lease",
            Kind::Lock => "lock",
        }
    }

    /// The file at `path`, if there is one and it is to be trusted.
    pub(crate) fn open_file(&self, path: &Path) -> Result<Option<File>, FileError> {
        trusted_file::open(path, self.group)
    }

    /// The file of the lock `name`, made if need be.
    pub(crate) fn open_or_create(&self, path: &Path, name: &Name) -> Result<File, FileError> {
        loop {
            if let Some(file) = self.open_file(path)? {
                return Ok(file);
            }
            let bytes = record::new_file(self.kind, name);
            os::create(path, &bytes, self.group)
                .map_err(FileError::io("create this file", path))?;
        }
    }

    /// What the file of the lock `name` says; `None` when the lock was never granted.
    pub(crate) fn read(&self, file: &OpenFile, name: &Name) -> Result<Option<Record>, FileError> {
        let path = file.path();
        let mut buffer = [0; FILE_BYTES + 1];
        let bytes =
            os::read(file.file(), &mut buffer).map_err(FileError::io("read this file", path))?;
        let damaged = |damage| FileError::Damaged {
            path: path.to_owned(),
            damage,
            name: name.clone(),
        };
        record::read(self.kind, name, bytes, |boot| {
            Machine::this().runs_since(boot)
        })
        .map_err(damaged)
    }

    /// The fence of a new grant after what the file said, and the last one before the counter
    /// is to be asked again.
    pub(crate) fn next_fence(&self, before: Option<&Record>) -> Result<(u64, u64), FileError> {
        match before {
            // After a new start of the machine, the last writes before it may be gone.
            Some(record)
                if Machine::this().runs_since(record.boot) && record.fence < record.last_fence =>
            {
                Ok((record.fence + 1, record.last_fence))
            }
            _ => self
                .counter
                .allot(before.map_or(0, |record| record.last_fence), || {
                    self.greatest_fence()
                }),
        }
    }

    /// The names that are held, and by whom, as `inspect` says; an error for each file of which
    /// that cannot be told.
    pub(crate) fn held(
        &self,
        inspect: impl Fn(&Name) -> Result<Option<Holder>, StoreError>,
    ) -> Result<Vec<Listed>, StoreError> {
        let holder = |name: Result<Name, FileError>| {
            let name = name?;
            Ok(inspect(&name)?.map(|holder| (name, holder)))
        };
        let names = self.names()?.into_iter();
        Ok(names.map(holder).filter_map(Result::transpose).collect())
    }

    /// The names that have a file here, in their order; an error for each file that has none.
    fn names(&self) -> Result<Vec<Result<Name, FileError>>, FileError> {
        let mut names: Vec<_> = self
            .files()?
            .into_iter()
            .filter_map(|path| self.name_of(&path).transpose())
            .collect();
        names.sort_by(|one, two| one.as_ref().ok().cmp(&two.as_ref().ok()));
        Ok(names)
    }

    /// The name in the file at `path`; `None` when it has just been removed.
    fn name_of(&self, path: &Path) -> Result<Option<Name>, FileError> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut buffer = [0; FILE_BYTES + 1];
        let bytes = os::read(&file, &mut buffer).map_err(FileError::io("read this file", path))?;
        let damaged = |damage| FileError::Nameless {
            path: path.to_owned(),
            damage,
        };
        record::name_of(self.kind, bytes).map(Some).map_err(damaged)
    }

    /// The greatest fence that any file here may have granted, for a counter that was lost.
    fn greatest_fence(&self) -> Result<u64, FileError> {
        let mut greatest = 0;
        for name in self.names()? {
            let name = name?;
            let path = self.path_of(&name);
            if let Some(file) = self.open_file(&path)?
                && let Some(record) = self.read(&OpenFile::new(file, path)?, &name)?
            {
                greatest = greatest.max(record.last_fence);
            }
        }
        Ok(greatest)
    }

    fn files(&self) -> Result<Vec<PathBuf>, FileError> {
        let failed = |source| FileError::Io {
            action: "list this folder",
            path: self.path.clone(),
            source,
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == self.extension())
            {
                files.push(path);
            }
        }
        Ok(files)
    }
}

/// Lets `file` say `record`.
pub(crate) fn write(file: &OpenFile, record: &Record) -> Result<(), FileError> {
    let (offset, slot) = record::write(record);
    os::write_at(file.file(), &slot, offset).map_err(FileError::io("write this file", file.path()))
}

/// Refuses a folder on whose file system locks are not to be trusted.
pub(crate) fn refuse_unsuitable(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Directory {
        action: "tell the file system of this folder",
        path: path.to_owned(),
        source,
    };
    match os::unsuitable_file_system(path).map_err(failed)? {
        Some(kind) => Err(OpenError::UnsuitableFileSystem {
            path: path.to_owned(),
            kind,
        }),
        None => Ok(()),
    }
}
