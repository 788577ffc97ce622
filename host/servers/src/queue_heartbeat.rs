//! The heartbeat that keeps the tickets of this process's waiters alive on the server.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;
use verrou::{Claim, Name, Owner};

use crate::store::WAITER_TIMEOUT;

/// The waiters of this process, whose tickets are renewed as long as they wait.
#[derive(Debug, Default)]
pub(crate) struct QueueHeartbeat(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    names: HashMap<Owner, Name>,
    /// Whether [`QueueHeartbeat::run`] runs.
    is_running: bool,
}

impl QueueHeartbeat {
    /// Adds the owner of `claim`. Returns whether [`run`](Self::run) must be started.
    #[must_use]
    pub(crate) fn add(&self, claim: &Claim) -> bool {
        let mut waiters = self.lock();
        waiters.names.insert(claim.owner, claim.name.clone());
        !mem::replace(&mut waiters.is_running, true)
    }

    /// Removes `owner`. Returns whether it was a waiter.
    pub(crate) fn remove(&self, owner: &Owner) -> bool {
        self.lock().names.remove(owner).is_some()
    }

    /// Calls `renew` for each waiter, three times within the lifetime of a ticket, until there are no waiters.
    pub(crate) fn run<Renew, Renewed>(
        self: &Arc<Self>,
        renew: Renew,
    ) -> impl Future<Output = ()> + Send + use<Renew, Renewed>
    where
        Renew: Fn(Owner, Name) -> Renewed + Send,
        Renewed: Future<Output = ()> + Send,
    {
        let heartbeat = Arc::downgrade(self);
        async move {
            loop {
                sleep(WAITER_TIMEOUT / 3).await;
                let Some(waiters) = heartbeat.upgrade().and_then(|heartbeat| heartbeat.all())
                else {
                    return;
                };
                for (owner, name) in waiters {
                    renew(owner, name).await;
                }
            }
        }
    }

    /// Returns all waiters. If there are none, returns `None` and records that [`run`](Self::run) has ended.
    fn all(&self) -> Option<HashMap<Owner, Name>> {
        let mut waiters = self.lock();
        waiters.is_running = !waiters.names.is_empty();
        waiters.is_running.then(|| waiters.names.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
