//! Blocking locks, for programs that wait on a thread.
//!
//! A [`LockFactory`] creates the [`Lock`]s of one store. A [`Guard`] releases its
//! lock when it is dropped. [`Locks`] names several stores.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::convert::Infallible;
use core::mem;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;

use crate::acquire::Acquire;
use crate::claim::Fence;
use crate::error::{Error, RunError};
use crate::held_lease::{Acquisition, LockState, into_loss, may_be_released};
use crate::lease::{Lease, Loss};
use crate::lock_api::lock_api;
use crate::locks::Locks;
use crate::name::Name;
use crate::polled::{self, Halt};
use crate::renew::{Health, Renew, SHORTEST_WATCH};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Holder, Renewed, Store};
use crate::time::Clock;
use crate::ttl::Ttl;

/// The functions that a blocking caller provides besides a store.
pub trait Host: Clock {
    /// Blocks for `pause`. It may return a little later, but never much earlier.
    fn sleep(&self, pause: Duration);

    /// Returns 128 unpredictable bits.
    fn random(&self) -> [u8; 16];

    /// Returns the wall-clock time since the start of 1970 (UTC). It decides only the remaining time of a
    /// serialized lock.
    fn wall_clock(&self) -> Duration;
}

impl<H: Host + ?Sized> Host for &H {
    fn sleep(&self, pause: Duration) {
        (**self).sleep(pause);
    }
    fn random(&self) -> [u8; 16] {
        (**self).random()
    }
    fn wall_clock(&self) -> Duration {
        (**self).wall_clock()
    }
}

impl<H: Host + ?Sized> Host for Arc<H> {
    fn sleep(&self, pause: Duration) {
        (**self).sleep(pause);
    }
    fn random(&self) -> [u8; 16] {
        (**self).random()
    }
    fn wall_clock(&self) -> Duration {
        (**self).wall_clock()
    }
}

/// Drives `machine` to its end.
///
/// # Errors
///
/// The machine's error: [`Error::Timeout`], [`Error::Storage`], or [`Error::Lost`] when grants
/// repeatedly arrived after their expiry.
pub fn acquire(store: &impl Store, host: &impl Host, machine: Acquire) -> Result<Lease, Error> {
    let acquired = acquire_with(store, host, machine, |wait, at_most| {
        wait(at_most);
        ControlFlow::<Infallible>::Continue(())
    });
    match acquired {
        ControlFlow::Continue(end) => end,
    }
}

/// Drives `machine` to its end, or until `pause` breaks: then nothing is held or waited for. `pause` is called
/// with a function that waits, and how long to wait.
fn acquire_with<B>(
    store: &impl Store,
    host: &impl Host,
    mut machine: Acquire,
    mut pause: impl FnMut(&mut dyn FnMut(Duration), Duration) -> ControlFlow<B>,
) -> ControlFlow<B, Result<Lease, Error>> {
    let mut has_waited = false;
    let mut waiter = None;
    loop {
        let paused = match polled::advance(store, host, &mut machine) {
            Halt::Wait(at_most) => {
                if !mem::replace(&mut has_waited, true) {
                    waiter = store.waiter(machine.claim());
                }
                match &mut waiter {
                    Some(waiter) => {
                        let at_most = if waiter.notifies() {
                            machine.longest_wait(host.now())
                        } else {
                            at_most
                        };
                        pause(&mut |length| waiter.wait(length), at_most)
                    }
                    None => pause(&mut |length| host.sleep(length), at_most),
                }
            }
            Halt::Sleep(length) => pause(&mut |length| host.sleep(length), length),
            Halt::Done(end) => {
                if let (Ok(_), Some(waiter)) = (&end, waiter) {
                    waiter.granted();
                }
                return ControlFlow::Continue(end);
            }
        };
        if paused.is_break() && machine.has_unknown_outcome() {
            // After an error, the record that may be left expires.
            let _ = store.release(machine.claim());
        }
        paused?;
        machine.waited(host.now());
    }
}

/// Ends waits for locks, from any thread: [`Lock::guard_or_cancel`]. A clone is the same cancellation. Once
/// cancelled, it stays so.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(Arc<AtomicBool>);

impl Cancellation {
    /// How long a wait may last after the cancellation.
    const DELAY: Duration = Duration::from_millis(50);

    /// Returns a cancellation that has not been requested.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all waits with this cancellation, within 50 ms, and all later ones at once.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Returns whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Waits by `wait` for `at_most`, less if it was notified; breaks when this is cancelled.
    fn pause(
        &self,
        clock: &impl Clock,
        wait: &mut dyn FnMut(Duration),
        at_most: Duration,
    ) -> ControlFlow<()> {
        let mut left = at_most;
        while !self.is_cancelled() {
            let (began, part) = (clock.now(), left.min(Self::DELAY));
            wait(part);
            left = left.saturating_sub(part);
            if left.is_zero() || clock.now().saturating_since(began) < part {
                return ControlFlow::Continue(());
            }
        }
        ControlFlow::Break(())
    }
}

/// Drives `machine` until the lock is lost, or `pause` breaks.
///
/// `pause` is called with the machine and the maximum time to wait. It returns after that time, or
/// earlier after an event that it waits for, and breaks to end the auto-renewal. If the lease was changed
/// elsewhere in the meantime, `pause` calls [`adopt`](Renew::adopt) or [`suspect`](Renew::suspect).
///
/// If the lease has expired at the end, it is renewed once more if its store [takes it
/// back](Renew::reviving).
///
/// # Errors
///
/// The way in which the lock was lost.
pub fn keep<B>(
    store: &impl Store,
    clock: &impl Clock,
    machine: &mut Renew,
    pause: impl FnMut(&mut Renew, Duration) -> ControlFlow<B>,
) -> Result<B, Loss> {
    keep_observed(store, clock, machine, |_| {}, pause)
}

/// Does what [`keep`] does, and calls `observe` before each renewal and after its reply.
fn keep_observed<B>(
    store: &impl Store,
    clock: &impl Clock,
    machine: &mut Renew,
    mut observe: impl FnMut(&Renew),
    mut pause: impl FnMut(&mut Renew, Duration) -> ControlFlow<B>,
) -> Result<B, Loss> {
    loop {
        let at_most = polled::renew(store, clock, machine, &mut observe)?;
        if let ControlFlow::Break(end) = pause(machine, at_most) {
            if machine.is_late(clock.now()) {
                // The error can be ignored: the caller sees a loss as the expiry of the lease.
                let _ = polled::renew(store, clock, machine, &mut observe);
            }
            return Ok(end);
        }
    }
}

lock_api!([] [] Store Host);

impl<S: Store, H: Host> Lock<S, H> {
    /// Acquires the lock, runs `body`, and releases the lock, also when `body` panics.
    ///
    /// # Errors
    ///
    /// [`RunError::NotAcquired`] when `body` was not run, [`RunError::Ended`] with the value that it
    /// returned when the lock was lost before `body` ended, or could not be released.
    pub fn run<T>(&self, body: impl FnOnce(&Guard<S, H>) -> T) -> Result<T, RunError<T>> {
        self.run_with(&self.0.state.retry, body)
    }

    /// Does what [`run`](Self::run) does, waiting for the lock by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub fn run_with<T>(
        &self,
        retry: &Retry,
        body: impl FnOnce(&Guard<S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        let guard = self.guard_with(retry).map_err(RunError::NotAcquired)?;
        let value = body(&guard);
        match guard.release() {
            Ok(()) => Ok(value),
            Err(error) => Err(RunError::Ended { value, error }),
        }
    }

    /// Does what [`run`](Self::run) does, if the lock is free now.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub fn try_run<T>(&self, body: impl FnOnce(&Guard<S, H>) -> T) -> Result<T, RunError<T>> {
        self.run_with(&Retry::NEVER, body)
    }

    /// Acquires the lock, waiting by the policy `retry`, or until `cancellation` is cancelled: then returns `None`,
    /// and nothing is held. An async program drops the future of `guard_with` instead.
    ///
    /// ```
    /// # use verrou::{MemoryStore, Retry, blocking::{Cancellation, LockFactory}};
    /// # let locks = LockFactory::new(std::sync::Arc::new(MemoryStore::new(verrou_host::System)), verrou_host::System);
    /// let lock = locks.create_lock("report", "30s")?;
    /// let held = lock.guard()?;
    /// let cancellation = Cancellation::new();
    /// std::thread::scope(|scope| {
    ///     let waits = scope.spawn(|| lock.guard_or_cancel(&Retry::default(), &cancellation));
    ///     cancellation.cancel();
    ///     assert!(waits.join().unwrap()?.is_none());
    ///     Ok::<(), verrou::Error>(())
    /// })?;
    /// # Ok::<(), verrou::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub fn guard_or_cancel(
        &self,
        retry: &Retry,
        cancellation: &Cancellation,
    ) -> Result<Option<Guard<S, H>>, Error> {
        if cancellation.is_cancelled() {
            return Ok(None);
        }
        let LockParts { store, host, .. } = &*self.0;
        let machine = self.acquire_machine(host.random(), retry);
        let acquired = acquire_with(store, host, machine, |wait, at_most| {
            cancellation.pause(host, wait, at_most)
        });
        match acquired {
            ControlFlow::Continue(end) => Ok(Some(self.granted(end?))),
            ControlFlow::Break(()) => Ok(None),
        }
    }
}

impl<S: Store, H: Host> Guard<S, H> {
    /// Renews the lease until `pause` breaks, as [`keep`] does, and returns the value of the break.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] as soon as the lock is lost; the lease [is expired](Self::is_expired) then,
    /// regardless of its remaining time.
    pub fn keep<B>(
        &self,
        mut pause: impl FnMut(&mut Renew, Duration) -> ControlFlow<B>,
    ) -> Result<B, Error> {
        let LockParts { store, host, state } = &*self.lock.0;
        let revives = store.capabilities().revives;
        let (mut machine, sync) = self.acquisition.renew(state.ttl, revives, host.now());
        let sync = RefCell::new(sync);
        let record = |machine: &Renew| sync.borrow_mut().record_renewal(machine);
        let pause = |machine: &mut Renew, at_most| {
            record(machine);
            let end = pause(machine, at_most);
            sync.borrow_mut().update_machine(machine, host.now());
            end
        };
        let kept = keep_observed(store, host, &mut machine, record, pause);
        record(&machine);
        kept.map_err(|loss| self.lock.lost(&self.acquisition, &machine, loss))
    }

    /// Renews the lease until the lock is lost, and returns the loss; returns `None` if the owner has released
    /// the lock. A store that notifies of losses ends this at once.
    pub fn lost(&self) -> Option<Error> {
        let LockParts { store, host, .. } = &*self.lock.0;
        let watch = store.watch(self.lease().claim());
        let kept = self.keep(|machine, at_most| {
            if matches!(machine.health(), Health::Released) {
                return ControlFlow::Break(());
            }
            match &watch {
                Some(watch) => {
                    let began = host.now();
                    watch.wait(at_most);
                    if host.now().saturating_since(began) < at_most {
                        machine.suspect();
                        // A store that notifies of losses all the time gets fewer requests.
                        host.sleep(SHORTEST_WATCH);
                    }
                }
                None => host.sleep(at_most),
            }
            ControlFlow::Continue(())
        });
        kept.err()
    }
}

impl<S: Store, H: Host> Drop for Guard<S, H> {
    fn drop(&mut self) {
        if !self.ended {
            // A drop cannot report an error; the lease expires by itself.
            let _ = self.lock.release_acquisition(&self.acquisition);
        }
    }
}
