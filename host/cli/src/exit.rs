//! The exit codes of the command.

use std::process::ExitCode;

use verrou_host::{FenceError, FileError};

/// An exit code of `verrou` itself, as opposed to those of the program that it runs.
///
/// The numbers are those of `sysexits.h` where it has one, or else those of a shell.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    /// The command line is invalid, or the store does not support the operation: `EX_USAGE`.
    Usage = 64,
    /// The store cannot be created or opened: `EX_CANTCREAT`.
    NoStore = 73,
    /// The store failed, or the result could not be written: `EX_IOERR`.
    Storage = 74,
    /// The lock was not acquired in time: `EX_TEMPFAIL`.
    NotAcquired = 75,
    /// The lock was lost while the program ran.
    Lost = 76,
    /// This owner does not, or no longer, hold the lock.
    NotOwner = 77,
    /// The guarded resource has accepted a greater fencing token.
    Refused = 78,
    /// The program cannot be started.
    NotStarted = 126,
    /// The program was not found.
    NotFound = 127,
}

impl Exit {
    /// Returns the number.
    pub(crate) const fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

impl From<&FenceError> for Exit {
    fn from(error: &FenceError) -> Self {
        match error {
            FenceError::Refused { .. } => Self::Refused,
            FenceError::OutOfRange { .. } => Self::Usage,
            FenceError::File(FileError::Busy { .. }) => Self::NotAcquired,
            _ => Self::Storage,
        }
    }
}

impl From<&verrou::Error> for Exit {
    fn from(error: &verrou::Error) -> Self {
        match error {
            verrou::Error::Lost { .. } => Self::Lost,
            verrou::Error::NotOwner { .. } => Self::NotOwner,
            verrou::Error::Storage(_) => Self::Storage,
            verrou::Error::Timeout { .. } => Self::NotAcquired,
            _ => Self::Usage,
        }
    }
}
