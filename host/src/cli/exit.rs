//! What the command ends with.

use std::process::ExitCode;

use verrou_host::{FenceError, FileError};

/// Why `verrou` itself ends, as opposed to the program that it runs.
///
/// The numbers are those of `sysexits.h` where it has one, and a shell's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Exit {
    /// It could not be understood, or asks for what cannot be: `EX_USAGE`.
    Usage = 64,
    /// The store cannot be made or opened: `EX_CANTCREAT`.
    NoStore = 73,
    /// The store failed, or the result could not be handed over: `EX_IOERR`.
    Storage = 74,
    /// Another held the lock for as long as was waited: `EX_TEMPFAIL`.
    NotAcquired = 75,
    /// The lock was lost while the program ran.
    Lost = 76,
    /// The lock is not, or no longer, this owner's.
    NotOwner = 77,
    /// What the lock guards has seen a greater fence.
    Refused = 78,
    /// The program cannot be started.
    NotStarted = 126,
    /// There is no such program.
    NotFound = 127,
}

impl Exit {
    /// Its number.
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
