//! What a program does with the component: waits, keeps, hands over.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use verrou::blocking::LockFactory;
use verrou::conformance::TestClock;
use verrou::{MemoryStore, Retry, SerializedLock, Ttl};
use verrou_host::System;
use verrou_host::component::{ComponentError, Instance, Limits, Runner};

use crate::places::{AnyStore, Folder, lease_file};
use crate::through::component;
use verrou::conformance::Fixture;

fn instance(store: AnyStore) -> Instance<AnyStore, System> {
    let runner = Runner::new(&component(), &Limits::default()).expect("the component");
    runner.instance(store, System).expect("an instance")
}

fn memory() -> AnyStore {
    Arc::new(MemoryStore::new(System))
}

const HOUR: Duration = Duration::from_hours(1);

/// Whoever waits in the component is woken by the release, long before its policy would look.
#[test]
fn a_release_wakes_who_waits_in_the_component() {
    let store = memory();
    let holder = LockFactory::new(Arc::clone(&store), System);
    let held = holder.create_lock("lock", "none").expect("a lock");
    held.acquire().expect("a free lock");
    let began = Instant::now();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let mut instance = instance(Arc::clone(&store));
            let lock = instance.create_lock("lock", None).expect("a lock");
            let hourly = Retry::default().delay(HOUR).expect("a delay");
            let fence = instance.acquire(lock, &hourly).expect("a grant");
            instance.release(lock).expect("my lock");
            fence
        });
        thread::yield_now();
        held.release().expect("my lock");
        assert!(waiter.join().expect("a waiter").is_some());
    });
    assert!(began.elapsed() < HOUR / 60);
}

#[test]
fn a_policy_ends_in_the_component_as_it_does_natively() {
    let store = memory();
    let mut instance = instance(store);
    let [one, two] = [(); 2].map(|()| instance.create_lock("lock", None).expect("a lock"));
    instance
        .acquire(one, &Retry::default())
        .expect("a free lock");
    let delay = Duration::from_millis(5);
    let thrice = Retry::default()
        .attempts(3)
        .and_then(|retry| retry.delay(delay));
    let in_time = Retry::default().timeout(delay);
    for (retry, most) in [
        (thrice.expect("a policy"), 3),
        (in_time, 2),
        (Retry::NEVER, 1),
    ] {
        match instance.acquire(two, &retry) {
            Err(err @ ComponentError::Timeout { attempts }) => {
                assert_eq!((attempts, err.code()), (most, "E_LOCK_TIMEOUT"));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(instance.is_held(one).expect("an answer"));
    assert!(!instance.is_held(two).expect("an answer"));
}

/// A lease that is kept lasts for longer than its ttl, and its loss is said.
#[test]
fn a_lease_is_kept_by_polling() {
    let clock = TestClock::still();
    let store: AnyStore = Arc::new(MemoryStore::new(clock.clone()));
    let runner = Runner::new(&component(), &Limits::default()).expect("the component");
    let mut instance = runner
        .instance(Arc::clone(&store), clock.clone())
        .expect("an instance");
    let ttl = Duration::from_secs(3);
    let lock = instance.create_lock("lock", Some(ttl)).expect("a lock");
    assert!(instance.try_acquire(lock).expect("an answer"));
    let mut polls = 0;
    let kept = instance.keep(lock, |pause, why| {
        assert_eq!((pause, why), (ttl / 3, None));
        clock.advance(pause);
        polls += 1;
        if polls == 10 {
            ControlFlow::Break("done")
        } else {
            ControlFlow::Continue(())
        }
    });
    assert_eq!(kept.ok(), Some("done"));
    assert!(instance.is_held(lock).expect("an answer"));
    assert!(!instance.is_expired(lock).expect("an answer"));
    let lost = instance.keep(lock, |pause, _| {
        let other = LockFactory::new(Arc::clone(&store), clock.clone());
        let other = other.create_lock("lock", "none").expect("a lock");
        other.force_release().expect("an eviction");
        clock.advance(pause);
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(lost.expect_err("a loss").code(), "E_LOCK_LOST");
}

/// A lease that was taken in the component is released by the machine's own lock, and the other
/// way round: the text is the same.
#[test]
fn a_lease_is_handed_over_in_both_directions() {
    let place = Folder::new(lease_file);
    let ttl = Duration::from_mins(1);
    let native = || LockFactory::new(Arc::new(place.client()), place.host());
    let runner = Runner::new(&component(), &Limits::default()).expect("the component");
    let through = || {
        let store: AnyStore = Arc::new(place.client());
        runner.instance(store, place.host()).expect("an instance")
    };

    let mut instance = through();
    let lock = instance.create_lock("lock “ü”", Some(ttl)).expect("a lock");
    let fence = instance.acquire(lock, &Retry::NEVER).expect("a grant");
    let text = instance.serialize(lock).expect("a lease");
    drop(instance);
    let serialized: SerializedLock = text.parse().expect("a serialized lock");
    assert_eq!(serialized.fence(), fence);
    assert_eq!(serialized.to_string(), text);
    let restored = native().restore_lock(&serialized);
    assert!(restored.is_held().expect("an answer"));
    restored.extend(Some(Ttl::DEFAULT)).expect("my lock");
    restored.release().expect("my lock");

    let lock = native().create_lock("lock “ü”", ttl).expect("a lock");
    let lease = lock.acquire().expect("a free lock");
    assert!(lease.fence() > fence);
    let text = lock.serialize().expect("a lease").to_string();
    let mut instance = through();
    let restored = instance.restore_lock(&text).expect("a lease");
    assert!(instance.is_held(restored).expect("an answer"));
    let again: SerializedLock = instance
        .serialize(restored)
        .expect("a lease")
        .parse()
        .expect("a serialized lock");
    assert_eq!(
        (again.owner(), again.fence()),
        (lease.owner(), lease.fence())
    );
    instance.release(restored).expect("my lock");
    assert!(!lock.is_locked().expect("an answer"));
}

/// Instances come from the pool, and go back to it.
#[test]
fn instances_are_taken_from_a_pool_and_given_back() {
    let limits = Limits::default().pool(2).memory(1 << 20);
    let runner = Runner::<AnyStore, System>::new(&component(), &limits).expect("the component");
    let store = memory();
    for _ in 0..10 {
        let mut instances = [(); 2].map(|()| {
            let instance = runner.instance(Arc::clone(&store), System);
            instance.expect("an instance")
        });
        assert!(runner.instance(Arc::clone(&store), System).is_err());
        let [one, two] = &mut instances;
        let lock = one.create_lock("lock", None).expect("a lock");
        assert!(one.try_acquire(lock).expect("an answer"));
        let other = two.create_lock("lock", None).expect("a lock");
        assert!(!two.try_acquire(other).expect("an answer"));
        one.release(lock).expect("my lock");
    }
}
