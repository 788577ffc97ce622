//! What kinds of server there are.

use std::fmt;

/// What kind of server keeps the locks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Engine {
    /// Redis, or what speaks like it.
    Redis,
    /// `PostgreSQL`.
    Postgres,
    /// etcd, version 3.
    Etcd,
}

impl Engine {
    /// The engine of a URL's scheme.
    pub(crate) fn of_scheme(scheme: &str) -> Option<Self> {
        match scheme {
            "redis" | "rediss" => Some(Self::Redis),
            "postgres" | "postgresql" => Some(Self::Postgres),
            "etcd" | "etcds" => Some(Self::Etcd),
            _ => None,
        }
    }

    /// The feature of this crate that it needs.
    pub(crate) fn feature(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Etcd => "etcd",
        }
    }

    /// Whether this program is built with it.
    #[cfg(feature = "server")]
    pub(crate) fn is_built_in(self) -> bool {
        match self {
            Self::Redis => cfg!(feature = "redis"),
            Self::Postgres => cfg!(feature = "postgres"),
            Self::Etcd => cfg!(feature = "etcd"),
        }
    }

    /// Returns the scheme of a URL that asks for TLS.
    #[cfg(feature = "server")]
    pub(crate) fn encrypted_scheme(self) -> &'static str {
        match self {
            Self::Redis => "rediss",
            // By an option.
            Self::Postgres => "postgres",
            Self::Etcd => "etcds",
        }
    }

    /// What can be said of it in a URL.
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
