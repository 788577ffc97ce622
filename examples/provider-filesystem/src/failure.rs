//! The errors of the store, with their codes.

use verrou_hard_links::OperationError;
use wasip2::filesystem::types::ErrorCode;

use crate::directory::Directory;
use crate::exports::verrou::lock::store::{StoreError, StoreErrorCode};

/// The failure of an operation on a file.
pub struct FileFailure {
    pub action: &'static str,
    pub path: String,
    pub code: ErrorCode,
}

impl From<FileFailure> for StoreError {
    fn from(failure: FileFailure) -> Self {
        use ErrorCode as E;

        let FileFailure { action, path, code } = failure;
        let (kind, temporary) = match code {
            E::InsufficientSpace | E::Quota => (StoreErrorCode::Full, false),
            E::Access | E::NotPermitted | E::ReadOnly | E::Loop => (StoreErrorCode::Denied, false),
            E::Busy | E::Interrupted | E::WouldBlock | E::InsufficientMemory => {
                (StoreErrorCode::Unavailable, true)
            }
            _ => (StoreErrorCode::Other(code.name().to_owned()), false),
        };
        Self {
            code: kind,
            message: format!("{path}: cannot {action}: {}", code.name()),
            temporary,
        }
    }
}

/// Returns the error of an operation in `directory`.
pub fn of(directory: &Directory, err: OperationError<FileFailure>) -> StoreError {
    let path = directory.path();
    match err {
        OperationError::Files(failure) => failure.into(),
        OperationError::Corrupt { file, corruption } => permanent(
            StoreErrorCode::Corrupt,
            format!("{path}/{file}: {corruption}"),
        ),
        OperationError::NoFenceLeft => permanent(
            StoreErrorCode::Full,
            format!("{path}: no greater fencing token is left; use a new directory"),
        ),
        OperationError::Contended { attempts } => StoreError {
            code: StoreErrorCode::Unavailable,
            message: format!(
                "{path}: other processes changed the lock at each of {attempts} attempts"
            ),
            temporary: true,
        },
        // The only other one.
        _ => permanent(
            StoreErrorCode::Unsupported,
            format!(
                "{path}: this file system has no hard links, by which this store excludes other processes; \
                 use a directory of another file system"
            ),
        ),
    }
}

pub fn permanent(code: StoreErrorCode, message: String) -> StoreError {
    StoreError {
        code,
        message,
        temporary: false,
    }
}

pub fn invalid(message: String) -> StoreError {
    permanent(StoreErrorCode::Invalid, message)
}
