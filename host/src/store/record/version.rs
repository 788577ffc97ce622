//! The part of a lock's file that is read often: its version, and its queue's mark. See `FORMAT.md`.

use super::codec::served_of;
use super::layout::{
    FLAGS_AT, HELD, MARK_AT, SEQUENCE_AT, SLOTS, TICKETS, TOUCH_AT, get_u32, get_u64,
};

/// The part of a file that changes with each record, and with each notification of its waiters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    sequences: [u64; 2],
    touched: u64,
    /// Whether the latest grant has not been recorded as released.
    held: bool,
    served: u64,
}

impl Version {
    /// Returns the version of a file that begins with `bytes`, at least
    /// [`CHANGING_BYTES`](super::CHANGING_BYTES) of them.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let sequences = SLOTS.map(|slot| get_u64(bytes, slot.start + SEQUENCE_AT));
        let latest = &SLOTS[usize::from(sequences[0] < sequences[1])];
        Self {
            sequences,
            touched: get_u64(bytes, TOUCH_AT),
            held: get_u32(bytes, latest.start + FLAGS_AT) & HELD != 0,
            served: served_of(&bytes[latest.clone()]),
        }
    }

    /// Returns the greatest ticket that does not wait any more.
    pub(crate) fn served(self) -> u64 {
        self.served
    }

    /// Returns whether the lock may be free in this version, if it was held in the version `before`.
    pub(crate) fn may_be_free(self, before: Self) -> bool {
        self != before && (!self.held || self.touched != before.touched)
    }

    /// Returns whether the latest grant has not been recorded as released.
    pub(crate) fn is_held(self) -> bool {
        self.held
    }
}

/// Returns the queue's mark in a file that begins with `bytes`, at least
/// [`CHANGING_BYTES`](super::CHANGING_BYTES) of them.
pub(crate) fn mark_of(bytes: &[u8]) -> u64 {
    // The mark has no checksum: a corrupt mark must not use up the tickets.
    Some(get_u64(bytes, MARK_AT))
        .filter(|&mark| mark < TICKETS)
        .unwrap_or_default()
}
