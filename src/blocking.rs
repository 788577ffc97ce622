//! Locks for programs that wait on a thread.
//!
//! [`LockFactory`] makes the locks of one store, [`Lock`] is one of them, [`Held`] gives it back
//! when dropped. [`Locks`] names several stores.

use alloc::sync::Arc;
use core::cell::RefCell;
use core::ops::ControlFlow;
use core::time::Duration;

use crate::acquire::Acquire;
use crate::claim::Fence;
use crate::error::{Error, RunError};
use crate::holds::{Hold, Holds, lost, may_be_released};
use crate::lease::{Lease, Loss};
use crate::locks::Locks;
use crate::name::Name;
use crate::renew::Renew;
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::stepped::{self, Halt};
use crate::store::{Renewed, Store, Waited};
use crate::time::Clock;
use crate::ttl::Ttl;

/// What a blocking caller brings besides a store.
pub trait Host: Clock {
    /// Blocks for `pause`; may end a little later, never much earlier.
    fn sleep(&self, pause: Duration);

    /// 128 bits that no one can guess.
    fn random(&self) -> [u8; 16];

    /// The time that people agree on, since the start of 1970 (UTC). Nothing is decided by it
    /// but how much of a serialized lock is left.
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
/// Whatever the machine ends with: [`Error::Timeout`], [`Error::Storage`], or [`Error::Lost`] when
/// grants kept coming too late.
pub fn acquire(store: &impl Store, host: &impl Host, mut machine: Acquire) -> Result<Lease, Error> {
    let mut waited = false;
    loop {
        match stepped::advance(store, host, &mut machine) {
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
/// `pause` is told how things stand, waits as long as it is told, or until something happens
/// that it waits for, and breaks to end the keeping. What else happened to the lease by then, it lets
/// the machine [`adopt`](Renew::adopt), or [`suspect`](Renew::suspect).
///
/// If the lease has expired by the end, it is renewed once more if its store [takes it
/// back](Renew::reviving).
///
/// # Errors
///
/// How the lock was lost.
pub fn keep<B>(
    store: &impl Store,
    clock: &impl Clock,
    machine: &mut Renew,
    pause: impl FnMut(&mut Renew, Duration) -> ControlFlow<B>,
) -> Result<B, Loss> {
    keep_asking(store, clock, machine, |_| {}, pause)
}

/// [`keep`], which calls `asking` before each renewal, and after its reply.
fn keep_asking<B>(
    store: &impl Store,
    clock: &impl Clock,
    machine: &mut Renew,
    mut asking: impl FnMut(&Renew),
    mut pause: impl FnMut(&mut Renew, Duration) -> ControlFlow<B>,
) -> Result<B, Loss> {
    loop {
        let at_most = stepped::renew(store, clock, machine, &mut asking)?;
        if let ControlFlow::Break(end) = pause(machine, at_most) {
            if machine.is_late(clock.now()) {
                // The error can be dropped: the caller sees a loss as the expiry of the lease.
                let _ = stepped::renew(store, clock, machine, &mut asking);
            }
            return Ok(end);
        }
    }
}

/// Makes the locks of one store.
#[derive(Clone, Debug)]
pub struct LockFactory<S, H> {
    store: S,
    host: H,
    retry: Retry,
}

impl<S: Store + Clone, H: Host + Clone> LockFactory<S, H> {
    /// Makes locks in `store`, waiting as `host` waits.
    pub fn new(store: S, host: H) -> Self {
        Self {
            store,
            host,
            retry: Retry::default(),
        }
    }

    /// Lets every lock retry as `retry` says, unless told otherwise.
    #[must_use]
    pub fn retry(self, retry: Retry) -> Self {
        Self { retry, ..self }
    }

    /// A lock called `name`, whose leases last `ttl`. Nothing is asked of the store yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], [`Error::InvalidTtl`].
    pub fn create_lock<T>(&self, name: &str, ttl: T) -> Result<Lock<S, H>, Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let holds = Holds::new(Name::new(name)?, ttl.try_into()?, self.retry.clone());
        Ok(self.lock(holds))
    }

    /// The lock that [`Lock::serialize`] wrote down, perhaps in another process. Nothing is asked
    /// of the store yet.
    pub fn restore_lock(&self, serialized: &SerializedLock) -> Lock<S, H> {
        let (now, wall) = (self.host.now(), self.host.wall_clock());
        self.lock(Holds::restored(serialized, self.retry.clone(), now, wall))
    }

    fn lock(&self, holds: Holds) -> Lock<S, H> {
        Lock {
            store: self.store.clone(),
            host: self.host.clone(),
            holds,
        }
    }
}

impl<S: Store + Clone, H: Host + Clone> Locks<LockFactory<S, H>> {
    /// [`LockFactory::create_lock`] of the default store.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn create_lock<T>(&self, name: &str, ttl: T) -> Result<Lock<S, H>, Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        self.default_factory().create_lock(name, ttl)
    }

    /// [`LockFactory::restore_lock`] of the default store.
    pub fn restore_lock(&self, serialized: &SerializedLock) -> Lock<S, H> {
        self.default_factory().restore_lock(serialized)
    }
}

/// A lock that may be taken.
///
/// Every acquisition has an owner of its own, so a lock is not reentrant: taken twice, it waits
/// like a stranger. What is said of *the lease* is said of the latest acquisition made through
/// this value; a [`Held`] stays with the acquisition that made it.
#[derive(Debug)]
pub struct Lock<S, H> {
    store: S,
    host: H,
    holds: Holds,
}

impl<S: Store, H: Host> Lock<S, H> {
    /// Takes the lock, waiting as the factory's retry policy says: by default, for ever.
    ///
    /// It is held until it is released or its time has passed; dropping this value releases
    /// nothing. [`guard`](Self::guard) and [`run`](Self::run) see to that by themselves.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the policy ended first, [`Error::Storage`] when the store failed.
    pub fn acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&self.holds.retry)
    }

    /// Takes the lock, waiting as `retry` says.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn acquire_with(&self, retry: &Retry) -> Result<Lease, Error> {
        Ok(self.guard_with(retry)?.leave())
    }

    /// Takes the lock if it is free now.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&Retry::NEVER)
    }

    /// Takes the lock as [`acquire`](Self::acquire) does, to be given back when the guard is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn guard(&self) -> Result<Held<'_, S, H>, Error> {
        self.guard_with(&self.holds.retry)
    }

    /// Takes the lock, waiting as `retry` says, to be given back when the guard is dropped.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn guard_with(&self, retry: &Retry) -> Result<Held<'_, S, H>, Error> {
        let machine = self
            .holds
            .acquire(retry, self.host.random(), self.host.now());
        let lease = acquire(&self.store, &self.host, machine)?;
        Ok(Held {
            lock: self,
            hold: self.holds.add(lease),
            ended: false,
        })
    }

    /// Takes the lock if it is free now, to be given back when the guard is dropped.
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire).
    pub fn try_guard(&self) -> Result<Held<'_, S, H>, Error> {
        self.guard_with(&Retry::NEVER)
    }

    /// Takes the lock, does `body`, and releases the lock, also when `body` panics.
    ///
    /// # Errors
    ///
    /// [`RunError::NotAcquired`] when `body` was not run, [`RunError::Ended`] with what it
    /// returned when the lock did not last as long as it did, or could not be given back.
    pub fn run<T>(&self, body: impl FnOnce(&Held<'_, S, H>) -> T) -> Result<T, RunError<T>> {
        self.run_with(&self.holds.retry, body)
    }

    /// [`run`](Self::run), waiting for the lock as `retry` says.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
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

    /// [`run`](Self::run), if the lock is free now.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn try_run<T>(&self, body: impl FnOnce(&Held<'_, S, H>) -> T) -> Result<T, RunError<T>> {
        self.run_with(&Retry::NEVER, body)
    }

    /// Gives the lock back.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when it was never acquired here, or is lost; [`Error::Storage`] when the
    /// store could not tell, and then it may be tried again.
    pub fn release(&self) -> Result<(), Error> {
        self.release_hold(&self.holds.held()?)
    }

    /// Frees the lock, whoever holds it.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store could not tell, or lets nobody be evicted.
    pub fn force_release(&self) -> Result<(), Error> {
        let before = self.holds.latest();
        let reply = self.store.evict(&self.holds.name, None);
        self.holds.evicted(None, before.as_ref(), reply).map(drop)
    }

    /// Lets the lease last `ttl` from now, or with `None` the lock's own ttl. It may become
    /// shorter by that.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired here, or is lost, or its time has
    /// passed; [`Error::Storage`] when the store could not tell: the lease counts as
    /// lasting as long as before, or `ttl`, whichever is shorter.
    pub fn extend(&self, ttl: Option<Ttl>) -> Result<(), Error> {
        self.extend_hold(&self.holds.held()?, ttl)
    }

    /// Whether the lease has run out. Not when there is none, or it does not end by itself.
    pub fn is_expired(&self) -> bool {
        self.lease()
            .is_some_and(|lease| lease.is_expired(self.host.now()))
    }

    /// How much of the lease is left, zero once it has run out; `None` when there is none, or it
    /// does not end by itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease()?.remaining(self.host.now())
    }

    /// Whether anyone holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store could not tell.
    pub fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.store.inspect(&self.holds.name)?.is_some())
    }

    /// Whether this lock's latest acquisition holds it, as the store says.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store could not tell, as one without fencing tokens that does not
    /// implement [`holds`](crate::Store::holds).
    pub fn is_held(&self) -> Result<bool, Error> {
        self.holds.is_held(&self.store)
    }

    /// Writes the lease down, to be handed to another process. From then on it outlives this
    /// process, and ends by its ttl alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties leases to the client that took them;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the store could not
    /// tell.
    pub fn serialize(&self) -> Result<SerializedLock, Error> {
        Ok(self.written_down(&self.holds.detach(&self.store)?))
    }

    /// The latest acquisition's lease, whatever has become of it since.
    pub fn lease(&self) -> Option<Lease> {
        Some(self.holds.latest()?.lease())
    }

    /// The lock's name.
    pub fn name(&self) -> &Name {
        &self.holds.name
    }

    /// How long the lock's leases last.
    pub fn ttl(&self) -> Ttl {
        self.holds.ttl
    }

    fn written_down(&self, lease: &Lease) -> SerializedLock {
        SerializedLock::new(
            lease,
            self.holds.ttl,
            self.host.now(),
            self.host.wall_clock(),
        )
    }

    fn extend_hold(&self, hold: &Hold, ttl: Option<Ttl>) -> Result<(), Error> {
        self.holds.extend(&self.store, &self.host, hold, ttl)
    }

    fn release_hold(&self, hold: &Hold) -> Result<(), Error> {
        self.holds.release(&self.store, hold)
    }
}

/// A lock that is held: given back when this is dropped.
///
/// A drop cannot say that it failed; [`release`](Self::release) can.
#[derive(Debug)]
#[must_use = "the lock is given back at once"]
pub struct Held<'a, S: Store, H: Host> {
    lock: &'a Lock<S, H>,
    hold: Hold,
    ended: bool,
}

impl<S: Store, H: Host> Held<'_, S, H> {
    /// The store that the lock is recorded in.
    pub fn store(&self) -> &S {
        &self.lock.store
    }

    /// The grant's fencing token; `None` from a store that does not count.
    pub fn fence(&self) -> Option<Fence> {
        self.lease().fence()
    }

    /// How much of the lease is left, zero once it has run out; `None` when it does not end by
    /// itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease().remaining(self.lock.host.now())
    }

    /// Whether the lease has run out.
    pub fn is_expired(&self) -> bool {
        self.lease().is_expired(self.lock.host.now())
    }

    /// The lease as it stands.
    pub fn lease(&self) -> Lease {
        self.hold.lease()
    }

    /// Writes the lease down without letting it outlive this process: for those who are given it
    /// while this process goes on holding it.
    pub fn describe(&self) -> SerializedLock {
        self.lock.written_down(&self.lease())
    }

    /// Lets the lease last `ttl` from now, or with `None` the lock's own ttl.
    ///
    /// # Errors
    ///
    /// As [`Lock::extend`].
    pub fn extend(&self, ttl: Option<Ttl>) -> Result<(), Error> {
        self.lock.extend_hold(&self.hold, ttl)
    }

    /// Keeps the lease alive until `pause` breaks, as [`keep`] does; returns what it broke with.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] as soon as the lock is lost; the lease [is expired](Self::is_expired) then,
    /// whatever was left of it.
    pub fn keep<B>(
        &self,
        mut pause: impl FnMut(&mut Renew, Duration) -> ControlFlow<B>,
    ) -> Result<B, Error> {
        let lock = self.lock;
        let revives = lock.store.abilities().revives;
        let (mut machine, with) = self.hold.renew(lock.holds.ttl, revives, lock.host.now());
        let with = RefCell::new(with);
        let learn = |machine: &Renew| with.borrow_mut().learn(machine);
        let pause = |machine: &mut Renew, at_most| {
            learn(machine);
            let end = pause(machine, at_most);
            with.borrow_mut().teach(machine, lock.host.now());
            end
        };
        let kept = keep_asking(&lock.store, &lock.host, &mut machine, learn, pause);
        learn(&machine);
        kept.map_err(|loss| {
            self.hold.end(loss);
            Error::Lost {
                name: lock.holds.name.clone(),
                loss,
                source: machine.failure().cloned(),
            }
        })
    }

    /// Returns whether the lock's owner has released it already, as far as is known in this process:
    /// through this lock, or elsewhere if the store has reported it since. A release is no loss.
    pub fn is_released(&self) -> bool {
        self.hold.is_released()
    }

    /// Releases the lock, unless its owner [has released it](Self::is_released) already.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] when it was no longer held; [`Error::Storage`] when the store could not
    /// tell.
    pub fn release(mut self) -> Result<(), Error> {
        self.ended = true;
        let (hold, lock) = (&self.hold, self.lock);
        let lease = hold.lease();
        if hold.is_released() {
            lock.holds.remove(lease.owner());
            return Ok(());
        }
        let loss = hold.loss(lock.host.now());
        let released = lock.release_hold(hold);
        if may_be_released(&released, loss, lock.store.abilities())
            && let Ok(Renewed::Released) = lock.store.renew(lease.claim(), lease.fence())
        {
            return Ok(());
        }
        released.map_err(|error| lost(error, hold, loss, lock.host.now()))
    }

    /// Leaves the lock taken: it is held until its lock is released or its time has passed.
    pub fn leave(mut self) -> Lease {
        self.ended = true;
        self.lease()
    }
}

impl<S: Store, H: Host> Drop for Held<'_, S, H> {
    fn drop(&mut self) {
        if !self.ended {
            // There is nobody to tell of a failure; the lease runs out by itself.
            let _ = self.lock.release_hold(&self.hold);
        }
    }
}
