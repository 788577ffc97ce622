//! The heartbeat that keeps the tickets of this process's waiters alive on the server.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;
use verrou::Claim;

use crate::store::WAITER_TIMEOUT;
use crate::tickets::Tickets;

/// The tickets of this process's waiters, which are renewed as long as they last.
#[derive(Debug, Default)]
pub(crate) struct QueueHeartbeat(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tickets: Tickets<Claim>,
    /// Whether [`QueueHeartbeat::run`] runs.
    is_running: bool,
}

impl QueueHeartbeat {
    /// Adds the ticket of `claim`, which is renewed until the result is dropped. Calls `start` if
    /// [`run`](Self::run) must be started.
    pub(crate) fn add(&self, claim: &Claim, start: impl FnOnce()) -> Arc<Claim> {
        let mut state = self.lock();
        let ticket = state.tickets.add(claim.clone());
        if !mem::replace(&mut state.is_running, true) {
            start();
        }
        ticket
    }

    /// Calls `renew` for each ticket, three times within its lifetime on the server, until there are no tickets.
    pub(crate) fn run<Renew, Renewed>(
        self: &Arc<Self>,
        renew: Renew,
    ) -> impl Future<Output = ()> + Send + use<Renew, Renewed>
    where
        Renew: Fn(Arc<Claim>) -> Renewed + Send,
        Renewed: Future<Output = ()> + Send,
    {
        let heartbeat = Arc::downgrade(self);
        async move {
            loop {
                sleep(WAITER_TIMEOUT / 3).await;
                let Some(tickets) = heartbeat.upgrade().and_then(|heartbeat| heartbeat.all())
                else {
                    return;
                };
                for ticket in tickets {
                    renew(ticket).await;
                }
            }
        }
    }

    /// Returns all tickets. If there are none, returns `None` and records that [`run`](Self::run) has ended.
    fn all(&self) -> Option<Vec<Arc<Claim>>> {
        let mut state = self.lock();
        let tickets: Vec<_> = state.tickets.all().collect();
        state.is_running = !tickets.is_empty();
        state.is_running.then_some(tickets)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
