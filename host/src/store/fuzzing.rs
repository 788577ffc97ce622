//! What of stores a fuzzer reaches: the bytes of their files, and what the files are called.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crc32c::{crc32c, crc32c_append};
use tempfile::TempDir;
use verrou::{Claim, Clock, Name, Owner, Reply, Store, StoreError, Timestamp, Ttl};

use super::directory::file_name;
use super::machine::Machine;
use super::number;
use super::record::{
    self, CHANGING_BYTES, COUNTED, FILE_BYTES, Kind, RECORD_BYTES, Record, TICKETS, TOUCH_AT,
    Version,
};
use super::{FileLockStore, LeaseFileStore, StoreOptions, Zombies};
use crate::fuzzing::NOW;

const KINDS: [Kind; 2] = [Kind::Lease, Kind::Lock];

/// The bytes of a file with one number in it, as they are and with the right checksum.
pub(crate) fn number(bytes: &[u8]) -> bool {
    let mut fixed = bytes.to_vec();
    if let Some((head, number)) = fixed.split_at_mut_checked(12) {
        head[8..].copy_from_slice(&crc32c(number).to_le_bytes());
    }
    // Those of the counter of fences, and of those that check them.
    let magics = [*b"VERROUF\n", *b"VERROUG\n"];
    let read = |bytes| magics.map(|magic| number::decode(magic, bytes));
    for bytes in [bytes, &fixed] {
        for (magic, number) in magics.into_iter().zip(read(bytes)) {
            if let Some(number) = number {
                assert_eq!(number::encode(magic, number), bytes);
            }
        }
    }
    read(bytes) != [None; 2]
}

/// The bytes of a lock's file, as they are and with the right checksums.
pub(crate) fn file(bytes: &[u8]) -> bool {
    let accepted = KINDS.map(|kind| is_accepted(kind, bytes));
    let fixed = fixed(bytes);
    for kind in KINDS {
        if is_accepted(kind, &fixed) {
            is_usable(kind, &fixed);
        }
    }
    accepted.contains(&true)
}

/// The files of the lock `name`: of each kind, what it is called.
pub(crate) fn file_names(name: &Name) -> [String; 2] {
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

/// Whether these bytes are a file of this kind. If so, what it says can be written, and is read again.
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
        Err(record::Damage::Foreign),
        "of both kinds"
    );

    let read = |bytes: &[u8], runs| record::read(kind, &name, bytes, |_| runs);
    let strictly = read(bytes, true);
    // Who trusts less reads nothing else.
    match (&strictly, read(bytes, false)) {
        (Ok(strictly), Ok(record)) => assert_eq!(*strictly, record),
        (Ok(strictly), Err(why)) => panic!("{strictly:?} or {why}"),
        (Err(_), _) => {}
    }
    let Ok(Some(record)) = &strictly else {
        return strictly.is_ok();
    };
    let says = |record: &Record| {
        let mut bytes = bytes.to_vec();
        let (at, slot) = record::write(record);
        bytes[at..at + slot.len()].copy_from_slice(&slot);
        read(&bytes, true)
            .expect("what was written")
            .expect("a record")
    };
    // Texts may be cut, once.
    let written = says(record);
    let expected = Record {
        process: written.process.clone(),
        ..record.clone()
    };
    assert_eq!(written, expected);
    assert_eq!(written.process.id, record.process.id);
    assert_eq!(says(&written), written);
    if record.sequence == COUNTED - 1 {
        return true;
    }
    for next in [
        record.ended(NOW),
        record.clone().lasting(Ttl::DEFAULT, NOW, NOW),
        record.clone().lasting(Ttl::NEVER, NOW, NOW),
    ] {
        let read = says(&next);
        let expected = Record {
            process: read.process.clone(),
            ..next
        };
        assert_eq!(read, expected);
        assert!(read.sequence > record.sequence);
    }
    true
}

/// With the checksums that these bytes should have, and as if written since this machine was started
/// if they say that of the machine with the number 7.
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
    let machine = Machine::detect().expect("to know the machine");
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

/// One folder of each kind, and in it what three processes would have of it.
struct World {
    folder: TempDir,
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
        let folder = TempDir::new().expect("a folder");
        let options = StoreOptions {
            any_file_system: true,
            zombies: Zombies::Take,
            ..StoreOptions::default()
        };
        let at = |kind| folder.path().join(format!("{kind:?}"));
        let (leases, locks) = (at(Kind::Lease), at(Kind::Lock));
        let lease = |_| LeaseFileStore::open(&leases, &options).expect("a store");
        let lock = |_| FileLockStore::open(&locks, &options).expect("a store");
        Self {
            leases: [0, 1, 2].map(lease).map(|it| it.with_clock(Standstill)),
            locks: [0, 1, 2].map(lock).map(|it| it.with_clock(Standstill)),
            folder,
        }
    }
}

/// Whatever the file says: who asks for its lock gets it, or is told why not, and so do those who wait
/// for it meanwhile.
fn is_usable(kind: Kind, bytes: &[u8]) {
    static WORLD: OnceLock<Mutex<World>> = OnceLock::new();

    let world = WORLD.get_or_init(|| Mutex::new(World::new()));
    let world = world.lock().unwrap_or_else(PoisonError::into_inner);
    let name = record::name_of(kind, bytes).expect("a file");
    let folder = world.folder.path().join(format!("{kind:?}"));
    let path = folder.join(file_name(kind, &name));
    fs::write(&path, bytes).expect("to write the file");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("to make it one's own");
    let claims = [0xa1, 0xa2, 0xa3].map(|number| Claim {
        name: name.clone(),
        owner: Owner::from_bytes([number; 16]),
        ttl: Ttl::DEFAULT,
        // Any bit that has no meaning.
        ephemeral: bytes[TOUCH_AT].is_multiple_of(2),
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
        store.give_up(claim);
        let _ = store.release(claim);
    }
    let after = fs::read(&path).expect("to read the file");
    let after = record::read(kind, &name, &after, runs_since);
    assert!(after.is_ok(), "{after:?}");
    // The next file finds nothing of this one.
    fs::remove_file(&path).expect("to remove the file");
    let _ = fs::remove_file(folder.join("fences"));
}

/// Lets the owners of `claims` take the lock one after the other, two of them after having waited.
fn are_granted(claims: &[Claim; 3], stores: &[&dyn Store; 3]) -> Result<(), StoreError> {
    let ([first, second, third], name) = (claims, &claims[0].name);
    let mut fences = BTreeSet::new();
    let found = stores[0].inspect(name)?;
    let mut reply = stores[0].acquire(first)?;
    assert_eq!(reply.is_granted(), found.is_none(), "{found:?}, {reply:?}");
    if !reply.is_granted() {
        assert!(stores[0].evict(name, None)?.is_granted());
        assert_eq!(stores[0].inspect(name)?, None);
        reply = stores[0].acquire(first)?;
    }
    let Reply::Granted { fence } = reply else {
        panic!("{reply:?}, and nobody has it");
    };
    fences.insert(fence);
    let holder = stores[1].inspect(name)?.expect("a holder");
    assert_eq!(holder.fence, fence);
    assert!(stores[1].holds(first, fence)?);
    let mut waiting = vec![(stores[1], second), (stores[2], third)];
    for (store, claim) in &waiting {
        assert!(!store.acquire(claim)?.is_granted());
        store.wait(claim, Duration::ZERO);
    }
    assert!(stores[0].extend(first)?.is_granted());
    assert!(stores[0].release(first)?.is_granted());
    // Who came first gets it first, unless the file keeps that from being told.
    for _ in 0..3 {
        let mut left = Vec::new();
        for (store, claim) in waiting {
            if let Reply::Granted { fence } = store.acquire(claim)? {
                assert!(fences.last() < Some(&fence), "{fence:?} after {fences:?}");
                fences.insert(fence);
                assert!(store.release(claim)?.is_granted());
            } else {
                left.push((store, claim));
            }
        }
        waiting = left;
    }
    assert!(waiting.is_empty(), "{} wait in vain", waiting.len());
    Ok(())
}
