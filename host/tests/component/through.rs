//! A store as it is seen through the component: its locks, turned back into a store, so that the
//! suite for stores runs through it.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use verrou::blocking::Host;
use verrou::conformance::{Fixture, TestClock};
use verrou::{
    Abilities, Claim, Clock, Fence, Holder, Lease, Name, Owner, Reply, SerializedLock, Store,
    StoreError, Timestamp, Ttl, Waited,
};
use verrou_host::component::{ComponentError, Instance, Limits, LockHandle, Runner};

use crate::places::AnyStore;

/// The component that `cargo xtask component` builds.
pub(crate) fn component() -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/component/verrou.wasm");
    std::fs::read(&path).unwrap_or_else(|err| {
        let path = path.display();
        panic!("{path}: {err}: build it with `cargo xtask component`")
    })
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

/// A place whose clients are instances of the component.
pub(crate) struct Component<F>(pub(crate) F);

impl<F> Fixture for Component<F>
where
    F: Fixture<Host = TestClock>,
{
    type Store = Through;
    type Host = TestClock;

    fn client(&self) -> Through {
        Through::new(Arc::new(self.0.client()), self.0.host())
    }

    fn host(&self) -> TestClock {
        self.0.host()
    }

    fn pass(&self, time: Duration) {
        self.0.pass(time);
    }
}

/// One instance of the component, as a store.
pub(crate) struct Through {
    store: AnyStore,
    told: Told,
    state: Mutex<State>,
}

struct State {
    instance: Instance<AnyStore, Told>,
    /// The locks that were acquired here, and are not released.
    locks: HashMap<(Name, Owner), LockHandle>,
}

impl Through {
    pub(crate) fn new(store: AnyStore, clock: TestClock) -> Self {
        let told = Told::new(clock);
        let instance = runner().instance(Arc::clone(&store), told.clone());
        Self {
            store,
            told,
            state: Mutex::new(State {
                instance: instance.expect("an instance"),
                locks: HashMap::new(),
            }),
        }
    }

    /// Does something with the lock that `claim` holds, or says that it holds, here or elsewhere.
    fn with(
        &self,
        claim: &Claim,
        step: impl FnOnce(&mut Instance<AnyStore, Told>, LockHandle) -> Result<bool, ComponentError>,
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
        SerializedLock::new(&lease, claim.ttl, now, self.told.wall_clock()).to_string()
    }

    /// Does something with the lock called `name`, whoever holds it.
    fn about<T>(
        &self,
        name: &Name,
        step: impl FnOnce(&mut Instance<AnyStore, Told>, LockHandle) -> Result<T, ComponentError>,
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

impl Store for Through {
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
        let holder = self.about(name, Instance::holder).map_err(failed)?;
        Ok(holder.map(|holder| Holder {
            owner: holder.owner.map(|owner| owner.parse().expect("an owner")),
            fence: holder.fencing_token.and_then(Fence::new),
            since: None,
            remaining: holder.remaining.map(Duration::from_nanos),
            process: None,
        }))
    }

    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        if !self.store.abilities().transfers {
            return Ok(Reply::REFUSED);
        }
        self.with(claim, |instance, lock| {
            // A lock that was restored was detached when it was written down.
            if !instance.is_held(lock)? {
                return Ok(false);
            }
            instance.serialize(lock).map(|_| true)
        })
    }

    fn wait(&self, name: &Name, at_most: Duration) -> Waited {
        self.store.wait(name, at_most)
    }

    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
}
