//! A store as it is seen through the component: its locks, turned back into a store, so that the
//! suite for stores runs through it.

use std::collections::{HashMap, VecDeque};
use std::convert::identity;
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
    Abilities, AsyncStore, Claim, Clock, Fence, Holder, Lease, Name, Owner, Renewed, Reply,
    SerializedLock, Store, StoreError, Timestamp, Ttl, Waited,
};
use verrou_host::component::{
    AsyncInstance, AsyncRunner, ComponentError, Instance, Limits, LockHandle, Runner,
};

use crate::places::AnyStore;

/// The component that `cargo xtask component` builds.
pub(crate) fn component() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/component/verrou.wasm");
    std::fs::read(&path).unwrap_or_else(|err| {
        let path = path.display();
        panic!("{path}: {err}: build it with `cargo xtask component`")
    })
}

/// What can be asked of an instance, whatever its colour.
pub(crate) trait Calls: Send + 'static {
    fn create_lock(&mut self, name: &str, ttl: Option<Duration>) -> Said<LockHandle>;
    fn restore_lock(&mut self, serialized: &str) -> Said<LockHandle>;
    fn try_acquire(&mut self, lock: LockHandle) -> Said<bool>;
    fn release(&mut self, lock: LockHandle) -> Said<()>;
    fn force_release(&mut self, lock: LockHandle, only: Option<Fence>) -> Said<bool>;
    fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Said<()>;
    fn is_expired(&mut self, lock: LockHandle) -> Said<bool>;
    fn is_held(&mut self, lock: LockHandle) -> Said<bool>;
    fn holder(&mut self, lock: LockHandle) -> Said<Option<Holder>>;
    fn serialize(&mut self, lock: LockHandle) -> Said<String>;
    fn fence(&mut self, lock: LockHandle) -> Said<Option<Fence>>;
    fn forget(&mut self, lock: LockHandle) -> Said<()>;
}

type Said<T> = Result<T, ComponentError>;

macro_rules! calls {
    ($instance:ty, $wait:expr) => {
        impl Calls for $instance {
            fn create_lock(&mut self, name: &str, ttl: Option<Duration>) -> Said<LockHandle> {
                $wait(self.create_lock(name, ttl))
            }
            fn restore_lock(&mut self, serialized: &str) -> Said<LockHandle> {
                $wait(self.restore_lock(serialized))
            }
            fn try_acquire(&mut self, lock: LockHandle) -> Said<bool> {
                $wait(self.try_acquire(lock))
            }
            fn release(&mut self, lock: LockHandle) -> Said<()> {
                $wait(self.release(lock))
            }
            fn force_release(&mut self, lock: LockHandle, only: Option<Fence>) -> Said<bool> {
                $wait(self.force_release(lock, only))
            }
            fn extend(&mut self, lock: LockHandle, ttl: Option<Ttl>) -> Said<()> {
                $wait(self.extend(lock, ttl))
            }
            fn is_expired(&mut self, lock: LockHandle) -> Said<bool> {
                $wait(self.is_expired(lock))
            }
            fn is_held(&mut self, lock: LockHandle) -> Said<bool> {
                $wait(self.is_held(lock))
            }
            fn holder(&mut self, lock: LockHandle) -> Said<Option<Holder>> {
                let holder = $wait(self.holder(lock))?;
                Ok(holder.map(|holder| Holder {
                    fence: holder.fencing_token.and_then(Fence::new),
                    since: None,
                    remaining: holder.remaining.map(Duration::from_nanos),
                    process: None,
                    detached: false,
                }))
            }
            fn serialize(&mut self, lock: LockHandle) -> Said<String> {
                $wait(self.serialize(lock))
            }
            fn fence(&mut self, lock: LockHandle) -> Said<Option<Fence>> {
                $wait(self.fence(lock))
            }
            fn forget(&mut self, lock: LockHandle) -> Said<()> {
                $wait(self.forget(lock))
            }
        }
    };
}

calls!(Instance<AnyStore, Told>, identity);
calls!(AsyncInstance<Yielding, Told>, block_on);

/// A store whose every step has to be awaited.
pub(crate) struct Yielding(pub(crate) Inline<AnyStore>);

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

impl AsyncStore for Yielding {
    async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Self::once().await;
        self.0.acquire(claim).await
    }
    async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Self::once().await;
        self.0.extend(claim).await
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        Self::once().await;
        self.0.renew(claim, fence).await
    }
    async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Self::once().await;
        self.0.release(claim).await
    }
    async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        Self::once().await;
        self.0.evict(name, only).await
    }
    async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        Self::once().await;
        self.0.inspect(name).await
    }
    async fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Self::once().await;
        self.0.detach(claim).await
    }
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }
}

fn async_runner() -> &'static AsyncRunner<Told> {
    static RUNNER: OnceLock<AsyncRunner<Told>> = OnceLock::new();
    RUNNER.get_or_init(|| AsyncRunner::new(&component(), &Limits::default()).expect("a component"))
}

fn runner() -> &'static Runner<AnyStore, Told> {
    static RUNNER: OnceLock<Runner<AnyStore, Told>> = OnceLock::new();
    RUNNER.get_or_init(|| Runner::new(&component(), &Limits::default()).expect("the component"))
}

/// The time as the test has it, and randomness as it is told.
#[derive(Clone)]
pub(crate) struct Told {
    clock: TestClock,
    next: Arc<Mutex<VecDeque<[u8; 8]>>>,
}

impl Told {
    pub(crate) fn new(clock: TestClock) -> Self {
        let next = Arc::default();
        Self { clock, next }
    }

    /// Lets the next owner that the component draws be `owner`.
    fn tell(&self, owner: Owner) {
        let halves = owner.as_bytes().as_chunks().0;
        self.next.lock().unwrap().extend(halves);
    }
}

impl Clock for Told {
    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

impl Host for Told {
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

impl AsyncHost for Told {
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

/// A place whose clients are instances of the component.
pub(crate) struct Component<F>(pub(crate) F);

/// A place whose clients are instances of the component that are awaited.
pub(crate) struct Awaited<F>(pub(crate) F);

macro_rules! fixture {
    ($place:ident, $instance:ty, $new:expr) => {
        impl<F: Fixture<Host = TestClock>> Fixture for $place<F> {
            type Store = Through<$instance>;
            type Host = TestClock;

            fn client(&self) -> Self::Store {
                let store: AnyStore = Arc::new(self.0.client());
                let told = Told::new(self.0.host());
                let instance = $new(Arc::clone(&store), told.clone());
                Through::new(store, told, instance.expect("an instance"))
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
    Instance<AnyStore, Told>,
    |store, told| runner().instance(store, told)
);
fixture!(
    Awaited,
    AsyncInstance<Yielding, Told>,
    |store, told| block_on(async_runner().instance(Yielding(Inline(store)), told))
);

/// One instance of the component, as a store.
pub(crate) struct Through<I> {
    store: AnyStore,
    told: Told,
    state: Mutex<State<I>>,
}

struct State<I> {
    instance: I,
    /// The locks that were acquired here, and are not released.
    locks: HashMap<(Name, Owner), LockHandle>,
}

impl<I: Calls> Through<I> {
    fn new(store: AnyStore, told: Told, instance: I) -> Self {
        Self {
            store,
            told,
            state: Mutex::new(State {
                instance,
                locks: HashMap::new(),
            }),
        }
    }

    /// Does something with the lock that `claim` holds, or says that it holds, here or elsewhere.
    fn with(
        &self,
        claim: &Claim,
        step: impl FnOnce(&mut I, LockHandle) -> Result<bool, ComponentError>,
    ) -> Result<Reply, StoreError> {
        let state = &mut *self.state.lock().unwrap();
        let known = state.locks.get(&(claim.name.clone(), claim.owner)).copied();
        // One whose time has passed may have been extended elsewhere, of which it knows nothing.
        let known = known.filter(|lock| !state.instance.is_expired(*lock).expect("an instance"));
        let lock = if let Some(lock) = known {
            lock
        } else {
            let text = self.written_down(claim);
            state.instance.restore_lock(&text).map_err(failed)?
        };
        let end = step(&mut state.instance, lock);
        if known.is_none() {
            state.instance.forget(lock).map_err(failed)?;
        }
        reply(end)
    }

    /// What `serialize` would have said of `claim`, had it been granted now.
    fn written_down(&self, claim: &Claim) -> String {
        let now = self.told.now();
        let lease = Lease::granted(claim.clone(), None, now);
        SerializedLock::new(&lease, claim.ttl, now, Host::wall_clock(&self.told)).to_string()
    }

    /// Does something with the lock called `name`, whoever holds it.
    fn about<T>(
        &self,
        name: &Name,
        step: impl FnOnce(&mut I, LockHandle) -> Result<T, ComponentError>,
    ) -> Result<T, ComponentError> {
        let instance = &mut self.state.lock().unwrap().instance;
        let lock = instance.create_lock(name.as_str(), None)?;
        let end = step(instance, lock);
        instance.forget(lock)?;
        end
    }
}

fn reply(end: Result<bool, ComponentError>) -> Result<Reply, StoreError> {
    match end {
        Ok(true) => Ok(Reply::Granted { fence: None }),
        Ok(false) => Ok(Reply::REFUSED),
        Err(err) if err.code() == "E_LOCK_NOT_OWNER" => Ok(Reply::REFUSED),
        Err(err) => Err(failed(err)),
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
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let state = &mut *self.state.lock().unwrap();
        let instance = &mut state.instance;
        let ttl = claim.ttl.duration();
        let lock = instance.create_lock(claim.name.as_str(), ttl);
        let lock = lock.map_err(failed)?;
        self.told.tell(claim.owner);
        let acquired = instance.try_acquire(lock).map_err(failed)?;
        if !acquired {
            instance.forget(lock).map_err(failed)?;
            return Ok(Reply::REFUSED);
        }
        if !claim.ephemeral && self.store.abilities().transfers {
            // Whoever writes a lease down lets it outlive this instance.
            instance.serialize(lock).map_err(failed)?;
        }
        let fence = instance.fence(lock).map_err(failed)?;
        let before = state.locks.insert((claim.name.clone(), claim.owner), lock);
        if let Some(before) = before {
            state.instance.forget(before).map_err(failed)?;
        }
        Ok(Reply::Granted { fence })
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let ttl: Ttl = claim.ttl;
        self.with(claim, |instance, lock| {
            instance.extend(lock, Some(ttl)).map(|()| true)
        })
    }

    fn renew(&self, claim: &Claim, _: Option<Fence>) -> Result<Renewed, StoreError> {
        Ok(self.extend(claim)?.into())
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let released = self.with(claim, |instance, lock| {
            instance.release(lock).map(|()| true)
        })?;
        let state = &mut *self.state.lock().unwrap();
        let known = state.locks.remove(&(claim.name.clone(), claim.owner));
        if let Some(lock) = known {
            state.instance.forget(lock).map_err(failed)?;
        }
        Ok(released)
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        reply(self.about(name, |instance, lock| instance.force_release(lock, only)))
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        self.about(name, I::holder).map_err(failed)
    }

    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        if !self.store.abilities().transfers {
            return Ok(Reply::REFUSED);
        }
        self.with(claim, |instance, lock| {
            // A lock that was restored was detached when it was written down, here without a fencing token.
            if instance.fence(lock)?.is_none() || !instance.is_held(lock)? {
                return Ok(false);
            }
            instance.serialize(lock).map(|_| true)
        })
    }

    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.store.wait(claim, at_most)
    }

    fn give_up(&self, claim: &Claim) {
        self.store.give_up(claim);
    }

    /// A component renews its leases by `extend`, so none is taken back.
    fn abilities(&self) -> Abilities {
        Abilities {
            revives: false,
            ..self.store.abilities()
        }
    }
}
