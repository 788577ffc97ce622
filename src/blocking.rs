//! Blocking locks, for programs that wait on a thread.
//!
//! A [`LockFactory`] creates the [`Lock`]s of one store. A [`Held`] is a guard: dropping it releases the
//! lock. [`Locks`] names several stores.

use alloc::sync::Arc;
use core::cell::RefCell;
use core::ops::ControlFlow;
use core::time::Duration;

use crate::acquire::Acquire;
use crate::claim::Fence;
use crate::error::{Error, RunError};
use crate::held_lease::{Acquisition, LockState, into_loss, may_be_released};
use crate::lease::{Lease, Loss};
use crate::locks::Locks;
use crate::name::Name;
use crate::polled::{self, Halt};
use crate::renew::Renew;
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Renewed, Store, Waited};
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
pub fn acquire(store: &impl Store, host: &impl Host, mut machine: Acquire) -> Result<Lease, Error> {
    let mut waited = false;
    loop {
        match polled::advance(store, host, &mut machine) {
            Halt::Wait(at_most) => {
                waited = true;
                let at_most = if store.notifies() {
                    machine.longest_wait(host.now())
                } else {
                    at_most
                };
                if store.wait(machine.claim(), at_most) == Waited::Unable {
                    host.sleep(at_most);
                }
            }
            Halt::Sleep(pause) => host.sleep(pause),
            Halt::Done(end) => {
                if waited && end.is_err() {
                    store.give_up(machine.claim());
                }
                return end;
            }
        }
        machine.waited(host.now());
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

/// A factory of the locks of one store.
#[derive(Clone, Debug)]
pub struct LockFactory<S, H> {
    store: S,
    host: H,
    retry: Retry,
}

impl<S: Store + Clone, H: Host + Clone> LockFactory<S, H> {
    /// Returns a factory of locks in `store` that wait by `host`.
    pub fn new(store: S, host: H) -> Self {
        Self {
            store,
            host,
            retry: Retry::default(),
        }
    }

    /// Sets the default retry policy of the factory's locks.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// Returns a lock named `name`, whose leases last `ttl`. Sends no request to the store.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], [`Error::InvalidTtl`].
    pub fn create_lock<T>(&self, name: &str, ttl: T) -> Result<Lock<S, H>, Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let state = LockState::new(Name::new(name)?, ttl.try_into()?, self.retry.clone());
        Ok(self.lock(state))
    }

    /// Returns the lock that [`Lock::serialize`] serialized, perhaps in another process. Sends no request
    /// to the store.
    pub fn restore_lock(&self, serialized: &SerializedLock) -> Lock<S, H> {
        let (now, wall) = (self.host.now(), self.host.wall_clock());
        self.lock(LockState::restored(
            serialized,
            self.retry.clone(),
            now,
            wall,
        ))
    }

    fn lock(&self, state: LockState) -> Lock<S, H> {
        Lock {
            store: self.store.clone(),
            host: self.host.clone(),
            state,
        }
    }
}

impl<S: Store + Clone, H: Host + Clone> Locks<LockFactory<S, H>> {
    /// Returns a lock in the default store; see [`LockFactory::create_lock`].
    ///
    /// # Errors
    ///
    /// The errors of [`LockFactory::create_lock`].
    pub fn create_lock<T>(&self, name: &str, ttl: T) -> Result<Lock<S, H>, Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.default_factory().create_lock(name, ttl)
    }

    /// Restores a lock in the default store; see [`LockFactory::restore_lock`].
    pub fn restore_lock(&self, serialized: &SerializedLock) -> Lock<S, H> {
        self.default_factory().restore_lock(serialized)
    }
}

/// A blocking lock.
///
/// Every acquisition has its own owner token, so a lock is not reentrant: a second acquisition waits for
/// the first. *The lease* is that of the latest acquisition made through this value; a [`Held`] stays
/// bound to its own acquisition.
#[derive(Debug)]
pub struct Lock<S, H> {
    store: S,
    host: H,
    state: LockState,
}

impl<S: Store, H: Host> Lock<S, H> {
    /// Acquires the lock, waiting by the factory's retry policy: by default, without end.
    ///
    /// The lock is held until it is released or its lease has expired; dropping this value does not
    /// release it. [`guard`](Self::guard) and [`run`](Self::run) release it automatically.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the policy ended first, [`Error::Storage`] when the store failed.
    pub fn acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&self.state.retry)
    }

    /// Acquires the lock, waiting by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub fn acquire_with(&self, retry: &Retry) -> Result<Lease, Error> {
        Ok(self.guard_with(retry)?.leave())
    }

    /// Acquires the lock if it is free now.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&Retry::NEVER)
    }

    /// Acquires the lock as [`acquire`](Self::acquire) does, and returns a guard that releases it when it
    /// is dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub fn guard(&self) -> Result<Held<'_, S, H>, Error> {
        self.guard_with(&self.state.retry)
    }

    /// Acquires the lock, waiting by the policy `retry`, and returns a guard that releases it when it is
    /// dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub fn guard_with(&self, retry: &Retry) -> Result<Held<'_, S, H>, Error> {
        let machine = self
            .state
            .acquire(retry, self.host.random(), self.host.now());
        let lease = acquire(&self.store, &self.host, machine)?;
        Ok(Held {
            lock: self,
            acquisition: self.state.record_grant(lease),
            ended: false,
        })
    }

    /// Acquires the lock if it is free now, and returns a guard that releases it when it is dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub fn try_guard(&self) -> Result<Held<'_, S, H>, Error> {
        self.guard_with(&Retry::NEVER)
    }

    /// Acquires the lock, runs `body`, and releases the lock, also when `body` panics.
    ///
    /// # Errors
    ///
    /// [`RunError::NotAcquired`] when `body` was not run, [`RunError::Ended`] with the value that it
    /// returned when the lock was lost before `body` ended, or could not be released.
    pub fn run<T>(&self, body: impl FnOnce(&Held<'_, S, H>) -> T) -> Result<T, RunError<T>> {
        self.run_with(&self.state.retry, body)
    }

    /// Does what [`run`](Self::run) does, waiting for the lock by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub fn run_with<T>(
        &self,
        retry: &Retry,
        body: impl FnOnce(&Held<'_, S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        let held = self.guard_with(retry).map_err(RunError::NotAcquired)?;
        let value = body(&held);
        match held.release() {
            Ok(()) => Ok(value),
            Err(error) => Err(RunError::Ended { value, error }),
        }
    }

    /// Does what [`run`](Self::run) does, if the lock is free now.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub fn try_run<T>(&self, body: impl FnOnce(&Held<'_, S, H>) -> T) -> Result<T, RunError<T>> {
        self.run_with(&Retry::NEVER, body)
    }

    /// Releases the lock.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when it was never acquired through this value, or is lost; [`Error::Storage`]
    /// when the outcome is unknown, and the release may be retried.
    pub fn release(&self) -> Result<(), Error> {
        self.release_acquisition(&self.state.latest_or_error()?)
    }

    /// Force-releases the lock: frees it regardless of its holder.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the outcome is unknown, or the store cannot force-release.
    pub fn force_release(&self) -> Result<(), Error> {
        let before = self.state.latest();
        let reply = self.store.evict(&self.state.name, None);
        self.state
            .record_force_release(None, before.as_ref(), reply)
            .map(drop)
    }

    /// Extends the lease to `ttl` from now, or with `None` to the lock's own ttl. This may shorten the
    /// lease.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired through this value, is lost, or its lease has
    /// expired; [`Error::Storage`] when the outcome is unknown: the lease then counts as lasting as long
    /// as before, or `ttl`, whichever is shorter.
    pub fn extend(&self, ttl: Option<Ttl>) -> Result<(), Error> {
        self.extend_acquisition(&self.state.latest_or_error()?, ttl)
    }

    /// Returns whether the lease has expired; `false` when there is none, or it does not end by itself.
    pub fn is_expired(&self) -> bool {
        self.lease()
            .is_some_and(|lease| lease.is_expired(self.host.now()))
    }

    /// Returns the lease's remaining time, zero once it has expired; `None` when there is none, or it
    /// does not end by itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease()?.remaining(self.host.now())
    }

    /// Returns whether the store records a holder of the lock.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine the holder.
    pub fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.store.inspect(&self.state.name)?.is_some())
    }

    /// Returns whether the store records this value's latest acquisition as the lock's holder.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine that, like one without fencing tokens that does
    /// not implement [`holds`](crate::Store::holds).
    pub fn is_held(&self) -> Result<bool, Error> {
        self.state.is_held(&self.store)
    }

    /// Serializes the lease, for its transfer to another process. Detaches it: from then on it outlives
    /// this process, and ends by its ttl alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties a lease to the client that acquired it;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the outcome is unknown.
    pub fn serialize(&self) -> Result<SerializedLock, Error> {
        Ok(self.to_serialized(&self.state.detach(&self.store)?))
    }

    /// Returns the latest acquisition's lease, which may have ended since.
    pub fn lease(&self) -> Option<Lease> {
        Some(self.state.latest()?.lease())
    }

    /// Returns the lock's name.
    pub fn name(&self) -> &Name {
        &self.state.name
    }

    /// Returns the length of the lock's leases.
    pub fn ttl(&self) -> Ttl {
        self.state.ttl
    }

    fn to_serialized(&self, lease: &Lease) -> SerializedLock {
        SerializedLock::new(
            lease,
            self.state.ttl,
            self.host.now(),
            self.host.wall_clock(),
        )
    }

    fn extend_acquisition(&self, acquisition: &Acquisition, ttl: Option<Ttl>) -> Result<(), Error> {
        self.state.extend(&self.store, &self.host, acquisition, ttl)
    }

    fn release_acquisition(&self, acquisition: &Acquisition) -> Result<(), Error> {
        self.state.release(&self.store, acquisition)
    }
}

/// A guard of a held lock: dropping it releases the lock.
///
/// A drop cannot return an error; [`release`](Self::release) can.
#[derive(Debug)]
#[must_use = "an unused guard releases the lock at once"]
pub struct Held<'a, S: Store, H: Host> {
    lock: &'a Lock<S, H>,
    acquisition: Acquisition,
    ended: bool,
}

impl<S: Store, H: Host> Held<'_, S, H> {
    /// Returns the store in which the lock is recorded.
    pub fn store(&self) -> &S {
        &self.lock.store
    }

    /// Returns the grant's fencing token; `None` from a store that does not count grants.
    pub fn fence(&self) -> Option<Fence> {
        self.lease().fence()
    }

    /// Returns the lease's remaining time, zero once it has expired; `None` when it does not end by
    /// itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease().remaining(self.lock.host.now())
    }

    /// Returns whether the lease has expired.
    pub fn is_expired(&self) -> bool {
        self.lease().is_expired(self.lock.host.now())
    }

    /// Returns the lease in its current state.
    pub fn lease(&self) -> Lease {
        self.acquisition.lease()
    }

    /// Serializes the lease without detaching it, for other processes that receive it while this process
    /// still holds it.
    pub fn describe(&self) -> SerializedLock {
        self.lock.to_serialized(&self.lease())
    }

    /// Extends the lease to `ttl` from now, or with `None` to the lock's own ttl.
    ///
    /// # Errors
    ///
    /// The errors of [`Lock::extend`].
    pub fn extend(&self, ttl: Option<Ttl>) -> Result<(), Error> {
        self.lock.extend_acquisition(&self.acquisition, ttl)
    }

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
        let lock = self.lock;
        let revives = lock.store.abilities().revives;
        let (mut machine, sync) = self
            .acquisition
            .renew(lock.state.ttl, revives, lock.host.now());
        let sync = RefCell::new(sync);
        let record = |machine: &Renew| sync.borrow_mut().record_renewal(machine);
        let pause = |machine: &mut Renew, at_most| {
            record(machine);
            let end = pause(machine, at_most);
            sync.borrow_mut().update_machine(machine, lock.host.now());
            end
        };
        let kept = keep_observed(&lock.store, &lock.host, &mut machine, record, pause);
        record(&machine);
        kept.map_err(|loss| {
            self.acquisition.record_loss(loss);
            Error::Lost {
                name: lock.state.name.clone(),
                loss,
                source: machine.failure().cloned(),
            }
        })
    }

    /// Returns whether this process has recorded that the lock's owner released it: through this lock, or
    /// elsewhere if the store has reported it since. A release is not a loss.
    pub fn is_released(&self) -> bool {
        self.acquisition.is_released()
    }

    /// Releases the lock, unless its owner [has released it](Self::is_released) already.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] when it was no longer held; [`Error::Storage`] when the outcome is unknown.
    pub fn release(mut self) -> Result<(), Error> {
        self.ended = true;
        let (acquisition, lock) = (&self.acquisition, self.lock);
        let lease = acquisition.lease();
        if acquisition.is_released() {
            lock.state.remove(lease.owner());
            return Ok(());
        }
        let loss = acquisition.loss(lock.host.now());
        let released = lock.release_acquisition(acquisition);
        if may_be_released(&released, loss, lock.store.abilities())
            && let Ok(Renewed::Released) = lock.store.renew(lease.claim(), lease.fence())
        {
            return Ok(());
        }
        released.map_err(|error| into_loss(error, acquisition, loss, lock.host.now()))
    }

    /// Ends the guard without a release: the lock is held until it is released through its [`Lock`], or
    /// its lease has expired.
    pub fn leave(mut self) -> Lease {
        self.ended = true;
        self.lease()
    }
}

impl<S: Store, H: Host> Drop for Held<'_, S, H> {
    fn drop(&mut self) {
        if !self.ended {
            // A drop cannot report an error; the lease expires by itself.
            let _ = self.lock.release_acquisition(&self.acquisition);
        }
    }
}
