//! Blocking and async locks in use: acquired and released directly, by a guard or by `run`, with a retry
//! policy, transferred, extended, and in several stores.

mod common;

use std::future::{self, Future};
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use common::script::ms;
use common::world::{Memory, World, world};
use common::yield_now;
use pollster::block_on;
use verrou::blocking::Cancellation;
use verrou::conformance::TestClock;
use verrou::nonblocking::AsyncHost;
use verrou::{
    Acquired, Claim, Clock, Error, Fence, Health, Locks, Loss, MemoryStore, Name, Renewed, Retry,
    RunError, Store, StoreError, StoreWrapper, Timestamp, Ttl, blocking, nonblocking,
};

/// Returns the retry policy of the documentation's examples.
fn five_times() -> Retry {
    Retry::default()
        .attempts(5)
        .and_then(|retry| retry.delay(ms(100)))
        .expect("a policy")
        .timeout(ms(1000))
}

#[test]
fn acquire_and_release() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", None)?;
    lock.acquire()?;
    assert!(lock.is_held()?);
    lock.release()?;
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn acquire_and_release_async() -> Result<(), Error> {
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
fn guard_dropped_by_an_early_return_releases() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    let work = || -> Result<(), Error> {
        let _held = lock.guard()?;
        assert!(lock.is_held()?);
        Name::new("").map_err(Error::from)?;
        unreachable!("an empty name is invalid");
    };
    assert_eq!(work().map_err(|err| err.code()), Err("E_INVALID_NAME"));
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn run_holds_and_releases() -> Result<(), Error> {
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
fn run_holds_and_releases_async() -> Result<(), Error> {
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
    // A factory's policy is the default of its locks.
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
fn a_retry_policy_limits_the_wait_async() -> Result<(), Error> {
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
fn waiting_ends_when_the_lease_expires() -> Result<(), Error> {
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
    block_on(third.force_release(None))?;
    assert!(!second.is_locked()?);
    assert!(matches!(lock.release(), Err(Error::NotOwner { .. })));
    Ok(())
}

#[test]
fn force_release_removes_the_lease_that_it_ends() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let (lock, other) = (
        blocking.create_lock("my-resource", None)?,
        blocking.create_lock("my-resource", None)?,
    );
    lock.acquire()?;
    let fence = lock.lease().and_then(|lease| lease.fence());
    assert!(lock.force_release(fence)?);
    assert_eq!(lock.lease(), None);
    // There is no holder any more, so this lock has no lease either.
    lock.acquire()?;
    assert!(other.force_release(None)?);
    assert!(!lock.force_release(None)?);
    assert_eq!(lock.lease(), None);
    // The lock is held under another fencing token.
    lock.acquire()?;
    assert!(!lock.force_release(fence)?);
    assert!(lock.lease().is_some());
    Ok(())
}

#[test]
fn lock_is_transferred_as_text() -> Result<(), Error> {
    let World {
        clock,
        blocking,
        awaited,
        ..
    } = world();
    // A blocking program acquires the lock.
    let lock = blocking.create_lock("my-resource", "2s")?;
    let lease = lock.acquire()?;
    clock.advance(ms(500));
    let text = lock.serialize()?.to_string();
    // An async worker takes the lease over and completes the work.
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
        restored.extend(restored.ttl()).await?;
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
fn lock_transferred_after_expiry_is_not_owned() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    lock.acquire()?;
    let serialized = lock.serialize()?;
    clock.advance(ms(2000));
    let restored = blocking.restore_lock(&serialized);
    assert!(restored.is_expired());
    assert!(matches!(
        restored.extend(restored.ttl()),
        Err(Error::NotOwner { .. })
    ));
    assert!(matches!(restored.release(), Err(Error::NotOwner { .. })));
    // The restored lock can be acquired again, like any other.
    restored.acquire()?;
    assert_eq!(restored.remaining(), Some(ms(2000)));
    Ok(())
}

#[test]
fn detached_lease_no_longer_ends_with_its_client() -> Result<(), Error> {
    let World {
        blocking, awaited, ..
    } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    assert!(matches!(lock.detach(), Err(Error::NotOwner { .. })));
    lock.acquire()?;
    lock.detach()?;
    assert!(!lock.lease().expect("a lease").claim().ephemeral);
    lock.release()?;

    let lock = awaited.create_lock("my-resource", "2s")?;
    block_on(lock.acquire())?;
    block_on(lock.detach())?;
    assert!(!lock.lease().expect("a lease").claim().ephemeral);
    Ok(())
}

#[test]
fn describe_does_not_detach() -> Result<(), Error> {
    let World { blocking, .. } = world();
    let lock = blocking.create_lock("my-resource", "2s")?;
    let held = lock.guard()?;
    let described = held.to_serialized();
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
    lock.extend(lock.ttl())?;
    assert_eq!(lock.remaining(), Some(ms(10_000)));
    lock.extend("5s")?;
    assert_eq!(lock.remaining(), Some(ms(5000)));
    lock.extend(Ttl::NEVER)?;
    clock.advance(ms(60_000));
    assert_eq!((lock.is_expired(), lock.remaining()), (false, None));
    lock.extend(lock.ttl())?;
    clock.advance(ms(10_000));
    assert!(lock.is_expired());
    assert_eq!(lock.remaining(), Some(Duration::ZERO));
    assert!(matches!(
        lock.extend(lock.ttl()),
        Err(Error::NotOwner { .. })
    ));
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn a_lease_is_extended_async() -> Result<(), Error> {
    let World { clock, awaited, .. } = world();
    block_on(async {
        let lock = awaited.create_lock("my-resource", "10s")?;
        assert!(matches!(
            lock.extend(lock.ttl()).await,
            Err(Error::NotOwner { .. })
        ));
        let ran = lock.run(async |held| {
            clock.advance(ms(4000));
            held.extend(held.ttl()).await?;
            assert_eq!(held.remaining(), Some(ms(10_000)));
            lock.extend("5s").await?;
            assert_eq!(held.remaining(), Some(ms(5000)));
            clock.advance(ms(5000));
            assert!(held.is_expired() && lock.is_expired());
            held.extend(held.ttl()).await
        });
        let Err(RunError::Ended { value, error }) = ran.await else {
            panic!("a lease that expired");
        };
        assert!(matches!(value, Err(Error::NotOwner { .. })));
        let loss = Loss::Expired;
        assert!(matches!(error, Error::Lost { loss: why, .. } if why == loss));
        Ok(())
    })
}

#[test]
fn auto_renewal_keeps_the_lease_until_a_force_release() -> Result<(), Error> {
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
    // The guard has recorded the renewals.
    assert_eq!(held.remaining(), Some(ms(2000)));
    other.force_release(None)?;
    let lost = held.keep(|_, at_most| -> ControlFlow<()> {
        clock.advance(at_most);
        ControlFlow::Continue(())
    });
    let revoked = Loss::Revoked;
    assert!(matches!(lost, Err(Error::Lost { loss, .. }) if loss == revoked));
    // The guard has recorded the loss.
    assert_eq!(held.remaining(), Some(Duration::ZERO));
    Ok(())
}

#[test]
fn auto_renewal_keeps_the_lease_until_a_force_release_async() -> Result<(), Error> {
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
            blocking
                .create_lock("my-resource", "3s")?
                .force_release(None)?;
            let lost = held.keep(future::pending::<()>()).await;
            assert_eq!(held.remaining(), Some(Duration::ZERO));
            lost
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

/// The machine was suspended for longer than the ttl, and no other process requested the lock.
#[test]
fn renewed_lease_survives_a_suspension() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let (lock, other) = (
        blocking.create_lock("my-resource", "3s")?,
        blocking.create_lock("my-resource", "3s")?,
    );
    let held = lock.guard()?;
    let fence = held.fence();
    let mut pauses = 0;
    held.keep(|_, _| {
        pauses += 1;
        clock.advance(ms(60_000));
        assert!(held.is_expired(), "the lock protects nothing now");
        // The lease is taken back after each suspension, including the last.
        if pauses < 3 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    assert_eq!((held.fence(), held.remaining()), (fence, Some(ms(3000))));
    assert!(other.try_acquire().is_err());
    // An extension does not take an expired lease back.
    clock.advance(ms(60_000));
    assert!(matches!(
        held.extend(held.ttl()),
        Err(Error::NotOwner { .. })
    ));
    other.try_acquire()?;
    other.release()?;
    let lost = held.keep(|_, _| ControlFlow::Break(()));
    let expired = Loss::Expired;
    assert!(matches!(lost, Err(Error::Lost { loss, .. }) if loss == expired));
    Ok(())
}

#[test]
fn renewed_lease_survives_a_suspension_async() -> Result<(), Error> {
    let World { clock, awaited, .. } = world();
    block_on(async {
        let lock = awaited.create_lock("my-resource", "3s")?;
        let ran = lock.run(async |held| {
            let fence = held.fence();
            for _ in 0..3 {
                let work = async { clock.advance(ms(60_000)) };
                held.keep(work).await?;
                assert_eq!((held.fence(), held.remaining()), (fence, Some(ms(3000))));
            }
            Ok::<_, Error>(())
        });
        assert!(matches!(ran.await, Ok(Ok(()))));
        Ok(())
    })
}

/// A memory store whose next renewal takes `takes` milliseconds of the clock.
#[derive(Clone, Debug)]
struct Slow {
    memory: Memory,
    clock: TestClock,
    takes: Arc<AtomicU64>,
}

impl StoreWrapper for Slow {
    type Inner = Memory;
    fn inner(&self) -> &Memory {
        &self.memory
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let reply = Store::renew(&self.memory, claim, fence);
        let takes = self.takes.swap(0, Ordering::Relaxed);
        self.clock.advance(ms(takes));
        reply
    }
}

fn slow() -> (Slow, TestClock) {
    let World { clock, memory, .. } = world();
    let store = Slow {
        memory,
        clock: clock.clone(),
        takes: Arc::default(),
    };
    (store, clock)
}

/// The machine was suspended while the store answered the first renewal, and a second one followed.
#[test]
fn a_late_renewal_does_not_shorten_the_one_after_it() -> Result<(), Error> {
    let (store, clock) = slow();
    let locks = blocking::LockFactory::new(store.clone(), clock.clone());
    let lock = locks.create_lock("my-resource", "3s")?;
    let held = lock.guard()?;
    let mut pauses = 0;
    held.keep(|_, at_most| {
        pauses += 1;
        if pauses == 1 {
            store.takes.store(3000, Ordering::Relaxed);
            clock.advance(at_most);
            return ControlFlow::Continue(());
        }
        assert_eq!(clock.elapsed(), ms(4000));
        assert_eq!(
            (held.is_expired(), held.remaining()),
            (false, Some(ms(3000)))
        );
        ControlFlow::Break(())
    })?;
    held.release()
}

#[test]
fn a_late_renewal_does_not_shorten_the_one_after_it_async() -> Result<(), Error> {
    let (store, clock) = slow();
    let locks = nonblocking::LockFactory::new(nonblocking::Inline(store.clone()), clock.clone());
    block_on(async {
        let lock = locks.create_lock("my-resource", "3s")?;
        let ran = lock.run(async |held| {
            store.takes.store(3000, Ordering::Relaxed);
            let work = async {
                while clock.elapsed() < ms(4000) {
                    yield_now().await;
                }
                held.is_expired()
            };
            held.keep(work).await
        });
        assert!(matches!(ran.await, Ok(Ok(false))));
        Ok(())
    })
}

#[test]
fn owner_may_release_during_auto_renewal() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    for is_elsewhere in [false, true] {
        let lock = blocking.create_lock("my-resource", "3s")?;
        let other = blocking.create_lock("my-resource", "1h")?;
        let release = || {
            if is_elsewhere {
                blocking.restore_lock(&lock.serialize()?).release()
            } else {
                lock.release()
            }
        };
        let held = lock.guard()?;
        let mut pauses = 0;
        held.keep(|machine, at_most| {
            if pauses == 0 {
                release().expect("my lock");
                other.try_acquire().expect("a free lock");
            }
            pauses += 1;
            if matches!(machine.health(), Health::Released) {
                assert!(pauses < 5, "the release is detected in time");
                return ControlFlow::Break(());
            }
            clock.advance(at_most);
            ControlFlow::Continue(())
        })?;
        assert!(held.is_released());
        held.release()?;
        other.release()?;

        // The lease was not renewed.
        let ran = lock.run(|_| {
            release().expect("my lock");
            other.try_acquire().expect("a free lock");
        });
        assert!(ran.is_ok(), "{ran:?}");
        other.release()?;
        assert!(matches!(lock.release(), Err(Error::NotOwner { .. })));
    }
    Ok(())
}

#[test]
fn owner_may_release_during_auto_renewal_async() -> Result<(), Error> {
    let World { clock, awaited, .. } = world();
    block_on(async {
        for is_elsewhere in [false, true] {
            let lock = awaited.create_lock("my-resource", "3s")?;
            let ran = lock.run(async |held| {
                let work = async {
                    if is_elsewhere {
                        let text = lock.serialize().await?;
                        awaited.restore_lock(&text).release().await?;
                    } else {
                        lock.release().await?;
                    }
                    clock.advance(ms(60_000));
                    yield_now().await;
                    Ok::<_, Error>("done")
                };
                held.keep(work).await?
            });
            assert!(matches!(ran.await, Ok(Ok("done"))));
        }
        Ok(())
    })
}

/// A host whose sleeps never end.
#[derive(Clone)]
struct Sleepless(TestClock);

impl Clock for Sleepless {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

impl AsyncHost for Sleepless {
    fn sleep(&self, _: Duration) -> impl Future<Output = ()> {
        future::pending()
    }
    fn random(&self) -> [u8; 16] {
        AsyncHost::random(&self.0)
    }
    fn wall_clock(&self) -> Duration {
        AsyncHost::wall_clock(&self.0)
    }
}

/// The renewal of a lock ends with its release, which wakes it, and with its loss.
#[test]
fn keep_ends_with_the_lease_async() -> Result<(), Error> {
    let World {
        clock,
        memory,
        awaited,
        ..
    } = world();
    let factory = nonblocking::LockFactory::new(Arc::clone(&memory), Sleepless(clock));
    let lock = factory.create_lock("my-resource", "3s")?;
    let never = block_on(lock.keep());
    assert!(matches!(never, Err(Error::NotOwner { .. })), "{never:?}");
    block_on(lock.acquire())?;
    {
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        let mut kept = pin!(lock.keep());
        let mut context = Context::from_waker(&waker);
        assert!(kept.as_mut().poll(&mut context).is_pending());
        assert!(!woken.0.load(Ordering::Acquire));
        block_on(lock.release())?;
        assert!(woken.0.load(Ordering::Acquire));
        assert!(matches!(kept.poll(&mut context), Poll::Ready(Ok(()))));
    }

    let lock = awaited.create_lock("my-resource", "3s")?;
    block_on(lock.acquire())?;
    Store::force_release(&memory, lock.name(), None)?;
    let kept = block_on(lock.keep());
    assert!(matches!(kept, Err(Error::Lost { .. })), "{kept:?}");
    Ok(())
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

#[test]
fn renewal_does_not_shorten_a_longer_extension() -> Result<(), Error> {
    let World {
        clock, blocking, ..
    } = world();
    let lock = blocking.create_lock("my-resource", "3s")?;
    let held = lock.guard()?;
    let elsewhere = blocking.restore_lock(&held.to_serialized());
    elsewhere.extend("1h")?;
    let end = clock.elapsed() + Duration::from_hours(1);
    held.keep(|_, at_most| {
        clock.advance(at_most);
        if clock.elapsed() < ms(10_000) {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    })?;
    // The lease is no longer renewed.
    let left = end.saturating_sub(clock.elapsed());
    clock.advance(left.saturating_sub(ms(1)));
    assert!(lock.is_locked()?);
    clock.advance(ms(1));
    assert!(!lock.is_locked()?);
    Ok(())
}

#[test]
fn a_program_can_have_several_stores() -> Result<(), Error> {
    type SharedStore = Arc<dyn Store>;
    let clock = TestClock::still();
    let factory = || {
        let memory = Arc::new(MemoryStore::new(clock.clone()));
        blocking::LockFactory::new(memory as SharedStore, clock.clone())
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
fn a_program_can_have_several_stores_async() -> Result<(), Error> {
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
        assert!(lock.lease().is_some_and(|lease| lease.claim().ephemeral));
        let serialized = lock.serialize().await?;
        assert!(lock.lease().is_some_and(|lease| !lease.claim().ephemeral));
        locks.restore_lock(&serialized).release().await
    })
}

#[test]
fn clock_behind_a_pointer_has_the_same_time() {
    let clock = TestClock::still();
    let now = clock.now();
    assert_eq!(Clock::now(&Arc::new(clock)), now);
}

#[test]
fn invalid_names_and_ttls_are_rejected_without_a_request() {
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

/// A store that records the first claim, and then fails and cancels the wait.
#[derive(Debug)]
struct LosesReply {
    memory: Memory,
    cancellation: Cancellation,
}

impl StoreWrapper for LosesReply {
    type Inner = Memory;
    fn inner(&self) -> &Memory {
        &self.memory
    }
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        assert!(!self.cancellation.is_cancelled(), "no second attempt");
        self.cancellation.cancel();
        assert!(Store::acquire(&self.memory, claim)?.is_granted());
        Err(StoreError::temporary("the reply was lost"))
    }
}

#[test]
fn cancelled_wait_releases_a_lock_whose_grant_is_unknown() -> Result<(), Error> {
    let World { clock, memory, .. } = world();
    let cancellation = Cancellation::new();
    let store = LosesReply {
        memory: Arc::clone(&memory),
        cancellation: cancellation.clone(),
    };
    let locks = blocking::LockFactory::new(Arc::new(store), clock.clone());
    let lock = locks.create_lock("lock", "1h")?;
    assert!(
        lock.guard_or_cancel(&five_times(), &cancellation)?
            .is_none()
    );
    let held = blocking::LockFactory::new(memory, clock).create_lock("lock", "1h")?;
    assert!(!held.is_locked()?);
    Ok(())
}
