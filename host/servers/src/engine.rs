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
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "redis" | "rediss" => Some(Self::Redis),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "etcd" | "etcds" => Some(Self::Etcd),
            _ => None,
        }
    }

    /// Returns the feature of this crate that the engine needs.
    pub fn feature(self) -> &'static str {
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

impl Engine {
    /// Returns the error for a URL of this engine, with `scheme`, in a program without it.
    pub fn not_built_in(self, scheme: &str) -> InvalidServerUrl {
        InvalidServerUrl::NotBuiltIn {
            scheme: scheme.to_owned(),
            feature: self.feature(),
        }
    }
}

/// The reason why a text is not the URL of a server.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidServerUrl {
    /// No kind of server has this scheme. The text may contain a password, so the error does not repeat it.
    #[error(
        "this is not the URL of a server: `redis://HOST`, `postgres://HOST/DATABASE` or `etcd://HOST`"
    )]
    UnknownScheme,
    /// This program was built without support for this kind of server.
    #[error(
        "`{scheme}:` needs a program that is built with the feature `{feature}`, and this one is not"
    )]
    NotBuiltIn {
        /// The scheme of the URL.
        scheme: String,
        /// The missing Cargo feature.
        feature: &'static str,
    },
    /// The URL is invalid. It may contain a password, so the error does not repeat it.
    #[error("this `{scheme}:` URL is invalid: {why}")]
    Invalid {
        /// The scheme of the URL.
        scheme: String,
        /// The reason, which contains no password.
        why: String,
    },
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
