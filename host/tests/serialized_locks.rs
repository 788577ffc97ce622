//! Serialized locks that were changed: they release no other lock.
#![cfg(unix)]

use std::cell::Cell;

use proptest::prelude::*;
use proptest::sample::Index;
use verrou::blocking::LockFactory;
use verrou::{Error, SerializedLock};
use verrou_host::{LeaseFileStore, StoreOptions, System};

/// A change of one byte of a text.
#[derive(Clone, Debug)]
enum Edit {
    Remove(Index),
    Insert(Index, u8),
    Replace(Index, u8),
    Truncate(Index),
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
            Self::Insert(at, byte) => bytes.insert(at.index(bytes.len()), *byte),
            Self::Replace(at, byte) => *at.get_mut(bytes) = *byte,
            Self::Truncate(at) => bytes.truncate(at.index(bytes.len())),
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let at = any::<Index>;
    let syntax = proptest::sample::select(b"\"{}[],:\\0-e.u".to_vec());
    let digits = proptest::sample::select(b"0123456789abcdef".to_vec());
    let edit = prop_oneof![
        1 => at().prop_map(Edit::Remove),
        1 => (at(), syntax).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        1 => (at(), 0..0x80_u8).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        // Most of these changes make it a lock of another owner.
        3 => (at(), digits).prop_map(|(at, byte)| Edit::Replace(at, byte)),
        1 => at().prop_map(Edit::Truncate),
    ];
    prop_oneof![
        proptest::collection::vec(edit.clone(), 1),
        proptest::collection::vec(edit, 1..6),
    ]
}

#[test]
fn changed_serialized_lock_releases_no_lock() {
    let directory = tempfile::tempdir().unwrap();
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default()).unwrap();
    let locks = LockFactory::new(&store, System);
    let lock = locks.create_lock("transferred", "1h").unwrap();
    lock.acquire().unwrap();
    let right = lock.serialize().unwrap();
    let of_others = Cell::new(0);
    proptest!(ProptestConfig::with_cases(4096), |(edits in edits())| {
        let mut bytes = right.to_string().into_bytes();
        for edit in &edits {
            edit.apply(&mut bytes);
        }
        let text = String::from_utf8(bytes).expect("ASCII");
        match text.parse::<SerializedLock>() {
            Err(err) => prop_assert!(!err.to_string().is_empty()),
            Ok(read) => {
                prop_assert_eq!(&read.to_string().parse::<SerializedLock>().unwrap(), &read);
                if (read.name(), read.owner()) != (right.name(), right.owner()) {
                    of_others.set(of_others.get() + 1);
                    let other = locks.restore_lock(&read);
                    let not_owner = |done| matches!(done, Err(Error::NotOwner { .. }));
                    prop_assert!(not_owner(other.extend(other.ttl())), "{text}");
                    prop_assert!(not_owner(other.release()), "{text}");
                }
            }
        }
    });
    let of_others = of_others.get();
    assert!(
        of_others > 100,
        "only {of_others} texts were locks of other owners"
    );
    assert!(lock.is_held().unwrap());
    let restored = locks.restore_lock(&right);
    restored.release().unwrap();
}
