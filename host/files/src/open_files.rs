//! The files of a store that stay open between its operations: opening a file costs more than an operation.
//!
//! An operation takes its file out, so that no two threads use one open file description: the kernel's
//! locks do not distinguish threads with the same description.

use std::collections::HashMap;
use std::fs::File;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use std::{io, iter, mem};

use lru::LruCache;
use verrou::Name;
use verrou_machine::process::{self, PerProcess};
use verrou_machine::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use verrou_machine::sync::{Mutex, MutexGuard};

use crate::error::FileError;
use crate::os::{self, FileId, OpenDirectory};
use crate::record::{FILE_BYTES, Record};
use crate::store_directory::WALKED_AGAIN;
use crate::trusted_file;

/// An open file of a lock. It is moved several times in each operation, so it is one pointer.
#[derive(Debug)]
pub(crate) struct OpenFile(Box<Opened>);

#[derive(Debug)]
struct Opened {
    file: File,
    /// A second, read-only open file description of the file.
    read_only: Option<File>,
    location: Location,
    id: FileId,
    /// A number that distinguishes the file from its copies; zero if there is none.
    number: u64,
    /// The process that opened the file. A forked child shares the open file description, and must not use
    /// it.
    process: u32,
    /// The number of forks before the file was opened.
    forks: u32,
    /// The grants whose bytes are locked for this description; see [`liveness`](crate::liveness).
    lived: Range<u64>,
    is_contended: AtomicBool,
    /// The greatest fence that was read from the file or written to it.
    greatest: AtomicU64,
    remembered: Mutex<Option<Remembered>>,
}

/// The location at which a file was opened, to determine whether it is still there, and to open it again.
#[derive(Debug)]
pub(crate) enum Location {
    /// A file of a store, relative to the descriptor of its directory.
    InDirectory {
        directory: Arc<OpenDirectory>,
        name: PathBuf,
        /// The path relative to the parent directory.
        below_parent: PathBuf,
        /// The absolute path, for messages.
        path: PathBuf,
    },
    /// A file whose path the user gave.
    AtPath(PathBuf),
}

impl Location {
    pub(crate) fn new(directory: Arc<OpenDirectory>, name: PathBuf) -> Self {
        Self::InDirectory {
            below_parent: directory.path_below_parent(&name),
            path: directory.path().join(&name),
            directory,
            name,
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::InDirectory { path, .. } | Self::AtPath(path) => path,
        }
    }

    /// Returns whether the file `id` is there. Directories above that of a store are looked at if no
    /// operation did so for `at_most`.
    fn leads_to(&self, id: FileId, at_most: Duration) -> io::Result<bool> {
        match self {
            Self::InDirectory {
                directory,
                below_parent,
                ..
            } => Ok(directory.id_below_parent(below_parent)? == Some(id)
                && directory.is_parent_there(at_most)?),
            Self::AtPath(path) => Ok(os::id_at(path)? == Some(id)),
        }
    }
}

/// The bytes that were last read from a file or written to it, and the record in them. The record need not be
/// decoded again while the bytes are the same.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) bytes: Box<[u8; FILE_BYTES]>,
    pub(crate) record: Option<Arc<Record>>,
}

impl OpenFile {
    /// Creates a value for `file`, which was opened at `location` after [`process::forks`] had returned
    /// `forks`. If another thread has forked since, the child has the file, too.
    pub(crate) fn new(file: File, location: Location, forks: u32) -> Result<Self, FileError> {
        let identity = os::id(&file).and_then(|id| Ok((id, os::number(&file)?)));
        let failed = FileError::io("inspect this file", location.path());
        let (id, number) = identity.map_err(failed)?;
        Ok(Self(Box::new(Opened {
            file,
            read_only: None,
            location,
            id,
            number,
            process: process::this(),
            forks,
            lived: 0..0,
            is_contended: AtomicBool::new(false),
            greatest: AtomicU64::new(0),
            remembered: Mutex::new(None),
        })))
    }

    /// Returns the fences whose bytes are locked; see [`liveness`](crate::liveness).
    pub(crate) fn lived(&self) -> Range<u64> {
        self.0.lived.clone()
    }

    pub(crate) fn set_lived(&mut self, fences: Range<u64>) {
        self.0.lived = fences;
    }

    /// Returns whether the lock had waiters when an operation last read its queue through this file.
    pub(crate) fn is_contended(&self) -> bool {
        self.0.is_contended.load(Ordering::Relaxed)
    }

    pub(crate) fn set_contended(&self, is_contended: bool) {
        self.0.is_contended.store(is_contended, Ordering::Relaxed);
    }

    /// Records that `fence` was read from the file or written to it; returns the greatest such fence so far.
    pub(crate) fn note_fence(&self, fence: u64) -> u64 {
        let before = self.0.greatest.load(Ordering::Relaxed);
        if before < fence {
            self.0.greatest.store(fence, Ordering::Relaxed);
        }
        before.max(fence)
    }

    pub(crate) fn remembered(&self) -> MutexGuard<'_, Option<Remembered>> {
        self.0
            .remembered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether no process forked from this one has the file.
    fn is_own(&self) -> bool {
        self.0.forks == process::forks() || mutant!(ForkedFilesUsed)
    }

    /// Returns the ID of the process that opened the file.
    pub(crate) fn process(&self) -> u32 {
        self.0.process
    }

    /// Returns a number that distinguishes the file from its copies; zero if there is none.
    pub(crate) fn number(&self) -> u64 {
        self.0.number
    }

    pub(crate) fn file(&self) -> &File {
        &self.0.file
    }

    /// Returns the second, read-only open file description, if one was opened.
    pub(crate) fn read_only(&self) -> Option<&File> {
        self.0.read_only.as_ref()
    }

    /// Returns the open file description that another program may inherit: the read-only one, if one
    /// was opened.
    pub(crate) fn inheritable(&self) -> &File {
        self.0.read_only.as_ref().unwrap_or(&self.0.file)
    }

    /// Opens the second, read-only open file description. Returns whether the file is still at its
    /// path.
    pub(crate) fn open_read_only(&mut self) -> Result<bool, FileError> {
        if self.0.read_only.is_some() {
            return Ok(true);
        }
        let opened = self.opened_again(trusted_file::open_read_only)?;
        self.0.read_only = opened.filter(|file| matches!(os::id(file), Ok(id) if id == self.0.id));
        Ok(self.0.read_only.is_some())
    }

    /// Returns another open file description of the file, which no forked child has, or `None` if the
    /// file at its path was replaced.
    pub(crate) fn another(&self) -> Result<Option<Self>, FileError> {
        let forks = process::forks();
        let Some(file) = self.opened_again(trusted_file::open)? else {
            return Ok(None);
        };
        let location = match &self.0.location {
            Location::InDirectory {
                directory, name, ..
            } => Location::new(Arc::clone(directory), name.clone()),
            Location::AtPath(path) => Location::AtPath(path.clone()),
        };
        let another = Self::new(file, location, forks)?;
        Ok(another.is_same(self).then_some(another))
    }

    fn opened_again(
        &self,
        open: fn(&OpenDirectory, &Path) -> Result<Option<File>, FileError>,
    ) -> Result<Option<File>, FileError> {
        match &self.0.location {
            Location::InDirectory {
                directory, name, ..
            } => open(directory, name),
            Location::AtPath(path) => {
                os::open_to_look(path).map_err(FileError::io("open this file", path))
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.location.path()
    }

    /// Returns whether `other` is the same file, opened separately.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }

    /// Returns whether the file is still at its path, as [`is_current`](Self::is_current) does, for the
    /// end of a grant after `held_for`. If that time is very short, returns whether the file is at any
    /// path, which costs less to determine.
    pub(crate) fn is_still_there(&self, held_for: Duration) -> Result<bool, FileError> {
        const VERY_SHORT: Duration = Duration::from_millis(1);

        let failed = FileError::io("inspect this file", self.path());
        if held_for < VERY_SHORT {
            return os::is_linked(&self.0.file).map_err(failed);
        }
        let is_there = self.0.location.leads_to(self.0.id, Duration::ZERO);
        Ok(mutant!(MovedNotNoticed) || is_there.map_err(failed)?)
    }

    /// Returns whether the file is still at its path. Without this check, a user who removes or
    /// replaces the file would create a second lock of the same name. The move of a directory above
    /// that of a store is noticed after [`WALKED_AGAIN`].
    pub(crate) fn is_current(&self) -> Result<bool, FileError> {
        let is_there = self.0.location.leads_to(self.0.id, WALKED_AGAIN);
        let is_there = is_there.map_err(FileError::io("inspect this file", self.path()))?;
        Ok(is_there || mutant!(InodeNotChecked))
    }
}

/// The number of names of which unused files stay open.
const NAMES: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// The files of a name: one for an operation, and one that meanwhile keeps a grant or a ticket.
type Files = [Option<OpenFile>; 2];

/// Files that stay open: those of the most recently used names, and of the names with a waiter in this
/// process.
#[derive(Debug)]
pub(crate) struct OpenFiles(PerProcess<Mutex<FilesState>>);

/// Separate in each forked child: open file descriptions are shared with the parent, so a child must
/// open its own.
#[derive(Debug)]
struct FilesState {
    recent: LruCache<Name, Files>,
    /// The files of the names that are wanted, with the number of [`OpenFiles::want`] calls.
    wanted: HashMap<Name, (usize, Files)>,
}

impl OpenFiles {
    pub(crate) fn new() -> Self {
        Self(PerProcess::new())
    }

    /// Returns an open file of the lock `name`, for exclusive use, if this process has one that no
    /// forked child shares: its kernel locks then end with this process, even if it is killed in the
    /// middle of an operation.
    pub(crate) fn take(&self, name: &Name) -> Option<OpenFile> {
        iter::from_fn(|| self.take_any(name)).find(OpenFile::is_own)
    }

    fn take_any(&self, name: &Name) -> Option<OpenFile> {
        let mut state = self.state();
        let files = match state.wanted.get_mut(name) {
            Some((_, files)) => files,
            None => state.recent.get_mut(name)?,
        };
        files.iter_mut().find_map(Option::take)
    }

    /// Keeps a file of the lock `name` for the next call of [`take`](Self::take).
    pub(crate) fn put(&self, name: &Name, file: OpenFile) {
        let mut state = self.state();
        // Close the files after the mutex is unlocked.
        let _closed = state.put(name, file);
        drop(state);
    }

    /// Closes all files that are neither in use nor waited for; returns whether there were any.
    pub(crate) fn close_idle(&self) -> bool {
        let mut state = self.state();
        let idle = mem::replace(&mut state.recent, LruCache::new(NAMES));
        drop(state);
        let mut files = idle.iter().flat_map(|(_, files)| files);
        files.any(Option::is_some)
    }

    /// Keeps the files of the lock `name` open, however many names are used meanwhile, until
    /// [`unwant`](Self::unwant) is called as often.
    pub(crate) fn want(&self, name: &Name) {
        let mut state = self.state();
        if let Some((count, _)) = state.wanted.get_mut(name) {
            *count += 1;
            return;
        }
        let files = state.recent.pop(name).unwrap_or_default();
        state.wanted.insert(name.clone(), (1, files));
    }

    /// Ends a [`want`](Self::want).
    pub(crate) fn unwant(&self, name: &Name) {
        let mut state = self.state();
        let Some((count, _)) = state.wanted.get_mut(name) else {
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let (_, files) = state.wanted.remove(name).unwrap_or_default();
        let _closed = state.recent.push(name.clone(), files);
        drop(state);
    }

    fn state(&self) -> MutexGuard<'_, FilesState> {
        self.0.lock_instead_of_parents()
    }
}

impl Default for FilesState {
    fn default() -> Self {
        Self {
            recent: LruCache::new(NAMES),
            wanted: HashMap::new(),
        }
    }
}

impl FilesState {
    /// Returns the files that are not kept any more, which the caller closes.
    fn put(&mut self, name: &Name, file: OpenFile) -> Option<(Name, Files)> {
        if file.process() != process::this() {
            return Some((name.clone(), [Some(file), None]));
        }
        let files = match self.wanted.get_mut(name) {
            Some((_, files)) => Some(files),
            None => self.recent.get_mut(name),
        };
        let Some(files) = files else {
            return self.recent.push(name.clone(), [Some(file), None]);
        };
        let slot = files.iter_mut().find(|slot| slot.is_none())?;
        *slot = Some(file);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(temp_dir: &Path, name: &str) -> OpenFile {
        let path = temp_dir.join(name);
        let forks = process::forks();
        let file = File::create(&path).unwrap();
        OpenFile::new(file, Location::AtPath(path), forks).unwrap()
    }

    #[test]
    fn files_of_recent_and_wanted_names_stay_open() {
        let temp_dir = tempfile::tempdir().unwrap();
        let files = OpenFiles::new();
        let name = |number: usize| Name::new(&format!("lock-{number}")).unwrap();
        files.want(&name(0));
        for number in 0..=NAMES.get() + 1 {
            files.put(&name(number), open(temp_dir.path(), &number.to_string()));
        }
        assert!(files.take(&name(0)).is_some(), "it is wanted");
        assert!(files.take(&name(0)).is_none(), "it was taken");
        assert!(files.take(&name(1)).is_none(), "it was used longest ago");
        assert!(files.take(&name(2)).is_some());
        files.put(&name(0), open(temp_dir.path(), "0"));
        files.unwant(&name(0));
        assert!(files.take(&name(0)).is_some());
    }

    #[test]
    fn at_most_two_files_of_a_name_stay_open() {
        let temp_dir = tempfile::tempdir().unwrap();
        let files = OpenFiles::new();
        let name = Name::new("lock").unwrap();
        for _ in 0..3 {
            files.put(&name, open(temp_dir.path(), "lock"));
        }
        assert!(files.take(&name).is_some());
        assert!(files.take(&name).is_some());
        assert!(files.take(&name).is_none());
    }
}
