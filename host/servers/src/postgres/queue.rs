//! The wait queue: the tickets of waiters, their renewal, and the order in which waiters use the connections.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::SemaphorePermit;
use tokio::time::timeout;
use verrou::{Claim, async_trait};

use super::statements::{micros, text};
use super::store::PostgresShared;
use crate::error::ServerError;
use crate::notifications::Subscription;
use crate::store::{RESERVATION, ServerWaiter, WAITER_TIMEOUT};

/// The waiter of one claim.
pub(super) struct PostgresWaiter {
    shared: Arc<PostgresShared>,
    claim: Claim,
    subscription: Subscription,
    /// The ticket, which the heartbeat renews.
    ticket: Option<Arc<Claim>>,
}

impl PostgresWaiter {
    pub(super) fn new(shared: &Arc<PostgresShared>, claim: &Claim) -> Self {
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
            // After an error, other waiters skip the ticket when its reservation or its deadline has passed.
            let _ = shared.leave(&claim).await;
        })
    }
}

#[async_trait]
impl ServerWaiter for PostgresWaiter {
    async fn wait(&mut self, at_most: Duration) -> Result<(), ServerError> {
        let (shared, claim) = (&self.shared, &self.claim);
        let turn = shared.take_turn(&self.subscription, shared.timeout).await?;
        let Some(turn) = turn else {
            return Ok(());
        };
        // Before the request: if this future is dropped before the answer, dropping the waiter deletes the ticket.
        self.ticket.get_or_insert_with(|| shared.ticket(claim));
        let is_free = shared.wait(claim, false).await?;
        drop(turn);
        if is_free {
            self.subscription.set_targeted(true);
        } else {
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

impl Drop for PostgresWaiter {
    fn drop(&mut self) {
        if let Some(left) = self.left() {
            self.shared.runtime.spawn(left);
        }
    }
}

impl PostgresShared {
    /// Makes a ticket, or with `keep` only renews an existing one. Returns whether the owner of `claim` is to try the
    /// lock now.
    async fn wait(&self, claim: &Claim, keep: bool) -> Result<bool, ServerError> {
        self.asked(
            &self.statements.wait,
            &[
                &text(&claim.name),
                &claim.owner.to_string(),
                &micros(WAITER_TIMEOUT),
                &self.channel,
                &keep,
            ],
            self.timeout,
        )
        .await
    }

    async fn leave(&self, claim: &Claim) -> Result<(), ServerError> {
        let owner = claim.owner.to_string();
        let reservation = micros(RESERVATION);
        self.row(
            &self.statements.leave,
            &[&text(&claim.name), &owner, &reservation],
            self.timeout,
        )
        .await
        .map(drop)
    }

    /// Returns a ticket of `claim`, which is renewed until it is dropped.
    fn ticket(self: &Arc<Self>, claim: &Claim) -> Arc<Claim> {
        let shared = Arc::downgrade(self);
        self.heartbeat.add(claim, || {
            self.runtime.spawn(self.heartbeat.run(move |ticket| {
                let shared = shared.upgrade();
                async move {
                    let Some(shared) = shared else { return };
                    // After an error, the next heartbeat comes before the ticket's deadline.
                    if let Ok(true) = shared.wait(&ticket, true).await {
                        shared.notifications.notify(&ticket.owner);
                    }
                }
            }));
        })
    }

    /// Waits until the owner of `subscription` may use a connection: at once if it was notified; otherwise until one of
    /// the permits for waiters that were not notified is free.
    pub(super) async fn take_turn(
        &self,
        subscription: &Subscription,
        limit: Duration,
    ) -> Result<Option<SemaphorePermit<'_>>, ServerError> {
        let is_notified = async {
            while !subscription.is_targeted() {
                subscription.notified().await;
            }
        };
        tokio::select! {
            biased;
            () = is_notified => Ok(None),
            turn = timeout(limit, self.unnotified.acquire()) => match turn {
                Ok(turn) => Ok(turn.ok()),
                Err(_) => Err(ServerError::Timeout {
                    server: self.server.clone(),
                    after: limit,
                }),
            },
        }
    }
}
