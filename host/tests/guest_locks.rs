//! A guest cannot release or extend locks of other guests by the host's answers.
#![cfg(feature = "wasmtime")]

use std::sync::Arc;

use verrou::{MemoryStore, Store};
use verrou_host::component::bindings::guest::verrou::lock::locks::{ErrorCode, HostLock};
use verrou_host::component::locks::Locks;
use verrou_host::{LeaseFileStore, StoreOptions, System};

/// Another guest reads all answers about a lock, makes a serialized lock of each word in them that
/// could be an owner token, and tries to extend and to release the lock.
#[test]
fn guest_cannot_release_or_extend_what_another_guest_holds() {
    let directory = tempfile::tempdir().expect("a directory");
    let files = LeaseFileStore::open(directory.path(), &StoreOptions::default());
    let stores: [Arc<dyn Store>; 2] = [
        Arc::new(MemoryStore::new(System)),
        Arc::new(files.expect("a store")),
    ];
    for store in stores {
        let mut owner = Locks::new(Arc::clone(&store), System);
        let mut other = Locks::new(store, System);
        let own = |locks: &mut Locks| {
            let lock = HostLock::new(locks, "lock".to_owned(), None);
            lock.expect("no trap").expect("a lock")
        };
        let held = own(&mut owner);
        let handle = || verrou_host::component::wasmtime::component::Resource::new_own(held.rep());
        assert!(owner.try_acquire(handle()).unwrap().unwrap());
        let serialized = owner.serialize(handle(), 0).unwrap().unwrap();
        let token = token_in(&serialized);

        let seen = own(&mut other);
        let handle_of_other =
            || verrou_host::component::wasmtime::component::Resource::new_own(seen.rep());
        assert!(!other.try_acquire(handle_of_other()).unwrap().unwrap());
        let holder = other
            .holder(handle_of_other())
            .unwrap()
            .unwrap()
            .expect("a holder");
        let answers = [
            format!("{holder:?}"),
            format!("{:?}", other.release(handle_of_other()).unwrap()),
            format!("{:?}", other.extend(handle_of_other()).unwrap()),
        ];
        let words = answers
            .iter()
            .flat_map(|text| text.split(|char: char| !char.is_ascii_hexdigit()));
        for word in words.filter(|word| word.len() == 32) {
            let forged = serialized.replace(&token, word);
            let forged = other.restore(forged, 0).unwrap().expect("a lock");
            let rep = forged.rep();
            let handle = || verrou_host::component::wasmtime::component::Resource::new_own(rep);
            let _ = other.extend(handle()).unwrap();
            let _ = other.release(handle()).unwrap();
        }
        assert!(
            answers.iter().all(|text| !text.contains(&token)),
            "{answers:?}"
        );
        let not_owner = other
            .release(handle_of_other())
            .unwrap()
            .expect_err("not its own");
        assert!(matches!(not_owner.code, ErrorCode::NotOwner));
        assert!(owner.is_held(handle()).unwrap().unwrap());
        owner.release(handle()).unwrap().expect("its own");
    }
}

/// Returns the owner token in a serialized lock.
fn token_in(serialized: &str) -> String {
    let words = serialized.split(|char: char| !char.is_ascii_hexdigit());
    let mut tokens = words.filter(|word| word.len() == 32);
    tokens.next().expect("an owner token").to_owned()
}
