//! Who in this process has a place among those who wait on the server.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;
use verrou::{Claim, Name, Owner};

use super::store::WAITER_TIMEOUT;

/// The places of those who wait here, which are kept as long as they do.
#[derive(Debug, Default)]
pub(crate) struct QueueHeartbeat(Mutex<Waiters>);

#[derive(Debug, Default)]
struct Waiters {
    names: HashMap<Owner, Name>,
    /// Whether [`QueueHeartbeat::run`] sees to it.
    is_running: bool,
}

impl QueueHeartbeat {
    /// Adds that of `claim`'s owner: whether [`run`](Self::run) is to be started.
    #[must_use]
    pub(crate) fn add(&self, claim: &Claim) -> bool {
        let mut waiters = self.lock();
        waiters.names.insert(claim.owner, claim.name.clone());
        !mem::replace(&mut waiters.is_running, true)
    }

    /// Removes that of `owner`, if it has one.
    pub(crate) fn remove(&self, owner: &Owner) -> bool {
        self.lock().names.remove(owner).is_some()
    }

    /// Says to the server of each of them that its owner is there, before it believes that no more, until
    /// there is none.
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

    /// All of them; without any, nobody keeps them any more.
    fn all(&self) -> Option<HashMap<Owner, Name>> {
        let mut waiters = self.lock();
        waiters.is_running = !waiters.names.is_empty();
        waiters.is_running.then(|| waiters.names.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Waiters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
