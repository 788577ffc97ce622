//! The errors of lock operations.

use alloc::string::String;

use crate::lease::Loss;
use crate::name::{InvalidName, Name};
use crate::printable::Printable;
use crate::retry::InvalidRetry;
use crate::serialized::InvalidSerializedLock;
use crate::store::StoreError;
use crate::ttl::InvalidTtl;

/// The error of a lock operation.
///
/// [`code`](Self::code) is the same on every host.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lock's name is invalid.
    #[error("invalid lock name")]
    InvalidName(#[from] InvalidName),
    /// The retry policy is invalid.
    #[error("invalid retry policy")]
    InvalidRetry(#[from] InvalidRetry),
    /// The text is not a serialized lock.
    #[error("invalid serialized lock")]
    InvalidSerializedLock(#[from] InvalidSerializedLock),
    /// The length of the lease is invalid.
    #[error("invalid ttl")]
    InvalidTtl(#[from] InvalidTtl),
    /// The lease ended while its holder relied on it.
    #[error("the lock `{}` was lost: {loss}", Printable(.name.as_str()))]
    Lost {
        /// The lock's name.
        name: Name,
        /// The way in which it was lost.
        loss: Loss,
        /// The store's error that prevented the renewal, if the lock was lost for that reason.
        source: Option<StoreError>,
    },
    /// This owner does not, or no longer, hold the lock.
    #[error("the lock `{}` is not held by this owner", Printable(.name.as_str()))]
    NotOwner {
        /// The lock's name.
        name: Name,
    },
    /// The store ties a lease to the client that acquired it.
    #[error(
        "the lock `{}` cannot be serialized: its store ties a lease to the client that acquired it",
        Printable(.name.as_str())
    )]
    NotSerializable {
        /// The lock's name.
        name: Name,
    },
    /// The store failed, or the outcome of its operation is unknown.
    #[error("the lock store could not answer")]
    Storage(#[from] StoreError),
    /// Another owner held the lock until the retry policy ended.
    #[error(
        "the lock `{}` was held by another owner through {attempts} attempt(s)",
        Printable(.name.as_str())
    )]
    Timeout {
        /// The number of attempts, without extra ones.
        attempts: u32,
        /// The lock's name.
        name: Name,
    },
    /// No store has this name.
    #[error("no store is called `{}`", Printable(.store))]
    UnknownStore {
        /// The requested name.
        store: String,
    },
}

impl Error {
    /// Returns the error's code, the same on every host and in every version.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InvalidName(_) => "E_INVALID_NAME",
            Self::InvalidRetry(_) => "E_INVALID_RETRY",
            Self::InvalidSerializedLock(_) => "E_INVALID_SERIALIZED_LOCK",
            Self::InvalidTtl(_) => "E_INVALID_TTL",
            Self::Lost { .. } => "E_LOCK_LOST",
            Self::NotOwner { .. } => "E_LOCK_NOT_OWNER",
            Self::NotSerializable { .. } => "E_LOCK_NOT_SERIALIZABLE",
            Self::Storage(_) => "E_LOCK_STORAGE_ERROR",
            Self::Timeout { .. } => "E_LOCK_TIMEOUT",
            Self::UnknownStore { .. } => "E_INVALID_STORE",
        }
    }

    /// Returns whether the same call may succeed later with nothing changed by the caller.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Storage(err) => err.is_temporary(),
            _ => false,
        }
    }
}

/// Allows a checked value to be passed where text or a duration is accepted, too.
impl From<core::convert::Infallible> for Error {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

/// The error of [`run`](crate::blocking::Lock::run).
#[derive(Clone, Debug, thiserror::Error)]
#[expect(clippy::exhaustive_enums, reason = "either the body ran or it did not")]
pub enum RunError<T> {
    /// The lock was not acquired, and the body did not run.
    #[error(transparent)]
    NotAcquired(Error),
    /// The body ran to its end, but the lock was lost meanwhile or could not be released.
    #[error("the work completed, but the lock was lost or could not be released")]
    Ended {
        /// The value that the body returned.
        value: T,
        /// The cause: [`Error::Lost`] or [`Error::Storage`].
        #[source]
        error: Error,
    },
}
