//! The world of WASI 0.3: [`nonblocking`](crate::nonblocking) locks with an imported store, which awaits, clock and
//! source of randomness. This module only converts types.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::mem;
use core::pin::pin;
use core::task::{Poll, Waker};
use core::time::Duration;

use async_trait::async_trait;
use send_wrapper::SendWrapper;

use self::bindings::exports::verrou::async_lock::locks::{
    self as wit, Guest, GuestLock, Kept, LockError,
};
use self::bindings::verrou::async_lock::store as backend;
use self::bindings::wasi::clocks0_3_0::monotonic_clock;
use self::bindings::wasi::random0_3_0::random::get_random_u64;
use super::{
    Handle, NoGrant, acquired, capabilities, described, duration, forget_time, grant, held_by,
    nanos, only, owner, policy, record, renewed, replied, time, ttl, types,
};
use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::name::Name;
use crate::nonblocking::{self, AsyncHost, LockFactory};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Holder, Renewed, StoreError,
};
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
        world: "verrou:async-lock/lock-manager",
        path: ["wit", "wit/async"],
        with: { "verrou:lock/types@0.1.0": super::super::bindings::verrou::lock::types },
        generate_all,
    });

    use super::Component;
    export!(Component with_types_in self);
}

struct Component;

impl Guest for Component {
    type Lock = Lock;
}

/// A lock. Dropping it releases it, unless it was detached, serialized or restored.
struct Lock {
    core: nonblocking::Lock<Imported, Imported>,
    calls: Calls,
    _handle: Handle,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(lease) = self.core.lease()
            && lease.claim().ephemeral
        {
            backend::abandon(&record(lease.claim()));
        }
    }
}

impl Lock {
    fn resource(core: nonblocking::Lock<Imported, Imported>, handle: Handle) -> wit::Lock {
        wit::Lock::new(Self {
            core,
            calls: Calls::default(),
            _handle: handle,
        })
    }

    fn lock(&self) -> &nonblocking::Lock<Imported, Imported> {
        forget_time();
        &self.core
    }

    /// Acquires the lock; `None` if the call was stopped.
    async fn acquire_by(&self, retry: &Retry) -> Result<Option<wit::Acquisition>, LockError> {
        let owner = owner(get_random_u64)?;
        let acquiring = self.lock().guard_as(owner, retry);
        Ok(match self.calls.until_stopped(acquiring).await {
            None => None,
            Some(Ok(guard)) => Some(wit::Acquisition::Acquired(grant(&guard.leave()))),
            Some(Err(Error::Timeout { attempts, .. })) => Some(wit::Acquisition::GaveUp(attempts)),
            Some(Err(error)) => return Err(error.into()),
        })
    }
}

impl GuestLock for Lock {
    fn create(name: String, ttl: Option<u64>) -> Result<wit::Lock, LockError> {
        let handle = Handle::new()?;
        let lock = LockFactory::new(Imported, Imported).create_lock(&name, duration(ttl))?;
        Ok(Self::resource(lock, handle))
    }

    fn restore(serialized: String, now: u64) -> Result<wit::Lock, LockError> {
        forget_time();
        let handle = Handle::new()?;
        let serialized: SerializedLock = serialized.parse().map_err(Error::from)?;
        let factory = LockFactory::new(Imported, Imported);
        let lock = factory.restore_lock_at(&serialized, Duration::from_nanos(now));
        Ok(Self::resource(lock, handle))
    }

    async fn acquire(&self, retry: wit::Retry) -> Result<wit::Acquisition, LockError> {
        let retry = policy(&retry).map_err(Error::from)?;
        let end = self.acquire_by(&retry).await?;
        Ok(end.unwrap_or(wit::Acquisition::Stopped))
    }

    async fn try_acquire(&self) -> Result<Option<wit::Grant>, LockError> {
        Ok(match self.acquire_by(&Retry::NEVER).await? {
            Some(wit::Acquisition::Acquired(grant)) => Some(grant),
            _ => None,
        })
    }

    async fn release(&self) -> Result<(), LockError> {
        Ok(self.lock().release().await?)
    }

    async fn force_release(&self, token: Option<u64>) -> Result<bool, LockError> {
        match only(token) {
            Ok(only) => Ok(self.lock().force_release(only).await?),
            Err(NoGrant) => Ok(false),
        }
    }

    async fn extend(&self) -> Result<(), LockError> {
        let lock = self.lock();
        Ok(lock.extend(lock.ttl()).await?)
    }

    async fn extend_for(&self, nanos: Option<u64>) -> Result<(), LockError> {
        let ttl = ttl(nanos)?;
        Ok(self.lock().extend(ttl).await?)
    }

    async fn keep(&self) -> Result<Kept, LockError> {
        Ok(match self.calls.until_stopped(self.lock().keep()).await {
            None => Kept::Stopped,
            Some(Ok(())) => Kept::Released,
            Some(Err(Error::Lost { loss, .. })) => Kept::Lost(loss.into()),
            Some(Err(error)) => return Err(error.into()),
        })
    }

    fn stop(&self) {
        self.calls.stop();
    }

    fn is_expired(&self) -> bool {
        self.lock().is_expired()
    }

    fn remaining(&self) -> Option<u64> {
        self.lock().remaining().map(nanos)
    }

    async fn is_locked(&self) -> Result<bool, LockError> {
        Ok(self.lock().is_locked().await?)
    }

    async fn is_held(&self) -> Result<bool, LockError> {
        Ok(self.lock().is_held().await?)
    }

    async fn holders(&self) -> Result<Vec<types::Holder>, LockError> {
        let holders = self.lock().holders().await?;
        Ok(holders.into_iter().map(described).collect())
    }

    async fn detach(&self) -> Result<(), LockError> {
        Ok(self.lock().detach().await?)
    }

    async fn serialize(&self, now: u64) -> Result<String, LockError> {
        let lease = self.lock().detached().await?;
        let serialized = self.lock().serialized_at(&lease, Duration::from_nanos(now));
        Ok(serialized.to_string())
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

/// The calls of a lock that wait.
#[derive(Default)]
struct Calls {
    next: Cell<u64>,
    /// The calls that are in progress and were not stopped, by number.
    waiting: RefCell<BTreeMap<u64, Waker>>,
}

impl Calls {
    /// Awaits `call` until it ends, or is stopped: then it is dropped, and the result is `None`.
    async fn until_stopped<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let mut call = pin!(call);
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting
            .borrow_mut()
            .insert(number, Waker::noop().clone());
        let in_progress = InProgress {
            calls: self,
            number,
        };
        poll_fn(|context| {
            forget_time();
            if !in_progress.is_registered(context.waker()) {
                return Poll::Ready(None);
            }
            call.as_mut().poll(context).map(Some)
        })
        .await
    }

    /// Ends the calls that are in progress.
    fn stop(&self) {
        let stopped = mem::take(&mut *self.waiting.borrow_mut());
        stopped.into_values().for_each(Waker::wake);
    }
}

/// A call of a lock, until it ends.
struct InProgress<'a> {
    calls: &'a Calls,
    number: u64,
}

impl InProgress<'_> {
    /// Sets the waker of the call, and returns whether the call was not stopped.
    fn is_registered(&self, waker: &Waker) -> bool {
        let mut waiting = self.calls.waiting.borrow_mut();
        let registered = waiting.get_mut(&self.number);
        registered.map(|known| known.clone_from(waker)).is_some()
    }
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.calls.waiting.borrow_mut().remove(&self.number);
    }
}

/// The imports of the component: a store, a clock, and randomness.
///
/// A component has one thread, so that the futures of its imports need not be `Send`, as those of a store have to be.
#[derive(Clone, Copy, Debug)]
struct Imported;

impl Clock for Imported {
    fn now(&self) -> Timestamp {
        time(monotonic_clock::now)
    }
}

impl AsyncHost for Imported {
    async fn sleep(&self, pause: Duration) {
        SendWrapper::new(monotonic_clock::wait_for(nanos(pause))).await;
        forget_time();
    }

    /// Not called: each acquire request gets its owner token from this module, which refuses zeros.
    fn random(&self) -> [u8; 16] {
        owner(get_random_u64).unwrap_or_default()
    }

    /// Not called: the user of the component passes the time.
    fn wall_clock(&self) -> Duration {
        Duration::ZERO
    }
}

#[async_trait]
impl AsyncStore for Imported {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let mut unanswered = Unanswered(Some(record(claim)));
        let reply = SendWrapper::new(backend::acquire(record(claim))).await;
        unanswered.0 = None;
        acquired(reply)
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(SendWrapper::new(backend::extend(record(claim))).await)
    }

    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let fence = fence.map(Fence::get);
        renewed(SendWrapper::new(backend::renew(record(claim), fence)).await)
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let mut unanswered = Unanswered(Some(record(claim)));
        let reply = SendWrapper::new(backend::release(record(claim))).await;
        unanswered.0 = None;
        replied(reply)
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let (name, only) = (name.to_string(), only.map(Fence::get));
        replied(SendWrapper::new(backend::force_release(name, only)).await)
    }

    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        held_by(SendWrapper::new(backend::holders(name.to_string())).await)
    }

    fn capabilities(&self) -> Capabilities {
        capabilities(backend::get_capabilities())
    }

    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(SendWrapper::new(backend::detach(record(claim))).await)
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        let waiter = backend::join(&record(claim))?;
        Some(Box::new(Place {
            is_notified: waiter.is_notified(),
            waiter,
        }))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        let watch = backend::watch(&record(claim))?;
        Some(Box::new(Watch(watch)))
    }
}

/// A request to acquire or release a lock without a reply, which may have been granted. Dropping it leaves the release
/// to the store.
struct Unanswered(Option<types::Claim>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(claim) = &self.0 {
            backend::abandon(claim);
        }
    }
}

/// A place in the wait queue of the store.
struct Place {
    waiter: backend::Waiter,
    is_notified: bool,
}

#[async_trait]
impl AsyncWaiter for Place {
    async fn wait(&mut self, at_most: Duration) {
        SendWrapper::new(self.waiter.wait(nanos(at_most))).await;
        forget_time();
    }

    fn notifies(&self) -> bool {
        self.is_notified
    }
}

/// A watch of the store for the loss of a lease.
struct Watch(backend::LossWatch);

#[async_trait]
impl AsyncLossWatch for Watch {
    async fn wait(&mut self) {
        SendWrapper::new(self.0.wait()).await;
        forget_time();
    }
}
