//! The imports of an instance of `verrou:async-lock`: an async store of this program, a clock and randomness.

use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use futures::future::select;
use verrou::nonblocking::AsyncHost;
use verrou::{AsyncStore, Fence};
use wasmtime::Result;
use wasmtime::component::{
    Access, Accessor, AccessorTask, HasData, Linker, Resource, ResourceTable,
};

use crate::bindings::blocking::verrou::lock::types;
use crate::bindings::concurrent::LockManager;
use crate::bindings::concurrent::verrou::async_lock::store as backend;
use crate::bindings::concurrent::wasi::{clocks0_3_0 as clocks, random0_3_0 as random};
use crate::convert;
use crate::engine::{Budget, Limits, not_called};
use crate::queue_place::{Place, Queues, watch};
use crate::tracked_store::Tracked;

/// Adds the imports of the lock component of WASI 0.3 to `linker`: the interface `verrou:async-lock/store`, the clock and the
/// randomness. `view` returns their [`ConcurrentState`] from the state of an instance.
///
/// It is for a component that is composed of an application and the lock component, and for a host that drives the lock
/// component itself; [`ConcurrentRunner`](crate::ConcurrentRunner) does all of that. The engine needs
/// [`Config::wasm_component_model_async`](wasmtime::Config::wasm_component_model_async).
///
/// # Errors
///
/// Returns wasmtime's error when `linker` has one of the interfaces already, or its engine does not support concurrency.
pub fn add_store_to_linker<T, S, H>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> &mut ConcurrentState<S, H>,
) -> Result<()>
where
    T: Send + 'static,
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    LockManager::add_to_linker::<T, Imports<S, H>>(linker, view)
}

/// The state of an instance of `verrou:async-lock`, from which its imports are implemented.
///
/// Dropping it releases the locks of the instance, unless they were detached, serialized or restored: it starts each
/// release, but cannot await it.
pub struct ConcurrentState<S: AsyncStore, H> {
    /// Whether the leases end with this value, and not with an instance that has it.
    pub(crate) releases: bool,
    pub(crate) store: Arc<Tracked<S>>,
    pub(crate) host: Arc<H>,
    /// The places in the store's wait queue, and the watches for losses.
    pub(crate) table: ResourceTable,
    pub(crate) budget: Budget,
    pub(crate) entered: Entered,
}

impl<S: AsyncStore, H> ConcurrentState<S, H> {
    /// Creates the state of an instance whose locks are in `store`.
    pub fn new(store: S, host: H) -> Self {
        Self {
            releases: true,
            store: Arc::new(Tracked::new(store)),
            host: Arc::new(host),
            table: ResourceTable::new(),
            budget: Limits::default().budget(),
            entered: Entered::now(),
        }
    }
}

impl<S: AsyncStore, H> Drop for ConcurrentState<S, H> {
    fn drop(&mut self) {
        if self.releases {
            self.store.release_all();
        }
    }
}

impl<S: AsyncStore, H> fmt::Debug for ConcurrentState<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrentState").finish_non_exhaustive()
    }
}

/// The time at which the code of an instance began to run: each poll of its driver sets it.
#[derive(Clone, Debug)]
pub(crate) struct Entered(Arc<Mutex<Instant>>);

impl Entered {
    pub(crate) fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    pub(crate) fn set(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    pub(crate) fn get(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a claim in the wait queue of the store. Dropping it leaves the queue.
#[derive(Debug)]
pub struct StoreWaiter(Place);

impl Drop for StoreWaiter {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// A watch of the store for the loss of a lease. Dropping it ends the watch.
#[derive(Debug)]
pub struct StoreWatch(Place);

impl Drop for StoreWatch {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// Gives the implementations below the state of an instance.
pub(crate) struct Imports<S, H>(PhantomData<fn() -> (S, H)>);

impl<S: AsyncStore + 'static, H: 'static> HasData for Imports<S, H> {
    type Data<'a> = &'a mut ConcurrentState<S, H>;
}

/// The reply of the store to the component.
type Replied<T> = std::result::Result<T, types::StoreError>;

/// Returns the store of the component.
fn store<T, S, H>(accessor: &Accessor<T, Imports<S, H>>) -> Arc<Tracked<S>>
where
    S: AsyncStore + 'static,
    H: 'static,
{
    accessor.with(|mut access| Arc::clone(&access.get().store))
}

impl<T, S, H> backend::HostWithStore<T> for Imports<S, H>
where
    T: 'static,
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    async fn acquire(
        accessor: &Accessor<T, Self>,
        claim: types::Claim,
    ) -> Result<Replied<types::Acquired>> {
        let store = store(accessor);
        let reply = match convert::claim(&claim) {
            Ok(claim) => store.acquire(&claim).await,
            Err(err) => Err(err),
        };
        Ok(convert::acquired(reply))
    }

    async fn extend(accessor: &Accessor<T, Self>, claim: types::Claim) -> Result<Replied<bool>> {
        let store = store(accessor);
        let reply = match convert::claim(&claim) {
            Ok(claim) => store.extend(&claim).await,
            Err(err) => Err(err),
        };
        Ok(convert::done(reply))
    }

    async fn renew(
        accessor: &Accessor<T, Self>,
        claim: types::Claim,
        fencing_token: Option<u64>,
    ) -> Result<Replied<types::Renewed>> {
        let store = store(accessor);
        let fence = fencing_token.and_then(Fence::new);
        let reply = match convert::claim(&claim) {
            Ok(claim) => store.renew(&claim, fence).await,
            Err(err) => Err(err),
        };
        Ok(convert::renewed(reply))
    }

    async fn release(accessor: &Accessor<T, Self>, claim: types::Claim) -> Result<Replied<bool>> {
        let store = store(accessor);
        let reply = match convert::claim(&claim) {
            Ok(claim) => store.release(&claim).await,
            Err(err) => Err(err),
        };
        Ok(convert::done(reply))
    }

    fn abandon(mut access: Access<'_, T, Self>, claim: types::Claim) -> Result<()> {
        let Ok(claim) = convert::claim(&claim) else {
            return Ok(());
        };
        let store = Arc::clone(&access.get().store);
        // After an error the lease expires.
        let release = Box::pin(async move { drop(store.release(&claim).await) });
        if let Some(rest) = Background::begin(release) {
            access.spawn(rest)?;
        }
        Ok(())
    }

    async fn force_release(
        accessor: &Accessor<T, Self>,
        name: String,
        only: Option<u64>,
    ) -> Result<Replied<bool>> {
        let Ok(only) = convert::only(only) else {
            return Ok(Ok(false));
        };
        let store = store(accessor);
        let reply = match convert::name(&name) {
            Ok(name) => store.force_release(&name, only).await,
            Err(err) => Err(err),
        };
        Ok(convert::done(reply))
    }

    async fn holders(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> Result<Replied<Vec<types::Holder>>> {
        let store = store(accessor);
        let reply = match convert::name(&name) {
            Ok(name) => store.holders(&name).await,
            Err(err) => Err(err),
        };
        Ok(convert::holders(reply))
    }

    async fn detach(accessor: &Accessor<T, Self>, claim: types::Claim) -> Result<Replied<bool>> {
        let store = store(accessor);
        let reply = match convert::claim(&claim) {
            Ok(claim) => store.detach(&claim).await,
            Err(err) => Err(err),
        };
        Ok(convert::done(reply))
    }
}

/// The rest of an operation that nothing awaits.
pub(crate) struct Background(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Background {
    /// Begins `operation`; returns what is left of it.
    pub(crate) fn begin(mut operation: Pin<Box<dyn Future<Output = ()> + Send>>) -> Option<Self> {
        let first = operation
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()));
        first.is_pending().then_some(Self(operation))
    }
}

impl<T: 'static, D: HasData> AccessorTask<T, D> for Background {
    async fn run(self, _: &Accessor<T, D>) -> Result<()> {
        self.0.await;
        Ok(())
    }
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> backend::Host for ConcurrentState<S, H> {
    fn get_capabilities(&mut self) -> Result<types::Capabilities> {
        Ok(convert::capabilities(self.store.capabilities()))
    }

    fn join(&mut self, claim: types::Claim) -> Result<Option<Resource<StoreWaiter>>> {
        let claim = convert::claim(&claim).ok();
        let place = claim.and_then(|claim| self.store.join(&claim));
        // Without a place, the component asks again after each pause.
        Ok(place.and_then(|place| self.table.push(StoreWaiter(place)).ok()))
    }

    fn watch(&mut self, claim: types::Claim) -> Result<Option<Resource<StoreWatch>>> {
        let claim = convert::claim(&claim).ok();
        let place = claim.and_then(|claim| watch(&self.store, &claim));
        Ok(place.and_then(|place| self.table.push(StoreWatch(place)).ok()))
    }
}

impl<T, S, H> backend::HostWaiterWithStore<T> for Imports<S, H>
where
    T: 'static,
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    async fn wait(
        accessor: &Accessor<T, Self>,
        waiter: Resource<StoreWaiter>,
        at_most: u64,
    ) -> Result<()> {
        let (place, host) = accessor.with(|mut access| -> Result<_> {
            let state = access.get();
            Ok((state.table.get(&waiter)?.0.clone(), Arc::clone(&state.host)))
        })?;
        let sleep = host.sleep(Duration::from_nanos(at_most));
        select(pin!(place.notification()), pin!(sleep)).await;
        Ok(())
    }
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> backend::HostWaiter
    for ConcurrentState<S, H>
{
    fn is_notified(&mut self, waiter: Resource<StoreWaiter>) -> Result<bool> {
        Ok(self.table.get(&waiter)?.0.notifies)
    }

    fn drop(&mut self, waiter: Resource<StoreWaiter>) -> Result<()> {
        self.table.delete(waiter)?;
        Ok(())
    }
}

impl<T, S, H> backend::HostLossWatchWithStore<T> for Imports<S, H>
where
    T: 'static,
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    async fn wait(accessor: &Accessor<T, Self>, watch: Resource<StoreWatch>) -> Result<()> {
        let place = accessor
            .with(|mut access| -> Result<_> { Ok(access.get().table.get(&watch)?.0.clone()) })?;
        place.notification().await;
        Ok(())
    }
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> backend::HostLossWatch
    for ConcurrentState<S, H>
{
    fn drop(&mut self, watch: Resource<StoreWatch>) -> Result<()> {
        self.table.delete(watch)?;
        Ok(())
    }
}

impl<S: AsyncStore, H> types::Host for ConcurrentState<S, H> {}

impl<S: AsyncStore, H> clocks::types::Host for ConcurrentState<S, H> {}

impl<S: AsyncStore, H: AsyncHost> clocks::monotonic_clock::Host for ConcurrentState<S, H> {
    fn now(&mut self) -> Result<u64> {
        Ok(convert::nanos(self.host.now().since_start()))
    }

    fn get_resolution(&mut self) -> Result<u64> {
        not_called("get-resolution")
    }
}

impl<T, S, H> clocks::monotonic_clock::HostWithStore<T> for Imports<S, H>
where
    T: 'static,
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    async fn wait_until(_: &Accessor<T, Self>, _: u64) -> Result<()> {
        not_called("wait-until")
    }

    async fn wait_for(accessor: &Accessor<T, Self>, how_long: u64) -> Result<()> {
        let host = accessor.with(|mut access| Arc::clone(&access.get().host));
        host.sleep(Duration::from_nanos(how_long)).await;
        Ok(())
    }
}

impl<S: AsyncStore, H: AsyncHost> random::random::Host for ConcurrentState<S, H> {
    fn get_random_bytes(&mut self, _: u64) -> Result<Vec<u8>> {
        not_called("get-random-bytes")
    }

    fn get_random_u64(&mut self) -> Result<u64> {
        let random = u128::from_be_bytes(self.host.random());
        Ok((random >> 64) as u64)
    }
}
