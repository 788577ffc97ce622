//! A folder of lock files: which file is whose, and opening one safely.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};
use verrou::blocking::Host;
use verrou::{Claim, Clock, Holder, Name, Process, StoreError};

use super::counter::Counter;
use super::error::{FileError, OpenError};
use super::machine::Machine;
use super::open_files::{OpenFile, OpenFiles, Remembered};
use super::os;
use super::record::{
    self, CHANGING_BYTES, COUNTED, FILE_BYTES, Kind, MARK_AT, RECORD_BYTES, Record, TOUCH_AT,
    Version,
};
use super::trusted_file;
use super::{Listed, StoreOptions};
use crate::System;
use crate::process::{self, PerProcess};
use crate::sync::Mutex;

/// A folder of lock files of one kind.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    kind: Kind,
    group: Option<u32>,
    counter: Counter,
    files: OpenFiles,
    /// What this process is said to run.
    command: Option<String>,
    process: PerProcess<Arc<Process>>,
    /// This process with the label for its next grants, if they have their own label.
    labelled: PerProcess<Mutex<Option<Arc<Process>>>>,
}

/// What a file says.
#[derive(Debug)]
pub(crate) struct View {
    /// Nothing when the lock was never granted.
    pub(crate) record: Option<Arc<Record>>,
    /// The queue's mark.
    pub(crate) mark: u64,
    /// The number that tells the file from its copies; zero where nothing does.
    pub(crate) file: u64,
    /// The greatest fence that this process has read from the file or written to it; greater than the
    /// record's if an older copy was written into it.
    pub(crate) greatest: u64,
}

impl View {
    /// The greatest ticket of those who do not wait any more.
    pub(crate) fn served(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.served)
    }

    /// Returns the same view for a file with an older copy: a greater fence than the recorded one was
    /// granted.
    pub(crate) fn of_older_copy(&self) -> Self {
        Self {
            record: self.record.clone(),
            greatest: u64::MAX,
            ..*self
        }
    }
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
        Machine::learn().map_err(failed("learn when this machine was started"))?;
        let group = options.group_id()?.or_else(|| os::group_of_directory(path));
        os::create_directory(path, group).map_err(failed("create this folder"))?;
        // One spelling for all, whatever the working folder is later.
        let path = &fs::canonicalize(path).map_err(failed("read this folder"))?;
        refuse_unsafe(path, group, options)?;
        let counter = Counter::new(path.join("fences"), group);
        Ok(Self {
            path: path.clone(),
            kind,
            group,
            counter,
            files: OpenFiles::new(),
            command: options.command.clone(),
            process: PerProcess::new(),
            labelled: PerProcess::new(),
        })
    }

    /// The file of the lock `name`, if there is one, for the caller alone, who
    /// [puts](Self::put) it back.
    pub(crate) fn take(&self, name: &Name) -> Result<Option<OpenFile>, FileError> {
        if let Some(file) = self.files.take(name) {
            return Ok(Some(file));
        }
        let path = self.path_of(name);
        let forks = process::forks();
        match self.with_room(|| self.open_file(&path))? {
            Some(file) => OpenFile::new(file, path, forks).map(Some),
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
        let path = self.path_of(name);
        let forks = process::forks();
        let file = self.with_room(|| self.open_or_create(&path, name))?;
        OpenFile::new(file, path, forks)
    }

    /// Another open file description of `file`, which is the lock `name`'s, and which no forked child
    /// has; `None` when there is another file at its path.
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
        let forks = process::forks();
        let Some(opened) = self.with_room(|| self.open_file(file.path()))? else {
            return Ok(None);
        };
        let another = OpenFile::new(opened, file.path().to_owned(), forks)?;
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

    /// Where it is, and whose.
    #[cfg(target_os = "linux")]
    pub(crate) fn place(&self) -> (&Path, Option<u32>) {
        (&self.path, self.group)
    }

    /// The end of a [`take`](Self::take).
    pub(crate) fn put(&self, name: &Name, file: OpenFile) {
        self.files.put(name, file);
    }

    /// The file of the lock `name`.
    pub(crate) fn path_of(&self, name: &Name) -> PathBuf {
        self.path.join(file_name(self.kind, name))
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

    /// What the file of the lock `name` says.
    pub(crate) fn read(&self, file: &OpenFile, name: &Name) -> Result<View, FileError> {
        let failed = || FileError::io("read this file", file.path());
        let damaged = |damage| FileError::Damaged {
            path: file.path().to_owned(),
            damage,
            name: name.clone(),
        };
        // A forked child may be in a different time namespace from the process that opened the store.
        Machine::learn().map_err(FileError::io("compare clocks for this file", file.path()))?;
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
        // But for what concerns those who wait.
        let is_as_before = |before: &[u8; FILE_BYTES], bytes: &[u8]| {
            bytes.len() == FILE_BYTES
                && bytes[..RECORD_BYTES] == before[..RECORD_BYTES]
                && bytes[CHANGING_BYTES..] == before[CHANGING_BYTES..]
        };
        let record = match &*remembered {
            Some(known) if is_as_before(&known.bytes, bytes) => known.record.clone(),
            _ => {
                let record = record::read(self.kind, name, bytes, runs_since)
                    .map_err(damaged)?
                    .map(Arc::new);
                if file.is_contended() {
                    // It will have changed until it is read again.
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

    /// This process, for a record.
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

    /// The record of a grant for `claim` at `now`, after what `file` said, when all up to the ticket
    /// `served` do not wait any more; `None` when the file was replaced meanwhile.
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
        // Whoever took the lock in the file that replaced this one has been allotted fewer.
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
            tells: false,
            file: before.file,
        };
        Ok(Some(record.lasting(claim.ttl, now, wall)))
    }

    /// The fence of a new grant after what the file said, and the last one before the counter
    /// is to be asked again.
    fn next_fence(&self, before: &View) -> Result<(u64, u64), FileError> {
        let record = before.record.as_deref();
        match record {
            // After a new start of the machine, the last writes before it may be gone; and in a copy
            // that was put back in the file's place, those after it.
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
                self.with_room(|| self.counter.allot(at_least, || self.greatest_fence()))
            }
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
            .files(self.kind)?
            .into_iter()
            .filter_map(|path| self.name_of(&path).transpose())
            .collect();
        names.sort_by(|one, two| one.as_ref().ok().cmp(&two.as_ref().ok()));
        Ok(names)
    }

    /// The name in the file at `path`; `None` when it has just been removed.
    fn name_of(&self, path: &Path) -> Result<Option<Name>, FileError> {
        let whole = self.whole(self.kind, path)?;
        Ok(whole.map(|(name, _)| name))
    }

    /// The name in the file at `path`, of any lock of that kind, and what it says; `None` when it has
    /// just been removed.
    fn whole(&self, kind: Kind, path: &Path) -> Result<Option<(Name, Vec<u8>)>, FileError> {
        let Some(file) = self.open_file(path)? else {
            return Ok(None);
        };
        let mut buffer = [0; FILE_BYTES + 1];
        let bytes =
            os::read_at(&file, &mut buffer, 0).map_err(FileError::io("read this file", path))?;
        match record::name_of(kind, bytes) {
            Ok(name) => Ok(Some((name, bytes.to_vec()))),
            Err(damage) => Err(FileError::Nameless {
                path: path.to_owned(),
                damage,
            }),
        }
    }

    /// The greatest fence that any file here may have granted, of whichever kind, for a counter that
    /// was lost.
    fn greatest_fence(&self) -> Result<u64, FileError> {
        let runs_since = |boot| Machine::this().may_run_since(boot);
        let mut greatest = 0;
        for kind in [Kind::Lease, Kind::Lock] {
            for path in self.files(kind)? {
                let Some((name, bytes)) = self.whole(kind, &path)? else {
                    continue;
                };
                let record = record::read(kind, &name, &bytes, runs_since);
                let record = record.map_err(|damage| FileError::Damaged { path, damage, name })?;
                greatest = greatest.max(record.map_or(0, |record| record.last_fence));
            }
        }
        Ok(greatest)
    }

    fn files(&self, kind: Kind) -> Result<Vec<PathBuf>, FileError> {
        let failed = FileError::io("list this folder", &self.path);
        let mut files = Vec::new();
        for name in os::names(&self.path).map_err(failed)? {
            let path = self.path.join(name);
            if path
                .extension()
                .is_some_and(|extension| extension == kind.extension())
            {
                files.push(path);
            }
        }
        Ok(files)
    }
}

/// What the file of the lock `name` is called.
///
/// Some of the name, for people, and enough of its SHA-256 that no two names share a file: no name
/// is too long or too odd, and no file system's view of case or Unicode matters.
pub(super) fn file_name(kind: Kind, name: &Name) -> String {
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
    format!("{readable}.{}.{}", &hash[..HASHED], kind.extension())
}

/// Lets `file` say `record`, the next after the one that was read.
pub(crate) fn write(file: &OpenFile, record: &Arc<Record>) -> Result<(), FileError> {
    if record.sequence >= COUNTED {
        // Only a forged record has such a predecessor.
        let nothing_left = io::ErrorKind::QuotaExceeded.into();
        return Err(FileError::io("count on in this file", file.path())(
            nothing_left,
        ));
    }
    let (offset, slot) = record::write(record);
    let mut remembered = file.remembered();
    let written = os::write_at(file.file(), &slot, offset as u64);
    if written.is_ok() {
        file.note_fence(record.fence);
    }
    match (&written, &mut *remembered) {
        (Ok(()), Some(remembered)) => {
            remembered.bytes[offset..offset + slot.len()].copy_from_slice(&slot);
            remembered.record = Some(Arc::clone(record));
        }
        _ => *remembered = None,
    }
    written.map_err(FileError::io("write this file", file.path()))
}

/// Lets `file` say `record`, that of a grant after what it said `before`, and returns the record that
/// it says then.
///
/// Both slots say it, unless the machine has been running since the other was written: damage to the
/// only one of this run could not be told from a loss of power, nor damage to the only one of all from
/// a file that was never written.
pub(crate) fn write_grant(
    file: &OpenFile,
    record: Record,
    before: &View,
) -> Result<Arc<Record>, FileError> {
    if !(before.record.as_ref()).is_some_and(|before| Machine::this().runs_since(before.boot)) {
        return write_both(file, record);
    }
    let record = Arc::new(record);
    write(file, &record)?;
    Ok(record)
}

/// Writes `record` to both slots of `file`, whatever their contents, and returns the later record.
pub(crate) fn write_both(file: &OpenFile, record: Record) -> Result<Arc<Record>, FileError> {
    let again = Arc::new(Record {
        sequence: record.sequence + 1,
        ..record.clone()
    });
    write(file, &Arc::new(record))?;
    write(file, &again)?;
    Ok(again)
}

/// What of `file` changes with what happens to its lock.
pub(crate) fn version(file: &OpenFile) -> Result<Version, FileError> {
    let mut buffer = [0; CHANGING_BYTES];
    Ok(Version::of(changing_bytes(file, &mut buffer)?))
}

/// The greatest ticket that `file` says was given to somebody.
pub(crate) fn last_ticket(file: &OpenFile) -> Result<u64, FileError> {
    let mut buffer = [0; CHANGING_BYTES];
    let bytes = changing_bytes(file, &mut buffer)?;
    Ok(record::mark_of(bytes).max(Version::of(bytes).served()))
}

/// Notes that somebody was given `ticket`.
pub(crate) fn mark_queue(file: &OpenFile, ticket: u64) -> Result<(), FileError> {
    put_number(file, ticket, MARK_AT)
}

/// Changes `file` for those who look at it.
pub(crate) fn touch(file: &OpenFile) -> Result<(), FileError> {
    let now = System.now().since_start().as_nanos();
    put_number(file, u64::try_from(now).unwrap_or(u64::MAX), TOUCH_AT)
}

fn put_number(file: &OpenFile, number: u64, at: usize) -> Result<(), FileError> {
    os::write_at(file.file(), &number.to_le_bytes(), at as u64)
        .map_err(FileError::io("write this file", file.path()))
}

fn changing_bytes<'a>(
    file: &OpenFile,
    buffer: &'a mut [u8; CHANGING_BYTES],
) -> Result<&'a [u8], FileError> {
    let failed = || FileError::io("read this file", file.path());
    let bytes = os::read_at(file.file(), buffer, 0).map_err(failed())?;
    if bytes.len() < CHANGING_BYTES {
        return Err(failed()(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

/// The wall clock since the start of 1970, in the milliseconds that a record has.
pub(super) fn wall_clock() -> Duration {
    let now = System.wall_clock().as_millis();
    Duration::from_millis(now.try_into().unwrap_or(u64::MAX))
}

/// Refuses a folder in which others could tamper with a file, or on whose file system locks are not
/// to be trusted.
pub(crate) fn refuse_unsafe(
    path: &Path,
    group: Option<u32>,
    options: &StoreOptions,
) -> Result<(), OpenError> {
    let failed = |source| OpenError::Directory {
        action: "read this folder",
        path: path.to_owned(),
        source,
    };
    if let Some(why) = os::suspicious_directory(path, group).map_err(failed)? {
        return Err(OpenError::Suspicious {
            path: path.to_owned(),
            why,
        });
    }
    if !options.any_file_system && !mutant!(AnyFileSystem) {
        refuse_unsuitable(path)?;
    }
    Ok(())
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
