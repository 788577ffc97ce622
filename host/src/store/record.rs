//! The format of a lock's file, which records the holder and the latest grant. See `FORMAT.md`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crc32c::crc32c;
use verrou::{Name, Owner, Process, Ttl};

use super::host_identity::Machine;

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

const MAGIC: [u8; 8] = *b"VERROU\r\n";
const VERSION: u32 = 1;
const NAME_AT: usize = 2048;
const SLOT_BYTES: usize = 512;
const SLOTS: [Range<usize>; 2] = [512..1024, 1024..1536];
const FLAGS_AT: usize = 4;
const SEQUENCE_AT: usize = 8;
const FENCE_AT: usize = 16;
const LAST_FENCE_AT: usize = 24;
const TEXT_AT: usize = 112;
const HOST_BYTES: usize = 64;
const COMMAND_BYTES: usize = 320;
const SERVED_AT: usize = 496;
const FILE_AT: usize = 504;

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
pub(super) const COUNTED: u64 = 1 << 62;

/// Every ticket that is read from a file is less than this, half of the greatest ticket, so that its
/// successors are tickets, too.
pub(crate) const TICKETS: u64 = 1 << 59;

const HELD: u32 = 1;
const EPHEMERAL: u32 = 1 << 1;
/// The bytes from [`SERVED_AT`] on are not text.
const EXTENDED: u32 = 1 << 2;
const NOTIFIES: u32 = 1 << 3;
/// The bytes from [`FILE_AT`] on have a meaning.
const NUMBERED: u32 = 1 << 4;

/// The contents of one slot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Record {
    /// The sequence number, which grows by one with each write. The valid slot with the greater sequence
    /// number is the record.
    pub(crate) sequence: u64,
    /// Whether the latest grant has not been released.
    pub(crate) held: bool,
    /// Whether the lease ends with the processes that keep its byte locked.
    pub(crate) ephemeral: bool,
    /// The fence of the latest grant.
    pub(crate) fence: u64,
    /// The last fence that this file may grant before the counter allots more.
    pub(crate) last_fence: u64,
    /// The owner of the latest grant.
    pub(crate) owner: Owner,
    /// The boot ID of the machine that wrote the record: `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot: [u8; 16],
    /// The `CLOCK_BOOTTIME` of `ends`: see [`Machine::time_namespace`].
    pub(crate) time_namespace: u64,
    /// The ttl that was last requested; `None` for a lease that never expires.
    pub(crate) ttl: Option<Duration>,
    /// When the lease expires by `CLOCK_BOOTTIME`, if it has a ttl; when it ended, if it is not held.
    pub(crate) ends: Duration,
    /// When the lease expires by the wall clock, since the start of 1970, for people.
    pub(crate) ends_wall: Duration,
    /// When the lease was granted by the wall clock, since the start of 1970, for people.
    pub(crate) since_wall: Duration,
    /// The process that acquired the lock, for people.
    pub(crate) process: Arc<Process>,
    /// The greatest ticket that does not wait any more.
    pub(crate) served: u64,
    /// Whether the releasing process notifies the waiters other than the head waiter.
    pub(crate) notifies: bool,
    /// The number of the file to which the fences up to the last one were allotted; zero on systems
    /// without such numbers.
    pub(crate) file: u64,
}

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
    /// Returns the version of a file that begins with `bytes`, at least [`CHANGING_BYTES`] of them.
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

/// Returns the queue's mark in a file that begins with `bytes`, at least [`CHANGING_BYTES`] of them.
pub(crate) fn mark_of(bytes: &[u8]) -> u64 {
    // The mark has no checksum: a corrupt mark must not use up the tickets.
    Some(get_u64(bytes, MARK_AT))
        .filter(|&mark| mark < TICKETS)
        .unwrap_or_default()
}

impl Record {
    /// Returns the next record: the same grant, released or force-released at `now`.
    pub(crate) fn ended(&self, now: Duration) -> Self {
        Self {
            sequence: self.sequence + 1,
            held: false,
            fence: mutant!(FenceResetByRelease, 0, self.fence),
            ends: now,
            time_namespace: Machine::this().time_namespace,
            ..self.clone()
        }
    }

    /// Returns the next record: the same grant, which lasts `ttl` from `now`, the time `wall` of the
    /// wall clock.
    pub(crate) fn lasting(self, ttl: Ttl, now: Duration, wall: Duration) -> Self {
        let ttl = ttl.duration();
        Self {
            sequence: self.sequence + 1,
            fence: self.fence + u64::from(mutant!(FenceGrowsWithExtension)),
            ttl,
            ends: ttl.map_or(Duration::ZERO, |ttl| now.saturating_add(ttl)),
            time_namespace: Machine::this().time_namespace,
            ends_wall: ttl.map_or(Duration::ZERO, |ttl| wall.saturating_add(ttl)),
            ..self
        }
    }

    /// Returns the next record if the grant must last at least `ttl` from `now`; `None` if it already
    /// does.
    pub(crate) fn renewed(&self, ttl: Ttl, now: Duration, wall: Duration) -> Option<Self> {
        let is_comparable = self.time_namespace == Machine::this().time_namespace;
        let lasts = match (self.ttl, ttl.duration()) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(_), Some(ttl)) => is_comparable && now.saturating_add(ttl) <= self.ends,
        };
        (!lasts).then(|| self.clone().lasting(ttl, now, wall))
    }

    /// Returns whether the lease was released or expired less than `length` before `now`, in the
    /// current boot.
    pub(crate) fn ended_within(&self, length: Duration, now: Duration) -> bool {
        let machine = Machine::this();
        machine.runs_since(self.boot)
            && machine.time_namespace == self.time_namespace
            && (self.ttl.is_some() || !self.held)
            && now
                .checked_sub(self.ends)
                .is_some_and(|since| since < length)
    }
}

/// The kind of corruption of a lock's file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
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
    let mut file = vec![0; FILE_BYTES];
    file[..8].copy_from_slice(&MAGIC);
    put_u32(&mut file, 8, VERSION);
    put_u32(&mut file, 12, kind as u32);
    put_u32(&mut file, 16, u32::try_from(name.len()).unwrap_or(u32::MAX));
    file[NAME_AT..NAME_AT + name.len()].copy_from_slice(name);
    let checksum = header_checksum(&file, name.len());
    put_u32(&mut file, 20, checksum);
    file
}

/// Returns the name in the header of a complete file of this kind.
pub(crate) fn name_of(kind: Kind, file: &[u8]) -> Result<Name, Damage> {
    if file.len() != FILE_BYTES {
        return Err(Damage::Size { bytes: file.len() });
    }
    if file[..8] != MAGIC {
        return Err(Damage::Foreign);
    }
    let version = get_u32(file, 8);
    if version != VERSION {
        return Err(if version > VERSION {
            Damage::Newer { version }
        } else {
            Damage::Header
        });
    }
    let name_bytes = get_u32(file, 16) as usize;
    if name_bytes > Name::MAX_BYTES || get_u32(file, 20) != header_checksum(file, name_bytes) {
        return Err(Damage::Header);
    }
    if get_u32(file, 12) != kind as u32 {
        return Err(Damage::Foreign);
    }
    let name = std::str::from_utf8(&file[NAME_AT..NAME_AT + name_bytes]);
    name.ok()
        .and_then(|name| Name::new(name).ok())
        .ok_or(Damage::Header)
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
) -> Result<Option<Record>, Damage> {
    let found = name_of(kind, file)?;
    if found != *name && !mutant!(NameNotCompared) {
        return Err(Damage::OtherName {
            name: found.to_string(),
        });
    }
    let slots = [0, 1].map(|at| match checked(&file[SLOTS[at].clone()]) {
        // The next write would overwrite the newer record.
        Ok(Some(slot)) if slot_of(sequence_of(slot)) != at => Err(Damage::Record),
        slot => slot,
    });
    let in_step = match slots {
        [Ok(None), Ok(None)] => true,
        // The first record goes to slot 1.
        [Ok(None), Ok(Some(first))] => sequence_of(first) == 1,
        [Ok(Some(even)), Ok(Some(odd))] => sequence_of(even).abs_diff(sequence_of(odd)) == 1,
        _ => false,
    };
    let whole = slots.into_iter().filter_map(Result::ok).flatten();
    match whole.max_by_key(|slot| sequence_of(slot)).map(decode) {
        Some(record) if in_step || !runs_since(record.boot) => Ok(Some(record)),
        None if in_step => Ok(None),
        _ if mutant!(DamageTakenForFree) => Ok(None),
        _ => Err(Damage::Record),
    }
}

/// Returns the offset and the bytes to write for `record`: they overwrite the older slot.
pub(crate) fn write(record: &Record) -> (usize, [u8; SLOT_BYTES]) {
    let slot = mutant!(OneSlotOverwritten, 1, slot_of(record.sequence));
    (SLOTS[slot].start, encode(record))
}

/// Returns the slot of the record with this sequence number.
fn slot_of(sequence: u64) -> usize {
    usize::from(sequence % 2 == 1)
}

fn encode(record: &Record) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    let flags = [
        (HELD, record.held),
        (EPHEMERAL, record.ephemeral),
        (EXTENDED, record.served != 0),
        (NOTIFIES, record.notifies),
        (NUMBERED, record.file != 0),
    ];
    let flags = flags.into_iter().filter(|(_, is_set)| *is_set);
    put_u32(&mut slot, FLAGS_AT, flags.map(|(flag, _)| flag).sum());
    put_u64(&mut slot, SEQUENCE_AT, record.sequence);
    put_u64(&mut slot, FENCE_AT, record.fence);
    put_u64(&mut slot, LAST_FENCE_AT, record.last_fence);
    slot[32..48].copy_from_slice(record.owner.as_bytes());
    slot[48..64].copy_from_slice(&record.boot);
    put_u64(&mut slot, 64, record.time_namespace);
    put_u64(&mut slot, 72, record.ttl.map_or(0, nanos));
    put_u64(&mut slot, 80, nanos(record.ends));
    put_u64(&mut slot, 88, millis(record.ends_wall));
    put_u64(&mut slot, 96, millis(record.since_wall));
    put_u32(&mut slot, 104, record.process.id);
    let host = shortened(&record.process.host, HOST_BYTES);
    let command = shortened(&record.process.command, COMMAND_BYTES);
    put_u16(&mut slot, 108, host.len());
    put_u16(&mut slot, 110, command.len());
    slot[TEXT_AT..][..host.len()].copy_from_slice(host.as_bytes());
    slot[TEXT_AT + host.len()..][..command.len()].copy_from_slice(command.as_bytes());
    put_u64(&mut slot, SERVED_AT, record.served);
    put_u64(&mut slot, FILE_AT, record.file);
    let checksum = crc32c(&slot[4..]);
    put_u32(&mut slot, 0, checksum);
    slot
}

/// Returns a slot that matches its checksum and has possible values; `None` if it was never written.
fn checked(slot: &[u8]) -> Result<Option<&[u8]>, Damage> {
    let is_possible = |slot| {
        let (fence, last_fence) = (get_u64(slot, FENCE_AT), get_u64(slot, LAST_FENCE_AT));
        sequence_of(slot) < COUNTED
            && fence <= last_fence
            && last_fence < COUNTED
            && text_of(slot).is_some()
    };
    if get_u32(slot, 0) == crc32c(&slot[4..]) && is_possible(slot) {
        return Ok(Some(slot));
    }
    if slot.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if mutant!(ChecksumNotChecked) {
        return Ok(Some(slot));
    }
    Err(Damage::Record)
}

fn sequence_of(slot: &[u8]) -> u64 {
    get_u64(slot, SEQUENCE_AT)
}

fn served_of(slot: &[u8]) -> u64 {
    match get_u32(slot, FLAGS_AT) & EXTENDED {
        0 => 0,
        // A forged number must not use up the tickets.
        _ => get_u64(slot, SERVED_AT) % TICKETS,
    }
}

/// Returns the host and the command.
fn text_of(slot: &[u8]) -> Option<(&[u8], &[u8])> {
    let (host_bytes, command_bytes) = (get_u16(slot, 108), get_u16(slot, 110));
    let text = slot.get(TEXT_AT..TEXT_AT + host_bytes + command_bytes)?;
    (host_bytes <= HOST_BYTES).then(|| text.split_at(host_bytes))
}

/// Decodes a slot that matches its checksum.
fn decode(slot: &[u8]) -> Record {
    let flags = get_u32(slot, FLAGS_AT);
    let (host, command) = text_of(slot).unwrap_or_default();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Record {
        sequence: sequence_of(slot),
        held: flags & HELD != 0,
        ephemeral: flags & EPHEMERAL != 0,
        fence: get_u64(slot, FENCE_AT),
        last_fence: get_u64(slot, LAST_FENCE_AT),
        owner: Owner::from_bytes(get_16(slot, 32)),
        boot: get_16(slot, 48),
        time_namespace: get_u64(slot, 64),
        ttl: Some(get_u64(slot, 72))
            .filter(|&ttl| ttl != 0)
            .map(Duration::from_nanos),
        ends: Duration::from_nanos(get_u64(slot, 80)),
        ends_wall: Duration::from_millis(get_u64(slot, 88)),
        since_wall: Duration::from_millis(get_u64(slot, 96)),
        process: Arc::new(Process {
            id: get_u32(slot, 104),
            host: text(host),
            command: text(command),
        }),
        served: served_of(slot),
        notifies: flags & NOTIFIES != 0,
        file: match flags & NUMBERED {
            0 => 0,
            _ => get_u64(slot, FILE_AT),
        },
    }
}

fn header_checksum(file: &[u8], name_bytes: usize) -> u32 {
    let name_checksum = crc32c(&file[NAME_AT..NAME_AT + name_bytes]);
    crc32c::crc32c_append(name_checksum, &file[..20])
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

fn put_u16(bytes: &mut [u8], at: usize, value: usize) {
    // Every length stored is below 512.
    bytes[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes());
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_u64(bytes: &mut [u8], at: usize, value: u64) {
    bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

fn get_u16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(value)
}

fn get_u64(bytes: &[u8], at: usize) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(value)
}

fn get_16(bytes: &[u8], at: usize) -> [u8; 16] {
    let mut value = [0; 16];
    value.copy_from_slice(&bytes[at..at + 16]);
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOOT: [u8; 16] = [7; 16];

    fn name() -> Name {
        Name::new("nightly backup").unwrap()
    }

    fn record() -> Record {
        Record {
            sequence: 41,
            held: true,
            ephemeral: true,
            fence: 1042,
            last_fence: 2048,
            owner: Owner::from_bytes(*b"0123456789abcdef"),
            boot: BOOT,
            time_namespace: 4_026_531_834,
            ttl: Some(Duration::from_secs(30)),
            ends: Duration::from_nanos(123_456_789_012_345),
            ends_wall: Duration::from_secs(1_763_892_030),
            since_wall: Duration::from_hours(489_970),
            process: Arc::new(Process {
                id: 4711,
                host: "web1".to_owned(),
                command: "rsync -a /srv /backup".to_owned(),
            }),
            served: 0,
            notifies: false,
            file: 0,
        }
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

    fn read_lease(file: &[u8]) -> Result<Option<Record>, Damage> {
        read(Kind::Lease, &name(), file, |boot| boot == BOOT)
    }

    #[test]
    fn files_of_version_1_stay_readable() {
        let never = include_bytes!("../../tests/golden/lease-v1-never.lease");
        assert_eq!(never[..], new_file(Kind::Lease, &name()));
        assert_eq!(read_lease(never), Ok(None));

        let held = include_bytes!("../../tests/golden/lease-v1-held.lease");
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
        let golden = include_bytes!("../../tests/golden/lease-v1-waited-for.lease");
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
        let golden = include_bytes!("../../tests/golden/lease-v1-numbered.lease");
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

    /// The holder may have been in another time namespace.
    #[test]
    fn end_is_recorded_with_its_time_namespace() {
        let now = Duration::from_hours(1);
        let elsewhere = Record {
            time_namespace: 1,
            ..record()
        };
        for next in [
            elsewhere.ended(now),
            elsewhere.renewed(Ttl::DEFAULT, now, now).unwrap(),
            elsewhere.clone().lasting(Ttl::DEFAULT, now, now),
        ] {
            assert_eq!(next.time_namespace, Machine::this().time_namespace);
        }
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
        file[SLOTS[1].start + 200] ^= 1;
        assert_eq!(
            read_lease(&file),
            Err(Damage::Record),
            "not taken for a free lock"
        );
        let rebooted = [8; 16];
        assert_eq!(
            read(Kind::Lease, &name(), &file, |boot| boot == rebooted),
            Ok(Some(free))
        );
        file[SLOTS[0].start + 200] ^= 1;
        assert_eq!(
            read(Kind::Lease, &name(), &file, |boot| boot == rebooted),
            Err(Damage::Record)
        );
    }

    #[test]
    fn foreign_files_are_rejected() {
        let whole = file(&[&record()]);
        let other = Name::new("other").unwrap();
        let other_name = Damage::OtherName {
            name: "nightly backup".to_owned(),
        };
        assert_eq!(
            read(Kind::Lease, &other, &whole, |boot| boot == BOOT),
            Err(other_name)
        );
        assert_eq!(
            read(Kind::Lock, &name(), &whole, |boot| boot == BOOT),
            Err(Damage::Foreign)
        );
        let mut newer = whole.clone();
        newer[8] = 2;
        assert_eq!(read_lease(&newer), Err(Damage::Newer { version: 2 }));
        for bytes in 0..FILE_BYTES {
            assert_eq!(read_lease(&whole[..bytes]), Err(Damage::Size { bytes }));
        }
        assert_eq!(read_lease(&[0; FILE_BYTES]), Err(Damage::Foreign));
        assert_eq!(read_lease(&[0xff; FILE_BYTES]), Err(Damage::Foreign));
    }

    #[test]
    fn swapped_slots_are_corrupt() {
        let before = Record {
            sequence: 40,
            ..record()
        };
        let mut swapped = file(&[&before, &record()]);
        let (first, second) = swapped.split_at_mut(SLOTS[1].start);
        first[SLOTS[0].clone()].swap_with_slice(&mut second[..SLOT_BYTES]);
        assert_eq!(read_lease(&swapped), Err(Damage::Record));
        let ended = read(Kind::Lease, &name(), &swapped, |_| false);
        assert_eq!(ended, Err(Damage::Record), "also after a reboot");
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
            assert_eq!(read_with(change), Err(Damage::Record));
        }
    }

    #[test]
    fn long_text_is_cut_at_character_boundary() {
        let long = Record {
            sequence: 1,
            process: Arc::new(Process {
                id: 1,
                host: "ä".repeat(40),
                command: "日".repeat(200),
            }),
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
                process: Arc::new(Process { id, host, command }),
                served, notifies, file,
                ..record()
            };
            let slot = encode(&written);
            prop_assert_eq!(checked(&slot).map(|slot| slot.map(decode)), Ok(Some(written)));
        }
    }
}
