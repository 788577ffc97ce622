//! Locks as they are used, blocking and awaited: by hand, by `run`, with a retry policy, handed
//! over, extended, and in several stores; and what is said when something goes wrong.

mod common;

use std::error::Error as _;
use std::future::Future;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use common::Polled;
use common::script::ms;
use pollster::block_on;
use verrou::conformance::TestClock;
use verrou::nonblocking::Inline;
use verrou::{
    Abilities, Claim, Error, Fence, Health, Holder, InvalidName, InvalidRetry,
    InvalidSerializedLock, InvalidTtl, Locks, Loss, MemoryStore, Name, Reply, Retry, RunError,
    SerializedLock, Store, StoreError, Ttl, blocking, nonblocking,
};

type Memory = Arc<MemoryStore<TestClock>>;

/// One store, and factories of both colours that share it.
struct World {
    clock: TestClock,
    memory: Memory,
    blocking: blocking::LockFactory<Polled<Memory>, TestClock>,
    awaited: nonblocking::LockFactory<Memory, TestClock>,
}

fn world() -> World {
    let clock = TestClock::still();
    let memory = Arc::new(MemoryStore::new(clock.clone()));
    World {
        blocking: blocking::LockFactory::new(Polled(Arc::clone(&memory)), clock.clone()),
        awaited: nonblocking::LockFactory::new(Arc::clone(&memory), clock.clone()),
        clock,
        memory,
    }
}

/// How the documentation retries.
fn five_times() -> Retry {
    Retry::default()
        .attempts(5)
        .and_then(|retry| retry.delay(ms(100)))
        .expect("a policy")
        .timeout(ms(1000))
}

#[test]
fn by_hand() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", None)?;
    lock.acquire()?;
    assert!(lock.is_held()?);
    lock.release()?;
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn by_hand_awaited() -> Result<(), Error> {
    let World { awaited, .. } = world();
    block_on(async {
        let lock = awaited.create_lock("my-resource", None)?;
        lock.acquire().await?;
        assert!(lock.is_held().await?);
        lock.release().await?;
        assert!(!lock.is_locked().await?);
        Ok(())
    })
}

#[test]
fn by_a_guard_that_an_early_return_drops() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    let work = || -> Result<(), Error> {
        let _held = lock.guard()?;
        assert!(lock.is_held()?);
        Name::new("").map_err(Error::from)?;
        unreachable!("an empty name is none");
    };
    assert_eq!(work().map_err(|err| err.code()), Err("E_INVALID_NAME"));
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn by_run() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    let answer = lock.run(|held| {
        assert_eq!(held.fence(), Some(Fence::FIRST));
        assert_eq!(held.remaining(), Some(ms(2000)));
        6 * 7
    });
    assert_eq!(answer.ok(), Some(42));
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn by_run_awaited() -> Result<(), Error> {
    let World { awaited, .. } = world();
    block_on(async {
        let lock = awaited.create_lock("my-resource", "2s")?;
        let answer = lock
            .run(async |held| {
                assert_eq!(held.fence(), Some(Fence::FIRST));
                assert_eq!(held.remaining(), Some(ms(2000)));
                6 * 7
            })
            .await;
        assert_eq!(answer.ok(), Some(42));
        assert!(!lock.is_locked().await?);
        Ok(())
    })
}

#[test]
fn a_retry_policy_limits_the_wait() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let (one, two) = (
        blocking.create_lock("my-resource", "20s")?,
        blocking.create_lock("my-resource", "2s")?,
    );
    one.acquire()?;
    let err = two.acquire_with(&five_times()).expect_err("a held lock");
    assert!(matches!(err, Error::Timeout { attempts: 5, .. }), "{err}");
    assert_eq!(clock.elapsed(), ms(400));
    let timeout = Retry::default().timeout(ms(1000));
    let ran = two.run_with(&timeout, |_| ());
    let Err(RunError::NotAcquired(Error::Timeout { attempts: 5, name })) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!(name.as_str(), "my-resource");
    assert_eq!(clock.elapsed(), ms(1400));
    // A factory's policy is its locks'.
    let impatient = blocking
        .retry(five_times())
        .create_lock("my-resource", "1s")?;
    assert!(matches!(
        impatient.acquire(),
        Err(Error::Timeout { attempts: 5, .. })
    ));
    one.release()?;
    impatient.acquire()?;
    Ok(())
}

#[test]
fn a_retry_policy_limits_the_wait_awaited() -> Result<(), Error> {
    let World { clock, awaited, .. } = world();
    block_on(async {
        let (one, two) = (
            awaited.create_lock("my-resource", "20s")?,
            awaited.create_lock("my-resource", "2s")?,
        );
        one.acquire().await?;
        let err = two.acquire_with(&five_times()).await;
        let err = err.expect_err("a held lock");
        assert!(matches!(err, Error::Timeout { attempts: 5, .. }), "{err}");
        assert_eq!(clock.elapsed(), ms(400));
        let timeout = Retry::default().timeout(ms(1000));
        let ran = two.run_with(&timeout, async |_| ()).await;
        let Err(RunError::NotAcquired(Error::Timeout { attempts: 5, name })) = ran else {
            panic!("{ran:?}");
        };
        assert_eq!(name.as_str(), "my-resource");
        assert_eq!(clock.elapsed(), ms(1400));
        let ran = two.try_run(async |_| ()).await;
        assert!(matches!(ran, Err(RunError::NotAcquired(_))));
        assert!(two.try_acquire().await.is_err());
        assert_eq!(clock.elapsed(), ms(1400));
        Ok(())
    })
}

#[test]
fn waiting_ends_when_the_lease_does() -> Result<(), Error> {
    let World {
        clock,
        blocking,
        awaited,
        ..
    } = world();
    let hour = Retry::default()
        .delay(Duration::from_hours(1))
        .expect("a delay");
    blocking.create_lock("my-resource", "2s")?.acquire()?;
    let next = awaited.create_lock("my-resource", "3s")?;
    let lease = block_on(next.acquire_with(&hour))?;
    assert_eq!(clock.elapsed(), ms(2000));
    assert_eq!(lease.fence(), Fence::new(2));
    blocking
        .create_lock("my-resource", "3s")?
        .acquire_with(&hour)?;
    assert_eq!(clock.elapsed(), ms(5000));
    Ok(())
}

#[test]
fn only_the_lock_that_acquired_can_release() -> Result<(), Error> {
    let World {
        blocking, awaited, ..
    } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    lock.acquire()?;
    let second = blocking.create_lock("my-resource", "2s")?;
    let third = awaited.create_lock("my-resource", "2s")?;
    for end in [second.release(), block_on(third.release())] {
        assert_eq!(end.map_err(|err| err.code()), Err("E_LOCK_NOT_OWNER"));
    }
    assert!(lock.is_held()?);
    block_on(third.force_release())?;
    assert!(!second.is_locked()?);
    assert!(matches!(lock.release(), Err(Error::NotOwner { .. })));
    Ok(())
}

#[test]
fn a_lock_is_handed_over_as_text() -> Result<(), Error> {
    let World {
        clock,
        blocking,
        awaited,
        ..
    } = world();
    // A blocking program takes it, ...
    let lock = blocking.create_lock("my-resource", "2s")?;
    let lease = lock.acquire()?;
    clock.advance(ms(500));
    let text = lock.serialize()?.to_string();
    // ... a worker that awaits finishes the work.
    let restored = awaited.restore_lock(&text.parse()?);
    assert_eq!(restored.remaining(), Some(ms(1500)));
    assert_eq!(restored.name(), lock.name());
    assert_eq!(restored.ttl(), lock.ttl());
    assert_eq!(
        restored.lease().map(|lease| lease.owner()),
        Some(lease.owner())
    );
    block_on(async {
        assert!(restored.is_held().await?);
        restored.extend(None).await?;
        assert_eq!(restored.remaining(), Some(ms(2000)));
        let again = restored.serialize().await?;
        assert_eq!(again.fence(), lease.fence());
        restored.release().await
    })?;
    assert!(matches!(lock.release(), Err(Error::NotOwner { .. })));
    assert!(matches!(lock.serialize(), Err(Error::NotOwner { .. })));
    Ok(())
}

#[test]
fn a_lock_is_handed_over_too_late() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    lock.acquire()?;
    let serialized = lock.serialize()?;
    clock.advance(ms(2000));
    let restored = blocking.restore_lock(&serialized);
    assert!(restored.is_expired());
    assert!(matches!(restored.extend(None), Err(Error::NotOwner { .. })));
    assert!(matches!(restored.release(), Err(Error::NotOwner { .. })));
    // It is a lock like any other, and can be acquired again.
    restored.acquire()?;
    assert_eq!(restored.remaining(), Some(ms(2000)));
    Ok(())
}

#[test]
fn a_description_outlives_nothing() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    let held = lock.guard()?;
    let described = held.describe();
    assert_eq!(described.owner(), held.lease().owner());
    assert!(blocking.restore_lock(&described).is_held()?);
    assert!(held.lease().claim().ephemeral);
    lock.serialize()?;
    assert!(!held.lease().claim().ephemeral);
    Ok(())
}

#[test]
fn a_lease_is_extended() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let lock = blocking.create_lock("my-resource", "10s")?;
    assert_eq!((lock.is_expired(), lock.remaining()), (false, None));
    lock.acquire()?;
    clock.advance(ms(4000));
    assert_eq!(lock.remaining(), Some(ms(6000)));
    lock.extend(None)?;
    assert_eq!(lock.remaining(), Some(ms(10_000)));
    lock.extend(Some("5s".parse()?))?;
    assert_eq!(lock.remaining(), Some(ms(5000)));
    lock.extend(Some(Ttl::NEVER))?;
    clock.advance(ms(60_000));
    assert_eq!((lock.is_expired(), lock.remaining()), (false, None));
    lock.extend(None)?;
    clock.advance(ms(10_000));
    assert!(lock.is_expired());
    assert_eq!(lock.remaining(), Some(Duration::ZERO));
    assert!(matches!(lock.extend(None), Err(Error::NotOwner { .. })));
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn a_lease_is_extended_awaited() -> Result<(), Error> {
    let World { clock, awaited, .. } = world();
    block_on(async {
        let lock = awaited.create_lock("my-resource", "10s")?;
        assert!(matches!(
            lock.extend(None).await,
            Err(Error::NotOwner { .. })
        ));
        let ran = lock.run(async |held| {
            clock.advance(ms(4000));
            held.extend(None).await?;
            assert_eq!(held.remaining(), Some(ms(10_000)));
            lock.extend(Some("5s".parse()?)).await?;
            assert_eq!(held.remaining(), Some(ms(5000)));
            clock.advance(ms(5000));
            assert!(held.is_expired() && lock.is_expired());
            held.extend(None).await
        });
        let Err(RunError::Ended { value, error }) = ran.await else {
            panic!("a lease that ran out");
        };
        assert!(matches!(value, Err(Error::NotOwner { .. })));
        let loss = Loss::Expired;
        assert!(matches!(error, Error::Lost { loss: why, .. } if why == loss));
        Ok(())
    })
}

#[test]
fn a_lease_is_kept_alive() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let (lock, other) = (
        blocking.create_lock("my-resource", "3s")?,
        blocking.create_lock("my-resource", "3s")?,
    );
    let held = lock.guard()?;
    let mut health = Vec::new();
    let kept = held.keep(|machine, at_most| {
        health.push(matches!(machine.health(), Health::Renewed));
        clock.advance(at_most);
        if clock.elapsed() < ms(10_000) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break("done")
        }
    })?;
    assert_eq!(kept, "done");
    assert_eq!(health, [[false].as_slice(), &[true; 9]].concat());
    assert!(other.try_acquire().is_err());
    // The guard knows of the extensions.
    assert_eq!(held.remaining(), Some(ms(2000)));
    other.force_release()?;
    let lost = held.keep(|_, at_most| -> ControlFlow<()> {
        clock.advance(at_most);
        ControlFlow::Continue(())
    });
    let revoked = Loss::Revoked;
    assert!(matches!(lost, Err(Error::Lost { loss, .. }) if loss == revoked));
    Ok(())
}

#[test]
fn a_lease_is_kept_alive_awaited() -> Result<(), Error> {
    let World {
        clock,
        awaited,
        blocking,
        ..
    } = world();
    block_on(async {
        let lock = awaited.create_lock("my-resource", "3s")?;
        let ran = lock.run(async |held| {
            let work = async {
                while clock.elapsed() < ms(10_000) {
                    yield_now().await;
                }
                "done"
            };
            assert_eq!(held.keep(work).await?, "done");
            assert!(held.remaining().is_some_and(|left| left >= ms(2000)));
            blocking.create_lock("my-resource", "3s")?.force_release()?;
            held.keep(std::future::pending::<()>()).await
        });
        let Err(RunError::Ended { value, error }) = ran.await else {
            panic!("a lease that was revoked");
        };
        let loss = Loss::Revoked;
        for err in [value.expect_err("a lost lock"), error] {
            assert!(matches!(err, Error::Lost { loss: why, .. } if why == loss));
        }
        Ok(())
    })
}

async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

#[test]
fn a_program_can_have_several_stores() -> Result<(), Error> {
    type AnyStore = Arc<dyn Store + Send + Sync>;
    let clock = TestClock::still();
    let factory = || {
        let memory = Arc::new(MemoryStore::new(clock.clone()));
        blocking::LockFactory::new(memory as AnyStore, clock.clone())
    };
    let locks = Locks::new("memory", [("memory", factory()), ("other", factory())])?;
    let lock = locks.create_lock("my-resource", "1s")?;
    lock.acquire()?;
    for (store, taken) in [("memory", true), ("other", false)] {
        let lock = locks.using(store)?.create_lock("my-resource", "1s")?;
        assert_eq!(lock.is_locked()?, taken, "{store}");
    }
    let restored = locks.restore_lock(&lock.serialize()?);
    restored.release()?;
    assert!(!lock.is_locked()?);
    let unknown = |end: Result<(), Error>| match end {
        Err(Error::UnknownStore { store }) => assert_eq!(store, "redis"),
        other => panic!("{other:?}"),
    };
    unknown(locks.using("redis").map(|_| ()));
    unknown(Locks::new("redis", [("memory", factory())]).map(|_| ()));
    Ok(())
}

#[test]
fn a_program_can_have_several_stores_awaited() -> Result<(), Error> {
    let (here, there) = (world(), world());
    let locks = Locks::new(
        "here",
        [
            ("here", here.awaited.clone()),
            ("there", there.awaited.clone()),
        ],
    )?;
    block_on(async {
        let lock = locks.create_lock("my-resource", "1s")?;
        lock.acquire().await?;
        assert!(
            here.blocking
                .create_lock("my-resource", "1s")?
                .is_locked()?
        );
        assert!(
            !there
                .blocking
                .create_lock("my-resource", "1s")?
                .is_locked()?
        );
        locks.restore_lock(&lock.serialize().await?).release().await
    })
}

#[test]
fn bad_names_and_ttls_are_refused_before_anything_is_asked() {
    let World {
        blocking, awaited, ..
    } = world();
    let code = |end: Result<(), Error>| end.map_err(|err| err.code());
    let long = "x".repeat(Name::MAX_BYTES + 1);
    for name in ["", &long] {
        let made = blocking.create_lock(name, "1s").map(|_| ());
        assert_eq!(code(made), Err("E_INVALID_NAME"));
        let made = awaited.create_lock(name, "1s").map(|_| ());
        assert_eq!(code(made), Err("E_INVALID_NAME"));
    }
    for ttl in ["0", "-1s", "soon", "300y"] {
        let made = blocking.create_lock("lock", ttl).map(|_| ());
        assert_eq!(code(made), Err("E_INVALID_TTL"), "{ttl}");
        let made = awaited.create_lock("lock", ttl).map(|_| ());
        assert_eq!(code(made), Err("E_INVALID_TTL"), "{ttl}");
    }
    let made = blocking.create_lock("lock", Duration::ZERO).map(|_| ());
    assert_eq!(code(made), Err("E_INVALID_TTL"));
}

/// A store that can be made to fail.
#[derive(Clone)]
struct Fragile {
    store: Polled<Memory>,
    fails: Arc<AtomicBool>,
}

impl Fragile {
    fn ok<T>(&self, reply: Result<T, StoreError>) -> Result<T, StoreError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(StoreError::permanent("the disk is on fire"));
        }
        reply
    }
}

impl Store for Fragile {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.ok(Ok(Reply::REFUSED))?;
        self.store.acquire(claim)
    }
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.ok(Ok(Reply::REFUSED))?;
        self.store.extend(claim)
    }
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.ok(Ok(Reply::REFUSED))?;
        self.store.release(claim)
    }
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        self.ok(Ok(Reply::REFUSED))?;
        self.store.evict(name, only)
    }
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        self.ok(self.store.inspect(name))
    }
    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.ok(Ok(Reply::REFUSED))?;
        self.store.detach(claim)
    }
    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
}

fn fragile() -> (TestClock, Fragile) {
    let World { clock, memory, .. } = world();
    let store = Fragile {
        store: Polled(memory),
        fails: Arc::default(),
    };
    (clock, store)
}

#[track_caller]
fn assert_storage<T: std::fmt::Debug>(end: Result<T, Error>) {
    let err = end.expect_err("a failing store");
    assert_eq!(err.code(), "E_LOCK_STORAGE_ERROR");
    assert!(!err.is_temporary());
    let source = err.source().expect("what the store said");
    assert_eq!(source.to_string(), "the disk is on fire");
}

#[test]
fn a_failing_store_is_told_and_leaves_things_as_they_were() -> Result<(), Error> {
    let (clock, store) = fragile();
    let fail = |fails| store.fails.store(fails, Ordering::Relaxed);
    let locks = blocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("my-resource", "10s")?;
    fail(true);
    assert_storage(lock.acquire());
    assert_eq!(lock.lease(), None);
    fail(false);
    let lease = lock.acquire()?;
    clock.advance(ms(1000));
    fail(true);
    assert_storage(lock.extend(None));
    assert_storage(lock.serialize());
    assert_storage(lock.is_locked());
    assert_storage(lock.is_held());
    assert_storage(lock.force_release());
    assert_storage(lock.release());
    assert_eq!(lock.lease(), Some(lease));
    assert_eq!(lock.remaining(), Some(ms(9000)));
    fail(false);
    // It can be tried again.
    lock.release()?;
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn run_keeps_the_result_and_the_failure_to_release() -> Result<(), Error> {
    let (clock, store) = fragile();
    let fail = |fails| store.fails.store(fails, Ordering::Relaxed);
    let locks = blocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("my-resource", "10s")?;
    let ran = lock.run(|_| {
        fail(true);
        Err::<(), _>("the work failed, too")
    });
    let Err(RunError::Ended { value, error }) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!(value, Err("the work failed, too"));
    assert_storage(Err::<(), _>(error));
    let ran = lock.run(|_| "not run");
    let Err(RunError::NotAcquired(error)) = ran else {
        panic!("{ran:?}");
    };
    assert_storage(Err::<(), _>(error));

    fail(false);
    clock.advance(ms(10_000));
    let locks = nonblocking::LockFactory::new(Inline(store.clone()), clock.clone());
    let lock = locks.create_lock("my-resource", "10s")?;
    let ran = block_on(lock.run(async |_| {
        fail(true);
        "done"
    }));
    let Err(RunError::Ended { value, error }) = ran else {
        panic!("{ran:?}");
    };
    assert_eq!(value, "done");
    assert_storage(Err::<(), _>(error));
    Ok(())
}

/// The way to the store took time: its record lasts longer than its holder may count on.
#[test]
fn a_lease_that_is_over_for_its_holder_is_not_extended() -> Result<(), Error> {
    let World { clock, memory, .. } = world();
    let far = Far(memory, clock.clone());
    let locks = blocking::LockFactory::new(far, clock.clone());
    let lock = locks.create_lock("my-resource", "2s")?;
    lock.acquire()?;
    assert_eq!(lock.remaining(), Some(ms(1500)));
    clock.advance(ms(1500));
    assert!(lock.is_held()?, "the store would extend it");
    assert!(matches!(lock.extend(None), Err(Error::NotOwner { .. })));
    assert!(lock.is_expired());
    lock.release()
}

/// A store that is half a second away.
#[derive(Clone)]
struct Far(Memory, TestClock);

impl Store for Far {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.1.advance(ms(500));
        Store::acquire(&self.0, claim)
    }
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.1.advance(ms(500));
        Store::extend(&self.0, claim)
    }
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Store::release(&self.0, claim)
    }
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        Store::evict(&self.0, name, only)
    }
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        Store::inspect(&self.0, name)
    }
    fn abilities(&self) -> Abilities {
        Store::abilities(&self.0)
    }
}

/// Polls it so many times; whether it came to its end.
fn poll_times<T>(future: impl Future<Output = T>, times: usize) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..times).any(|_| future.as_mut().poll(&mut context).is_ready())
}

#[test]
fn an_acquisition_that_is_dropped_while_it_waits_leaves_nothing() -> Result<(), Error> {
    for times in 0..8 {
        for freed_first in [false, true] {
            let World { awaited, .. } = world();
            let (one, two, three) = (
                awaited.create_lock("my-resource", None)?,
                awaited.create_lock("my-resource", None)?,
                awaited.create_lock("my-resource", None)?,
            );
            block_on(one.acquire())?;
            {
                let mut waiting = pin!(two.acquire());
                assert!(!poll_times(waiting.as_mut(), times));
                if freed_first {
                    // Its turn has come, and it never takes it.
                    block_on(one.release())?;
                }
            }
            if !freed_first {
                block_on(one.release())?;
            }
            block_on(three.try_acquire())?;
            assert!(block_on(two.release()).is_err());
            assert!(block_on(three.is_held())?);
        }
    }
    Ok(())
}

#[test]
fn an_acquisition_that_is_dropped_while_the_store_is_asked_leaves_its_ttl_at_most()
-> Result<(), Error> {
    let mut ended = false;
    let mut in_doubt = 0;
    for times in 0..8 {
        let World {
            clock,
            memory,
            awaited,
            ..
        } = world();
        let slow = Arc::new(slow::Slow(Arc::clone(&memory)));
        let locks = nonblocking::LockFactory::new(slow, clock.clone());
        let lock = locks.create_lock("my-resource", "2s")?;
        ended = poll_times(lock.acquire(), times);
        let next = awaited.create_lock("my-resource", "2s")?;
        if block_on(next.try_acquire()).is_err() {
            in_doubt += usize::from(!ended);
            clock.advance(ms(2000));
            block_on(next.try_acquire())?;
        }
        assert!(block_on(next.is_held())?);
    }
    assert!(ended, "it comes to its end when polled often enough");
    assert!(
        in_doubt > 0,
        "it was dropped between its grant and the reply"
    );
    Ok(())
}

mod slow {
    //! A store whose steps have something to wait for before and after.

    use verrou::AsyncStore;

    use super::*;

    pub(crate) struct Slow(pub(crate) Memory);

    impl AsyncStore for Slow {
        async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
            yield_now().await;
            let reply = Store::acquire(&self.0, claim);
            yield_now().await;
            reply
        }
        async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
            Store::extend(&self.0, claim)
        }
        async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
            Store::release(&self.0, claim)
        }
        async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
            Store::evict(&self.0, name, only)
        }
        async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
            Store::inspect(&self.0, name)
        }
        fn abilities(&self) -> Abilities {
            Store::abilities(&self.0)
        }
    }
}

mod crowd {
    //! Many who wait, and whom only the store can wake.

    use std::sync::mpsc;
    use std::thread;

    use verrou::nonblocking::AsyncHost;
    use verrou::{Clock, Timestamp};

    use super::*;

    /// A host whose sleep does not end.
    #[derive(Clone)]
    struct Sleeper(TestClock);

    impl Clock for Sleeper {
        fn now(&self) -> Timestamp {
            self.0.now()
        }
    }

    impl AsyncHost for Sleeper {
        fn sleep(&self, _: Duration) -> impl Future<Output = ()> {
            std::future::pending()
        }
        fn random(&self) -> [u8; 16] {
            AsyncHost::random(&self.0)
        }
        fn wall_clock(&self) -> Duration {
            AsyncHost::wall_clock(&self.0)
        }
    }

    #[test]
    fn a_release_wakes_whoever_is_next() {
        const TASKS: usize = 16;
        let World { clock, memory, .. } = world();
        let locks = nonblocking::LockFactory::new(memory, Sleeper(clock));
        let (done, dones) = mpsc::channel();
        for _ in 0..TASKS {
            let (locks, done) = (locks.clone(), done.clone());
            // Not joined: a waiter that is never woken would hang the test instead of failing it.
            thread::spawn(move || {
                let lock = locks.create_lock("my-resource", None).expect("a name");
                for _ in 0..10 {
                    block_on(lock.run(async |_| yield_now().await)).expect("a body that ran");
                }
                done.send(()).expect("somebody who counts");
            });
        }
        for task in 0..TASKS {
            let woken = dones.recv_timeout(Duration::from_mins(1));
            assert!(woken.is_ok(), "only {task} of {TASKS} tasks were woken");
        }
    }
}

#[test]
fn codes_are_the_same_for_ever() {
    let name = || Name::new("lock").expect("a name");
    let loss = Loss::Expired;
    let codes = [
        (Error::from(InvalidName::Empty), "E_INVALID_NAME"),
        (InvalidRetry::NoAttempts.into(), "E_INVALID_RETRY"),
        (
            InvalidSerializedLock::ZeroFence.into(),
            "E_INVALID_SERIALIZED_LOCK",
        ),
        (InvalidTtl::Zero.into(), "E_INVALID_TTL"),
        (Error::Lost { name: name(), loss }, "E_LOCK_LOST"),
        (Error::NotOwner { name: name() }, "E_LOCK_NOT_OWNER"),
        (
            Error::NotSerializable { name: name() },
            "E_LOCK_NOT_SERIALIZABLE",
        ),
        (
            StoreError::temporary("in trouble").into(),
            "E_LOCK_STORAGE_ERROR",
        ),
        (
            Error::Timeout {
                attempts: 1,
                name: name(),
            },
            "E_LOCK_TIMEOUT",
        ),
        (
            Error::UnknownStore {
                store: "redis".into(),
            },
            "E_INVALID_STORE",
        ),
    ];
    for (error, code) in codes {
        assert_eq!(error.code(), code);
        let again = matches!(error, Error::Timeout { .. } | Error::Storage(_));
        assert_eq!(error.is_temporary(), again, "{code}");
        let text = error.to_string();
        assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
    }
    let retry = [
        Retry::default().attempts(0),
        Retry::default().delay(Duration::ZERO),
        Retry::default().backoff(verrou::Backoff::Jittered {
            first: ms(2),
            cap: ms(1),
        }),
    ]
    .map(|made| made.expect_err("no policy"));
    assert_eq!(
        retry,
        [
            InvalidRetry::NoAttempts,
            InvalidRetry::NoDelay,
            InvalidRetry::CapBelowFirst
        ]
    );
}

/// A serialized lock of another program, as it comes over a queue.
#[test]
fn a_damaged_text_is_told_apart() {
    let end: Result<SerializedLock, Error> = "{}".parse::<SerializedLock>().map_err(Error::from);
    let err = end.expect_err("no lock");
    assert_eq!(err.code(), "E_INVALID_SERIALIZED_LOCK");
    assert!(err.source().is_some());
}
