//! The lock component with a blocking store of this program.

use std::fmt;
use std::fs;
use std::mem;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use verrou::blocking::Host;
use verrou::{Acquired, Claim, Fence, Retry, Store, StoreError, Ttl, Waiter};
use wasmtime::component::{Component, HasSelf, Linker, ResourceAny};
use wasmtime::{Engine, Result};

use crate::bindings::blocking::exports::verrou::lock::locks::{self as wit, Keeping, Progress};
use crate::bindings::blocking::verrou::lock::store as backend;
use crate::bindings::blocking::{LockManager, LockManagerPre};
use crate::convert::{self, policies};
use crate::engine::{InstanceState, Limits};
use crate::error::ComponentError;
use crate::instance_api::calls;

/// The waiter of a store.
type WaiterHandle<'a> = Box<dyn Waiter + 'a>;

/// The lock component, loaded once, to be instantiated for each use.
///
/// `S` is the type of the store that it imports, `H` that of the host with its clock and randomness.
pub struct Runner<S: 'static, H: 'static> {
    engine: Engine,
    component: LockManagerPre<InstanceState<Arc<S>, H>>,
    limits: Limits,
}

impl<S: Store + 'static, H: Host + 'static> Runner<S, H> {
    /// Loads the component in the file at `path`, as `cargo xtask component` makes it.
    ///
    /// # Errors
    ///
    /// Returns an error when the file cannot be read, is not a component, or has other imports than the
    /// world `lock-manager`.
    pub fn load(path: impl AsRef<Path>, limits: &Limits) -> Result<Self> {
        let path = path.as_ref();
        let component = fs::read(path).map_err(|err| {
            wasmtime::format_err!("cannot read the component {}: {err}", path.display())
        })?;
        Self::new(&component, limits)
    }

    /// Loads the component from its bytes.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`load`](Self::load).
    pub fn new(component: &[u8], limits: &Limits) -> Result<Self> {
        let engine = limits.engine()?;
        let component = Component::new(&engine, component)?;
        let mut linker = Linker::new(&engine);
        LockManager::add_to_linker::<_, HasSelf<InstanceState<Arc<S>, H>>>(&mut linker, |state| {
            state
        })?;
        Ok(Self {
            component: LockManagerPre::new(linker.instantiate_pre(&component)?)?,
            engine,
            limits: limits.clone(),
        })
    }

    /// Creates an instance with locks in `store`.
    ///
    /// # Errors
    ///
    /// Returns wasmtime's error when there is no memory left, or none in the pool.
    pub fn instance(&self, store: S, host: H) -> Result<Instance<S, H>> {
        let mut wasm =
            self.limits
                .wasm_store(&self.engine, Arc::new(store), host, H::now, H::random);
        let component = self.component.instantiate(&mut wasm)?;
        Ok(Instance {
            wasm,
            component,
            open: None,
        })
    }
}

impl<S, H> fmt::Debug for Runner<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A handle on a lock in an instance of the component; [`Instance::forget`] drops that lock.
#[derive(Clone, Copy, Debug)]
pub struct LockHandle(pub(super) ResourceAny);

/// An instance of the lock component: the locks of one store.
///
/// One thread at a time can call it, and [`acquire`](Self::acquire) occupies it for one wait. A host with
/// several concurrent waits polls its own attempts, by [`call`](Self::call).
pub struct Instance<S: 'static, H: 'static> {
    wasm: wasmtime::Store<InstanceState<Arc<S>, H>>,
    component: LockManager,
    open: Option<ResourceAny>,
}

impl<S: Store + 'static, H: Host + 'static> Instance<S, H> {
    /// Calls the component's own functions, at most for [`Limits::time`].
    ///
    /// # Errors
    ///
    /// Returns the error of `call`.
    pub fn call<T>(
        &mut self,
        call: impl FnOnce(&wit::Guest, &mut wasmtime::Store<InstanceState<Arc<S>, H>>) -> Result<T>,
    ) -> Result<T> {
        self.wasm.data_mut().enter();
        call(self.component.verrou_lock_locks(), &mut self.wasm)
    }

    /// Returns the store of the component.
    pub fn store(&self) -> &S {
        &self.wasm.data().store
    }

    calls!([] [] resource_drop);

    /// Renews the lease until `pause` breaks; returns the value of the break.
    ///
    /// `pause` waits for the given time, or until an event for which it waits. Its second argument is the
    /// error of the last extension, if that failed.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_LOST` as soon as the lock is lost.
    pub fn keep<B>(
        &mut self,
        lock: LockHandle,
        mut pause: impl FnMut(Duration, Option<&str>) -> ControlFlow<B>,
    ) -> Result<B, ComponentError> {
        self.close()?;
        let renewal = self.call(|locks, wasm| locks.lock().call_keep(wasm, lock.0))??;
        self.open = Some(renewal);
        let end = loop {
            let kept = self.call(|locks, wasm| locks.renewal().call_poll(wasm, renewal));
            let (wait, why) = match kept {
                Ok(Keeping::Held(wait)) => (wait, None),
                Ok(Keeping::Unknown(doubt)) => (doubt.wait, Some(doubt.why)),
                Ok(Keeping::Lost(loss)) => break Err(loss.into()),
                Err(err) => break Err(err.into()),
            };
            if let ControlFlow::Break(end) = pause(Duration::from_nanos(wait), why.as_deref()) {
                break Ok(end);
            }
        };
        let closed = self.close();
        // The first error is the cause of the others.
        end.and_then(|end| Ok(closed.map(|()| end)?))
    }

    fn shared_store(&self) -> &Arc<S> {
        &self.wasm.data().store
    }

    /// Returns the claim of the latest acquire request, if it was not granted.
    fn refused(&self) -> Option<Claim> {
        self.wasm.data().refused.clone()
    }

    fn wait(&mut self, waiter: Option<&mut WaiterHandle<'_>>, at_most: Duration) {
        match waiter {
            Some(waiter) => waiter.wait(at_most),
            None => self.sleep(at_most),
        }
    }

    fn sleep(&mut self, pause: Duration) {
        self.wasm.data().host.sleep(pause);
    }
}

impl<S, H> fmt::Debug for Instance<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

impl<S: Store, H> InstanceState<S, H> {
    fn perform<T>(
        &mut self,
        operation: impl FnOnce(&S) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let left = self.leave()?;
        let answer = operation(&self.store);
        self.come_back(left);
        answer
    }

    fn perform_with(
        &mut self,
        claim: &backend::Claim,
        operation: impl FnOnce(&S, &Claim) -> Result<bool, StoreError>,
    ) -> Result<backend::Reply, backend::StoreError> {
        convert::done(
            convert::claim(claim).and_then(|claim| self.perform(|store| operation(store, &claim))),
        )
    }
}

impl<S: Store, H> backend::Host for InstanceState<S, H> {
    fn acquire(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        let claim = convert::claim(&claim);
        let reply = claim
            .clone()
            .and_then(|claim| self.perform(|store| store.acquire(&claim)));
        self.refused = match reply {
            Ok(Acquired::Busy { .. }) => claim.ok(),
            _ => None,
        };
        convert::acquired(reply)
    }

    fn extend(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.perform_with(&claim, S::extend)
    }

    fn release(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.perform_with(&claim, S::release)
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
        convert::done(
            convert::name(&name)
                .and_then(|name| self.perform(|store| store.force_release(&name, only))),
        )
    }

    fn inspect(&mut self, name: String) -> Result<Option<backend::Holder>, backend::StoreError> {
        convert::holder(
            convert::name(&name).and_then(|name| self.perform(|store| store.holders(&name))),
        )
    }

    fn detach(&mut self, claim: backend::Claim) -> Result<backend::Reply, backend::StoreError> {
        self.perform_with(&claim, S::detach)
    }

    fn can(&mut self) -> backend::Abilities {
        convert::capabilities(self.store.capabilities())
    }
}

policies!(wit);
