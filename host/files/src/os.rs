//! The functions of the operating system's files that the stores use, in one module per system.

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
    FileId, OpenDirectory, duplicate_to_inherit, id, id_at, is_kernels, is_link_refused, is_linked,
    is_owned, locker, number, open_to_lock, open_to_look, read_at, suspicion,
    unsuitable_file_system, write_at,
};

/// How a directory is to be opened.
#[derive(Clone, Debug)]
pub(crate) struct DirectoryAccess {
    pub(crate) purpose: Purpose,
    /// The group given by the user, whose members are trusted.
    pub(crate) group: Option<u32>,
    /// Whether the directory, and those above it, are created if they do not exist.
    pub(crate) create: bool,
}

/// The purpose of a directory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Purpose {
    /// Contains the files of a store.
    Store,
    /// Contains the records of locks on other files, or of one lock, in the directory of a store.
    Records,
    /// Contains the file of a fence gate, next to the guarded resource.
    Gate,
}

/// The names that a file in a store's directory may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Names {
    /// One: a file that is written to. With a second name, another user could have a file of this user overwritten.
    One,
    /// Any number: a file that is only read.
    Several,
}

/// An error of opening a directory.
#[derive(Debug)]
pub(crate) enum DirectoryError {
    /// Other users can change `path`: the directory, a directory above it, or a link to it.
    Untrusted { path: PathBuf, why: String },
    /// A system call failed.
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
