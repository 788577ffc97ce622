//! The waits of a client of `verrou serve`: one thread waits for all claims, and notifies the client when one of them may
//! be granted.

use std::collections::HashMap;
use std::io;
use std::thread::{self, Scope};
use std::time::Duration;

use futures_channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, Either, FutureExt as _, select};
use verrou::{AsyncWaiter, Claim, Name, Owner};
use verrou_host::AnyStore;

/// The longest time between two notifications of a claim, in case the store's notification was lost.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The waits of all claims. Dropping it leaves the wait queues.
pub(crate) struct Notifier<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    store: &'env AnyStore,
    waits: HashMap<(Name, Owner), UnboundedSender<Attempted>>,
    /// The tasks of the thread, once it has been started.
    tasks: Option<UnboundedSender<BoxFuture<'env, ()>>>,
}

/// The reply to an attempt to acquire the lock.
enum Attempted {
    Granted,
    Refused,
}

impl<'scope, 'env> Notifier<'scope, 'env> {
    pub(crate) fn new(scope: &'scope Scope<'scope, 'env>, store: &'env AnyStore) -> Self {
        Self {
            scope,
            store,
            waits: HashMap::new(),
            tasks: None,
        }
    }

    /// Adds `claim` to the wait queue, and calls `notify` when it may be granted, and then again after each attempt that
    /// was refused. Returns false if the store has no wait queue. A claim that is in the queue goes on waiting, as after
    /// an attempt.
    pub(crate) fn add(
        &mut self,
        claim: &Claim,
        notify: impl Fn() + Send + 'env,
    ) -> io::Result<bool> {
        let key = (claim.name.clone(), claim.owner);
        if self.waits.contains_key(&key) {
            self.attempted(claim, false);
            return Ok(true);
        }
        let Some(waiter) = self.store.async_waiter(claim) else {
            return Ok(false);
        };
        let (sender, attempts) = unbounded();
        let task = wait(waiter, attempts, notify).boxed();
        // The thread runs until this value is dropped.
        let _ = self.tasks()?.unbounded_send(task);
        self.waits.insert(key, sender);
        Ok(true)
    }

    /// Records the reply to an attempt of `claim`: a claim that was refused goes on waiting.
    pub(crate) fn attempted(&mut self, claim: &Claim, is_granted: bool) {
        let key = (claim.name.clone(), claim.owner);
        if is_granted {
            if let Some(wait) = self.waits.remove(&key) {
                let _ = wait.unbounded_send(Attempted::Granted);
            }
        } else if let Some(wait) = self.waits.get(&key) {
            let _ = wait.unbounded_send(Attempted::Refused);
        }
    }

    /// Removes `claim` from the wait queue.
    pub(crate) fn remove(&mut self, claim: &Claim) {
        self.waits.remove(&(claim.name.clone(), claim.owner));
    }

    /// Returns the tasks of the thread, which is started by the first call.
    fn tasks(&mut self) -> io::Result<&UnboundedSender<BoxFuture<'env, ()>>> {
        if self.tasks.is_none() {
            let (sender, tasks) = unbounded();
            let thread = thread::Builder::new().name("verrou-waits".to_owned());
            thread.spawn_scoped(self.scope, || {
                pollster::block_on(tasks.for_each_concurrent(None, |task| task));
            })?;
            self.tasks = Some(sender);
        }
        self.tasks.as_ref().ok_or(io::ErrorKind::Other.into())
    }
}

/// Calls `notify` when the claim of `waiter` may be granted, until an attempt is granted or the sender of `attempts` is
/// dropped.
async fn wait(
    mut waiter: Box<dyn AsyncWaiter + '_>,
    mut attempts: UnboundedReceiver<Attempted>,
    notify: impl Fn() + Send,
) {
    loop {
        let attempted = match select(waiter.wait(LONGEST_WAIT), attempts.next()).await {
            Either::Left(_) => None,
            Either::Right((attempted, _)) => Some(attempted),
        };
        let attempted = if let Some(attempted) = attempted {
            attempted
        } else {
            notify();
            attempts.next().await
        };
        match attempted {
            Some(Attempted::Refused) => {}
            Some(Attempted::Granted) => return waiter.granted(),
            None => return,
        }
    }
}
