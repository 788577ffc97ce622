//! Locks for programs that do their own waiting.
//!
//! Nothing here waits: an [`Attempt`] and a [`Renewal`] say for how long to wait, in whatever way
//! the program has, before they are polled again. So one thread serves any number of waits. The
//! WebAssembly component is these locks behind an interface.
//!
//! ```
//! use std::sync::Arc;
//! use std::{thread, time::Duration};
//! use verrou::stepped::{Lock, Progress};
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
use core::time::Duration;

use crate::acquire::{Acquire, AcquireStep};
use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::holds::{Exchange, Holds};
use crate::lease::{Lease, Loss};
use crate::name::Name;
use crate::renew::{Health, Renew, RenewStep};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Holder, Store, StoreError};
use crate::time::Clock;
use crate::ttl::Ttl;

/// Where an [`Acquire`] cannot go on at once.
pub(crate) enum Halt {
    Wait(Duration),
    Sleep(Duration),
    Done(Result<Lease, Error>),
}

/// Drives `machine` until it has to wait, or to its end.
pub(crate) fn advance(store: &impl Store, clock: &impl Clock, machine: &mut Acquire) -> Halt {
    loop {
        let reply = match machine.next(clock.now()) {
            AcquireStep::Acquire(claim) => store.acquire(claim),
            AcquireStep::Release(claim) => store.release(claim),
            AcquireStep::Wait(_, at_most) => return Halt::Wait(at_most),
            AcquireStep::Sleep(pause) => return Halt::Sleep(pause),
            AcquireStep::Done(end) => return Halt::Done(end),
        };
        machine.heard(clock.now(), reply);
    }
}

/// Drives `machine` until it has to wait, and says how long at most, or until the lock is lost.
/// `asking` is called before each renewal, and after its reply.
pub(crate) fn renew(
    store: &impl Store,
    clock: &impl Clock,
    machine: &mut Renew,
    mut asking: impl FnMut(&Renew),
) -> Result<Duration, Loss> {
    loop {
        match machine.next(clock.now()) {
            RenewStep::Renew(claim, fence) => {
                let claim = claim.clone();
                asking(machine);
                let reply = store.renew(&claim, fence);
                machine.heard(clock.now(), reply);
                asking(machine);
            }
            RenewStep::Wait(at_most) => return Ok(at_most),
            RenewStep::Released => return Ok(Duration::MAX),
            RenewStep::Lost(loss) => return Err(loss),
        }
    }
}

/// A lock that may be taken: [`blocking::Lock`](crate::blocking::Lock), for programs that do their
/// own waiting.
#[derive(Debug)]
pub struct Lock<S, C> {
    store: S,
    clock: C,
    holds: Arc<Holds>,
}

impl<S: Store + Clone, C: Clock + Clone> Lock<S, C> {
    /// A lock in `store`, called `name`, whose leases last `ttl`. Nothing is asked of the store
    /// yet.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], [`Error::InvalidTtl`].
    pub fn new<T>(store: S, clock: C, name: &str, ttl: T) -> Result<Self, Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let holds = Holds::new(Name::new(name)?, ttl.try_into()?, Retry::NEVER);
        Ok(Self {
            store,
            clock,
            holds: Arc::new(holds),
        })
    }

    /// The lock that [`serialize`](Self::serialize) wrote down, perhaps in another process, when
    /// the wall clock shows `wall` since the start of 1970 (UTC). Nothing is asked of the store
    /// yet.
    pub fn restored(store: S, clock: C, serialized: &SerializedLock, wall: Duration) -> Self {
        let holds = Holds::restored(serialized, Retry::NEVER, clock.now(), wall);
        Self {
            store,
            clock,
            holds: Arc::new(holds),
        }
    }

    /// Begins to ask for the lock, as `retry` says; the first poll makes the first request.
    ///
    /// `random` are 128 bits that no one can guess: the owner of this acquisition.
    pub fn acquire(&self, retry: &Retry, random: [u8; 16]) -> Attempt<S, C> {
        let machine = self.holds.acquire(retry, random, self.clock.now());
        Attempt {
            store: self.store.clone(),
            clock: self.clock.clone(),
            holds: Arc::clone(&self.holds),
            machine,
            acquired: false,
        }
    }

    /// Takes the lock if it is free now, for an owner made of `random` as in
    /// [`acquire`](Self::acquire).
    ///
    /// # Errors
    ///
    /// As [`Attempt::poll`].
    pub fn try_acquire(&self, random: [u8; 16]) -> Result<Lease, Error> {
        let mut attempt = self.acquire(&Retry::NEVER, random);
        loop {
            // A policy without a second attempt never waits.
            if let Progress::Acquired(lease) = attempt.poll()? {
                return Ok(lease);
            }
        }
    }

    /// Begins to keep the lease alive.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired here, or is given back.
    pub fn keep(&self) -> Result<Renewal<S, C>, Error> {
        let hold = self.holds.held()?;
        let revives = self.store.abilities().revives;
        let (machine, with) = hold.renew(self.holds.ttl, revives, self.clock.now());
        Ok(Renewal {
            store: self.store.clone(),
            clock: self.clock.clone(),
            machine,
            with,
        })
    }
}

impl<S: Store, C: Clock> Lock<S, C> {
    /// Gives the lock back.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when it was never acquired here, or is lost; [`Error::Storage`] when the
    /// store could not tell, and then it may be tried again.
    pub fn release(&self) -> Result<(), Error> {
        self.holds.release(&self.store, &self.holds.held()?)
    }

    /// Frees the lock, whoever holds it, or only if it is held under the fence `only`: whether
    /// there was somebody to evict.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store could not tell, or lets nobody be evicted.
    pub fn force_release(&self, only: Option<Fence>) -> Result<bool, Error> {
        let before = self.holds.latest();
        let reply = self.store.evict(&self.holds.name, only);
        self.holds.evicted(only, before.as_ref(), reply)
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
        self.holds
            .extend(&self.store, &self.clock, &self.holds.held()?, ttl)
    }

    /// Whether the lease has run out. Not when there is none, or it does not end by itself.
    pub fn is_expired(&self) -> bool {
        self.lease()
            .is_some_and(|lease| lease.is_expired(self.clock.now()))
    }

    /// How much of the lease is left, zero once it has run out; `None` when there is none, or it
    /// does not end by itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease()?.remaining(self.clock.now())
    }

    /// Whether anyone holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store could not tell.
    pub fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.holder()?.is_some())
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

    /// Who holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store could not tell.
    pub fn holder(&self) -> Result<Option<Holder>, Error> {
        Ok(self.store.inspect(&self.holds.name)?)
    }

    /// Writes the lease down, to be handed to another process, when the wall clock shows `wall`
    /// since the start of 1970 (UTC). From then on it outlives this process, and ends by its ttl
    /// alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties leases to the client that took them;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the store could not
    /// tell.
    pub fn serialize(&self, wall: Duration) -> Result<SerializedLock, Error> {
        let lease = self.holds.detach(&self.store)?;
        let now = self.clock.now();
        Ok(SerializedLock::new(&lease, self.holds.ttl, now, wall))
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
}

/// How far an [`Attempt`] has come.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever waits has to know every step"
)]
pub enum Progress {
    /// The lock is held.
    Acquired(Lease),
    /// Another holds it: poll again as soon as it may be free, and after this long at the latest.
    Wait(Duration),
    /// The store is in trouble: poll again after this long, not before.
    Pause(Duration),
}

/// One wish to hold a lock, from the first request to the lease.
///
/// To stop wishing, drop it. If the store was in trouble by then, what it may have recorded stays
/// until its ttl has passed.
#[derive(Debug)]
#[must_use = "it does nothing unless polled"]
pub struct Attempt<S, C> {
    store: S,
    clock: C,
    holds: Arc<Holds>,
    machine: Acquire,
    acquired: bool,
}

impl<S: Store, C: Clock> Attempt<S, C> {
    /// What is asked for: to wait as the store does, by [`Store::wait`]. Whoever does so says when
    /// it stops, by [`Store::give_up`].
    pub fn claim(&self) -> &Claim {
        self.machine.claim()
    }

    /// Does what is to be done now: at most a few requests to the store. At the end it repeats
    /// itself.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the policy ended, [`Error::Storage`] when the store failed,
    /// [`Error::Lost`] when grants kept coming too late.
    pub fn poll(&mut self) -> Result<Progress, Error> {
        self.machine.waited(self.clock.now());
        Ok(match advance(&self.store, &self.clock, &mut self.machine) {
            Halt::Wait(at_most) => Progress::Wait(at_most),
            Halt::Sleep(pause) => Progress::Pause(pause),
            Halt::Done(end) => {
                let lease = end?;
                if !self.acquired {
                    self.acquired = true;
                    self.holds.add(lease.clone());
                }
                Progress::Acquired(lease)
            }
        })
    }
}

/// What is known of a lease that is being kept.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever keeps a lease has to know every state"
)]
pub enum Keeping {
    /// It is held: poll again after this long.
    Held(Duration),
    /// Its time has not passed, but the last extension failed: it may not be recorded any more.
    Unknown {
        /// Poll again after this long.
        wait: Duration,
        /// What the store said.
        why: StoreError,
    },
    /// The owner has released the lock. Nothing is left to renew.
    Released,
    /// It is not held any more.
    Lost(Loss),
}

/// The auto-renewal of one lease: it is renewed when a third of the lock's ttl has passed.
///
/// To end the auto-renewal, drop it; the lock keeps the lease. Each poll takes into account what else
/// was done to the lease through the lock. A release elsewhere is detected by the next renewal.
#[derive(Debug)]
#[must_use = "it does nothing unless polled"]
pub struct Renewal<S, C> {
    store: S,
    clock: C,
    machine: Renew,
    with: Exchange,
}

impl<S: Store, C: Clock> Renewal<S, C> {
    /// Renews the lease if that is due. After [`Keeping::Lost`] each further call returns the same.
    pub fn poll(&mut self) -> Keeping {
        self.with.teach(&mut self.machine, self.clock.now());
        let learn = |machine: &Renew| self.with.learn(machine);
        let wait = match renew(&self.store, &self.clock, &mut self.machine, learn) {
            Ok(wait) => wait,
            Err(loss) => return Keeping::Lost(loss),
        };
        self.with.learn(&self.machine);
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
