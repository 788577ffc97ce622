//! When to ask again for a lock that another holds, and when to stop.

use core::num::NonZeroU32;
use core::time::Duration;

/// How long, how often and how soon to ask again for a lock that another owner holds.
///
/// The default asks every 250 ms for ever. A store that can wait for a name wakes the asker
/// sooner; attempts it makes then are extra and count toward no limit.
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

/// How pauses grow from one attempt to the next.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Backoff {
    /// The same pause each time.
    Constant(Duration),
    /// A random part of a time that doubles from `first` up to `cap`: "full jitter", as in
    /// [Brooker 2015](https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    Jittered {
        /// The longest the first pause can be.
        first: Duration,
        /// The longest any pause can be.
        cap: Duration,
    },
}

impl Retry {
    /// How long the default policy pauses between two attempts.
    pub const DEFAULT_DELAY: Duration = Duration::from_millis(250);

    /// One attempt, at once.
    pub const NEVER: Self = Self {
        attempts: Some(NonZeroU32::MIN),
        ..Self::FOR_EVER
    };

    /// An attempt every 250 ms, without end: the default.
    pub const FOR_EVER: Self = Self {
        attempts: None,
        backoff: Backoff::Constant(Self::DEFAULT_DELAY),
        timeout: None,
    };

    /// No pause is shorter: a shorter one would ask the store without a break.
    pub(crate) const SHORTEST_PAUSE: Duration = Duration::from_millis(1);

    /// What four lengths and numbers say, each of which may be left to the default: how many attempts
    /// to make at most, for how long to pause between two, up to which length pauses grow, and for
    /// how long to try in all.
    ///
    /// # Errors
    ///
    /// As [`attempts`](Self::attempts) and [`backoff`](Self::backoff).
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

    /// Makes `attempts` attempts in all, the first one included.
    ///
    /// # Errors
    ///
    /// [`InvalidRetry`] for zero.
    pub fn attempts(mut self, attempts: u32) -> Result<Self, InvalidRetry> {
        self.attempts = Some(NonZeroU32::new(attempts).ok_or(InvalidRetry::NoAttempts)?);
        Ok(self)
    }

    /// Pauses for `delay` between two attempts.
    ///
    /// # Errors
    ///
    /// [`InvalidRetry`] for zero.
    pub fn delay(self, delay: Duration) -> Result<Self, InvalidRetry> {
        self.backoff(Backoff::Constant(delay))
    }

    /// Pauses between two attempts as `backoff` says.
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

    /// Stops `timeout` after the first attempt; the last attempt is made at that moment.
    ///
    /// Zero makes one attempt, at once.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How many attempts are made at most; `None` for any number.
    pub fn most_attempts(&self) -> Option<NonZeroU32> {
        self.attempts
    }

    /// How long the pauses are.
    pub fn pauses(&self) -> Backoff {
        self.backoff
    }

    /// How long after the first attempt the last one is made; `None` for no limit.
    pub fn longest(&self) -> Option<Duration> {
        self.timeout
    }

    /// The pause after `attempts` attempts in `waited` time, or `None` to stop; `roll` is any
    /// number, for the jitter.
    pub fn pause(&self, attempts: u32, waited: Duration, roll: u32) -> Option<Duration> {
        if self.attempts.is_some_and(|most| most.get() <= attempts) {
            return None;
        }
        let pause = match self.backoff {
            Backoff::Constant(pause) => pause,
            Backoff::Jittered { first, cap } => {
                let doublings = attempts.saturating_sub(1).min(31);
                let ceiling = first.saturating_mul(1 << doublings).min(cap);
                // Sixteen bits of chance are enough for a jitter.
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

/// Why a retry policy makes no sense.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRetry {
    /// The longest pause is shorter than the first.
    #[error("the longest pause between attempts must not be shorter than the first")]
    CapBelowFirst,
    /// Not even one attempt.
    #[error("at least one attempt must be made; leave `attempts` out to make any number")]
    NoAttempts,
    /// No pause at all.
    #[error("the delay between attempts must be longer than zero")]
    NoDelay,
}
