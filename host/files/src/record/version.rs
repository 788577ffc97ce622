//! The part of a lock's file that is read often: its version, and its queue's mark. See `FORMAT.md`.

use super::codec::served_of;
use super::layout::{Changing, HELD, TICKETS};

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
        let file = changing(bytes);
        let sequences = file.slots.each_ref().map(|slot| slot.sequence.get());
        let latest = &file.slots[usize::from(sequences[0] < sequences[1])];
        Self {
            sequences,
            touched: file.touch.get(),
            held: latest.flags.get() & HELD != 0,
            served: served_of(latest),
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
    Some(changing(bytes).mark.get())
        .filter(|&mark| mark < TICKETS)
        .unwrap_or_default()
}

fn changing(bytes: &[u8]) -> &Changing {
    Changing::of(bytes).expect("the caller has read these bytes")
}
