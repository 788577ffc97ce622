//! Stores that are components: each passes the suite for stores, and composed with the lock
//! component it works as the store of its locks.
//!
//! `cargo xtask component DIRECTORY` builds the component in a directory, which these tests need.
#![cfg(feature = "wasmtime")]

#[cfg(unix)]
#[path = "../common/mod.rs"]
mod common;
mod instances;
#[cfg(unix)]
mod job;
mod keyvalue;
#[cfg(target_os = "linux")]
#[path = "../common/namespaces.rs"]
mod namespaces;
#[cfg(unix)]
mod over_filesystem;
mod over_keyvalue;
mod provider;
#[cfg(unix)]
mod wasi;

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tempfile::TempDir;
use verrou::conformance;
use verrou::conformance::{Fixture, TestClock};
use verrou_host::component::bindings::blocking::LockManager;
use verrou_host::component::bindings::blocking::exports::verrou::lock::locks::{
    ErrorCode, Guest, LockError,
};
use verrou_host::component::wasmtime::component::{Component, ResourceAny};

use instances::{State, built, load};
use keyvalue::Bucket;
use provider::Provider;

static IN_MEMORY: LazyLock<Component> = LazyLock::new(|| load(&built("provider-rust")));

conformance!(provider_rust, InMemory::new());

/// One instance, which all clients share: its memory is the store.
struct InMemory {
    clock: TestClock,
    store: Arc<Provider>,
}

impl InMemory {
    fn new() -> Self {
        let clock = TestClock::running();
        let store = Provider::new(&IN_MEMORY, clock.clone(), Bucket::default());
        let store = Arc::new(store);
        Self { clock, store }
    }
}

impl Fixture for InMemory {
    type Store = Arc<Provider>;
    type Host = TestClock;

    fn client(&self) -> Arc<Provider> {
        Arc::clone(&self.store)
    }

    fn host(&self) -> TestClock {
        self.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

/// Runs `cargo xtask compose`.
fn compose(arguments: &[&Path]) -> Output {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.current_dir(project).args(["xtask", "compose"]);
    command.args(arguments).output().unwrap()
}

#[track_caller]
fn succeeded(output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
}

/// Composes the lock component with a store.
fn with_store(store: &str) -> Component {
    let directory = TempDir::new().unwrap();
    let composed = directory.path().join("composed.wasm");
    compose_store(store, &composed);
    load(&composed)
}

/// Writes the lock component with a store to the file `composed`.
fn compose_store(store: &str, composed: &Path) {
    built("verrou");
    let output = compose(&[
        "--store".as_ref(),
        &built(store),
        "--output".as_ref(),
        composed,
    ]);
    succeeded(&output);
}

/// An instance of the lock component with a store inside.
struct Locks {
    wasm: verrou_host::component::wasmtime::Store<State>,
    component: LockManager,
}

impl Locks {
    fn new(component: &Component, clock: &TestClock, bucket: &Bucket) -> Self {
        Self::of(
            component,
            instances::around(component, clock.clone(), bucket.clone()),
        )
    }

    /// Creates an instance in a store, with the imports of a linker.
    fn of(
        component: &Component,
        (mut wasm, linker): (
            verrou_host::component::wasmtime::Store<State>,
            verrou_host::component::wasmtime::component::Linker<State>,
        ),
    ) -> Self {
        let component = LockManager::instantiate(&mut wasm, component, &linker).unwrap();
        Self { wasm, component }
    }

    fn call<T>(
        &mut self,
        call: impl FnOnce(
            &Guest,
            &mut verrou_host::component::wasmtime::Store<State>,
        ) -> verrou_host::component::wasmtime::Result<T>,
    ) -> T {
        call(self.component.verrou_lock_locks(), &mut self.wasm).expect("no trap")
    }

    fn lock(&mut self) -> ResourceAny {
        let ttl = Some(instances::nanos(Duration::from_secs(2)));
        let lock = self.call(|locks, wasm| locks.lock().call_create(wasm, "n", ttl));
        lock.unwrap()
    }

    /// Tries to acquire the lock; returns its fencing token if it was granted.
    fn take(&mut self, lock: ResourceAny) -> Option<u64> {
        let acquired = self.call(|locks, wasm| locks.lock().call_try_acquire(wasm, lock));
        let grant = acquired.unwrap()?;
        let token = grant.fencing_token;
        Some(token.expect("this store has fencing tokens"))
    }

    fn release(&mut self, lock: ResourceAny) -> Result<(), LockError> {
        self.call(|locks, wasm| locks.lock().call_release(wasm, lock))
    }

    fn drop(&mut self, lock: ResourceAny) {
        lock.resource_drop(&mut self.wasm).expect("no trap");
    }
}

/// Asserts that two locks of one name exclude each other: one in `first`, one in `second` or else in the same
/// instance.
fn exclude_each_other(clock: &TestClock, mut first: Locks, second: Option<Locks>) {
    let one = first.lock();
    let mut second = second;
    let other = second.as_mut().unwrap_or(&mut first).lock();

    let token = first.take(one).expect("it is free");
    assert_eq!(second.as_mut().unwrap_or(&mut first).take(other), None);
    first.release(one).unwrap();
    let next = second.as_mut().unwrap_or(&mut first).take(other);
    let next = next.expect("it was released");
    assert!(next > token, "{next} after {token}");
    assert_eq!(first.take(one), None);

    clock.advance(Duration::from_secs(2));
    let last = first.take(one).expect("the lease has expired");
    assert!(last > next, "{last} after {next}");
    let late = second.as_mut().unwrap_or(&mut first).release(other);
    let code = late.unwrap_err().code;
    assert!(matches!(code, ErrorCode::NotOwner), "{code:?}");
    first.release(one).unwrap();
}

#[test]
fn the_lock_component_with_a_store_in_memory_locks() {
    let (clock, bucket) = (TestClock::running(), Bucket::default());
    let locks = Locks::new(&with_store("provider-rust"), &clock, &bucket);
    exclude_each_other(&clock, locks, None);
}

#[test]
fn the_lock_component_with_a_store_over_keyvalue_locks() {
    let (clock, bucket) = (TestClock::running(), Bucket::default());
    let component = with_store("provider-keyvalue");
    let one = Locks::new(&component, &clock, &bucket);
    exclude_each_other(&clock, one, Some(Locks::new(&component, &clock, &bucket)));
}

/// Asserts that the drop of a lock releases it, unless the lock was detached, serialized or restored.
fn drop_releases(locks: &mut Locks) {
    let other = locks.lock();

    let dropped = locks.lock();
    locks.take(dropped).expect("the lock is free");
    assert_eq!(locks.take(other), None);
    locks.drop(dropped);
    locks.take(other).expect("the drop released the lock");
    locks.release(other).unwrap();

    let detached = locks.lock();
    locks.take(detached).expect("the lock is free");
    let done = locks.call(|locks, wasm| locks.lock().call_detach(wasm, detached));
    done.unwrap();
    locks.drop(detached);
    assert_eq!(locks.take(other), None);
    let freed = locks.call(|locks, wasm| locks.lock().call_force_release(wasm, other, None));
    assert!(freed.unwrap());

    let serialized = locks.lock();
    locks.take(serialized).expect("the lock is free");
    let text = locks.call(|locks, wasm| locks.lock().call_serialize(wasm, serialized, 0));
    let text = text.unwrap();
    locks.drop(serialized);
    assert_eq!(locks.take(other), None);

    let restored = locks.call(|locks, wasm| locks.lock().call_restore(wasm, &text, 0));
    locks.drop(restored.unwrap());
    assert_eq!(locks.take(other), None);
    let restored = locks.call(|locks, wasm| locks.lock().call_restore(wasm, &text, 0));
    locks.release(restored.unwrap()).unwrap();
    locks.take(other).expect("the lock is free");
}

#[test]
fn dropped_lock_is_released_unless_its_lease_was_detached() {
    for store in ["provider-rust", "provider-keyvalue"] {
        let (clock, bucket) = (TestClock::running(), Bucket::default());
        drop_releases(&mut Locks::new(&with_store(store), &clock, &bucket));
    }
}

/// No code of the component runs when its instance ends, as after a trap.
#[test]
fn lock_of_an_ended_instance_is_held_until_its_lease_expires() {
    let (clock, bucket) = (TestClock::running(), Bucket::default());
    let component = with_store("provider-keyvalue");
    let mut ended = Locks::new(&component, &clock, &bucket);
    let mut locks = Locks::new(&component, &clock, &bucket);
    let lock = ended.lock();
    ended.take(lock).expect("the lock is free");
    drop(ended);
    let other = locks.lock();
    assert_eq!(locks.take(other), None);
    clock.advance(Duration::from_secs(2));
    locks.take(other).expect("the lease has expired");
}

#[test]
fn component_without_the_required_interface_is_named() {
    let directory = TempDir::new().unwrap();
    let output = directory.path().join("composed.wasm");
    let (store, locks) = (built("provider-rust"), built("verrou"));
    for (arguments, words) in [
        (
            [Path::new("--store"), &locks],
            [&*locks.to_string_lossy(), "verrou:lock/store"],
        ),
        (
            [Path::new("--into"), &store],
            [&*store.to_string_lossy(), "verrou:lock/locks"],
        ),
    ] {
        let said = compose(&[&arguments[..], &["--output".as_ref(), &output]].concat());
        let message = String::from_utf8(said.stderr).unwrap();
        assert!(!said.status.success(), "{message}");
        for word in words {
            assert!(message.contains(word), "{word} is not in: {message}");
        }
        assert!(!output.exists());
    }
}
