//! Locks for guests: an implementation of the interface `verrou:lock/locks` by this program.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use verrou::blocking::Host;
use verrou::{
    Clock, Error, Fence, InvalidRetry, Loss, Retry, SerializedLock, Store, Timestamp, Ttl, polled,
};
use wasmtime::Result;
use wasmtime::component::{HasSelf, Linker, Resource, ResourceTable, ResourceTableError};

use crate::bindings::guest::verrou::lock::locks as wit;
use crate::convert::{duration, nanos};

/// Adds the interface `verrou:lock/locks` to `linker`, as wasmtime's own `add_to_linker` functions do:
/// `locks` returns a guest's [`Locks`] from its state.
///
/// A guest can do with the store's locks all that a program with the store can do: it can also
/// force-release locks of other holders. Provide a separate store to guests that must not.
///
/// Calls of a guest run on the guest's thread, and a slow store blocks that thread, also in async hosts.
///
/// ```
/// use std::sync::Arc;
/// use verrou::MemoryStore;
/// use verrou_host::System;
/// use verrou_wasmtime::locks::{Locks, add_to_linker};
/// use wasmtime::{Engine, component::Linker};
///
/// struct Guest {
///     locks: Locks,
/// }
///
/// let engine = Engine::default();
/// let mut linker = Linker::<Guest>::new(&engine);
/// add_to_linker(&mut linker, |guest| &mut guest.locks)?;
/// let guest = Guest {
///     locks: Locks::new(Arc::new(MemoryStore::new(System)), System),
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
    locks: fn(&mut T) -> &mut Locks,
) -> Result<()> {
    wit::add_to_linker::<T, HasSelf<Locks>>(linker, locks)
}

type SharedStore = Arc<dyn Store>;

/// The locks of one guest, all in one store.
pub struct Locks {
    store: SharedStore,
    host: SharedHost,
    handles: ResourceTable,
}

/// A lock to which a guest has a handle.
pub struct Lock(polled::Lock<SharedStore, SharedHost>);

/// An attempt to acquire a lock, to which a guest has a handle.
pub struct Attempt(polled::Attempt<SharedStore, SharedHost>);

/// The renewal of a lease, to which a guest has a handle.
pub struct Renewal(polled::Renewal<SharedStore, SharedHost>);

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
    /// The maximum number of handles of a guest, as in the lock component.
    const HANDLES: usize = 1 << 15;

    /// Creates locks in `store`, with the clock and randomness of `host`. The guest waits by itself.
    pub fn new(store: Arc<dyn Store>, host: impl Host + Send + Sync + 'static) -> Self {
        let mut handles = ResourceTable::new();
        handles.set_max_capacity(Self::HANDLES);
        Self {
            store,
            host: SharedHost(Arc::new(host)),
            handles,
        }
    }

    fn keep<T: Send + 'static>(&mut self, value: T) -> Result<Result<Resource<T>, wit::LockError>> {
        match self.handles.push(value) {
            Ok(handle) => Ok(Ok(handle)),
            Err(ResourceTableError::Full) => Ok(Err(wit::LockError {
                code: wit::ErrorCode::TooManyHandles,
                message: format!(
                    "{} locks, attempts and renewals are alive: drop some",
                    Self::HANDLES
                ),
                temporary: true,
            })),
            Err(err) => Err(err.into()),
        }
    }

    fn lock(&self, lock: &Resource<Lock>) -> Result<&polled::Lock<SharedStore, SharedHost>> {
        Ok(&self.handles.get(lock)?.0)
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

impl wit::Host for Locks {}

impl wit::HostLock for Locks {
    fn new(
        &mut self,
        name: String,
        ttl: Option<u64>,
    ) -> Result<Result<Resource<Lock>, wit::LockError>> {
        let (store, host) = (Arc::clone(&self.store), self.host.clone());
        match polled::Lock::new(store, host, &name, duration(ttl)) {
            Ok(lock) => self.keep(Lock(lock)),
            Err(err) => Ok(Err(err.into())),
        }
    }

    fn restore(
        &mut self,
        serialized: String,
        now: u64,
    ) -> Result<Result<Resource<Lock>, wit::LockError>> {
        let serialized = match serialized.parse::<SerializedLock>() {
            Ok(serialized) => serialized,
            Err(err) => return Ok(Err(Error::from(err).into())),
        };
        let (store, host) = (Arc::clone(&self.store), self.host.clone());
        let wall = Duration::from_nanos(now);
        self.keep(Lock(polled::Lock::restored(store, host, &serialized, wall)))
    }

    fn acquire(
        &mut self,
        lock: Resource<Lock>,
        retry: wit::Retry,
    ) -> Result<Result<Resource<Attempt>, wit::LockError>> {
        let policy = match policy(&retry) {
            Ok(policy) => policy,
            Err(err) => return Ok(Err(Error::from(err).into())),
        };
        let random = self.host.0.random();
        let attempt = self.lock(&lock)?.acquire(&policy, random);
        self.keep(Attempt(attempt))
    }

    fn try_acquire(&mut self, lock: Resource<Lock>) -> Result<Result<bool, wit::LockError>> {
        let random = self.host.0.random();
        Ok(match self.lock(&lock)?.try_acquire(random) {
            Ok(_) => Ok(true),
            Err(Error::Timeout { .. }) => Ok(false),
            Err(err) => Err(err.into()),
        })
    }

    fn release(&mut self, lock: Resource<Lock>) -> Result<Result<(), wit::LockError>> {
        Ok(converted(self.lock(&lock)?.release()))
    }

    fn force_release(
        &mut self,
        lock: Resource<Lock>,
        only: Option<u64>,
    ) -> Result<Result<bool, wit::LockError>> {
        let only = match only.map(Fence::new) {
            // No grant has the token zero.
            Some(None) => return Ok(Ok(false)),
            only => only.flatten(),
        };
        Ok(converted(self.lock(&lock)?.force_release(only)))
    }

    fn extend(&mut self, lock: Resource<Lock>) -> Result<Result<(), wit::LockError>> {
        let lock = self.lock(&lock)?;
        Ok(converted(lock.extend(lock.ttl())))
    }

    fn extend_for(
        &mut self,
        lock: Resource<Lock>,
        ttl: Option<u64>,
    ) -> Result<Result<(), wit::LockError>> {
        let lock = self.lock(&lock)?;
        let ttl = Ttl::try_from(duration(ttl)).map_err(Error::from);
        Ok(converted(ttl.and_then(|ttl| lock.extend(ttl))))
    }

    fn keep(&mut self, lock: Resource<Lock>) -> Result<Result<Resource<Renewal>, wit::LockError>> {
        match self.lock(&lock)?.keep() {
            Ok(renewal) => self.keep(Renewal(renewal)),
            Err(err) => Ok(Err(err.into())),
        }
    }

    fn is_expired(&mut self, lock: Resource<Lock>) -> Result<bool> {
        Ok(self.lock(&lock)?.is_expired())
    }

    fn remaining(&mut self, lock: Resource<Lock>) -> Result<Option<u64>> {
        Ok(self.lock(&lock)?.remaining().map(nanos))
    }

    fn is_locked(&mut self, lock: Resource<Lock>) -> Result<Result<bool, wit::LockError>> {
        Ok(converted(self.lock(&lock)?.is_locked()))
    }

    fn is_held(&mut self, lock: Resource<Lock>) -> Result<Result<bool, wit::LockError>> {
        Ok(converted(self.lock(&lock)?.is_held()))
    }

    fn holder(
        &mut self,
        lock: Resource<Lock>,
    ) -> Result<Result<Option<wit::Holder>, wit::LockError>> {
        let holders = self.lock(&lock)?.holders();
        Ok(converted(holders.map(|mut holders| {
            holders.pop().map(|holder| wit::Holder {
                fencing_token: holder.fence.map(Fence::get),
                remaining: holder.remaining.map(nanos),
            })
        })))
    }

    fn serialize(
        &mut self,
        lock: Resource<Lock>,
        now: u64,
    ) -> Result<Result<String, wit::LockError>> {
        let text = self.lock(&lock)?.serialize(Duration::from_nanos(now));
        Ok(converted(text.map(|text| text.to_string())))
    }

    fn fencing_token(&mut self, lock: Resource<Lock>) -> Result<Option<u64>> {
        let lease = self.lock(&lock)?.lease();
        Ok(lease.and_then(|lease| lease.fence()).map(Fence::get))
    }

    fn name(&mut self, lock: Resource<Lock>) -> Result<String> {
        Ok(self.lock(&lock)?.name().to_string())
    }

    fn ttl(&mut self, lock: Resource<Lock>) -> Result<Option<u64>> {
        Ok(self.lock(&lock)?.ttl().duration().map(nanos))
    }

    fn drop(&mut self, lock: Resource<Lock>) -> Result<()> {
        self.handles.delete(lock)?;
        Ok(())
    }
}

impl wit::HostAttempt for Locks {
    fn poll(
        &mut self,
        attempt: Resource<Attempt>,
    ) -> Result<Result<wit::Progress, wit::LockError>> {
        use polled::Progress;

        Ok(Ok(match self.handles.get_mut(&attempt)?.0.poll() {
            Ok(Progress::Acquired(lease)) => wit::Progress::Acquired(lease.fence().map(Fence::get)),
            Ok(Progress::Wait(wait)) => wit::Progress::Wait(nanos(wait)),
            Ok(Progress::Pause(pause)) => wit::Progress::Pause(nanos(pause)),
            Err(Error::Timeout { attempts, .. }) => wit::Progress::GaveUp(attempts),
            Err(err) => return Ok(Err(err.into())),
        }))
    }

    fn drop(&mut self, attempt: Resource<Attempt>) -> Result<()> {
        self.handles.delete(attempt)?;
        Ok(())
    }
}

impl wit::HostRenewal for Locks {
    fn poll(&mut self, renewal: Resource<Renewal>) -> Result<wit::Keeping> {
        use polled::Keeping;

        Ok(match self.handles.get_mut(&renewal)?.0.poll() {
            Keeping::Held(wait) => wit::Keeping::Held(nanos(wait)),
            Keeping::Unknown { wait, why } => wit::Keeping::Unknown(wit::Doubt {
                wait: nanos(wait),
                why: why.to_string(),
            }),
            // The WIT interface has no value for this.
            Keeping::Released => wit::Keeping::Lost(wit::Loss::Revoked),
            Keeping::Lost(loss) => wit::Keeping::Lost(match loss {
                Loss::Revoked => wit::Loss::Revoked,
                _ => wit::Loss::Expired,
            }),
        })
    }

    fn drop(&mut self, renewal: Resource<Renewal>) -> Result<()> {
        self.handles.delete(renewal)?;
        Ok(())
    }
}

fn converted<T>(end: Result<T, Error>) -> Result<T, wit::LockError> {
    end.map_err(Into::into)
}

impl From<Error> for wit::LockError {
    fn from(err: Error) -> Self {
        use wit::ErrorCode;

        let (code, why): (_, &dyn fmt::Display) = match &err {
            Error::InvalidName(why) => (ErrorCode::InvalidName, why),
            Error::InvalidRetry(why) => (ErrorCode::InvalidRetry, why),
            Error::InvalidSerializedLock(why) => (ErrorCode::InvalidSerializedLock, why),
            Error::InvalidTtl(why) => (ErrorCode::InvalidTtl, why),
            Error::Lost { .. } => (ErrorCode::Lost, &err),
            Error::NotOwner { .. } => (ErrorCode::NotOwner, &err),
            Error::NotSerializable { .. } => (ErrorCode::NotSerializable, &err),
            Error::Storage(why) => (ErrorCode::Storage, why),
            _ => (ErrorCode::Storage, &err),
        };
        Self {
            code,
            message: why.to_string(),
            temporary: err.is_temporary(),
        }
    }
}

fn policy(retry: &wit::Retry) -> Result<Retry, InvalidRetry> {
    Retry::new(
        retry.attempts,
        duration(retry.delay),
        duration(retry.max_delay),
        duration(retry.timeout),
    )
}
