//! Polled locks, beyond the behaviour of all drivers in `acquire.rs`.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::script::{World, broken, granted, held, ms, trouble};
use verrou::conformance::TestClock;
use verrou::polled::{Attempt, Keeping, Lock, Progress};
use verrou::{Error, Loss, MemoryStore, Retry, SerializedLock, Ttl};

fn lock(world: &World) -> Lock<&World, &World> {
    Lock::new(world, world, "lock", ms(2400)).expect("a lock")
}

fn retry() -> Retry {
    Retry::default().delay(ms(100)).expect("a delay")
}

/// A waiter that is woken early retries, and then continues its wait to the same end.
#[test]
fn early_poll_retries() {
    let world = World::new(vec![held(), held(), granted(3)]);
    let lock = lock(&world);
    let mut attempt = lock.acquire(&retry(), [7; 16]);
    let wait = |attempt: &mut Attempt<_, _>| match attempt.poll() {
        Ok(Progress::Wait(wait)) => wait,
        other => panic!("{other:?}"),
    };
    assert_eq!(wait(&mut attempt), ms(100));
    world.rest("woken", ms(40));
    assert_eq!(wait(&mut attempt), ms(60));
    world.rest("woken", ms(40));
    let acquired = attempt.poll().expect("an answer");
    assert!(matches!(&acquired, Progress::Acquired(lease) if Some(lease) == lock.lease().as_ref()));
    // After the end, each poll returns the same.
    assert_eq!(attempt.poll().expect("an answer"), acquired);
}

/// A failing store gets no request before the end of the pause, however often the attempt is polled.
#[test]
fn poll_during_a_pause_sends_no_request() {
    let world = World::new(vec![trouble(), granted(3)]);
    let lock = lock(&world);
    let mut attempt = lock.acquire(&retry(), [7; 16]);
    for left in [100, 60, 20] {
        let progress = attempt.poll().expect("an answer");
        assert_eq!(progress, Progress::Pause(ms(left)));
        world.rest("polled", ms(40));
    }
    assert!(matches!(attempt.poll(), Ok(Progress::Acquired(_))));
}

/// Several attempts of one lock take turns, on one thread.
#[test]
fn attempts_take_turns() {
    let clock = TestClock::still();
    let store = MemoryStore::new(clock.clone());
    let lock = Lock::new(&store, &clock, "lock", None).expect("a lock");
    let mut first = lock.acquire(&retry(), [1; 16]);
    let mut second = lock.acquire(&retry(), [2; 16]);
    assert!(matches!(first.poll(), Ok(Progress::Acquired(_))));
    assert!(matches!(second.poll(), Ok(Progress::Wait(_))));
    lock.release().expect("the first hold");
    assert!(matches!(second.poll(), Ok(Progress::Acquired(_))));
    lock.release().expect("the second hold");
    assert!(!lock.is_locked().expect("an answer"));
}

/// After the drop of an attempt, the lock is free for others.
#[test]
fn dropped_attempt_acquires_nothing() {
    let clock = TestClock::still();
    let store = MemoryStore::new(clock.clone());
    let lock = |ttl: Option<Duration>| Lock::new(&store, &clock, "lock", ttl).expect("a lock");
    let (one, two) = (lock(None), lock(None));
    one.try_acquire([1; 16]).expect("a free lock");
    let mut attempt = two.acquire(&retry(), [2; 16]);
    assert!(matches!(attempt.poll(), Ok(Progress::Wait(_))));
    drop(attempt);
    one.release().expect("my lock");
    assert!(!one.is_locked().expect("an answer"));
}

/// The lease is renewed in time, and an unknown state and a loss are returned.
#[test]
fn renewal_returns_the_state_of_the_lease() {
    let script = vec![granted(3), granted(0), trouble(), granted(0), held()];
    let world = World::new(script);
    let lock = lock(&world);
    assert!(matches!(lock.keep(), Err(Error::NotOwner { .. })));
    lock.try_acquire([7; 16]).expect("a free lock");
    let mut renewal = lock.keep().expect("a lease");
    let held_for = |keeping: Keeping, wait: u64| {
        assert!(
            matches!(keeping, Keeping::Held(pause) if pause == ms(wait)),
            "{keeping:?}"
        );
        world.rest("wait", ms(wait));
    };
    held_for(renewal.poll(), 800);
    held_for(renewal.poll(), 800);
    // The renewal extended the lock's lease.
    assert_eq!(lock.remaining(), Some(ms(1600)));
    match renewal.poll() {
        Keeping::Unknown { wait, why } => {
            assert_eq!(why.to_string(), "in trouble");
            world.rest("wait", wait);
        }
        other => panic!("{other:?}"),
    }
    held_for(renewal.poll(), 800);
    for _ in 0..2 {
        assert!(matches!(renewal.poll(), Keeping::Lost(Loss::Revoked)));
    }
}

/// The auto-renewal takes extensions of the lease through the lock into account.
#[test]
fn renewal_continues_from_other_extensions() {
    let clock = TestClock::still();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let lock = Lock::new(Arc::clone(&store), clock.clone(), "lock", ms(30_000)).expect("a lock");
    lock.try_acquire([7; 16]).expect("a free lock");
    let mut renewal = lock.keep().expect("a lease");
    assert!(matches!(renewal.poll(), Keeping::Held(_)));

    // A shorter lease: the next renewal is due sooner, and the remaining time is not overstated.
    let second = Ttl::new(ms(1_000)).expect("a ttl");
    lock.extend(second).expect("my lock");
    assert!(matches!(renewal.poll(), Keeping::Held(wait) if wait == ms(500)));
    assert_eq!(lock.remaining(), Some(ms(1_000)));
    clock.advance(ms(500));
    assert!(matches!(renewal.poll(), Keeping::Held(wait) if wait == ms(10_000)));
    assert_eq!(lock.remaining(), Some(ms(30_000)));

    // A longer lease: it is not lost at its former expiry.
    let hour = Ttl::new(ms(3_600_000)).expect("a ttl");
    lock.extend(hour).expect("my lock");
    clock.advance(ms(40_000));
    assert!(matches!(renewal.poll(), Keeping::Held(_)));

    // A shortened lease has expired, and no other owner was granted it.
    lock.extend(second).expect("my lock");
    clock.advance(ms(1_000));
    assert!(lock.is_expired());
    assert!(matches!(
        lock.extend(lock.ttl()),
        Err(Error::NotOwner { .. })
    ));
    assert!(matches!(renewal.poll(), Keeping::Held(wait) if wait == ms(10_000)));
    assert_eq!(lock.remaining(), Some(ms(30_000)));

    // After another owner's grant the lease is lost.
    clock.advance(ms(30_000));
    let other = Lock::new(store, clock, "lock", ms(30_000)).expect("a lock");
    other.try_acquire([8; 16]).expect("a free lock");
    other.release().expect("its lock");
    for _ in 0..2 {
        assert!(matches!(renewal.poll(), Keeping::Lost(Loss::Expired)));
    }
}

/// A release by the owner during renewals is not a loss.
#[test]
fn a_renewal_ends_with_the_owners_release() {
    let clock = TestClock::still();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let wall = Duration::from_secs(1_700_000_000);
    for is_elsewhere in [false, true] {
        let lock = Lock::new(Arc::clone(&store), clock.clone(), "lock", ms(3000)).expect("a lock");
        lock.try_acquire([7; 16]).expect("a free lock");
        let mut renewal = lock.keep().expect("a lease");
        assert!(matches!(renewal.poll(), Keeping::Held(_)));
        if is_elsewhere {
            let text = lock.serialize(wall).expect("a lease");
            let restored = Lock::restored(Arc::clone(&store), clock.clone(), &text, wall);
            restored.release().expect("my lock");
            let other = Lock::new(Arc::clone(&store), clock.clone(), "lock", None).expect("a lock");
            other.try_acquire([8; 16]).expect("a free lock");
            // The next renewal detects the release.
            while let Keeping::Held(wait) = renewal.poll() {
                clock.advance(wait);
            }
            other.release().expect("its lock");
        } else {
            lock.release().expect("my lock");
        }
        for _ in 0..2 {
            assert!(matches!(renewal.poll(), Keeping::Released));
        }
    }
}

/// A holder that repeats its acquire request with the same owner token keeps the lock.
#[test]
fn repeated_request_of_the_owner_returns_the_same_grant() {
    let clock = TestClock::still();
    let store = Arc::new(MemoryStore::new(clock.clone()));
    let lock = Lock::new(store, clock, "lock", None).expect("a lock");
    let first = lock.try_acquire([7; 16]).expect("a free lock");
    let again = lock.try_acquire([7; 16]).expect("the same grant");
    assert_eq!(first.fence(), again.fence());
    assert!(lock.is_held().expect("an answer"));
    lock.release().expect("my lock");
}

/// A lease that was not renewed in time is lost, without a request to the store.
#[test]
fn a_late_renewal_is_lost() {
    let world = World::new(vec![granted(3)]);
    let lock = lock(&world);
    lock.try_acquire([7; 16]).expect("a free lock");
    let mut renewal = lock.keep().expect("a lease");
    world.rest("too long", ms(2400));
    assert!(matches!(renewal.poll(), Keeping::Lost(Loss::Expired)));
    assert!(lock.is_expired());
}

/// The error has its code, and the lock can be used again.
#[test]
fn store_error_is_returned_and_lock_stays_usable() {
    let world = World::new(vec![broken(), granted(0), granted(4)]);
    let lock = lock(&world);
    let err = lock.try_acquire([7; 16]).expect_err("a broken store");
    assert_eq!(
        (err.code(), err.is_temporary()),
        ("E_LOCK_STORAGE_ERROR", false)
    );
    assert_eq!(lock.lease(), None);
    lock.try_acquire([7; 16]).expect("a store that works again");
    assert_eq!(world.log(), ["acquire@0ns", "release@0ns", "acquire@0ns"]);
}

/// A serialized lock can be restored, extended and released elsewhere.
#[test]
fn lock_is_transferred_as_text() {
    let clock = TestClock::still();
    let store = MemoryStore::new(clock.clone());
    let wall = Duration::from_secs(1_700_000_000);
    let lock = Lock::new(&store, &clock, "lock", ms(1000)).expect("a lock");
    lock.try_acquire([1; 16]).expect("a free lock");
    let text = lock.serialize(wall).expect("a lease").to_string();
    let restored: SerializedLock = text.parse().expect("a serialized lock");
    let restored = Lock::restored(&store, &clock, &restored, wall);
    assert!(restored.is_held().expect("an answer"));
    assert_eq!(restored.remaining(), Some(ms(1000)));
    restored.extend(restored.ttl()).expect("my lock");
    restored.release().expect("my lock");
    assert_eq!(
        lock.release().expect_err("released").code(),
        "E_LOCK_NOT_OWNER"
    );
}

/// A force-release of one grant does not release another.
#[test]
fn force_release_of_one_grant() {
    let clock = TestClock::still();
    let store = MemoryStore::new(clock.clone());
    let lock = |name| Lock::new(&store, &clock, name, None).expect("a lock");
    let (one, two) = (lock("lock"), lock("lock"));
    let fence = one.try_acquire([1; 16]).expect("a free lock").fence();
    assert!(two.force_release(fence).expect("an answer"));
    assert!(!two.force_release(None).expect("an answer"));
    let next = one.try_acquire([2; 16]).expect("a free lock");
    assert!(!two.force_release(fence).expect("an answer"));
    assert_eq!(one.lease(), Some(next));
    assert!(one.is_held().expect("an answer"));
}
