//! The protocol of the stores that keep each lock as hard links in a directory: `wasi:DIR` of a machine, and the
//! component `provider-filesystem`, which needs nothing but `wasi:filesystem`. `FORMAT.md` specifies the files.
//!
//! A name is a directory, and each of its states a file with the next number. A process makes a state by writing a
//! draft and linking it to that number; the link fails if another process was first. This crate decides which files
//! an operation reads, creates, links and deletes; [`StateFiles`] performs that.

#![no_std]

extern crate alloc;
#[macro_use(mutant)]
extern crate verrou;

// The order of dependence: a module may use modules above it in this list, never modules below it.
// The core's `tests/layers.rs` checks that.
mod file_names;
mod state;
mod listing;
mod decision;
mod settings;
mod operation;

pub use decision::Moment;
pub use file_names::file_stem;
pub use operation::{
    LockDirectory, OperationError, is_lock_directory, lock_directory_name, locked_name, open,
};
pub use settings::Settings;
pub use state::Corruption;

use alloc::string::String;
use alloc::vec::Vec;

/// A directory of files on which a store works, and what it needs besides.
///
/// The names of files are those that this crate passes, and all are in this one directory, whatever happens to the
/// path of the directory meanwhile.
pub trait StateFiles {
    /// The failure of an operation on a file.
    type Error;

    /// Returns the names of all entries, without `.` and `..`. An entry that exists from before the call until its
    /// end is among them.
    ///
    /// # Errors
    ///
    /// Returns the failure of the host.
    fn list(&self) -> Result<Vec<String>, Self::Error>;

    /// Returns at most `limit` bytes of the file `name`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// Returns the failure of the host, also for an entry that is not a regular file.
    fn read(&self, name: &str, limit: usize) -> Result<Option<Vec<u8>>, Self::Error>;

    /// Creates the file `name` with `bytes`, which are on the disk when this returns.
    ///
    /// # Errors
    ///
    /// Returns the failure of the host, also if `name` exists. Part of the file may have been written.
    fn create(&self, name: &str, bytes: &[u8]) -> Result<(), Self::Error>;

    /// Gives the file `from` the second name `to`, in one atomic step.
    ///
    /// # Errors
    ///
    /// Returns the failure of the host, but not for a `to` that exists, and a `from` that does not.
    fn link(&self, from: &str, to: &str) -> Result<Linked, Self::Error>;

    /// Removes `name`; succeeds if there is none.
    ///
    /// # Errors
    ///
    /// Returns the failure of the host.
    fn delete(&self, name: &str) -> Result<(), Self::Error>;

    /// Writes the names in the directory through to the disk, where the host can do that.
    ///
    /// # Errors
    ///
    /// Returns the failure of the host.
    fn sync(&self) -> Result<(), Self::Error>;

    /// Returns 128 random bits.
    fn random(&self) -> u128;
}

/// The result of a request to [link](StateFiles::link) a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "there is no other result")]
pub enum Linked {
    /// The file has the second name.
    Done,
    /// There is already a file with the second name.
    Exists,
    /// There is no file with the first name.
    Gone,
    /// The file system has no hard links, or the system refuses one to this file.
    Refused,
}
