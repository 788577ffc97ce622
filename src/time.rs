//! Points in time on the host's clock.

use core::time::Duration;

use alloc::sync::Arc;

/// A point in time: the duration since a fixed moment that the host chooses.
///
/// Timestamps of one [`Clock`] can be compared only with each other.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// Returns the point `since_start` after the host's fixed moment.
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// Returns the duration from the host's fixed moment to this point.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// Returns the duration from `earlier` to this point, or zero if this point is not later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Returns the point `length` after this one, or the last representable point.
    #[must_use]
    pub const fn saturating_add(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }
}

/// A host's monotonic clock.
///
/// The clock must never go back, must not be set by people or by the network, and should continue
/// while the machine is suspended, so that a lease can expire during a suspension. On Linux
/// this is `CLOCK_BOOTTIME`.
pub trait Clock {
    /// Returns the current time.
    fn now(&self) -> Timestamp;
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

impl<C: Clock + ?Sized> Clock for Arc<C> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}
