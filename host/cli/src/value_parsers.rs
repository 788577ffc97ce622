//! Parses the values on the command line. Each error is a whole message, and ends with its code.
//!
//! No part of clap is used here, because the fuzzers compile this file into the library.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use verrou::{Error, Fence, InvalidTtl, Name, Retry, Ttl};
use verrou_host::StoreUrl;

pub(crate) fn name(text: &str) -> Result<Name, String> {
    text.parse().map_err(coded)
}

/// Rejects a name that is more likely meant as a file for `--file`: a lock of that name would not
/// exclude other programs that lock the file.
///
/// A plain word is accepted even if a file of that name exists: a lock is often named after the output
/// of its holder (`verrou run report -- make report`).
pub(crate) fn likely_name(text: &str) -> Result<Name, String> {
    let name = name(text)?;
    let path = Path::new(text);
    let is_path = ["/", "./", "../"].iter().any(|it| text.starts_with(it));
    let is_likely = text.contains('/') || path.extension().is_some_and(|it| it == "lock");
    let is_file = || is_likely && path.metadata().is_ok_and(|it| !it.is_dir());
    let reason = if is_path {
        "looks like a path"
    } else if is_file() {
        "is a file"
    } else {
        return Ok(name);
    };
    Err(format!(
        "`{text}` {reason}; did you mean `verrou run --file {text}`? For a lock of that name, write \
         `--name {text}` (E_INVALID_NAME)"
    ))
}

pub(crate) fn ttl(text: &str) -> Result<Ttl, String> {
    /// A shorter lease would expire before a process could renew or release it.
    const SHORTEST: Duration = Duration::from_millis(10);

    with_unit(text, "E_INVALID_TTL")?;
    let ttl: Ttl = text.parse().map_err(|why| match why {
        InvalidTtl::Unreadable { why, .. } => format!(
            "`{text}` is not a length of time ({why}); write it like `10s`, `1m 30s`, `500ms`, or \
             `none` (E_INVALID_TTL)"
        ),
        why => coded(why),
    })?;
    match ttl.duration() {
        Some(length) if length < SHORTEST => Err(format!(
            "a lease taken from the command line must last at least {SHORTEST:?} (E_INVALID_TTL)"
        )),
        _ => Ok(ttl),
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "clap passes owned values to its parsers"
)]
pub(crate) fn store(text: OsString) -> Result<StoreUrl, String> {
    StoreUrl::try_from(&*text).map_err(|why| format!("{why} (E_INVALID_STORE)"))
}

pub(crate) fn attempts(text: &str) -> Result<u32, String> {
    let attempts = text.parse().map_err(|_| {
        format!(
            "`{text}` is not a number of attempts; write a whole number from 1 (E_INVALID_RETRY)"
        )
    })?;
    match Retry::default().attempts(attempts) {
        Ok(_) => Ok(attempts),
        Err(why) => Err(coded(why)),
    }
}

pub(crate) fn delay(text: &str) -> Result<Duration, String> {
    let delay = length(text)?;
    match Retry::default().delay(delay) {
        Ok(_) => Ok(delay),
        Err(why) => Err(coded(why)),
    }
}

/// Parses a length of time as [`Ttl`] does, but accepts zero.
pub(crate) fn length(text: &str) -> Result<Duration, String> {
    const CODE: &str = "E_INVALID_RETRY";

    with_unit(text, CODE)?;
    if text.parse() == Ok(0) {
        return Ok(Duration::ZERO);
    }
    Ttl::parse_length(text).map_err(|why| {
        let why = match why {
            InvalidTtl::Unreadable { why, .. } => why,
            _ => "it is too long".to_owned(),
        };
        format!(
            "`{text}` is not a length of time ({why}); write it like `10s`, `1m 30s`, `500ms` \
             ({CODE})"
        )
    })
}

/// Rejects a number without a unit: it means seconds to `flock`, `timeout` and `sleep`, and
/// milliseconds to the libraries.
fn with_unit(text: &str, code: &str) -> Result<(), String> {
    let number = text.trim();
    match number.parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Err(format!(
            "`{number}` has no unit; write `{number}s` for seconds, or `{number}ms` for \
             milliseconds ({code})"
        )),
        _ => Ok(()),
    }
}

/// Parses a fencing token as `verrou run` passes it.
pub(crate) fn fence(text: &str) -> Result<Fence, String> {
    let number = text.parse().ok().and_then(Fence::new);
    number.filter(|fence| *fence <= Fence::LAST).ok_or_else(|| {
        let last = Fence::LAST;
        format!("`{text}` is not a fencing token; write a whole number from 1 to {last}")
    })
}

/// Returns the message of an error, followed by its code.
fn coded(why: impl std::error::Error + Into<Error>) -> String {
    let message = why.to_string();
    let code = why.into().code();
    format!("{message} ({code})")
}
