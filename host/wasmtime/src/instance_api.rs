//! The methods of an instance, written once for blocking and async stores.

/// Defines the methods of an instance: `calls!([] [] resource_drop)`, or
/// `calls!([async] [.await] resource_drop_async)`.
macro_rules! calls {
    ([$($async:tt)*] [$($await:tt)*] $resource_drop:ident) => {
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
        let ttl = ttl.map(convert::nanos);
        let made = self.call($($async)* |locks, wasm| {
            locks.lock().call_constructor(wasm, name, ttl) $($await)*
        });
        Ok(LockHandle(made $($await)* ??))
    }

    /// Restores the lock that [`serialize`](Self::serialize) returned, here or on any other host. Sends
    /// no request to the store.
    ///
    /// # Errors
    ///
    /// Returns `E_INVALID_SERIALIZED_LOCK` or `E_TOO_MANY_HANDLES`.
    pub $($async)* fn restore_lock(&mut self, serialized: &str) -> Result<LockHandle, ComponentError> {
        let now = convert::nanos(self.wasm.data().host.wall_clock());
        let made = self.call($($async)* |locks, wasm| {
            locks.lock().call_restore(wasm, serialized, now) $($await)*
        });
        Ok(LockHandle(made $($await)* ??))
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
        self.close() $($await)* ?;
        let retry = policy(retry);
        let attempt = self.call($($async)* |locks, wasm| {
            locks.lock().call_acquire(wasm, lock.0, retry) $($await)*
        });
        let attempt = attempt $($await)* ??;
        self.open = Some(attempt);
        let store = Arc::clone(self.shared_store());
        let end = self.wait_for(attempt, &store) $($await)*;
        let closed = self.close() $($await)*;
        // The first error is the cause of the others.
        end.and_then(|end| Ok(closed.map(|()| end)?))
    }

    /// Drops the open attempt or renewal: that of this call, or of a call that was cancelled.
    $($async)* fn close(&mut self) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let closed = self.call($($async)* |_, wasm| open.$resource_drop(wasm) $($await)*);
        closed $($await)*
    }

    $($async)* fn wait_for(
        &mut self,
        attempt: ResourceAny,
        store: &S,
    ) -> Result<Option<Fence>, ComponentError> {
        let mut has_waited = false;
        let mut waiter: Option<WaiterHandle<'_>> = None;
        loop {
            let progress = self.call($($async)* |locks, wasm| {
                locks.attempt().call_poll(wasm, attempt) $($await)*
            });
            match progress $($await)* ?? {
                Progress::Acquired(token) => {
                    if let Some(waiter) = waiter {
                        waiter.granted();
                    }
                    return Ok(token.and_then(Fence::new));
                }
                Progress::Wait(at_most) => {
                    if !mem::replace(&mut has_waited, true) {
                        waiter = self.refused().and_then(|claim| store.waiter(&claim));
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

    /// Acquires the lock if it is free now; returns whether it was.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn try_acquire(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_try_acquire(wasm, lock.0) $($await)*
        });
        Ok(answer $($await)* ??)
    }

    /// Releases the lock.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn release(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_release(wasm, lock.0) $($await)*
        });
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
        let only = only.map(Fence::get);
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_force_release(wasm, lock.0, only) $($await)*
        });
        Ok(answer $($await)* ??)
    }

    /// Extends the lease to last for `ttl` from now; `None` is the lock's own ttl.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Result<(), ComponentError> {
        let answer = self.call($($async)* |locks, wasm| match ttl {
            None => locks.lock().call_extend(wasm, lock.0) $($await)*,
            Some(ttl) => {
                let ttl = ttl.duration().map(convert::nanos);
                locks.lock().call_extend_for(wasm, lock.0, ttl) $($await)*
            }
        });
        Ok(answer $($await)* ??)
    }

    /// Returns whether the lease has expired.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn is_expired(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_is_expired(wasm, lock.0) $($await)*
        });
        Ok(answer $($await)* ?)
    }

    /// Returns how long the lease still lasts; `None` when there is no lease, or the lease has no end.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn remaining(&mut self, lock: LockHandle) -> Result<Option<Duration>, ComponentError> {
        let left = self.call($($async)* |locks, wasm| {
            locks.lock().call_remaining(wasm, lock.0) $($await)*
        });
        Ok(convert::duration(left $($await)* ?))
    }

    /// Returns whether the lock has a holder, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn is_locked(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_is_locked(wasm, lock.0) $($await)*
        });
        Ok(answer $($await)* ??)
    }

    /// Returns whether this lock's latest acquisition still holds it, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn is_held(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_is_held(wasm, lock.0) $($await)*
        });
        Ok(answer $($await)* ??)
    }

    /// Returns the lock's holder, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub $($async)* fn holder(&mut self, lock: LockHandle) -> Result<Option<wit::Holder>, ComponentError> {
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_holder(wasm, lock.0) $($await)*
        });
        Ok(answer $($await)* ??)
    }

    /// Serializes the lease, for a transfer to another process: returns the text of
    /// [`SerializedLock`](verrou::SerializedLock).
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE` or `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn serialize(&mut self, lock: LockHandle) -> Result<String, ComponentError> {
        let now = convert::nanos(self.wasm.data().host.wall_clock());
        let answer = self.call($($async)* |locks, wasm| {
            locks.lock().call_serialize(wasm, lock.0, now) $($await)*
        });
        Ok(answer $($await)* ??)
    }

    /// Returns the fencing token of the latest acquisition, if the store issues them.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn fence(&mut self, lock: LockHandle) -> Result<Option<Fence>, ComponentError> {
        let token = self.call($($async)* |locks, wasm| {
            locks.lock().call_fencing_token(wasm, lock.0) $($await)*
        });
        Ok((token $($await)* ?).and_then(Fence::new))
    }

    /// Drops the lock without releasing it: its lease ends when it expires.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub $($async)* fn forget(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let dropped = self.call($($async)* |_, wasm| lock.0.$resource_drop(wasm) $($await)*);
        Ok(dropped $($await)* ?)
    }
    };
}

pub(super) use calls;
