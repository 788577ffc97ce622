//! Fencing at the guarded resource: the greatest accepted fencing token, in a file next to the resource.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use verrou::Fence;
use verrou_machine::StoreOptions;
use verrou_machine::process::{self, PerProcess};
use verrou_machine::sync::Mutex;

use crate::durable_u64::{self, Magic};
use crate::error::{FileError, OpenError};
use crate::os::{FileId, OpenDirectory, Purpose};
use crate::store_directory::StoreDirectory;
use crate::{flock, os, trusted_file};

const MAGIC: Magic = *b"VERROUG\n";

/// A fence gate: rejects former holders of a lock at the resource that the lock guards.
///
/// A holder that was stopped for longer than its lease cannot detect at once that another process holds
/// the lock by now. The resource can detect it, because the new holder has a greater fencing token. A gate
/// records the greatest token that it has accepted in a small file that belongs to the resource, and
/// rejects smaller tokens. The file is synced to the disk before a token is accepted, so that the greatest
/// token survives killed processes and a loss of power.
///
/// A gate is for one resource, and all its writers must acquire the same lock: the fencing tokens of
/// different locks cannot be compared.
///
/// A writer first [checks](Self::check) its fencing token, and keeps the returned value until it has
/// written. The gate accepts no other token meanwhile. So a writer that is stopped between the check and
/// the write delays the next writer, and does not write after it.
///
/// ```
/// use verrou::Fence;
/// use verrou_host::{FenceError, FenceGate, StoreOptions};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// # let fence = |number| Fence::new(number).unwrap();
/// let gate = FenceGate::open(directory.join("report.fence"), &StoreOptions::default())?;
///
/// let checked = gate.check(fence(8))?; // in practice that of `held.fence()`
/// std::fs::write(directory.join("report"), "by the holder")?;
/// drop(checked); // now the next writer may write
///
/// // A former holder that was stopped until now:
/// match gate.check(fence(7)) {
///     Err(FenceError::Refused { highest, .. }) => assert_eq!(highest, fence(8)),
///     other => panic!("{other:?}"),
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FenceGate {
    directory: StoreDirectory,
    /// The name of the gate's file.
    name: PathBuf,
    path: PathBuf,
    /// Whether the locked descriptor is read-only.
    read_only: bool,
    /// The fence that this value has last synced to the disk, and the file that contains it.
    durable: PerProcess<Mutex<Option<(FileId, Fence)>>>,
}

/// An accepted fencing token. Until this value is dropped, the gate accepts no other token.
#[derive(Debug)]
#[must_use = "as soon as this is dropped, another writer is accepted, even if the write is not complete"]
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

/// An error of a [`FenceGate`], which has not accepted the fencing token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A greater token has been accepted: the lock was granted again after the grant of this token, whose
    /// holder must not write.
    #[error(
        "{}: fencing token {fence} rejected: token {highest} has already been accepted",
        path.display()
    )]
    Refused {
        /// The gate's file.
        path: PathBuf,
        /// The rejected fencing token.
        fence: Fence,
        /// The greatest accepted fencing token.
        highest: Fence,
    },
    /// No store grants this number: it is greater than [`Fence::LAST`].
    #[error(
        "fencing token {fence} is out of range: the greatest is {}",
        Fence::LAST
    )]
    OutOfRange {
        /// The rejected fencing token.
        fence: Fence,
    },
    /// The gate's file cannot be used, or another check keeps it locked for too long
    /// ([`FileError::Busy`]).
    #[error(transparent)]
    File(#[from] FileError),
}

impl FenceGate {
    /// Opens the gate whose file is `path`. The first check creates the file, for this user or
    /// `options.group` alone. Its directory must exist. A user who can write that directory, or the file, can
    /// make the gate accept any token. The options `command` and `zombies` have no effect.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the directory, and what to do about it.
    pub fn open(path: impl AsRef<Path>, options: &StoreOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let Some(name) = path.file_name() else {
            return Err(OpenError::Path {
                path: path.to_owned(),
                why: "this is not a file's name".to_owned(),
            });
        };
        let directory = StoreDirectory::open(parent_of(path), Purpose::Gate, options)?;
        Ok(Self {
            path: directory.path().join(name),
            name: name.into(),
            directory,
            // On other file systems, such as NFS, only a writable descriptor can be locked.
            read_only: cfg!(unix) && !options.any_file_system,
            durable: PerProcess::new(),
        })
    }

    /// Accepts `fence` if no greater token was accepted before. Waits while another check keeps the gate
    /// closed.
    ///
    /// # Errors
    ///
    /// After any error the guarded resource must not be written. Returns [`FenceError::Refused`] if a greater
    /// token was accepted before, [`FenceError::File`] if that cannot be determined, and
    /// [`FenceError::OutOfRange`] for a number that no store grants.
    pub fn check(&self, fence: Fence) -> Result<Checked, FenceError> {
        self.accept(fence, None)
    }

    /// Checks `fence` as [`check`](Self::check) does, but waits for at most `at_most`.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`check`](Self::check), and [`FenceError::File`] with [`FileError::Busy`] if
    /// another check keeps the gate closed for longer.
    pub fn check_within(&self, fence: Fence, at_most: Duration) -> Result<Checked, FenceError> {
        self.accept(fence, Some(at_most))
    }

    /// Sets the greatest accepted fencing token to `to`, even if it was greater before. Returns the previous
    /// one, or `None` if no token was accepted before, or the file was corrupt.
    ///
    /// This is for a gate that rejects all holders, because a number was checked that no store has
    /// granted, or because its file was overwritten. **It is dangerous.** If `to` is less than the
    /// fencing token of the last holder, the gate accepts earlier holders, which have lost the lock:
    /// none of them may be left. Only the file's owner, or root, can reset a gate, and only while no
    /// check keeps it closed.
    ///
    /// # Errors
    ///
    /// Returns [`FenceError::OutOfRange`] for a number that no store grants. Returns
    /// [`FenceError::File`] with [`FileError::Busy`] if a check keeps the gate closed, with
    /// [`FileError::Suspicious`] if the file belongs to another user, with [`FileError::Gate`] if it is
    /// not the file of a gate, and with another error if it does not exist, or cannot be read or
    /// written.
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
        let before = durable_u64::read(&closed.file, MAGIC).map_err(failed("read this file"))?;
        let is_gate =
            durable_u64::is_kind(&closed.file, MAGIC).map_err(failed("read this file"))?;
        if !is_gate {
            return Err(FenceError::File(FileError::Gate { path: path.clone() }));
        }
        *self.durable.lock() = None;
        durable_u64::write(&closed.file, MAGIC, to.get()).map_err(failed("write this file"))?;
        Ok(before.and_then(Fence::new))
    }

    fn accept(&self, fence: Fence, at_most: Option<Duration>) -> Result<Checked, FenceError> {
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
                let created = directory.create(&self.name, &durable_u64::encode(MAGIC, 0));
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
            let read = durable_u64::read(&closed.file, MAGIC)
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
            // The process that created the file may have been killed before its name was synced to the disk.
            directory.sync().map_err(failed())?;
        }
        // A process that wrote the same number before may have been killed before it was synced to the disk.
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
                    durable_u64::write(&writable, MAGIC, fence.get())
                }
                _ => return Ok(false),
            }
        } else {
            durable_u64::write(file, MAGIC, fence.get())
        }
        .map_err(failed())?;
        *durable = written;
        Ok(true)
    }
}

impl Checked {
    /// Returns the greatest fencing token that was accepted before; `None` for the first one.
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
            Some(at_most) => flock::try_lock_within(&file, at_most)?,
            None => flock::lock(&file).map(|()| true)?,
        };
        Ok(is_locked.then(|| Self {
            file,
            process: process::this(),
        }))
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        // Unlock explicitly, not only by closing, because children may have the descriptor open; but not in a
        // forked child, which shares the lock. This can only fail for a bad descriptor.
        if self.process == process::this() {
            let _ = flock::unlock(&self.file);
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn gate_rejects_fences_out_of_range() {
        let temp_dir = tempfile::tempdir().unwrap();
        let gate = FenceGate::open(temp_dir.path().join("gate"), &StoreOptions::default()).unwrap();
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
    fn reset_gate_accepts_fences_from_the_new_value_on() {
        let temp_dir = tempfile::tempdir().unwrap();
        let path = temp_dir.path().join("gate");
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
        // Corrupt the file, as a misused writable descriptor would.
        let mut corrupt = fs::read(&path).unwrap();
        corrupt[20] ^= 1;
        fs::write(&path, &corrupt).unwrap();
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
        assert_eq!(
            golden[..],
            durable_u64::encode(MAGIC, 0x0123_4567_89ab_cdef)
        );
        let temp_dir = tempfile::tempdir().unwrap();
        let path = temp_dir.path().join("gate");
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
