//! The lock component, with a store of this program behind it.

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use verrou::blocking::Host;
use verrou::{Fence, Loss, Name, Retry, Store, Ttl, Waited};
use wasmtime::component::{Component, HasSelf, Linker, ResourceAny};
use wasmtime::{Engine, Result};

use super::bindings::blocking::exports::verrou::lock::locks::{self as wit, Keeping, Progress};
use super::bindings::blocking::verrou::lock::store as backend;
use super::bindings::blocking::wasi::{clocks, random};
use super::bindings::blocking::{LockManager, LockManagerPre};
use super::convert;
use super::engine::{Limits, State};
use super::error::ComponentError;

/// The lock component, loaded once, to be instantiated for each use.
///
/// `S` is the store behind its import, `H` where it gets time and chance from.
pub struct Runner<S: 'static, H: 'static> {
    engine: Engine,
    component: LockManagerPre<State<S, H>>,
    limits: Limits,
}

impl<S: Store + 'static, H: Host + 'static> Runner<S, H> {
    /// Loads the component in the file at `path`, as `cargo xtask component` makes it.
    ///
    /// # Errors
    ///
    /// What wasmtime says: there is no such file, it is no component, or it imports something
    /// else than the world `lock-manager` does.
    pub fn load(path: impl AsRef<Path>, limits: &Limits) -> Result<Self> {
        let path = path.as_ref();
        let component = fs::read(path).map_err(|err| {
            wasmtime::format_err!("cannot read the component {}: {err}", path.display())
        })?;
        Self::new(&component, limits)
    }

    /// Loads the component of these bytes.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load).
    pub fn new(component: &[u8], limits: &Limits) -> Result<Self> {
        let engine = limits.engine()?;
        let component = Component::new(&engine, component)?;
        let mut linker = Linker::new(&engine);
        LockManager::add_to_linker::<_, HasSelf<State<S, H>>>(&mut linker, |state| state)?;
        Ok(Self {
            component: LockManagerPre::new(linker.instantiate_pre(&component)?)?,
            engine,
            limits: limits.clone(),
        })
    }

    /// An instance with locks in `store`.
    ///
    /// # Errors
    ///
    /// What wasmtime says: there is no memory left, or none in the pool.
    pub fn instance(&self, store: S, host: H) -> Result<Instance<S, H>> {
        let mut wasm = self.limits.wasm_store(&self.engine, store, host);
        let component = self.component.instantiate(&mut wasm)?;
        Ok(Instance { wasm, component })
    }
}

impl<S, H> fmt::Debug for Runner<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A lock in an instance of the component: drop it there by [`Instance::forget`].
#[derive(Clone, Copy, Debug)]
pub struct LockHandle(ResourceAny);

/// An instance of the lock component: the locks of one store.
///
/// It is called from one thread at a time. Whoever has several waits in it polls attempts of its
/// own, by [`exports`](Self::exports); [`acquire`](Self::acquire) keeps it for one.
pub struct Instance<S: 'static, H: 'static> {
    wasm: wasmtime::Store<State<S, H>>,
    component: LockManager,
}

impl<S: Store + 'static, H: Host + 'static> Instance<S, H> {
    /// The component's own functions, for those who call them directly.
    pub fn exports(&mut self) -> (&wit::Guest, &mut wasmtime::Store<State<S, H>>) {
        (self.component.verrou_lock_locks(), &mut self.wasm)
    }

    /// The store behind the component.
    pub fn store(&self) -> &S {
        &self.wasm.data().store
    }

    /// A lock called `name`, whose leases last `ttl`. Nothing is asked of the store yet.
    ///
    /// # Errors
    ///
    /// `E_INVALID_NAME`, `E_INVALID_TTL`, `E_TOO_MANY_HANDLES`.
    pub fn create_lock(
        &mut self,
        name: &str,
        ttl: Option<Duration>,
    ) -> Result<LockHandle, ComponentError> {
        let (locks, wasm) = self.enter();
        let made = locks
            .lock()
            .call_constructor(wasm, name, ttl.map(convert::nanos))?;
        Ok(LockHandle(made?))
    }

    /// The lock that [`serialize`](Self::serialize) wrote down, here or on any other host. Nothing
    /// is asked of the store yet.
    ///
    /// # Errors
    ///
    /// `E_INVALID_SERIALIZED_LOCK`, `E_TOO_MANY_HANDLES`.
    pub fn restore_lock(&mut self, serialized: &str) -> Result<LockHandle, ComponentError> {
        let now = convert::nanos(self.wasm.data().host.wall_clock());
        let (locks, wasm) = self.enter();
        Ok(LockHandle(
            locks.lock().call_restore(wasm, serialized, now)??,
        ))
    }

    /// Takes the lock, waiting as `retry` says, and as the store waits: whoever waits here wakes as
    /// soon as one that waits without a component. Its fencing token, from a store that counts.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Timeout`] when the policy ended first; `E_LOCK_STORAGE_ERROR` when the
    /// store failed.
    pub fn acquire(
        &mut self,
        lock: LockHandle,
        retry: &Retry,
    ) -> Result<Option<Fence>, ComponentError> {
        let (locks, wasm) = self.enter();
        let name = locks.lock().call_name(&mut *wasm, lock.0)?;
        let name = Name::new(&name).map_err(wasmtime::Error::from)?;
        let retry = convert::retry(retry);
        let attempt = locks.lock().call_acquire(&mut *wasm, lock.0, retry)??;
        let end = self.wait_for(attempt, &name);
        attempt.resource_drop(&mut self.wasm)?;
        end
    }

    fn wait_for(
        &mut self,
        attempt: ResourceAny,
        name: &Name,
    ) -> Result<Option<Fence>, ComponentError> {
        loop {
            let (locks, wasm) = self.enter();
            let progress = locks.attempt().call_poll(wasm, attempt)??;
            let State { store, host, .. } = self.wasm.data();
            match progress {
                Progress::Acquired(token) => return Ok(token.and_then(Fence::new)),
                Progress::Wait(at_most) => {
                    let at_most = Duration::from_nanos(at_most);
                    if store.wait(name, at_most) == Waited::Unable {
                        host.sleep(at_most);
                    }
                }
                Progress::Pause(pause) => host.sleep(Duration::from_nanos(pause)),
                Progress::GaveUp(attempts) => return Err(ComponentError::Timeout { attempts }),
            }
        }
    }

    /// Keeps the lease alive until `pause` breaks; returns what it broke with.
    ///
    /// `pause` waits as long as it is told, or until something happens that it waits for. The error
    /// it is told with is that of the last extension, when that failed.
    ///
    /// # Errors
    ///
    /// `E_LOCK_LOST` as soon as the lock is lost.
    pub fn keep<B>(
        &mut self,
        lock: LockHandle,
        mut pause: impl FnMut(Duration, Option<&str>) -> ControlFlow<B>,
    ) -> Result<B, ComponentError> {
        let (locks, wasm) = self.enter();
        let renewal = locks.lock().call_keep(wasm, lock.0)??;
        let end = loop {
            let (locks, wasm) = self.enter();
            let (wait, why) = match locks.renewal().call_poll(wasm, renewal)? {
                Keeping::Held(wait) => (wait, None),
                Keeping::Unknown(doubt) => (doubt.wait, Some(doubt.why)),
                Keeping::Lost(loss) => {
                    break Err(ComponentError::Lost(match loss {
                        wit::Loss::Expired => Loss::Expired,
                        wit::Loss::Revoked => Loss::Revoked,
                    }));
                }
            };
            if let ControlFlow::Break(end) = pause(Duration::from_nanos(wait), why.as_deref()) {
                break Ok(end);
            }
        };
        renewal.resource_drop(&mut self.wasm)?;
        end
    }

    /// Takes the lock if it is free now: whether it was.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub fn try_acquire(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_try_acquire(wasm, lock.0)??)
    }

    /// Gives the lock back.
    ///
    /// # Errors
    ///
    /// `E_LOCK_NOT_OWNER`, `E_LOCK_STORAGE_ERROR`.
    pub fn release(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_release(wasm, lock.0)??)
    }

    /// Frees the lock, whoever holds it, or only if it is held under the fence `only`: whether
    /// there was somebody to evict.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`, also when the store lets nobody be evicted.
    pub fn force_release(
        &mut self,
        lock: LockHandle,
        only: Option<Fence>,
    ) -> Result<bool, ComponentError> {
        let (locks, wasm) = self.enter();
        let only = only.map(Fence::get);
        Ok(locks.lock().call_force_release(wasm, lock.0, only)??)
    }

    /// Lets the lease last `ttl` from now, or with `None` the lock's own ttl.
    ///
    /// # Errors
    ///
    /// `E_LOCK_NOT_OWNER`, `E_LOCK_STORAGE_ERROR`.
    pub fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Result<(), ComponentError> {
        let (locks, wasm) = self.enter();
        let lock = lock.0;
        match ttl {
            None => locks.lock().call_extend(wasm, lock)??,
            Some(ttl) => {
                let ttl = ttl.duration().map(convert::nanos);
                locks.lock().call_extend_for(wasm, lock, ttl)??;
            }
        }
        Ok(())
    }

    /// Whether the lease has run out.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub fn is_expired(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_is_expired(wasm, lock.0)?)
    }

    /// How much of the lease is left; `None` when there is none, or it does not end by itself.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub fn remaining(&mut self, lock: LockHandle) -> Result<Option<Duration>, ComponentError> {
        let (locks, wasm) = self.enter();
        let left = locks.lock().call_remaining(wasm, lock.0)?;
        Ok(convert::duration(left))
    }

    /// Whether anyone holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub fn is_locked(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_is_locked(wasm, lock.0)??)
    }

    /// Whether this lock's latest acquisition holds it, as the store says.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub fn is_held(&mut self, lock: LockHandle) -> Result<bool, ComponentError> {
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_is_held(wasm, lock.0)??)
    }

    /// Who holds the lock, as the store says.
    ///
    /// # Errors
    ///
    /// `E_LOCK_STORAGE_ERROR`.
    pub fn holder(&mut self, lock: LockHandle) -> Result<Option<wit::Holder>, ComponentError> {
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_holder(wasm, lock.0)??)
    }

    /// Writes the lease down, to be handed to another process: the text of
    /// [`SerializedLock`](verrou::SerializedLock).
    ///
    /// # Errors
    ///
    /// `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE`, `E_LOCK_STORAGE_ERROR`.
    pub fn serialize(&mut self, lock: LockHandle) -> Result<String, ComponentError> {
        let now = convert::nanos(self.wasm.data().host.wall_clock());
        let (locks, wasm) = self.enter();
        Ok(locks.lock().call_serialize(wasm, lock.0, now)??)
    }

    /// The fencing token of the latest acquisition, from a store that counts.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub fn fence(&mut self, lock: LockHandle) -> Result<Option<Fence>, ComponentError> {
        let (locks, wasm) = self.enter();
        let token = locks.lock().call_fencing_token(wasm, lock.0)?;
        Ok(token.and_then(Fence::new))
    }

    /// Drops the lock, which releases nothing: its lease runs out.
    ///
    /// # Errors
    ///
    /// [`ComponentError::Stopped`].
    pub fn forget(&mut self, lock: LockHandle) -> Result<(), ComponentError> {
        self.wasm.data_mut().enter();
        Ok(lock.0.resource_drop(&mut self.wasm)?)
    }

    fn enter(&mut self) -> (&wit::Guest, &mut wasmtime::Store<State<S, H>>) {
        self.wasm.data_mut().enter();
        self.exports()
    }
}

impl<S, H> fmt::Debug for Instance<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

impl<S: Store, H> State<S, H> {
    fn ask<T>(&mut self, question: impl FnOnce(&S) -> T) -> T {
        let answer = question(&self.store);
        self.enter();
        answer
    }

    fn step(
        &mut self,
        claim: &backend::Claim,
        step: impl FnOnce(&S, &verrou::Claim) -> Result<verrou::Reply, verrou::StoreError>,
    ) -> Result<backend::Reply, backend::StoreError> {
        self.ask(|store| {
            convert::reply(convert::claim(claim).and_then(|claim| step(store, &claim)))
        })
    }
}

impl<S: Store, H> backend::Host for State<S, H> {
    fn acquire(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.step(&claim, S::acquire)
    }

    fn extend(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.step(&claim, S::extend)
    }

    fn release(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.step(&claim, S::release)
    }

    fn evict(
        &mut self,
        name: String,
        only: Option<u64>,
    ) -> Result<backend::Reply, backend::StoreError> {
        let only = match only.map(Fence::new) {
            // No grant has the token zero.
            Some(None) => return Ok(backend::Reply::Refused(None)),
            only => only.flatten(),
        };
        self.ask(|store| {
            convert::reply(convert::name(&name).and_then(|name| store.evict(&name, only)))
        })
    }

    fn inspect(&mut self, name: String) -> Result<Option<backend::Holder>, backend::StoreError> {
        self.ask(|store| {
            convert::holder(convert::name(&name).and_then(|name| store.inspect(&name)))
        })
    }

    fn detach(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.step(&claim, S::detach)
    }

    fn can(&mut self) -> backend::Abilities {
        self.ask(|store| convert::abilities(store.abilities()))
    }
}

impl<S, H: Host> clocks::monotonic_clock::Host for State<S, H> {
    fn now(&mut self) -> u64 {
        convert::nanos(self.host.now().since_start())
    }
}

impl<S, H: Host> random::random::Host for State<S, H> {
    fn get_random_u64(&mut self) -> u64 {
        let random = u128::from_be_bytes(self.host.random());
        (random >> 64) as u64
    }
}
