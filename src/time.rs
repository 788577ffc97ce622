//! Time as the host counts it.

use core::time::Duration;

use alloc::sync::Arc;

/// A point in time: how long after some fixed moment of the host's choosing.
///
/// Points of one [`Clock`] can be compared with each other and with nothing else.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Timestamp(Duration);

impl Timestamp {
    /// The point `since_start` after the host's fixed moment.
    pub const fn new(since_start: Duration) -> Self {
        Self(since_start)
    }

    /// How long after the host's fixed moment this is.
    pub const fn since_start(self) -> Duration {
        self.0
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// The point `length` after this one, or the last there is.
    #[must_use]
    pub const fn saturating_add(self, length: Duration) -> Self {
        Self(self.0.saturating_add(length))
    }
}

/// What time it is, as a host tells it.
///
/// The clock must never go back, must not be set by people or by the network, and should go on
/// while the machine is suspended: a lease that ran out during suspend has run out. On Linux
/// that is `CLOCK_BOOTTIME`.
pub trait Clock {
    /// The time now.
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
