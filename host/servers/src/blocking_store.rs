//! A blocking store on a server: a separate thread serves its connections.

use std::future::poll_fn;
#[cfg(unix)]
use std::io::{Read, Write};
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use std::{fmt, io, mem, thread};

use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use verrou::{
    Acquired, AsyncWaiter, Capabilities, Claim, Fence, Holder, LossWatch, Name, Renewed, Store,
    StoreError, Waiter, async_trait,
};
#[cfg(unix)]
use verrou_machine::LossSignal;
use verrou_machine::{HostStore, Listed, StoreOptions, process};

use crate::error::ServerError;
use crate::open::connect;
use crate::store::{ServerStore, ServerWaiter};
use crate::url::ServerUrl;

/// A store on a server, for programs that block.
///
/// One thread serves its connections, however many threads use the store. A forked child does not have
/// that thread; it must open a store of its own.
pub struct BlockingServerStore {
    store: Arc<dyn ServerStore>,
    runtime: RuntimeThread,
    process: u32,
}

impl BlockingServerStore {
    /// Opens the store at `url`, after checking that its server is usable.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
    pub fn open(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let failed = |source: io::Error| ServerError::Disconnected {
            server: url.to_string(),
            source: source.into(),
        };
        let runtime = RuntimeThread::start().map_err(failed)?;
        let (asked, options) = (url.clone(), options.clone());
        let connected = runtime
            .run(async move { connect(&asked, &options).await })
            .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            store: connected?,
            runtime,
            process: process::this(),
        })
    }

    /// Runs `operation` in the thread that serves the connections.
    fn operation<T: Send + 'static, F>(
        &self,
        operation: impl FnOnce(Arc<dyn ServerStore>) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        if self.process != process::this() {
            return Err(StoreError::permanent(
                "this store was opened before this process was forked; open one in the child",
            ));
        }
        let ended = || StoreError::permanent("the thread that serves this store has ended");
        let operation = operation(Arc::clone(&self.store));
        self.runtime.run(operation).ok_or_else(ended)?
    }
}

#[deny(
    clippy::missing_trait_methods,
    reason = "a wrapper passes every method on"
)]
impl Store for BlockingServerStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let claim = claim.clone();
        self.operation(|store| async move { store.acquire(&claim).await })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let claim = claim.clone();
        self.operation(|store| async move { store.extend(&claim).await })
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let claim = claim.clone();
        self.operation(|store| async move { store.release(&claim).await })
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let name = name.clone();
        self.operation(move |store| async move { store.force_release(&name, only).await })
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let name = name.clone();
        self.operation(|store| async move { store.holders(&name).await })
    }

    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let claim = claim.clone();
        self.operation(move |store| async move { store.renew(&claim, fence).await })
    }

    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        let claim = claim.clone();
        self.operation(move |store| async move { store.holds(&claim, fence).await })
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let claim = claim.clone();
        self.operation(|store| async move { store.detach(&claim).await })
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        Some(Box::new(BlockingWaiter {
            blocking: self,
            waiter: Some(self.store.queue_waiter(claim)),
        }))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        let is_usable = self.process == process::this();
        is_usable.then(|| Box::new(BlockingLossWatch::new(self, claim)) as Box<dyn LossWatch>)
    }
}

impl HostStore for BlockingServerStore {
    fn list(&self) -> Result<Vec<Listed>, StoreError> {
        self.operation(|store| async move { store.list().await })
    }

    fn async_waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        let is_usable = self.process == process::this();
        is_usable.then(|| {
            Box::new(WaiterInRuntime {
                waiter: self.store.queue_waiter(claim),
                runtime: self.runtime.handle.clone(),
            }) as Box<dyn AsyncWaiter>
        })
    }

    #[cfg(unix)]
    fn loss_signal<'s>(&'s self, claim: &Claim) -> io::Result<Box<dyn LossSignal + 's>> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        let signal = ServerLossSignal {
            blocking: self,
            claim: claim.clone(),
            receiver,
            sender,
            task: Mutex::default(),
        };
        signal.start()?;
        Ok(Box::new(signal))
    }
}

impl fmt::Debug for BlockingServerStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BlockingServerStore")
            .field(&self.store)
            .finish()
    }
}

/// The waiter of one claim. Dropping it deletes its ticket on the server.
struct BlockingWaiter<'a> {
    blocking: &'a BlockingServerStore,
    /// `None` after the thread that serves the store has ended.
    waiter: Option<Box<dyn ServerWaiter>>,
}

impl BlockingWaiter<'_> {
    /// Takes the waiter. A forked child does not use it, because the ticket is its parent's.
    fn take(&mut self) -> Option<Box<dyn ServerWaiter>> {
        let waiter = self.waiter.take()?;
        if self.blocking.process == process::this() {
            return Some(waiter);
        }
        mem::forget(waiter);
        None
    }
}

impl Waiter for BlockingWaiter<'_> {
    fn wait(&mut self, at_most: Duration) {
        let waited = self.take().and_then(|mut waiter| {
            let operation = self.blocking.operation(|_| async move {
                let ended = waiter.wait(at_most).await;
                Ok((waiter, ended))
            });
            let (waiter, ended) = operation.ok()?;
            self.waiter = Some(waiter);
            ended.ok()
        });
        if waited.is_none() {
            // The next operation returns the error.
            thread::sleep(at_most);
        }
    }

    fn granted(mut self: Box<Self>) {
        if let Some(mut waiter) = self.take() {
            waiter.granted();
        }
    }
}

impl Drop for BlockingWaiter<'_> {
    fn drop(&mut self) {
        if let Some(mut waiter) = self.take() {
            // After an error, the ticket stays until other waiters skip it.
            let _ = self.blocking.operation(|_| async move {
                waiter.leave().await;
                Ok(())
            });
        }
    }
}

/// A waiter whose futures need the runtime of the store, and are polled elsewhere.
struct WaiterInRuntime {
    waiter: Box<dyn ServerWaiter>,
    runtime: Handle,
}

#[async_trait]
impl AsyncWaiter for WaiterInRuntime {
    async fn wait(&mut self, at_most: Duration) {
        let runtime = self.runtime.clone();
        let mut waiting = pin!(async {
            if self.waiter.wait(at_most).await.is_err() {
                // The next operation returns the error.
                tokio::time::sleep(at_most).await;
            }
        });
        poll_fn(|context| {
            let _entered = runtime.enter();
            waiting.as_mut().poll(context)
        })
        .await;
    }

    fn granted(mut self: Box<Self>) {
        self.waiter.granted();
    }
}

/// A task that notifies once, when a lease may be lost. Dropping this value ends the task.
struct LossTask(JoinHandle<()>);

impl LossTask {
    fn start(
        blocking: &BlockingServerStore,
        claim: &Claim,
        notify: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (store, claim) = (Arc::clone(&blocking.store), claim.clone());
        Self(blocking.runtime.handle.spawn(async move {
            store.lost(&claim).await;
            notify();
        }))
    }
}

impl Drop for LossTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A watch for the loss of one lease.
struct BlockingLossWatch<'a> {
    blocking: &'a BlockingServerStore,
    claim: Claim,
    notify: Arc<Notify>,
    task: Mutex<LossTask>,
    is_cancelled: AtomicBool,
}

impl<'a> BlockingLossWatch<'a> {
    fn new(blocking: &'a BlockingServerStore, claim: &Claim) -> Self {
        let notify = Arc::new(Notify::new());
        Self {
            blocking,
            claim: claim.clone(),
            task: Mutex::new(Self::start(blocking, claim, &notify)),
            notify,
            is_cancelled: AtomicBool::new(false),
        }
    }

    fn start(blocking: &BlockingServerStore, claim: &Claim, notify: &Arc<Notify>) -> LossTask {
        let notify = Arc::clone(notify);
        LossTask::start(blocking, claim, move || notify.notify_one())
    }
}

impl LossWatch for BlockingLossWatch<'_> {
    fn wait(&self, at_most: Duration) {
        if self.is_cancelled.load(Ordering::SeqCst) {
            return;
        }
        let notify = Arc::clone(&self.notify);
        let waited = self.blocking.operation(|_| async move {
            let _ = tokio::time::timeout(at_most, notify.notified()).await;
            Ok(())
        });
        if waited.is_err() {
            thread::sleep(at_most);
        }
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.0.is_finished() {
            *task = Self::start(self.blocking, &self.claim, &self.notify);
        }
    }

    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }
}

/// Signals through a descriptor that a lease may be lost.
#[cfg(unix)]
struct ServerLossSignal<'a> {
    blocking: &'a BlockingServerStore,
    claim: Claim,
    receiver: UnixStream,
    sender: UnixStream,
    task: Mutex<Option<LossTask>>,
}

#[cfg(unix)]
impl ServerLossSignal<'_> {
    fn start(&self) -> io::Result<()> {
        let mut sender = self.sender.try_clone()?;
        let task = LossTask::start(self.blocking, &self.claim, move || {
            // If the buffer is full, it holds a byte already, which is enough.
            let _ = sender.write(&[1]);
        });
        *self.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        Ok(())
    }
}

#[cfg(unix)]
impl LossSignal for ServerLossSignal<'_> {
    /// Returns whether the lease is lost, and resets the descriptor.
    fn is_lost(&self) -> bool {
        let mut bytes = [0; 16];
        let mut is_notified = false;
        while matches!((&self.receiver).read(&mut bytes), Ok(1..)) {
            is_notified = true;
        }
        if !is_notified {
            return false;
        }
        // A task that has notified has ended. If no new one can be started, the lease is only polled.
        let _ = self.start();
        !self.blocking.holds(&self.claim, None).unwrap_or(true)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.receiver.as_fd())
    }
}

/// A thread that runs a tokio runtime.
#[derive(Debug)]
struct RuntimeThread {
    handle: Handle,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    process: u32,
}

impl RuntimeThread {
    fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("verrou-server".to_owned())
            .spawn(move || {
                let _ = runtime.block_on(ended);
                // A name lookup in its thread pool may take long; do not wait for it.
                runtime.shutdown_background();
            })?;
        Ok(Self {
            handle,
            end: Some(end),
            thread: Some(thread),
            process: process::this(),
        })
    }

    /// Runs `task` in the thread and returns its result, or `None` if the thread has ended.
    fn run<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Option<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.handle.spawn(async move {
            let _ = sender.send(task.await);
        });
        receiver.recv().ok()
    }
}

impl Drop for RuntimeThread {
    fn drop(&mut self) {
        // A forked child has no such thread, so there is nothing to signal or to join.
        if self.process != process::this() {
            mem::forget((self.end.take(), self.thread.take()));
            return;
        }
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
