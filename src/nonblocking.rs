//! Async locks, for programs that wait in futures, on any executor.
//!
//! The functions are those of [`blocking`](crate::blocking), awaited. There is no async `Drop`: if a
//! [`Lock::run`] panics or is dropped before its end, its lock is released only by a store whose release
//! completes in one poll, as in [`Inline`] stores and in memory. In other stores it is held until its
//! lease expires.

use alloc::sync::Arc;
use core::future::{self, Future};
use core::pin::pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;

use crate::acquire::{Acquire, AcquireStep};
use crate::cell::Shared;
use crate::claim::{Claim, Fence};
use crate::error::{Error, RunError};
use crate::held_lease::{Acquisition, LockState, into_loss, may_be_released};
use crate::lease::{Lease, Loss};
use crate::locks::Locks;
use crate::name::Name;
use crate::renew::{Renew, RenewStep};
use crate::retry::Retry;
use crate::serialized::SerializedLock;
use crate::store::{Abilities, AsyncStore, Holder, Renewed, Reply, Store, StoreError};
use crate::time::Clock;
use crate::ttl::Ttl;

/// The functions that an async caller provides besides a store.
pub trait AsyncHost: Clock {
    /// Waits until `pause` has passed.
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()>;

    /// Returns 128 unpredictable bits.
    fn random(&self) -> [u8; 16];

    /// Returns the wall-clock time since the start of 1970 (UTC). It decides only the remaining time of a
    /// serialized lock.
    fn wall_clock(&self) -> Duration;
}

impl<H: AsyncHost + ?Sized> AsyncHost for Arc<H> {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> {
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

impl<S: Store> AsyncStore for Inline<S> {
    fn acquire(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        future::ready(self.0.acquire(claim))
    }
    fn extend(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        future::ready(self.0.extend(claim))
    }
    fn renew(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Renewed, StoreError>> {
        future::ready(self.0.renew(claim, fence))
    }
    fn release(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        future::ready(self.0.release(claim))
    }
    fn evict(
        &self,
        name: &Name,
        only: Option<Fence>,
    ) -> impl Future<Output = Result<Reply, StoreError>> {
        future::ready(self.0.evict(name, only))
    }
    fn inspect(&self, name: &Name) -> impl Future<Output = Result<Option<Holder>, StoreError>> {
        future::ready(self.0.inspect(name))
    }

    fn holds(
        &self,
        claim: &Claim,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<bool, StoreError>> {
        future::ready(self.0.holds(claim, fence))
    }
    fn detach(&self, claim: &Claim) -> impl Future<Output = Result<Reply, StoreError>> {
        future::ready(self.0.detach(claim))
    }
    fn abilities(&self) -> Abilities {
        self.0.abilities()
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
        waits: false,
    };
    loop {
        let reply = match pending.machine.next(host.now()) {
            AcquireStep::Acquire(claim) => store.acquire(claim).await,
            AcquireStep::Release(claim) => store.release(claim).await,
            AcquireStep::Wait(_, at_most) => {
                pending.waits = true;
                let at_most = if store.notifies() {
                    pending.machine.longest_wait(host.now())
                } else {
                    at_most
                };
                let claim = pending.machine.claim();
                either(store.wait(claim, at_most), host.sleep(at_most)).await;
                pending.machine.waited(host.now());
                continue;
            }
            AcquireStep::Sleep(pause) => {
                host.sleep(pause).await;
                pending.machine.waited(host.now());
                continue;
            }
            AcquireStep::Done(end) => {
                pending.waits &= end.is_err();
                return end;
            }
        };
        pending.machine.heard(host.now(), reply);
    }
}

/// An acquire request. Dropping it before its end removes its ticket from the wait queue, and releases the
/// grant that it may have.
struct PendingAcquire<'a, S: AsyncStore> {
    store: &'a S,
    machine: Acquire,
    /// Whether it may have a ticket.
    waits: bool,
}

impl<S: AsyncStore> Drop for PendingAcquire<'_, S> {
    fn drop(&mut self) {
        let claim = self.machine.claim();
        if self.machine.has_unknown_outcome() {
            poll_once(self.store.release(claim));
        }
        if self.waits && !mutant!(DroppedWaitKeepsPlace) {
            self.store.give_up(claim);
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
    let keeping = async {
        loop {
            match machine.next(host.now()) {
                RenewStep::Renew(claim, fence) => {
                    let claim = claim.clone();
                    observe(machine);
                    let reply = store.renew(&claim, fence).await;
                    machine.heard(host.now(), reply);
                    observe(machine);
                }
                RenewStep::Wait(at_most) => {
                    noted(machine);
                    let claim = machine.lease().claim().clone();
                    let began = host.now();
                    match either(host.sleep(at_most), store.lost(&claim)).await {
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
        machine.heard(host.now(), reply);
        observe(machine);
        noted(machine);
    }
    Ok(done)
}

/// The minimum length of a watch for a loss; one that ends sooner is prolonged.
const SHORTEST_WATCH: Duration = Duration::from_millis(1);

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

/// A factory of the locks of one store.
#[derive(Clone, Debug)]
pub struct LockFactory<S, H> {
    store: S,
    host: H,
    retry: Retry,
}

impl<S: AsyncStore + Clone, H: AsyncHost + Clone> LockFactory<S, H> {
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

impl<S: AsyncStore + Clone, H: AsyncHost + Clone> Locks<LockFactory<S, H>> {
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

/// An async lock: the counterpart of [`blocking::Lock`](crate::blocking::Lock).
#[derive(Debug)]
pub struct Lock<S, H> {
    store: S,
    host: H,
    state: LockState,
}

impl<S: AsyncStore, H: AsyncHost> Lock<S, H> {
    /// Acquires the lock, waiting by the factory's retry policy: by default, without end.
    ///
    /// The lock is held until it is released or its lease has expired.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the policy ended first, [`Error::Storage`] when the store failed.
    pub async fn acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&self.state.retry).await
    }

    /// Acquires the lock, waiting by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub async fn acquire_with(&self, retry: &Retry) -> Result<Lease, Error> {
        Ok(self.guard_with(retry).await?.leave())
    }

    /// Acquires the lock if it is free now.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&Retry::NEVER).await
    }

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
        body: impl AsyncFnOnce(&Held<'_, S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        self.run_with(&self.state.retry, body).await
    }

    /// Does what [`run`](Self::run) does, waiting for the lock by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`run`](Self::run).
    pub async fn run_with<T>(
        &self,
        retry: &Retry,
        body: impl AsyncFnOnce(&Held<'_, S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        let held = self
            .guard_with(retry)
            .await
            .map_err(RunError::NotAcquired)?;
        let value = body(&held).await;
        match held.release().await {
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
        body: impl AsyncFnOnce(&Held<'_, S, H>) -> T,
    ) -> Result<T, RunError<T>> {
        self.run_with(&Retry::NEVER, body).await
    }

    /// Releases the lock.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when it was never acquired through this value, or is lost; [`Error::Storage`]
    /// when the outcome is unknown, and the release may be retried.
    pub async fn release(&self) -> Result<(), Error> {
        self.release_acquisition(&self.state.latest_or_error()?)
            .await
    }

    /// Force-releases the lock: frees it regardless of its holder.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the outcome is unknown, or the store cannot force-release.
    pub async fn force_release(&self) -> Result<(), Error> {
        self.evict(None).await.map(drop)
    }

    /// Extends the lease to `ttl` from now, or with `None` to the lock's own ttl. This may shorten the
    /// lease.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired through this value, is lost, or its lease has
    /// expired; [`Error::Storage`] when the outcome is unknown: the lease then counts as lasting as long
    /// as before, or `ttl`, whichever is shorter.
    pub async fn extend(&self, ttl: Option<Ttl>) -> Result<(), Error> {
        self.extend_acquisition(&self.state.latest_or_error()?, ttl)
            .await
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
    pub async fn is_locked(&self) -> Result<bool, Error> {
        Ok(self.holder().await?.is_some())
    }

    /// Returns whether the store records this value's latest acquisition as the lock's holder.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine that, like one without fencing tokens that does
    /// not implement [`holds`](crate::Store::holds).
    pub async fn is_held(&self) -> Result<bool, Error> {
        let Some(acquisition) = self.state.latest() else {
            return Ok(false);
        };
        let lease = acquisition.lease();
        Ok(self.store.holds(lease.claim(), lease.fence()).await?)
    }

    /// Serializes the lease, for its transfer to another process. Detaches it: from then on it outlives
    /// this process, and ends by its ttl alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties a lease to the client that acquired it;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the outcome is unknown.
    pub async fn serialize(&self) -> Result<SerializedLock, Error> {
        let acquisition = self.state.transferable(self.store.abilities())?;
        let lease = acquisition.lease();
        if lease.claim().ephemeral {
            acquisition.record_detach(self.store.detach(lease.claim()).await)?;
        }
        Ok(self.to_serialized(&lease))
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

    /// Returns the text of [`serialize`](Self::serialize) without detaching the lease.
    #[cfg(feature = "js")]
    pub(crate) fn serialize_attached(&self) -> Result<SerializedLock, Error> {
        let acquisition = self.state.transferable(self.store.abilities())?;
        Ok(self.to_serialized(&acquisition.lease()))
    }

    fn to_serialized(&self, lease: &Lease) -> SerializedLock {
        let (now, wall) = (self.host.now(), self.host.wall_clock());
        SerializedLock::new(lease, self.state.ttl, now, wall)
    }

    pub(crate) async fn evict(&self, only: Option<Fence>) -> Result<bool, Error> {
        let before = self.state.latest();
        let reply = self.store.evict(&self.state.name, only).await;
        self.state
            .record_force_release(only, before.as_ref(), reply)
    }

    pub(crate) async fn holder(&self) -> Result<Option<Holder>, Error> {
        Ok(self.store.inspect(&self.state.name).await?)
    }

    async fn guard_with(&self, retry: &Retry) -> Result<Held<'_, S, H>, Error> {
        self.guard_as(self.host.random(), retry).await
    }

    pub(crate) async fn guard_as(
        &self,
        owner: [u8; 16],
        retry: &Retry,
    ) -> Result<Held<'_, S, H>, Error> {
        let machine = self.state.acquire(retry, owner, self.host.now());
        let lease = acquire(&self.store, &self.host, machine).await?;
        Ok(Held {
            lock: self,
            acquisition: self.state.record_grant(lease),
            ended: false,
        })
    }

    pub(crate) async fn renew_during<T>(
        &self,
        acquisition: &Acquisition,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        let revives = self.store.abilities().revives;
        let (mut machine, sync) = acquisition.renew(self.state.ttl, revives, self.host.now());
        // A task may continue on another thread.
        let sync = Shared::new(sync);
        let record = |machine: &Renew| sync.with(|sync| sync.record_renewal(machine));
        let update =
            |machine: &mut Renew| sync.with(|sync| sync.update_machine(machine, self.host.now()));
        let (store, host) = (&self.store, &self.host);
        let kept = keep_observed(store, host, &mut machine, record, record, update, work).await;
        kept.map_err(|loss| {
            acquisition.record_loss(loss);
            Error::Lost {
                name: self.state.name.clone(),
                loss,
                source: machine.failure().cloned(),
            }
        })
    }

    async fn extend_acquisition(
        &self,
        acquisition: &Acquisition,
        ttl: Option<Ttl>,
    ) -> Result<(), Error> {
        let sent = self.host.now();
        let extension = acquisition.extension(ttl.unwrap_or(self.state.ttl), sent)?;
        let reply = self.store.extend(extension.request()).await;
        extension.complete(reply)
    }

    pub(crate) async fn release_acquisition(&self, acquisition: &Acquisition) -> Result<(), Error> {
        let reply = self.store.release(acquisition.lease().claim()).await;
        self.state.record_release(acquisition, reply)
    }

    /// Releases the lock of a guard, unless its owner has released it already.
    pub(crate) async fn release_guarded(&self, acquisition: &Acquisition) -> Result<(), Error> {
        let lease = acquisition.lease();
        if acquisition.is_released() {
            self.state.remove(lease.owner());
            return Ok(());
        }
        let loss = acquisition.loss(self.host.now());
        let released = self.release_acquisition(acquisition).await;
        if may_be_released(&released, loss, self.store.abilities())
            && let Ok(Renewed::Released) = self.store.renew(lease.claim(), lease.fence()).await
        {
            return Ok(());
        }
        released.map_err(|error| into_loss(error, acquisition, loss, self.host.now()))
    }
}

/// The guard of a lock that is held by a [`Lock::run`].
#[derive(Debug)]
pub struct Held<'a, S: AsyncStore, H: AsyncHost> {
    lock: &'a Lock<S, H>,
    acquisition: Acquisition,
    ended: bool,
}

impl<S: AsyncStore, H: AsyncHost> Held<'_, S, H> {
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

    /// Extends the lease to `ttl` from now, or with `None` to the lock's own ttl.
    ///
    /// # Errors
    ///
    /// The errors of [`Lock::extend`].
    pub async fn extend(&self, ttl: Option<Ttl>) -> Result<(), Error> {
        self.lock.extend_acquisition(&self.acquisition, ttl).await
    }

    /// Renews the lease until `work` ends, and returns the value of `work`.
    ///
    /// # Errors
    ///
    /// [`Error::Lost`] as soon as the lock is lost; `work` is dropped then.
    pub async fn keep<T>(&self, work: impl Future<Output = T>) -> Result<T, Error> {
        self.lock.renew_during(&self.acquisition, work).await
    }

    fn leave(self) -> Lease {
        self.into_acquisition().lease()
    }

    /// Ends the guard without a release, and returns its lease.
    pub(crate) fn into_acquisition(mut self) -> Acquisition {
        self.ended = true;
        self.acquisition.clone()
    }

    pub(crate) async fn release(mut self) -> Result<(), Error> {
        let released = self.lock.release_guarded(&self.acquisition).await;
        self.ended = true;
        released
    }
}

impl<S: AsyncStore, H: AsyncHost> Drop for Held<'_, S, H> {
    fn drop(&mut self) {
        if !self.ended {
            // A drop cannot await the release, or report an error.
            poll_once(self.lock.release_acquisition(&self.acquisition));
        }
    }
}
