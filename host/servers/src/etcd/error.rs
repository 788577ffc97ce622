//! The errors of etcd, classified as [`ServerError`].

use std::error::Error as _;
use std::{io, iter};

use super::client::ClientError;
use crate::error::ServerError;

const NO_SPACE: &str =
    "make room (compact and defragment), then `etcdctl alarm disarm`; see `etcdctl alarm list`";

/// The status codes of gRPC.
mod code {
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const DEADLINE_EXCEEDED: i32 = 4;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const PERMISSION_DENIED: i32 = 7;
    pub(super) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(super) const FAILED_PRECONDITION: i32 = 9;
    pub(super) const UNAVAILABLE: i32 = 14;
    pub(super) const UNAUTHENTICATED: i32 = 16;
}

/// Returns the error for a server that is not usable for a store.
pub(super) fn not_fit(server: &str, prefix: &str, err: ClientError) -> ServerError {
    let setup = |why: String, advice: String| ServerError::Setup {
        server: server.to_owned(),
        why,
        advice,
    };
    let ClientError::Status(status) = &err else {
        return failed(server, err);
    };
    let said = status.message().to_owned();
    match i32::from(status.code()) {
        code::INVALID_ARGUMENT | code::UNAUTHENTICATED => setup(
            format!("the server refuses the user or the password ({said})"),
            "write etcd://USER:PASSWORD@HOST, or password-file=FILE; on another machine write etcds:// for TLS, \
             or add tls=off"
                .to_owned(),
        ),
        code::FAILED_PRECONDITION => setup(
            format!("authentication is not enabled on this server ({said})"),
            "leave the user out, or enable authentication".to_owned(),
        ),
        code::PERMISSION_DENIED => setup(
            format!("the user may not read and write keys that begin with {prefix} ({said})"),
            format!("etcdctl role grant-permission ROLE readwrite --prefix=true {prefix}"),
        ),
        _ if said.starts_with("etcdserver:") || unreached(&err).is_some() => failed(server, err),
        _ => setup(
            format!("the server at this address is not etcd ({said})"),
            "name the port for clients of etcd, and write etcds:// if it expects TLS".to_owned(),
        ),
    }
}

/// Returns the root cause if no connection was made, or `None` for any other error.
pub(super) fn unreached(err: &ClientError) -> Option<String> {
    let ClientError::Status(status) = err else {
        return None;
    };
    let causes = || iter::successors(status.source(), |err| (*err).source());
    let is_unreached = causes().any(|err| {
        let kind = err.downcast_ref::<io::Error>().map(io::Error::kind);
        let is_io = matches!(
            kind,
            Some(
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::HostUnreachable
                    | io::ErrorKind::NetworkUnreachable
                    | io::ErrorKind::TimedOut
            )
        );
        // Errors of name lookups have no `io::ErrorKind`.
        is_io || err.to_string() == "dns error"
    });
    let root = causes().last().filter(|_| is_unreached)?;
    Some(root.to_string())
}

/// Classifies the error of a failed request.
pub(super) fn failed(server: &str, err: ClientError) -> ServerError {
    let server = server.to_owned();
    let ClientError::Status(status) = &err else {
        return ServerError::Disconnected {
            server,
            source: err.into(),
        };
    };
    let is_etcds = status.message().starts_with("etcdserver:");
    match i32::from(status.code()) {
        code::RESOURCE_EXHAUSTED if status.message().contains("space") => {
            ServerError::Unavailable {
                server,
                source: format!("{}: {NO_SPACE}", status.message()).into(),
            }
        }
        // `NOT_FOUND` is a lease that has ended before it was used.
        code::NOT_FOUND | code::RESOURCE_EXHAUSTED | code::DEADLINE_EXCEEDED => {
            ServerError::Unavailable {
                server,
                source: err.into(),
            }
        }
        code::UNAVAILABLE | code::UNKNOWN if is_etcds => ServerError::Unavailable {
            server,
            source: err.into(),
        },
        code::INVALID_ARGUMENT
        | code::PERMISSION_DENIED
        | code::FAILED_PRECONDITION
        | code::UNAUTHENTICATED => ServerError::Refused {
            server,
            source: err.into(),
        },
        _ => ServerError::Disconnected {
            server,
            source: unreached(&err).map_or_else(|| err.into(), Into::into),
        },
    }
}
