//! Why an operation failed, for callers.

use alloc::string::String;

use crate::lease::Loss;
use crate::name::{InvalidName, Name};
use crate::printable::Printable;
use crate::retry::InvalidRetry;
use crate::serialized::InvalidSerializedLock;
use crate::store::StoreError;
use crate::ttl::InvalidTtl;

/// Why a lock operation failed.
///
/// [`code`](Self::code) is the same on every host.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No lock can have this name.
    #[error("invalid lock name")]
    InvalidName(#[from] InvalidName),
    /// No lock can be asked for in this way.
    #[error("invalid retry policy")]
    InvalidRetry(#[from] InvalidRetry),
    /// This text is no serialized lock.
    #[error("invalid serialized lock")]
    InvalidSerializedLock(#[from] InvalidSerializedLock),
    /// No lease can last this long.
    #[error("invalid ttl")]
    InvalidTtl(#[from] InvalidTtl),
    /// The lease came to an end while its holder counted on it.
    #[error("the lock `{}` was lost: {loss}", Printable(.name.as_str()))]
    Lost {
        /// Which lock.
        name: Name,
        /// How it was lost.
        loss: Loss,
        /// Why the store could not renew the lease, if the lock was lost for that reason.
        source: Option<StoreError>,
    },
    /// The lock is not, or no longer, held by this owner.
    #[error("the lock `{}` is not held by this owner", Printable(.name.as_str()))]
    NotOwner {
        /// Which lock.
        name: Name,
    },
    /// Leases of this store are tied to the client that took them.
    #[error(
        "the lock `{}` cannot be serialized: its store ties a lease to the client that took it",
        Printable(.name.as_str())
    )]
    NotSerializable {
        /// Which lock.
        name: Name,
    },
    /// The store could not answer.
    #[error("the lock store could not answer")]
    Storage(#[from] StoreError),
    /// Another owner held the lock for as long as was waited.
    #[error(
        "the lock `{}` was held by another owner through {attempts} attempt(s)",
        Printable(.name.as_str())
    )]
    Timeout {
        /// How many attempts counted.
        attempts: u32,
        /// Which lock.
        name: Name,
    },
    /// No store goes by this name.
    #[error("no store is called `{}`", Printable(.store))]
    UnknownStore {
        /// The name asked for.
        store: String,
    },
}

impl Error {
    /// The error's name, the same on every host and in every version.
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

    /// Whether the same call may succeed later with nothing changed by the caller.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Timeout { .. } => true,
            Self::Storage(err) => err.is_temporary(),
            _ => false,
        }
    }
}

/// So that text and durations can be given wherever a checked value is asked for.
impl From<core::convert::Infallible> for Error {
    fn from(never: core::convert::Infallible) -> Self {
        match never {}
    }
}

/// Why [`run`](crate::blocking::Lock::run) cannot simply hand out what its body returned.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(clippy::exhaustive_enums, reason = "either the body ran or it did not")]
pub enum RunError<T> {
    /// The lock was not acquired, and the body did not run.
    #[error(transparent)]
    NotAcquired(Error),
    /// The body ran to its end, but the lock was lost meanwhile or could not be given back.
    #[error("the work was done, but the lock did not last or was not given back")]
    Ended {
        /// What the body returned.
        value: T,
        /// What happened to the lock: [`Error::Lost`] or [`Error::Storage`].
        #[source]
        error: Error,
    },
}
