//! The files of locks with hostile names.
#![cfg(unix)]

#[path = "common/hostile_names.rs"]
mod hostile_names;
#[path = "common/store_calls.rs"]
mod store_calls;

use std::collections::BTreeSet;
use std::path::Path;

use hostile_names::{assert_plain_files, hostile_names};
use proptest::prelude::*;
use store_calls::{claim, done, granted, refused};
use verrou::{Name, Store};
use verrou_host::{AnyStore, StoreOptions};

/// The kinds of store, and the extensions of their files.
const KINDS: [(&str, &str); 2] = [("lease", "lease"), ("file", "lock")];

/// Acquires the lock of each name, all at the same time: each must be a lock of its own, with a file of its own in the
/// directory of the store.
fn assert_separate(kind: &str, extension: &str, names: &BTreeSet<Name>) {
    let outer = tempfile::tempdir().unwrap();
    let directory = outer.path().join("a/b/c/locks");
    let [store, other] = [(); 2].map(|()| open(kind, &directory));
    let of = |name: &Name, owner| claim("any name", owner).with_name(name.clone());
    for name in names {
        granted(store.acquire(&of(name, 1)));
    }
    for name in names {
        refused(&other.acquire(&of(name, 2)));
    }
    let files = assert_plain_files(outer.path(), &directory, extension);
    assert_eq!(files, names.len());
    for name in names {
        done(store.release(&of(name, 1)));
    }
}

fn open(kind: &str, directory: &Path) -> AnyStore {
    let url = format!("{kind}:{}", directory.display()).parse().unwrap();
    AnyStore::open(&url, &StoreOptions::default()).unwrap()
}

#[test]
fn each_hostile_name_is_a_lock_with_a_file_of_its_own() {
    let names = hostile_names().into_iter().filter_map(|text| {
        let name = Name::new(&text);
        let is_right = !text.is_empty() && text.len() <= Name::MAX_BYTES;
        assert_eq!(name.is_ok(), is_right, "{text:?}");
        name.ok()
    });
    let names: BTreeSet<_> = names.collect();
    assert!(names.len() > 80);
    for (kind, extension) in KINDS {
        assert_separate(kind, extension, &names);
    }
}

/// Generates names that resemble each other.
fn similar_names() -> impl Strategy<Value = BTreeSet<Name>> {
    let characters = prop_oneof![
        any::<char>(),
        (0_u8..0x30).prop_map(char::from),
        proptest::sample::select("aAbB._/éÉ".chars().collect::<Vec<_>>()),
    ];
    let ends = proptest::collection::vec(characters, 0..4).prop_map(String::from_iter);
    let starts = proptest::sample::select(vec![0, 1, 40, 60, 1000]);
    (starts, proptest::collection::vec(ends, 1..8)).prop_map(|(start, ends)| {
        let names = ends
            .iter()
            .map(|end| Name::new(&format!("{}{end}", "n".repeat(start))));
        names.filter_map(Result::ok).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_of_several_similar_names_is_a_lock_with_a_file_of_its_own(
        names in similar_names(),
        (kind, extension) in proptest::sample::select(&KINDS),
    ) {
        if !names.is_empty() {
            assert_separate(kind, extension, &names);
        }
    }
}
