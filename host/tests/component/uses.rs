//! A program's use of the component: waiting, renewing and transferring leases.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use verrou::blocking::LockFactory;
use verrou::conformance::TestClock;
use verrou::{Claim, MemoryStore, Retry, SerializedLock, Store, StoreWrapper, Ttl, Waiter};
use verrou_host::System;
use verrou_host::component::{ComponentError, Limits, Runner};

use crate::places::{Directory, SharedStore, lease_file};
use crate::through::{component, instance};
use verrou::conformance::Fixture;

fn memory() -> SharedStore {
    Arc::new(MemoryStore::new(System))
}

const HOUR: Duration = Duration::from_hours(1);

/// A store in memory that notifies the test when a client waits.
#[derive(Debug)]
struct Watched {
    store: MemoryStore<System>,
    waiting: SyncSender<()>,
}

impl StoreWrapper for Watched {
    type Inner = MemoryStore<System>;
    fn inner(&self) -> &Self::Inner {
        &self.store
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        let waiter = Store::waiter(&self.store, claim)?;
        Some(Box::new(WatchedWaiter(waiter, &self.waiting)))
    }
}

struct WatchedWaiter<'a>(Box<dyn Waiter + 'a>, &'a SyncSender<()>);

impl Waiter for WatchedWaiter<'_> {
    fn wait(&mut self, at_most: Duration) {
        self.1.send(()).expect("a test");
        self.0.wait(at_most);
    }
}

/// The release wakes the waiter long before the next attempt of its retry policy.
#[test]
fn release_wakes_waiter_in_the_component() {
    let (waiting, waits) = mpsc::sync_channel(1);
    let store: SharedStore = Arc::new(Watched {
        store: MemoryStore::new(System),
        waiting,
    });
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
            instance.release(lock).expect("this lock's grant");
            fence
        });
        waits.recv().expect("a waiter");
        held.release().expect("this lock's grant");
        assert!(waiter.join().expect("a waiter").is_some());
    });
    assert!(began.elapsed() < HOUR / 60);
}

#[test]
fn retry_policy_ends_in_the_component_as_natively() {
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
        (thrice.expect("a policy"), 3..=3),
        // One attempt, if the timeout has passed when its answer arrives.
        (in_time, 1..=2),
        (Retry::NEVER, 1..=1),
    ] {
        match instance.acquire(two, &retry) {
            Err(err @ ComponentError::Timeout { attempts }) => {
                assert!(most.contains(&attempts), "{attempts}");
                assert_eq!(err.code(), "E_LOCK_TIMEOUT");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(instance.is_held(one).expect("an answer"));
    assert!(!instance.is_held(two).expect("an answer"));
}

/// A renewed lease lasts for longer than its ttl, and its loss is reported.
#[test]
fn lease_is_renewed_by_polling() {
    let clock = TestClock::still();
    let store: SharedStore = Arc::new(MemoryStore::new(clock.clone()));
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
        other.force_release(None).expect("a force-release");
        clock.advance(pause);
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(lost.expect_err("a loss").code(), "E_LOCK_LOST");
}

/// The limit of a call's time does not include the time between two calls.
#[test]
fn lease_can_be_renewed_for_longer_than_a_call_may_take() {
    let time = Duration::from_secs(1);
    let runner = Runner::new(&component(), &Limits::default().time(time)).expect("the component");
    let mut instance = runner.instance(memory(), System).expect("an instance");
    let lock = instance.create_lock("lock", None).expect("a lock");
    assert!(instance.try_acquire(lock).expect("an answer"));
    let kept = instance.keep(lock, |_, _| {
        thread::sleep(time + time / 2);
        ControlFlow::Break("done")
    });
    assert_eq!(kept.ok(), Some("done"));
    thread::sleep(time + time / 2);
    instance.release(lock).expect("this lock's grant");
}

/// A lease that was acquired in the component is released by a native lock, and the other
/// way round; the serialized text is the same.
#[test]
fn lease_is_transferred_in_both_directions() {
    let place = Directory::new(lease_file);
    let ttl = Duration::from_mins(1);
    let native = || LockFactory::new(Arc::new(place.client()), place.host());
    let runner = Runner::new(&component(), &Limits::default()).expect("the component");
    let through = || {
        let store: SharedStore = Arc::new(place.client());
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
    restored.extend(Ttl::DEFAULT).expect("this lock's grant");
    restored.release().expect("this lock's grant");

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
    instance.release(restored).expect("this lock's grant");
    assert!(!lock.is_locked().expect("an answer"));
}

/// Instances are taken from the pool, and returned to it.
#[test]
fn instances_are_taken_from_a_pool_and_returned() {
    let limits = Limits::default().pool(2).memory(1 << 20);
    let runner = Runner::<SharedStore, System>::new(&component(), &limits).expect("the component");
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
        one.release(lock).expect("this lock's grant");
    }
}
