//! Locks for guests: an implementation of the interface `verrou:lock/locks` by this program.

use std::fmt;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use verrou::blocking::Host;
use verrou::{AsyncStore, Clock, Error, Fence, Store, Timestamp, Ttl, polled};
use wasmtime::Result;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};
use wasmtime_wasi_io::poll::{DynPollable, subscribe};

use crate::bindings::blocking::verrou::lock::types;
use crate::bindings::guest::verrou::lock::locks as wit;
use crate::convert::{self, duration, grant, nanos};
pub use crate::policy::GuestPolicy;
use crate::policy::{Counted, denied};
use crate::queue_place::{Place, Queues};

/// Adds the interface `verrou:lock/locks` to `linker`, as wasmtime's own `add_to_linker` functions do: `view` returns
/// a guest's [`Locks`] from its state, and the table of its other resources.
///
/// A guest waits in the queue of the store by `wasi:io/poll`, which `wasmtime-wasi` adds, or `wasmtime-wasi-io` alone:
/// its pollables are in the same table.
///
/// By default, a guest can do with the store's locks all that a program with the store can do: it can also
/// force-release locks of other holders. A [`GuestPolicy`] says what it may do.
///
/// Calls of a guest run on the guest's thread, and a slow store blocks that thread, also in async hosts.
///
/// ```
/// use std::sync::Arc;
/// use verrou::MemoryStore;
/// use verrou_host::System;
/// use verrou_wasmtime::locks::{Locks, LocksView, add_to_linker};
/// use wasmtime::{Engine, component::{Linker, ResourceTable}};
///
/// struct Guest {
///     locks: Locks,
///     table: ResourceTable,
/// }
///
/// let engine = Engine::default();
/// let mut linker = Linker::<Guest>::new(&engine);
/// add_to_linker(&mut linker, |guest| LocksView {
///     locks: &mut guest.locks,
///     table: &mut guest.table,
/// })?;
/// let guest = Guest {
///     locks: Locks::new(Arc::new(MemoryStore::new(System)), System),
///     table: ResourceTable::new(),
/// };
/// let store = wasmtime::Store::new(&engine, guest);
/// // … and `linker.instantiate(store, &component)`.
/// # drop(store);
/// # Ok::<(), wasmtime::Error>(())
/// ```
///
/// # Errors
///
/// Returns wasmtime's error when `linker` has the interface already.
pub fn add_to_linker<T: 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> LocksView<'_>,
) -> Result<()> {
    wit::add_to_linker::<T, HasLocks>(linker, view)
}

/// A guest's locks, and the table of its other resources, such as pollables.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "a host makes it of what it has")]
pub struct LocksView<'a> {
    /// The locks.
    pub locks: &'a mut Locks,
    /// The table in which `wasi:io` finds the guest's pollables.
    pub table: &'a mut ResourceTable,
}

struct HasLocks;

impl HasData for HasLocks {
    type Data<'a> = LocksView<'a>;
}

type SharedStore = Arc<dyn Store>;

/// The locks of one guest, all in one store.
///
/// Dropping it releases the guest's locks, unless they were detached, serialized or restored; so a guest that ends or
/// traps holds no lock.
pub struct Locks {
    store: SharedStore,
    /// The wait queues of the store, if it has them.
    queues: Option<Box<dyn Queues>>,
    host: SharedHost,
    handles: ResourceTable,
    policy: GuestPolicy,
    /// How many locks the guest holds.
    grants: Arc<AtomicUsize>,
    /// How many places in wait queues the guest has.
    waits: Arc<AtomicUsize>,
}

/// A lock to which a guest has a handle.
pub struct Lock(Arc<HeldLock>);

/// An attempt to acquire a lock, to which a guest has a handle.
pub struct Attempt {
    // Declared first, and dropped first: the place in the queue ends before the lock.
    place: Option<CountedPlace>,
    machine: polled::Attempt<SharedStore, SharedHost>,
    /// The result of the first poll, until the guest polls.
    first: Option<wit::Progress>,
    /// Whether the latest poll returned `wait`.
    waits: bool,
    /// The part of the guest's grants that this attempt will take.
    counted: Option<Counted>,
    held: Arc<HeldLock>,
}

/// The renewal of a lease, to which a guest has a handle.
pub struct Renewal {
    machine: polled::Renewal<SharedStore, SharedHost>,
    _held: Arc<HeldLock>,
}

/// A lock. Dropping it releases it, unless it was detached, serialized or restored.
struct HeldLock {
    lock: polled::Lock<SharedStore, SharedHost>,
    /// This lock's part of the guest's grants, while it is held.
    grant: Mutex<Option<Counted>>,
}

impl HeldLock {
    fn grant(&self) -> MutexGuard<'_, Option<Counted>> {
        self.grant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if self
            .lock
            .lease()
            .is_some_and(|lease| lease.claim().ephemeral)
        {
            // After an error the lease expires.
            let _ = self.lock.release();
        }
    }
}

/// A place in a wait queue. Dropping it leaves the queue, also if the guest keeps a pollable of it.
struct CountedPlace {
    place: Place,
    _counted: Counted,
}

impl Drop for CountedPlace {
    fn drop(&mut self) {
        self.place.leave();
    }
}

/// Implements `Debug` without fields: a store need not implement `Debug`.
macro_rules! opaque {
    ($($name:ident),+) => {
        $(impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($name)).finish_non_exhaustive()
            }
        })+
    };
}

opaque!(Lock, Attempt, Renewal, Locks, SharedHost);

impl Locks {
    /// Creates locks in `store`, with the clock and randomness of `host`. The guest waits in the store's queue.
    pub fn new<S>(store: Arc<S>, host: impl Host + Send + Sync + 'static) -> Self
    where
        S: Store + AsyncStore + 'static,
    {
        let queues = Box::new(Arc::clone(&store));
        Self::in_store(store, Some(queues), host)
    }

    /// Creates locks in `store`, which has no async form: the guest asks again after each pause of its policy.
    pub fn polling(store: Arc<dyn Store>, host: impl Host + Send + Sync + 'static) -> Self {
        Self::in_store(store, None, host)
    }

    fn in_store(
        store: SharedStore,
        queues: Option<Box<dyn Queues>>,
        host: impl Host + Send + Sync + 'static,
    ) -> Self {
        let locks = Self {
            store,
            queues,
            host: SharedHost(Arc::new(host)),
            handles: ResourceTable::new(),
            policy: GuestPolicy::default(),
            grants: Arc::default(),
            waits: Arc::default(),
        };
        locks.with_policy(GuestPolicy::default())
    }

    /// Returns the locks with what the guest may do with them.
    #[must_use]
    pub fn with_policy(mut self, policy: GuestPolicy) -> Self {
        self.handles.set_max_capacity(policy.handles);
        Self { policy, ..self }
    }

    fn keep<T: Send + 'static>(
        &mut self,
        value: T,
    ) -> Result<Result<Resource<T>, types::LockError>> {
        match self.handles.push(value) {
            Ok(handle) => Ok(Ok(handle)),
            Err(ResourceTableError::Full) => Ok(Err(self.policy.too_many_handles())),
            Err(err) => Err(err.into()),
        }
    }

    fn lock(&self, lock: &Resource<Lock>) -> Result<&polled::Lock<SharedStore, SharedHost>> {
        Ok(&self.handles.get(lock)?.0.lock)
    }

    /// Converts the end of an operation for the guest.
    fn converted<T>(&self, end: Result<T, Error>) -> Result<T, types::LockError> {
        end.map_err(|err| self.error(err))
    }

    fn error(&self, err: Error) -> types::LockError {
        self.policy.error(err)
    }

    /// Begins an acquire request: returns the part of the grants that it will take.
    fn begin(&self) -> Result<Counted, types::LockError> {
        self.policy.one_more_grant(&self.grants)
    }

    fn make(
        &mut self,
        lock: polled::Lock<SharedStore, SharedHost>,
    ) -> Result<Result<Resource<Lock>, types::LockError>> {
        self.keep(Lock(Arc::new(HeldLock {
            lock,
            grant: Mutex::default(),
        })))
    }
}

/// A host that all handles of a guest share.
#[derive(Clone)]
struct SharedHost(Arc<dyn Host + Send + Sync>);

impl Clock for SharedHost {
    fn now(&self) -> Timestamp {
        self.0.now()
    }
}

impl wit::Host for LocksView<'_> {}

impl wit::HostLock for LocksView<'_> {
    fn create(
        &mut self,
        name: String,
        ttl: Option<u64>,
    ) -> Result<Result<Resource<Lock>, types::LockError>> {
        let made = || {
            let name = self.locks.policy.full_name(&name)?;
            let ttl = Ttl::try_from(duration(ttl))?;
            if !self.locks.policy.permits(ttl) {
                return Ok(Err(denied("a lease of this length")));
            }
            let (store, host) = (Arc::clone(&self.locks.store), self.locks.host.clone());
            Ok(Ok(polled::Lock::new(store, host, name.as_str(), ttl)?))
        };
        match made() {
            Ok(Ok(lock)) => self.locks.make(lock),
            Ok(Err(denied)) => Ok(Err(denied)),
            Err(err) => Ok(Err(self.locks.error(err))),
        }
    }

    fn restore(
        &mut self,
        serialized: String,
        now: u64,
    ) -> Result<Result<Resource<Lock>, types::LockError>> {
        let serialized = match self.locks.policy.restorable(&serialized) {
            Ok(serialized) => serialized,
            Err(err) => return Ok(Err(err)),
        };
        let (store, host) = (Arc::clone(&self.locks.store), self.locks.host.clone());
        let wall = Duration::from_nanos(now);
        let lock = polled::Lock::restored(store, host, &serialized, wall);
        self.locks.make(lock)
    }

    fn acquire(
        &mut self,
        lock: Resource<Lock>,
        retry: types::Retry,
    ) -> Result<Result<wit::Acquiring, types::LockError>> {
        let policy = match convert::policy(&retry) {
            Ok(policy) => policy,
            Err(err) => return Ok(Err(Error::from(err).into())),
        };
        let counted = match self.locks.begin() {
            Ok(counted) => counted,
            Err(denied) => return Ok(Err(denied)),
        };
        let random = self.locks.host.0.random();
        let held = Arc::clone(&self.locks.handles.get(&lock)?.0);
        let mut machine = held.lock.acquire(&policy, random);
        let first = match progress(machine.poll()) {
            Ok(wit::Progress::Acquired(grant)) => {
                *held.grant() = Some(counted);
                return Ok(Ok(wit::Acquiring::Acquired(grant)));
            }
            Ok(first) => first,
            Err(err) => return Ok(Err(self.locks.error(err))),
        };
        let attempt = self.locks.keep(Attempt {
            place: None,
            machine,
            first: Some(first),
            waits: false,
            counted: Some(counted),
            held,
        })?;
        Ok(attempt.map(wit::Acquiring::Pending))
    }

    fn try_acquire(
        &mut self,
        lock: Resource<Lock>,
    ) -> Result<Result<Option<types::Grant>, types::LockError>> {
        let counted = match self.locks.begin() {
            Ok(counted) => counted,
            Err(denied) => return Ok(Err(denied)),
        };
        let random = self.locks.host.0.random();
        let held = &self.locks.handles.get(&lock)?.0;
        Ok(match held.lock.try_acquire(random) {
            Ok(lease) => {
                *held.grant() = Some(counted);
                Ok(Some(grant(&lease)))
            }
            Err(Error::Timeout { .. }) => Ok(None),
            Err(err) => Err(self.locks.error(err)),
        })
    }

    fn release(&mut self, lock: Resource<Lock>) -> Result<Result<(), types::LockError>> {
        let held = &self.locks.handles.get(&lock)?.0;
        let released = held.lock.release();
        if !matches!(released, Err(Error::Storage(_))) {
            held.grant().take();
        }
        Ok(self.locks.converted(released))
    }

    fn force_release(
        &mut self,
        lock: Resource<Lock>,
        only: Option<u64>,
    ) -> Result<Result<bool, types::LockError>> {
        let only = match only.map(Fence::new) {
            // No grant has the token zero.
            Some(None) => return Ok(Ok(false)),
            only => only.flatten(),
        };
        if !self.locks.policy.force_release {
            return Ok(Err(denied("to force-release a lock")));
        }
        let released = self.locks.lock(&lock)?.force_release(only);
        Ok(self.locks.converted(released))
    }

    fn extend(&mut self, lock: Resource<Lock>) -> Result<Result<(), types::LockError>> {
        let lock = self.locks.lock(&lock)?;
        Ok(self.locks.converted(lock.extend(lock.ttl())))
    }

    fn extend_for(
        &mut self,
        lock: Resource<Lock>,
        ttl: Option<u64>,
    ) -> Result<Result<(), types::LockError>> {
        let lock = self.locks.lock(&lock)?;
        let ttl = match Ttl::try_from(duration(ttl)) {
            Ok(ttl) if self.locks.policy.permits(ttl) => ttl,
            Ok(_) => return Ok(Err(denied("a lease of this length"))),
            Err(err) => return Ok(Err(Error::from(err).into())),
        };
        Ok(self.locks.converted(lock.extend(ttl)))
    }

    fn keep(
        &mut self,
        lock: Resource<Lock>,
    ) -> Result<Result<Resource<Renewal>, types::LockError>> {
        let held = Arc::clone(&self.locks.handles.get(&lock)?.0);
        match held.lock.keep() {
            Ok(machine) => self.locks.keep(Renewal {
                machine,
                _held: held,
            }),
            Err(err) => Ok(Err(self.locks.error(err))),
        }
    }

    fn is_expired(&mut self, lock: Resource<Lock>) -> Result<bool> {
        Ok(self.locks.lock(&lock)?.is_expired())
    }

    fn remaining(&mut self, lock: Resource<Lock>) -> Result<Option<u64>> {
        Ok(self.locks.lock(&lock)?.remaining().map(nanos))
    }

    fn is_locked(&mut self, lock: Resource<Lock>) -> Result<Result<bool, types::LockError>> {
        if let Err(denied) = self.locks.policy.check_inspect() {
            return Ok(Err(denied));
        }
        let answer = self.locks.lock(&lock)?.is_locked();
        Ok(self.locks.converted(answer))
    }

    fn is_held(&mut self, lock: Resource<Lock>) -> Result<Result<bool, types::LockError>> {
        if let Err(denied) = self.locks.policy.check_inspect() {
            return Ok(Err(denied));
        }
        let answer = self.locks.lock(&lock)?.is_held();
        Ok(self.locks.converted(answer))
    }

    fn holders(
        &mut self,
        lock: Resource<Lock>,
    ) -> Result<Result<Vec<types::Holder>, types::LockError>> {
        if let Err(denied) = self.locks.policy.check_inspect() {
            return Ok(Err(denied));
        }
        let holders = self.locks.lock(&lock)?.holders();
        let holders = holders.map(|holders| holders.into_iter().map(convert::holder).collect());
        Ok(self.locks.converted(holders))
    }

    fn detach(&mut self, lock: Resource<Lock>) -> Result<Result<(), types::LockError>> {
        if !self.locks.policy.transfer {
            return Ok(Err(denied("to detach a lock")));
        }
        let detached = self.locks.lock(&lock)?.detach();
        Ok(self.locks.converted(detached))
    }

    fn serialize(
        &mut self,
        lock: Resource<Lock>,
        now: u64,
    ) -> Result<Result<String, types::LockError>> {
        if !self.locks.policy.transfer {
            return Ok(Err(denied("to serialize a lock")));
        }
        let text = self.locks.lock(&lock)?.serialize(Duration::from_nanos(now));
        Ok(self.locks.converted(text.map(|text| text.to_string())))
    }

    fn fencing_token(&mut self, lock: Resource<Lock>) -> Result<Option<u64>> {
        let lease = self.locks.lock(&lock)?.lease();
        Ok(lease.and_then(|lease| lease.fence()).map(Fence::get))
    }

    fn name(&mut self, lock: Resource<Lock>) -> Result<String> {
        let lock = self.locks.lock(&lock)?;
        Ok(self.locks.policy.own_name(lock.name()))
    }

    fn ttl(&mut self, lock: Resource<Lock>) -> Result<Option<u64>> {
        Ok(self.locks.lock(&lock)?.ttl().duration().map(nanos))
    }

    fn drop(&mut self, lock: Resource<Lock>) -> Result<()> {
        self.locks.handles.delete(lock)?;
        Ok(())
    }
}

impl wit::HostAttempt for LocksView<'_> {
    fn poll(
        &mut self,
        attempt: Resource<Attempt>,
    ) -> Result<Result<wit::Progress, types::LockError>> {
        let attempt = self.locks.handles.get_mut(&attempt)?;
        let progress = match attempt.first.take() {
            Some(first) => Ok(first),
            None => progress(attempt.machine.poll()),
        };
        attempt.waits = matches!(progress, Ok(wit::Progress::Wait(_)));
        match &progress {
            Ok(wit::Progress::Acquired(_)) => {
                attempt.place = None;
                if let Some(counted) = attempt.counted.take() {
                    *attempt.held.grant() = Some(counted);
                }
            }
            Ok(wit::Progress::GaveUp(_)) | Err(_) => {
                attempt.place = None;
                attempt.counted = None;
            }
            Ok(wit::Progress::Wait(_) | wit::Progress::Pause(_)) => {}
        }
        Ok(progress.map_err(|err| self.locks.error(err)))
    }

    fn subscribe(&mut self, attempt: Resource<Attempt>) -> Result<Option<Resource<DynPollable>>> {
        let Some(queues) = &self.locks.queues else {
            return Ok(None);
        };
        let attempt = self.locks.handles.get_mut(&attempt)?;
        if !attempt.waits {
            return Ok(None);
        }
        if attempt.place.is_none() {
            // A guest with too many places asks again after each pause.
            let counted = Counted::new(&self.locks.waits, self.locks.policy.waits);
            let place = counted.and_then(|counted| {
                Some(CountedPlace {
                    place: queues.join(attempt.machine.claim())?,
                    _counted: counted,
                })
            });
            attempt.place = place;
        }
        let Some(CountedPlace { place, .. }) = &attempt.place else {
            return Ok(None);
        };
        let wait = self.table.push(place.wait_again())?;
        subscribe(self.table, wait).map(Some)
    }

    fn drop(&mut self, attempt: Resource<Attempt>) -> Result<()> {
        self.locks.handles.delete(attempt)?;
        Ok(())
    }
}

impl wit::HostRenewal for LocksView<'_> {
    fn poll(&mut self, renewal: Resource<Renewal>) -> Result<wit::Keeping> {
        use polled::Keeping;

        Ok(match self.locks.handles.get_mut(&renewal)?.machine.poll() {
            Keeping::Held(wait) => wit::Keeping::Held(nanos(wait)),
            Keeping::Unknown { wait, why } => wit::Keeping::Unknown(wit::Doubt {
                wait: nanos(wait),
                why: why.to_string(),
            }),
            Keeping::Released => wit::Keeping::Released,
            Keeping::Lost(loss) => wit::Keeping::Lost(convert::loss(loss)),
        })
    }

    fn drop(&mut self, renewal: Resource<Renewal>) -> Result<()> {
        self.locks.handles.delete(renewal)?;
        Ok(())
    }
}

fn progress(polled: Result<polled::Progress, Error>) -> Result<wit::Progress, Error> {
    use polled::Progress;

    Ok(match polled {
        Ok(Progress::Acquired(lease)) => wit::Progress::Acquired(grant(&lease)),
        Ok(Progress::Wait(wait)) => wit::Progress::Wait(nanos(wait)),
        Ok(Progress::Pause(pause)) => wit::Progress::Pause(nanos(pause)),
        Err(Error::Timeout { attempts, .. }) => wit::Progress::GaveUp(attempts),
        Err(err) => return Err(err),
    })
}
