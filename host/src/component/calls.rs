//! What can be asked of an instance, written once for both colours.

/// The methods of an instance: `calls!([] [] resource_drop)`, or
/// `calls!([async] [.await] resource_drop_async)`.
macro_rules! calls {
    ([$($async:tt)*] [$($await:tt)*] $resource_drop:ident) => {
    /// A lock called `name`, whose leases last `ttl`. Nothing is asked of the store yet.
    ///
    /// # Errors
    ///
    /// `E_INVALID_NAME`, `E_INVALID_TTL`, `E_TOO_MANY_HANDLES`.
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

    /// The lock that [`serialize`](Self::serialize) wrote down, here or on any other host. Nothing
    /// is asked of the store yet.
    ///
    /// # Errors
    ///
    /// `E_INVALID_SERIALIZED_LOCK`, `E_TOO_MANY_HANDLES`.
    pub $($async)* fn restore_lock(&mut self, serialized: &str) -> Result<LockHandle, ComponentError> {
        let now = convert::nanos(self.wasm.data().host.wall_clock());
        let made = self.call($($async)* |locks, wasm| {
            locks.lock().call_restore(wasm, serialized, now) $($await)*
        });
        Ok(LockHandle(made $($await)* ??))
    }

    /// Takes the lock, waiting as `retry` says, and as the store waits: whoever waits here wakes as
    /// soon as one that waits without a component. Its fencing token, from a store that counts.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Timeout`] when the policy ended first; `E_LOCK_STORAGE_ERROR` when the
    /// store failed.
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
        let end = self.wait_for(attempt) $($await)*;
        let closed = self.close() $($await)*;
        // What went wrong first is what went wrong.
        end.and_then(|end| Ok(closed.map(|()| end)?))
    }

    /// Drops the attempt or the renewal that is open: this one, or that of a call that was given up.
    $($async)* fn close(&mut self) -> Result<()> {
        self.give_up();
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let closed = self.call($($async)* |_, wasm| open.$resource_drop(wasm) $($await)*);
        closed $($await)*
    }

    $($async)* fn wait_for(
        &mut self,
        attempt: ResourceAny,
    ) -> Result<Option<Fence>, ComponentError> {
        loop {
            let progress = self.call($($async)* |locks, wasm| {
                locks.attempt().call_poll(wasm, attempt) $($await)*
            });
            match progress $($await)* ?? {
                Progress::Acquired(token) => return Ok(token.and_then(Fence::new)),
                Progress::Wait(at_most) => {
                    self.wait(Duration::from_nanos(at_most)) $($await)*;
                }
                Progress::Pause(pause) => {
                    self.sleep(Duration::from_nanos(pause)) $($await)*;
                }
                Progress::GaveUp(attempts) => return Err(ComponentError::Timeout { attempts }),
            }
        }
    }

    /// Takes the lock if it is free now: whether it was.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn try_acquire(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_try_acquire(wasm, lock.0) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// Gives the lock back.
    ///
    /// # Errors
    ///
    /// `E_LOCK_NOT_OWNER`, `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn release(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_release(wasm, lock.0) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// Frees the lock, whoever holds it, or only if it is held under the fence `only`: whether
    /// there was somebody to evict.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`, also when the store lets nobody be evicted.
    pub $($async)* fn force_release(
        &mut self,
        lock: LockHandle,
        only: Option<Fence>,
    ) -> Result<bool, ComponentError> {
        let only = only.map(Fence::get);
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_force_release(wasm, lock.0, only) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// Lets the lease last `ttl` from now, or with `None` the lock's own ttl.
    ///
    /// # Errors
    ///
    /// `E_LOCK_NOT_OWNER`, `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Result<(), ComponentError> {
        let said = self.call($($async)* |locks, wasm| match ttl {
            None => locks.lock().call_extend(wasm, lock.0) $($await)*,
            Some(ttl) => {
                let ttl = ttl.duration().map(convert::nanos);
                locks.lock().call_extend_for(wasm, lock.0, ttl) $($await)*
            }
        });
        Ok(said $($await)* ??)
    }

    /// Whether the lease has run out.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub $($async)* fn is_expired(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_is_expired(wasm, lock.0) $($await)*
        });
        Ok(said $($await)* ?)
    }

    /// How much of the lease is left; `None` when there is none, or it does not end by itself.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub $($async)* fn remaining(&mut self, lock: LockHandle) -> Result<Option<Duration>, ComponentError> {
        let left = self.call($($async)* |locks, wasm| {
            locks.lock().call_remaining(wasm, lock.0) $($await)*
        });
        Ok(convert::duration(left $($await)* ?))
    }

    /// Whether anyone holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn is_locked(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_is_locked(wasm, lock.0) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// Whether this lock's latest acquisition holds it, as the store says.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn is_held(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_is_held(wasm, lock.0) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// Who holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn holder(&mut self, lock: LockHandle) -> Result<Option<wit::Holder>, ComponentError> {
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_holder(wasm, lock.0) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// Writes the lease down, to be handed to another process: the text of
    /// [`SerializedLock`](verrou::SerializedLock).
    ///
    /// # Errors
    ///
    /// `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE`, `E_LOCK_STORAGE_ERROR`.
    pub $($async)* fn serialize(&mut self, lock: LockHandle) -> Result<String, ComponentError> {
        let now = convert::nanos(self.wasm.data().host.wall_clock());
        let said = self.call($($async)* |locks, wasm| {
            locks.lock().call_serialize(wasm, lock.0, now) $($await)*
        });
        Ok(said $($await)* ??)
    }

    /// The fencing token of the latest acquisition, from a store that counts.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub $($async)* fn fence(&mut self, lock: LockHandle) -> Result<Option<Fence>, ComponentError> {
        let token = self.call($($async)* |locks, wasm| {
            locks.lock().call_fencing_token(wasm, lock.0) $($await)*
        });
        Ok((token $($await)* ?).and_then(Fence::new))
    }

    /// Drops the lock, which releases nothing: its lease runs out.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub $($async)* fn forget(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let dropped = self.call($($async)* |_, wasm| lock.0.$resource_drop(wasm) $($await)*);
        Ok(dropped $($await)* ?)
    }
    };
}

pub(super) use calls;
