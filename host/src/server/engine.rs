//! The kinds of lock server.

use std::fmt;

/// The kind of a lock server.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Engine {
    /// Redis, or a server with the same protocol.
    Redis,
    /// `PostgreSQL`.
    Postgres,
    /// etcd, version 3.
    Etcd,
}

impl Engine {
    /// Returns the engine that a URL's scheme names.
    pub(crate) fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "redis" | "rediss" => Some(Self::Redis),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "etcd" | "etcds" => Some(Self::Etcd),
            _ => None,
        }
    }

    /// Returns the feature of this crate that the engine needs.
    pub(crate) fn feature(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Etcd => "etcd",
        }
    }

    /// Returns whether this program is built with the engine's feature. The fuzzers only parse URLs.
    #[cfg(feature = "server")]
    pub(crate) fn is_built_in(self) -> bool {
        match self {
            Self::Redis => cfg!(any(feature = "redis", fuzzing)),
            Self::Postgres => cfg!(any(feature = "postgres", fuzzing)),
            Self::Etcd => cfg!(any(feature = "etcd", fuzzing)),
        }
    }

    /// Returns the scheme of a URL that asks for TLS.
    #[cfg(feature = "server")]
    pub(crate) fn encrypted_scheme(self) -> &'static str {
        match self {
            Self::Redis => "rediss",
            // The option `sslmode` asks for TLS.
            Self::Postgres => "postgres",
            Self::Etcd => "etcds",
        }
    }

    /// Returns the options that a URL of this engine may have.
    #[cfg(feature = "server")]
    pub(crate) fn options(self) -> &'static [&'static str] {
        match self {
            Self::Redis | Self::Etcd => &["prefix", "timeout", "password-file", "ca-file", "tls"],
            Self::Postgres => &[
                "schema",
                "schema-owner",
                "timeout",
                "password-file",
                "ca-file",
                "sslmode",
            ],
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
            Self::Etcd => "etcd",
        })
    }
}
