//! The layout of a lock's file: its sizes, offsets and flags, and the numbers at an offset. See `FORMAT.md`.

use std::ops::Range;

/// The size of a lock's file. All bytes are written when the file is created, so that later writes need no
/// disk space.
pub(crate) const FILE_BYTES: usize = 4096;

/// The kind of a lock's file, whose number is in the file's header.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(crate) enum Kind {
    Lease = 1,
    Lock = 2,
}

impl Kind {
    /// Returns the extension of the names of such files.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Lock => "lock",
        }
    }
}

pub(super) const MAGIC: [u8; 8] = *b"VERROU\r\n";
pub(super) const VERSION: u32 = 1;
pub(super) const NAME_AT: usize = 2048;
pub(super) const SLOT_BYTES: usize = 512;
pub(super) const SLOTS: [Range<usize>; 2] = [512..1024, 1024..1536];
pub(super) const FLAGS_AT: usize = 4;
pub(super) const SEQUENCE_AT: usize = 8;
pub(super) const FENCE_AT: usize = 16;
pub(super) const LAST_FENCE_AT: usize = 24;
pub(super) const TEXT_AT: usize = 112;
pub(super) const HOST_BYTES: usize = 64;
pub(super) const COMMAND_BYTES: usize = 320;
pub(super) const SERVED_AT: usize = 496;
pub(super) const FILE_AT: usize = 504;

/// The length of the part of a file that records can change, with all bytes before it.
pub(crate) const RECORD_BYTES: usize = 1536;

/// The offset of the queue's mark: the ticket that was last given to a waiter.
pub(crate) const MARK_AT: usize = RECORD_BYTES;

/// The offset of the touch: a number that changes when a lock is released without a record.
pub(crate) const TOUCH_AT: usize = RECORD_BYTES + 8;

/// The offset of the table of released fences: those of grants that their owners released through
/// another process than the one that kept them alive. Each fence has a fixed slot.
const RELEASED_AT: u64 = 3584;
const RELEASED: u64 = 64;

/// Returns the offset at which the fence `fence` is written when its grant is released in this way.
pub(crate) fn released_at(fence: u64) -> u64 {
    RELEASED_AT + fence % RELEASED * 8
}

/// The length of the part of a file that grants can change, with all bytes before it.
pub(crate) const CHANGING_BYTES: usize = RECORD_BYTES + 16;

/// Every sequence number and every fence is less than this, so that each has a successor.
pub(in crate::store) const COUNTED: u64 = 1 << 62;

/// Every ticket that is read from a file is less than this, half of the greatest ticket, so that its
/// successors are tickets, too.
pub(crate) const TICKETS: u64 = 1 << 59;

pub(super) const HELD: u32 = 1;
pub(super) const EPHEMERAL: u32 = 1 << 1;
/// The bytes from [`SERVED_AT`] on are not text.
pub(super) const EXTENDED: u32 = 1 << 2;
pub(super) const NOTIFIES: u32 = 1 << 3;
/// The bytes from [`FILE_AT`] on have a meaning.
pub(super) const NUMBERED: u32 = 1 << 4;

pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: usize) {
    // Every length stored is below 512.
    bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes());
}

pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn get_u16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

pub(super) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

pub(super) fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

pub(super) fn get_16(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut value = [0; 16];
    value.copy_from_slice(&bytes[at..at + 16]);
    value
}
