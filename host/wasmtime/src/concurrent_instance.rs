//! The lock component of WASI 0.3 with an async store: any number of calls of one instance wait at a time.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures::channel::{mpsc, oneshot};
use futures::future::{Either, FutureExt, Shared, select};
use futures::stream::StreamExt;
use verrou::nonblocking::AsyncHost;
use verrou::{AsyncStore, Fence, Holder, Loss, Retry, Ttl};
use wasmtime::component::{
    Accessor, AccessorTask, Component, HasData, Linker, ResourceAny, ResourceTable,
};
use wasmtime::{Engine, Result};

use crate::bindings::concurrent::exports::verrou::async_lock::locks::{
    self as wit, Acquisition, Kept,
};
use crate::bindings::concurrent::{LockManager, LockManagerPre};
use crate::concurrent_imports::{ConcurrentState, Entered, add_store_to_linker};
use crate::convert;
use crate::engine::{Limits, tick};
use crate::error::ComponentError;
use crate::instance::{LockHandle, next_number};
use crate::tracked_store::Tracked;

/// A boxed future.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The counterpart of [`AsyncRunner`](crate::AsyncRunner) for the component of WASI 0.3.
///
/// The futures of a [`ConcurrentInstance`] run the component and perform the store's operations themselves. They spawn
/// nothing, and need no particular executor.
///
/// ```no_run
/// use std::time::Duration;
/// use verrou::nonblocking::AsyncHost;
/// use verrou::{AsyncStore, Retry};
/// use verrou_wasmtime::{ConcurrentRunner, Limits};
///
/// async fn example(
///     store: impl AsyncStore + 'static,
///     host: impl AsyncHost + 'static,
/// ) -> Result<(), Box<dyn std::error::Error>> {
///     let runner = ConcurrentRunner::bundled(&Limits::default())?;
///     let instance = runner.instance(store, host).await?;
///     let lock = instance.create_lock("my-resource", Some(Duration::from_secs(2))).await?;
///     let fence = instance.acquire(lock, &Retry::default()).await?;
///     println!("pass {fence:?} to the resource");
///     instance.release(lock).await?;
///     Ok(())
/// }
/// ```
pub struct ConcurrentRunner<S: AsyncStore + 'static, H: 'static> {
    engine: Engine,
    component: LockManagerPre<ConcurrentState<S, H>>,
    limits: Limits,
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> ConcurrentRunner<S, H> {
    /// Loads the lock component that comes with this crate.
    ///
    /// # Errors
    ///
    /// Returns an error when the engine for `limits` cannot be created; see [`Limits::engine`].
    pub fn bundled(limits: &Limits) -> Result<Self> {
        Self::new(verrou_component::ASYNC, limits)
    }

    /// Loads the component in the file at `path`: the `verrou-async.wasm` of `cargo xtask component`.
    ///
    /// # Errors
    ///
    /// Returns an error when the file cannot be read, is not a component, or has other imports than the world
    /// `lock-manager` of `verrou:async-lock`.
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
        let component = Component::new(&limits.concurrent_engine()?, component)?;
        Self::from_component(&component, limits)
    }

    /// Makes a runner of a component that was compiled, or loaded precompiled, for an engine of the embedder:
    /// [`Limits::concurrent_engine`] creates a suitable one. An engine without epoch interruption does not limit the
    /// time of a call, and the pool is that of the engine.
    ///
    /// # Errors
    ///
    /// Returns an error when the component has other imports than the world `lock-manager` of `verrou:async-lock`, the
    /// engine has no concurrency support, or there can be no more threads.
    pub fn from_component(component: &Component, limits: &Limits) -> Result<Self> {
        let engine = component.engine().clone();
        tick(&engine)?;
        let mut linker = Linker::new(&engine);
        add_store_to_linker(&mut linker, |state| state)?;
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
    pub async fn instance(&self, store: S, host: H) -> Result<ConcurrentInstance<S, H>> {
        let (store, host) = (Arc::new(Tracked::new(store)), Arc::new(host));
        let entered = Entered::now();
        let state = ConcurrentState {
            releases: false,
            store: Arc::clone(&store),
            host: Arc::clone(&host),
            table: ResourceTable::new(),
            budget: self.limits.budget(),
            entered: entered.clone(),
        };
        let mut wasm = wasmtime::Store::new(&self.engine, state);
        wasm.limiter(|state| &mut state.budget);
        self.limits
            .limit_time(&mut wasm, |state| state.entered.get());
        let component = self.component.instantiate_async(&mut wasm).await?;
        let (requests, received) = mpsc::unbounded();
        let mut driving: Boxed<'static, _> = Box::pin(drive(wasm, Arc::new(component), received));
        let driver = poll_fn(move |context| {
            entered.set();
            driving.as_mut().poll(context)
        });
        let driver: Boxed<'static, _> = Box::pin(driver.map(|end| end.err().map(Arc::new)));
        Ok(ConcurrentInstance {
            driver: Some(driver.shared()),
            requests,
            store,
            host,
            number: next_number(),
            locks: Mutex::default(),
        })
    }
}

impl<S: AsyncStore, H> fmt::Debug for ConcurrentRunner<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrentRunner")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// A request to the driver of an instance.
enum Request<S: AsyncStore + 'static, H: 'static> {
    /// Start a call of the component.
    Call(Call<S, H>),
    /// Drop a lock of which no call is in progress.
    Drop(ResourceAny, oneshot::Sender<Result<()>>),
}

/// The start of a call of the component, which becomes a task of the instance.
type Call<S, H> = Box<
    dyn for<'a> FnOnce(&'a Accessor<ConcurrentState<S, H>>, Arc<LockManager>) -> Boxed<'a, ()>
        + Send,
>;

/// A call of the component in progress: a task of the instance, which continues when its caller's future is dropped.
struct CallTask<S: AsyncStore + 'static, H: 'static>(Call<S, H>, Arc<LockManager>);

impl<S, H> AccessorTask<ConcurrentState<S, H>> for CallTask<S, H>
where
    S: AsyncStore + 'static,
    H: AsyncHost + 'static,
{
    async fn run(self, accessor: &Accessor<ConcurrentState<S, H>>) -> Result<()> {
        (self.0)(accessor, self.1).await;
        Ok(())
    }
}

/// Runs the instance until it stops.
async fn drive<S: AsyncStore + 'static, H: AsyncHost + 'static>(
    mut wasm: wasmtime::Store<ConcurrentState<S, H>>,
    component: Arc<LockManager>,
    mut requests: mpsc::UnboundedReceiver<Request<S, H>>,
) -> Result<()> {
    loop {
        let dropped = wasm.run_concurrent(async |accessor| {
            while let Some(request) = requests.next().await {
                match request {
                    Request::Call(call) => {
                        accessor.spawn(CallTask(call, Arc::clone(&component)))?;
                    }
                    Request::Drop(lock, reply) => return Ok(Some((lock, reply))),
                }
            }
            Ok::<_, wasmtime::Error>(None)
        });
        // A destructor runs with the whole instance; the tasks continue afterwards.
        let Some((lock, reply)) = dropped.await?? else {
            return Ok(());
        };
        let end = lock.resource_drop_async(&mut wasm).await;
        // The receiver is gone if the caller's future was dropped.
        let _ = reply.send(end);
    }
}

/// The number of calls of a lock that are in progress, and the waker of the task that waits for their end.
#[derive(Debug, Default)]
struct Calls(Mutex<(usize, Option<Waker>)>);

impl Calls {
    fn begin(self: &Arc<Self>) -> InProgress {
        self.state().0 += 1;
        InProgress(Arc::clone(self))
    }

    /// Waits until no call is in progress.
    async fn ended(&self) {
        poll_fn(|context| {
            let (count, waker) = &mut *self.state();
            if *count == 0 {
                return Poll::Ready(());
            }
            *waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn state(&self) -> MutexGuard<'_, (usize, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call of a lock, until it ends.
struct InProgress(Arc<Calls>);

impl Drop for InProgress {
    fn drop(&mut self) {
        let (count, waker) = &mut *self.0.state();
        *count -= 1;
        if *count == 0
            && let Some(waker) = waker.take()
        {
            waker.wake();
        }
    }
}

/// An instance of the lock component of WASI 0.3: the locks of one store.
///
/// Its methods take `&self`: any number of calls can wait at a time, in one task or in several. Each future runs the
/// whole instance while it is polled.
///
/// **Cancel safety.** Any future of this value can be dropped. A dropped [`acquire`](Self::acquire) leaves the wait queue
/// at once, and releases the lock if it was granted meanwhile; so does a dropped [`try_acquire`](Self::try_acquire). A
/// dropped [`keep`](Self::keep) ends the renewal. The component's task does not end with the future of wasmtime's call, so
/// these futures end it by the component's function `stop`. The other calls continue, whenever a future of this value is
/// polled.
///
/// Dropping this value leaves the wait queue and releases its locks, unless they were detached, serialized or restored, also
/// after the component has stopped: it starts each release, but cannot await it.
///
/// The component's code runs on the polling thread, at most for [`Limits::time`] in one poll. The lock component runs for
/// microseconds.
pub struct ConcurrentInstance<S: AsyncStore + 'static, H: 'static> {
    /// Runs the instance; ends with the error that stopped it. `None` when this value is being dropped.
    driver: Option<Shared<Boxed<'static, Option<Arc<wasmtime::Error>>>>>,
    requests: mpsc::UnboundedSender<Request<S, H>>,
    store: Arc<Tracked<S>>,
    host: Arc<H>,
    /// Distinguishes the handles of this instance from those of others.
    number: u64,
    /// The locks that were not dropped, by the numbers of their handles.
    locks: Mutex<HashMap<u64, Arc<Calls>>>,
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> ConcurrentInstance<S, H> {
    /// Returns the store of the component.
    pub fn store(&self) -> &S {
        &self.store.store
    }

    /// Creates a lock with the name `name`, whose leases last for `ttl`. Sends no request to the store.
    ///
    /// # Errors
    ///
    /// Returns `E_INVALID_NAME`, `E_INVALID_TTL` or `E_TOO_MANY_HANDLES`.
    pub async fn create_lock(
        &self,
        name: &str,
        ttl: Option<Duration>,
    ) -> Result<LockHandle, ComponentError> {
        // Checked before the text is copied into the component's memory.
        let name = convert::checked_name(name)?;
        let ttl = ttl.map(convert::nanos);
        let made = self.call(None, move |locks, accessor| {
            Box::pin(async move { locks.lock().call_create(accessor, name, ttl).await })
        });
        Ok(self.handle(made.await??))
    }

    /// Restores the lock that [`serialize`](Self::serialize) returned, here or on any other host. Sends
    /// no request to the store.
    ///
    /// # Errors
    ///
    /// Returns `E_INVALID_SERIALIZED_LOCK` or `E_TOO_MANY_HANDLES`.
    pub async fn restore_lock(&self, serialized: &str) -> Result<LockHandle, ComponentError> {
        let now = convert::nanos(self.host.wall_clock());
        let serialized = convert::checked_text(serialized)?;
        let made = self.call(None, move |locks, accessor| {
            Box::pin(async move { locks.lock().call_restore(accessor, serialized, now).await })
        });
        Ok(self.handle(made.await??))
    }

    /// Acquires the lock by the policy `retry`; returns its fencing token if the store issues them.
    ///
    /// Waits by the store's notifications, so that it wakes as soon as a waiter without a component.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Timeout`] when the policy ended first, and `E_LOCK_STORAGE_ERROR` when
    /// the store failed.
    pub async fn acquire(
        &self,
        lock: LockHandle,
        retry: &Retry,
    ) -> Result<Option<Fence>, ComponentError> {
        loop {
            let (own, retry) = (lock.lock, convert::retry(retry));
            let acquiring = self.waiting_call(lock, move |locks, accessor| {
                Box::pin(async move { locks.lock().call_acquire(accessor, own, retry).await })
            });
            match acquiring.await?? {
                Acquisition::Acquired(grant) => {
                    return Ok(grant.fencing_token.and_then(Fence::new));
                }
                Acquisition::GaveUp(attempts) => return Err(ComponentError::Timeout { attempts }),
                // For another call of this lock, whose future was dropped.
                Acquisition::Stopped => {}
            }
        }
    }

    /// Acquires the lock if it is free now; returns whether it was.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub async fn try_acquire(&self, lock: LockHandle) -> Result<bool, ComponentError> {
        let own = lock.lock;
        let answer = self.waiting_call(lock, move |locks, accessor| {
            Box::pin(async move { locks.lock().call_try_acquire(accessor, own).await })
        });
        Ok(answer.await??.is_some())
    }

    /// Releases the lock, and ends each renewal of it.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER` or `E_LOCK_STORAGE_ERROR`.
    pub async fn release(&self, lock: LockHandle) -> Result<(), ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_release(accessor, own).await })
        });
        Ok(answer.await??)
    }

    /// Force-releases the lock, or does so only if it is held under the fencing token `only`; returns
    /// whether it was held.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR`, also when the store does not support force-release.
    pub async fn force_release(
        &self,
        lock: LockHandle,
        only: Option<Fence>,
    ) -> Result<bool, ComponentError> {
        let (own, only) = (lock.lock, only.map(Fence::get));
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_force_release(accessor, own, only).await })
        });
        Ok(answer.await??)
    }

    /// Extends the lease to last for `ttl` from now; `None` is the lock's own ttl.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER` or `E_LOCK_STORAGE_ERROR`.
    pub async fn extend(&self, lock: LockHandle, ttl: Option<Ttl>) -> Result<(), ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move {
                match ttl {
                    None => locks.lock().call_extend(accessor, own).await,
                    Some(ttl) => {
                        let ttl = ttl.duration().map(convert::nanos);
                        locks.lock().call_extend_for(accessor, own, ttl).await
                    }
                }
            })
        });
        Ok(answer.await??)
    }

    /// Renews the lease while `work` runs; returns the output of `work`.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_LOST` as soon as the lock is lost; `work` is dropped then.
    pub async fn keep<T>(
        &self,
        lock: LockHandle,
        work: impl Future<Output = T>,
    ) -> Result<T, ComponentError> {
        let mut work = pin!(work);
        loop {
            let own = lock.lock;
            let keeping = self.waiting_call(lock, move |locks, accessor| {
                Box::pin(async move { locks.lock().call_keep(accessor, own).await })
            });
            match select(work.as_mut(), pin!(keeping)).await {
                Either::Left((done, _)) => return Ok(done),
                Either::Right((kept, _)) => match kept?? {
                    Kept::Lost(loss) => return Err(loss.into()),
                    Kept::Released => return Err(ComponentError::Lost(Loss::Revoked)),
                    // For another call of this lock, whose future was dropped.
                    Kept::Stopped => {}
                },
            }
        }
    }

    /// Returns whether the lease has expired.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub async fn is_expired(&self, lock: LockHandle) -> Result<bool, ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_is_expired(accessor, own).await })
        });
        answer.await
    }

    /// Returns how long the lease still lasts; `None` when there is no lease, or the lease has no end.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub async fn remaining(&self, lock: LockHandle) -> Result<Option<Duration>, ComponentError> {
        let own = lock.lock;
        let left = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_remaining(accessor, own).await })
        });
        Ok(convert::duration(left.await?))
    }

    /// Returns whether the lock has a holder, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub async fn is_locked(&self, lock: LockHandle) -> Result<bool, ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_is_locked(accessor, own).await })
        });
        Ok(answer.await??)
    }

    /// Returns whether this lock's latest acquisition still holds it, by the store's record.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub async fn is_held(&self, lock: LockHandle) -> Result<bool, ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_is_held(accessor, own).await })
        });
        Ok(answer.await??)
    }

    /// Returns the lock's holders, by the store's record: none when it is free.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_STORAGE_ERROR` when the store failed.
    pub async fn holders(&self, lock: LockHandle) -> Result<Vec<Holder>, ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_holders(accessor, own).await })
        });
        let holders = answer.await??;
        Ok(holders.into_iter().map(convert::described).collect())
    }

    /// Detaches the lease: from now on it ends by its ttl alone, and dropping the lock does not release it.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE` or `E_LOCK_STORAGE_ERROR`.
    pub async fn detach(&self, lock: LockHandle) -> Result<(), ComponentError> {
        let own = lock.lock;
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_detach(accessor, own).await })
        });
        Ok(answer.await??)
    }

    /// Serializes the lease, for a transfer to another process: returns the text of
    /// [`SerializedLock`](verrou::SerializedLock).
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_NOT_OWNER`, `E_LOCK_NOT_SERIALIZABLE` or `E_LOCK_STORAGE_ERROR`.
    pub async fn serialize(&self, lock: LockHandle) -> Result<String, ComponentError> {
        let (own, now) = (lock.lock, convert::nanos(self.host.wall_clock()));
        let answer = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_serialize(accessor, own, now).await })
        });
        Ok(answer.await??)
    }

    /// Returns the fencing token of the latest acquisition, if the store issues them.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub async fn fence(&self, lock: LockHandle) -> Result<Option<Fence>, ComponentError> {
        let own = lock.lock;
        let token = self.call(Some(lock), move |locks, accessor| {
            Box::pin(async move { locks.lock().call_fencing_token(accessor, own).await })
        });
        Ok(token.await?.and_then(Fence::new))
    }

    /// Drops the lock. Releases it, unless it was detached, serialized or restored. Ends the calls of it that wait, and
    /// awaits the others.
    ///
    /// # Errors
    ///
    /// Returns [`ComponentError::Stopped`] when the component has stopped.
    pub async fn forget(&self, lock: LockHandle) -> Result<(), ComponentError> {
        let calls = self.calls(lock)?;
        self.locks().remove(&lock.number);
        let (sender, receiver) = oneshot::channel();
        let (own, requests) = (lock.lock, self.requests.clone());
        self.request(Box::new(move |accessor, component| {
            Box::pin(async move {
                stop(accessor, &component, own).await;
                calls.ended().await;
                // The driver has ended if this fails.
                let _ = requests.unbounded_send(Request::Drop(own, sender));
            })
        }));
        Ok(self.driven(receiver).await??)
    }

    /// Returns the handle of a lock that the component has made.
    fn handle(&self, lock: ResourceAny) -> LockHandle {
        let handle = LockHandle {
            lock,
            instance: self.number,
            number: next_number(),
        };
        self.locks().insert(handle.number, Arc::default());
        handle
    }

    /// Returns the calls of `lock`, which must be of this instance, and not dropped.
    fn calls(&self, lock: LockHandle) -> Result<Arc<Calls>, ComponentError> {
        let calls = self.locks().get(&lock.number).map(Arc::clone);
        calls.ok_or_else(|| {
            let why = "the lock was dropped, or is of another instance";
            ComponentError::Handle(wasmtime::format_err!("{why}"))
        })
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<u64, Arc<Calls>>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls the component as [`call`](Self::call) does, and ends the call if this future is dropped.
    async fn waiting_call<T: Send + 'static>(
        &self,
        lock: LockHandle,
        call: impl for<'a> FnOnce(
            &'a wit::Guest,
            &'a Accessor<ConcurrentState<S, H>>,
        ) -> Boxed<'a, Result<T>>
        + Send
        + 'static,
    ) -> Result<T, ComponentError> {
        let mut dropped = StopWhenDropped {
            instance: self,
            lock: Some(lock.lock),
        };
        let end = self.call(Some(lock), call).await;
        dropped.lock = None;
        end
    }

    /// Calls the component, about `lock` if there is one.
    async fn call<T: Send + 'static>(
        &self,
        lock: Option<LockHandle>,
        call: impl for<'a> FnOnce(
            &'a wit::Guest,
            &'a Accessor<ConcurrentState<S, H>>,
        ) -> Boxed<'a, Result<T>>
        + Send
        + 'static,
    ) -> Result<T, ComponentError> {
        let calls = lock.map(|lock| self.calls(lock)).transpose()?;
        let in_progress = calls.map(|calls| calls.begin());
        let (sender, receiver) = oneshot::channel();
        self.request(Box::new(move |accessor, component| {
            Box::pin(async move {
                let end = call(component.verrou_async_lock_locks(), accessor).await;
                drop(in_progress);
                // The receiver is gone if the caller's future was dropped.
                let _ = sender.send(end);
            })
        }));
        Ok(self.driven(receiver).await??)
    }

    fn request(&self, call: Call<S, H>) {
        // It fails if the driver has ended, which the next poll of the driver shows.
        let _ = self.requests.unbounded_send(Request::Call(call));
    }

    /// Runs the instance until `reply` is there.
    async fn driven<T>(&self, mut reply: oneshot::Receiver<T>) -> Result<T, ComponentError> {
        let mut driver = self.driver.clone().expect("the instance is not dropped");
        poll_fn(move |context| {
            let stopped = Pin::new(&mut driver).poll(context);
            match Pin::new(&mut reply).poll(context) {
                Poll::Ready(Ok(reply)) => Poll::Ready(Ok(reply)),
                Poll::Pending if stopped.is_pending() => Poll::Pending,
                _ => {
                    let why = match stopped {
                        Poll::Ready(Some(why)) => wasmtime::format_err!("{why:#}"),
                        _ => wasmtime::format_err!("the component ended the call"),
                    };
                    Poll::Ready(Err(ComponentError::Stopped(why)))
                }
            }
        })
        .await
    }

    /// Runs the instance until it waits.
    fn run_now(&self) {
        /// The most polls of an instance whose store completes no operation in one.
        const POLLS: usize = 1_000;

        let Some(mut driver) = self.driver.clone() else {
            return;
        };
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        for _ in 0..POLLS {
            let polled = Pin::new(&mut driver).poll(&mut Context::from_waker(&waker));
            if polled.is_ready() || !woken.0.swap(false, Ordering::SeqCst) {
                return;
            }
        }
    }
}

/// Whether a task was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Ends the calls of `lock` that wait.
async fn stop<T: Send, D: HasData>(
    accessor: &Accessor<T, D>,
    component: &LockManager,
    lock: ResourceAny,
) {
    let locks = component.verrou_async_lock_locks();
    // After an error the instance has stopped.
    let _ = locks.lock().call_stop(accessor, lock).await;
}

/// Ends the calls of a lock that wait, when it is dropped.
struct StopWhenDropped<'a, S: AsyncStore + 'static, H: AsyncHost + 'static> {
    instance: &'a ConcurrentInstance<S, H>,
    /// `None` after the call has ended.
    lock: Option<ResourceAny>,
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> Drop for StopWhenDropped<'_, S, H> {
    fn drop(&mut self) {
        if let Some(lock) = self.lock {
            self.instance.request(Box::new(move |accessor, component| {
                Box::pin(async move { stop(accessor, &component, lock).await })
            }));
            self.instance.run_now();
        }
    }
}

impl<S: AsyncStore + 'static, H> Drop for ConcurrentInstance<S, H> {
    fn drop(&mut self) {
        // Ends the tasks of the instance, also those that ask the store.
        self.driver = None;
        self.store.release_all();
    }
}

impl<S: AsyncStore, H> fmt::Debug for ConcurrentInstance<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrentInstance").finish_non_exhaustive()
    }
}
