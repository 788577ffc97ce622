//! A lease that lasts as long as the work.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use verrou::blocking::{Held, Host};
use verrou::{Claim, Error, Health, Loss, RunError, Store, Waited};

use crate::sync::mpsc::{self, RecvTimeoutError, Sender};
use crate::sync::thread;

/// A watch for a loss that ends sooner is made this long.
const SHORTEST_WATCH: Duration = Duration::from_millis(1);

/// Keeps the lease of `held` alive, from a thread of its own, while `body` works.
///
/// Nobody can stop `body` from outside when the lock is lost meanwhile; it can ask
/// [`Held::is_expired`], and the resource it works on can refuse its [fence](Held::fence).
///
/// ```
/// use std::{thread, time::Duration};
/// use verrou::blocking::LockFactory;
/// use verrou_host::{LeaseFileStore, StoreOptions, System, keep_alive};
///
/// # let folder = tempfile::tempdir()?;
/// # let folder = folder.path();
/// let store = LeaseFileStore::open(folder, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "300ms")?;
/// let held = lock.guard()?;
/// keep_alive(&held, || thread::sleep(Duration::from_millis(700)))?;
/// held.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`RunError::Ended`], with what `body` returned, when the lock was lost before it did.
///
/// # Panics
///
/// When `body` does.
pub fn keep_alive<S, H, T>(
    held: &Held<'_, S, H>,
    body: impl FnOnce() -> T,
) -> Result<T, RunError<T>>
where
    S: Store + Sync,
    H: Host + Sync,
{
    let (working, done) = mpsc::channel::<()>();
    let (store, claim) = (held.store(), held.lease().claim().clone());
    // From now on no loss is missed, nor the end of the work.
    let tells = store.lost(&claim, Duration::ZERO) == Waited::Done;
    let watched = &claim;
    let kept = thread::scope(|scope| {
        let keeper = scope.spawn(move || {
            held.keep(|machine, at_most| {
                let mut pause = at_most;
                let began = Instant::now();
                let is_released = matches!(machine.health(), Health::Released);
                if tells && !is_released && store.lost(watched, at_most) == Waited::Done {
                    machine.suspect();
                    // A store that tells of losses all the time is not asked as often.
                    pause = if began.elapsed() < SHORTEST_WATCH {
                        SHORTEST_WATCH
                    } else {
                        Duration::ZERO
                    };
                }
                match done.recv_timeout(pause) {
                    Err(RecvTimeoutError::Timeout) => ControlFlow::Continue(()),
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => ControlFlow::Break(()),
                }
            })
        });
        let working = Working {
            _until_dropped: working,
            ended: Ended(store, watched),
        };
        let value = body();
        drop(working);
        match keeper.join() {
            // Its time may have passed while the store was asked to renew it.
            Ok(Ok(())) if held.is_expired() && !held.is_released() => Err(RunError::Ended {
                value,
                error: Error::Lost {
                    name: watched.name.clone(),
                    loss: Loss::Expired,
                    source: None,
                },
            }),
            Ok(Ok(())) => Ok(value),
            Ok(Err(error)) => Err(RunError::Ended { value, error }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    });
    // It may have begun to watch once more just then.
    store.give_up(&claim);
    kept
}

/// The work, which wakes who watches the lease when it ends, however it does.
struct Working<'a, S: Store> {
    /// Dropped first: so whoever is woken knows.
    _until_dropped: Sender<()>,
    #[expect(dead_code, reason = "it is there to be dropped")]
    ended: Ended<'a, S>,
}

struct Ended<'a, S: Store>(&'a S, &'a Claim);

impl<S: Store> Drop for Ended<'_, S> {
    fn drop(&mut self) {
        self.0.give_up(self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use verrou::blocking::LockFactory;
    use verrou::{Abilities, Fence, Holder, MemoryStore, Name, Renewed, Reply, StoreError};

    use super::*;
    use crate::{LeaseFileStore, StoreOptions, System};

    #[test]
    fn work_outlives_its_ttl_and_learns_of_a_loss() {
        let store = MemoryStore::new(System);
        let locks = LockFactory::new(&store, System);
        let (lock, other) = (
            locks.create_lock("lock", "200ms").unwrap(),
            locks.create_lock("lock", "1s").unwrap(),
        );
        let held = lock.guard().unwrap();
        let first_end = held.lease().ends();
        let renewed = || {
            while held.lease().ends() == first_end {
                thread::sleep(Duration::from_millis(5));
            }
            other.try_acquire().is_err()
        };
        assert!(keep_alive(&held, renewed).unwrap());

        let revoked = keep_alive(&held, || {
            other.force_release().unwrap();
            while !held.is_expired() {
                thread::sleep(Duration::from_millis(5));
            }
            "done"
        });
        let Err(RunError::Ended {
            value: "done",
            error:
                Error::Lost {
                    loss: Loss::Revoked,
                    ..
                },
        }) = revoked
        else {
            panic!("{revoked:?}");
        };
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_loss_is_heard_of_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let open = || LeaseFileStore::open(folder.path(), &StoreOptions::default()).unwrap();
        let (here, there) = (open(), open());
        // Nobody waits for a third of that.
        let lock = LockFactory::new(&here, System).create_lock("lock", "1h");
        let other = LockFactory::new(&there, System).create_lock("lock", "1h");
        let (lock, other) = (lock.unwrap(), other.unwrap());
        let held = lock.guard().unwrap();
        assert!(
            keep_alive(&held, || !held.is_expired()).unwrap(),
            "its end is heard of, too"
        );
        let revoked = keep_alive(&held, || {
            other.force_release().unwrap();
            while !held.is_expired() {
                thread::yield_now();
            }
        });
        let Err(RunError::Ended {
            error:
                Error::Lost {
                    loss: Loss::Revoked,
                    ..
                },
            ..
        }) = revoked
        else {
            panic!("{revoked:?}");
        };
    }

    /// A store that tells of a loss all the time, and extends the lease each time.
    struct Anxious(MemoryStore<System>, AtomicU64);

    impl Store for Anxious {
        fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
            Store::acquire(&self.0, claim)
        }
        fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
            Store::extend(&self.0, claim)
        }
        fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Store::renew(&self.0, claim, fence)
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
        fn lost(&self, _claim: &Claim, _at_most: Duration) -> Waited {
            Waited::Done
        }
        fn abilities(&self) -> Abilities {
            Store::abilities(&self.0)
        }
    }

    #[test]
    fn a_store_that_tells_of_losses_all_the_time_is_not_asked_as_often() {
        let store = Anxious(MemoryStore::new(System), AtomicU64::new(0));
        let lock = LockFactory::new(&store, System).create_lock("lock", "1h");
        let lock = lock.unwrap();
        let held = lock.guard().unwrap();
        let began = Instant::now();
        keep_alive(&held, || thread::sleep(Duration::from_millis(50))).unwrap();
        let most = began.elapsed().as_millis() + 2;
        let extensions = u128::from(store.1.load(Ordering::Relaxed));
        assert!(0 < extensions && extensions <= most, "{extensions}, {most}");
    }

    #[test]
    #[should_panic(expected = "the work failed")]
    fn a_panic_of_the_work_ends_the_keeping() {
        let store = MemoryStore::new(System);
        let lock = LockFactory::new(&store, System)
            .create_lock("lock", "none")
            .unwrap();
        let held = lock.guard().unwrap();
        let _ = keep_alive(&held, || panic!("the work failed"));
    }
}
