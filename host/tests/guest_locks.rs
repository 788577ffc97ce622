//! A guest can do to the locks of its host, and of other guests, only what it is permitted.
#![cfg(feature = "wasmtime")]

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use verrou::{Acquired, Claim, MemoryStore, Store, StoreError, StoreWrapper};
use verrou_host::component::bindings::guest::verrou::lock::locks::{
    Acquiring, ErrorCode, HostAttempt, HostLock, LockError, Progress, Retry,
};
use verrou_host::component::locks::{Attempt, GuestPolicy, Lock, Locks, LocksView};
use verrou_host::component::wasmtime::component::{Resource, ResourceTable};
use verrou_host::{LeaseFileStore, StoreOptions, System};

/// The state of a guest.
struct Guest {
    locks: Locks,
    table: ResourceTable,
}

impl Guest {
    fn new(store: Arc<dyn Store>) -> Self {
        Self::with_policy(store, GuestPolicy::default())
    }

    fn with_policy(store: Arc<dyn Store>, policy: GuestPolicy) -> Self {
        Self {
            locks: Locks::polling(store, System).with_policy(policy),
            table: ResourceTable::new(),
        }
    }

    fn lock(&mut self, name: &str) -> u32 {
        let lock = self.view().create(name.to_owned(), Some(SECOND));
        lock.expect("no trap").expect("a lock").rep()
    }

    fn acquires(&mut self, lock: u32) -> Result<bool, LockError> {
        let acquired = self.view().try_acquire(Resource::new_own(lock));
        acquired.expect("no trap").map(|grant| grant.is_some())
    }

    fn view(&mut self) -> LocksView<'_> {
        LocksView {
            locks: &mut self.locks,
            table: &mut self.table,
        }
    }
}

const SECOND: u64 = 1_000_000_000;

fn assert_denied<T: Debug>(end: verrou_host::component::wasmtime::Result<Result<T, LockError>>) {
    let err = end.expect("no trap").expect_err("it is denied");
    assert!(matches!(err.code, ErrorCode::Denied), "{err:?}");
}

/// Each tenant has its own names, and can do nothing to those of the other.
#[test]
fn tenants_with_prefixes_do_not_meet() {
    let store = Arc::new(MemoryStore::new(System));
    let [mut one, mut two] = ["one/", "two/"].map(|prefix| {
        let mut policy = GuestPolicy::default();
        policy.prefix = prefix.to_owned();
        Guest::with_policy(Arc::clone(&store) as Arc<dyn Store>, policy)
    });
    let (first, second) = (one.lock("lock"), two.lock("lock"));
    assert!(one.acquires(first).expect("an answer"));
    assert!(two.acquires(second).expect("an answer"));
    for name in ["one/lock", "two/lock"] {
        let name = name.parse().expect("a name");
        assert_eq!(Store::holders(&store, &name).expect("an answer").len(), 1);
    }
    let name = one.view().name(Resource::new_own(first));
    assert_eq!(name.expect("no trap"), "lock");
    let text = one.view().serialize(Resource::new_own(first), 0);
    let text = text.expect("no trap").expect("a held lock");
    assert_denied(two.view().restore(text.clone(), 0));
    let restored = one.view().restore(text, 0);
    restored.expect("no trap").expect("its own");
}

#[test]
fn guest_is_denied_what_its_policy_forbids() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(System));
    let mut policy = GuestPolicy::default();
    policy.force_release = false;
    policy.inspect = false;
    policy.transfer = false;
    policy.longest_ttl = Some(Duration::from_secs(10));
    let mut guest = Guest::with_policy(store, policy);
    let lock = guest.lock("lock");
    let handle = || Resource::new_own(lock);
    assert!(guest.acquires(lock).expect("an answer"));
    assert_denied(guest.view().force_release(handle(), None));
    assert_denied(guest.view().holders(handle()));
    assert_denied(guest.view().is_locked(handle()));
    assert_denied(guest.view().is_held(handle()));
    assert_denied(guest.view().detach(handle()));
    assert_denied(guest.view().serialize(handle(), 0));
    for ttl in [None, Some(11 * SECOND)] {
        assert_denied(guest.view().create("lock".to_owned(), ttl));
        assert_denied(guest.view().extend_for(handle(), ttl));
    }
    let extended = guest.view().extend_for(handle(), Some(10 * SECOND));
    extended.expect("no trap").expect("its own");
}

#[test]
fn guest_has_at_most_the_grants_of_its_policy() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new(System));
    let mut policy = GuestPolicy::default();
    policy.grants = 2;
    policy.handles = 4;
    let mut guest = Guest::with_policy(store, policy);
    let [one, two, three] = ["one", "two", "three"].map(|name| guest.lock(name));
    assert!(guest.acquires(one).expect("an answer"));
    assert!(guest.acquires(two).expect("an answer"));
    let err = guest.acquires(three).expect_err("a third grant");
    assert!(matches!(err.code, ErrorCode::Denied), "{err:?}");
    let released = guest.view().release(Resource::<Lock>::new_own(one));
    released.expect("no trap").expect("its own");
    assert!(guest.acquires(three).expect("an answer"));
    // An attempt that has ended does not count, although the guest keeps its handle.
    let single = Retry {
        attempts: Some(1),
        delay: None,
        max_delay: None,
        timeout: None,
    };
    let released = guest.view().release(Resource::<Lock>::new_own(three));
    released.expect("no trap").expect("its own");
    let attempt = guest.view().acquire(Resource::new_own(two), single);
    let Ok(Ok(Acquiring::Pending(attempt))) = attempt else {
        panic!("{attempt:?}");
    };
    let attempt = attempt.rep();
    let end = guest.view().poll(Resource::<Attempt>::new_own(attempt));
    let end = end.expect("no trap");
    assert!(matches!(end, Ok(Progress::GaveUp(1))), "{end:?}");
    assert!(guest.acquires(three).expect("an answer"));
    HostAttempt::drop(&mut guest.view(), Resource::new_own(attempt)).expect("its own");
    // A dropped lock is released, and counts no more.
    HostLock::drop(&mut guest.view(), Resource::new_own(two)).expect("its own");
    assert!(guest.acquires(one).expect("an answer"));
    guest.lock("four");
    guest.lock("five");
    let err = guest.view().create("six".to_owned(), None);
    let err = err.expect("no trap").expect_err("a fifth handle");
    assert!(matches!(err.code, ErrorCode::TooManyHandles), "{err:?}");
}

/// Errors of the store name paths, addresses and other guests' locks.
#[test]
fn guest_sees_no_message_of_the_store_unless_permitted() {
    #[derive(Debug)]
    struct Failing(MemoryStore<System>);

    impl StoreWrapper for Failing {
        type Inner = MemoryStore<System>;
        fn inner(&self) -> &Self::Inner {
            &self.0
        }
        fn acquire(&self, _: &Claim) -> Result<Acquired, StoreError> {
            Err(StoreError::permanent("/srv/tenants/two is full"))
        }
    }

    for (permitted, said) in [
        (false, "the store has failed"),
        (true, "/srv/tenants/two is full"),
    ] {
        let mut policy = GuestPolicy::default();
        policy.store_errors = permitted;
        let store: Arc<dyn Store> = Arc::new(Failing(MemoryStore::new(System)));
        let mut guest = Guest::with_policy(store, policy);
        let lock = guest.lock("lock");
        let err = guest.acquires(lock).expect_err("a failure");
        assert!(matches!(err.code, ErrorCode::Storage), "{err:?}");
        assert_eq!(err.message, said);
    }
}

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
        let mut owner = Guest::new(Arc::clone(&store));
        let mut other = Guest::new(store);
        let own = |guest: &mut Guest| {
            let lock = guest.view().create("lock".to_owned(), None);
            lock.expect("no trap").expect("a lock")
        };
        let held = own(&mut owner);
        let handle = || Resource::new_own(held.rep());
        let acquired = owner.view().try_acquire(handle()).unwrap().unwrap();
        assert!(acquired.is_some());
        let serialized = owner.view().serialize(handle(), 0).unwrap().unwrap();
        let token = token_in(&serialized);

        let seen = own(&mut other);
        let handle_of_other = || Resource::new_own(seen.rep());
        let acquired = other.view().try_acquire(handle_of_other());
        assert!(acquired.unwrap().unwrap().is_none());
        let holders = other.view().holders(handle_of_other());
        let holder = holders.unwrap().unwrap().pop().expect("a holder");
        let answers = [
            format!("{holder:?}"),
            format!("{:?}", other.view().release(handle_of_other()).unwrap()),
            format!("{:?}", other.view().extend(handle_of_other()).unwrap()),
        ];
        let words = answers
            .iter()
            .flat_map(|text| text.split(|char: char| !char.is_ascii_hexdigit()));
        for word in words.filter(|word| word.len() == 32) {
            let forged = serialized.replace(&token, word);
            let forged = other.view().restore(forged, 0).unwrap().expect("a lock");
            let rep = forged.rep();
            let handle = || Resource::new_own(rep);
            let _ = other.view().extend(handle()).unwrap();
            let _ = other.view().release(handle()).unwrap();
        }
        assert!(
            answers.iter().all(|text| !text.contains(&token)),
            "{answers:?}"
        );
        let not_owner = other
            .view()
            .release(handle_of_other())
            .unwrap()
            .expect_err("not its own");
        assert!(matches!(not_owner.code, ErrorCode::NotOwner));
        assert!(owner.view().is_held(handle()).unwrap().unwrap());
        owner.view().release(handle()).unwrap().expect("its own");
    }
}

/// Returns the owner token in a serialized lock.
fn token_in(serialized: &str) -> String {
    let words = serialized.split(|char: char| !char.is_ascii_hexdigit());
    let mut tokens = words.filter(|word| word.len() == 32);
    tokens.next().expect("an owner token").to_owned()
}
