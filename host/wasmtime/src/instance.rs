//! The lock component with a blocking store of this program.

use std::fmt;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use verrou::blocking::Host;
use verrou::{Claim, Fence, Holder, Loss, Retry, Store, StoreError, Ttl, Waiter};
use wasmtime::component::{Component, HasSelf, Linker, Resource, ResourceAny};
use wasmtime::{Engine, Result};

use crate::bindings::blocking::exports::verrou::lock::locks::{
    self as wit, Acquiring, Keeping, Progress,
};
use crate::bindings::blocking::verrou::lock::{store as backend, types};
use crate::bindings::blocking::{LockManager, LockManagerPre};
use crate::convert;
use crate::engine::{InstanceState, Limits, tick};
use crate::error::ComponentError;
use crate::instance_api::{calls, plain};
use crate::waits::{self, QueuePlace, Wait};

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
    /// Loads the lock component that comes with this crate.
    ///
    /// # Errors
    ///
    /// Returns an error when the engine for `limits` cannot be created; see [`Limits::engine`].
    pub fn bundled(limits: &Limits) -> Result<Self> {
        Self::new(verrou_component::POLLED, limits)
    }

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
        let component = Component::new(&limits.engine()?, component)?;
        Self::from_component(&component, limits)
    }

    /// Makes a runner of a component that was compiled, or loaded precompiled, for an engine of the embedder:
    /// [`Limits::engine`] creates a suitable one. An engine without epoch interruption does not limit the time of a
    /// call, and the pool is that of the engine.
    ///
    /// # Errors
    ///
    /// Returns an error when the component has other imports than the world `lock-manager`, or there can be no more
    /// threads.
    pub fn from_component(component: &Component, limits: &Limits) -> Result<Self> {
        let engine = component.engine().clone();
        tick(&engine)?;
        let mut linker = Linker::new(&engine);
        LockManager::add_to_linker::<_, HasSelf<InstanceState<Arc<S>, H>>>(&mut linker, |state| {
            state
        })?;
        Ok(Self {
            component: LockManagerPre::new(linker.instantiate_pre(component)?)?,
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
            number: next_number(),
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
pub struct LockHandle {
    pub(super) lock: ResourceAny,
    /// The number of the instance.
    pub(super) instance: u64,
    /// The number of the handle in a [`ConcurrentInstance`](crate::ConcurrentInstance).
    pub(super) number: u64,
}

/// Returns a number that no other instance of this process has.
pub(super) fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);

    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An instance of the lock component: the locks of one store.
///
/// Dropping it releases its locks, unless they were detached, serialized or restored; also after the component has
/// stopped.
///
/// One thread at a time can call it, and [`acquire`](Self::acquire) occupies it for one wait. A host with
/// several concurrent waits polls its own attempts, by [`call`](Self::call).
pub struct Instance<S: Store + 'static, H: 'static> {
    wasm: wasmtime::Store<InstanceState<Arc<S>, H>>,
    component: LockManager,
    open: Option<ResourceAny>,
    /// Distinguishes the handles of this instance from those of others.
    number: u64,
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

    calls!([] [] plain resource_drop);

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
        let lock = self.own(lock)?;
        self.close()?;
        let renewal = self.call(|locks, wasm| locks.lock().call_keep(wasm, lock))??;
        self.open = Some(renewal);
        let end = loop {
            let kept = self.call(|locks, wasm| locks.renewal().call_poll(wasm, renewal));
            let (wait, why) = match kept {
                Ok(Keeping::Held(wait)) => (wait, None),
                Ok(Keeping::Unknown(doubt)) => (doubt.wait, Some(doubt.why)),
                Ok(Keeping::Released) => break Err(ComponentError::Lost(Loss::Revoked)),
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

    /// Does nothing: a call cannot be dropped before its end.
    #[expect(clippy::unused_self, reason = "the counterpart of an async instance's")]
    fn complete(&self) {}

    fn state(&mut self) -> &mut InstanceState<Arc<S>, H> {
        self.wasm.data_mut()
    }

    fn shared_store(&self) -> &Arc<S> {
        &self.wasm.data().store
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

impl<S: Store, H> Drop for Instance<S, H> {
    fn drop(&mut self) {
        let state = self.wasm.data_mut();
        for claim in state.grants.take() {
            // After an error the lease expires.
            let _ = state.store.release(&claim);
        }
    }
}

impl<S: Store, H> fmt::Debug for Instance<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

impl<S: Store, H> InstanceState<Arc<S>, H> {
    fn perform<T>(
        &mut self,
        operation: impl FnOnce(&S) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let left = self.leave()?;
        let answer = operation(&self.store);
        self.come_back(left);
        answer
    }

    fn perform_with<T>(
        &mut self,
        claim: &backend::Claim,
        operation: impl FnOnce(&S, &Claim) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        convert::claim(claim).and_then(|claim| self.perform(|store| operation(store, &claim)))
    }

    /// Performs an operation after which the lease of `claim` does not end with the instance.
    fn end(
        &mut self,
        claim: &backend::Claim,
        operation: impl FnOnce(&S, &Claim) -> std::result::Result<bool, StoreError>,
    ) -> std::result::Result<bool, StoreError> {
        let claim = convert::claim(claim)?;
        let reply = self.perform(|store| operation(store, &claim));
        self.grants.ended(&claim, &reply);
        reply
    }
}

/// The reply of the store to the component.
type Replied<T> = std::result::Result<T, backend::StoreError>;

impl<S: Store, H> backend::HostWaiter for InstanceState<Arc<S>, H> {
    fn subscribe(&mut self, place: Resource<QueuePlace>) -> Result<Resource<Wait>> {
        waits::subscribe(&mut self.waits, &place)
    }

    fn drop(&mut self, place: Resource<QueuePlace>) -> Result<()> {
        self.waits.delete(place)?;
        Ok(())
    }
}

impl<S: Store, H> backend::Host for InstanceState<Arc<S>, H> {
    fn acquire(&mut self, claim: backend::Claim) -> Result<Replied<backend::Acquired>> {
        let reply = convert::claim(&claim).and_then(|claim| {
            self.grants.asked(&claim);
            let reply = self.perform(|store| store.acquire(&claim));
            self.grants.acquired(&claim, &reply);
            reply
        });
        Ok(convert::acquired(reply))
    }

    fn extend(&mut self, claim: backend::Claim) -> Result<Replied<bool>> {
        Ok(convert::done(self.perform_with(&claim, S::extend)))
    }

    fn renew(
        &mut self,
        claim: backend::Claim,
        fencing_token: Option<u64>,
    ) -> Result<Replied<backend::Renewed>> {
        let fence = fencing_token.and_then(Fence::new);
        Ok(convert::renewed(
            self.perform_with(&claim, |store, claim| store.renew(claim, fence)),
        ))
    }

    fn release(&mut self, claim: backend::Claim) -> Result<Replied<bool>> {
        Ok(convert::done(self.end(&claim, S::release)))
    }

    fn force_release(&mut self, name: String, only: Option<u64>) -> Result<Replied<bool>> {
        let Ok(only) = convert::only(only) else {
            return Ok(Ok(false));
        };
        let name = convert::name(&name);
        Ok(convert::done(name.and_then(|name| {
            self.perform(|store| store.force_release(&name, only))
        })))
    }

    fn holders(&mut self, name: String) -> Result<Replied<Vec<types::Holder>>> {
        let name = convert::name(&name);
        Ok(convert::holders(name.and_then(|name| {
            self.perform(|store| store.holders(&name))
        })))
    }

    fn detach(&mut self, claim: backend::Claim) -> Result<Replied<bool>> {
        Ok(convert::done(self.end(&claim, S::detach)))
    }

    fn get_capabilities(&mut self) -> Result<types::Capabilities> {
        Ok(convert::capabilities(self.store.capabilities()))
    }

    fn join(&mut self, claim: backend::Claim) -> Result<Option<Resource<QueuePlace>>> {
        let claim = convert::claim(&claim).ok();
        Ok(claim.and_then(|claim| waits::join(&mut self.waits, claim)))
    }
}
