//! The wait queue: the tickets of waiters, and their renewal.

use std::sync::Arc;
use std::time::Duration;

use ::redis::Value;
use tokio::time::timeout;
use verrou::{Claim, async_trait};

use super::RedisShared;
use super::scripts::{LEAVE, WAIT, in_queue, of_owner, on_keys};
use crate::error::ServerError;
use crate::notifications::Subscription;
use crate::store::ServerWaiter;

/// The waiter of one claim.
pub(super) struct RedisWaiter {
    shared: Arc<RedisShared>,
    claim: Claim,
    subscription: Subscription,
    /// The ticket, which the heartbeat renews.
    ticket: Option<Arc<Claim>>,
}

impl RedisWaiter {
    pub(super) fn new(shared: &Arc<RedisShared>, claim: &Claim) -> Self {
        Self {
            shared: Arc::clone(shared),
            claim: claim.clone(),
            subscription: shared.notifications.subscribe(claim.owner),
            ticket: None,
        }
    }

    /// Deletes the ticket on the server, if there is one.
    fn left(&mut self) -> Option<impl Future<Output = ()> + Send + use<>> {
        drop(self.ticket.take()?);
        let (shared, claim) = (Arc::clone(&self.shared), self.claim.clone());
        Some(async move {
            let leave = of_owner(&LEAVE, &shared.key(&claim.name), claim.owner);
            let mut connection = shared.connection.clone();
            let asked = leave.invoke_async::<Value>(&mut connection);
            // After an error, other waiters skip the ticket when its reservation or its deadline has passed.
            let _ = shared.answered(shared.timeout, asked).await;
        })
    }
}

#[async_trait]
impl ServerWaiter for RedisWaiter {
    async fn wait(&mut self, at_most: Duration) -> Result<(), ServerError> {
        let (shared, claim) = (&self.shared, &self.claim);
        shared.subscribe().await?;
        // Before the request: if this future is dropped before the answer, dropping the waiter deletes the ticket.
        self.ticket.get_or_insert_with(|| shared.ticket(claim));
        let is_free: bool = shared
            .run(&WAIT, &claim.name, shared.timeout, |script| {
                in_queue(script, &claim.owner, &shared.channel, false);
            })
            .await?;
        if !is_free {
            let _ = timeout(at_most, self.subscription.notified()).await;
        }
        Ok(())
    }

    async fn leave(&mut self) {
        if let Some(left) = self.left() {
            left.await;
        }
    }

    fn granted(&mut self) {
        self.ticket = None;
    }
}

impl Drop for RedisWaiter {
    fn drop(&mut self) {
        if let Some(left) = self.left() {
            self.shared.runtime.spawn(left);
        }
    }
}

impl RedisShared {
    /// Returns a ticket of `claim`, which is renewed until it is dropped.
    fn ticket(self: &Arc<Self>, claim: &Claim) -> Arc<Claim> {
        let shared = Arc::downgrade(self);
        self.heartbeat.add(claim, || {
            self.runtime.spawn(self.heartbeat.run(move |ticket| {
                let shared = shared.upgrade();
                async move {
                    let Some(shared) = shared else { return };
                    let mut script = on_keys(&WAIT, &shared.key(&ticket.name));
                    in_queue(&mut script, &ticket.owner, &shared.channel, true);
                    let mut connection = shared.connection.clone();
                    // After an error, the next heartbeat comes before the ticket's deadline.
                    if let Ok(true) = script.invoke_async(&mut connection).await {
                        shared.notifications.notify(&ticket.owner);
                    }
                }
            }));
        })
    }
}
