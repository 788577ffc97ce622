//! Retry policies: the times at which to request a held lock again, and when to stop.

use core::num::NonZeroU32;
use core::time::Duration;

/// A retry policy: the number of attempts to acquire a held lock, the pauses between them, and the
/// timeout.
///
/// The default makes an attempt every 250 ms without end. A store that can wait for a name wakes the
/// waiter sooner; the attempts it makes then are extra and count toward no limit.
///
/// ```
/// use std::time::Duration;
/// use verrou::Retry;
///
/// let retry = Retry::default()
///     .attempts(5)?
///     .delay(Duration::from_millis(100))?
///     .timeout(Duration::from_secs(1));
/// assert!(Retry::default().attempts(0).is_err());
/// # Ok::<(), verrou::InvalidRetry>(())
/// ```
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
#[must_use]
pub struct Retry {
    attempts: Option<NonZeroU32>,
    backoff: Backoff,
    timeout: Option<Duration>,
}

/// The growth of pauses from one attempt to the next.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Backoff {
    /// The same pause each time.
    Constant(Duration),
    /// A random part of a time that doubles from `first` up to `cap`: "full jitter", as in
    /// [Brooker 2015](https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    Jittered {
        /// The maximum length of the first pause.
        first: Duration,
        /// The maximum length of any pause.
        cap: Duration,
    },
}

impl Retry {
    /// The default policy's pause between two attempts.
    pub const DEFAULT_DELAY: Duration = Duration::from_millis(250);

    /// A policy of one attempt, without a pause.
    pub const NEVER: Self = Self {
        attempts: Some(NonZeroU32::MIN),
        ..Self::FOR_EVER
    };

    /// A policy of an attempt every 250 ms, without end: the default.
    pub const FOR_EVER: Self = Self {
        attempts: None,
        backoff: Backoff::Constant(Self::DEFAULT_DELAY),
        timeout: None,
    };

    /// The minimum length of a pause: a shorter one would send requests in a busy loop.
    pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

    /// Returns the policy with at most `attempts` attempts, pauses of `delay` that grow up to `max_delay`,
    /// and a limit of `timeout` in all. Each `None` means the default.
    ///
    /// # Errors
    ///
    /// The errors of [`attempts`](Self::attempts) and [`backoff`](Self::backoff).
    pub fn new(
        attempts: Option<u32>,
        delay: Option<Duration>,
        max_delay: Option<Duration>,
        timeout: Option<Duration>,
    ) -> Result<Self, InvalidRetry> {
        let first = delay.unwrap_or(Self::DEFAULT_DELAY);
        let mut policy = Self::FOR_EVER.backoff(match max_delay {
            None => Backoff::Constant(first),
            Some(cap) => Backoff::Jittered { first, cap },
        })?;
        if let Some(attempts) = attempts {
            policy = policy.attempts(attempts)?;
        }
        policy.timeout = timeout;
        Ok(policy)
    }

    /// Limits the policy to `attempts` attempts in all, including the first.
    ///
    /// # Errors
    ///
    /// [`InvalidRetry`] for zero.
    pub fn attempts(mut self, attempts: u32) -> Result<Self, InvalidRetry> {
        self.attempts = Some(NonZeroU32::new(attempts).ok_or(InvalidRetry::NoAttempts)?);
        Ok(self)
    }

    /// Sets the pause between two attempts to `delay`.
    ///
    /// # Errors
    ///
    /// [`InvalidRetry`] for zero.
    pub fn delay(self, delay: Duration) -> Result<Self, InvalidRetry> {
        self.backoff(Backoff::Constant(delay))
    }

    /// Sets the pauses between two attempts to `backoff`.
    ///
    /// # Errors
    ///
    /// [`InvalidRetry`] when a length in it is zero, or `cap` is shorter than `first`.
    pub fn backoff(mut self, backoff: Backoff) -> Result<Self, InvalidRetry> {
        match backoff {
            Backoff::Constant(pause) | Backoff::Jittered { first: pause, .. }
                if pause.is_zero() =>
            {
                return Err(InvalidRetry::NoDelay);
            }
            Backoff::Jittered { first, cap } if cap < first => {
                return Err(InvalidRetry::CapBelowFirst);
            }
            Backoff::Constant(_) | Backoff::Jittered { .. } => self.backoff = backoff,
        }
        Ok(self)
    }

    /// Limits the policy to `timeout` from the first attempt; the last attempt is made at that moment.
    ///
    /// Zero means one attempt, without a pause.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Returns the maximum number of attempts; `None` for any number.
    pub fn most_attempts(&self) -> Option<NonZeroU32> {
        self.attempts
    }

    /// Returns the lengths of the pauses.
    pub fn pauses(&self) -> Backoff {
        self.backoff
    }

    /// Returns the time from the first attempt to the last one; `None` for no limit.
    pub fn longest(&self) -> Option<Duration> {
        self.timeout
    }

    /// Returns the pause after `attempts` attempts in `waited` time, or `None` to stop; `roll` is a
    /// random number, for the jitter.
    pub fn pause(&self, attempts: u32, waited: Duration, roll: u32) -> Option<Duration> {
        if self.attempts.is_some_and(|most| most.get() <= attempts) {
            return None;
        }
        let pause = match self.backoff {
            Backoff::Constant(pause) => pause,
            Backoff::Jittered { first, cap } => {
                let doublings = attempts.saturating_sub(1).min(31);
                let ceiling = first.saturating_mul(1 << doublings).min(cap);
                // Sixteen random bits are enough for jitter.
                ceiling / 0xffff * (roll >> 16)
            }
        };
        let pause = pause.max(Self::SHORTEST_PAUSE);
        match self.timeout {
            None => Some(pause),
            Some(timeout) => {
                let left = timeout.checked_sub(waited).filter(|left| !left.is_zero());
                left.map(|left| pause.min(left))
            }
        }
    }
}

impl Default for Retry {
    fn default() -> Self {
        Self::FOR_EVER
    }
}

/// The error for an invalid retry policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRetry {
    /// The maximum pause is shorter than the first.
    #[error("the longest pause between attempts must not be shorter than the first")]
    CapBelowFirst,
    /// The number of attempts is zero.
    #[error("at least one attempt must be made; leave `attempts` out to make any number")]
    NoAttempts,
    /// The delay is zero.
    #[error("the delay between attempts must be longer than zero")]
    NoDelay,
}
