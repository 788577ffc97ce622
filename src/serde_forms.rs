//! The text forms of names, tokens, durations and leases, for [serde](https://serde.rs) (feature `serde`).
//!
//! They are the forms of configuration files, and each value is checked when it is read.
//!
//! ```
//! use std::time::Duration;
//! use verrou::{Name, Retry, Ttl};
//!
//! #[derive(serde::Deserialize)]
//! struct Settings {
//!     lock: Name,
//!     ttl: Ttl,
//!     #[serde(default)]
//!     retry: Retry,
//! }
//!
//! let text = r#"{"lock": "backup", "ttl": "1m 30s", "retry": {"attempts": 5, "delay": "100ms"}}"#;
//! let settings: Settings = serde_json::from_str(text)?;
//! assert_eq!(settings.lock.as_str(), "backup");
//! assert_eq!(settings.ttl, Ttl::new(Duration::from_secs(90))?);
//! assert_eq!(settings.retry, Retry::default().attempts(5)?.delay(Duration::from_millis(100))?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use alloc::borrow::Cow;
use alloc::string::{String, ToString};
use core::time::Duration;

use serde::de::{Error, Unexpected};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::claim::Fence;
use crate::name::Name;
use crate::retry::{Backoff, Retry};
use crate::serialized::SerializedLock;
use crate::ttl::Ttl;

/// Serializes the name as a string.
impl Serialize for Name {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

/// Deserializes a string; [`Name::new`] checks it.
impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(from)?;
        Self::new(&text).map_err(D::Error::custom)
    }
}

/// Serializes the fencing token as a number.
impl Serialize for Fence {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(self.get())
    }
}

/// Deserializes a number; [`Fence::new`] checks it.
impl<'de> Deserialize<'de> for Fence {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let number = u64::deserialize(from)?;
        Self::new(number).ok_or_else(|| {
            D::Error::invalid_value(Unexpected::Unsigned(number), &"a fencing token")
        })
    }
}

/// Serializes the text that [`Ttl`] displays: `1m 30s`, or `none` for a lease that does not expire.
impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Deserializes the texts that [`Ttl`] parses, a number of milliseconds, or `null` for a lease that does not
/// expire.
impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let ttl = match Option::deserialize(from)? {
            None => Ok(Self::NEVER),
            Some(Written::Millis(millis)) => Self::new(Duration::from_millis(millis)),
            Some(Written::Fraction(millis)) => Self::from_millis_f64(millis),
            Some(Written::Text(text)) => text.parse(),
        };
        ttl.map_err(D::Error::custom)
    }
}

/// A duration as people write it.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "expected a duration such as \"1m 30s\", or a number of milliseconds"
)]
enum Written {
    Millis(u64),
    Fraction(f64),
    Text(String),
}

/// A human-readable duration; unlike a [`Ttl`], it can be zero.
struct Length(Duration);

impl Serialize for Length {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let length = match Written::deserialize(from)? {
            Written::Millis(millis) => Duration::from_millis(millis),
            Written::Fraction(millis) => {
                let expected = "a number of milliseconds from 0 on";
                let length = Duration::try_from_secs_f64(millis / 1000.0);
                length.map_err(|_| D::Error::invalid_value(Unexpected::Float(millis), &expected))?
            }
            Written::Text(text) => match text.trim().parse() {
                Ok(millis) => Duration::from_millis(millis),
                Err(_) => Ttl::parse_length(&text).map_err(D::Error::custom)?,
            },
        };
        Ok(Self(length))
    }
}

/// The members of a [`Retry`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RetryForm {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attempts: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay: Option<Length>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_delay: Option<Length>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout: Option<Length>,
}

/// Serializes a map with the members `attempts`, `delay`, `max_delay` and `timeout`; an unset limit is
/// omitted.
impl Serialize for Retry {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let (delay, max_delay) = match self.pauses() {
            Backoff::Constant(delay) => (delay, None),
            Backoff::Jittered { first, cap } => (first, Some(cap)),
        };
        let form = RetryForm {
            attempts: self.most_attempts().map(Into::into),
            delay: Some(Length(delay)),
            max_delay: max_delay.map(Length),
            timeout: self.longest().map(Length),
        };
        form.serialize(to)
    }
}

/// Deserializes a map with the members `attempts`, `delay`, `max_delay` and `timeout`, all of them optional;
/// [`Retry::new`] checks them.
impl<'de> Deserialize<'de> for Retry {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let form = RetryForm::deserialize(from)?;
        let [delay, max_delay, timeout] =
            [form.delay, form.max_delay, form.timeout].map(|it| it.map(|Length(it)| it));
        Self::new(form.attempts, delay, max_delay, timeout).map_err(D::Error::custom)
    }
}

/// The members of a [`SerializedLock`] of version 1.
#[derive(Serialize, Deserialize)]
struct LockForm<'a> {
    version: u64,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    owner: Cow<'a, str>,
    // A member that may be null may not be missing.
    #[serde(deserialize_with = "Option::deserialize")]
    ttl: Option<u64>,
    #[serde(deserialize_with = "Option::deserialize")]
    expires: Option<u64>,
    #[serde(deserialize_with = "Option::deserialize")]
    fence: Option<u64>,
}

/// Serializes a map with the members of the text form.
impl Serialize for SerializedLock {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let owner = self.owner().to_string();
        let [ttl, expires, fence] = self.numbers();
        let form = LockForm {
            version: Self::VERSION,
            name: self.name().as_str().into(),
            owner: owner.as_str().into(),
            ttl,
            expires,
            fence,
        };
        form.serialize(to)
    }
}

/// Deserializes a map with the members of the text form, and checks them as its parser does.
impl<'de> Deserialize<'de> for SerializedLock {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let form = LockForm::deserialize(from)?;
        Self::check_version(form.version)
            .and_then(|()| {
                let numbers = [form.ttl, form.expires, form.fence];
                Self::from_members(&form.name, &form.owner, numbers)
            })
            .map_err(D::Error::custom)
    }
}
