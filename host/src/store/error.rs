//! What can go wrong with a lock's file.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use verrou::{Fence, Name, StoreError};

use super::record::Damage;

/// Why a store of files could not answer: the source of its [`StoreError`]s.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A file is not what this store wrote there. It is never taken for a free lock.
    #[error(
        "{}: {damage}; if nothing holds the lock `{name}`, move the file away and try again",
        path.display()
    )]
    Damaged {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
        /// Which lock's file it should be.
        name: Name,
    },
    /// Another process keeps a file locked that is only ever locked for microseconds: it is
    /// stopped, or no program of ours.
    #[error(
        "{}: another process keeps it locked ({waited:?} so far); `lslocks` shows which",
        path.display()
    )]
    Busy {
        /// Which file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The lease counts time by another clock than this process sees, and no process of its
    /// holder can be asked.
    #[error(
        "the lock `{name}` was taken in another time namespace, so that nobody here can tell \
         whether its time has passed; release it there, or `verrou force-release` it"
    )]
    ForeignClock {
        /// Which lock.
        name: Name,
    },
    /// The lease was acquired before this container was started, or outside of it.
    #[error(
        "the lock `{name}` was taken outside this container, or before it was started, and which \
         cannot be determined here: /proc/sys/kernel/random/boot_id is the container's own; release \
         it there, or `verrou force-release` it"
    )]
    ForeignBoot {
        /// The lock's name.
        name: Name,
    },
    /// A lease that must outlive its process cannot be recorded in this container.
    #[error(
        "the lock `{name}` cannot outlive its process in this container: \
         /proc/sys/kernel/random/boot_id is the container's own, so that processes outside would \
         take the lock over; `umount` that file, or use a store on a server"
    )]
    ContainersBoot {
        /// The lock's name.
        name: Name,
    },
    /// The counter has run out of numbers, or is damaged.
    #[error("{}: the fence counter is damaged; restore it, or start a new folder", path.display())]
    Counter {
        /// Where the counter is.
        path: PathBuf,
    },
    /// The file of a [`FenceGate`](crate::FenceGate) is damaged, or another's. It is never taken for
    /// one that has let nobody through.
    #[error(
        "{}: this is no file of `verrou fence check`, or it is damaged; restore it, or, when no \
         earlier holder of the lock is left, use `verrou fence reset`, or move it away",
        path.display()
    )]
    Gate {
        /// Where it is.
        path: PathBuf,
    },
    /// A file does not say whose it is.
    #[error("{}: {damage}; if nothing holds its lock, move the file away", path.display())]
    Nameless {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        damage: Damage,
    },
    /// The kernel's lock cannot be taken from a process.
    #[error(
        "the lock `{name}` is the kernel's and cannot be taken from the process that holds it{}; \
         end that process instead",
        fence.map(|fence| format!(" (fence {fence})")).unwrap_or_default()
    )]
    NotEvictable {
        /// Which lock.
        name: Name,
        /// The grant that was meant.
        fence: Option<Fence>,
    },
    /// The operating system refused.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Somebody else may have put this file here.
    #[error("{}: refused, because {why}", path.display())]
    Suspicious {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
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

    /// What makes an error of one of the operating system's; the path is copied only then.
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
            FileError::Busy { .. } => true,
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

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The folder cannot be made or read.
    #[error("{}: cannot {action}", path.display())]
    Directory {
        /// What was to be done.
        action: &'static str,
        /// Which folder.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file to be locked cannot be.
    #[error("{}: {why}", path.display())]
    Path {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// Others could tamper with the files in this folder.
    #[error("{}: this folder is refused, because {why}", path.display())]
    Suspicious {
        /// Which folder.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// It is on a server, and was to be in files.
    #[error("{url} is on a server, and not in a folder")]
    NoFolder {
        /// Which store.
        url: String,
    },
    /// The server cannot be used.
    #[cfg(feature = "server")]
    #[error(transparent)]
    Server(#[from] crate::server::ServerError),
    /// There is no such group.
    #[error("there is no group `{group}`")]
    UnknownGroup {
        /// Its name.
        group: String,
    },
    /// Nothing says when this machine was started, so that a lease cannot be told from one that
    /// ended with an earlier run of it.
    #[error(
        "{}: leases need to know when this machine was started \
         (/proc/sys/kernel/random/boot_id), and that cannot be read; use a `file:` store",
        path.display()
    )]
    UnknownStart {
        /// Which folder.
        path: PathBuf,
    },
    /// Locks are not to be trusted on this file system.
    #[error(
        "{}: this is on {kind}, where locks are not known to exclude every process; choose a \
         folder on a local disk, or allow any file system if you know better",
        path.display()
    )]
    UnsuitableFileSystem {
        /// Which folder.
        path: PathBuf,
        /// What kind of file system.
        kind: String,
    },
}
