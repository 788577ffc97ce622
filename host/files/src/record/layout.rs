//! The layout of a lock's file: its parts, sizes, offsets and flags. See `FORMAT.md`.

use std::mem::offset_of;

use crc32c::crc32c;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

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
pub(super) const HOST_BYTES: usize = 64;
pub(super) const COMMAND_BYTES: usize = 320;

/// The header of a file, which never changes.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U32,
    /// The number of the [`Kind`].
    pub(super) kind: U32,
    pub(super) name_bytes: U32,
    /// The checksum of the name and of the fields above.
    pub(super) checksum: U32,
}

/// One of the two slots for records.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RecordSlot {
    /// The checksum of all bytes below.
    pub(super) checksum: U32,
    pub(super) flags: U32,
    pub(super) sequence: U64,
    pub(super) fence: U64,
    pub(super) last_fence: U64,
    pub(super) owner: [u8; 16],
    pub(super) boot: [u8; 16],
    pub(super) time_namespace: U64,
    /// Nanoseconds; zero for a lease that never expires.
    pub(super) ttl: U64,
    /// Nanoseconds by `CLOCK_BOOTTIME`.
    pub(super) ends: U64,
    /// Milliseconds since the start of 1970.
    pub(super) ends_wall: U64,
    /// Milliseconds since the start of 1970.
    pub(super) since_wall: U64,
    pub(super) process: U32,
    pub(super) host_bytes: U16,
    pub(super) command_bytes: U16,
    /// The host, and the command behind it. Without [`EXTENDED`], the text may reach to the end of the slot.
    pub(super) text: [u8; HOST_BYTES + COMMAND_BYTES],
    /// Has a meaning with [`EXTENDED`].
    pub(super) served: U64,
    /// Has a meaning with [`NUMBERED`].
    pub(super) file: U64,
}

pub(super) const SLOT_BYTES: usize = size_of::<RecordSlot>();

impl RecordSlot {
    /// Returns all bytes from the text on.
    pub(super) fn text_and_rest(&self) -> &[u8] {
        &self.as_bytes()[offset_of!(Self, text)..]
    }

    /// Returns the checksum of the slot's contents.
    pub(super) fn computed_checksum(&self) -> u32 {
        crc32c(&self.as_bytes()[offset_of!(Self, flags)..])
    }
}

/// The part of a file that grants and waiters can change, with all bytes before it.
#[derive(FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Changing {
    pub(super) header: Header,
    unused: [u8; 512 - size_of::<Header>()],
    pub(super) slots: [RecordSlot; 2],
    /// The queue's mark: the ticket that was last given to a waiter.
    pub(super) mark: U64,
    /// The touch: a number that changes when a lock is released without a record.
    pub(super) touch: U64,
}

impl Changing {
    /// Returns this part of a file that begins with `bytes`; `None` if there are too few of them.
    pub(super) fn of(bytes: &[u8]) -> Option<&Self> {
        let (changing, _) = Self::ref_from_prefix(bytes).ok()?;
        Some(changing)
    }
}

/// The offsets of the slots.
pub(super) const SLOTS: [usize; 2] = {
    let first = offset_of!(Changing, slots);
    [first, first + SLOT_BYTES]
};

/// The length of the part of a file that records can change, with all bytes before it.
pub(crate) const RECORD_BYTES: usize = MARK_AT;

/// The offset of the queue's mark.
pub(crate) const MARK_AT: usize = offset_of!(Changing, mark);

/// The offset of the touch.
pub(crate) const TOUCH_AT: usize = offset_of!(Changing, touch);

/// The length of the part of a file that grants can change, with all bytes before it.
pub(crate) const CHANGING_BYTES: usize = size_of::<Changing>();

// As FORMAT.md says.
const _: () = {
    assert!(SLOTS[0] == 512 && SLOT_BYTES == 512);
    assert!(offset_of!(RecordSlot, owner) == 32 && offset_of!(RecordSlot, ttl) == 72);
    assert!(offset_of!(RecordSlot, text) == 112 && offset_of!(RecordSlot, served) == 496);
    assert!(MARK_AT == 1536 && CHANGING_BYTES == 1552);
};

/// The offset of the table of released fences: those of grants that their owners released through
/// another process than the one that kept them alive. Each fence has a fixed slot.
const RELEASED_AT: u64 = 3584;
const RELEASED: u64 = 64;

/// Returns the offset at which the fence `fence` is written when its grant is released in this way.
pub(crate) fn released_at(fence: u64) -> u64 {
    RELEASED_AT + fence % RELEASED * 8
}

/// Every sequence number and every fence is less than this, so that each has a successor.
pub(crate) const COUNTED: u64 = 1 << 62;

/// Every ticket that is read from a file is less than this, half of the greatest ticket, so that its
/// successors are tickets, too.
pub(crate) const TICKETS: u64 = 1 << 59;

pub(super) const HELD: u32 = 1;
pub(super) const EPHEMERAL: u32 = 1 << 1;
/// `served` and `file` are not text.
pub(super) const EXTENDED: u32 = 1 << 2;
pub(super) const NOTIFIES: u32 = 1 << 3;
/// `file` has a meaning.
pub(super) const NUMBERED: u32 = 1 << 4;
