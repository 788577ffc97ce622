//! The API of a lock, written once for threads and for futures.

/// Defines the lock factory, the lock and its guard: `lock_api!([] [] Store Host)` for threads, and
/// `lock_api!([async] [.await] AsyncStore AsyncHost)` for futures.
///
/// The module provides `acquire`, which drives an acquire request to its end. `run`, `keep` and the drop of a
/// guard differ between the two, and are written there.
macro_rules! lock_api {
    ([$($async:tt)*] [$($await:tt)*] $Store:ident $Host:ident) => {
/// A factory of the locks of one store.
#[derive(Clone, Debug)]
pub struct LockFactory<S, H> {
    store: S,
    host: H,
    retry: Retry,
}

impl<S: $Store + Clone, H: $Host + Clone> LockFactory<S, H> {
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
        Lock(Arc::new(LockParts {
            store: self.store.clone(),
            host: self.host.clone(),
            state,
        }))
    }
}

impl<S: $Store + Clone, H: $Host + Clone> Locks<LockFactory<S, H>> {
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

/// A lock. A clone of it is the same lock.
///
/// Every acquisition has its own owner token, so a lock is not reentrant: a second acquisition waits for
/// the first. *The lease* is that of the latest acquisition made through this value; a [`Guard`] stays
/// bound to its own acquisition.
#[derive(Debug)]
pub struct Lock<S, H>(Arc<LockParts<S, H>>);

#[derive(Debug)]
struct LockParts<S, H> {
    store: S,
    host: H,
    state: LockState,
}

impl<S, H> Clone for Lock<S, H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: $Store, H: $Host> Lock<S, H> {
    /// Acquires the lock, waiting by the factory's retry policy: by default, without end.
    ///
    /// The lock is held until it is released or its lease has expired; dropping this value does not
    /// release it. [`guard`](Self::guard) and [`run`](Self::run) release it automatically.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when the policy ended first, [`Error::Storage`] when the store failed.
    pub $($async)* fn acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&self.0.state.retry)$($await)*
    }

    /// Acquires the lock, waiting by the policy `retry`.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub $($async)* fn acquire_with(&self, retry: &Retry) -> Result<Lease, Error> {
        Ok(self.guard_with(retry)$($await)*?.leave())
    }

    /// Acquires the lock if it is free now.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub $($async)* fn try_acquire(&self) -> Result<Lease, Error> {
        self.acquire_with(&Retry::NEVER)$($await)*
    }

    /// Acquires the lock as [`acquire`](Self::acquire) does, and returns a guard that releases it when it
    /// is dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub $($async)* fn guard(&self) -> Result<Guard<S, H>, Error> {
        self.guard_with(&self.0.state.retry)$($await)*
    }

    /// Acquires the lock, waiting by the policy `retry`, and returns a guard that releases it when it is
    /// dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub $($async)* fn guard_with(&self, retry: &Retry) -> Result<Guard<S, H>, Error> {
        self.guard_as(self.0.host.random(), retry)$($await)*
    }

    /// Acquires the lock if it is free now, and returns a guard that releases it when it is dropped.
    ///
    /// # Errors
    ///
    /// The errors of [`acquire`](Self::acquire).
    pub $($async)* fn try_guard(&self) -> Result<Guard<S, H>, Error> {
        self.guard_with(&Retry::NEVER)$($await)*
    }

    /// Acquires the lock with the owner token `owner`.
    pub(crate) $($async)* fn guard_as(
        &self,
        owner: [u8; 16],
        retry: &Retry,
    ) -> Result<Guard<S, H>, Error> {
        let LockParts { store, host, .. } = &*self.0;
        let machine = self.acquire_machine(owner, retry);
        let lease = acquire(store, host, machine)$($await)*?;
        Ok(self.granted(lease))
    }

    fn acquire_machine(&self, owner: [u8; 16], retry: &Retry) -> Acquire {
        let LockParts { host, state, .. } = &*self.0;
        state.acquire(retry, owner, host.now())
    }

    /// Returns the guard of a grant.
    fn granted(&self, lease: Lease) -> Guard<S, H> {
        Guard {
            acquisition: self.0.state.record_grant(lease),
            lock: self.clone(),
            ended: false,
        }
    }

    /// Releases the lock.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when it was never acquired through this value, or is lost; [`Error::Storage`]
    /// when the outcome is unknown, and the release may be retried.
    pub $($async)* fn release(&self) -> Result<(), Error> {
        self.release_acquisition(&self.0.state.latest_or_error()?)$($await)*
    }

    /// Force-releases the lock: frees it regardless of its holder, or only if it is held under the fencing
    /// token `only`. Returns whether a holder was removed.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the outcome is unknown, or the store cannot force-release.
    pub $($async)* fn force_release(&self, only: Option<Fence>) -> Result<bool, Error> {
        let LockParts { store, state, .. } = &*self.0;
        let before = state.latest();
        let reply = store.force_release(&state.name, only)$($await)*;
        state.record_force_release(only, before.as_ref(), reply)
    }

    /// Extends the lease to `ttl` from now, such as `"5s"`, or the lock's own [`ttl`](Self::ttl). This may
    /// shorten the lease.
    ///
    /// # Errors
    ///
    /// [`Error::NotOwner`] when the lock was never acquired through this value, is lost, or its lease has
    /// expired; [`Error::Storage`] when the outcome is unknown: the lease then counts as lasting as long
    /// as before, or `ttl`, whichever is shorter; [`Error::InvalidTtl`].
    pub $($async)* fn extend<T>(&self, ttl: T) -> Result<(), Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let ttl = ttl.try_into()?;
        self.extend_acquisition(&self.0.state.latest_or_error()?, ttl)$($await)*
    }

    /// Returns whether the lease has expired; `false` when there is none, or it does not end by itself.
    pub fn is_expired(&self) -> bool {
        self.lease()
            .is_some_and(|lease| lease.is_expired(self.0.host.now()))
    }

    /// Returns the lease's remaining time, zero once it has expired; `None` when there is none, or it
    /// does not end by itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease()?.remaining(self.0.host.now())
    }

    /// Returns whether the store records a holder of the lock.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine the holders.
    pub $($async)* fn is_locked(&self) -> Result<bool, Error> {
        Ok(!self.holders()$($await)*?.is_empty())
    }

    /// Returns the lock's current holders, as the store records them: none when it is free, and otherwise
    /// one.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine the holders.
    pub $($async)* fn holders(&self) -> Result<Vec<Holder>, Error> {
        Ok(self.0.store.holders(&self.0.state.name)$($await)*?)
    }

    /// Returns whether the store records this value's latest acquisition as the lock's holder.
    ///
    /// # Errors
    ///
    /// [`Error::Storage`] when the store cannot determine that, like one without fencing tokens that does
    /// not implement [`holds`](crate::Store::holds).
    pub $($async)* fn is_held(&self) -> Result<bool, Error> {
        let Some(acquisition) = self.0.state.latest() else {
            return Ok(false);
        };
        let lease = acquisition.lease();
        Ok(self.0.store.holds(lease.claim(), lease.fence())$($await)*?)
    }

    /// Serializes the lease, for its transfer to another process. Detaches it: from then on it outlives
    /// this process, and ends by its ttl alone.
    ///
    /// # Errors
    ///
    /// [`Error::NotSerializable`] when the store ties a lease to the client that acquired it;
    /// [`Error::NotOwner`] when the lock is not held; [`Error::Storage`] when the outcome is unknown.
    pub $($async)* fn serialize(&self) -> Result<SerializedLock, Error> {
        let lease = self.detached()$($await)*?;
        Ok(self.to_serialized(&lease))
    }

    /// Detaches the lease from this process: from then on it ends by its ttl alone.
    ///
    /// # Errors
    ///
    /// The errors of [`serialize`](Self::serialize).
    pub $($async)* fn detach(&self) -> Result<(), Error> {
        self.detached()$($await)*?;
        Ok(())
    }

    /// Detaches the lease, and returns it.
    pub(crate) $($async)* fn detached(&self) -> Result<Lease, Error> {
        let acquisition = self.0.state.transferable(self.0.store.capabilities())?;
        let lease = acquisition.lease();
        if lease.claim().ephemeral {
            acquisition.record_detach(self.0.store.detach(lease.claim())$($await)*)?;
        }
        Ok(acquisition.lease())
    }

    /// Returns the latest acquisition's lease, which may have ended since.
    pub fn lease(&self) -> Option<Lease> {
        Some(self.0.state.latest()?.lease())
    }

    /// Returns the lock's name.
    pub fn name(&self) -> &Name {
        &self.0.state.name
    }

    /// Returns the length of the lock's leases.
    pub fn ttl(&self) -> Ttl {
        self.0.state.ttl
    }

    fn to_serialized(&self, lease: &Lease) -> SerializedLock {
        let LockParts { host, state, .. } = &*self.0;
        SerializedLock::new(lease, state.ttl, host.now(), host.wall_clock())
    }

    $($async)* fn extend_acquisition(
        &self,
        acquisition: &Acquisition,
        ttl: Ttl,
    ) -> Result<(), Error> {
        let extension = acquisition.extension(ttl, self.0.host.now())?;
        let reply = self.0.store.extend(extension.request())$($await)*;
        extension.complete(reply)
    }

    $($async)* fn release_acquisition(&self, acquisition: &Acquisition) -> Result<(), Error> {
        let reply = self.0.store.release(acquisition.lease().claim())$($await)*;
        self.0.state.record_release(acquisition, reply)
    }

    /// Releases the lock of a guard, unless its owner has released it already.
    pub(crate) $($async)* fn release_guarded(&self, acquisition: &Acquisition) -> Result<(), Error> {
        let LockParts { store, host, state } = &*self.0;
        let lease = acquisition.lease();
        if acquisition.is_released() {
            state.remove(lease.owner());
            return Ok(());
        }
        let loss = acquisition.loss(host.now());
        let released = self.release_acquisition(acquisition)$($await)*;
        if may_be_released(&released, loss, store.capabilities())
            && let Ok(Renewed::Released) = store.renew(lease.claim(), lease.fence())$($await)*
        {
            return Ok(());
        }
        released.map_err(|error| into_loss(error, acquisition, loss, host.now()))
    }

    /// Records the loss of a lease that `machine` renewed, and returns it as an error.
    fn lost(&self, acquisition: &Acquisition, machine: &Renew, loss: Loss) -> Error {
        acquisition.record_loss(loss);
        Error::Lost {
            name: self.0.state.name.clone(),
            loss,
            source: machine.failure().cloned(),
        }
    }
}

/// A guard of a held lock: dropping it releases the lock.
///
/// It owns its part of the lock, so it can be stored in a struct and moved to another thread or task. A drop
/// cannot return an error; [`release`](Self::release) can.
#[derive(Debug)]
#[must_use = "an unused guard releases the lock at once"]
pub struct Guard<S: $Store, H: $Host> {
    lock: Lock<S, H>,
    acquisition: Acquisition,
    ended: bool,
}

impl<S: $Store, H: $Host> Guard<S, H> {
    /// Returns the store in which the lock is recorded.
    pub fn store(&self) -> &S {
        &self.lock.0.store
    }

    /// Returns the lock's name.
    pub fn name(&self) -> &Name {
        self.lock.name()
    }

    /// Returns the length of the lock's leases.
    pub fn ttl(&self) -> Ttl {
        self.lock.ttl()
    }

    /// Returns the grant's fencing token; `None` from a store that does not count grants.
    pub fn fence(&self) -> Option<Fence> {
        self.lease().fence()
    }

    /// Returns the lease's remaining time, zero once it has expired; `None` when it does not end by
    /// itself.
    pub fn remaining(&self) -> Option<Duration> {
        self.lease().remaining(self.lock.0.host.now())
    }

    /// Returns whether the lease has expired.
    pub fn is_expired(&self) -> bool {
        self.lease().is_expired(self.lock.0.host.now())
    }

    /// Returns the lease in its current state.
    pub fn lease(&self) -> Lease {
        self.acquisition.lease()
    }

    /// Serializes the lease without detaching it, for other processes that receive it while this process
    /// still holds it.
    pub fn to_serialized(&self) -> SerializedLock {
        self.lock.to_serialized(&self.lease())
    }

    /// Extends the lease to `ttl` from now, such as `"5s"`.
    ///
    /// # Errors
    ///
    /// The errors of [`Lock::extend`].
    pub $($async)* fn extend<T>(&self, ttl: T) -> Result<(), Error>
    where
        T: TryInto<Ttl>,
        Error: From<T::Error>,
    {
        let ttl = ttl.try_into()?;
        self.lock.extend_acquisition(&self.acquisition, ttl)$($await)*
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
    pub $($async)* fn release(mut self) -> Result<(), Error> {
        let released = self.lock.release_guarded(&self.acquisition)$($await)*;
        self.ended = true;
        released
    }

    /// Ends the guard without a release: the lock is held until it is released through its [`Lock`], or
    /// its lease has expired.
    pub fn leave(mut self) -> Lease {
        self.ended = true;
        self.lease()
    }
}
    };
}

pub(crate) use lock_api;
