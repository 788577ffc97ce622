//! The world of WASI 0.2: [`polled`] locks with an imported store, clock and source of randomness. This module only
//! converts types.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::time::Duration;

use self::bindings::exports::verrou::lock::locks::{
    self as wit, Acquiring, Grant, Guest, GuestAttempt, GuestLock, GuestRenewal, LockError,
    Progress,
};
use self::bindings::verrou::lock::store as backend;
use self::bindings::wasi::clocks::monotonic_clock;
use self::bindings::wasi::io::poll::Pollable;
use self::bindings::wasi::random::random::get_random_u64;
use super::{
    Handle, NoGrant, acquired, capabilities, described, duration, forget_time, grant, held_by,
    nanos, owner, policy, record, renewed, replied, time, ttl, types,
};
use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::name::Name;
use crate::polled::{self, Keeping};
use crate::serialized::SerializedLock;
use crate::store::{Acquired, Capabilities, Holder, Renewed, Store, StoreError};
use crate::time::{Clock, Timestamp};

#[allow(
    unsafe_code,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    unreachable_pub,
    reason = "generated from `wit/`, and calls across a component's boundary pass raw memory"
)]
mod bindings {
    wit_bindgen::generate!({
        world: "lock-manager",
        path: "wit",
        with: { "verrou:lock/types@0.1.0": super::super::bindings::verrou::lock::types },
        generate_all,
    });

    use super::Component;
    export!(Component with_types_in self);
}

struct Component;

impl Guest for Component {
    type Attempt = Attempt;
    type Lock = Lock;
    type Renewal = Renewal;
}

struct Lock(Rc<HeldLock>, Handle);
struct Renewal {
    machine: RefCell<polled::Renewal<Imported, Imported>>,
    _lock: Rc<HeldLock>,
    _handle: Handle,
}

struct Attempt {
    // Declared first, and dropped first: the place in the queue ends before the lock.
    waiter: RefCell<Option<backend::Waiter>>,
    machine: RefCell<polled::Attempt<Imported, Imported>>,
    /// The result of the first poll, until the user polls.
    first: Cell<Option<Progress>>,
    /// Whether the latest poll returned `wait`.
    waits: Cell<bool>,
    _lock: Rc<HeldLock>,
    _handle: Handle,
}

/// A lock. Dropping it releases it, unless it was detached, serialized or restored.
struct HeldLock(polled::Lock<Imported, Imported>);

impl Drop for HeldLock {
    fn drop(&mut self) {
        if self.0.lease().is_some_and(|lease| lease.claim().ephemeral) {
            // After an error the lease expires.
            let _ = self.0.release();
        }
    }
}

impl Lock {
    fn resource(lock: polled::Lock<Imported, Imported>, handle: Handle) -> wit::Lock {
        wit::Lock::new(Self(Rc::new(HeldLock(lock)), handle))
    }

    fn lock(&self) -> &polled::Lock<Imported, Imported> {
        forget_time();
        &self.0.0
    }
}

impl GuestLock for Lock {
    fn create(name: String, ttl: Option<u64>) -> Result<wit::Lock, LockError> {
        let handle = Handle::new()?;
        let lock = polled::Lock::new(Imported, Imported, &name, duration(ttl))?;
        Ok(Self::resource(lock, handle))
    }

    fn restore(serialized: String, now: u64) -> Result<wit::Lock, LockError> {
        forget_time();
        let handle = Handle::new()?;
        let serialized: SerializedLock = serialized.parse().map_err(Error::from)?;
        let wall = Duration::from_nanos(now);
        let lock = polled::Lock::restored(Imported, Imported, &serialized, wall);
        Ok(Self::resource(lock, handle))
    }

    fn acquire(&self, retry: wit::Retry) -> Result<Acquiring, LockError> {
        let handle = Handle::new()?;
        let retry = policy(&retry).map_err(Error::from)?;
        let mut attempt = self.lock().acquire(&retry, owner(get_random_u64)?);
        let first = progress(attempt.poll())?;
        if let Progress::Acquired(grant) = first {
            return Ok(Acquiring::Acquired(grant));
        }
        Ok(Acquiring::Pending(wit::Attempt::new(Attempt {
            waiter: RefCell::default(),
            machine: RefCell::new(attempt),
            first: Cell::new(Some(first)),
            waits: Cell::new(false),
            _lock: Rc::clone(&self.0),
            _handle: handle,
        })))
    }

    fn try_acquire(&self) -> Result<Option<Grant>, LockError> {
        match self.lock().try_acquire(owner(get_random_u64)?) {
            Ok(lease) => Ok(Some(grant(&lease))),
            Err(Error::Timeout { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn release(&self) -> Result<(), LockError> {
        Ok(self.lock().release()?)
    }

    fn force_release(&self, only: Option<u64>) -> Result<bool, LockError> {
        match super::only(only) {
            Ok(only) => Ok(self.lock().force_release(only)?),
            Err(NoGrant) => Ok(false),
        }
    }

    fn extend(&self) -> Result<(), LockError> {
        let lock = self.lock();
        Ok(lock.extend(lock.ttl())?)
    }

    fn extend_for(&self, nanos: Option<u64>) -> Result<(), LockError> {
        Ok(self.lock().extend(ttl(nanos)?)?)
    }

    fn keep(&self) -> Result<wit::Renewal, LockError> {
        let handle = Handle::new()?;
        let machine = RefCell::new(self.lock().keep()?);
        Ok(wit::Renewal::new(Renewal {
            machine,
            _lock: Rc::clone(&self.0),
            _handle: handle,
        }))
    }

    fn is_expired(&self) -> bool {
        self.lock().is_expired()
    }

    fn remaining(&self) -> Option<u64> {
        self.lock().remaining().map(nanos)
    }

    fn is_locked(&self) -> Result<bool, LockError> {
        Ok(self.lock().is_locked()?)
    }

    fn is_held(&self) -> Result<bool, LockError> {
        Ok(self.lock().is_held()?)
    }

    fn holders(&self) -> Result<Vec<types::Holder>, LockError> {
        let holders = self.lock().holders()?;
        Ok(holders.into_iter().map(described).collect())
    }

    fn detach(&self) -> Result<(), LockError> {
        Ok(self.lock().detach()?)
    }

    fn serialize(&self, now: u64) -> Result<String, LockError> {
        Ok(self
            .lock()
            .serialize(Duration::from_nanos(now))?
            .to_string())
    }

    fn fencing_token(&self) -> Option<u64> {
        Some(self.lock().lease()?.fence()?.get())
    }

    fn name(&self) -> String {
        self.lock().name().to_string()
    }

    fn ttl(&self) -> Option<u64> {
        self.lock().ttl().duration().map(nanos)
    }
}

impl GuestAttempt for Attempt {
    fn poll(&self) -> Result<Progress, LockError> {
        forget_time();
        let progress = match self.first.take() {
            Some(first) => first,
            None => progress(self.machine.borrow_mut().poll())?,
        };
        self.waits.set(matches!(progress, Progress::Wait(_)));
        if matches!(progress, Progress::Acquired(_) | Progress::GaveUp(_)) {
            self.waiter.take();
        }
        Ok(progress)
    }

    fn subscribe(&self) -> Option<Pollable> {
        if !self.waits.get() {
            return None;
        }
        let mut waiter = self.waiter.borrow_mut();
        if waiter.is_none() {
            *waiter = backend::join(&record(self.machine.borrow().claim()));
        }
        Some(waiter.as_ref()?.subscribe())
    }
}

fn progress(polled: Result<polled::Progress, Error>) -> Result<Progress, LockError> {
    Ok(match polled {
        Ok(polled::Progress::Acquired(lease)) => Progress::Acquired(grant(&lease)),
        Ok(polled::Progress::Wait(pause)) => Progress::Wait(nanos(pause)),
        Ok(polled::Progress::Pause(pause)) => Progress::Pause(nanos(pause)),
        Err(Error::Timeout { attempts, .. }) => Progress::GaveUp(attempts),
        Err(error) => return Err(error.into()),
    })
}

impl GuestRenewal for Renewal {
    fn poll(&self) -> wit::Keeping {
        forget_time();
        match self.machine.borrow_mut().poll() {
            Keeping::Held(wait) => wit::Keeping::Held(nanos(wait)),
            Keeping::Unknown { wait, why } => wit::Keeping::Unknown(wit::Doubt {
                wait: nanos(wait),
                why: why.to_string(),
            }),
            Keeping::Released => wit::Keeping::Released,
            Keeping::Lost(loss) => wit::Keeping::Lost(loss.into()),
        }
    }
}

/// The imports of the component: a store, a clock, and randomness.
#[derive(Clone, Copy, Debug)]
struct Imported;

impl Clock for Imported {
    fn now(&self) -> Timestamp {
        time(monotonic_clock::now)
    }
}

impl Store for Imported {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        acquired(backend::acquire(&record(claim)))
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(backend::extend(&record(claim)))
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        renewed(backend::renew(&record(claim), fence.map(Fence::get)))
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(backend::release(&record(claim)))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        replied(backend::force_release(name.as_str(), only.map(Fence::get)))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        held_by(backend::holders(name.as_str()))
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(backend::get_capabilities())
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(backend::detach(&record(claim)))
    }
}
