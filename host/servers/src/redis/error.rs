//! The errors of Redis, classified.

use ::redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::error::ServerError;

/// Returns the error for a connection that could not be made.
pub(super) fn not_connected(server: &str, err: RedisError) -> ServerError {
    let setup = |why: &str, advice: &str| ServerError::Setup {
        server: server.to_owned(),
        why: format!("{why} ({err})"),
        advice: advice.to_owned(),
    };
    let is_unknown_user = matches!(err.code(), Some("NOAUTH" | "WRONGPASS"));
    match err.kind() {
        ErrorKind::RESP3NotSupported => setup("this server is too old", "use Redis 6 or later"),
        kind if is_unknown_user || kind == ErrorKind::AuthenticationFailed => setup(
            "the server refuses the user or the password",
            "write redis://USER:PASSWORD@HOST, or password-file=FILE; on another machine write rediss:// for \
             TLS, or add tls=off",
        ),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => setup(
            "the server at this address is not Redis",
            "name the port of Redis, and write rediss:// if it expects TLS",
        ),
        _ => failed(server, err),
    }
}

/// Classifies the error of a failed request.
pub(super) fn failed(server: &str, err: RedisError) -> ServerError {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};

    let server = server.to_owned();
    // Full memory or disk, too few replicas, or another client's long script: temporary.
    let passes = matches!(err.code(), Some("OOM" | "BUSY" | "MISCONF" | "NOREPLICAS"));
    match err.kind() {
        _ if passes => ServerError::Unavailable {
            server,
            source: err.into(),
        },
        ErrorKind::Io => ServerError::Disconnected {
            server,
            source: err.into(),
        },
        ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => {
            ServerError::Unavailable {
                server,
                source: err.into(),
            }
        }
        _ if err.is_connection_dropped() || err.is_timeout() => ServerError::Disconnected {
            server,
            source: err.into(),
        },
        _ => ServerError::Refused {
            server,
            source: err.into(),
        },
    }
}
