//! A directory of lock files: the file name of each lock, and opening such a file safely.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use verrou::{Claim, Holder, Name, Process, StoreError};
use verrou_hard_links::file_stem;
use verrou_machine::process::{self, PerProcess};
use verrou_machine::sync::Mutex;
use verrou_machine::{Listed, StoreOptions};

use crate::error::{FileError, OpenError};
use crate::fence_counter::Counter;
use crate::host_identity::Machine;
use crate::open_files::{Location, OpenFile, OpenFiles, Remembered};
use crate::os::{self, OpenDirectory, Purpose};
use crate::record::{self, CHANGING_BYTES, FILE_BYTES, Kind, RECORD_BYTES, Record};
use crate::record_file::{View, wall_clock};
use crate::store_directory::StoreDirectory;
use crate::trusted_file;

/// A directory of lock files of one kind.
#[derive(Debug)]
pub(crate) struct Directory {
    store: StoreDirectory,
    kind: Kind,
    counter: Counter,
    files: OpenFiles,
    /// The label of this process.
    command: Option<String>,
    process: PerProcess<Arc<Process>>,
    /// This process with the label for its next grants, if they have their own label.
    labelled: PerProcess<Mutex<Option<Arc<Process>>>>,
}

impl Directory {
    /// Opens the directory at `path`; creates it if necessary.
    pub(crate) fn open(
        path: &Path,
        kind: Kind,
        purpose: Purpose,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        Machine::detect().map_err(|source| OpenError::Directory {
            action: "read the boot ID of this machine",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            store: StoreDirectory::open(path, purpose, options)?,
            kind,
            counter: Counter::new(),
            files: OpenFiles::new(),
            command: options.label.clone(),
            process: PerProcess::new(),
            labelled: PerProcess::new(),
        })
    }

    /// Returns the file of the lock `name`, if there is one, for exclusive use until the caller
    /// [puts](Self::put) it back.
    pub(crate) fn take(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(Some(file));
        }
        self.with_room(|| self.open_another(name))
    }

    /// Opens the file of the lock `name` again, if there is one, even if it is already open.
    pub(crate) fn open_another(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
        let Some(directory) = self.store.current()? else {
            return Ok(None);
        };
        let name = PathBuf::from(file_name(self.kind, name));
        let forks = process::forks();
        match trusted_file::open(&directory, &name)? {
            Some(file) => OpenFile::new(file, Location::new(directory, name), forks).map(Some),
            None => Ok(None),
        }
    }

    /// Returns what `open` returns. If the process has no free descriptor, closes unused files first.
    pub(crate) fn with_room<T>(
        &self,
        open: impl Fn() -> Result<T, FileError>,
    ) -> Result<T, FileError> {
        loop {
            match open() {
                Err(err) if err.is_for_want_of_descriptors() && self.files.close_idle() => {}
                opened => return opened,
            }
        }
    }

    /// Takes the file of the lock `name` as [`take`](Self::take) does; creates it if necessary.
    pub(crate) fn take_or_create(&self, name: &Name) -> Result<OpenFile, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(file);
        }
        self.with_room(|| self.open_or_create(name))
    }

    /// Returns another open file description of `file`, the file of the lock `name`, which no forked
    /// child has. Returns `None` if the file at its path was replaced.
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
        self.with_room(|| file.another())
    }

    /// Keeps the files of the lock `name` open until [`unwant`](Self::unwant).
    pub(crate) fn want(&self, name: &Name) {
        self.files.want(name);
    }

    /// Ends a [`want`](Self::want).
    pub(crate) fn unwant(&self, name: &Name) {
        self.files.unwant(name);
    }

    /// Returns the open directory, for its wake pipes.
    #[cfg(target_os = "linux")]
    pub(crate) fn known(&self) -> Arc<OpenDirectory> {
        self.store.known()
    }

    /// Returns a path by which the kernel finds the file of the lock `name`, to watch it.
    #[cfg(target_os = "linux")]
    pub(crate) fn path_to_watch(&self, name: &Name) -> io::Result<PathBuf> {
        let current = self.store.current().map_err(io::Error::other)?;
        let directory = current.ok_or(io::ErrorKind::NotFound)?;
        Ok(directory.path_for_kernel(Path::new(&file_name(self.kind, name))))
    }

    /// Puts back a file that [`take`](Self::take) returned.
    pub(crate) fn put(&self, name: &Name, file: OpenFile) {
        self.files.put(name, file);
    }

    /// Opens the file of the lock `name`; creates it if necessary.
    fn open_or_create(&self, name: &Name) -> Result<OpenFile, FileError> {
        loop {
            if let Some(file) = self.open_another(name)? {
                return Ok(file);
            }
            let bytes = record::new_file(self.kind, name);
            let directory = self.store.current_to_create()?;
            let name = PathBuf::from(file_name(self.kind, name));
            let created = directory.create(&name, &bytes);
            created.map_err(FileError::io(
                "create this file",
                &directory.path().join(name),
            ))?;
        }
    }

    /// Reads `file`, the file of the lock `name`.
    pub(crate) fn read(&self, file: &OpenFile, name: &Name) -> Result<View, FileError> {
        let failed = || FileError::io("read this file", file.path());
        let corrupt = |corruption| FileError::Corrupt {
            path: file.path().to_owned(),
            corruption,
            name: name.clone(),
        };
        // A forked child may be in a different time namespace from the process that opened the store.
        Machine::detect().map_err(FileError::io("compare clocks for this file", file.path()))?;
        let runs_since = |boot| Machine::this().may_run_since(boot);
        let mut buffer = [0; FILE_BYTES + 1];
        let bytes = os::read_at(file.file(), &mut buffer, 0).map_err(failed())?;
        let view = |record: Option<Arc<Record>>| View {
            mark: record::mark_of(bytes),
            file: file.number(),
            greatest: file.note_fence(record.as_ref().map_or(0, |record| record.fence)),
            record,
        };
        let mut remembered = file.remembered();
        // The queue's mark and touch may differ: they are not part of the record.
        let is_as_before = |before: &[u8; FILE_BYTES], bytes: &[u8]| {
            bytes.len() == FILE_BYTES
                && bytes[..RECORD_BYTES] == before[..RECORD_BYTES]
                && bytes[CHANGING_BYTES..] == before[CHANGING_BYTES..]
        };
        let record = match &*remembered {
            Some(known) if is_as_before(&known.bytes, bytes) => known.record.clone(),
            _ => {
                let record = record::read(self.kind, name, bytes, runs_since)
                    .map_err(corrupt)?
                    .map(Arc::new);
                if file.is_contended() {
                    // Do not remember a record that will have changed before it is read again.
                    *remembered = None;
                    return Ok(view(record));
                }
                let mut known = Box::new([0; FILE_BYTES]);
                known.copy_from_slice(bytes);
                *remembered = Some(Remembered {
                    bytes: known,
                    record: record.clone(),
                });
                record
            }
        };
        Ok(view(record))
    }

    /// Records `label` as the label of this process in grants from now on; `None` restores the label
    /// with which the store was opened.
    pub(crate) fn set_label(&self, label: Option<&str>) {
        let this = label.map(|label| Arc::new(Machine::this().process(process::id(), Some(label))));
        *self.labelled.lock() = this;
    }

    /// Returns this process, for a record.
    pub(crate) fn process(&self) -> Arc<Process> {
        if self.labelled.get().is_some()
            && let Some(process) = &*self.labelled.lock()
        {
            return Arc::clone(process);
        }
        let process = self.process.get_or_init(|| {
            let id = process::id();
            Arc::new(Machine::this().process(id, self.command.as_deref()))
        });
        Arc::clone(process)
    }

    /// Returns the record of a grant for `claim` at `now`, as the successor of the contents `before` of
    /// `file`. The tickets up to `served` do not wait any more. Returns `None` if the file was replaced
    /// meanwhile.
    pub(crate) fn new_record(
        &self,
        file: &OpenFile,
        claim: &Claim,
        before: &View,
        served: u64,
        now: Duration,
    ) -> Result<Option<Record>, FileError> {
        let before_it = before.record.as_deref();
        let (fence, last_fence) = self.next_fence(before)?;
        let is_allotted = before_it.is_none_or(|record| record.last_fence != last_fence);
        // A process that acquired the lock in the file that replaced this one was allotted smaller numbers.
        if is_allotted && !mutant!(ReplacedWhileAllotted) && !file.is_current()? {
            return Ok(None);
        }
        let machine = Machine::this();
        let wall = wall_clock();
        let record = Record {
            sequence: before_it.map_or(0, |record| record.sequence),
            held: true,
            ephemeral: claim.ephemeral,
            fence,
            last_fence,
            owner: claim.owner,
            boot: machine.boot(),
            time_namespace: machine.time_namespace,
            ttl: None,
            ends: Duration::ZERO,
            ends_wall: Duration::ZERO,
            since_wall: wall,
            process: self.process(),
            served,
            notifies: false,
            file: before.file,
        };
        Ok(Some(record.lasting(claim.ttl, now, wall)))
    }

    /// Returns the fence of a new grant as the successor of the contents `before`, and the last fence
    /// that may be granted before the counter must be read again.
    fn next_fence(&self, before: &View) -> Result<(u64, u64), FileError> {
        let record = before.record.as_deref();
        match record {
            // After a reboot, the last writes before it may be lost. In a copy that was put back in the
            // place of the file, the writes after the copy are missing.
            Some(record)
                if (Machine::this().runs_since(record.boot)
                    || mutant!(FencesGoOnAfterPowerLoss))
                    && [0, before.file].contains(&record.file)
                    && before.greatest <= record.fence
                    && record.fence < record.last_fence =>
            {
                Ok((record.fence + 1, record.last_fence))
            }
            _ => {
                let at_least = record.map_or(0, |record| record.last_fence);
                self.with_room(|| {
                    let directory = self.store.current_to_create()?;
                    let greatest = || greatest_fence(&directory);
                    self.counter.allot(&directory, at_least, greatest)
                })
            }
        }
    }

    /// Returns the held names and their holders, as `inspect` returns them, and an error for each file that
    /// cannot be read.
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

    /// Returns the sorted names of the locks that have a file in this directory, and an error for each file
    /// without a readable name.
    fn names(&self) -> Result<Vec<Result<Name, FileError>>, FileError> {
        let Some(directory) = self.store.current()? else {
            return Err(FileError::io("list this directory", self.store.path())(
                io::ErrorKind::NotFound.into(),
            ));
        };
        let mut names: Vec<_> = files(&directory, self.kind)?
            .into_iter()
            .filter_map(|file| {
                let whole = whole(&directory, self.kind, &file);
                whole.map(|whole| whole.map(|(name, _)| name)).transpose()
            })
            .collect();
        names.sort_by(|one, two| one.as_ref().ok().cmp(&two.as_ref().ok()));
        Ok(names)
    }
}

/// Returns the greatest fence that any file in `directory`, of either kind, may have granted. This
/// initializes the counter if it was lost.
fn greatest_fence(directory: &OpenDirectory) -> Result<u64, FileError> {
    let runs_since = |boot| Machine::this().may_run_since(boot);
    let mut greatest = 0;
    for kind in [Kind::Lease, Kind::Lock] {
        for file in files(directory, kind)? {
            let Some((name, bytes)) = whole(directory, kind, &file)? else {
                continue;
            };
            let record = record::read(kind, &name, &bytes, runs_since);
            let record = record.map_err(|corruption| FileError::Corrupt {
                path: directory.path().join(&file),
                corruption,
                name,
            })?;
            greatest = greatest.max(record.map_or(0, |record| record.last_fence));
        }
    }
    Ok(greatest)
}

/// Returns the lock's name in the file `file`, which has that kind, and its contents; `None` if the file has
/// just been removed.
fn whole(
    directory: &OpenDirectory,
    kind: Kind,
    file: &Path,
) -> Result<Option<(Name, Vec<u8>)>, FileError> {
    let Some(opened) = trusted_file::open(directory, file)? else {
        return Ok(None);
    };
    let path = directory.path().join(file);
    let mut buffer = [0; FILE_BYTES + 1];
    let bytes =
        os::read_at(&opened, &mut buffer, 0).map_err(FileError::io("read this file", &path))?;
    match record::name_of(kind, bytes) {
        Ok(name) => Ok(Some((name, bytes.to_vec()))),
        Err(corruption) => Err(FileError::Nameless { path, corruption }),
    }
}

/// Returns the file names of all locks of that kind.
fn files(directory: &OpenDirectory, kind: Kind) -> Result<Vec<PathBuf>, FileError> {
    let names = directory.names();
    let names = names.map_err(FileError::io("list this directory", directory.path()))?;
    let is_of_kind = |name: &PathBuf| {
        name.extension()
            .is_some_and(|extension| extension == kind.extension())
    };
    let names = names.into_iter().map(PathBuf::from);
    Ok(names.filter(is_of_kind).collect())
}

/// Returns the file name of the lock `name`.
pub(crate) fn file_name(kind: Kind, name: &Name) -> String {
    format!("{}.{}", file_stem(name), kind.extension())
}
