//! Errors of lock operations in the component.

use verrou::Loss;
use wasmtime::{Trap, WasmBacktrace};

/// The reason why a lock operation in a component failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComponentError {
    /// The component returned an error.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease was lost during its renewal.
    #[error("the lock was lost: {0}")]
    Lost(Loss),
    /// The lock was not acquired in time: another owner held it.
    #[error("the lock was held by another owner through {attempts} attempt(s)")]
    Timeout {
        /// The number of attempts.
        attempts: u32,
    },
    /// The handle was dropped, or belongs to another instance. The instance stays usable.
    #[error("there is no such handle in the lock component")]
    Handle(#[source] wasmtime::Error),
    /// The component stopped, and its instance is unusable: create another. Leases that its store has
    /// recorded last until they expire.
    #[error("the lock component stopped")]
    Stopped(#[source] wasmtime::Error),
}

/// An error that the component returned.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct LockError {
    /// The error code, the same on every host: that of [`verrou::Error::code`].
    pub code: &'static str,
    /// The error and the object that it concerns.
    pub message: String,
    /// Whether the same call may succeed later without a change by the caller.
    pub temporary: bool,
}

impl ComponentError {
    /// Returns the error code, the same on every host; `E_COMPONENT_STOPPED` when the component has
    /// stopped.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Lock(err) => err.code,
            Self::Lost(_) => "E_LOCK_LOST",
            Self::Timeout { .. } => "E_LOCK_TIMEOUT",
            Self::Handle(_) => "E_INVALID_HANDLE",
            Self::Stopped(_) => "E_COMPONENT_STOPPED",
        }
    }
}

impl From<wasmtime::Error> for ComponentError {
    fn from(err: wasmtime::Error) -> Self {
        // An error in the component's code has a backtrace.
        if err.is::<Trap>() || err.downcast_ref::<WasmBacktrace>().is_some() {
            Self::Stopped(err)
        } else {
            Self::Handle(err)
        }
    }
}
