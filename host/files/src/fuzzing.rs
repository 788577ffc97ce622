//! The fuzz targets of the stores in files: the contents and the names of their files.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crc32c::{crc32c, crc32c_append};
use tempfile::TempDir;
use verrou::{Acquired, Claim, Clock, Name, Owner, Store, StoreError, Timestamp, Ttl};
use verrou_machine::{StoreOptions, Zombies};

use crate::directory::file_name;
use crate::host_identity::Machine;
use crate::record::{
    self, CHANGING_BYTES, COUNTED, FILE_BYTES, Kind, RECORD_BYTES, Record, TICKETS, TOUCH_AT,
    Version,
};
use crate::{FileLockStore, LeaseFileStore, durable_u64};

const KINDS: [Kind; 2] = [Kind::Lease, Kind::Lock];

/// The time since boot in all of these functions.
const NOW: Duration = Duration::from_secs(100_000);

/// Parses a lock's file, or a file with one number in it: the fence counter, or a gate's file.
///
/// On an accepted file, both stores must support all their operations. The input is also tried with
/// correct checksums, because a process that can write a file can write valid checksums.
pub fn record(bytes: &[u8]) -> bool {
    number(bytes) || file(bytes)
}

/// Compares the files of two names, separated by a line feed: different names must not have the same file. Returns whether
/// both are names.
pub fn names(bytes: &[u8]) -> bool {
    let Ok(text) = str::from_utf8(bytes) else {
        return false;
    };
    let (one, other) = text.split_once('\n').unwrap_or((text, text));
    let (Ok(one), Ok(other)) = (Name::new(one), Name::new(other)) else {
        return false;
    };
    for (file, others) in file_names(&one).iter().zip(&file_names(&other)) {
        assert_eq!(file == others, one == other, "{one:?} and {other:?}");
    }
    true
}

/// Decodes the bytes of a file with one number in it, unchanged and with the correct checksum.
fn number(bytes: &[u8]) -> bool {
    let mut fixed = bytes.to_vec();
    if let Some((head, number)) = fixed.split_at_mut_checked(12) {
        head[8..].copy_from_slice(&crc32c(number).to_le_bytes());
    }
    // Of the fence counter, and of fence gates.
    let magics = [*b"VERROUF\n", *b"VERROUG\n"];
    let read = |bytes| magics.map(|magic| durable_u64::decode(magic, bytes));
    for bytes in [bytes, &fixed] {
        for (magic, number) in magics.into_iter().zip(read(bytes)) {
            if let Some(number) = number {
                assert_eq!(durable_u64::encode(magic, number), bytes);
            }
        }
    }
    read(bytes) != [None; 2]
}

/// Reads the bytes of a lock's file, unchanged and with the correct checksums.
fn file(bytes: &[u8]) -> bool {
    let accepted = KINDS.map(|kind| is_accepted(kind, bytes));
    let fixed = fixed(bytes);
    for kind in KINDS {
        if is_accepted(kind, &fixed) {
            is_usable(kind, &fixed);
        }
    }
    accepted.contains(&true)
}

/// Returns the file names of the lock `name`, one for each kind.
fn file_names(name: &Name) -> [String; 2] {
    KINDS.map(|kind| {
        let file_name = file_name(kind, name);
        assert!(file_name.len() <= 40 + 1 + 26 + 1 + 5, "{file_name}");
        let parts: Vec<_> = file_name.split('.').collect();
        assert!(
            parts.len() == 3 && parts.iter().all(|part| !part.is_empty()),
            "{file_name}"
        );
        let is_plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_.".contains(&byte);
        assert!(file_name.bytes().all(is_plain), "{file_name}");
        let file = record::new_file(kind, name);
        assert_eq!(file.len(), FILE_BYTES);
        assert_eq!(record::name_of(kind, &file).as_ref(), Ok(name));
        assert_eq!(record::read(kind, name, &file, |_| true), Ok(None));
        file_name
    })
}

/// Returns whether these bytes are a file of this kind. If so, checks that its record can be written and read
/// again.
fn is_accepted(kind: Kind, bytes: &[u8]) -> bool {
    if bytes.len() >= CHANGING_BYTES {
        let (version, mark) = (Version::of(bytes), record::mark_of(bytes));
        assert!(version.served() < TICKETS && mark < TICKETS);
    }
    let name = match record::name_of(kind, bytes) {
        Ok(name) => name,
        Err(why) => {
            assert!(!why.to_string().is_empty());
            return false;
        }
    };
    let new = record::new_file(kind, &name);
    assert_eq!(bytes[..24], new[..24]);
    assert_eq!(
        bytes[2048..][..name.as_str().len()],
        *name.as_str().as_bytes()
    );
    let other = match kind {
        Kind::Lease => Kind::Lock,
        Kind::Lock => Kind::Lease,
    };
    assert_eq!(
        record::name_of(other, bytes),
        Err(record::Corruption::Foreign),
        "of both kinds"
    );

    let read = |bytes: &[u8], runs| record::read(kind, &name, bytes, |_| runs);
    let strictly = read(bytes, true);
    // The stricter reading never returns another record.
    match (&strictly, read(bytes, false)) {
        (Ok(strictly), Ok(record)) => assert_eq!(*strictly, record),
        (Ok(strictly), Err(why)) => panic!("{strictly:?} or {why}"),
        (Err(_), _) => {}
    }
    let Ok(Some(record)) = &strictly else {
        return strictly.is_ok();
    };
    let write_and_read = |record: &Record| {
        let mut bytes = bytes.to_vec();
        let (at, slot) = record::write(record);
        bytes[at..at + slot.len()].copy_from_slice(&slot);
        read(&bytes, true)
            .expect("what was written")
            .expect("a record")
    };
    // Texts may be cut by the first write, but not by the second.
    let written = write_and_read(record);
    let expected = Record {
        process: written.process.clone(),
        ..record.clone()
    };
    assert_eq!(written, expected);
    assert_eq!(written.process.id, record.process.id);
    assert_eq!(write_and_read(&written), written);
    if record.sequence == COUNTED - 1 {
        return true;
    }
    for next in [
        record.ended(NOW),
        record.clone().lasting(Ttl::DEFAULT, NOW, NOW),
        record.clone().lasting(Ttl::NEVER, NOW, NOW),
    ] {
        let read = write_and_read(&next);
        let expected = Record {
            process: read.process.clone(),
            ..next
        };
        assert_eq!(read, expected);
        assert!(read.sequence > record.sequence);
    }
    true
}

/// Returns the bytes with the correct checksums. A record of the boot whose ID begins with 7 becomes one of
/// the current boot.
fn fixed(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    if file.len() != FILE_BYTES {
        return file;
    }
    let name_bytes = u32::from_le_bytes([file[16], file[17], file[18], file[19]]);
    let name_bytes = usize::try_from(name_bytes).unwrap_or(usize::MAX);
    if let Some(name) = file[2048..].get(..name_bytes) {
        let checksum = crc32c_append(crc32c(name), &file[..20]);
        file[20..24].copy_from_slice(&checksum.to_le_bytes());
    }
    let machine = Machine::detect().expect("the identity of the host");
    for slot in [512..1024, 1024..RECORD_BYTES] {
        let slot = &mut file[slot];
        if slot.iter().any(|&byte| byte != 0) {
            if slot[48] == 7 {
                slot[48..64].copy_from_slice(&machine.boot());
                slot[64..72].copy_from_slice(&machine.time_namespace.to_le_bytes());
            }
            let checksum = crc32c(&slot[4..]);
            slot[..4].copy_from_slice(&checksum.to_le_bytes());
        }
    }
    file
}

/// One directory of each kind, each with the stores of three processes.
struct World {
    temp_dir: TempDir,
    leases: [LeaseFileStore; 3],
    locks: [FileLockStore; 3],
}

struct Standstill;

impl Clock for Standstill {
    fn now(&self) -> Timestamp {
        Timestamp::new(NOW)
    }
}

impl World {
    fn new() -> Self {
        let temp_dir = TempDir::new().expect("a directory");
        let mut options = StoreOptions::default();
        options.any_file_system = true;
        options.zombies = Zombies::Take;
        let at = |kind| temp_dir.path().join(format!("{kind:?}"));
        let (leases, locks) = (at(Kind::Lease), at(Kind::Lock));
        let lease = |_| LeaseFileStore::open(&leases, &options).expect("a store");
        let lock = |_| FileLockStore::open(&locks, &options).expect("a store");
        Self {
            leases: [0, 1, 2].map(lease).map(|it| it.with_clock(Standstill)),
            locks: [0, 1, 2].map(lock).map(|it| it.with_clock(Standstill)),
            temp_dir,
        }
    }
}

/// Checks that a file with any contents is usable: acquire requests for its lock are granted, or fail with an
/// error, and so are those of waiters.
fn is_usable(kind: Kind, bytes: &[u8]) {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();

    let world = WORLD.get_or_init(|| Mutex::new(World::new()));
    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let name = record::name_of(kind, bytes).expect("a file");
    let directory = world.temp_dir.path().join(format!("{kind:?}"));
    let path = directory.join(file_name(kind, &name));
    fs::write(&path, bytes).expect("to write the file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("to set the permissions");
    let claims = [0xa1, 0xa2, 0xa3].map(|number| {
        Claim::new(name.clone(), Owner::from_bytes([number; 16]), Ttl::DEFAULT)
            // Chosen by a byte that has no effect on a new grant.
            .ephemeral(bytes[TOUCH_AT].is_multiple_of(2))
    });
    let stores: [&dyn Store; 3] = match kind {
        Kind::Lease => world.leases.each_ref().map(|store| store as _),
        Kind::Lock => world.locks.each_ref().map(|store| store as _),
    };
    let runs_since = |boot| Machine::this().runs_since(boot);
    if let Err(why) = are_granted(&claims, &stores) {
        let before = record::read(kind, &name, bytes, runs_since).expect("a file");
        let greatest = before
            .as_ref()
            .map_or(0, |record| record.last_fence.max(record.sequence));
        let why = why.to_string();
        let is_known = why.contains("another clock") || greatest > 1 << 61;
        assert!(is_known, "{why}: {before:?}");
    }
    for (store, claim) in stores.into_iter().zip(&claims) {
        let _ = store.release(claim);
    }
    let after = fs::read(&path).expect("to read the file");
    let after = record::read(kind, &name, &after, runs_since);
    assert!(after.is_ok(), "{after:?}");
    // Leave nothing for the next file.
    fs::remove_file(&path).expect("to remove the file");
    let _ = fs::remove_file(directory.join("fences"));
}

/// Acquires the lock for the owners of `claims` one after the other; the second and the third wait for it.
fn are_granted(claims: &[Claim; 3], stores: &[&dyn Store; 3]) -> Result<(), StoreError> {
    let ([first, second, third], name) = (claims, &claims[0].name);
    let mut fences = BTreeSet::new();
    let found = stores[0].holders(name)?.pop();
    let mut reply = stores[0].acquire(first)?;
    assert_eq!(reply.is_granted(), found.is_none(), "{found:?}, {reply:?}");
    if !reply.is_granted() {
        assert!(stores[0].force_release(name, None)?);
        assert_eq!(stores[0].holders(name)?.pop(), None);
        reply = stores[0].acquire(first)?;
    }
    let Acquired::Granted { fence } = reply else {
        panic!("{reply:?}, although the lock is free");
    };
    fences.insert(fence);
    let holder = stores[1].holders(name)?.pop().expect("a holder");
    assert_eq!(holder.fence, fence);
    assert!(stores[1].holds(first, fence)?);
    let mut waiting = Vec::new();
    for (store, claim) in [(stores[1], second), (stores[2], third)] {
        assert!(!store.acquire(claim)?.is_granted());
        let mut waiter = store.waiter(claim).expect("a store that can wait");
        waiter.wait(Duration::ZERO);
        waiting.push((store, claim, waiter));
    }
    assert!(stores[0].extend(first)?);
    assert!(stores[0].release(first)?);
    // The waiters are granted the lock in their order, unless the file hides that order.
    for _ in 0..3 {
        let mut left = Vec::new();
        for (store, claim, waiter) in waiting {
            if let Acquired::Granted { fence } = store.acquire(claim)? {
                assert!(fences.last() < Some(&fence), "{fence:?} after {fences:?}");
                fences.insert(fence);
                assert!(store.release(claim)?);
            } else {
                left.push((store, claim, waiter));
            }
        }
        waiting = left;
    }
    assert!(
        waiting.is_empty(),
        "{} were not granted the lock",
        waiting.len()
    );
    Ok(())
}

#[cfg(test)]
#[path = "../../tests/common/seeds.rs"]
mod seeds;

#[cfg(test)]
mod tests {
    use super::seeds::{assert_seeds, files};

    #[test]
    fn seeds_of_records() {
        assert_seeds("record", &["good"], super::record);
        for golden in files("host/tests/golden") {
            let bytes = std::fs::read(&golden).expect("a file");
            assert!(super::record(&bytes), "{}", golden.display());
        }
    }

    #[test]
    fn seeds_of_names() {
        for seed in files("host/fuzz/seeds/name") {
            super::names(&std::fs::read(&seed).expect("a seed"));
        }
    }
}
