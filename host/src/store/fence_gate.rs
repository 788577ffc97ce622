//! The resource's side of fencing: the greatest fence that it has seen, in a file beside it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use verrou::Fence;

use super::error::{FileError, OpenError};
use super::number::{self, Magic};
use super::os::{FileId, OpenDirectory, Purpose};
use super::store_directory::StoreDirectory;
use super::{StoreOptions, kernel_lock, os, trusted_file};
use crate::process::{self, PerProcess};
use crate::sync::Mutex;

const MAGIC: Magic = *b"VERROUG\n";

/// Refuses, at a resource that a lock guards, whoever has lost that lock.
///
/// A holder that was stopped for longer than its lease lasts does not know that another has the lock
/// by now. The resource can: the other came with a greater fencing token. A gate keeps the greatest
/// one that it has let through, in a small file that belongs to the resource, and refuses smaller
/// ones. That file is written through to the disk before a fence is let through, so that the greatest
/// one is not forgotten, whoever is killed, and when the machine loses power.
///
/// One gate is for one resource, and all who write that take the same lock: fences of different
/// locks are not to be compared.
///
/// Whoever writes the resource [checks](Self::check) its fence first, and keeps the answer until it
/// has written: nobody else is let through meanwhile. So who is stopped between the check and the
/// write holds the next one up, and does not write after it.
///
/// ```
/// use verrou::Fence;
/// use verrou_host::{FenceError, FenceGate, StoreOptions};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// # let fence = |number| Fence::new(number).unwrap();
/// let gate = FenceGate::open(folder.join("report.fence"), &StoreOptions::default())?;
///
/// let checked = gate.check(fence(8))?; // in practice that of `held.fence()`
/// std::fs::write(folder.join("report"), "by the holder")?;
/// drop(checked); // now the next may write
///
/// // Whoever had the lock before, and was stopped until now:
/// match gate.check(fence(7)) {
///     Err(FenceError::Refused { highest, .. }) => assert_eq!(highest, fence(8)),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FenceGate {
    directory: StoreDirectory,
    /// The name of its file.
    name: PathBuf,
    path: PathBuf,
    /// Whether the locked descriptor is read-only.
    read_only: bool,
    /// A fence that this value has put on the disk, and in which file.
    durable: PerProcess<Mutex<Option<(FileId, Fence)>>>,
}

/// A fence that was let through; until this is dropped, the gate lets no other pass.
#[derive(Debug)]
#[must_use = "as soon as this is dropped another is let through, whatever is still to be written"]
pub struct Checked {
    closed: Closed,
    before: Option<Fence>,
}

/// A gate's file, which is locked until this is dropped.
#[derive(Debug)]
struct Closed {
    file: File,
    /// A forked child has a copy of this value, but did not lock it.
    process: u32,
}

/// Why a [`FenceGate`] does not let a fence through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A greater one has been let through: the lock was granted anew since this one was, and whoever
    /// has this one must not write.
    #[error(
        "{}: fence {fence} is refused, for fence {highest} of a later grant has been here",
        path.display()
    )]
    Refused {
        /// The gate's file.
        path: PathBuf,
        /// The fence that was to be checked.
        fence: Fence,
        /// The greatest that was let through.
        highest: Fence,
    },
    /// No store grants such a number: it is greater than [`Fence::LAST`].
    #[error("fence {fence} is out of range: the greatest is {}", Fence::LAST)]
    OutOfRange {
        /// The fence that was to be checked.
        fence: Fence,
    },
    /// The gate's file does not work, or another check keeps it locked for too long
    /// ([`FileError::Busy`]).
    #[error(transparent)]
    File(#[from] FileError),
}

impl FenceGate {
    /// The gate whose file is `path`, which the first check makes, for this user or `options.group`
    /// alone. Its folder must be there; whoever can write that folder, or the file, can do anything
    /// to the gate. Of the options, `command` and `zombies` mean nothing here.
    ///
    /// # Errors
    ///
    /// [`OpenError`] says what is wrong with the folder, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let Some(name) = path.file_name() else {
            return Err(OpenError::Path {
                path: path.to_owned(),
                why: "this is not a file's name".to_owned(),
            });
        };
        let directory = StoreDirectory::open(folder_of(path), Purpose::Gate, options)?;
        Ok(Self {
            path: directory.path().join(name),
            name: name.into(),
            directory,
            // On other file systems, such as NFS, only a writable descriptor can be locked.
            read_only: cfg!(unix) && !options.any_file_system,
            durable: PerProcess::new(),
        })
    }

    /// Lets `fence` through if none was let through that is greater; waits for as long as another
    /// check keeps the gate closed.
    ///
    /// # Errors
    ///
    /// [`FenceError::Refused`] when a greater one was let through, [`FenceError::File`] when nobody can
    /// tell, [`FenceError::OutOfRange`] for a number that no store grants: what the gate guards must not be
    /// written then.
    pub fn check(&self, fence: Fence) -> Result<Checked, FenceError> {
        self.let_through(fence, None)
    }

    /// [`check`](Self::check), which waits for at most this long.
    ///
    /// # Errors
    ///
    /// Those of [`check`](Self::check), and [`FenceError::File`] with [`FileError::Busy`] when another
    /// check keeps the gate closed for longer.
    pub fn check_within(&self, fence: Fence, at_most: Duration) -> Result<Checked, FenceError> {
        self.let_through(fence, Some(at_most))
    }

    /// Sets the greatest fence that was let through to `to`, whatever it was before; returns what it was before,
    /// or `None` if nothing was, or the file was damaged.
    ///
    /// This is for a gate that refuses all holders, because a number was checked that no store has granted, or
    /// because its file was overwritten. **It is dangerous.** If `to` is less than the fence of the last holder,
    /// the gate lets earlier holders through, which have lost the lock: none of them may be left. Only the
    /// file's owner, or root, can do this, and only while no check keeps the gate closed.
    ///
    /// # Errors
    ///
    /// [`FenceError::OutOfRange`] for a number that no store grants. [`FenceError::File`] with
    /// [`FileError::Busy`] when a check keeps the gate closed, with [`FileError::Suspicious`] when the file
    /// belongs to another user, with [`FileError::Gate`] when it is not the file of a gate, and when it cannot be
    /// read or written, or is not there.
    pub fn reset(&self, to: Fence) -> Result<Option<Fence>, FenceError> {
        if to > Fence::LAST {
            return Err(FenceError::OutOfRange { fence: to });
        }
        let path = &self.path;
        let failed = |action| FileError::io(action, path);
        let directory = self.directory.current_to_create()?;
        let file = trusted_file::open(&directory, &self.name)?
            .ok_or_else(|| failed("open this file")(io::ErrorKind::NotFound.into()))?;
        if !os::is_owned(&file).map_err(failed("inspect this file"))? {
            return Err(FenceError::File(FileError::Suspicious {
                path: path.clone(),
                why: "only its owner, or root, can reset it".to_owned(),
            }));
        }
        let busy = || FileError::Busy {
            path: path.clone(),
            waited: Duration::ZERO,
        };
        let closed = Closed::new(file, Some(Duration::ZERO)).map_err(failed("lock this file"))?;
        let closed = closed.ok_or_else(busy)?;
        if !trusted_file::is_current(&closed.file, &directory, &self.name)? {
            return Err(busy().into());
        }
        let before = number::read(&closed.file, MAGIC).map_err(failed("read this file"))?;
        let is_gate = number::is_kind(&closed.file, MAGIC).map_err(failed("read this file"))?;
        if !is_gate {
            return Err(FenceError::File(FileError::Gate { path: path.clone() }));
        }
        *self.durable.lock() = None;
        number::write(&closed.file, MAGIC, to.get()).map_err(failed("write this file"))?;
        Ok(before.and_then(Fence::new))
    }

    fn let_through(&self, fence: Fence, at_most: Option<Duration>) -> Result<Checked, FenceError> {
        if fence > Fence::LAST {
            return Err(FenceError::OutOfRange { fence });
        }
        let path = &self.path;
        let began = Instant::now();
        loop {
            let directory = self.directory.current_to_create()?;
            let opened = if self.read_only {
                trusted_file::open_read_only(&directory, &self.name)?
            } else {
                trusted_file::open(&directory, &self.name)?
            };
            let Some(file) = opened else {
                let created = directory.create(&self.name, &number::encode(MAGIC, 0));
                created.map_err(FileError::io("create this file", path))?;
                continue;
            };
            let left = at_most.map(|at_most| at_most.saturating_sub(began.elapsed()));
            let closed = Closed::new(file, left).map_err(FileError::io("lock this file", path))?;
            let Some(closed) = closed else {
                return Err(FenceError::File(FileError::Busy {
                    path: path.clone(),
                    waited: began.elapsed(),
                }));
            };
            if !trusted_file::is_current(&closed.file, &directory, &self.name)? {
                continue;
            }
            let read = number::read(&closed.file, MAGIC)
                .map_err(FileError::io("read this file", path))?
                .ok_or_else(|| FileError::Gate { path: path.clone() })?;
            let before = Fence::new(read);
            if let Some(highest) = before
                && highest > fence
            {
                return Err(FenceError::Refused {
                    path: path.clone(),
                    fence,
                    highest,
                });
            }
            if self.record(&directory, &closed.file, before, fence)? {
                return Ok(Checked { closed, before });
            }
        }
    }

    /// Records `fence` in the gate's file, and syncs it to the disk. Returns whether the file is still
    /// at its path.
    fn record(
        &self,
        directory: &OpenDirectory,
        file: &File,
        before: Option<Fence>,
        fence: Fence,
    ) -> Result<bool, FileError> {
        let failed = || FileError::io("write this file", &self.path);
        if before.is_none() {
            // Whoever made the file may have been killed before its name was on the disk.
            directory.sync().map_err(failed())?;
        }
        // Whoever wrote the same number before may have been killed before it was on the disk.
        let id = os::id(file).map_err(failed())?;
        let written = Some((id, fence));
        let mut durable = self.durable.lock();
        if before == Some(fence) && *durable == written {
            return Ok(true);
        }
        *durable = None;
        if self.read_only {
            match trusted_file::open(directory, &self.name)? {
                Some(writable) if os::id(&writable).map_err(failed())? == id => {
                    number::write(&writable, MAGIC, fence.get())
                }
                _ => return Ok(false),
            }
        } else {
            number::write(file, MAGIC, fence.get())
        }
        .map_err(failed())?;
        *durable = written;
        Ok(true)
    }
}

impl Checked {
    /// The greatest fence that was let through before; `None` for the first ever.
    pub fn before(&self) -> Option<Fence> {
        self.before
    }

    /// Returns a duplicate of the locked descriptor, for a process that writes the guarded resource: if
    /// this process is killed, the gate stays closed until that process has ended, too. The descriptor
    /// has a high number, and cannot write the gate's file.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error if the descriptor cannot be duplicated.
    pub fn lifeline(&self) -> io::Result<File> {
        os::duplicate_to_inherit(&self.closed.file)
    }
}

impl Closed {
    /// Takes the kernel's lock on `file`, unless that takes longer than `at_most`.
    fn new(file: File, at_most: Option<Duration>) -> io::Result<Option<Self>> {
        let is_locked = match at_most {
            Some(at_most) => kernel_lock::try_lock_within(&file, at_most)?,
            None => kernel_lock::lock(&file).map(|()| true)?,
        };
        Ok(is_locked.then(|| Self {
            file,
            process: process::this(),
        }))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        // By name, not by closing alone, for children may have the descriptor open; but not in a
        // forked child, which shares the lock. It can only fail for a bad descriptor.
        if self.process == process::this() {
            let _ = kernel_lock::unlock(&self.file);
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn gate_accepts_no_number_that_no_store_grants() {
        let folder = tempfile::tempdir().unwrap();
        let gate = FenceGate::open(folder.path().join("gate"), &StoreOptions::default()).unwrap();
        let beyond = Fence::new(Fence::LAST.get() + 1).unwrap();
        for fence in [beyond, Fence::new(u64::MAX).unwrap()] {
            let refused = [gate.check(fence).map(drop), gate.reset(fence).map(drop)];
            for refused in refused {
                assert!(
                    matches!(refused, Err(FenceError::OutOfRange { fence: it }) if it == fence),
                    "{refused:?}"
                );
            }
        }
        drop(gate.check(Fence::FIRST).unwrap());
        drop(gate.check(Fence::LAST).unwrap());
    }

    #[test]
    fn reset_gate_accepts_the_fences_from_there_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        let fence = |number| Fence::new(number).unwrap();
        let open = || FenceGate::open(&path, &StoreOptions::default()).unwrap();
        let gate = open();
        assert!(gate.reset(fence(7)).is_err(), "there is no file");
        assert!(!path.exists());
        let checked = gate.check(Fence::LAST).unwrap();
        let busy = open().reset(fence(7));
        assert!(
            matches!(busy, Err(FenceError::File(FileError::Busy { .. }))),
            "{busy:?}"
        );
        drop(checked);
        assert_eq!(gate.reset(fence(7)).unwrap(), Some(Fence::LAST));
        assert!(gate.check(fence(6)).is_err());
        drop(gate.check(fence(7)).unwrap());
        // As a descriptor that could write was misused.
        let mut damaged = fs::read(&path).unwrap();
        damaged[20] ^= 1;
        fs::write(&path, &damaged).unwrap();
        assert!(gate.check(fence(8)).is_err());
        assert_eq!(gate.reset(fence(8)).unwrap(), None);
        drop(gate.check(fence(8)).unwrap());
        for other in [
            &b"24 bytes of another file"[..],
            b"VERROUG\n, and more than a gate has",
            b"",
        ] {
            fs::write(&path, other).unwrap();
            let refused = gate.reset(fence(8));
            assert!(
                matches!(refused, Err(FenceError::File(FileError::Gate { .. }))),
                "{refused:?}"
            );
            assert_eq!(fs::read(&path).unwrap(), other);
        }
    }

    #[test]
    fn files_of_version_1_stay_readable() {
        let golden = include_bytes!("../../tests/golden/gate-v1.fence");
        assert_eq!(golden[..], number::encode(MAGIC, 0x0123_4567_89ab_cdef));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gate");
        let fence = |number| Fence::new(number).unwrap();
        fs::write(&path, golden).unwrap();
        let gate = FenceGate::open(&path, &StoreOptions::default()).unwrap();
        match gate.check(Fence::FIRST) {
            Err(FenceError::Refused { highest, .. }) => {
                assert_eq!(highest, fence(0x0123_4567_89ab_cdef));
            }
            other => panic!("{other:?}"),
        }
    }
}
