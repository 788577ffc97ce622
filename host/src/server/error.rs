//! What can be wrong with a server.

use std::time::Duration;

use verrou::StoreError;

/// What a server said instead of an answer, or that it said nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// It cannot be reached, or the connection ended: what was asked may have been done.
    #[error("{server}: the connection failed")]
    Disconnected {
        /// Which server.
        server: String,
        /// What the connection said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It did not answer in time: what was asked may have been done, or be done yet.
    #[error("{server}: no answer within {}", humantime::format_duration(*after))]
    Timeout {
        /// Which server.
        server: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// It cannot answer now, and may soon.
    #[error("{server}: it cannot answer now")]
    Unavailable {
        /// Which server.
        server: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It refuses what was asked, and will do so again.
    #[error("{server}: it refuses this request")]
    Refused {
        /// Which server.
        server: String,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is not fit to keep locks as it is.
    #[error("{server}: {why}; {advice}")]
    Setup {
        /// Which server.
        server: String,
        /// What is wrong.
        why: String,
        /// What to do about it.
        advice: String,
    },
}

impl From<ServerError> for StoreError {
    fn from(err: ServerError) -> Self {
        match err {
            ServerError::Disconnected { .. }
            | ServerError::Timeout { .. }
            | ServerError::Unavailable { .. } => Self::temporary(err),
            ServerError::Refused { .. } | ServerError::Setup { .. } => Self::permanent(err),
        }
    }
}
