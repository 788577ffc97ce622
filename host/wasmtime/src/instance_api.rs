//! The methods of an instance, written once for blocking and async stores.

/// Evaluates to the call of a component.
macro_rules! plain {
    ($call:expr) => {
        $call
    };
}

/// Evaluates to a boxed future of the call of a component.
macro_rules! boxed {
    ($call:expr) => {
        Box::pin(async move { $call })
    };
}

/// Defines the methods of an instance: `calls!([] [] plain resource_drop)`, or
/// `calls!([async] [.await] boxed resource_drop_async)`.
macro_rules! calls {
    ([$($async:tt)*] [$($await:tt)*] $wrapped:ident $resource_drop:ident) => {
    /// Creates a lock with the name `name`, whose leases last for `ttl`. Sends no request to the store.
    ///
    /// # Errors
    ///
    /// Returns `E_INVALID_NAME`, `E_INVALID_TTL` or `E_TOO_MANY_HANDLES`.
    pub $($async)* fn create_lock(
        &mut self,
        name: &str,
        ttl: Option<Duration>,
    ) -> Result<LockHandle, ComponentError> {
        // Checked before the text is copied into the component's memory.
        let name = convert::checked_name(name)?;
        let ttl = ttl.map(convert::nanos);
        let made = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_create(wasm, &name, ttl) $($await)*
        }));
        Ok(LockHandle {
            lock: made $($await)* ??,
            instance: self.number,
            number: 0,
        })
    }

    /// Restores the lock that [`serialize`](Self::serialize) returned, here or on any other host. Sends
    /// no request to the store.
    ///
    /// # Errors
    ///
    /// Returns `E_INVALID_SERIALIZED_LOCK` or `E_TOO_MANY_HANDLES`.
    pub $($async)* fn restore_lock(&mut self, serialized: &str) -> Result<LockHandle, ComponentError> {
        self.complete() $($await)*;
        let now = convert::nanos(self.state().host.wall_clock());
        let serialized = convert::checked_text(serialized)?;
        let made = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_restore(wasm, &serialized, now) $($await)*
        }));
        Ok(LockHandle {
            lock: made $($await)* ??,
            instance: self.number,
            number: 0,
        })
    }

    /// Acquires the lock by the policy `retry`; returns its fencing token if the store issues them.
    ///
    /// Waits by the store's notifications, so that it wakes as soon as a waiter without a component.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Timeout`] when the policy ended first, and `E_LOCK_STORAGE_ERROR` when
    /// the store failed.
    pub $($async)* fn acquire(
        &mut self,
        lock: LockHandle,
        retry: &Retry,
    ) -> Result<Option<Fence>, ComponentError> {
        let lock = self.own(lock)?;
        self.close() $($await)* ?;
        let retry = convert::retry(retry);
        let acquiring = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_acquire(wasm, lock, retry) $($await)*
        }));
        let attempt = match acquiring $($await)* ?? {
            Acquiring::Acquired(grant) => return Ok(grant.fencing_token.and_then(Fence::new)),
            Acquiring::Pending(attempt) => attempt,
        };
        self.open = Some(attempt);
        let store = Arc::clone(self.shared_store());
        let end = self.wait_for(attempt, &store) $($await)*;
        let closed = self.close() $($await)*;
        // The first error is the cause of the others.
        end.and_then(|end| Ok(closed.map(|()| end)?))
    }

    /// Returns the component's handle of `lock`, which must be of this instance: other instances have the same handles
    /// for other locks.
    fn own(&self, lock: LockHandle) -> Result<ResourceAny, ComponentError> {
        if lock.instance != self.number {
            let why = wasmtime::format_err!("the lock is of another instance");
            return Err(ComponentError::Handle(why));
        }
        Ok(lock.lock)
    }

    /// Drops the open attempt or renewal: that of this call, or of a call that was cancelled.
    $($async)* fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let closed = self.call(move |_, wasm| $wrapped!(open.$resource_drop(wasm) $($await)*));
        closed $($await)*
    }

    $($async)* fn wait_for(
        &mut self,
        attempt: ResourceAny,
        store: &S,
    ) -> Result<Option<Fence>, ComponentError> {
        let mut waiter: Option<WaiterHandle<'_>> = None;
        loop {
            let progress = self.call(move |locks, wasm| $wrapped!({
                locks.attempt().call_poll(wasm, attempt) $($await)*
            }));
            match progress $($await)* ?? {
                Progress::Acquired(grant) => {
                    if let Some(waiter) = waiter {
                        waiter.granted();
                    }
                    return Ok(grant.fencing_token.and_then(Fence::new));
                }
                Progress::Wait(at_most) => {
                    if waiter.is_none() {
                        let claim = self.place_of(attempt) $($await)* ?;
                        waiter = claim.and_then(|claim| store.waiter(&claim));
                    }
                    self.wait(waiter.as_mut(), Duration::from_nanos(at_most)) $($await)*;
                }
                Progress::Pause(pause) => {
                    self.sleep(Duration::from_nanos(pause)) $($await)*;
                }
                Progress::GaveUp(attempts) => return Err(ComponentError::Timeout { attempts }),
            }
        }
    }

    /// Returns the claim for which `attempt` is in the wait queue.
    $($async)* fn place_of(&mut self, attempt: ResourceAny) -> Result<Option<Claim>> {
        let wait = self.call(move |locks, wasm| $wrapped!({
            locks.attempt().call_subscribe(wasm, attempt) $($await)*
        }));
        let wait = wait $($await)* ?;
        // The component may be another one than this project's, which returns a handle of another type.
        let waits = &mut self.state().waits;
        Ok(wait.map(|wait| waits.delete(wait)).transpose()?.map(|wait| wait.0))
    }

    /// Acquires the lock if it is free now; returns whether it was.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn try_acquire(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_try_acquire(wasm, lock) $($await)*
        }));
        let grant = answer $($await)* ??;
        Ok(grant.is_some())
    }

    /// Releases the lock.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn release(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_release(wasm, lock) $($await)*
        }));
        Ok(answer $($await)* ??)
    }

    /// Force-releases the lock, or does so only if it is held under the fencing token `only`; returns
    /// whether it was held.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR`, also when the store does not support force-release.
    pub $($async)* fn force_release(
        &mut self,
        lock: LockHandle,
        only: Option<Fence>,
    ) -> Result<bool, ComponentError> {
        let lock = self.own(lock)?;
        let only = only.map(Fence::get);
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_force_release(wasm, lock, only) $($await)*
        }));
        Ok(answer $($await)* ??)
    }

    /// Extends the lease to last for `ttl` from now; `None` is the lock's own ttl.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Result<(), ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!(match ttl {
            None => locks.lock().call_extend(wasm, lock) $($await)*,
            Some(ttl) => {
                let ttl = ttl.duration().map(convert::nanos);
                locks.lock().call_extend_for(wasm, lock, ttl) $($await)*
            }
        }));
        Ok(answer $($await)* ??)
    }

    /// Returns whether the lease has expired.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn is_expired(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_is_expired(wasm, lock) $($await)*
        }));
        Ok(answer $($await)* ?)
    }

    /// Returns how long the lease still lasts; `None` when there is no lease, or the lease has no end.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn remaining(&mut self, lock: LockHandle) -> Result<Option<Duration>, ComponentError> {
        let lock = self.own(lock)?;
        let left = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_remaining(wasm, lock) $($await)*
        }));
        Ok(convert::duration(left $($await)* ?))
    }

    /// Returns whether the lock has a holder, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn is_locked(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_is_locked(wasm, lock) $($await)*
        }));
        Ok(answer $($await)* ??)
    }

    /// Returns whether this lock's latest acquisition still holds it, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn is_held(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_is_held(wasm, lock) $($await)*
        }));
        Ok(answer $($await)* ??)
    }

    /// Returns the lock's holders, by the store's record: none when it is free.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn holders(&mut self, lock: LockHandle) -> Result<Vec<Holder>, ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_holders(wasm, lock) $($await)*
        }));
        Ok((answer $($await)* ??).into_iter().map(convert::described).collect())
    }

    /// Detaches the lease: from now on it ends by its ttl alone, and dropping the lock does not release it.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn detach(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let lock = self.own(lock)?;
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_detach(wasm, lock) $($await)*
        }));
        Ok(answer $($await)* ??)
    }

    /// Serializes the lease, for a transfer to another process: returns the text of
    /// [`SerializedLock`](verrou::SerializedLock).
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn serialize(&mut self, lock: LockHandle) -> Result<String, ComponentError> {
        let lock = self.own(lock)?;
        self.complete() $($await)*;
        let now = convert::nanos(self.state().host.wall_clock());
        let answer = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_serialize(wasm, lock, now) $($await)*
        }));
        Ok(answer $($await)* ??)
    }

    /// Returns the fencing token of the latest acquisition, if the store issues them.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn fence(&mut self, lock: LockHandle) -> Result<Option<Fence>, ComponentError> {
        let lock = self.own(lock)?;
        let token = self.call(move |locks, wasm| $wrapped!({
            locks.lock().call_fencing_token(wasm, lock) $($await)*
        }));
        Ok((token $($await)* ?).and_then(Fence::new))
    }

    /// Drops the lock. Releases it, unless it was detached, serialized or restored.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn forget(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let lock = self.own(lock)?;
        let dropped = self.call(move |_, wasm| $wrapped!(lock.$resource_drop(wasm) $($await)*));
        Ok(dropped $($await)* ?)
    }
    };
}

pub(super) use {boxed, calls, plain};
