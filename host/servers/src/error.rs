//! The errors of a server.

use std::time::Duration;

use verrou::StoreError;

/// An error that a server returned, or the absence of an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The server cannot be reached, or the connection ended. The outcome of the request is unknown.
    #[error("{server}: the connection failed")]
    Disconnected {
        /// The server's URL, without its password.
        server: String,
        /// The error of the connection.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server did not answer in time. The outcome of the request is unknown, and the server may still
    /// execute it.
    #[error("{server}: no answer within {}", humantime::format_duration(*after))]
    Timeout {
        /// The server's URL, without its password.
        server: String,
        /// The timeout that has passed.
        after: Duration,
    },
    /// The server is temporarily unable to execute the request.
    #[error("{server}: temporarily unavailable")]
    Unavailable {
        /// The server's URL, without its password.
        server: String,
        /// The server's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refuses the request, and will refuse it again.
    #[error("{server}: the server refuses this request")]
    Refused {
        /// The server's URL, without its password.
        server: String,
        /// The server's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server cannot be used for locks as it is set up.
    #[error("{server}: {why}; {advice}")]
    Setup {
        /// The server's URL, without its password.
        server: String,
        /// The fault of the setup.
        why: String,
        /// The remedy.
        advice: String,
    },
}

impl ServerError {
    /// Returns whether the same request may succeed later without an administrator's help.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Disconnected { .. } | Self::Timeout { .. } | Self::Unavailable { .. } => true,
            Self::Refused { .. } | Self::Setup { .. } => false,
        }
    }
}

impl From<ServerError> for StoreError {
    fn from(err: ServerError) -> Self {
        if err.is_temporary() {
            Self::temporary(err)
        } else {
            Self::permanent(err)
        }
    }
}
