//! The position of an owner in the wait queue, and the hand-off reservation that follows from it.

use std::time::Duration;

use crate::record_file::View;

/// The hand-off reservation: the time for which a released lock is reserved for the head waiter.
pub(super) const RESERVATION: Duration = Duration::from_millis(200);

/// The position of the owner of an acquire request in the wait queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Position {
    /// There are no waiters.
    NoWaiters,
    /// The owner is the head waiter, with this ticket.
    Head(u64),
    /// The owner is the second waiter, with this ticket.
    Second(u64),
    /// Other waiters are before the owner; its ticket, if it is a waiter.
    Behind(Option<u64>),
}

impl Position {
    /// Returns the greatest ticket that does not wait any more once the owner is granted the lock, whose file
    /// contains `before`.
    pub(crate) fn served(self, before: &View) -> u64 {
        match self {
            Self::NoWaiters => before.mark.max(before.served()),
            Self::Head(ticket) | Self::Second(ticket) | Self::Behind(Some(ticket)) => {
                ticket.max(before.served())
            }
            Self::Behind(None) => before.served(),
        }
    }

    /// Returns whether the owner is a waiter.
    pub(crate) fn has_ticket(self) -> bool {
        !matches!(self, Self::NoWaiters | Self::Behind(None))
    }

    /// Returns for how long a released lock is reserved for waiters before the owner. If the head waiter does
    /// not take the lock, the second waiter may; if that one does not either, any process may.
    pub(crate) fn reservation(self) -> Duration {
        match self {
            Self::NoWaiters | Self::Head(_) => Duration::ZERO,
            _ if mutant!(QueueIgnored) => Duration::ZERO,
            _ if mutant!(EndlessPatience) => Duration::MAX,
            Self::Second(_) => RESERVATION,
            Self::Behind(_) => 2 * RESERVATION,
        }
    }
}
