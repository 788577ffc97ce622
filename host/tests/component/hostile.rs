//! Invalid input and faulty stores: each causes an error, and the instance stays usable.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use verrou::{
    Acquired, Claim, Fence, Holder, MemoryStore, Name, Renewed, Retry, Store, StoreError,
    StoreWrapper, Waiter,
};
use verrou_host::System;
use verrou_host::component::bindings::blocking::LockManager;
use verrou_host::component::bindings::blocking::exports::verrou::lock::locks::{
    ErrorCode, LockError,
};
use verrou_host::component::bindings::blocking::verrou::lock::{store as wit, types};
use verrou_host::component::bindings::blocking::wasi::{clocks, io, random};
use verrou_host::component::wasmtime::component::{
    Component, HasSelf, Linker, Resource, ResourceAny,
};
use verrou_host::component::wasmtime::{self, Engine};
use verrou_host::component::{ComponentError, Instance, Limits, QueuePlace, Runner, Wait};

use crate::places::SharedStore;
use crate::through::{component, instance};

#[track_caller]
fn code<T: Debug>(end: Result<T, ComponentError>) -> &'static str {
    end.expect_err("an error").code()
}

/// Asserts that the instance still acquires and releases locks.
#[track_caller]
fn assert_usable(instance: &mut Instance<SharedStore, System>) {
    let lock = instance.create_lock("still here", None).expect("a lock");
    assert!(instance.try_acquire(lock).expect("an answer"));
    instance.release(lock).expect("this lock's grant");
    instance.forget(lock).expect("a handle");
}

#[test]
fn invalid_input_is_an_error() {
    let mut instance = instance(Arc::new(MemoryStore::new(System)));
    let long = "x".repeat(1 << 20);
    for name in ["", &long, &"é".repeat(513)] {
        assert_eq!(code(instance.create_lock(name, None)), "E_INVALID_NAME");
    }
    for ttl in [
        Duration::ZERO,
        Duration::from_nanos(u64::MAX),
        Duration::MAX,
    ] {
        assert_eq!(
            code(instance.create_lock("lock", Some(ttl))),
            "E_INVALID_TTL"
        );
    }
    let deep = "[".repeat(1 << 20);
    let later = r#"{"version":2,"name":"n"}"#;
    let no_fence = r#"{"version":1,"name":"n","owner":"000102030405060708090a0b0c0d0e0f","ttl":2000,"expires":1763892000000,"fence":0}"#;
    for text in [
        "",
        "{}",
        "null",
        "\u{0}",
        &long,
        &deep,
        later,
        no_fence,
        &no_fence[..90],
    ] {
        let err = instance.restore_lock(text).expect_err("no serialized lock");
        assert_eq!(err.code(), "E_INVALID_SERIALIZED_LOCK", "{err}");
        assert!(!err.to_string().is_empty());
    }
    let later = instance.restore_lock(later).expect_err("a later version");
    assert!(later.to_string().contains("version 2"), "{later}");
    assert_usable(&mut instance);
}

#[test]
fn invalid_calls_are_errors() {
    let mut instance = instance(Arc::new(MemoryStore::new(System)));
    let lock = instance.create_lock("lock", None).expect("a lock");
    assert_eq!(code(instance.release(lock)), "E_LOCK_NOT_OWNER");
    assert_eq!(code(instance.extend(lock, None)), "E_LOCK_NOT_OWNER");
    assert_eq!(code(instance.serialize(lock)), "E_LOCK_NOT_OWNER");
    assert!(!instance.force_release(lock, None).expect("an answer"));
    assert!(
        !instance
            .force_release(lock, Fence::new(u64::MAX))
            .expect("an answer")
    );
    instance.forget(lock).expect("a handle");
    // A dropped lock can be neither used nor dropped again; the error is that of the caller alone.
    assert_eq!(code(instance.try_acquire(lock)), "E_INVALID_HANDLE");
    assert_eq!(code(instance.forget(lock)), "E_INVALID_HANDLE");
    assert_usable(&mut instance);
}

/// Invalid retry policies, which the types of this program exclude, and a fencing token that no grant
/// has.
#[test]
fn invalid_numbers_are_errors() {
    use verrou_host::component::bindings::blocking::exports::verrou::lock::locks::{
        Acquiring, Retry,
    };

    let mut instance = instance(Arc::new(MemoryStore::new(System)));
    let lock = instance.call(|locks, wasm| locks.lock().call_create(wasm, "lock", None));
    let lock = lock.expect("an instance").expect("a lock");
    let sane = Retry {
        attempts: None,
        delay: None,
        max_delay: None,
        timeout: None,
    };
    let insane = [
        Retry {
            attempts: Some(0),
            ..sane
        },
        Retry {
            delay: Some(0),
            ..sane
        },
        Retry {
            max_delay: Some(1),
            ..sane
        },
        Retry {
            delay: Some(0),
            max_delay: Some(0),
            ..sane
        },
    ];
    for retry in insane {
        let attempt = instance.call(|locks, wasm| locks.lock().call_acquire(wasm, lock, retry));
        let err = attempt.expect("an instance").expect_err("an error");
        assert!(matches!(err.code, ErrorCode::InvalidRetry), "{err:?}");
    }
    let endless = Retry {
        attempts: Some(u32::MAX),
        delay: Some(u64::MAX),
        max_delay: Some(u64::MAX),
        timeout: Some(u64::MAX),
    };
    let attempt = instance.call(|locks, wasm| locks.lock().call_acquire(wasm, lock, endless));
    let acquiring = attempt.expect("an instance").expect("an answer");
    assert!(matches!(acquiring, Acquiring::Acquired(_)), "{acquiring:?}");
    let extended =
        instance.call(|locks, wasm| locks.lock().call_extend_for(wasm, lock, Some(u64::MAX)));
    let err = extended.expect("an instance").expect_err("an error");
    assert!(matches!(err.code, ErrorCode::InvalidTtl), "{err:?}");
    let freed = instance.call(|locks, wasm| locks.lock().call_force_release(wasm, lock, Some(0)));
    assert!(!freed.expect("an instance").expect("an answer"));
}

#[test]
fn a_million_handles_are_refused_one_by_one() {
    let mut instance = instance(Arc::new(MemoryStore::new(System)));
    let mut kept = Vec::new();
    let mut refused = 0;
    for _ in 0..1_000_000 {
        match instance.create_lock("lock", None) {
            Ok(lock) => kept.push(lock),
            Err(err) => {
                assert_eq!(err.code(), "E_TOO_MANY_HANDLES");
                refused += 1;
            }
        }
    }
    assert_eq!((kept.len(), refused), (1 << 15, 1_000_000 - (1 << 15)));
    for lock in kept.drain(..) {
        instance.forget(lock).expect("a handle");
    }
    assert_usable(&mut instance);
}

/// The greatest number of locks, each with the longest name, fits in the memory.
#[test]
fn all_handles_fit_in_the_memory_that_an_instance_may_take() {
    let mut instance = instance(Arc::new(MemoryStore::new(System)));
    let name = "x".repeat(Name::MAX_BYTES);
    for _ in 0..1 << 15 {
        instance.create_lock(&name, None).expect("a lock");
    }
    assert_eq!(
        code(instance.create_lock(&name, None)),
        "E_TOO_MANY_HANDLES"
    );
}

/// With a lower limit, the instance stops with an error, and other instances stay usable.
#[test]
fn an_instance_without_memory_stops_alone() {
    let limits = Limits::default().memory(1 << 20);
    let runner = Runner::new(&component(), &limits).expect("the component");
    let store: SharedStore = Arc::new(MemoryStore::new(System));
    let instance = || runner.instance(Arc::clone(&store), System);
    let (mut greedy, mut other) = (instance().expect("one"), instance().expect("another"));
    let name = "x".repeat(Name::MAX_BYTES);
    let stopped = (0..1 << 16).find_map(|_| greedy.create_lock(&name, None).err());
    let stopped = stopped.expect("an end of the memory");
    assert_eq!(stopped.code(), "E_COMPONENT_STOPPED", "{stopped:?}");
    assert_eq!(
        code(greedy.create_lock("lock", None)),
        "E_COMPONENT_STOPPED"
    );
    assert_usable(&mut other);
}

/// A call that takes longer than the limit is stopped.
#[test]
fn an_instance_that_runs_for_too_long_is_stopped() {
    let limits = Limits::default()
        .time(Duration::from_millis(1))
        .memory(512 << 20);
    let runner = Runner::new(&component(), &limits).expect("the component");
    let mut instance = runner
        .instance(Arc::new(MemoryStore::new(System)), System)
        .expect("an instance");
    // A text that takes the instance a second to parse. This host's own method would refuse it for its length.
    let text = format!("{{\"unknown\":[{}1]", "1,".repeat(64 << 20));
    let end = instance.call(|locks, wasm| locks.lock().call_restore(wasm, &text, 0));
    let end = end.map_err(ComponentError::from);
    assert_eq!(code(end), "E_COMPONENT_STOPPED");
}

/// Texts of any length are errors, and fill no memory of the component.
#[test]
fn long_texts_do_not_reach_the_component() {
    let limits = Limits::default().memory(2 << 20);
    let runner = Runner::new(&component(), &limits).expect("the component");
    let store: SharedStore = Arc::new(MemoryStore::new(System));
    let mut instance = runner.instance(store, System).expect("an instance");
    let long = "x".repeat(126 << 20);
    assert_eq!(code(instance.create_lock(&long, None)), "E_INVALID_NAME");
    assert_eq!(
        code(instance.restore_lock(&long)),
        "E_INVALID_SERIALIZED_LOCK"
    );
    assert_usable(&mut instance);
}

/// The time of the store does not count as the component's.
#[test]
fn a_store_may_take_longer_than_its_component() {
    let limits = Limits::default().time(STALL / 2);
    let runner = Runner::new(&component(), &limits).expect("the component");
    let slow: SharedStore = Arc::new(Faulty::new(Fault::Stalls));
    let mut instance = runner.instance(slow, System).expect("an instance");
    let lock = instance.create_lock("lock", None).expect("a lock");
    assert!(instance.try_acquire(lock).expect("a slow answer"));
}

/// The time that a stalling store takes for an operation.
const STALL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    CountsDown,
    FailsPermanently,
    FailsTemporarily,
    GrantsTwice,
    Stalls,
    RefusesAll,
}

/// A memory store with a fault.
#[derive(Debug)]
struct Faulty {
    store: MemoryStore<System>,
    fault: Fault,
    grants: Mutex<u64>,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self {
            store: MemoryStore::new(System),
            fault,
            grants: Mutex::new(1_000),
        }
    }

    fn fail(&self) -> Result<(), StoreError> {
        match self.fault {
            Fault::FailsPermanently => Err(StoreError::permanent("the disk is gone")),
            Fault::FailsTemporarily => Err(StoreError::temporary("the network is down")),
            Fault::Stalls => {
                thread::sleep(STALL);
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl StoreWrapper for Faulty {
    type Inner = MemoryStore<System>;
    fn inner(&self) -> &Self::Inner {
        &self.store
    }
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.fail()?;
        let reply = Store::acquire(&self.store, claim)?;
        let mut grants = self.grants.lock().expect("a number");
        Ok(match self.fault {
            Fault::CountsDown if reply.is_granted() => {
                *grants -= 1;
                Acquired::Granted {
                    fence: Fence::new(*grants),
                }
            }
            Fault::GrantsTwice => Acquired::Granted { fence: None },
            Fault::RefusesAll => Acquired::BUSY,
            _ => reply,
        })
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.fail()?;
        Store::extend(&self.store, claim)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.fail()?;
        Store::renew(&self.store, claim, fence)
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.fail()?;
        Store::release(&self.store, claim)
    }
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.fail()?;
        Store::force_release(&self.store, name, only)
    }
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.fail()?;
        Store::holders(&self.store, name)
    }
    fn waiter<'s>(&'s self, _: &Claim) -> Option<Box<dyn Waiter + 's>> {
        None
    }
}

fn faulty(fault: Fault) -> Instance<SharedStore, System> {
    instance(Arc::new(Faulty::new(fault)))
}

#[test]
fn error_of_a_store_keeps_its_message() {
    let texts = [
        (Fault::FailsPermanently, "the disk is gone", false),
        (Fault::FailsTemporarily, "the network is down", true),
    ];
    for (fault, text, temporary) in texts {
        let mut instance = faulty(fault);
        let lock = instance.create_lock("lock", None).expect("a lock");
        let ends = [
            instance.try_acquire(lock).map(drop),
            instance.acquire(lock, &Retry::NEVER).map(drop),
            instance.is_locked(lock).map(drop),
            instance.holders(lock).map(drop),
            instance.force_release(lock, None).map(drop),
        ];
        for end in ends {
            match end {
                Err(ComponentError::Lock(err)) => {
                    assert_eq!(err.code, "E_LOCK_STORAGE_ERROR");
                    assert_eq!((err.message.as_str(), err.temporary), (text, temporary));
                }
                other => panic!("{other:?}"),
            }
        }
    }
}

/// The grant of a store that counts down would protect nothing, so it is released.
#[test]
fn grant_with_a_smaller_fencing_token_is_an_error_and_released() {
    let mut instance = faulty(Fault::CountsDown);
    let lock = instance.create_lock("lock", None).expect("a lock");
    instance.acquire(lock, &Retry::NEVER).expect("the first");
    instance.release(lock).expect("this lock's grant");
    let err = instance
        .acquire(lock, &Retry::NEVER)
        .expect_err("a smaller token");
    assert_eq!(err.code(), "E_LOCK_STORAGE_ERROR");
    assert!(
        err.to_string()
            .contains("fencing token 998 after token 999"),
        "{err}"
    );
    assert!(!instance.is_locked(lock).expect("an answer"));
}

/// A store that grants every request cannot be detected; the release by another owner is an error.
#[test]
fn double_grant_is_noticed_at_the_release() {
    let mut instance = faulty(Fault::GrantsTwice);
    let [one, two] = [(); 2].map(|()| instance.create_lock("lock", None).expect("a lock"));
    assert!(instance.try_acquire(one).expect("an answer"));
    assert!(instance.try_acquire(two).expect("an answer"));
    assert_eq!(code(instance.is_held(two)), "E_LOCK_STORAGE_ERROR");
    assert_eq!(code(instance.release(two)), "E_LOCK_NOT_OWNER");
    instance.release(one).expect("this lock's grant");
}

#[test]
fn store_that_never_grants_is_waited_for_until_the_timeout() {
    let mut instance = faulty(Fault::RefusesAll);
    let lock = instance.create_lock("lock", None).expect("a lock");
    let soon = Retry::default().timeout(Duration::from_millis(5));
    assert_eq!(code(instance.acquire(lock, &soon)), "E_LOCK_TIMEOUT");
}

/// Imports with invalid values, which the host of this program cannot return.
struct Garbage {
    holder: types::Holder,
    token: Option<u64>,
    random: u64,
    /// The times that the clock shows, the last one from then on.
    times: Vec<u64>,
    acquires: u32,
}

impl Garbage {
    fn new(fencing_token: Option<u64>, remaining: Option<u64>) -> Self {
        let holder = types::Holder {
            fencing_token,
            mode: types::Mode::Permit(0),
            remaining,
            since: Some(u64::MAX),
            process: Some(types::Process {
                id: u32::MAX,
                host: "\u{1b}[31m".repeat(1 << 16),
                command: String::new(),
            }),
            detached: true,
        };
        Self {
            holder,
            token: fencing_token,
            random: 1,
            times: vec![u64::MAX],
            acquires: 0,
        }
    }
}

type Replied<T> = wasmtime::Result<Result<T, wit::StoreError>>;
type Answer<T> = wasmtime::Result<T>;

impl wit::Host for Garbage {
    fn acquire(&mut self, _: wit::Claim) -> Replied<wit::Acquired> {
        self.acquires += 1;
        Ok(Ok(wit::Acquired::Granted(self.token)))
    }
    fn extend(&mut self, _: wit::Claim) -> Replied<bool> {
        Ok(Ok(false))
    }
    fn renew(&mut self, _: wit::Claim, _: Option<u64>) -> Replied<wit::Renewed> {
        Ok(Ok(wit::Renewed::Released))
    }
    fn release(&mut self, _: wit::Claim) -> Replied<bool> {
        Ok(Ok(false))
    }
    fn force_release(&mut self, _: String, _: Option<u64>) -> Replied<bool> {
        Ok(Err(wit::StoreError {
            code: wit::StoreErrorCode::Other("\u{1b}[31m".to_owned()),
            message: "\u{1b}[31m".repeat(1 << 16),
            temporary: false,
        }))
    }
    fn holders(&mut self, _: String) -> Replied<Vec<types::Holder>> {
        Ok(Ok(vec![self.holder.clone()]))
    }
    fn detach(&mut self, _: wit::Claim) -> Replied<bool> {
        Ok(Ok(true))
    }
    fn get_capabilities(&mut self) -> Answer<types::Capabilities> {
        Ok(types::Capabilities::all())
    }
    fn join(&mut self, _: wit::Claim) -> Answer<Option<Resource<QueuePlace>>> {
        Ok(None)
    }
}

impl wit::HostWaiter for Garbage {
    fn subscribe(&mut self, _: Resource<QueuePlace>) -> Answer<Resource<Wait>> {
        unreachable!("there is no queue")
    }
    fn drop(&mut self, _: Resource<QueuePlace>) -> Answer<()> {
        unreachable!("there is no queue")
    }
}

impl types::Host for Garbage {}

impl io::poll::Host for Garbage {
    fn poll(&mut self, _: Vec<Resource<Wait>>) -> Answer<Vec<u32>> {
        unreachable!("there is no wait")
    }
}

impl io::poll::HostPollable for Garbage {
    fn ready(&mut self, _: Resource<Wait>) -> Answer<bool> {
        unreachable!("there is no wait")
    }
    fn block(&mut self, _: Resource<Wait>) -> Answer<()> {
        unreachable!("there is no wait")
    }
    fn drop(&mut self, _: Resource<Wait>) -> Answer<()> {
        unreachable!("there is no wait")
    }
}

impl clocks::monotonic_clock::Host for Garbage {
    fn now(&mut self) -> Answer<u64> {
        Ok(match &self.times[..] {
            [only] => *only,
            _ => self.times.remove(0),
        })
    }
    fn resolution(&mut self) -> Answer<u64> {
        unreachable!("not called")
    }
    fn subscribe_instant(&mut self, _: u64) -> Answer<Resource<Wait>> {
        unreachable!("not called")
    }
    fn subscribe_duration(&mut self, _: u64) -> Answer<Resource<Wait>> {
        unreachable!("not called")
    }
}

impl random::random::Host for Garbage {
    fn get_random_bytes(&mut self, _: u64) -> Answer<Vec<u8>> {
        unreachable!("not called")
    }
    fn get_random_u64(&mut self) -> Answer<u64> {
        Ok(self.random)
    }
}

/// An instance of the component with these imports, and a lock in it.
struct Fed {
    wasm: wasmtime::Store<Garbage>,
    manager: LockManager,
    lock: ResourceAny,
}

fn fed(garbage: Garbage, ttl: Option<u64>) -> Fed {
    let engine = Engine::default();
    let component = Component::new(&engine, component()).expect("the component");
    let mut linker = Linker::new(&engine);
    LockManager::add_to_linker::<_, HasSelf<Garbage>>(&mut linker, |state| state).expect("imports");
    let mut wasm = wasmtime::Store::new(&engine, garbage);
    let manager = LockManager::instantiate(&mut wasm, &component, &linker).expect("an instance");
    let locks = manager.verrou_lock_locks().lock();
    let lock = locks.call_create(&mut wasm, "lock", ttl);
    let lock = lock.expect("an instance").expect("a lock");
    Fed {
        wasm,
        manager,
        lock,
    }
}

#[test]
fn invalid_reply_of_a_store_is_an_error() {
    fn said<T: Debug>(end: Answer<Result<T, LockError>>, what: &str) {
        let err = end.expect("an instance").expect_err("garbage");
        assert!(matches!(err.code, ErrorCode::Storage), "{err:?}");
        assert!(err.message.contains(what), "{}", err.message);
    }

    let garbage = Garbage::new(Some(0), Some(u64::MAX));
    let Fed {
        mut wasm,
        manager,
        lock,
    } = fed(garbage, Some(u64::MAX / 2));
    let locks = manager.verrou_lock_locks().lock();
    said(locks.call_try_acquire(&mut wasm, lock), "fencing token 0");
    said(locks.call_is_locked(&mut wasm, lock), "fencing token 0");
    said(locks.call_force_release(&mut wasm, lock, None), "[31m");

    // At the end of the clock's range, a lease has no time left.
    wasm.data_mut().token = Some(u64::MAX);
    let acquired = locks.call_try_acquire(&mut wasm, lock);
    acquired.expect("an instance").expect("an answer");
    assert!(
        locks
            .call_remaining(&mut wasm, lock)
            .expect("an instance")
            .is_some()
    );
    let released = locks.call_release(&mut wasm, lock).expect("an instance");
    let err = released.expect_err("refused");
    assert!(matches!(err.code, ErrorCode::NotOwner), "{err:?}");
}

/// With zeros as owners, every lock would be the same owner's.
#[test]
fn random_numbers_of_zeros_acquire_no_lock() {
    let mut garbage = Garbage::new(Some(1), None);
    garbage.random = 0;
    let Fed {
        mut wasm,
        manager,
        lock,
    } = fed(garbage, None);
    let acquired = manager.verrou_lock_locks().lock();
    let acquired = acquired.call_try_acquire(&mut wasm, lock);
    let err = acquired.expect("an instance").expect_err("no owner");
    assert!(err.message.contains("zeros"), "{}", err.message);
    assert_eq!(wasm.data().acquires, 0);
}

/// A clock that goes back: the component's own never does, so no call waits for the clock to come back.
#[test]
fn clock_that_goes_back_delays_no_call() {
    const SECOND: u64 = 1_000_000_000;

    let mut garbage = Garbage::new(Some(7), None);
    garbage.times = vec![1_000 * SECOND, SECOND, 900 * SECOND, SECOND];
    let Fed {
        mut wasm,
        manager,
        lock,
    } = fed(garbage, Some(30 * SECOND));
    let locks = manager.verrou_lock_locks().lock();
    let acquired = locks.call_try_acquire(&mut wasm, lock);
    assert!(acquired.expect("an instance").expect("an answer").is_some());
    assert_eq!(wasm.data().acquires, 1);
    let remaining = locks.call_remaining(&mut wasm, lock).expect("an instance");
    assert_eq!(remaining, Some(30 * SECOND));
}

#[test]
fn is_held_is_unknown_in_a_store_without_fencing_tokens() {
    let Fed {
        mut wasm,
        manager,
        lock,
    } = fed(Garbage::new(None, None), None);
    let locks = manager.verrou_lock_locks().lock();
    assert_eq!(
        locks
            .call_is_held(&mut wasm, lock)
            .expect("an instance")
            .ok(),
        Some(false)
    );
    let acquired = locks.call_try_acquire(&mut wasm, lock);
    assert!(acquired.expect("an instance").expect("an answer").is_some());
    let answer = locks.call_is_held(&mut wasm, lock).expect("an instance");
    let err = answer.expect_err("another grant looks the same");
    assert!(matches!(err.code, ErrorCode::Storage), "{err:?}");
    assert!(!err.temporary);
    assert!(err.message.contains("no fencing token"), "{}", err.message);
}

/// A lock that is dropped is released, also if the component has stopped, and if another owner waits for it.
#[test]
fn dropped_locks_are_released() {
    let store = Arc::new(MemoryStore::new(System));
    let shared = || Arc::clone(&store) as SharedStore;
    let name: Name = "lock".parse().expect("a name");
    let is_free = || Store::holders(&store, &name).expect("an answer").is_empty();
    let acquired = |instance: &mut Instance<SharedStore, System>| {
        let lock = instance.create_lock("lock", None).expect("a lock");
        assert!(instance.try_acquire(lock).expect("an answer"));
        lock
    };

    let mut one = instance(shared());
    let lock = acquired(&mut one);
    one.forget(lock).expect("a handle");
    assert!(is_free(), "a dropped lock");

    acquired(&mut one);
    drop(one);
    assert!(is_free(), "the lock of a dropped instance");

    // A handle that is serialized or detached outlives its lock and its instance.
    let mut two = instance(shared());
    let lock = acquired(&mut two);
    two.detach(lock).expect("a held lock");
    two.forget(lock).expect("a handle");
    assert!(!is_free(), "a detached lock");
    drop(two);
    assert!(!is_free(), "the detached lock of a dropped instance");
    Store::force_release(&store, &name, None).expect("an answer");
    let mut three = instance(shared());
    let lock = acquired(&mut three);
    three.serialize(lock).expect("a held lock");
    drop(three);
    assert!(!is_free(), "a serialized lock");
}

/// Handles belong to their instance: that of another one is refused, and changes nothing.
#[test]
fn handle_of_another_instance_is_refused() {
    let store = Arc::new(MemoryStore::new(System));
    let mut instances = [(); 2].map(|()| instance(Arc::clone(&store) as SharedStore));
    let own = instances.each_mut().map(|instance| {
        let lock = instance.create_lock("lock", None);
        lock.expect("a lock")
    });
    let [one, two] = &mut instances;
    assert!(one.try_acquire(own[0]).expect("an answer"));
    assert_eq!(code(two.forget(own[0])), "E_INVALID_HANDLE");
    assert_eq!(code(two.release(own[0])), "E_INVALID_HANDLE");
    assert_eq!(code(two.try_acquire(own[0])), "E_INVALID_HANDLE");
    assert!(one.is_held(own[0]).expect("an answer"));
    two.forget(own[1]).expect("its own");
    one.release(own[0]).expect("its own");
}
