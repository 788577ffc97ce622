//! Renewal of a lease for as long as some work runs.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use verrou::blocking::{Guard, Host};
use verrou::{Error, Health, Loss, LossWatch, RunError, Store};

use crate::alarm::{self, Ender};
use crate::sync;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread;

/// Renews the lease of `held`, in a separate thread, while `body` runs.
///
/// A loss of the lock does not interrupt `body`. `body` can check [`Guard::is_expired`], and the resource
/// that it writes to can reject its [fencing token](Guard::fence).
///
/// ```
/// use std::{thread, time::Duration};
/// use verrou::blocking::LockFactory;
/// use verrou_host::{LeaseFileStore, StoreOptions, System, keep_alive};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// let store = LeaseFileStore::open(directory, &StoreOptions::default())?;
/// let lock = LockFactory::new(&store, System).create_lock("my-resource", "300ms")?;
/// let held = lock.guard()?;
/// keep_alive(&held, || thread::sleep(Duration::from_millis(700)))?;
/// held.release()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// Returns [`RunError::Ended`], with the value that `body` returned, when the lock was lost before
/// `body` returned.
///
/// # Panics
///
/// Panics when `body` panics, and when the system cannot create a thread; `body` is not run then.
pub fn keep_alive<S, H, T>(held: &Guard<S, H>, body: impl FnOnce() -> T) -> Result<T, RunError<T>>
where
    S: Store,
    H: Host + Send + Sync,
{
    let (store, claim) = (held.store(), held.lease().claim().clone());
    let (ender, rest) = alarm::rests();
    // After this call no loss goes unnoticed.
    let watch = store.watch(&claim);
    let watch = watch.as_deref();
    let work = Work {
        ender,
        is_done: AtomicBool::new(false),
        is_kept: AtomicBool::new(true),
        is_lost: AtomicBool::new(false),
    };
    let work = &work;
    thread::scope(|scope| {
        // Its destructor ends the threads, also if this thread panics.
        let ends = Ends { work, watch };
        let watcher =
            watch.and_then(|watch| sync::spawn_scoped(scope, move || work.watch(watch)).ok());
        let keeper = sync::spawn_scoped(scope, move || {
            let kept = held.keep(|machine, at_most| {
                let is_released = matches!(machine.health(), Health::Released);
                if is_released {
                    work.is_kept.store(false, Ordering::SeqCst);
                } else if work.is_lost.swap(false, Ordering::SeqCst) {
                    machine.suspect();
                    return ControlFlow::Continue(());
                }
                if !work.is_done.load(Ordering::SeqCst) {
                    rest.take(at_most);
                }
                if work.is_done.load(Ordering::SeqCst) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
            work.is_kept.store(false, Ordering::SeqCst);
            kept
        });
        let keeper = keeper.expect("a thread that renews the lease");
        let value = body();
        drop(ends);
        if let Some(watcher) = watcher
            && let Err(panic) = watcher.join()
        {
            std::panic::resume_unwind(panic);
        }
        match keeper.join() {
            // The lease may have expired while the renewal was in flight.
            Ok(Ok(())) if held.is_expired() && !held.is_released() => Err(RunError::Ended {
                value,
                error: Error::Lost {
                    name: claim.name.clone(),
                    loss: Loss::Expired,
                    source: None,
                },
            }),
            Ok(Ok(())) => Ok(value),
            Ok(Err(error)) => Err(RunError::Ended { value, error }),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The state shared by the threads of a [`keep_alive`]: the one that does the work, the one that renews
/// the lease, and, where the store notifies of losses, the one that waits for these notifications. (A
/// store's wait uses a clock that stops while the machine is suspended.)
struct Work {
    /// Interrupts the sleep of the renewing thread.
    ender: Ender,
    is_done: AtomicBool,
    /// Whether a loss still matters.
    is_kept: AtomicBool,
    /// Whether the lease may be lost.
    is_lost: AtomicBool,
}

impl Work {
    /// Waits for loss notifications until the work is done.
    fn watch(&self, watch: &dyn LossWatch) {
        /// The minimum time between two notifications, so that a store that notifies constantly is not
        /// queried as often.
        const SHORTEST: Duration = Duration::from_millis(1);
        /// The maximum length of one wait; nothing is due when it ends.
        const LONGEST: Duration = Duration::from_hours(1);

        let goes_on =
            || self.is_kept.load(Ordering::SeqCst) && !self.is_done.load(Ordering::SeqCst);
        while goes_on() {
            let began = Instant::now();
            watch.wait(LONGEST);
            if !goes_on() {
                break;
            }
            self.is_lost.store(true, Ordering::SeqCst);
            self.ender.end();
            if began.elapsed() < SHORTEST {
                thread::sleep(SHORTEST);
            }
        }
    }
}

/// Ends the work when dropped, also by a panic.
struct Ends<'a> {
    work: &'a Work,
    watch: Option<&'a dyn LossWatch>,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.work.is_done.store(true, Ordering::SeqCst);
        self.work.ender.end();
        if let Some(watch) = self.watch {
            watch.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use verrou::blocking::LockFactory;
    use verrou::{Claim, Fence, MemoryStore, Renewed, StoreError, StoreWrapper};

    use super::*;
    use crate::system::System;

    #[test]
    fn work_outlives_ttl_and_detects_loss() {
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
            other.force_release(None).unwrap();
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

    /// A store whose loss watch ends as the function does, while every renewal succeeds.
    #[derive(Debug)]
    struct Anxious(MemoryStore<System>, AtomicU64, fn());

    impl StoreWrapper for Anxious {
        type Inner = MemoryStore<System>;

        fn inner(&self) -> &MemoryStore<System> {
            &self.0
        }
        fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Store::renew(&self.0, claim, fence)
        }
        fn watch<'s>(&'s self, _claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
            Some(Box::new(AnxiousWatch(self.2)))
        }
    }

    struct AnxiousWatch(fn());

    impl LossWatch for AnxiousWatch {
        fn wait(&self, _at_most: Duration) {
            (self.0)();
        }
        fn cancel(&self) {}
    }

    #[test]
    fn rate_of_renewals_is_limited_under_constant_loss_notifications() {
        let store = Anxious(MemoryStore::new(System), AtomicU64::new(0), || {});
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
    #[should_panic(expected = "the store failed")]
    fn panic_of_store_ends_keep_alive() {
        let store = Anxious(MemoryStore::new(System), AtomicU64::new(0), || {
            panic!("the store failed")
        });
        let lock = LockFactory::new(&store, System).create_lock("lock", "1h");
        let lock = lock.unwrap();
        let held = lock.guard().unwrap();
        let _ = keep_alive(&held, || thread::sleep(Duration::from_millis(20)));
    }

    /// Renews a lease for three times its ttl while the creation of threads succeeds or fails by `plan`;
    /// returns whether that panicked.
    fn keep_with_threads(plan: &'static [bool]) -> bool {
        let (sender, ended) = std::sync::mpsc::channel();
        let keeping = thread::spawn(move || {
            let store = Anxious(MemoryStore::new(System), AtomicU64::new(0), || {
                thread::sleep(Duration::from_millis(1));
            });
            let lock = LockFactory::new(&store, System).create_lock("lock", "200ms");
            let lock = lock.unwrap();
            let held = lock.guard().unwrap();
            sync::spawns::plan(plan);
            let kept = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                keep_alive(&held, || thread::sleep(Duration::from_millis(600))).unwrap();
            }));
            sender.send(kept.is_err()).unwrap();
        });
        let panicked = ended.recv_timeout(Duration::from_secs(20));
        let panicked = panicked.expect("`keep_alive` returns or panics");
        keeping.join().unwrap();
        panicked
    }

    #[test]
    fn keep_alive_without_renewing_thread_panics() {
        assert!(keep_with_threads(&[true, false]));
        assert!(keep_with_threads(&[false, false]));
    }

    #[test]
    fn keep_alive_works_without_watching_thread() {
        assert!(!keep_with_threads(&[false, true]));
    }

    #[test]
    #[should_panic(expected = "the work failed")]
    fn panic_of_work_ends_keep_alive() {
        let store = MemoryStore::new(System);
        let lock = LockFactory::new(&store, System)
            .create_lock("lock", "none")
            .unwrap();
        let held = lock.guard().unwrap();
        let _ = keep_alive(&held, || panic!("the work failed"));
    }
}
