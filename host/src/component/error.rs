//! Why a lock operation in the component failed.

use verrou::Loss;
use wasmtime::{Trap, WasmBacktrace};

/// Why a lock operation in a component failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ComponentError {
    /// The component says so.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The lease came to an end while it was kept.
    #[error("the lock was lost: {0}")]
    Lost(Loss),
    /// Another owner held the lock for as long as was waited.
    #[error("the lock was held by another owner through {attempts} attempt(s)")]
    Timeout {
        /// How many attempts counted.
        attempts: u32,
    },
    /// It was asked for something that cannot be asked: of a handle that was dropped, or that is
    /// another instance's. The instance goes on.
    #[error("there is no such handle in the lock component")]
    Handle(#[source] wasmtime::Error),
    /// The component stopped, and so did its instance: make another. What its store recorded
    /// stays until its time has passed.
    #[error("the lock component stopped")]
    Stopped(#[source] wasmtime::Error),
}

/// What the component says is the matter.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct LockError {
    /// The error's name, the same on every host: that of [`verrou::Error::code`].
    pub code: &'static str,
    /// What is the matter, and with what.
    pub message: String,
    /// Whether the same call may succeed later with nothing changed by the caller.
    pub temporary: bool,
}

impl ComponentError {
    /// The error's name, the same on every host; `E_COMPONENT_STOPPED` when there is no component
    /// any more that could tell.
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
        // Whatever goes wrong in a component's code comes with where it was.
        if err.is::<Trap>() || err.downcast_ref::<WasmBacktrace>().is_some() {
            Self::Stopped(err)
        } else {
            Self::Handle(err)
        }
    }
}
