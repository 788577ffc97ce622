//! The length of a lease.

use core::time::Duration;

#[cfg(feature = "std")]
use alloc::string::{String, ToString};

/// The length of a lease, from its grant: a duration, or [`NEVER`](Self::NEVER) for a lease without an
/// expiry.
///
/// Its text is in the format of [humantime](https://docs.rs/humantime): `1s`, `1m 30s`, `500ms`. A
/// bare number is milliseconds; `none` and `null` mean that the lease does not end by itself.
///
/// ```
/// use std::time::Duration;
/// use verrou::Ttl;
///
/// assert_eq!("1m 30s".parse::<Ttl>()?.duration(), Some(Duration::from_secs(90)));
/// assert_eq!("1500".parse::<Ttl>()?, Ttl::new(Duration::from_millis(1500))?);
/// assert_eq!("none".parse::<Ttl>()?, Ttl::NEVER);
/// assert!("0s".parse::<Ttl>().is_err());
/// # Ok::<(), verrou::InvalidTtl>(())
/// ```
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Ttl(Option<Duration>);

impl Ttl {
    /// The default of a lock: 30 seconds.
    pub const DEFAULT: Self = Self(Some(Duration::from_secs(30)));

    /// The maximum length of a lease: 2⁶³ − 1 nanoseconds, about 292 years.
    ///
    /// Any point in time plus this length still fits the 64-bit nanoseconds of stores and hosts.
    pub const MAX: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

    /// The lease does not end by itself.
    pub const NEVER: Self = Self(None);

    /// Returns the ttl of a lease that lasts `length`.
    ///
    /// # Errors
    ///
    /// [`InvalidTtl`] when `length` is zero or longer than [`Ttl::MAX`].
    pub fn new(length: Duration) -> Result<Self, InvalidTtl> {
        if length.is_zero() {
            Err(InvalidTtl::Zero)
        } else if length > Self::MAX {
            Err(InvalidTtl::TooLong)
        } else {
            Ok(Self(Some(length)))
        }
    }

    /// Returns the ttl of a lease that lasts `millis` milliseconds, a JavaScript number.
    ///
    /// # Errors
    ///
    /// [`InvalidTtl`] when `millis` is zero, negative, not a number, or too long.
    pub fn from_millis_f64(millis: f64) -> Result<Self, InvalidTtl> {
        if millis.is_nan() {
            Err(InvalidTtl::NotANumber)
        } else if millis < 0.0 {
            Err(InvalidTtl::Negative)
        } else {
            let length = Duration::try_from_secs_f64(millis / 1000.0);
            length.map_err(|_| InvalidTtl::TooLong).and_then(Self::new)
        }
    }

    /// Returns the length, or `None` when the lease does not end by itself.
    pub const fn duration(self) -> Option<Duration> {
        self.0
    }
}

impl Default for Ttl {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<Duration> for Ttl {
    type Error = InvalidTtl;

    fn try_from(length: Duration) -> Result<Self, InvalidTtl> {
        Self::new(length)
    }
}

/// Converts `None` to [`Ttl::NEVER`].
impl TryFrom<Option<Duration>> for Ttl {
    type Error = InvalidTtl;

    fn try_from(length: Option<Duration>) -> Result<Self, InvalidTtl> {
        length.map_or(Ok(Self::NEVER), Self::new)
    }
}

#[cfg(feature = "std")]
impl core::str::FromStr for Ttl {
    type Err = InvalidTtl;

    fn from_str(text: &str) -> Result<Self, InvalidTtl> {
        Self::read(text, |number| number.parse().ok())
    }
}

#[cfg(feature = "std")]
impl Ttl {
    /// Parses `text`, with `number` as the parser of fractional numbers: JavaScript's own needs none of
    /// the tables that the Rust parser adds to the module.
    pub(crate) fn read(
        text: &str,
        number: impl FnOnce(&str) -> Option<f64>,
    ) -> Result<Self, InvalidTtl> {
        let text = text.trim();
        if matches!(text, "none" | "null") {
            return Ok(Self::NEVER);
        }
        if let Ok(millis) = text.parse() {
            return Self::new(Duration::from_millis(millis));
        }
        if let Some(millis) = number(text) {
            return Self::from_millis_f64(millis);
        }
        if text.starts_with('-') {
            return Err(InvalidTtl::Negative);
        }
        Self::parse_length(text).and_then(Self::new)
    }

    /// Parses a duration in the format of [humantime](https://docs.rs/humantime). Zero, and durations
    /// that are too long for a lease, are accepted, too.
    ///
    /// Case makes no difference, and `.5m` means `0.5m`, as in
    /// [lukeed/ms](https://github.com/lukeed/ms). `1M` is rejected: it is a minute in lukeed/ms, and a
    /// month in humantime.
    ///
    /// ```
    /// use std::time::Duration;
    /// use verrou::Ttl;
    ///
    /// assert_eq!(Ttl::parse_length("1m 30s")?, Duration::from_secs(90));
    /// assert_eq!(Ttl::parse_length("0s")?, Duration::ZERO);
    /// # Ok::<(), verrou::InvalidTtl>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidTtl::TooLong`] for a length that a [`Duration`] cannot hold, [`InvalidTtl::Unreadable`]
    /// for a text that is not a duration.
    pub fn parse_length(text: &str) -> Result<Duration, InvalidTtl> {
        use humantime::{DurationError, parse_duration};

        let unreadable = |why| InvalidTtl::Unreadable {
            text: text.into(),
            why,
        };
        if let Some(number) = spans(text).find_map(ambiguous) {
            return Err(unreadable(alloc::format!(
                "`M` is ambiguous (minute or month): write {number}m or {number}month"
            )));
        }
        let mut lower = text.to_ascii_lowercase();
        if lower.starts_with('.') {
            lower.insert(0, '0');
        }
        // humantime 2.4 panics if the fractions of seconds overflow the sum by one second.
        let mut spans = spans(&lower).filter_map(|span| parse_duration(span).ok());
        if spans
            .try_fold(Duration::ZERO, Duration::checked_add)
            .is_none()
        {
            return Err(InvalidTtl::TooLong);
        }
        parse_duration(&lower).map_err(|why| match why {
            DurationError::NumberOverflow => InvalidTtl::TooLong,
            why => unreadable(why.to_string()),
        })
    }
}

#[cfg(feature = "std")]
impl TryFrom<&str> for Ttl {
    type Error = InvalidTtl;

    fn try_from(text: &str) -> Result<Self, InvalidTtl> {
        text.parse()
    }
}

#[cfg(feature = "std")]
impl core::fmt::Display for Ttl {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self.0 {
            Some(length) => humantime::format_duration(length).fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// Returns the parts of `text` that consist of a number and its unit.
#[cfg(feature = "std")]
fn spans(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    core::iter::from_fn(move || {
        let unit = rest.find(char::is_alphabetic)?;
        let after = rest[unit..].find(|it: char| !it.is_alphabetic());
        let (span, others) = rest.split_at(after.map_or(rest.len(), |after| unit + after));
        rest = others;
        Some(span)
    })
}

/// Returns the number of a span whose unit is `M`.
#[cfg(feature = "std")]
fn ambiguous(span: &str) -> Option<&str> {
    let number = span.strip_suffix('M')?.trim();
    number
        .ends_with(|c: char| c.is_ascii_digit())
        .then_some(number)
}

/// The error for a value that cannot be the length of a lease.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidTtl {
    /// The length is negative.
    #[error("a lease must not last a negative time")]
    Negative,
    /// The length is NaN.
    #[error("a lease's length must be a number, not NaN")]
    NotANumber,
    /// The length exceeds [`Ttl::MAX`].
    #[error("a lease must last less than 292 years; `none` makes one that does not end by itself")]
    TooLong,
    /// The text is not a duration.
    #[cfg(feature = "std")]
    #[error(
        "`{text}` is no length of time ({why}); write it like `1s`, `1m 30s`, `500ms`, a number of milliseconds, or `none`"
    )]
    Unreadable {
        /// The text.
        text: String,
        /// The reason.
        why: String,
    },
    /// The length is zero.
    #[error("a lease must last longer than zero; `none` makes one that does not end by itself")]
    Zero,
}
