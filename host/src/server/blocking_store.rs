//! A blocking store on a server: a separate thread serves its connections.

use std::collections::HashMap;
use std::fmt;
use std::io;
#[cfg(unix)]
use std::io::{Read, Write};
#[cfg(unix)]
use std::os::fd::{AsFd, BorrowedFd};
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use tokio::runtime::{self, Handle};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Owner, Renewed, Reply, Store, StoreError,
    Waited,
};

use super::{ServerError, ServerStore, ServerUrl};
use crate::process::{self, PerProcess};
use crate::store::{Listed, StoreOptions};

/// A [`ServerStore`] for blocking programs.
///
/// One thread serves its connections, however many threads use the store. A forked child does not have
/// that thread; it must open a store of its own.
pub struct Driven {
    store: Arc<ServerStore>,
    runtime: RuntimeThread,
    process: u32,
    /// The tasks that wait for the loss of a lease, by owner.
    losses: PerProcess<Mutex<HashMap<Owner, LossWatch>>>,
    /// The last claim that each owner waited with, until the lock is granted or the owner stops waiting.
    waiting: PerProcess<Mutex<HashMap<Owner, Claim>>>,
}

/// A task that waits for the loss of one lease.
#[derive(Debug)]
struct LossWatch {
    notify: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for LossWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Driven {
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
            .run(async move { ServerStore::connect(&asked, &options).await })
            .ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        Ok(Self {
            store: Arc::new(connected?),
            runtime,
            process: process::this(),
            losses: PerProcess::new(),
            waiting: PerProcess::new(),
        })
    }

    /// Returns the names that are held now, and their holders.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] if the server does not answer, or refuses the request.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let store = Arc::clone(&self.store);
        self.operation(async move { store.list().await })
    }

    /// Waits until `name` is free, or the server does not answer, but at most `at_most`. If an owner is
    /// queued here for `name`, its notification ends the wait; otherwise the store is polled.
    pub(crate) fn watch(&self, name: &Name, at_most: Duration) {
        const LOOK: Duration = Duration::from_millis(100);

        let queued = self
            .waiting()
            .values()
            .find(|claim| claim.name == *name)
            .cloned();
        if let Some(claim) = queued {
            self.wait_in_queue(claim, at_most);
            return;
        }
        let began = std::time::Instant::now();
        while let Ok(Some(holder)) = self.inspect(name) {
            let left = at_most.saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            let pause = LOOK.min(left).min(holder.remaining.unwrap_or(LOOK));
            thread::sleep(pause.max(Duration::from_millis(1)));
        }
    }

    fn wait_in_queue(&self, claim: Claim, at_most: Duration) -> Waited {
        let store = Arc::clone(&self.store);
        let waited = self.operation(async move { Ok(store.wait_in_queue(&claim, at_most).await?) });
        match waited {
            Ok(()) => Waited::Done,
            Err(_) => Waited::Unable,
        }
    }

    /// Returns a watch whose descriptor becomes readable when the lease of `claim` may be lost.
    #[cfg(unix)]
    pub(crate) fn loss_watch(&self, claim: &Claim) -> io::Result<ServerWatch<'_>> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        let watch = ServerWatch {
            driven: self,
            claim: claim.clone(),
            receiver,
            sender,
            task: Mutex::default(),
        };
        watch.start()?;
        Ok(watch)
    }

    /// Returns whether `claim` is still recorded, as far as can be determined.
    fn may_hold(&self, claim: &Claim) -> bool {
        self.holds(claim, None).unwrap_or(true)
    }

    /// Runs `operation` in the thread that serves the connections.
    fn operation<T: Send + 'static>(
        &self,
        operation: impl Future<Output = Result<T, StoreError>> + Send + 'static,
    ) -> Result<T, StoreError> {
        if self.process != process::this() {
            return Err(StoreError::permanent(
                "this store was opened before this process was forked; open one in the child",
            ));
        }
        let ended = || StoreError::permanent("the thread that serves this store has ended");
        self.runtime.run(operation).ok_or_else(ended)?
    }

    fn losses(&self) -> MutexGuard<'_, HashMap<Owner, LossWatch>> {
        self.losses.lock()
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<Owner, Claim>> {
        self.waiting.lock()
    }
}

impl Store for Driven {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let (store, asked) = (Arc::clone(&self.store), claim.clone());
        let reply = self.operation(async move { store.acquire(&asked).await });
        if reply.as_ref().is_ok_and(|reply| reply.is_granted()) {
            self.waiting().remove(&claim.owner);
        }
        reply
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let (store, claim) = (Arc::clone(&self.store), claim.clone());
        self.operation(async move { store.extend(&claim).await })
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let (store, claim) = (Arc::clone(&self.store), claim.clone());
        self.operation(async move { store.renew(&claim, fence).await })
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.waiting().remove(&claim.owner);
        let (store, claim) = (Arc::clone(&self.store), claim.clone());
        self.operation(async move { store.release(&claim).await })
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        let (store, name) = (Arc::clone(&self.store), name.clone());
        self.operation(async move { store.evict(&name, only).await })
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let (store, name) = (Arc::clone(&self.store), name.clone());
        self.operation(async move { store.inspect(&name).await })
    }

    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        let (store, claim) = (Arc::clone(&self.store), claim.clone());
        self.operation(async move { store.holds(&claim, fence).await })
    }

    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.waiting().insert(claim.owner, claim.clone());
        self.wait_in_queue(claim.clone(), at_most)
    }

    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        if self.process != process::this() {
            return Waited::Unable;
        }
        let notify = {
            let mut losses = self.losses();
            // A task that has notified of a loss has ended.
            if losses
                .get(&claim.owner)
                .is_some_and(|loss| loss.task.is_finished())
                && let Some(loss) = losses.remove(&claim.owner)
                && pin!(loss.notify.notified()).enable()
            {
                return Waited::Done;
            }
            let loss = losses.entry(claim.owner).or_insert_with(|| {
                let notify = Arc::new(Notify::new());
                let (store, claim) = (Arc::clone(&self.store), claim.clone());
                let notified = Arc::clone(&notify);
                let task = self.runtime.handle.spawn(async move {
                    store.lost(&claim).await;
                    notified.notify_one();
                });
                LossWatch { notify, task }
            });
            Arc::clone(&loss.notify)
        };
        let waited = self.operation(async move {
            let _ = tokio::time::timeout(at_most, notify.notified()).await;
            Ok(())
        });
        match waited {
            Ok(()) => Waited::Done,
            Err(_) => Waited::Unable,
        }
    }

    fn give_up(&self, claim: &Claim) {
        self.waiting().remove(&claim.owner);
        if let Some(loss) = self.losses().remove(&claim.owner) {
            loss.notify.notify_one();
        }
        let (store, claim) = (Arc::clone(&self.store), claim.clone());
        // After an error, the ticket stays until other waiters skip it.
        let _ = self.operation(async move {
            store.leave(&claim).await;
            Ok(())
        });
    }

    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
}

impl fmt::Debug for Driven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Driven").field(&self.store).finish()
    }
}

/// Signals through a descriptor that a lease may be lost.
#[cfg(unix)]
#[derive(Debug)]
pub(crate) struct ServerWatch<'a> {
    driven: &'a Driven,
    claim: Claim,
    receiver: UnixStream,
    sender: UnixStream,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[cfg(unix)]
impl ServerWatch<'_> {
    fn start(&self) -> io::Result<()> {
        let mut sender = self.sender.try_clone()?;
        let (store, claim) = (Arc::clone(&self.driven.store), self.claim.clone());
        let task = self.driven.runtime.handle.spawn(async move {
            store.lost(&claim).await;
            // If the buffer is full, it holds a byte already, which is enough.
            let _ = sender.write(&[1]);
        });
        *self.task() = Some(task);
        Ok(())
    }

    /// Returns whether the lease is lost, and resets the descriptor.
    pub(crate) fn is_lost(&self) -> bool {
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
        !self.driven.may_hold(&self.claim)
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }

    fn task(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(unix)]
impl Drop for ServerWatch<'_> {
    fn drop(&mut self) {
        if let Some(task) = &*self.task() {
            task.abort();
        }
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
            std::mem::forget((self.end.take(), self.thread.take()));
            return;
        }
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
