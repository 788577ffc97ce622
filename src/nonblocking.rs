//! Async locks, for programs that wait in futures, on any executor.
//!
//! The functions are those of [`blocking`](crate::blocking), awaited. There is no async `Drop`: if a
//! [`Lock::run`] panics or is dropped before its end, its lock is released only by a store whose release
//! completes in one poll, as in [`Inline`] stores and in memory. In other stores it is held until its
//! lease expires.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::{self, Future};
use core::mem;
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use async_trait::async_trait;

use crate::acquire::{Acquire, AcquireStep};
use crate::cell::Shared;
use crate::claim::{Claim, Fence};
use crate::error::{Error, RunError};
use crate::held_lease::{Acquisition, LockState, into_loss, may_be_released};
use crate::lease::{Lease, Loss};
use crate::lock_api::lock_api;
use crate::locks::Locks;
use crate::name::Name;
use crate::renew::{Renew, RenewStep, SHORTEST_WATCH};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Holder, Renewed, Store,
    StoreError,
};
use crate::time::Clock;
use crate::ttl::Ttl;

/// The functions that an async caller provides besides a store.
pub trait AsyncHost: Clock + Send + Sync {
    /// Waits until `pause` has passed.
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> + Send;

    /// Returns 128 unpredictable bits.
    fn random(&self) -> [u8; 16];

    /// Returns the wall-clock time since the start of 1970 (UTC). It decides only the remaining time of a
    /// serialized lock.
    fn wall_clock(&self) -> Duration;
}

impl<H: AsyncHost + ?Sized> AsyncHost for Arc<H> {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> + Send {
        (**self).sleep(pause)
    }
    fn random(&self) -> [u8; 16] {
        (**self).random()
    }
    fn wall_clock(&self) -> Duration {
        (**self).wall_clock()
    }
}

/// An async store whose operations are blocking calls of another store, on the caller's thread. It suits
/// stores whose operations take microseconds: memory, and files on a local disk.
///
/// Its waits are the host's sleeps.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "a wrapper is what it wraps")]
pub struct Inline<S>(pub S);

#[deny(
    clippy::missing_trait_methods,
    reason = "a wrapper passes every method on"
)]
#[async_trait]
impl<S: Store> AsyncStore for Inline<S> {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.0.acquire(claim)
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.extend(claim)
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.release(claim)
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.0.force_release(name, only)
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.0.holders(name)
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.0.renew(claim, fence)
    }
    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        self.0.holds(claim, fence)
    }
    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.detach(claim)
    }
    fn waiter<'s>(&'s self, _claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        None
    }
    fn watch<'s>(&'s self, _claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        None
    }
}

/// Drives `machine` to its end, as [`blocking::acquire`](crate::blocking::acquire) does.
///
/// **Cancel safety.** Dropping the future while a request is in flight leaves its outcome unknown.
/// Dropping it at another time leaves nothing behind, unless a request has failed, and the store's
/// release does not complete in one poll.
///
/// # Errors
///
/// The errors of [`blocking::acquire`](crate::blocking::acquire).
pub async fn acquire(
    store: &impl AsyncStore,
    host: &impl AsyncHost,
    machine: Acquire,
) -> Result<Lease, Error> {
    let mut pending = PendingAcquire {
        store,
        machine,
        has_waited: false,
        waiter: None,
    };
    loop {
        match pending.machine.next(host.now()) {
            AcquireStep::Acquire(claim) => {
                let reply = store.acquire(claim).await;
                pending.machine.received(host.now(), reply);
            }
            AcquireStep::Release(claim) => {
                // After an error, the record that may be left expires.
                let _ = store.release(claim).await;
                pending.machine.released();
            }
            AcquireStep::Wait(claim, at_most) => {
                if !mem::replace(&mut pending.has_waited, true) {
                    pending.waiter = store.waiter(claim);
                }
                match &mut pending.waiter {
                    Some(waiter) => {
                        let at_most = if waiter.notifies() {
                            pending.machine.longest_wait(host.now())
                        } else {
                            at_most
                        };
                        either(waiter.wait(at_most), host.sleep(at_most)).await;
                    }
                    None => host.sleep(at_most).await,
                }
                pending.machine.waited(host.now());
            }
            AcquireStep::Sleep(pause) => {
                host.sleep(pause).await;
                pending.machine.waited(host.now());
            }
            AcquireStep::Done(end) => {
                if end.is_ok()
                    && let Some(waiter) = pending.waiter.take()
                {
                    waiter.granted();
                }
                return end;
            }
        }
    }
}

/// An acquire request. Dropping it before its end releases the grant that it may have, and removes its ticket
/// from the wait queue.
struct PendingAcquire<'a, S: AsyncStore> {
    store: &'a S,
    machine: Acquire,
    has_waited: bool,
    /// The waiter, from the first wait on, of a store that can wait.
    waiter: Option<Box<dyn AsyncWaiter + 'a>>,
}

impl<S: AsyncStore> Drop for PendingAcquire<'_, S> {
    fn drop(&mut self) {
        if self.machine.has_unknown_outcome() {
            poll_once(self.store.release(self.machine.claim()));
        }
        if mutant!(DroppedWaitKeepsPlace) {
            mem::forget(self.waiter.take());
        }
    }
}

/// Polls `operation` once, for a caller that cannot await it.
fn poll_once<T>(operation: impl Future<Output = T>) {
    let _ = pin!(operation).poll(&mut Context::from_waker(Waker::noop()));
}

/// Drives `machine` until the lock is lost, or `work` ends, and returns the value of `work`.
///
/// `noted` is called with the machine before each wait, and `waited` after it: `waited` calls
/// [`adopt`](Renew::adopt) if the lease was changed elsewhere in the meantime. If the lease has expired at
/// the end, it is renewed once more if its store [takes it back](Renew::reviving).
///
/// # Errors
///
/// The way in which the lock was lost; `work` is dropped then.
pub async fn keep<T>(
    store: &impl AsyncStore,
    host: &impl AsyncHost,
    machine: &mut Renew,
    noted: impl FnMut(&Renew),
    waited: impl FnMut(&mut Renew),
    work: impl Future<Output = T>,
) -> Result<T, Loss> {
    keep_observed(store, host, machine, |_| {}, noted, waited, work).await
}

/// Does what [`keep`] does, and calls `observe` before each renewal and after its reply.
async fn keep_observed<T>(
    store: &impl AsyncStore,
    host: &impl AsyncHost,
    machine: &mut Renew,
    mut observe: impl FnMut(&Renew),
    mut noted: impl FnMut(&Renew),
    mut waited: impl FnMut(&mut Renew),
    work: impl Future<Output = T>,
) -> Result<T, Loss> {
    let watch = store.watch(machine.lease().claim());
    let keeping = async {
        let mut watch = watch;
        loop {
            match machine.next(host.now()) {
                RenewStep::Renew(claim, fence) => {
                    let claim = claim.clone();
                    observe(machine);
                    let reply = store.renew(&claim, fence).await;
                    machine.received(host.now(), reply);
                    observe(machine);
                }
                RenewStep::Wait(at_most) => {
                    noted(machine);
                    let began = host.now();
                    let lost = async {
                        match &mut watch {
                            Some(watch) => watch.wait().await,
                            None => future::pending().await,
                        }
                    };
                    match either(host.sleep(at_most), lost).await {
                        Either::First(()) => waited(machine),
                        Either::Second(()) => {
                            // A store that notifies of losses all the time gets fewer requests.
                            if host.now().saturating_since(began) < SHORTEST_WATCH {
                                host.sleep(SHORTEST_WATCH).await;
                            }
                            waited(machine);
                            machine.suspect();
                        }
                    }
                }
                RenewStep::Released => {
                    noted(machine);
                    future::pending::<()>().await;
                }
                RenewStep::Lost(loss) => return loss,
            }
        }
    };
    let done = match either(work, keeping).await {
        Either::First(done) => done,
        Either::Second(loss) => return Err(loss),
    };
    waited(machine);
    while machine.is_late(host.now())
        // A failure can be ignored: the caller sees a loss as the expiry of the lease.
        && let RenewStep::Renew(claim, fence) = machine.next(host.now())
    {
        let claim = claim.clone();
        observe(machine);
        let reply = store.renew(&claim, fence).await;
        machine.received(host.now(), reply);
        observe(machine);
        noted(machine);
    }
    Ok(done)
}

enum Either<A, B> {
    First(A),
    Second(B),
}

/// Awaits both futures until one ends, and returns its value; the other is dropped.
async fn either<A, B>(
    first: impl Future<Output = A>,
    second: impl Future<Output = B>,
) -> Either<A, B> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    future::poll_fn(|context| {
        if let Poll::Ready(end) = first.as_mut().poll(context) {
            return Poll::Ready(Either::First(end));
        }
        second.as_mut().poll(context).map(Either::Second)
    })
    .await
}

lock_api!([async] [.await] AsyncStore AsyncHost);

#[cfg(feature = "component-async")]
impl<S: AsyncStore + Clone, H: AsyncHost + Clone> LockFactory<S, H> {
    /// Restores a lock as [`restore_lock`](Self::restore_lock) does, when the wall clock shows `wall` since the start
    /// of 1970 (UTC).
    pub(crate) fn restore_lock_at(
        &self,
        serialized: &SerializedLock,
        wall: Duration,
    ) -> Lock<S, H> {
        let (retry, now) = (self.retry.clone(), self.host.now());
        self.lock(LockState::restored(serialized, retry, now, wall))
    }
}

impl<S: AsyncStore, H: AsyncHost> Lock<S, H> {
    /// Acquires the lock, runs `body`, and releases the lock.
    ///
    /// If `body` panics, or the future is dropped before its end, the lock is released by a store whose
    /// release completes in one poll. In other stores it is held until its lease expires.
    ///
    /// # Errors
    ///
    /// [`RunError::NotAcquired`] when `body` was not run, [`RunError::Ended`] with the value that it
    /// returned when the lock was lost before `body` ended, or could not be released.
    pub async fn run<T>(
        &self,
        body: impl AsyncFnOnce(&Guard<S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        self.run_with(&self.0.state.retry, body).await
    }

    /// Does what [`run`](Self::run) does, waiting for the lock by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub async fn run_with<T>(
        &self,
        retry: &Retry,
        body: impl AsyncFnOnce(&Guard<S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        let guard = self
            .guard_with(retry)
            .await
            .map_err(RunError::NotAcquired)?;
        let value = body(&guard).await;
        match guard.release().await {
            Ok(()) => Ok(value),
            Err(error) => Err(RunError::Ended { value, error }),
        }
    }

    /// Does what [`run`](Self::run) does, if the lock is free now.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub async fn try_run<T>(
        &self,
        body: impl AsyncFnOnce(&Guard<S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        self.run_with(&Retry::NEVER, body).await
    }

    /// Returns the text of [`serialize`](Self::serialize) without detaching the lease.
    #[cfg(feature = "js")]
    pub(crate) fn serialize_attached(&self) -> Result<SerializedLock, Error> {
        let acquisition = self.0.state.transferable(self.0.store.capabilities())?;
        Ok(self.to_serialized(&acquisition.lease()))
    }

    /// Renews the lease of the latest acquisition until it ends: until the lock is released, here or elsewhere, or lost.
    /// Dropping the future ends the renewals.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired through this value, or is released; [`Error::Lost`] as soon as
    /// it is lost.
    pub async fn keep(&self) -> Result<(), Error> {
        let acquisition = self.0.state.latest_or_error()?;
        let renewing = self.renew_during(&acquisition, future::pending::<Infallible>());
        let mut renewing = pin!(renewing);
        future::poll_fn(|context| {
            match renewing.as_mut().poll(context) {
                Poll::Ready(Ok(never)) => match never {},
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
            if acquisition.is_released_or_wakes(context.waker()) {
                return Poll::Ready(Ok(()));
            }
            Poll::Pending
        })
        .await
    }

    /// Returns the text of `lease` when the wall clock shows `wall` since the start of 1970 (UTC).
    #[cfg(feature = "component-async")]
    pub(crate) fn serialized_at(&self, lease: &Lease, wall: Duration) -> SerializedLock {
        let LockParts { host, state, .. } = &*self.0;
        SerializedLock::new(lease, state.ttl, host.now(), wall)
    }

    /// Renews the lease of `acquisition` until `work` ends.
    pub(crate) async fn renew_during<T>(
        &self,
        acquisition: &Acquisition,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let LockParts { store, host, state } = &*self.0;
        let revives = store.capabilities().revives;
        let (mut machine, sync) = acquisition.renew(state.ttl, revives, host.now());
        // A task may continue on another thread.
        let sync = Shared::new(sync);
        let record = |machine: &Renew| sync.with(|sync| sync.record_renewal(machine));
        let update =
            |machine: &mut Renew| sync.with(|sync| sync.update_machine(machine, host.now()));
        let kept = keep_observed(store, host, &mut machine, record, record, update, work).await;
        kept.map_err(|loss| self.lost(acquisition, &machine, loss))
    }
}

impl<S: AsyncStore, H: AsyncHost> Guard<S, H> {
    /// Renews the lease until `work` ends, and returns the value of `work`.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] as soon as the lock is lost; `work` is dropped then.
    pub async fn keep<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.lock.renew_during(&self.acquisition, work).await
    }

    /// Renews the lease until the lock is lost, and returns the loss. A store that notifies of losses ends this
    /// at once. Never ends if the owner has released the lock; dropping the future ends the renewals.
    pub async fn lost(&self) -> Error {
        match self.keep(future::pending::<Infallible>()).await {
            Ok(never) => match never {},
            Err(error) => error,
        }
    }

    /// Ends the guard without a release, and returns its acquisition.
    #[cfg(feature = "js")]
    pub(crate) fn into_acquisition(mut self) -> Acquisition {
        self.ended = true;
        self.acquisition.clone()
    }
}

impl<S: AsyncStore, H: AsyncHost> Drop for Guard<S, H> {
    fn drop(&mut self) {
        if !self.ended {
            // A drop cannot await the release, or report an error.
            poll_once(self.lock.release_acquisition(&self.acquisition));
        }
    }
}
