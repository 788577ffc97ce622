//! The errors of the stores in files.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use verrou::{Fence, Name, StoreError};

use crate::record::Corruption;

/// An error of a store in files: the source of its [`StoreError`]s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The contents of a file are not what this store wrote. Such a file is never taken for a free lock.
    #[error(
        "{}: {corruption}; if nothing holds the lock `{name}`, move the file away and try again",
        path.display()
    )]
    Corrupt {
        /// The file's path.
        path: PathBuf,
        /// The kind of corruption.
        corruption: Corruption,
        /// The name of the lock to which the file should belong.
        name: Name,
    },
    /// Another process keeps a file locked that this software locks only for microseconds: that process is
    /// stopped, or runs other software.
    #[error(
        "{}: another process keeps it locked ({waited:?} so far); `lslocks` shows which",
        path.display()
    )]
    Busy {
        /// The file's path.
        path: PathBuf,
        /// How long this process has waited for it.
        waited: Duration,
    },
    /// The lease expires by the clock of another time namespace than this process's, and is not bound to
    /// processes of its holder.
    #[error(
        "the lock `{name}` was acquired in another time namespace, so this process cannot determine \
         whether its lease has expired; release it there, or `verrou force-release` it"
    )]
    ForeignClock {
        /// The lock's name.
        name: Name,
    },
    /// The lease was acquired before this container was started, or outside of it.
    #[error(
        "the lock `{name}` was acquired outside this container, or before the container was started; \
         this process cannot determine which, because /proc/sys/kernel/random/boot_id is the \
         container's own; release it there, or `verrou force-release` it"
    )]
    ForeignBoot {
        /// The lock's name.
        name: Name,
    },
    /// A lease that must outlive its process cannot be recorded in this container.
    #[error(
        "the lock `{name}` cannot outlive its process in this container: \
         /proc/sys/kernel/random/boot_id is the container's own, so that processes outside would \
         take over the lock; `umount` that file, or use a store on a server"
    )]
    ContainersBoot {
        /// The lock's name.
        name: Name,
    },
    /// The fence counter has no numbers left, or is corrupt.
    #[error("{}: the fence counter is corrupt; restore it, or use a new directory", path.display())]
    Counter {
        /// The path of the counter.
        path: PathBuf,
    },
    /// The file of a [`FenceGate`](crate::FenceGate) is corrupt, or not the file of a gate. It is never
    /// taken for a gate that has accepted no fencing token.
    #[error(
        "{}: this is not a file of `verrou fence check`, or it is corrupt; restore it, or, when no \
         earlier holder of the lock is left, use `verrou fence reset`, or move it away",
        path.display()
    )]
    Gate {
        /// The file's path.
        path: PathBuf,
    },
    /// A file of a [`HardLinkStore`](crate::HardLinkStore) is not what the store wrote. A lock with such a file is
    /// never taken for a free one.
    #[error("{}: {corruption}", path.display())]
    State {
        /// The file's path.
        path: PathBuf,
        /// The kind of corruption, and the way out.
        corruption: verrou_hard_links::Corruption,
    },
    /// The file system has no hard links, or none that fail where a file exists.
    #[error(
        "{}: this file system has no hard links, by which a `wasi:` store excludes other processes; choose \
         another directory, or use a `lease:` store",
        path.display()
    )]
    NoHardLinks {
        /// The path of the directory.
        path: PathBuf,
    },
    /// A lock of a [`HardLinkStore`](crate::HardLinkStore) has had the greatest number or fencing token.
    #[error("{}: no greater fencing token is left; use a new directory", path.display())]
    NoFenceLeft {
        /// The path of the lock's directory.
        path: PathBuf,
    },
    /// Other processes changed the state of a lock of a [`HardLinkStore`](crate::HardLinkStore) at each attempt.
    #[error(
        "{}: other processes changed the lock at each of {attempts} attempts",
        path.display()
    )]
    Contended {
        /// The path of the lock's directory.
        path: PathBuf,
        /// The number of attempts.
        attempts: u32,
    },
    /// The name of a file's lock cannot be read.
    #[error("{}: {corruption}; if nothing holds its lock, move the file away", path.display())]
    Nameless {
        /// The file's path.
        path: PathBuf,
        /// The kind of corruption.
        corruption: Corruption,
    },
    /// The lock is a lock of the kernel, whose holder cannot be force-released.
    #[error(
        "cannot force-release the lock `{name}`{}: it is a lock of the kernel; find the process that \
         holds it, and end that process instead",
        fence.map(|fence| format!(" (fencing token {fence})")).unwrap_or_default()
    )]
    NotEvictable {
        /// The lock's name.
        name: Name,
        /// The fencing token of the grant that was to be force-released, if one was given.
        fence: Option<Fence>,
    },
    /// A system call failed.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another user may have put this file here.
    #[error("{}: refused, because {why}", path.display())]
    Suspicious {
        /// The file's path.
        path: PathBuf,
        /// Why the file is not trusted.
        why: String,
    },
    /// This process has as many open files as its limit allows.
    #[error(
        "{}: cannot {action}: too many open files; raise the limit of this process{} \
         (`ulimit -n`), or hold fewer locks at a time",
        path.display(),
        limit.map(|limit| format!(", {limit}")).unwrap_or_default()
    )]
    TooManyOpenFiles {
        /// The operation that failed.
        action: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The limit of open files, if there is one.
        limit: Option<u64>,
    },
}

impl FileError {
    /// Returns whether another process has locked the object that was to be locked.
    pub(crate) fn is_resource_busy(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }

    /// Returns a function that converts an error of the operating system, and copies the path only then.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| {
            let path = path.to_owned();
            if is_limit_reached(&source) {
                let limit = descriptor_limit();
                return Self::TooManyOpenFiles {
                    action,
                    path,
                    limit,
                };
            }
            Self::Io {
                action,
                path,
                source,
            }
        }
    }

    /// Returns whether the operation may succeed after another file is closed.
    pub(crate) fn is_for_want_of_descriptors(&self) -> bool {
        matches!(self, Self::TooManyOpenFiles { .. })
    }
}

impl From<FileError> for StoreError {
    fn from(err: FileError) -> Self {
        use io::ErrorKind::{Interrupted, OutOfMemory, ResourceBusy, WouldBlock};

        let temporary = match &err {
            FileError::Busy { .. } | FileError::Contended { .. } => true,
            FileError::Io { source, .. } => {
                matches!(
                    source.kind(),
                    Interrupted | OutOfMemory | ResourceBusy | WouldBlock
                ) || is_table_full(source)
            }
            _ => false,
        };
        if temporary {
            Self::temporary(err)
        } else {
            Self::permanent(err)
        }
    }
}

/// Returns whether a table that all processes share, such as that of open files or of locks, is full.
#[cfg(unix)]
fn is_table_full(err: &io::Error) -> bool {
    use rustix::io::Errno;

    matches!(Errno::from_io_error(err), Some(Errno::NFILE | Errno::NOLCK))
}

/// Returns whether this process has reached its limit of open files.
#[cfg(unix)]
fn is_limit_reached(err: &io::Error) -> bool {
    rustix::io::Errno::from_io_error(err) == Some(rustix::io::Errno::MFILE)
}

/// Returns this process's limit of open files.
#[cfg(unix)]
fn descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(not(unix))]
fn is_table_full(_err: &io::Error) -> bool {
    false
}

#[cfg(not(unix))]
fn is_limit_reached(_err: &io::Error) -> bool {
    false
}

#[cfg(not(unix))]
fn descriptor_limit() -> Option<u64> {
    None
}

/// An error of opening a store in files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A file of the store cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The directory cannot be created or read.
    #[error("{}: cannot {action}", path.display())]
    Directory {
        /// The operation that failed.
        action: &'static str,
        /// The path of the directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file at a path cannot be used.
    #[error("{}: {why}", path.display())]
    Path {
        /// The path of the file.
        path: PathBuf,
        /// Why the file cannot be used.
        why: String,
    },
    /// Other users could tamper with the files in this directory.
    #[error("{}: this directory is refused, because {why}", path.display())]
    Suspicious {
        /// The path of the directory.
        path: PathBuf,
        /// Why the directory is not trusted.
        why: String,
    },
    /// There is no such group.
    #[error("there is no group `{group}`")]
    UnknownGroup {
        /// The group's name.
        group: String,
    },
    /// The boot ID of this machine cannot be read, so that a lease cannot be distinguished from one that
    /// ended with an earlier boot.
    #[error(
        "{}: cannot read /proc/sys/kernel/random/boot_id, without which a lease cannot be \
         distinguished from one of an earlier boot; use a `file:` store",
        path.display()
    )]
    UnknownStart {
        /// The path of the directory.
        path: PathBuf,
    },
    /// Locks on this file system may not exclude all other processes.
    #[error(
        "{}: this is on {kind}, where locks are not known to exclude every process; choose a \
         directory on a local disk, or allow any file system if locks are known to work on this one",
        path.display()
    )]
    UnsuitableFileSystem {
        /// The path of the directory.
        path: PathBuf,
        /// The kind of the file system.
        kind: String,
    },
}
