//! Retry policies and ttls, read from JavaScript values.

use core::time::Duration;

use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

use super::error::{lock_error, thrown};
use crate::error::Error;
use crate::retry::Backoff;
use crate::ttl::{InvalidTtl, Ttl};

/// A retry policy.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Retry(pub(super) crate::Retry);

#[wasm_bindgen]
#[allow(missing_docs, reason = "called by the package alone")]
impl Retry {
    /// Makes the default policy, which has no limit.
    #[wasm_bindgen(constructor)]
    pub fn new() -> Self {
        Self(crate::Retry::default())
    }

    /// Returns this policy with the arguments that are not `undefined` in place of its own. `null` and
    /// `Infinity` mean no limit. With a `max_delay`, pauses grow up to it.
    pub fn with(
        &self,
        attempts: &JsValue,
        delay: &JsValue,
        max_delay: &JsValue,
        timeout: &JsValue,
    ) -> Result<Self, JsValue> {
        let base = &self.0;
        let most = if attempts.is_undefined() {
            base.most_attempts().map(Into::into)
        } else {
            count(attempts)?
        };
        let (first, cap) = match base.pauses() {
            Backoff::Constant(pause) => (pause, None),
            Backoff::Jittered { first, cap } => (first, Some(cap)),
        };
        let policy = crate::Retry::new(
            most,
            limit_or("delay", delay, Some(first))?,
            limit_or("maxDelay", max_delay, cap)?,
            limit_or("timeout", timeout, base.longest())?,
        );
        policy.map(Self).map_err(|err| thrown(&err.into()))
    }
}

/// Reads `value`, or returns `default` if it is `undefined`.
fn limit_or(
    what: &str,
    value: &JsValue,
    default: Option<Duration>,
) -> Result<Option<Duration>, JsValue> {
    if value.is_undefined() {
        Ok(default)
    } else {
        limit(what, value)
    }
}

fn count(attempts: &JsValue) -> Result<Option<u32>, JsValue> {
    match attempts.as_f64() {
        None if attempts.is_null() => Ok(None),
        Some(number) if number == f64::INFINITY => Ok(None),
        Some(number) if number.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&number) => {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the number is checked above"
            )]
            let number = number as u32;
            Ok(Some(number))
        }
        _ => Err(invalid("attempts", "a whole number from 1, or Infinity")),
    }
}

/// Reads a length of time, which may be zero; `None` means no limit.
fn limit(what: &str, value: &JsValue) -> Result<Option<Duration>, JsValue> {
    let wanted = "a number of milliseconds from 0, or a text such as '250ms' or '2s'";
    if value.is_null() {
        return Ok(None);
    }
    if let Some(millis) = value.as_f64() {
        if millis == f64::INFINITY {
            return Ok(None);
        }
        return Duration::try_from_secs_f64(millis / 1_000.0)
            .map(Some)
            .map_err(|_| invalid(what, wanted));
    }
    let text = value.as_string();
    let text = text.ok_or_else(|| invalid(what, wanted))?;
    let length = read(&text).map_err(|_| invalid(what, wanted))?;
    Ok(length.duration())
}

fn invalid(what: &str, wanted: &str) -> JsValue {
    let message = alloc::format!("invalid retry policy: `{what}` must be {wanted}");
    lock_error("E_INVALID_RETRY", &message, &JsValue::UNDEFINED)
}

/// Reads a ttl: milliseconds, a text, or `null` for a lease that does not expire. The default is 30
/// seconds.
pub(super) fn ttl(value: &JsValue) -> Result<Ttl, Error> {
    if value.is_undefined() {
        Ok(Ttl::DEFAULT)
    } else if value.is_null() {
        Ok(Ttl::NEVER)
    } else if let Some(millis) = value.as_f64() {
        Ok(Ttl::from_millis_f64(millis)?)
    } else {
        Ok(read(&value.as_string().unwrap_or_default())?)
    }
}

fn read(text: &str) -> Result<Ttl, InvalidTtl> {
    Ttl::read(text, |number| {
        let decimal = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e');
        let number = (!number.is_empty() && number.chars().all(decimal))
            .then(|| JsValue::from_str(number))?;
        Some(number.unchecked_into_f64()).filter(|number| !number.is_nan())
    })
}
