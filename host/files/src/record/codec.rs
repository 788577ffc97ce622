//! The reading and writing of a lock's file: of its header and of its records. See `FORMAT.md`.

use std::mem::offset_of;
use std::sync::Arc;
use std::time::Duration;

use crc32c::{crc32c, crc32c_append};
use verrou::{Name, Owner, Process};
use zerocopy::{FromZeros, IntoBytes, transmute};

use super::Record;
use super::layout::{
    COMMAND_BYTES, COUNTED, Changing, EPHEMERAL, EXTENDED, FILE_BYTES, HELD, HOST_BYTES, Header,
    Kind, MAGIC, NAME_AT, NOTIFIES, NUMBERED, RecordSlot, SLOT_BYTES, SLOTS, TICKETS, VERSION,
};

/// The kind of corruption of a lock's file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Corruption {
    /// The file does not begin like a lock's file, or is of another kind.
    #[error("it is not one of this store's files")]
    Foreign,
    /// The header does not match its checksum.
    #[error("its header is corrupt")]
    Header,
    /// The file was written by a newer version of this software.
    #[error("it has version {version}, and this program reads version {VERSION}")]
    Newer {
        /// The file's version.
        version: u32,
    },
    /// The file belongs to another lock: it was renamed, or the hashes of two names are equal.
    #[error("it belongs to the lock `{name}`")]
    OtherName {
        /// The name of that lock.
        name: String,
    },
    /// A record does not match its checksum, or has an impossible value.
    #[error("its record is corrupt")]
    Record,
    /// The file has the wrong number of bytes.
    #[error("it has {bytes} bytes instead of {FILE_BYTES}")]
    Size {
        /// The number of bytes that were read.
        bytes: usize,
    },
}

/// Returns the complete file of a lock that was never granted.
pub(crate) fn new_file(kind: Kind, name: &Name) -> Vec<u8> {
    let name = name.as_str().as_bytes();
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        kind: (kind as u32).into(),
        name_bytes: u32::try_from(name.len()).unwrap_or(u32::MAX).into(),
        checksum: 0.into(),
    };
    header.checksum = header_checksum(&header, name).into();
    let mut file = vec![0; FILE_BYTES];
    file[..size_of::<Header>()].copy_from_slice(header.as_bytes());
    file[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
    file
}

/// Returns the name in the header of a complete file of this kind.
pub(crate) fn name_of(kind: Kind, file: &[u8]) -> Result<Name, Corruption> {
    let header = &changing(file)?.header;
    if header.magic != MAGIC {
        return Err(Corruption::Foreign);
    }
    let version = header.version.get();
    if version != VERSION {
        return Err(if version > VERSION {
            Corruption::Newer { version }
        } else {
            Corruption::Header
        });
    }
    let name_bytes = header.name_bytes.get() as usize;
    if name_bytes > Name::MAX_BYTES {
        return Err(Corruption::Header);
    }
    let name = &file[NAME_AT..NAME_AT + name_bytes];
    if header.checksum != header_checksum(header, name) {
        return Err(Corruption::Header);
    }
    if header.kind != kind as u32 {
        return Err(Corruption::Foreign);
    }
    let name = std::str::from_utf8(name);
    name.ok()
        .and_then(|name| Name::new(name).ok())
        .ok_or(Corruption::Header)
}

/// Returns the part that changes of a complete file.
fn changing(file: &[u8]) -> Result<&Changing, Corruption> {
    let is_complete = file.len() == FILE_BYTES;
    let changing = Changing::of(file).filter(|_| is_complete);
    changing.ok_or(Corruption::Size { bytes: file.len() })
}

/// Returns the record in a complete file of the lock `name`; `None` if the lock was never granted.
///
/// A slot that does not match its checksum, or the other slot, was either being written when the machine
/// lost power, or is corrupt. A loss of power is certain only if the machine has rebooted since, which ended
/// every lease anyway; otherwise the slot is corrupt. `runs_since` returns whether the machine has not
/// rebooted since a boot ID.
pub(crate) fn read(
    kind: Kind,
    name: &Name,
    file: &[u8],
    runs_since: impl Fn([u8; 16]) -> bool,
) -> Result<Option<Record>, Corruption> {
    let found = name_of(kind, file)?;
    if found != *name && !mutant!(NameNotCompared) {
        return Err(Corruption::OtherName {
            name: found.to_string(),
        });
    }
    let slots = &changing(file)?.slots;
    let slots = [0, 1].map(|at| match checked(&slots[at]) {
        // The next write would overwrite the newer record.
        Ok(Some(slot)) if slot_of(slot.sequence.get()) != at => Err(Corruption::Record),
        slot => slot,
    });
    let in_step = match slots {
        [Ok(None), Ok(None)] => true,
        // The first record goes to slot 1.
        [Ok(None), Ok(Some(first))] => first.sequence == 1,
        [Ok(Some(even)), Ok(Some(odd))] => even.sequence.get().abs_diff(odd.sequence.get()) == 1,
        _ => false,
    };
    let whole = slots.into_iter().filter_map(Result::ok).flatten();
    match whole.max_by_key(|slot| slot.sequence.get()).map(decode) {
        Some(record) if in_step || !runs_since(record.boot) => Ok(Some(record)),
        None if in_step => Ok(None),
        _ if mutant!(CorruptionTakenForFree) => Ok(None),
        _ => Err(Corruption::Record),
    }
}

/// Returns the offset and the bytes to write for `record`: they overwrite the older slot.
pub(crate) fn write(record: &Record) -> (usize, [u8; SLOT_BYTES]) {
    let slot = mutant!(OneSlotOverwritten, 1, slot_of(record.sequence));
    (SLOTS[slot], transmute!(encode(record)))
}

/// Returns the slot of the record with this sequence number.
fn slot_of(sequence: u64) -> usize {
    usize::from(sequence % 2 == 1)
}

fn encode(record: &Record) -> RecordSlot {
    let flags = [
        (HELD, record.held),
        (EPHEMERAL, record.ephemeral),
        (EXTENDED, record.served != 0),
        (NOTIFIES, record.notifies),
        (NUMBERED, record.file != 0),
    ];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set);
    let host = shortened(&record.process.host, HOST_BYTES).as_bytes();
    let command = shortened(&record.process.command, COMMAND_BYTES).as_bytes();
    // No text is that long.
    let length = |text: &[u8]| u16::try_from(text.len()).unwrap_or(u16::MAX).into();
    // Filled in place: a struct expression would copy the text once more.
    let mut slot = RecordSlot::new_zeroed();
    slot.flags = flags.map(|(flag, _)| flag).sum::<u32>().into();
    slot.sequence = record.sequence.into();
    slot.fence = record.fence.into();
    slot.last_fence = record.last_fence.into();
    slot.owner = *record.owner.as_bytes();
    slot.boot = record.boot;
    slot.time_namespace = record.time_namespace.into();
    slot.ttl = record.ttl.map_or(0, nanos).into();
    slot.ends = nanos(record.ends).into();
    slot.ends_wall = millis(record.ends_wall).into();
    slot.since_wall = millis(record.since_wall).into();
    slot.process = record.process.id.into();
    slot.host_bytes = length(host);
    slot.command_bytes = length(command);
    slot.text[..host.len()].copy_from_slice(host);
    slot.text[host.len()..][..command.len()].copy_from_slice(command);
    slot.served = record.served.into();
    slot.file = record.file.into();
    slot.checksum = slot.computed_checksum().into();
    slot
}

/// Returns a slot that matches its checksum and has possible values; `None` if it was never written.
fn checked(slot: &RecordSlot) -> Result<Option<&RecordSlot>, Corruption> {
    let is_possible = || {
        slot.sequence.get() < COUNTED
            && slot.fence.get() <= slot.last_fence.get()
            && slot.last_fence.get() < COUNTED
            && text_of(slot).is_some()
    };
    if slot.checksum == slot.computed_checksum() && is_possible() {
        return Ok(Some(slot));
    }
    if slot.as_bytes().iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if mutant!(ChecksumNotChecked) {
        return Ok(Some(slot));
    }
    Err(Corruption::Record)
}

pub(super) fn served_of(slot: &RecordSlot) -> u64 {
    match slot.flags.get() & EXTENDED {
        0 => 0,
        // A forged number must not use up the tickets.
        _ => slot.served.get() % TICKETS,
    }
}

/// Returns the host and the command.
fn text_of(slot: &RecordSlot) -> Option<(&[u8], &[u8])> {
    let [host, command] = [slot.host_bytes, slot.command_bytes].map(|it| usize::from(it.get()));
    let text = slot.text_and_rest().get(..host + command)?;
    (host <= HOST_BYTES).then(|| text.split_at(host))
}

/// Decodes a slot that matches its checksum.
fn decode(slot: &RecordSlot) -> Record {
    let flags = slot.flags.get();
    let (host, command) = text_of(slot).unwrap_or_default();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Record {
        sequence: slot.sequence.get(),
        held: flags & HELD != 0,
        ephemeral: flags & EPHEMERAL != 0,
        fence: slot.fence.get(),
        last_fence: slot.last_fence.get(),
        owner: Owner::from_bytes(slot.owner),
        boot: slot.boot,
        time_namespace: slot.time_namespace.get(),
        ttl: Some(slot.ttl.get())
            .filter(|&ttl| ttl != 0)
            .map(Duration::from_nanos),
        ends: Duration::from_nanos(slot.ends.get()),
        ends_wall: Duration::from_millis(slot.ends_wall.get()),
        since_wall: Duration::from_millis(slot.since_wall.get()),
        process: Arc::new(Process::new(slot.process.get(), text(host), text(command))),
        served: served_of(slot),
        notifies: flags & NOTIFIES != 0,
        file: match flags & NUMBERED {
            0 => 0,
            _ => slot.file.get(),
        },
    }
}

fn header_checksum(header: &Header, name: &[u8]) -> u32 {
    let before = &header.as_bytes()[..offset_of!(Header, checksum)];
    crc32c_append(crc32c(name), before)
}

/// Returns the longest prefix of `text` of at most `bytes` bytes that ends with a complete character.
fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap_or(u64::MAX)
}

fn millis(length: Duration) -> u64 {
    length.as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{BOOT, record};
    use super::super::{CHANGING_BYTES, MARK_AT, TOUCH_AT, Version, mark_of};
    use super::*;

    fn name() -> Name {
        Name::new("nightly backup").unwrap()
    }

    /// Returns a file whose slots contain these records.
    fn file(records: &[&Record]) -> Vec<u8> {
        let mut file = new_file(Kind::Lease, &name());
        for record in records {
            let (offset, slot) = write(record);
            file[offset..offset + SLOT_BYTES].copy_from_slice(&slot);
        }
        file
    }

    fn read_lease(file: &[u8]) -> Result<Option<Record>, Corruption> {
        read(Kind::Lease, &name(), file, |boot| boot == BOOT)
    }

    #[test]
    fn files_of_version_1_stay_readable() {
        let never = include_bytes!("../../../tests/golden/lease-v1-never.lease");
        assert_eq!(never[..], new_file(Kind::Lease, &name()));
        assert_eq!(read_lease(never), Ok(None));

        let held = include_bytes!("../../../tests/golden/lease-v1-held.lease");
        let before = Record {
            sequence: 40,
            held: false,
            fence: 1041,
            ..record()
        };
        assert_eq!(held[..], file(&[&before, &record()]));
        assert_eq!(read_lease(held), Ok(Some(record())));
    }

    #[test]
    fn files_of_version_1_with_waiters_stay_readable() {
        let golden = include_bytes!("../../../tests/golden/lease-v1-waited-for.lease");
        let before = Record {
            sequence: 40,
            held: false,
            ephemeral: false,
            fence: 1041,
            served: 8195,
            notifies: true,
            ..record()
        };
        let held = Record {
            served: 12_291,
            ..record()
        };
        let mut expected = file(&[&before, &held]);
        expected[MARK_AT..TOUCH_AT].copy_from_slice(&16_387u64.to_le_bytes());
        expected[TOUCH_AT..CHANGING_BYTES].copy_from_slice(&123_456_789u64.to_le_bytes());
        assert_eq!(golden[..], expected);
        assert_eq!(read_lease(golden), Ok(Some(held)));
        assert_eq!(mark_of(golden), 16_387);
        let version = Version::of(golden);
        assert!(version.is_held() && version.served() == 12_291);
    }

    #[test]
    fn files_of_version_1_with_file_number_stay_readable() {
        let golden = include_bytes!("../../../tests/golden/lease-v1-numbered.lease");
        let numbered = Record {
            file: 0x0123_4567_89ab_cdef,
            ..record()
        };
        let before = Record {
            sequence: 40,
            ..record()
        };
        assert_eq!(golden[..], file(&[&before, &numbered]));
        assert_eq!(read_lease(golden), Ok(Some(numbered)));
    }

    #[test]
    fn record_with_greater_sequence_is_current() {
        let free = Record {
            sequence: 42,
            held: false,
            ..record()
        };
        assert_eq!(
            read_lease(&file(&[&record(), &free])),
            Ok(Some(free.clone()))
        );
        assert_eq!(read_lease(&file(&[&free, &record()])), Ok(Some(free)));
    }

    #[test]
    fn corrupt_slot_is_taken_for_torn_write_only_after_reboot() {
        let free = Record {
            sequence: 40,
            held: false,
            ..record()
        };
        let mut file = file(&[&free, &record()]);
        file[SLOTS[1] + 200] ^= 1;
        assert_eq!(
            read_lease(&file),
            Err(Corruption::Record),
            "not taken for a free lock"
        );
        let rebooted = [8; 16];
        assert_eq!(
            read(Kind::Lease, &name(), &file, |boot| boot == rebooted),
            Ok(Some(free))
        );
        file[SLOTS[0] + 200] ^= 1;
        assert_eq!(
            read(Kind::Lease, &name(), &file, |boot| boot == rebooted),
            Err(Corruption::Record)
        );
    }

    #[test]
    fn foreign_files_are_rejected() {
        let whole = file(&[&record()]);
        let other = Name::new("other").unwrap();
        let other_name = Corruption::OtherName {
            name: "nightly backup".to_owned(),
        };
        assert_eq!(
            read(Kind::Lease, &other, &whole, |boot| boot == BOOT),
            Err(other_name)
        );
        assert_eq!(
            read(Kind::Lock, &name(), &whole, |boot| boot == BOOT),
            Err(Corruption::Foreign)
        );
        let mut newer = whole.clone();
        newer[8] = 2;
        assert_eq!(read_lease(&newer), Err(Corruption::Newer { version: 2 }));
        for bytes in 0..FILE_BYTES {
            assert_eq!(read_lease(&whole[..bytes]), Err(Corruption::Size { bytes }));
        }
        assert_eq!(read_lease(&[0; FILE_BYTES]), Err(Corruption::Foreign));
        assert_eq!(read_lease(&[0xff; FILE_BYTES]), Err(Corruption::Foreign));
    }

    #[test]
    fn swapped_slots_are_corrupt() {
        let before = Record {
            sequence: 40,
            ..record()
        };
        let mut swapped = file(&[&before, &record()]);
        let (first, second) = swapped.split_at_mut(SLOTS[1]);
        first[SLOTS[0]..].swap_with_slice(&mut second[..SLOT_BYTES]);
        assert_eq!(read_lease(&swapped), Err(Corruption::Record));
        let ended = read(Kind::Lease, &name(), &swapped, |_| false);
        assert_eq!(ended, Err(Corruption::Record), "also after a reboot");
    }

    /// A user who can write the file can also write a valid checksum for an impossible number.
    #[test]
    fn numbers_without_successor_are_corrupt() {
        let read_with = |change: fn(&mut Record)| {
            let before = Record {
                sequence: COUNTED - 2,
                fence: 0,
                last_fence: COUNTED - 1,
                ..record()
            };
            let mut record = Record {
                sequence: COUNTED - 1,
                fence: COUNTED - 1,
                ..before.clone()
            };
            change(&mut record);
            read_lease(&file(&[&before, &record]))
        };
        assert!(matches!(read_with(|_| {}), Ok(Some(_))));
        let corruptions: [fn(&mut Record); 4] = [
            |record| record.sequence = COUNTED,
            |record| record.sequence = u64::MAX,
            |record| record.last_fence = COUNTED,
            |record| record.last_fence = record.fence - 1,
        ];
        for change in corruptions {
            assert_eq!(read_with(change), Err(Corruption::Record));
        }
    }

    #[test]
    fn long_text_is_cut_at_character_boundary() {
        let long = Record {
            sequence: 1,
            process: Arc::new(Process::new(1, "ä".repeat(40), "日".repeat(200))),
            ..record()
        };
        let read = read_lease(&file(&[&long])).unwrap().unwrap();
        assert_eq!(read.process.host, "ä".repeat(32));
        assert_eq!(read.process.command, "日".repeat(106));
    }

    proptest! {
        /// A file with one changed byte is rejected, or still contains the same record.
        #[test]
        fn corrupt_byte_never_changes_the_record(at in 0..FILE_BYTES, to: u8) {
            let whole = file(&[&Record { sequence: 40, ..record() }, &record()]);
            let mut corrupt = whole.clone();
            corrupt[at] = to;
            if let Ok(read) = read_lease(&corrupt) {
                prop_assert_eq!(read, Some(record()));
            }
        }

        #[test]
        fn arbitrary_bytes_are_rejected(bytes in prop::collection::vec(any::<u8>(), FILE_BYTES)) {
            prop_assert!(read_lease(&bytes).is_err());
        }

        #[test]
        fn slot_round_trips(
            sequence in 0..COUNTED, held: bool, ephemeral: bool, last_fence in 0..COUNTED,
            before_it in 0..COUNTED, owner: [u8; 16], boot: [u8; 16], time_namespace: u64, ttl in 1u64.., ends: u64,
            id: u32, host in ".{0,16}", command in ".{0,80}",
            served in 0..TICKETS, notifies: bool, file: u64,
        ) {
            let written = Record {
                sequence, held, ephemeral, last_fence, boot, time_namespace,
                fence: last_fence.saturating_sub(before_it),
                owner: Owner::from_bytes(owner),
                ttl: Some(Duration::from_nanos(ttl)),
                ends: Duration::from_nanos(ends),
                process: Arc::new(Process::new(id, host, command)),
                served, notifies, file,
                ..record()
            };
            let slot = encode(&written);
            prop_assert_eq!(checked(&slot).map(|slot| slot.map(decode)), Ok(Some(written)));
        }
    }
}
