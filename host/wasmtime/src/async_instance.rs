//! The lock component with an async store.

use std::fmt;
use std::fs;
use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use verrou::nonblocking::AsyncHost;
use verrou::{AsyncStore, AsyncWaiter, Claim, Fence, Holder, Loss, Retry, StoreError, Ttl};
use wasmtime::component::{
    Component, HasSelf, Linker, LinkerInstance, Resource, ResourceAny, ResourceType,
};
use wasmtime::{Engine, Result, StoreContextMut};

use crate::bindings::blocking::verrou::lock::{store as backend, types};
use crate::bindings::blocking::wasi::io::poll as wasi_poll;
use crate::bindings::blocking::wasi::{clocks, random};
use crate::bindings::nonblocking::exports::verrou::lock::locks::{
    self as wit, Acquiring, Keeping, Progress,
};
use crate::bindings::nonblocking::{LockManager, LockManagerPre};
use crate::convert;
use crate::engine::{InstanceState, Left, Limits, tick};
use crate::error::ComponentError;
use crate::grants::Grants;
use crate::instance::{LockHandle, next_number};
use crate::instance_api::{boxed, calls};
use crate::waits::{self, QueuePlace, Wait};

/// The waiter of a store.
type WaiterHandle<'a> = Box<dyn AsyncWaiter + 'a>;

/// The state of an instance with an async store.
type State<S, H> = InstanceState<Arc<S>, H>;

/// A boxed future.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The counterpart of [`Runner`](crate::Runner) for async stores.
///
/// The futures of an [`AsyncInstance`] perform the store's operations themselves. They spawn nothing, and need no
/// particular executor.
pub struct AsyncRunner<S: 'static, H: 'static> {
    engine: Engine,
    component: LockManagerPre<State<S, H>>,
    limits: Limits,
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> AsyncRunner<S, H> {
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
    /// Returns the errors of [`Runner::load`](crate::Runner::load).
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
        let mut linker = Linker::<State<S, H>>::new(&engine);
        clocks::monotonic_clock::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        random::random::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        wasi_poll::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        link_store(&mut linker)?;
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
    pub async fn instance(&self, store: S, host: H) -> Result<AsyncInstance<S, H>> {
        let store = Arc::new(store);
        let mut wasm =
            self.limits
                .wasm_store(&self.engine, Arc::clone(&store), host, H::now, H::random);
        let grants = wasm.data().grants.clone();
        let component = self.component.instantiate_async(&mut wasm).await?;
        Ok(AsyncInstance {
            grants,
            idle: Some(Running { wasm, component }),
            call: None,
            store,
            open: None,
            number: next_number(),
        })
    }
}

impl<S, H> fmt::Debug for AsyncRunner<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncRunner")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// An instance and its memory.
struct Running<S: 'static, H: 'static> {
    wasm: wasmtime::Store<State<S, H>>,
    component: LockManager,
}

/// The counterpart of [`Instance`](crate::Instance) for async stores.
///
/// **Cancel safety.** Any future of this value can be dropped: the next call first completes the call of the
/// component that was in progress. A dropped [`acquire`](Self::acquire) leaves the wait queue at once. If it was
/// dropped during an operation of the store, the lock may be held, as [`is_held`](Self::is_held) returns:
/// [`release`](Self::release) it, or [`forget`](Self::forget) it.
///
/// Dropping this value releases its locks, unless they were detached, serialized or restored: it starts each
/// release, but cannot await it.
///
/// The component's code runs on the polling thread, at most for [`Limits::time`]. The lock component
/// runs for microseconds.
pub struct AsyncInstance<S: AsyncStore + 'static, H: 'static> {
    /// `None` during a call.
    idle: Option<Running<S, H>>,
    /// The call of the component that is in progress.
    call: Option<Boxed<'static, Running<S, H>>>,
    store: Arc<S>,
    open: Option<ResourceAny>,
    grants: Grants,
    /// Distinguishes the handles of this instance from those of others.
    number: u64,
}

impl<S: AsyncStore + 'static, H: AsyncHost + 'static> AsyncInstance<S, H> {
    /// Returns the store of the component.
    pub fn store(&self) -> &S {
        &self.store
    }

    calls!([async] [.await] boxed resource_drop_async);

    /// Renews the lease while `work` runs; returns the output of `work`.
    ///
    /// Waits for the store's answer to a pending extension, also when `work` has completed.
    ///
    /// # Errors
    ///
    /// Returns `E_LOCK_LOST` as soon as the lock is lost; `work` is dropped then.
    pub async fn keep<T>(
        &mut self,
        lock: LockHandle,
        work: impl Future<Output = T>,
    ) -> Result<T, ComponentError> {
        let lock = self.own(lock)?;
        self.close().await?;
        let renewal = self.call(move |locks, wasm| {
            Box::pin(async move { locks.lock().call_keep(wasm, lock).await })
        });
        let renewal = renewal.await??;
        self.open = Some(renewal);
        let end = self.keep_by(renewal, work).await;
        let closed = self.close().await;
        // The first error is the cause of the others.
        end.and_then(|end| Ok(closed.map(|()| end)?))
    }

    async fn keep_by<T>(
        &mut self,
        renewal: ResourceAny,
        work: impl Future<Output = T>,
    ) -> Result<T, ComponentError> {
        let mut work = pin!(work);
        loop {
            let mut done = None;
            let kept = {
                let poll = self.call(move |locks, wasm| {
                    Box::pin(async move { locks.renewal().call_poll(wasm, renewal).await })
                });
                let mut poll = pin!(poll);
                let kept = poll_fn(|context| {
                    if done.is_none()
                        && let Poll::Ready(end) = work.as_mut().poll(context)
                    {
                        done = Some(end);
                    }
                    poll.as_mut().poll(context)
                });
                kept.await
            };
            if let Some(done) = done {
                return Ok(done);
            }
            let wait = match kept? {
                Keeping::Held(wait) => wait,
                Keeping::Unknown(doubt) => doubt.wait,
                Keeping::Released => return Err(ComponentError::Lost(Loss::Revoked)),
                Keeping::Lost(loss) => return Err(loss.into()),
            };
            let sleep = self.state().host.sleep(Duration::from_nanos(wait));
            if let Some(done) = sooner(work.as_mut(), sleep).await {
                return Ok(done);
            }
        }
    }

    /// Calls the component. If this future is dropped, the next call completes the call of the component first.
    async fn call<T: Send + 'static>(
        &mut self,
        call: impl for<'a> FnOnce(
            &'a wit::Guest,
            &'a mut wasmtime::Store<State<S, H>>,
        ) -> Boxed<'a, Result<T>>
        + Send
        + 'static,
    ) -> Result<T> {
        self.complete().await;
        let mut running = self.idle.take().expect("no call is in progress");
        let (sender, receiver) = mpsc::sync_channel(1);
        self.call = Some(Box::pin(async move {
            running.wasm.data_mut().enter();
            let end = call(running.component.verrou_lock_locks(), &mut running.wasm).await;
            // The receiver is gone if the caller's future was dropped.
            let _ = sender.send(end);
            running
        }));
        self.complete().await;
        receiver.recv().expect("the call has ended")
    }

    /// Completes the call of the component that is in progress.
    async fn complete(&mut self) {
        let running = poll_fn(|context| match &mut self.call {
            Some(call) => call.as_mut().poll(context).map(Some),
            None => Poll::Ready(None),
        });
        if let Some(running) = running.await {
            self.call = None;
            self.idle = Some(running);
        }
    }

    fn state(&mut self) -> &mut State<S, H> {
        let running = self.idle.as_mut().expect("no call is in progress");
        running.wasm.data_mut()
    }

    fn shared_store(&self) -> &Arc<S> {
        &self.store
    }

    async fn wait(&mut self, waiter: Option<&mut WaiterHandle<'_>>, at_most: Duration) {
        let sleep = self.state().host.sleep(at_most);
        match waiter {
            Some(waiter) => drop(sooner(waiter.wait(at_most), sleep).await),
            None => sleep.await,
        }
    }

    async fn sleep(&mut self, pause: Duration) {
        self.state().host.sleep(pause).await;
    }
}

impl<S: AsyncStore + 'static, H> Drop for AsyncInstance<S, H> {
    fn drop(&mut self) {
        // The call in progress may be a request for another lock.
        self.call = None;
        let mut context = Context::from_waker(Waker::noop());
        for claim in self.grants.take() {
            // A drop cannot await the release, or report an error.
            let _ = self.store.release(&claim).as_mut().poll(&mut context);
        }
    }
}

impl<S: AsyncStore, H> fmt::Debug for AsyncInstance<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncInstance").finish_non_exhaustive()
    }
}

/// Returns the output of `first`, or `None` if `second` completes sooner.
async fn sooner<T>(first: impl Future<Output = T>, second: impl Future<Output = ()>) -> Option<T> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|context| {
        if let Poll::Ready(end) = first.as_mut().poll(context) {
            return Poll::Ready(Some(end));
        }
        second.as_mut().poll(context).map(|()| None)
    })
    .await
}

type Caller<'a, S, H> = StoreContextMut<'a, State<S, H>>;
type Returned<'a, T> = Box<dyn Future<Output = Result<(T,)>> + Send + 'a>;
type Replied<T> = Result<T, backend::StoreError>;

/// Begins an operation of the store, with the input that the component has passed.
fn begin<S, H, I>(
    caller: &mut Caller<'_, S, H>,
    input: Result<I, StoreError>,
) -> Result<(Arc<S>, Grants, Left, I), StoreError> {
    let left = caller.data_mut().leave()?;
    let state = caller.data();
    Ok((Arc::clone(&state.store), state.grants.clone(), left, input?))
}

/// Performs one operation of the store: `perform!(caller, input, |store, grants, input| operation)`, whose value is the
/// store's reply.
macro_rules! perform {
    ($caller:ident, $input:expr, |$store:ident, $grants:pat_param, $name:ident| $operation:expr) => {
        match begin(&mut $caller, $input) {
            Ok(($store, $grants, left, $name)) => {
                let reply = $operation;
                $caller.data_mut().come_back(left);
                reply
            }
            Err(err) => Err(err),
        }
    };
}

/// Implements the component's import `store`.
fn link_store<S: AsyncStore + 'static, H: Send + 'static>(
    linker: &mut Linker<State<S, H>>,
) -> Result<()> {
    let mut store = linker.instance("verrou:lock/store@0.1.0")?;
    link_claims(&mut store)?;
    link_names(&mut store)?;
    link_queue(&mut store)
}

/// Implements the operations on a claim.
fn link_claims<S: AsyncStore + 'static, H: Send + 'static>(
    store: &mut LinkerInstance<'_, State<S, H>>,
) -> Result<()> {
    store.func_wrap_async(
        "acquire",
        |mut caller: Caller<'_, S, H>,
         (claim,): (backend::Claim,)|
         -> Returned<'_, Replied<backend::Acquired>> {
            Box::new(async move {
                let claim = convert::claim(&claim);
                let reply = perform!(caller, claim, |store, grants, claim| {
                    grants.asked(&claim);
                    let reply = store.acquire(&claim).await;
                    grants.acquired(&claim, &reply);
                    reply
                });
                Ok((convert::acquired(reply),))
            })
        },
    )?;
    store.func_wrap_async(
        "extend",
        |mut caller: Caller<'_, S, H>,
         (claim,): (backend::Claim,)|
         -> Returned<'_, Replied<bool>> {
            Box::new(async move {
                let claim = convert::claim(&claim);
                let reply = perform!(caller, claim, |store, _, claim| store.extend(&claim).await);
                Ok((convert::done(reply),))
            })
        },
    )?;
    store.func_wrap_async(
        "renew",
        |mut caller: Caller<'_, S, H>,
         (claim, token): (backend::Claim, Option<u64>)|
         -> Returned<'_, Replied<backend::Renewed>> {
            Box::new(async move {
                let claim = convert::claim(&claim);
                let fence = token.and_then(Fence::new);
                let reply = perform!(caller, claim, |store, _, claim| {
                    store.renew(&claim, fence).await
                });
                Ok((convert::renewed(reply),))
            })
        },
    )?;
    store.func_wrap_async(
        "release",
        |mut caller: Caller<'_, S, H>,
         (claim,): (backend::Claim,)|
         -> Returned<'_, Replied<bool>> {
            Box::new(async move {
                let claim = convert::claim(&claim);
                let reply = perform!(caller, claim, |store, grants, claim| {
                    let reply = store.release(&claim).await;
                    grants.ended(&claim, &reply);
                    reply
                });
                Ok((convert::done(reply),))
            })
        },
    )?;
    store.func_wrap_async(
        "detach",
        |mut caller: Caller<'_, S, H>,
         (claim,): (backend::Claim,)|
         -> Returned<'_, Replied<bool>> {
            Box::new(async move {
                let claim = convert::claim(&claim);
                let reply = perform!(caller, claim, |store, grants, claim| {
                    let reply = store.detach(&claim).await;
                    grants.ended(&claim, &reply);
                    reply
                });
                Ok((convert::done(reply),))
            })
        },
    )
}

/// Implements the operations on a name, and the capabilities.
fn link_names<S: AsyncStore + 'static, H: Send + 'static>(
    store: &mut LinkerInstance<'_, State<S, H>>,
) -> Result<()> {
    store.func_wrap_async(
        "force-release",
        |mut caller: Caller<'_, S, H>,
         (name, only): (String, Option<u64>)|
         -> Returned<'_, Replied<bool>> {
            Box::new(async move {
                let Ok(only) = convert::only(only) else {
                    return Ok((Ok(false),));
                };
                let name = convert::name(&name);
                let reply = perform!(caller, name, |store, _, name| {
                    store.force_release(&name, only).await
                });
                Ok((convert::done(reply),))
            })
        },
    )?;
    store.func_wrap_async(
        "holders",
        |mut caller: Caller<'_, S, H>,
         (name,): (String,)|
         -> Returned<'_, Replied<Vec<types::Holder>>> {
            Box::new(async move {
                let name = convert::name(&name);
                let reply = perform!(caller, name, |store, _, name| store.holders(&name).await);
                Ok((convert::holders(reply),))
            })
        },
    )?;
    store.func_wrap("get-capabilities", |caller: Caller<'_, S, H>, (): ()| {
        Ok((convert::capabilities(caller.data().store.capabilities()),))
    })
}

/// Implements the wait queue, in which the driver of the component waits.
fn link_queue<S: AsyncStore + 'static, H: Send + 'static>(
    store: &mut LinkerInstance<'_, State<S, H>>,
) -> Result<()> {
    store.func_wrap(
        "join",
        |mut caller: Caller<'_, S, H>, (claim,): (backend::Claim,)| {
            let Ok(claim) = convert::claim(&claim) else {
                return Ok((None,));
            };
            Ok((waits::join(&mut caller.data_mut().waits, claim),))
        },
    )?;
    store.func_wrap(
        "[method]waiter.subscribe",
        |mut caller: Caller<'_, S, H>, (place,): (Resource<QueuePlace>,)| {
            let wait: Resource<Wait> = waits::subscribe(&mut caller.data_mut().waits, &place)?;
            Ok((wait,))
        },
    )?;
    store.resource(
        "waiter",
        ResourceType::host::<QueuePlace>(),
        |mut caller, place| {
            let place = Resource::<QueuePlace>::new_own(place);
            caller.data_mut().waits.delete(place)?;
            Ok(())
        },
    )
}
