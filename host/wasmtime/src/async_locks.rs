//! Locks for guests of WASI 0.3: an implementation of the interface `verrou:async-lock/locks` by this program.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{AbortHandle, Abortable};
use verrou::nonblocking::{AsyncHost, Lock, LockFactory};
use verrou::{AsyncStore, Clock, Error, Fence, Retry, Timestamp, Ttl};
use wasmtime::Result;
use wasmtime::component::{
    Access, Accessor, HasData, Linker, Resource, ResourceTable, ResourceTableError,
};

use crate::bindings::async_guest::verrou::async_lock::locks::{self as wit, Acquisition, Kept};
use crate::bindings::blocking::verrou::lock::types;
use crate::concurrent_imports::Background;
use crate::convert::{self, duration, grant, nanos};
use crate::instance::next_number;
use crate::policy::{Counted, GuestPolicy, denied};
use crate::tracked_store::Tracked;

/// Adds the interface `verrou:async-lock/locks` to `linker`: `view` returns a guest's [`AsyncLocks`] from its state.
///
/// It is the counterpart of [`locks::add_to_linker`](crate::locks::add_to_linker) for guests of WASI 0.3, whose calls
/// await: a guest that waits for a lock blocks no thread. It needs an engine with
/// [`Config::wasm_component_model_async`](wasmtime::Config::wasm_component_model_async).
///
/// ```
/// use std::sync::Arc;
/// use verrou::MemoryStore;
/// use verrou::nonblocking::AsyncHost;
/// use verrou_host::System;
/// use verrou_wasmtime::async_locks::{AsyncLocks, add_to_linker};
/// use wasmtime::{Config, Engine, component::Linker};
///
/// struct Guest {
///     locks: AsyncLocks,
/// }
///
/// fn prepare(host: impl AsyncHost + 'static) -> wasmtime::Result<()> {
///     let mut config = Config::new();
///     config.wasm_component_model_async(true);
///     let engine = Engine::new(&config)?;
///     let mut linker = Linker::<Guest>::new(&engine);
///     add_to_linker(&mut linker, |guest| &mut guest.locks)?;
///     let store = Arc::new(MemoryStore::new(System));
///     let guest = Guest {
///         locks: AsyncLocks::new(store, host),
///     };
///     let store = wasmtime::Store::new(&engine, guest);
///     // … and `linker.instantiate_async(store, &component)`.
/// #   drop(store);
///     Ok(())
/// }
/// ```
///
/// # Errors
///
/// Returns wasmtime's error when `linker` has the interface already, or its engine does not support concurrency.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> &mut AsyncLocks,
) -> Result<()> {
    wit::add_to_linker::<T, HasLocks>(linker, view)
}

struct HasLocks;

impl HasData for HasLocks {
    type Data<'a> = &'a mut AsyncLocks;
}

type SharedStore = Arc<Tracked<Arc<dyn AsyncStore>>>;

/// The locks of one guest of WASI 0.3, all in one store.
///
/// Dropping it releases the guest's locks, unless they were detached, serialized or restored; so a guest that ends or
/// traps holds no lock. It starts each release, but cannot await it.
pub struct AsyncLocks {
    handles: ResourceTable,
    shared: Shared,
}

/// The state that all locks of a guest share.
#[derive(Clone)]
struct Shared {
    store: SharedStore,
    host: SharedHost,
    policy: Arc<GuestPolicy>,
    /// How many locks the guest holds, or acquires.
    grants: Arc<AtomicUsize>,
    /// How many calls of the guest wait for a lock.
    waits: Arc<AtomicUsize>,
}

impl AsyncLocks {
    /// Creates locks in `store`, with the clock, the sleep and the randomness of `host`. The guest waits in the store's
    /// queue.
    pub fn new(store: Arc<dyn AsyncStore>, host: impl AsyncHost + 'static) -> Self {
        let shared = Shared {
            store: Arc::new(Tracked::new(store)),
            host: SharedHost(Arc::new(host)),
            policy: Arc::default(),
            grants: Arc::default(),
            waits: Arc::default(),
        };
        let locks = Self {
            handles: ResourceTable::new(),
            shared,
        };
        locks.with_policy(GuestPolicy::default())
    }

    /// Returns the locks with what the guest may do with them.
    #[must_use]
    pub fn with_policy(mut self, policy: GuestPolicy) -> Self {
        self.handles.set_max_capacity(policy.handles);
        self.shared.policy = Arc::new(policy);
        self
    }

    fn keep(
        &mut self,
        lock: Lock<SharedStore, SharedHost>,
    ) -> Result<Result<Resource<AsyncLock>, types::LockError>> {
        let held = HeldLock {
            lock,
            shared: self.shared.clone(),
            grant: Mutex::default(),
            waiting: Mutex::default(),
        };
        match self.handles.push(AsyncLock(Arc::new(held))) {
            Ok(handle) => Ok(Ok(handle)),
            Err(ResourceTableError::Full) => Ok(Err(self.shared.policy.too_many_handles())),
            Err(err) => Err(err.into()),
        }
    }

    fn factory(&self) -> LockFactory<SharedStore, SharedHost> {
        LockFactory::new(Arc::clone(&self.shared.store), self.shared.host.clone())
    }

    fn lock(&self, lock: &Resource<AsyncLock>) -> Result<&Lock<SharedStore, SharedHost>> {
        Ok(&self.handles.get(lock)?.0.lock)
    }
}

impl Drop for AsyncLocks {
    fn drop(&mut self) {
        self.shared.store.release_all();
    }
}

/// A lock to which a guest of WASI 0.3 has a handle.
pub struct AsyncLock(Arc<HeldLock>);

impl fmt::Debug for AsyncLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncLock").finish_non_exhaustive()
    }
}

impl fmt::Debug for AsyncLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncLocks").finish_non_exhaustive()
    }
}

struct HeldLock {
    lock: Lock<SharedStore, SharedHost>,
    shared: Shared,
    /// This lock's part of the guest's grants, while it is held.
    grant: Mutex<Option<Counted>>,
    /// The calls of this lock that wait, by number.
    waiting: Mutex<HashMap<u64, AbortHandle>>,
}

impl HeldLock {
    /// Acquires the lock; `None` if the call was stopped.
    async fn acquire(&self, retry: &Retry) -> Result<Option<Acquisition>, types::LockError> {
        let policy = &self.shared.policy;
        let counted = policy.one_more_grant(&self.shared.grants)?;
        let Some(_wait) = Counted::new(&self.shared.waits, policy.waits) else {
            return Err(denied(&format!("more than {} waits", policy.waits)));
        };
        match self.until_stopped(self.lock.guard_with(retry)).await {
            None => Ok(None),
            Some(Ok(guard)) => {
                *self.grant() = Some(counted);
                Ok(Some(Acquisition::Acquired(grant(&guard.leave()))))
            }
            Some(Err(Error::Timeout { attempts, .. })) => Ok(Some(Acquisition::GaveUp(attempts))),
            Some(Err(err)) => Err(policy.error(err)),
        }
    }

    /// Awaits `call` until it ends, or is stopped: then it is dropped, and the result is `None`.
    async fn until_stopped<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let (handle, registration) = AbortHandle::new_pair();
        let number = next_number();
        self.waiting().insert(number, handle);
        let _waiting = Waiting { held: self, number };
        Abortable::new(call, registration).await.ok()
    }

    fn stop(&self) {
        self.waiting().values().for_each(AbortHandle::abort);
    }

    /// Converts the end of an operation for the guest.
    fn converted<T>(&self, end: Result<T, Error>) -> Result<T, types::LockError> {
        end.map_err(|err| self.shared.policy.error(err))
    }

    fn grant(&self) -> MutexGuard<'_, Option<Counted>> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, AbortHandle>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that waits, until it ends.
struct Waiting<'a> {
    held: &'a HeldLock,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.held.waiting().remove(&self.number);
    }
}

/// A host that all locks of a guest share.
#[derive(Clone)]
struct SharedHost(Arc<dyn AnyHost>);

/// The methods of [`AsyncHost`], for trait objects.
trait AnyHost: Clock + Send + Sync {
    fn boxed_sleep(&self, pause: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    fn random_bits(&self) -> [u8; 16];
    fn wall_time(&self) -> Duration;
}

impl<H: AsyncHost> AnyHost for H {
    fn boxed_sleep(&self, pause: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(self.sleep(pause))
    }
    fn random_bits(&self) -> [u8; 16] {
        self.random()
    }
    fn wall_time(&self) -> Duration {
        self.wall_clock()
    }
}

impl Clock for SharedHost {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

impl AsyncHost for SharedHost {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> + Send {
        self.0.boxed_sleep(pause)
    }
    fn random(&self) -> [u8; 16] {
        self.0.random_bits()
    }
    fn wall_clock(&self) -> Duration {
        self.0.wall_time()
    }
}

impl wit::Host for AsyncLocks {}

impl wit::HostLock for AsyncLocks {
    fn create(
        &mut self,
        name: String,
        ttl: Option<u64>,
    ) -> Result<Result<Resource<AsyncLock>, types::LockError>> {
        let policy = &self.shared.policy;
        let made = || {
            let name = policy.full_name(&name).map_err(Error::from)?;
            let ttl = Ttl::try_from(duration(ttl)).map_err(Error::from)?;
            policy.check_ttl(ttl)?;
            let lock = self.factory().create_lock(name.as_str(), ttl);
            lock.map_err(|err| policy.error(err))
        };
        match made() {
            Ok(lock) => self.keep(lock),
            Err(err) => Ok(Err(err)),
        }
    }

    /// The time is this program's, not that of the guest.
    fn restore(
        &mut self,
        serialized: String,
        _now: u64,
    ) -> Result<Result<Resource<AsyncLock>, types::LockError>> {
        match self.shared.policy.restorable(&serialized) {
            Ok(serialized) => self.keep(self.factory().restore_lock(&serialized)),
            Err(err) => Ok(Err(err)),
        }
    }

    fn stop(&mut self, lock: Resource<AsyncLock>) -> Result<()> {
        self.handles.get(&lock)?.0.stop();
        Ok(())
    }

    fn is_expired(&mut self, lock: Resource<AsyncLock>) -> Result<bool> {
        Ok(self.lock(&lock)?.is_expired())
    }

    fn remaining(&mut self, lock: Resource<AsyncLock>) -> Result<Option<u64>> {
        Ok(self.lock(&lock)?.remaining().map(nanos))
    }

    fn fencing_token(&mut self, lock: Resource<AsyncLock>) -> Result<Option<u64>> {
        let lease = self.lock(&lock)?.lease();
        Ok(lease.and_then(|lease| lease.fence()).map(Fence::get))
    }

    fn name(&mut self, lock: Resource<AsyncLock>) -> Result<String> {
        Ok(self.shared.policy.own_name(self.lock(&lock)?.name()))
    }

    fn ttl(&mut self, lock: Resource<AsyncLock>) -> Result<Option<u64>> {
        Ok(self.lock(&lock)?.ttl().duration().map(nanos))
    }
}

/// Returns the lock of a call.
fn held<T: 'static>(
    accessor: &Accessor<T, HasLocks>,
    lock: &Resource<AsyncLock>,
) -> Result<Arc<HeldLock>> {
    accessor.with(|mut access| Ok(Arc::clone(&access.get().handles.get(lock)?.0)))
}

impl<T: 'static> wit::HostLockWithStore<T> for HasLocks {
    async fn acquire(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
        retry: types::Retry,
    ) -> Result<Result<Acquisition, types::LockError>> {
        let held = held(accessor, &lock)?;
        let retry = match convert::policy(&retry) {
            Ok(retry) => retry,
            Err(err) => return Ok(Err(Error::from(err).into())),
        };
        let end = held.acquire(&retry).await;
        Ok(end.map(|end| end.unwrap_or(Acquisition::Stopped)))
    }

    async fn try_acquire(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<Option<types::Grant>, types::LockError>> {
        let held = held(accessor, &lock)?;
        let end = held.acquire(&Retry::NEVER).await;
        Ok(end.map(|end| match end {
            Some(Acquisition::Acquired(grant)) => Some(grant),
            _ => None,
        }))
    }

    async fn release(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<(), types::LockError>> {
        let held = held(accessor, &lock)?;
        let released = held.lock.release().await;
        if !matches!(released, Err(Error::Storage(_))) {
            held.grant().take();
        }
        Ok(held.converted(released))
    }

    async fn force_release(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
        only: Option<u64>,
    ) -> Result<Result<bool, types::LockError>> {
        let held = held(accessor, &lock)?;
        let Ok(only) = convert::only(only) else {
            return Ok(Ok(false));
        };
        if !held.shared.policy.force_release {
            return Ok(Err(denied("to force-release a lock")));
        }
        Ok(held.converted(held.lock.force_release(only).await))
    }

    async fn extend(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<(), types::LockError>> {
        let held = held(accessor, &lock)?;
        Ok(held.converted(held.lock.extend(held.lock.ttl()).await))
    }

    async fn extend_for(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
        ttl: Option<u64>,
    ) -> Result<Result<(), types::LockError>> {
        let held = held(accessor, &lock)?;
        let ttl = match Ttl::try_from(duration(ttl)) {
            Ok(ttl) => ttl,
            Err(err) => return Ok(Err(Error::from(err).into())),
        };
        if let Err(denied) = held.shared.policy.check_ttl(ttl) {
            return Ok(Err(denied));
        }
        Ok(held.converted(held.lock.extend(ttl).await))
    }

    async fn keep(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<Kept, types::LockError>> {
        let held = held(accessor, &lock)?;
        Ok(match held.until_stopped(held.lock.keep()).await {
            None => Ok(Kept::Stopped),
            Some(Ok(())) => Ok(Kept::Released),
            Some(Err(Error::Lost { loss, .. })) => Ok(Kept::Lost(convert::loss(loss))),
            Some(Err(err)) => Err(held.shared.policy.error(err)),
        })
    }

    async fn is_locked(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<bool, types::LockError>> {
        let held = held(accessor, &lock)?;
        if let Err(denied) = held.shared.policy.check_inspect() {
            return Ok(Err(denied));
        }
        Ok(held.converted(held.lock.is_locked().await))
    }

    async fn is_held(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<bool, types::LockError>> {
        let held = held(accessor, &lock)?;
        if let Err(denied) = held.shared.policy.check_inspect() {
            return Ok(Err(denied));
        }
        Ok(held.converted(held.lock.is_held().await))
    }

    async fn holders(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<Vec<types::Holder>, types::LockError>> {
        let held = held(accessor, &lock)?;
        if let Err(denied) = held.shared.policy.check_inspect() {
            return Ok(Err(denied));
        }
        let holders = held.lock.holders().await;
        let holders = holders.map(|holders| holders.into_iter().map(convert::holder).collect());
        Ok(held.converted(holders))
    }

    async fn detach(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
    ) -> Result<Result<(), types::LockError>> {
        let held = held(accessor, &lock)?;
        if !held.shared.policy.transfer {
            return Ok(Err(denied("to detach a lock")));
        }
        Ok(held.converted(held.lock.detach().await))
    }

    /// The time is this program's, not that of the guest.
    async fn serialize(
        accessor: &Accessor<T, Self>,
        lock: Resource<AsyncLock>,
        _now: u64,
    ) -> Result<Result<String, types::LockError>> {
        let held = held(accessor, &lock)?;
        if !held.shared.policy.transfer {
            return Ok(Err(denied("to serialize a lock")));
        }
        let text = held.lock.serialize().await;
        Ok(held.converted(text.map(|text| text.to_string())))
    }

    fn drop(mut access: Access<'_, T, Self>, lock: Resource<AsyncLock>) -> Result<()> {
        let AsyncLock(held) = access.get().handles.delete(lock)?;
        if held
            .lock
            .lease()
            .is_some_and(|lease| lease.claim().ephemeral)
        {
            // After an error the lease expires.
            let release = Box::pin(async move { drop(held.lock.release().await) });
            if let Some(rest) = Background::begin(release) {
                access.spawn(rest)?;
            }
        }
        Ok(())
    }
}
