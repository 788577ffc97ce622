//! The contract of a lock, on every store.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::mem;
use core::ptr;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::string::ToString;
use std::sync::{Barrier, Mutex, mpsc};
use std::thread;
use std::vec::Vec;

use super::{Fixture, ttl};
use crate::blocking::{Guard, Host, Lock, LockFactory};
use crate::claim::Claim;
use crate::error::{Error, RunError};
use crate::lease::Loss;
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Acquired, Capabilities, Store, StoreError};
use crate::store_wrapper::StoreWrapper;
use crate::ttl::Ttl;

type Locks<F> = LockFactory<Arc<<F as Fixture>::Store>, <F as Fixture>::Host>;

/// Makes the locks of a new client, with a retry delay of 5 ms.
fn locks<F: Fixture>(fixture: &F) -> Locks<F> {
    let delay = Duration::from_millis(5);
    let retry = Retry::default().delay(delay).expect("a delay");
    LockFactory::new(Arc::new(fixture.client()), fixture.host()).retry(retry)
}

fn lock<S: Store + Clone, H: Host + Clone>(
    locks: &LockFactory<S, H>,
    ttl: impl Into<Option<Duration>>,
) -> Lock<S, H> {
    locks
        .create_lock("lock", ttl.into())
        .expect("a name and a ttl")
}

/// Asserts that the lock cannot be acquired now.
#[track_caller]
fn assert_taken<S: Store, H: Host>(lock: &Lock<S, H>) {
    let end = lock.try_acquire();
    assert!(
        matches!(end, Err(Error::Timeout { attempts: 1, .. })),
        "{end:?}"
    );
}

#[track_caller]
fn assert_not_owner<T: core::fmt::Debug>(end: Result<T, Error>) {
    let err = end.expect_err("not the owner");
    assert_eq!(err.code(), "E_LOCK_NOT_OWNER", "{err}");
}

/// Checks that a second `acquire`, even of the same value, waits for the release.
pub fn acquiring_is_exclusive(fixture: &impl Fixture) {
    let (refusals, refused) = mpsc::channel();
    let store = Watched {
        store: Arc::new(fixture.client()),
        refusals,
    };
    let locks = LockFactory::new(store, fixture.host());
    let lock = lock(&locks, None);
    let freed = AtomicU32::new(0);
    lock.acquire().expect("a free lock");
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            lock.acquire().expect("a lock that gets free");
            freed.load(Ordering::SeqCst)
        });
        refused.recv().expect("a refusal");
        freed.store(1, Ordering::SeqCst);
        lock.release().expect("the first hold");
        assert_eq!(second.join().expect("the second taker"), 1);
    });
    lock.release().expect("the second hold");
}

/// Checks that a lock is not held after it is created.
pub fn a_new_lock_is_not_locked(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    assert!(!lock.is_locked().expect("an answer"));
    assert!(!lock.is_held().expect("an answer"));
    assert!(!lock.is_expired());
    assert_eq!((lock.lease(), lock.remaining()), (None, None));
}

/// Checks that a lock is locked from its acquisition to its release.
pub fn a_lock_is_locked_from_acquire_to_release(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    let lease = lock.acquire().expect("a free lock");
    assert!(lock.is_locked().expect("an answer"));
    assert!(lock.is_held().expect("an answer"));
    assert_eq!(lock.lease(), Some(lease));
    lock.release().expect("my lock");
    assert!(!lock.is_locked().expect("an answer"));
    assert!(!lock.is_held().expect("an answer"));
}

/// Checks that all locks of one name are locked if one of them is, and that only that one is held.
pub fn two_locks_of_one_name_are_one_lock(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (one, two) = (lock(&locks, fixture.ttl()), lock(&locks, fixture.ttl()));
    assert!(!one.is_locked().expect("an answer") && !two.is_locked().expect("an answer"));
    one.acquire().expect("a free lock");
    assert!(one.is_locked().expect("an answer") && two.is_locked().expect("an answer"));
    assert!(one.is_held().expect("an answer"));
    assert!(!two.is_held().expect("an answer"));
    let other = locks.create_lock("other", None).expect("a name");
    assert!(!other.is_locked().expect("an answer"));
}

/// Checks that a lock value that did not acquire the lock cannot release it.
pub fn only_the_holder_can_release(fixture: &impl Fixture) {
    let (here, there) = (locks(fixture), locks(fixture));
    let one = lock(&here, None);
    one.acquire().expect("a free lock");
    for two in [lock(&here, None), lock(&there, None)] {
        assert_not_owner(two.release());
        assert_taken(&two);
        assert_not_owner(two.release());
    }
    assert!(one.is_held().expect("an answer"));
    one.release().expect("my lock");
}

/// Checks that a released lock cannot be released again.
pub fn a_second_release_fails(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (one, two) = (lock(&locks, None), lock(&locks, None));
    one.acquire().expect("a free lock");
    one.release().expect("my lock");
    assert_not_owner(one.release());
    two.acquire().expect("a free lock");
    assert_not_owner(one.release());
    assert!(two.is_held().expect("an answer"));
}

/// Checks that an acquire request on a held lock times out, and records nothing.
pub fn a_held_lock_times_out(fixture: &impl Fixture) {
    let (here, there) = (locks(fixture), locks(fixture));
    let (one, two) = (lock(&here, None), lock(&there, None));
    one.acquire().expect("a free lock");
    let in_time = Retry::default()
        .delay(Duration::from_millis(50))
        .expect("a delay")
        .timeout(Duration::from_millis(250));
    let thrice = in_time.clone().attempts(3).expect("attempts");
    for (retry, least) in [(&in_time, 2), (&thrice, 2), (&Retry::NEVER, 1)] {
        match two.acquire_with(retry) {
            Err(Error::Timeout { attempts, name }) => {
                assert_eq!(&name, two.name());
                assert!((least..=6).contains(&attempts), "{attempts}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(one.is_held().expect("an answer"));
    assert_eq!(two.lease(), None);
    one.release().expect("my lock");
    assert!(!two.is_locked().expect("an answer"));
}

/// Checks that none of the forms of trying waits.
pub fn trying_does_not_wait_for_a_held_lock(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (one, two) = (lock(&locks, None), lock(&locks, None));
    let held = one.try_guard().expect("a free lock");
    assert_taken(&two);
    assert_taken(&one);
    let guard = two.try_guard().map(Guard::leave);
    assert!(matches!(guard, Err(Error::Timeout { .. })));
    let ran = two.try_run(|_| ());
    assert!(matches!(
        ran,
        Err(RunError::NotAcquired(Error::Timeout { .. }))
    ));
    held.release().expect("my lock");
    assert_eq!(two.try_run(|_| 1).ok(), Some(1));
}

/// Checks that `run` returns the value of its body.
pub fn run_returns_what_the_body_returns(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    assert_eq!(lock.run(|_| "done").ok(), Some("done"));
}

/// Checks that `run` returns an error of its body as a value, and releases.
pub fn run_returns_the_bodys_error(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    let failed: Result<(), _> = lock.run(|_| Err("failed")).expect("a body that ran");
    assert_eq!(failed, Err("failed"));
    assert!(!lock.is_locked().expect("an answer"));
}

/// Checks that the lock is held while the body of `run` runs, and free afterwards.
pub fn run_holds_and_releases_the_lock(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (lock, other) = (lock(&locks, fixture.ttl()), lock(&locks, fixture.ttl()));
    let seen = lock.run(|held| {
        assert_taken(&other);
        assert_eq!(held.fence().is_some(), capabilities(fixture).fences);
        (lock.is_held(), other.is_locked())
    });
    let (mine, locked) = seen.expect("a body that ran");
    assert!(mine.expect("an answer") && locked.expect("an answer"));
    assert!(!other.is_locked().expect("an answer"));
}

/// Checks that `run` passes on a panic of its body, and leaves the lock free.
pub fn run_releases_when_the_body_panics(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (lock, other) = (lock(&locks, None), lock(&locks, None));
    let panicked = catch_panic(|| lock.run(|_| panic::resume_unwind(Box::new(7_u8))));
    let payload = panicked.map(|_: Result<(), _>| ()).expect_err("a panic");
    assert_eq!(payload.downcast_ref(), Some(&7_u8));
    assert!(!other.is_locked().expect("an answer"));
    assert_eq!(lock.try_run(|_| 1).ok(), Some(1));
    assert_eq!(other.try_run(|_| 2).ok(), Some(2));
}

fn catch_panic<T>(body: impl FnOnce() -> T) -> thread::Result<T> {
    panic::catch_unwind(AssertUnwindSafe(body))
}

/// Checks that runs of one lock value, from several threads, never overlap.
pub fn runs_of_one_lock_exclude_each_other(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), None);
    let (inside, start) = (AtomicU32::new(0), Barrier::new(4));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                lock.run(|_| assert_alone(&inside))
                    .expect("a body that ran");
            });
        }
    });
    assert!(!lock.is_locked().expect("an answer"));
}

/// Checks that runs of several locks of one name, each with its own client, never overlap.
pub fn runs_of_two_locks_exclude_each_other(fixture: &impl Fixture) {
    let factories = [locks(fixture), locks(fixture), locks(fixture)];
    let (inside, start) = (AtomicU32::new(0), Barrier::new(factories.len()));
    thread::scope(|scope| {
        for locks in &factories {
            let (inside, start) = (&inside, &start);
            scope.spawn(move || {
                let lock = lock(locks, None);
                start.wait();
                lock.run(|_| assert_alone(inside)).expect("a body that ran");
            });
        }
    });
    assert!(!lock(&factories[0], None).is_locked().expect("an answer"));
}

/// Panics if another thread is inside at the same time.
fn assert_alone(inside: &AtomicU32) {
    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "not alone");
    for _ in 0..20 {
        thread::yield_now();
        assert_eq!(inside.load(Ordering::SeqCst), 1, "not alone");
    }
    inside.fetch_sub(1, Ordering::SeqCst);
}

/// Checks that `run` returns the value together with `Loss::Expired` if the body outlasts its lease.
pub fn run_reports_an_expired_lease(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (lock, other) = (lock(&locks, fixture.ttl()), lock(&locks, fixture.ttl()));
    let ran = lock.run(|held| {
        assert!(!held.is_expired());
        fixture.pass(fixture.ttl());
        assert!(held.is_expired());
        "done"
    });
    let Err(RunError::Ended { value, error }) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!((value, error.code()), ("done", "E_LOCK_LOST"));
    let loss = Loss::Expired;
    assert!(
        matches!(&error, Error::Lost { loss: why, .. } if *why == loss),
        "{error}"
    );
    // The late release was refused, but freed the name.
    other.try_acquire().expect("a free lock");
}

/// Checks that `run` returns the value together with `Loss::Revoked` after a force-release, and succeeds
/// if the store cannot force-release.
pub fn run_reports_a_revoked_lease(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (lock, other) = (lock(&locks, None), lock(&locks, None));
    let can_force_release = capabilities(fixture).force_releases;
    let ran = lock.run(|_| {
        assert_eq!(other.force_release(None).is_ok(), can_force_release);
        "done"
    });
    match ran {
        Ok(value) => assert_eq!((value, can_force_release), ("done", false)),
        Err(RunError::Ended { value, error }) => {
            assert_eq!((value, can_force_release), ("done", true));
            let loss = Loss::Revoked;
            assert!(
                matches!(&error, Error::Lost { loss: why, .. } if *why == loss),
                "{error}"
            );
        }
        Err(other) => panic!("{other:?}"),
    }
}

/// Checks that a run that outlasts its lease does not release a later grant of the same lock value.
pub fn an_expired_run_does_not_release_the_next_hold(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let lock = lock(&locks, fixture.ttl());
    let expires = capabilities(fixture).expires;
    let mut second = None;
    let ran = lock.run(|first| {
        let first = first.fence();
        fixture.pass(fixture.ttl());
        if expires {
            let held = lock.try_guard().expect("an expired lock");
            assert!(first.is_none() || first < held.fence());
            second = Some(held);
        } else {
            assert_taken(&lock);
        }
    });
    assert!(matches!(
        ran,
        Err(RunError::Ended {
            error: Error::Lost { .. },
            ..
        })
    ));
    assert_eq!(lock.is_held().expect("an answer"), expires);
    if let Some(second) = second {
        second.extend(second.ttl()).expect("the second hold");
        second.release().expect("the second hold");
    }
    assert!(!lock.is_locked().expect("an answer"));
}

/// Checks that several threads can acquire and release one lock value in turn.
pub fn many_threads_can_share_one_lock(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), None);
    let start = Barrier::new(3);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                start.wait();
                for _ in 0..3 {
                    lock.acquire().expect("a lock that gets free");
                    lock.release().expect("my lock");
                }
            });
        }
    });
    assert!(!lock.is_locked().expect("an answer"));
    assert_not_owner(lock.release());
}

/// Checks that a hundred acquisitions by ten threads, each with its own client, lose no increment of a
/// counter that is read and then written.
pub fn a_hundred_acquisitions_count_to_a_hundred(fixture: &impl Fixture) {
    let count = AtomicU32::new(0);
    let fences = Mutex::new(Vec::new());
    let factories: Vec<_> = (0..10).map(|_| locks(fixture)).collect();
    thread::scope(|scope| {
        for locks in &factories {
            let (count, fences) = (&count, &fences);
            scope.spawn(move || {
                let lock = lock(locks, None);
                for _ in 0..10 {
                    lock.run(|held| {
                        let seen = count.load(Ordering::Relaxed);
                        thread::yield_now();
                        count.store(seen + 1, Ordering::Relaxed);
                        fences.lock().expect("whole fences").push(held.fence());
                    })
                    .expect("a body that ran");
                }
            });
        }
    });
    assert_eq!(count.into_inner(), 100);
    let fences = fences.into_inner().expect("whole fences");
    if capabilities(fixture).fences {
        assert!(fences.is_sorted_by(|before, after| before < after));
    } else {
        assert!(fences.iter().all(Option::is_none));
    }
}

/// Checks that every acquisition has an owner token of its own, whose text has 32 characters.
pub fn every_acquisition_has_its_own_owner(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (one, two) = (lock(&locks, None), lock(&locks, None));
    let owners: BTreeSet<_> = [&one, &two, &one]
        .map(|lock| {
            let owner = lock.acquire().expect("a free lock").owner();
            lock.release().expect("my lock");
            owner.to_string()
        })
        .into();
    assert_eq!(owners.len(), 3);
    assert!(owners.iter().all(|owner| owner.len() == 32));
}

/// Checks that a serialized lock can be restored by another client, extended and released. A store
/// without transfers must refuse to serialize.
pub fn a_lock_can_be_restored_elsewhere(fixture: &impl Fixture) {
    let (here, there) = (locks(fixture), locks(fixture));
    let lock = lock(&here, fixture.ttl());
    assert!(lock.serialize().is_err(), "nothing is held");
    let lease = lock.acquire().expect("a free lock");
    if !capabilities(fixture).transfers {
        let err = lock.serialize().expect_err("a tied lease");
        assert_eq!(err.code(), "E_LOCK_NOT_SERIALIZABLE");
        assert!(lock.is_held().expect("an answer"));
        return lock.release().expect("my lock");
    }
    let text = lock.serialize().expect("a held lock").to_string();
    drop((lock, here));
    let serialized: SerializedLock = text.parse().expect("a serialized lock");
    let restored = there.restore_lock(&serialized);
    assert!(restored.is_held().expect("an answer"));
    assert_eq!(restored.ttl(), ttl(fixture.ttl()));
    let restored_lease = restored.lease().expect("the same lease");
    assert_eq!(restored_lease.owner(), lease.owner());
    assert_eq!(restored_lease.fence(), lease.fence());
    assert!(restored.remaining().is_some_and(|left| !left.is_zero()));
    restored.extend(restored.ttl()).expect("a restored lock");
    restored.release().expect("a restored lock");
    assert!(!restored.is_locked().expect("an answer"));
    assert_not_owner(there.restore_lock(&serialized).release());
}

/// Checks that an expired lock is free, if the store's records expire. In every store, its holder has lost
/// it.
pub fn an_expired_lock_is_not_locked(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    lock.acquire().expect("a free lock");
    fixture.pass(fixture.ttl());
    assert!(lock.is_expired());
    assert_eq!(lock.remaining(), Some(Duration::ZERO));
    let expires = capabilities(fixture).expires;
    assert_eq!(lock.is_locked().expect("an answer"), !expires);
    assert_not_owner(lock.release());
    assert!(!lock.is_locked().expect("an answer"));
}

/// Checks that the same lock value can acquire an expired lock again.
pub fn an_expired_lock_can_be_acquired_by_the_same_lock(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    assert_reacquired(fixture, &lock, &lock);
}

/// Checks that another client can acquire an expired lock.
pub fn an_expired_lock_can_be_acquired_by_another_lock(fixture: &impl Fixture) {
    let (here, there) = (locks(fixture), locks(fixture));
    assert_reacquired(
        fixture,
        &lock(&here, fixture.ttl()),
        &lock(&there, fixture.ttl()),
    );
}

fn assert_reacquired<S: Store, H: Host>(
    fixture: &impl Fixture,
    one: &Lock<S, H>,
    two: &Lock<S, H>,
) {
    one.acquire().expect("a free lock");
    assert_taken(two);
    fixture.pass(fixture.ttl());
    if !capabilities(fixture).expires {
        assert_taken(two);
        assert_not_owner(one.release());
    }
    two.try_acquire().expect("an expired lock");
    assert!(two.is_held().expect("an answer"));
    assert_eq!(one.is_held().expect("an answer"), ptr::eq(one, two));
    assert!(!two.is_expired());
    two.release().expect("my lock");
}

/// Checks that the ttl of a lock does not change that of another.
pub fn each_lock_has_its_own_ttl(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (short, long) = (
        locks.create_lock("short", fixture.ttl()).expect("a name"),
        locks
            .create_lock("long", 10 * fixture.ttl())
            .expect("a name"),
    );
    short.acquire().expect("a free lock");
    long.acquire().expect("a free lock");
    fixture.pass(fixture.ttl());
    assert!(short.is_expired());
    assert_not_owner(short.extend(short.ttl()));
    assert!(!long.is_expired());
    assert!(long.is_held().expect("an answer"));
    long.release().expect("my lock");
}

/// Checks that a lock without ttl is held until it is released.
pub fn a_lock_without_ttl_does_not_expire(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), None);
    lock.acquire().expect("a free lock");
    fixture.pass(fixture.ttl());
    assert!(!lock.is_expired());
    assert_eq!(lock.remaining(), None);
    assert!(lock.is_held().expect("an answer"));
    lock.release().expect("my lock");
}

/// Checks that any client can force-release a lock, if the store has this capability.
pub fn any_client_can_force_release(fixture: &impl Fixture) {
    let (here, there) = (locks(fixture), locks(fixture));
    let (one, two) = (lock(&here, None), lock(&there, None));
    one.acquire().expect("a free lock");
    if capabilities(fixture).force_releases {
        two.force_release(None).expect("another holder's lock");
        assert!(!one.is_held().expect("an answer"));
        assert_not_owner(one.release());
        two.force_release(None).expect("a free lock");
        two.try_acquire().expect("a free lock");
        two.force_release(None).expect("my own lock");
        assert_eq!(two.lease(), None);
        assert_not_owner(two.release());
    } else {
        let err = two.force_release(None).expect_err("no such capability");
        assert_eq!(err.code(), "E_LOCK_STORAGE_ERROR");
        assert!(one.is_held().expect("an answer"));
        one.release().expect("my lock");
    }
}

/// Checks that a lock that is extended after half its ttl lasts one ttl from then on, and no longer.
pub fn extend_restarts_the_ttl(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    lock.acquire().expect("a free lock");
    fixture.pass(fixture.ttl() / 2);
    lock.extend(lock.ttl()).expect("my lock");
    fixture.pass(fixture.ttl() / 2);
    assert!(lock.is_held().expect("an answer"));
    assert!(!lock.is_expired());
    fixture.pass(fixture.ttl() / 2);
    assert!(lock.is_expired());
    let expires = capabilities(fixture).expires;
    assert_eq!(lock.is_locked().expect("an answer"), !expires);
    assert_not_owner(lock.extend(lock.ttl()));
}

/// Checks that a lock that is not held cannot be extended.
pub fn only_a_holder_can_extend(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (one, two) = (lock(&locks, None), lock(&locks, fixture.ttl()));
    assert_not_owner(one.extend(one.ttl()));
    one.acquire().expect("a free lock");
    assert_not_owner(two.extend(two.ttl()));
    assert_taken(&two);
    assert_not_owner(two.extend(Ttl::NEVER));
    one.extend(one.ttl()).expect("my lock");
    one.release().expect("my lock");
    assert_not_owner(one.extend(one.ttl()));
}

/// Checks that an expired lock cannot be extended, even if no other owner has acquired it.
pub fn an_expired_lock_cannot_be_extended(fixture: &impl Fixture) {
    let lock = lock(&locks(fixture), fixture.ttl());
    let held = lock.guard().expect("a free lock");
    fixture.pass(fixture.ttl());
    assert_not_owner(held.extend(held.ttl()));
    assert_not_owner(lock.extend(Ttl::NEVER));
    assert!(held.is_expired());
    let err = held.release().expect_err("a lost lock");
    assert_eq!(err.code(), "E_LOCK_LOST");
}

/// Checks that a dropped guard releases the lock.
pub fn a_dropped_guard_frees_the_lock(fixture: &impl Fixture) {
    let locks = locks(fixture);
    let (one, two) = (lock(&locks, None), lock(&locks, None));
    {
        let _held = one.guard().expect("a free lock");
        assert_taken(&two);
    }
    let held = two.try_guard().expect("a free lock");
    drop(held);
    // `leave` drops the guard without a release.
    one.try_guard().expect("a free lock").leave();
    assert_taken(&two);
    one.release().expect("my lock");
}

/// Checks that a leaked guard blocks its name until the ttl has passed, if the store's records expire.
pub fn a_leaked_guard_blocks_the_lock_until_its_ttl_has_passed(fixture: &impl Fixture) {
    let (here, there) = (locks(fixture), locks(fixture));
    let (one, two) = (lock(&here, fixture.ttl()), lock(&there, fixture.ttl()));
    mem::forget(one.guard().expect("a free lock"));
    fixture.pass(fixture.ttl() / 2);
    assert_taken(&two);
    fixture.pass(fixture.ttl() / 2);
    let expires = capabilities(fixture).expires;
    assert_eq!(two.try_acquire().is_ok(), expires);
}

fn capabilities(fixture: &impl Fixture) -> Capabilities {
    fixture.client().capabilities()
}

/// A store that sends a message for each refused acquire request.
#[derive(Clone, Debug)]
struct Watched<S> {
    store: S,
    refusals: mpsc::Sender<()>,
}

impl<S: Store> StoreWrapper for Watched<S> {
    type Inner = S;

    fn inner(&self) -> &S {
        &self.store
    }

    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let reply = self.store.acquire(claim);
        if matches!(reply, Ok(Acquired::Busy { .. })) {
            // Only the first is received.
            let _ = self.refusals.send(());
        }
        reply
    }
}
