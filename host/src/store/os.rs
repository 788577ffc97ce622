//! What the stores ask of the operating system's files: one function each, one split by system.

use std::io;
use std::path::PathBuf;

#[cfg(not(unix))]
#[path = "os/other.rs"]
mod imp;
#[cfg(unix)]
#[path = "os/unix.rs"]
mod imp;

#[cfg(target_os = "linux")]
pub(crate) use imp::is_trusted;
pub(crate) use imp::{
    FileId, OpenDirectory, duplicate_to_inherit, id, id_at, is_kernels, is_linked, is_owned,
    is_secure_execution, locker, number, open_to_lock, open_to_look, read_at, suspicion,
    unsuitable_file_system, write_at,
};

/// How a directory is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryAccess {
    pub(crate) purpose: Purpose,
    /// The group that was named, whose members are trusted.
    pub(crate) group: Option<u32>,
    /// Whether the directory, and those above it, are created if they do not exist.
    pub(crate) create: bool,
}

/// What a directory is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// The files of a store.
    Store,
    /// The records of a lock on another file, in the directory of a store.
    Records,
    /// The file of a gate, beside what it guards.
    Gate,
}

/// Why a directory cannot be opened.
#[derive(Debug)]
pub(crate) enum DirectoryError {
    /// Others can change the directory at `path`, which is the directory or one above it, or a link.
    Untrusted { path: PathBuf, why: String },
    /// The operating system refused.
    Io {
        action: &'static str,
        source: io::Error,
    },
}

impl DirectoryError {
    pub(crate) fn io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
