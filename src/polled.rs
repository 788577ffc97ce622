//! Polled locks, for programs that do their own waiting.
//!
//! No function here waits: an [`Attempt`] and a [`Renewal`] return how long the program may wait, by its
//! own means, before it polls them again. So one thread serves any number of waits. The WebAssembly
//! component exports these locks.
//!
//! ```
//! use std::sync::Arc;
//! use std::{thread, time::Duration};
//! use verrou::polled::{Lock, Progress};
//! use verrou::{MemoryStore, Retry, blocking::Host};
//! use verrou_host::System;
//!
//! let store = Arc::new(MemoryStore::new(System));
//! let lock = Lock::new(store, System, "my-resource", "2s")?;
//! let mut attempt = lock.acquire(&Retry::default().timeout(Duration::from_secs(1)), System.random());
//! let lease = loop {
//!     match attempt.poll()? {
//!         Progress::Acquired(lease) => break lease,
//!         Progress::Wait(pause) | Progress::Pause(pause) => thread::sleep(pause),
//!     }
//! };
//! assert!(lease.fence().is_some());
//! lock.release()?;
//! # Ok::<(), verrou::Error>(())
//! ```

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use crate::acquire::{Acquire, AcquireStep};
use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::held_lease::{LockState, RenewalSync};
use crate::lease::{Lease, Loss};
use crate::name::Name;
use crate::renew::{Health, Renew, RenewStep};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Holder, Store, StoreError};
use crate::time::Clock;
use crate::ttl::Ttl;

/// The point at which an [`Acquire`] has to wait, or has ended.
pub(crate) enum Halt {
    Wait(Duration),
    Sleep(Duration),
    Done(Result<Lease, Error>),
}

/// Drives `machine` until it has to wait, or has ended.
pub(crate) fn advance(store: &impl Store, clock: &impl Clock, machine: &mut Acquire) -> Halt {
    loop {
        match machine.next(clock.now()) {
            AcquireStep::Acquire(claim) => {
                let reply = store.acquire(claim);
                machine.received(clock.now(), reply);
            }
            AcquireStep::Release(claim) => {
                // After an error, the record that may be left expires.
                let _ = store.release(claim);
                machine.released();
            }
            AcquireStep::Wait(_, at_most) => return Halt::Wait(at_most),
            AcquireStep::Sleep(pause) => return Halt::Sleep(pause),
            AcquireStep::Done(end) => return Halt::Done(end),
        }
    }
}

/// Drives `machine` until it has to wait, or the lock is lost. Returns the maximum time to wait. Calls
/// `observe` before each renewal, and after its reply.
pub(crate) fn renew(
    store: &impl Store,
    clock: &impl Clock,
    machine: &mut Renew,
    mut observe: impl FnMut(&Renew),
) -> Result<Duration, Loss> {
    loop {
        match machine.next(clock.now()) {
            RenewStep::Renew(claim, fence) => {
                let claim = claim.clone();
                observe(machine);
                let reply = store.renew(&claim, fence);
                machine.received(clock.now(), reply);
                observe(machine);
            }
            RenewStep::Wait(at_most) => return Ok(at_most),
            RenewStep::Released => return Ok(Duration::MAX),
            RenewStep::Lost(loss) => return Err(loss),
        }
    }
}

/// A polled lock: the counterpart of [`blocking::Lock`](crate::blocking::Lock) for programs that do
/// their own waiting.
#[derive(Debug)]
pub struct Lock<S, C> {
    store: S,
    clock: C,
    state: Arc<LockState>,
}

impl<S: Store + Clone, C: Clock + Clone> Lock<S, C> {
    /// Returns a lock in `store`, named `name`, whose leases last `ttl`. Sends no request to the store.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], [`Error::InvalidTtl`].
    pub fn new<T>(store: S, clock: C, name: &str, ttl: T) -> Result<Self, Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let state = LockState::new(Name::new(name)?, ttl.try_into()?, Retry::NEVER);
        Ok(Self {
            store,
            clock,
            state: Arc::new(state),
        })
    }

    /// Returns the lock that [`serialize`](Self::serialize) serialized, perhaps in another process, when
    /// the wall clock shows `wall` since the start of 1970 (UTC). Sends no request to the store.
    pub fn restored(store: S, clock: C, serialized: &SerializedLock, wall: Duration) -> Self {
        let state = LockState::restored(serialized, Retry::NEVER, clock.now(), wall);
        Self {
            store,
            clock,
            state: Arc::new(state),
        }
    }

    /// Starts an acquisition with the policy `retry`; its first poll sends the first request.
    ///
    /// `random` is the owner token of this acquisition: 128 unpredictable bits.
    pub fn acquire(&self, retry: &Retry, random: [u8; 16]) -> Attempt<S, C> {
        let machine = self.state.acquire(retry, random, self.clock.now());
        Attempt {
            store: self.store.clone(),
            clock: self.clock.clone(),
            state: Arc::clone(&self.state),
            machine,
            acquired: false,
        }
    }

    /// Acquires the lock if it is free now, with the owner token `random` as in
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// The errors of [`Attempt::poll`].
    pub fn try_acquire(&self, random: [u8; 16]) -> Result<Lease, Error> {
        let mut attempt = self.acquire(&Retry::NEVER, random);
        loop {
            // A policy without a second attempt never waits.
            if let Progress::Acquired(lease) = attempt.poll()? {
                return Ok(lease);
            }
        }
    }

    /// Starts the auto-renewal of the lease.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired through this value, or is released.
    pub fn keep(&self) -> Result<Renewal<S, C>, Error> {
        let acquisition = self.state.latest_or_error()?;
        let revives = self.store.capabilities().revives;
        let (machine, sync) = acquisition.renew(self.state.ttl, revives, self.clock.now());
        Ok(Renewal {
            store: self.store.clone(),
            clock: self.clock.clone(),
            machine,
            sync,
        })
    }
}

impl<S: Store, C: Clock> Lock<S, C> {
    /// Releases the lock.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when it was never acquired through this value, or is lost; [`Error::Storage`]
    /// when the outcome is unknown, and the release may be retried.
    pub fn release(&self) -> Result<(), Error> {
        let acquisition = self.state.latest_or_error()?;
        let reply = self.store.release(acquisition.lease().claim());
        self.state.record_release(&acquisition, reply)
    }

    /// Force-releases the lock: frees it regardless of its holder, or only if it is held under the fencing
    /// token `only`. Returns whether it was held, under that token if one was given.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the outcome is unknown, or the store cannot force-release.
    pub fn force_release(&self, only: Option<Fence>) -> Result<bool, Error> {
        let before = self.state.latest();
        let reply = self.store.force_release(&self.state.name, only);
        self.state
            .record_force_release(only, before.as_ref(), reply)
    }

    /// Extends the lease to `ttl` from now, such as `"5s"`, or the lock's own [`ttl`](Self::ttl). This may
    /// shorten the lease.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired through this value, is lost, or its lease has
    /// expired; [`Error::Storage`] when the outcome is unknown: the lease then counts as lasting as long
    /// as before, or `ttl`, whichever is shorter; [`Error::InvalidTtl`].
    pub fn extend<T>(&self, ttl: T) -> Result<(), Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let ttl = ttl.try_into()?;
        let acquisition = self.state.latest_or_error()?;
        let extension = acquisition.extension(ttl, self.clock.now())?;
        let reply = self.store.extend(extension.request());
        extension.complete(reply)
    }

    /// Returns whether the lease has expired; `false` when there is none, or it does not end by itself.
    pub fn is_expired(&self) -> bool {
        self.lease()
            .is_some_and(|lease| lease.is_expired(self.clock.now()))
    }

    /// Returns the lease's remaining time, zero once it has expired; `None` when there is none, or it
    /// does not end by itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease()?.remaining(self.clock.now())
    }

    /// Returns whether the store records a holder of the lock.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine the holder.
    pub fn is_locked(&self) -> Result<bool, Error> {
        Ok(!self.holders()?.is_empty())
    }

    /// Returns whether the store records this value's latest acquisition as the lock's holder.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine that, like one without fencing tokens that does
    /// not implement [`holds`](crate::Store::holds).
    pub fn is_held(&self) -> Result<bool, Error> {
        let Some(acquisition) = self.state.latest() else {
            return Ok(false);
        };
        let lease = acquisition.lease();
        Ok(self.store.holds(lease.claim(), lease.fence())?)
    }

    /// Returns the lock's current holders, as the store records them: none when it is free, and otherwise
    /// one.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine the holders.
    pub fn holders(&self) -> Result<Vec<Holder>, Error> {
        Ok(self.store.holders(&self.state.name)?)
    }

    /// Detaches the lease from this process: from then on it ends by its ttl alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties a lease to the client that acquired it;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the outcome is unknown.
    pub fn detach(&self) -> Result<(), Error> {
        let acquisition = self.state.transferable(self.store.capabilities())?;
        let lease = acquisition.lease();
        if lease.claim().ephemeral {
            acquisition.record_detach(self.store.detach(lease.claim()))?;
        }
        Ok(())
    }

    /// Serializes the lease, for its transfer to another process, when the wall clock shows `wall`
    /// since the start of 1970 (UTC). Detaches it: from then on it outlives this process, and ends by its
    /// ttl alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties a lease to the client that acquired it;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the outcome is unknown.
    pub fn serialize(&self, wall: Duration) -> Result<SerializedLock, Error> {
        self.detach()?;
        let lease = self.state.latest_or_error()?.lease();
        let now = self.clock.now();
        Ok(SerializedLock::new(&lease, self.state.ttl, now, wall))
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
}

/// The progress of an [`Attempt`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a caller has to handle every state"
)]
pub enum Progress {
    /// The lock is held.
    Acquired(Lease),
    /// Another owner holds the lock: poll again as soon as it may be free, and after this long at the
    /// latest.
    Wait(Duration),
    /// The store failed: poll again after this long, not before.
    Pause(Duration),
}

/// One acquire request, from the first attempt to the lease.
///
/// To cancel it, drop it. If an attempt has failed by then, a claim that the store may have recorded
/// stays until its ttl has passed.
#[derive(Debug)]
#[must_use = "it does nothing unless polled"]
pub struct Attempt<S, C> {
    store: S,
    clock: C,
    state: Arc<LockState>,
    machine: Acquire,
    acquired: bool,
}

impl<S: Store, C: Clock> Attempt<S, C> {
    /// Returns the requested claim, for a wait by [`Store::waiter`].
    pub fn claim(&self) -> &Claim {
        self.machine.claim()
    }

    /// Sends the requests to the store that are due now, at most a few. After the end, each further call
    /// returns the same.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the policy ended, [`Error::Storage`] when the store failed,
    /// [`Error::Lost`] when grants repeatedly arrived after their expiry.
    pub fn poll(&mut self) -> Result<Progress, Error> {
        self.machine.waited(self.clock.now());
        Ok(match advance(&self.store, &self.clock, &mut self.machine) {
            Halt::Wait(at_most) => Progress::Wait(at_most),
            Halt::Sleep(pause) => Progress::Pause(pause),
            Halt::Done(end) => {
                let lease = end?;
                if !self.acquired {
                    self.acquired = true;
                    self.state.record_grant(lease.clone());
                }
                Progress::Acquired(lease)
            }
        })
    }
}

/// The state of a lease under auto-renewal.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "a caller has to handle every state"
)]
pub enum Keeping {
    /// The lock is held: poll again after this long.
    Held(Duration),
    /// The lease has not expired, but the last renewal failed: the store may no longer record it.
    Unknown {
        /// The time after which to poll again.
        wait: Duration,
        /// The store's error.
        why: StoreError,
    },
    /// The owner has released the lock. Nothing is left to renew.
    Released,
    /// The lock is no longer held.
    Lost(Loss),
}

/// The auto-renewal of one lease: it is renewed when a third of the lock's ttl has passed.
///
/// To end the auto-renewal, drop it; the lock keeps the lease. Each poll takes into account the other
/// operations on the lease through the lock. A release elsewhere is detected by the next renewal.
#[derive(Debug)]
#[must_use = "it does nothing unless polled"]
pub struct Renewal<S, C> {
    store: S,
    clock: C,
    machine: Renew,
    sync: RenewalSync,
}

impl<S: Store, C: Clock> Renewal<S, C> {
    /// Renews the lease if that is due. After [`Keeping::Lost`] each further call returns the same.
    pub fn poll(&mut self) -> Keeping {
        self.sync
            .update_machine(&mut self.machine, self.clock.now());
        let record = |machine: &Renew| self.sync.record_renewal(machine);
        let wait = match renew(&self.store, &self.clock, &mut self.machine, record) {
            Ok(wait) => wait,
            Err(loss) => return Keeping::Lost(loss),
        };
        self.sync.record_renewal(&self.machine);
        match self.machine.health() {
            Health::Unknown(why) => Keeping::Unknown {
                wait,
                why: why.clone(),
            },
            Health::Released => Keeping::Released,
            _ => Keeping::Held(wait),
        }
    }
}
