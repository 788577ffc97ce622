//! An adapter from the component's locks back to a store, so that the suite for stores runs through the
//! component.

use std::collections::{HashMap, VecDeque};
use std::convert::identity;
use std::fmt;
use std::future::{Future, poll_fn};
use std::mem::replace;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Poll;
use std::time::Duration;

use pollster::block_on;
use verrou::blocking::Host;
use verrou::conformance::{Fixture, TestClock};
use verrou::nonblocking::{AsyncHost, Inline};
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Clock, Fence, Holder,
    Lease, Name, Owner, Renewed, SerializedLock, Store, StoreError, Timestamp, Ttl, Waiter,
    async_trait,
};
use verrou_host::System;
use verrou_host::component::{
    AsyncInstance, AsyncRunner, ComponentError, ConcurrentInstance, ConcurrentRunner, Instance,
    Limits, LockHandle, Runner, wasmtime,
};

use crate::places::SharedStore;

/// Returns the component of WASI 0.2 that `cargo xtask component` has built.
pub(crate) fn component() -> Vec<u8> {
    built("verrou.wasm")
}

/// Returns the component of WASI 0.3 that `cargo xtask component` has built.
pub(crate) fn async_component() -> Vec<u8> {
    built("verrou-async.wasm")
}

/// Returns the component of WASI 0.3, which is compiled once for all tests.
pub(crate) fn compiled_async_component() -> &'static wasmtime::component::Component {
    static COMPONENT: OnceLock<wasmtime::component::Component> = OnceLock::new();
    COMPONENT.get_or_init(|| {
        let engine = Limits::default().concurrent_engine().expect("an engine");
        wasmtime::component::Component::new(&engine, async_component()).expect("a component")
    })
}

fn built(file: &str) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/component");
    let path = directory.join(file);
    std::fs::read(&path).unwrap_or_else(|err| {
        let path = path.display();
        panic!("{path}: {err}: build it with `cargo xtask component`")
    })
}

/// Returns an instance with the clock and the randomness of the system.
pub(crate) fn instance(store: SharedStore) -> Instance<SharedStore, System> {
    let runner = Runner::new(&component(), &Limits::default()).expect("the component");
    runner.instance(store, System).expect("an instance")
}

/// The calls of an instance, blocking or async.
pub(crate) trait Calls: Send + 'static {
    /// Whether dropping the instance has released its locks. An async instance can only start that.
    const RELEASES: bool;
    fn create_lock(&mut self, name: &str, ttl: Option<Duration>) -> Answer<LockHandle>;
    fn restore_lock(&mut self, serialized: &str) -> Answer<LockHandle>;
    fn try_acquire(&mut self, lock: LockHandle) -> Answer<bool>;
    fn release(&mut self, lock: LockHandle) -> Answer<()>;
    fn force_release(&mut self, lock: LockHandle, only: Option<Fence>) -> Answer<bool>;
    fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Answer<()>;
    fn is_expired(&mut self, lock: LockHandle) -> Answer<bool>;
    fn is_held(&mut self, lock: LockHandle) -> Answer<bool>;
    fn holders(&mut self, lock: LockHandle) -> Answer<Vec<Holder>>;
    fn serialize(&mut self, lock: LockHandle) -> Answer<String>;
    fn fence(&mut self, lock: LockHandle) -> Answer<Option<Fence>>;
    fn forget(&mut self, lock: LockHandle) -> Answer<()>;
}

type Answer<T> = Result<T, ComponentError>;

macro_rules! calls {
    ($instance:ty, $wait:expr, $releases:expr) => {
        impl Calls for $instance {
            const RELEASES: bool = $releases;

            fn create_lock(&mut self, name: &str, ttl: Option<Duration>) -> Answer<LockHandle> {
                $wait(<$instance>::create_lock(self, name, ttl))
            }
            fn restore_lock(&mut self, serialized: &str) -> Answer<LockHandle> {
                $wait(<$instance>::restore_lock(self, serialized))
            }
            fn try_acquire(&mut self, lock: LockHandle) -> Answer<bool> {
                $wait(<$instance>::try_acquire(self, lock))
            }
            fn release(&mut self, lock: LockHandle) -> Answer<()> {
                $wait(<$instance>::release(self, lock))
            }
            fn force_release(&mut self, lock: LockHandle, only: Option<Fence>) -> Answer<bool> {
                $wait(<$instance>::force_release(self, lock, only))
            }
            fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Answer<()> {
                $wait(<$instance>::extend(self, lock, ttl))
            }
            fn is_expired(&mut self, lock: LockHandle) -> Answer<bool> {
                $wait(<$instance>::is_expired(self, lock))
            }
            fn is_held(&mut self, lock: LockHandle) -> Answer<bool> {
                $wait(<$instance>::is_held(self, lock))
            }
            fn holders(&mut self, lock: LockHandle) -> Answer<Vec<Holder>> {
                $wait(<$instance>::holders(self, lock))
            }
            fn serialize(&mut self, lock: LockHandle) -> Answer<String> {
                $wait(<$instance>::serialize(self, lock))
            }
            fn fence(&mut self, lock: LockHandle) -> Answer<Option<Fence>> {
                $wait(<$instance>::fence(self, lock))
            }
            fn forget(&mut self, lock: LockHandle) -> Answer<()> {
                $wait(<$instance>::forget(self, lock))
            }
        }
    };
}

calls!(Instance<SharedStore, AdapterHost>, identity, true);
calls!(AsyncInstance<Yielding, AdapterHost>, block_on, false);
calls!(ConcurrentInstance<Yielding, AdapterHost>, block_on, false);

/// A store whose operations each yield once before they complete.
#[derive(Debug)]
pub(crate) struct Yielding(pub(crate) Inline<SharedStore>);

impl Yielding {
    async fn once() {
        let mut yielded = false;
        poll_fn(|context| {
            context.waker().wake_by_ref();
            if replace(&mut yielded, true) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

#[deny(
    clippy::missing_trait_methods,
    reason = "a wrapper passes every method on"
)]
#[async_trait]
impl AsyncStore for Yielding {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Self::once().await;
        self.0.acquire(claim).await
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Self::once().await;
        self.0.extend(claim).await
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        Self::once().await;
        self.0.renew(claim, fence).await
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Self::once().await;
        self.0.release(claim).await
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Self::once().await;
        self.0.force_release(name, only).await
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Self::once().await;
        self.0.holders(name).await
    }
    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        Self::once().await;
        self.0.holds(claim, fence).await
    }
    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        Self::once().await;
        self.0.detach(claim).await
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        self.0.waiter(claim)
    }
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        self.0.watch(claim)
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
}

fn async_runner() -> &'static AsyncRunner<Yielding, AdapterHost> {
    static RUNNER: OnceLock<AsyncRunner<Yielding, AdapterHost>> = OnceLock::new();
    RUNNER.get_or_init(|| AsyncRunner::new(&component(), &Limits::default()).expect("a component"))
}

fn concurrent_runner() -> &'static ConcurrentRunner<Yielding, AdapterHost> {
    static RUNNER: OnceLock<ConcurrentRunner<Yielding, AdapterHost>> = OnceLock::new();
    RUNNER.get_or_init(|| {
        let runner =
            ConcurrentRunner::from_component(compiled_async_component(), &Limits::default());
        runner.expect("a component")
    })
}

fn runner() -> &'static Runner<SharedStore, AdapterHost> {
    static RUNNER: OnceLock<Runner<SharedStore, AdapterHost>> = OnceLock::new();
    RUNNER.get_or_init(|| Runner::new(&component(), &Limits::default()).expect("the component"))
}

/// A host with the test's clock, and with the owner tokens that the adapter chooses.
#[derive(Clone)]
pub(crate) struct AdapterHost {
    clock: TestClock,
    next: Arc<Mutex<VecDeque<[u8; 8]>>>,
}

impl AdapterHost {
    pub(crate) fn new(clock: TestClock) -> Self {
        let next = Arc::default();
        Self { clock, next }
    }

    /// Makes the component draw `owner` as its next owner token.
    fn draw_next(&self, owner: Owner) {
        let halves = owner.as_bytes().as_chunks().0;
        self.next.lock().unwrap().extend(halves);
    }
}

impl Clock for AdapterHost {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl Host for AdapterHost {
    fn sleep(&self, pause: Duration) {
        Host::sleep(&self.clock, pause);
    }

    fn random(&self) -> [u8; 16] {
        let Some(half) = self.next.lock().unwrap().pop_front() else {
            return Host::random(&self.clock);
        };
        let mut bits = [0; 16];
        bits[..8].copy_from_slice(&half);
        bits
    }

    fn wall_clock(&self) -> Duration {
        Host::wall_clock(&self.clock)
    }
}

impl AsyncHost for AdapterHost {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> {
        AsyncHost::sleep(&self.clock, pause)
    }

    fn random(&self) -> [u8; 16] {
        Host::random(self)
    }

    fn wall_clock(&self) -> Duration {
        Host::wall_clock(self)
    }
}

/// A fixture whose clients are instances of the component.
pub(crate) struct Component<F>(pub(crate) F);

/// A fixture whose clients are async instances of the component.
pub(crate) struct Awaited<F>(pub(crate) F);

/// A fixture whose clients are instances of the component of WASI 0.3.
pub(crate) struct Concurrent<F>(pub(crate) F);

macro_rules! fixture {
    ($place:ident, $instance:ty, $new:expr) => {
        impl<F: Fixture<Host = TestClock>> Fixture for $place<F> {
            type Store = Through<$instance>;
            type Host = TestClock;

            fn client(&self) -> Self::Store {
                let store: SharedStore = Arc::new(self.0.client());
                let host = AdapterHost::new(self.0.host());
                let instance = $new(Arc::clone(&store), host.clone());
                Through::new(store, host, instance.expect("an instance"))
            }

            fn host(&self) -> TestClock {
                self.0.host()
            }

            fn pass(&self, time: Duration) {
                self.0.pass(time);
            }
        }
    };
}

fixture!(
    Component,
    Instance<SharedStore, AdapterHost>,
    |store, host| runner().instance(store, host)
);
fixture!(
    Awaited,
    AsyncInstance<Yielding, AdapterHost>,
    |store, host| block_on(async_runner().instance(Yielding(Inline(store)), host))
);
fixture!(
    Concurrent,
    ConcurrentInstance<Yielding, AdapterHost>,
    |store, host| block_on(concurrent_runner().instance(Yielding(Inline(store)), host))
);

/// One instance of the component, as a store.
pub(crate) struct Through<I> {
    store: SharedStore,
    host: AdapterHost,
    state: Mutex<State<I>>,
}

impl<I> fmt::Debug for Through<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Through").finish_non_exhaustive()
    }
}

struct State<I> {
    instance: I,
    /// The locks that were acquired by this instance, and are not released, the latest last. A claim that was
    /// acquired again has several: dropping one would release the lock.
    locks: HashMap<(Name, Owner), Vec<LockHandle>>,
}

impl<I: Calls> Through<I> {
    fn new(store: SharedStore, host: AdapterHost, instance: I) -> Self {
        Self {
            store,
            host,
            state: Mutex::new(State {
                instance,
                locks: HashMap::new(),
            }),
        }
    }

    /// Calls `operation` with the lock of `claim`: the one that this instance acquired, or else a restored one.
    fn with(
        &self,
        claim: &Claim,
        operation: impl FnOnce(&mut I, LockHandle) -> Result<bool, ComponentError>,
    ) -> Result<bool, StoreError> {
        let state = &mut *self.state.lock().unwrap();
        let known = state.locks.get(&(claim.name.clone(), claim.owner));
        let known = known.and_then(|locks| locks.last().copied());
        // An expired lock may have been extended by another instance, which this one has not recorded.
        let known = known.filter(|lock| !state.instance.is_expired(*lock).expect("an instance"));
        let lock = if let Some(lock) = known {
            lock
        } else {
            let text = self.serialized(claim);
            state.instance.restore_lock(&text).map_err(failed)?
        };
        let end = operation(&mut state.instance, lock);
        if known.is_none() {
            state.instance.forget(lock).map_err(failed)?;
        }
        done(end)
    }

    /// Returns the serialized lock of `claim` as if it had been granted now.
    fn serialized(&self, claim: &Claim) -> String {
        let now = self.host.now();
        let lease = Lease::granted(claim.clone(), None, now);
        SerializedLock::new(&lease, claim.ttl, now, Host::wall_clock(&self.host)).to_string()
    }

    /// Calls `operation` with a new lock called `name`, which need not be held.
    fn about<T>(
        &self,
        name: &Name,
        operation: impl FnOnce(&mut I, LockHandle) -> Result<T, ComponentError>,
    ) -> Result<T, ComponentError> {
        let instance = &mut self.state.lock().unwrap().instance;
        let lock = instance.create_lock(name.as_str(), None)?;
        let end = operation(instance, lock);
        instance.forget(lock)?;
        end
    }
}

fn done(end: Result<bool, ComponentError>) -> Result<bool, StoreError> {
    match end {
        Err(err) if err.code() == "E_LOCK_NOT_OWNER" => Ok(false),
        end => end.map_err(failed),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn failed(err: ComponentError) -> StoreError {
    match &err {
        ComponentError::Lock(lock) if lock.code == "E_LOCK_STORAGE_ERROR" => {
            if lock.temporary {
                StoreError::temporary(lock.message.clone())
            } else {
                StoreError::permanent(lock.message.clone())
            }
        }
        other => panic!("{other:?}"),
    }
}

impl<I: Calls> Store for Through<I> {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let state = &mut *self.state.lock().unwrap();
        let instance = &mut state.instance;
        let ttl = claim.ttl.duration();
        let lock = instance.create_lock(claim.name.as_str(), ttl);
        let lock = lock.map_err(failed)?;
        self.host.draw_next(claim.owner);
        let acquired = instance.try_acquire(lock).map_err(failed)?;
        if !acquired {
            instance.forget(lock).map_err(failed)?;
            return Ok(Acquired::BUSY);
        }
        if !claim.ephemeral && self.store.capabilities().transfers {
            // Serializing detaches the lease, so that it outlives this instance.
            instance.serialize(lock).map_err(failed)?;
        }
        let fence = instance.fence(lock).map_err(failed)?;
        let locks = state.locks.entry((claim.name.clone(), claim.owner));
        locks.or_default().push(lock);
        Ok(Acquired::Granted { fence })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let ttl: Ttl = claim.ttl;
        self.with(claim, |instance, lock| {
            instance.extend(lock, Some(ttl)).map(|()| true)
        })
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let released = self.with(claim, |instance, lock| {
            instance.release(lock).map(|()| true)
        })?;
        let state = &mut *self.state.lock().unwrap();
        let known = state.locks.remove(&(claim.name.clone(), claim.owner));
        for lock in known.into_iter().flatten() {
            state.instance.forget(lock).map_err(failed)?;
        }
        Ok(released)
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        done(self.about(name, |instance, lock| instance.force_release(lock, only)))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.about(name, I::holders).map_err(failed)
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        if !self.store.capabilities().transfers {
            return Ok(false);
        }
        self.with(claim, |instance, lock| {
            // A restored lock was detached when it was serialized, here without a fencing token.
            if instance.fence(lock)?.is_none() || !instance.is_held(lock)? {
                return Ok(false);
            }
            instance.serialize(lock).map(|_| true)
        })
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        self.store.waiter(claim)
    }

    /// Returns the capabilities of the store without `revives`, because this adapter renews by `extend`, which revives
    /// no expired lease. A record of any store ends with the instance that made it.
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.store.capabilities();
        capabilities.revives = false;
        capabilities.ephemeral |= I::RELEASES;
        capabilities
    }
}
