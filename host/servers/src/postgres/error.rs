//! The errors of connections and requests, classified by their codes.

use deadpool_postgres::{HookError, PoolError};
use tokio_postgres::error::SqlState;

use crate::error::ServerError;

pub(super) fn setup(server: &str, why: &str, advice: &str) -> ServerError {
    ServerError::Setup {
        server: server.to_owned(),
        why: why.to_owned(),
        advice: advice.to_owned(),
    }
}

pub(super) fn not_connected(server: &str, err: PoolError) -> ServerError {
    match err {
        PoolError::Backend(err) | PoolError::PostCreateHook(HookError::Backend(err)) => {
            connect_error(server, err)
        }
        err => ServerError::Unavailable {
            server: server.to_owned(),
            source: err.into(),
        },
    }
}

/// The error of `tokio-postgres` for a server without TLS, or with a certificate that is refused.
const NO_TLS: &str = "error performing TLS handshake";

/// Returns the error for a connection that could not be made.
pub(super) fn connect_error(server: &str, err: tokio_postgres::Error) -> ServerError {
    let Some(code) = err.code() else {
        let cause = std::error::Error::source(&err).map(ToString::to_string);
        let is_io = std::error::Error::source(&err).is_some_and(|source| {
            source
                .downcast_ref::<std::io::Error>()
                .is_some_and(|source| {
                    source.kind() != std::io::ErrorKind::InvalidData
                        && source.kind() != std::io::ErrorKind::InvalidInput
                })
        });
        if is_io || err.is_closed() {
            return failed(server, err);
        }
        let why = cause.unwrap_or_else(|| err.to_string());
        if err.to_string().starts_with(NO_TLS) {
            return setup(
                server,
                &format!("the TLS handshake failed ({why})"),
                "give the server a certificate for its name, by an authority that the system or ca-file=FILE trusts; \
                 or, on a network where no other machine can read or change the traffic, add sslmode=disable",
            );
        }
        return setup(
            server,
            &format!("the server at this address is not PostgreSQL ({why})"),
            "name its host and port, and sslmode=verify-full if it expects TLS",
        );
    };
    let why = err.as_db_error().map_or("", |err| err.message());
    match *code {
        SqlState::INVALID_PASSWORD => setup(
            server,
            why,
            "write postgres://USER:PASSWORD@HOST/DATABASE, or password-file=FILE",
        ),
        SqlState::INVALID_AUTHORIZATION_SPECIFICATION => setup(
            server,
            why,
            "write postgres://USER@HOST/DATABASE, and sslmode=verify-full if it expects TLS",
        ),
        SqlState::INVALID_CATALOG_NAME => setup(server, why, "write postgres://USER@HOST/DATABASE"),
        _ => failed(server, err),
    }
}

/// Returns the error for a pooler that gives a connection to other clients between two transactions.
pub(super) fn shared_connections(server: &str) -> ServerError {
    setup(
        server,
        "a pooler in transaction mode shares this connection with other clients",
        "name the server itself, or a pooler in session mode",
    )
}

/// Classifies the error of a failed request.
pub(super) fn failed(server: &str, err: tokio_postgres::Error) -> ServerError {
    let server = server.to_owned();
    let Some(code) = err.code() else {
        return ServerError::Disconnected {
            server,
            source: err.into(),
        };
    };
    if [
        SqlState::DUPLICATE_PSTATEMENT,
        SqlState::INVALID_SQL_STATEMENT_NAME,
    ]
    .contains(code)
    {
        // The statements of another client, which have the same names.
        return shared_connections(&server);
    }
    let class = code.code().get(..2).unwrap_or_default();
    let is_temporary = match class {
        // Connections, resources, operator intervention, and conflicts between transactions.
        "08" | "40" | "53" | "55" | "57" => true,
        _ => *code == SqlState::READ_ONLY_SQL_TRANSACTION,
    };
    let source = err.into();
    if is_temporary {
        ServerError::Unavailable { server, source }
    } else {
        ServerError::Refused { server, source }
    }
}
