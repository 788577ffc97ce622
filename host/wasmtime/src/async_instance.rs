//! The lock component with an async store.

use std::fmt;
use std::fs;
use std::future::{Future, poll_fn};
use std::mem;
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use verrou::nonblocking::AsyncHost;
use verrou::{
    Acquired, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name, Retry, StoreError,
    Ttl,
};
use wasmtime::component::{Component, HasSelf, Linker, ResourceAny};
use wasmtime::{Engine, Result, StoreContextMut};

use crate::bindings::blocking::verrou::lock::store as backend;
use crate::bindings::blocking::wasi::{clocks, random};
use crate::bindings::nonblocking::exports::verrou::lock::locks::{self as wit, Keeping, Progress};
use crate::bindings::nonblocking::{LockManager, LockManagerPre};
use crate::convert::{self, policies};
use crate::engine::{InstanceState, Limits};
use crate::error::ComponentError;
use crate::instance::LockHandle;
use crate::instance_api::calls;

/// The waiter of a store.
type WaiterHandle<'a> = Box<dyn AsyncWaiter + 'a>;

/// The counterpart of [`Runner`](crate::Runner) for async stores.
///
/// The futures of an [`AsyncInstance`] perform the store's operations themselves, so they are `Send` if
/// the store's futures are. They spawn nothing, and need no particular executor.
pub struct AsyncRunner<H: 'static> {
    engine: Engine,
    component: LockManagerPre<InstanceState<Exchange, H>>,
    limits: Limits,
}

impl<H: AsyncHost + Send + 'static> AsyncRunner<H> {
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
        let engine = limits.engine()?;
        let component = Component::new(&engine, component)?;
        let mut linker = Linker::<InstanceState<Exchange, H>>::new(&engine);
        clocks::monotonic_clock::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        random::random::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        link_store(&mut linker)?;
        Ok(Self {
            component: LockManagerPre::new(linker.instantiate_pre(&component)?)?,
            engine,
            limits: limits.clone(),
        })
    }

    /// Creates an instance with locks in `store`.
    ///
    /// # Errors
    ///
    /// Returns wasmtime's error when there is no memory left, or none in the pool.
    pub async fn instance<S: AsyncStore>(&self, store: S, host: H) -> Result<AsyncInstance<S, H>> {
        let exchange = Exchange::new(store.capabilities());
        let mut wasm =
            self.limits
                .wasm_store(&self.engine, exchange.clone(), host, H::now, H::random);
        let made = self.component.instantiate_async(&mut wasm);
        let component = exchange.serve(&store, made).await?;
        Ok(AsyncInstance {
            wasm,
            component,
            store: Arc::new(store),
            exchange,
            open: None,
        })
    }
}

impl<H> fmt::Debug for AsyncRunner<H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncRunner")
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// The counterpart of [`Instance`](crate::Instance) for async stores.
///
/// **Cancel safety.** A future that is dropped while it waits for the lock leaves nothing behind. A
/// future that is dropped during an operation of the store leaves the outcome of that operation
/// unknown, so that a lock may stay held until its ttl has passed. It also leaves the instance
/// unusable: all later calls return [`ComponentError::Stopped`].
///
/// The component's code runs on the polling thread, at most for [`Limits::time`]. The lock component
/// runs for microseconds.
pub struct AsyncInstance<S, H: 'static> {
    wasm: wasmtime::Store<InstanceState<Exchange, H>>,
    component: LockManager,
    store: Arc<S>,
    exchange: Exchange,
    open: Option<ResourceAny>,
}

impl<S: AsyncStore, H: AsyncHost + Send + 'static> AsyncInstance<S, H> {
    /// Returns the store of the component.
    pub fn store(&self) -> &S {
        &self.store
    }

    calls!([async] [.await] resource_drop_async);

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
        self.close().await?;
        let renewal = self.call(async |locks, wasm| locks.lock().call_keep(wasm, lock.0).await);
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
                let poll =
                    self.call(async |locks, wasm| locks.renewal().call_poll(wasm, renewal).await);
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
                Keeping::Lost(loss) => return Err(loss.into()),
            };
            let sleep = self.wasm.data().host.sleep(Duration::from_nanos(wait));
            if let Some(done) = sooner(work.as_mut(), sleep).await {
                return Ok(done);
            }
        }
    }

    /// Calls the component, and performs the operations that it requests of its store.
    async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(
            &wit::Guest,
            &mut wasmtime::Store<InstanceState<Exchange, H>>,
        ) -> Result<T>,
    ) -> Result<T> {
        self.wasm.data_mut().enter();
        let exchange = self.exchange.clone();
        let call = call(self.component.verrou_lock_locks(), &mut self.wasm);
        exchange.serve(&*self.store, call).await
    }

    fn shared_store(&self) -> &Arc<S> {
        &self.store
    }

    /// Returns the claim of the latest acquire request, if it was not granted.
    fn refused(&self) -> Option<Claim> {
        self.exchange.slot().refused.clone()
    }

    async fn wait(&mut self, waiter: Option<&mut WaiterHandle<'_>>, at_most: Duration) {
        let sleep = self.wasm.data().host.sleep(at_most);
        match waiter {
            Some(waiter) => drop(sooner(waiter.wait(at_most), sleep).await),
            None => sleep.await,
        }
    }

    async fn sleep(&mut self, pause: Duration) {
        self.wasm.data().host.sleep(pause).await;
    }
}

impl<S, H> fmt::Debug for AsyncInstance<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncInstance").finish_non_exhaustive()
    }
}

policies!(wit);

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

/// The exchange of requests and answers between the component's imports and its caller.
///
/// The future of an import has to be `Send`, and not every store's futures are. So the caller of the
/// component performs the operations.
#[derive(Clone)]
pub(super) struct Exchange {
    slot: Arc<Mutex<RequestSlot>>,
    capabilities: Capabilities,
}

#[derive(Default)]
struct RequestSlot {
    request: Option<StoreRequest>,
    answer: Option<StoreAnswer>,
    /// The claim of the latest acquire request, if it was refused.
    refused: Option<Claim>,
}

enum StoreRequest {
    Acquire(Claim),
    Extend(Claim),
    Release(Claim),
    Detach(Claim),
    Evict(Name, Option<Fence>),
    Inspect(Name),
}

enum StoreAnswer {
    Acquired(Result<Acquired, StoreError>),
    Done(Result<bool, StoreError>),
    Holders(Result<Vec<Holder>, StoreError>),
}

impl StoreRequest {
    async fn perform(self, store: &impl AsyncStore) -> StoreAnswer {
        StoreAnswer::Done(match self {
            Self::Acquire(claim) => return StoreAnswer::Acquired(store.acquire(&claim).await),
            Self::Extend(claim) => store.extend(&claim).await,
            Self::Release(claim) => store.release(&claim).await,
            Self::Detach(claim) => store.detach(&claim).await,
            Self::Evict(name, only) => store.force_release(&name, only).await,
            Self::Inspect(name) => return StoreAnswer::Holders(store.holders(&name).await),
        })
    }
}

impl Exchange {
    fn new(capabilities: Capabilities) -> Self {
        Self {
            slot: Arc::default(),
            capabilities,
        }
    }

    fn slot(&self) -> MutexGuard<'_, RequestSlot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Awaits `call`, and performs the operations that it requests of `store` meanwhile.
    async fn serve<T>(
        &self,
        store: &impl AsyncStore,
        call: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut call = pin!(call);
        loop {
            let request = poll_fn(|context| match call.as_mut().poll(context) {
                Poll::Ready(end) => Poll::Ready(Err(end)),
                Poll::Pending => match self.requested() {
                    Some(request) => Poll::Ready(Ok(request)),
                    None => Poll::Pending,
                },
            });
            match request.await {
                Err(end) => return end,
                Ok(request) => {
                    let acquired = match &request {
                        StoreRequest::Acquire(claim) => Some(claim.clone()),
                        _ => None,
                    };
                    let answer = request.perform(store).await;
                    if acquired.is_some() {
                        let refused =
                            matches!(answer, StoreAnswer::Acquired(Ok(Acquired::Busy { .. })));
                        self.slot().refused = acquired.filter(|_| refused);
                    }
                    self.answer(answer);
                }
            }
        }
    }

    fn requested(&self) -> Option<StoreRequest> {
        self.slot().request.take()
    }

    fn answer(&self, answer: StoreAnswer) {
        self.slot().answer = Some(answer);
    }

    /// Passes `request` to the caller, which polls this future again when there is an answer.
    async fn ask(&self, request: StoreRequest) -> StoreAnswer {
        self.slot().request = Some(request);
        poll_fn(|_| match self.slot().answer.take() {
            Some(answer) => Poll::Ready(answer),
            None => Poll::Pending,
        })
        .await
    }

    async fn reply(
        &self,
        request: Result<StoreRequest, StoreError>,
    ) -> Result<backend::Reply, backend::StoreError> {
        match request {
            Ok(request) => match self.ask(request).await {
                StoreAnswer::Acquired(reply) => convert::acquired(reply),
                StoreAnswer::Done(reply) => convert::done(reply),
                StoreAnswer::Holders(_) => {
                    convert::done(Err(StoreError::permanent("answer to another request")))
                }
            },
            Err(err) => convert::done(Err(err)),
        }
    }

    async fn holder(
        &self,
        name: Result<Name, StoreError>,
    ) -> Result<Option<backend::Holder>, backend::StoreError> {
        let holders = match name {
            Ok(name) => match self.ask(StoreRequest::Inspect(name)).await {
                StoreAnswer::Holders(holders) => holders,
                StoreAnswer::Acquired(_) | StoreAnswer::Done(_) => {
                    Err(StoreError::permanent("answer to another request"))
                }
            },
            Err(err) => Err(err),
        };
        convert::holder(holders)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").finish_non_exhaustive()
    }
}

type Returned<'a, T> = Box<dyn Future<Output = Result<(T,)>> + Send + 'a>;
type Replied = Result<backend::Reply, backend::StoreError>;

/// Implements the component's `store` import by its [`Exchange`].
fn link_store<H: Send + 'static>(linker: &mut Linker<InstanceState<Exchange, H>>) -> Result<()> {
    type Caller<'a, H> = StoreContextMut<'a, InstanceState<Exchange, H>>;

    fn exchanged<'a, H: Send, T>(
        mut caller: Caller<'a, H>,
        ask: impl for<'b> FnOnce(
            &'b Exchange,
            Result<(), StoreError>,
        ) -> Pin<Box<dyn Future<Output = T> + Send + 'b>>
        + Send
        + 'a,
    ) -> Returned<'a, T> {
        Box::new(async move {
            let exchange = caller.data().store.clone();
            let left = caller.data_mut().leave();
            let (left, allowed) = match left {
                Ok(left) => (Some(left), Ok(())),
                Err(err) => (None, Err(err)),
            };
            let answer = ask(&exchange, allowed).await;
            if let Some(left) = left {
                caller.data_mut().come_back(left);
            }
            Ok((answer,))
        })
    }

    let mut store = linker.instance("verrou:lock/store@0.1.0")?;
    let operations: [(_, fn(Claim) -> _); 4] = [
        ("acquire", StoreRequest::Acquire),
        ("extend", StoreRequest::Extend),
        ("release", StoreRequest::Release),
        ("detach", StoreRequest::Detach),
    ];
    for (name, request) in operations {
        store.func_wrap_async(
            name,
            move |caller: Caller<'_, H>, (claim,): (backend::Claim,)| -> Returned<'_, Replied> {
                exchanged(caller, move |exchange, allowed| {
                    Box::pin(async move {
                        exchange
                            .reply(allowed.and_then(|()| convert::claim(&claim)).map(request))
                            .await
                    })
                })
            },
        )?;
    }
    store.func_wrap_async(
        "evict",
        |caller: Caller<'_, H>, (name, only): (String, Option<u64>)| -> Returned<'_, Replied> {
            exchanged(caller, move |exchange, allowed| {
                Box::pin(async move {
                    let only = match only.map(Fence::new) {
                        // No grant has the token zero.
                        Some(None) => return Ok(backend::Reply::Refused(None)),
                        only => only.flatten(),
                    };
                    let request = allowed.and_then(|()| convert::name(&name));
                    let request = request.map(|name| StoreRequest::Evict(name, only));
                    exchange.reply(request).await
                })
            })
        },
    )?;
    store.func_wrap_async(
        "inspect",
        |caller: Caller<'_, H>,
         (name,): (String,)|
         -> Returned<'_, Result<Option<backend::Holder>, backend::StoreError>> {
            exchanged(caller, move |exchange, allowed| {
                Box::pin(async move {
                    exchange
                        .holder(allowed.and_then(|()| convert::name(&name)))
                        .await
                })
            })
        },
    )?;
    store.func_wrap("can", |caller: Caller<'_, H>, (): ()| {
        Ok((convert::capabilities(caller.data().store.capabilities),))
    })
}
