//! The operations of the store, the connections that they use, and the waiters.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Object, Pool, PoolError};
use percent_encoding::percent_decode_str;
use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Owner, StoreError, async_trait,
};
use verrou_machine::Listed;

use super::connect::Settings;
use super::error::{failed, not_connected, setup};
use super::statements::{Statements, holder, micros, text};
use crate::cancelled_acquire::CancelledRequests;
use crate::error::ServerError;
use crate::notifications::Notifications;
use crate::queue_heartbeat::QueueHeartbeat;
use crate::store::{
    CAPABILITIES, RESERVATION, ServerStore, WAITER_TIMEOUT, loss_watch, record_ttl,
    request_timeout, waiter,
};

/// Leases in a `PostgreSQL` database, version 12 or later.
///
/// Its operations run in the tokio runtime in which it was [connected](Self::connect). Four connections
/// serve all operations and all waiters. `host/servers/POSTGRES.md` lists its guarantees.
pub struct PostgresStore(pub(super) Arc<PostgresShared>);

pub(super) struct PostgresShared {
    pub(super) pool: Pool,
    pub(super) server: String,
    pub(super) statements: Statements,
    pub(super) timeout: Duration,
    pub(super) about: String,
    /// The channel on which this process's waiters and holders are notified.
    pub(super) channel: String,
    pub(super) notifications: Arc<Notifications>,
    pub(super) heartbeat: Arc<QueueHeartbeat>,
    /// The waiters that were notified to try the lock.
    pub(super) notified: Mutex<HashSet<Owner>>,
    /// Bounds the connections of waiters that were not notified: one connection is left to holders and to
    /// notified waiters, however many others wait.
    pub(super) unnotified: Semaphore,
    pub(super) listener: AbortHandle,
    pub(super) settings: Arc<Settings>,
    pub(super) cancelled: CancelledRequests,
    pub(super) runtime: Handle,
}

impl PostgresStore {}

impl PostgresShared {
    async fn rows(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<Vec<Row>, ServerError> {
        let mut client = ClientGuard {
            client: None,
            shared: self,
        };
        let asked = async {
            let client = client
                .client
                .insert(self.pool.get().await.map_err(|err| self.no_client(err))?);
            let statement = client.prepare_cached(statement).await;
            let statement = statement.map_err(|err| failed(&self.server, err))?;
            let rows = client.query(&statement, parameters).await;
            rows.map_err(|err| failed(&self.server, err))
        };
        let answer = timeout(limit, asked).await;
        if answer.is_ok() {
            drop(client.client.take());
        }
        answer.unwrap_or_else(|_| {
            Err(ServerError::Timeout {
                server: self.server.clone(),
                after: limit,
            })
        })
    }

    /// Returns the one row that a function returns.
    async fn row(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<Row, ServerError> {
        let rows = self.rows(statement, parameters, limit).await?;
        rows.into_iter().next().ok_or_else(|| {
            setup(
                &self.server,
                "a function of the schema returned no row",
                "recreate the schema with the schema.sql of this version",
            )
        })
    }

    async fn asked<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<T, ServerError> {
        let row = self.row(statement, parameters, limit).await?;
        row.try_get(0).map_err(|err| failed(&self.server, err))
    }

    /// Takes a ticket, or with `keep` only renews an existing one. Returns whether `owner` is to try the lock now.
    async fn wait(&self, owner: &Owner, name: &Name, keep: bool) -> Result<bool, ServerError> {
        self.asked(
            &self.statements.wait,
            &[
                &text(name),
                &owner.to_string(),
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

    /// Renews the ticket of `claim`'s owner until the owner is removed from the heartbeat.
    fn keep_ticket(self: &Arc<Self>, claim: &Claim) {
        if !self.heartbeat.add(claim) {
            return;
        }
        let shared = Arc::downgrade(self);
        self.runtime.spawn(self.heartbeat.run(move |owner, name| {
            let shared = shared.upgrade();
            async move {
                let Some(shared) = shared else {
                    return;
                };
                // After an error, the next heartbeat comes before the ticket's deadline.
                if let Ok(true) = shared.wait(&owner, &name, true).await {
                    shared.notifications.notify(&owner);
                }
            }
        }));
    }

    /// Waits until `owner` may use a connection: at once if it was notified; otherwise until one of the permits for
    /// waiters that were not notified is free.
    async fn take_turn(
        &self,
        owner: Owner,
        limit: Duration,
    ) -> Result<Option<SemaphorePermit<'_>>, ServerError> {
        let subscription = self.notifications.subscribe(owner);
        if self.notified().contains(&owner) {
            return Ok(None);
        }
        let is_notified = async { while !subscription.notified().await {} };
        tokio::select! {
            () = is_notified => {
                self.notified().insert(owner);
                Ok(None)
            }
            turn = timeout(limit, self.unnotified.acquire()) => match turn {
                Ok(turn) => Ok(turn.ok()),
                Err(_) => Err(ServerError::Timeout {
                    server: self.server.clone(),
                    after: limit,
                }),
            },
        }
    }

    /// Releases the lock that a dropped request may have acquired.
    fn release_cancelled(self: &Arc<Self>, claim: &Claim) {
        let (shared, claim) = (Arc::clone(self), claim.clone());
        let late = self.timeout;
        self.cancelled.release_later(claim.owner, late, move || {
            let (shared, claim) = (Arc::clone(&shared), claim.clone());
            async move {
                let _ = shared.release(&claim).await;
            }
        });
    }

    async fn release(&self, claim: &Claim) -> Result<bool, ServerError> {
        let owner = claim.owner.to_string();
        let reservation = micros(RESERVATION);
        let done = self
            .asked(
                &self.statements.release,
                &[&text(&claim.name), &owner, &reservation],
                request_timeout(self.timeout, claim),
            )
            .await?;
        Ok(done)
    }

    /// Stops the renewal of the ticket of `owner`. Returns whether it was a waiter.
    fn forget_ticket(&self, owner: &Owner) -> bool {
        self.notified().remove(owner);
        self.heartbeat.remove(owner)
    }

    fn notified(&self) -> MutexGuard<'_, HashSet<Owner>> {
        self.notified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn no_client(&self, err: PoolError) -> ServerError {
        not_connected(&self.server, err)
    }
}

/// The connection of a request in flight.
struct ClientGuard<'a> {
    client: Option<Object>,
    shared: &'a PostgresShared,
}

impl Drop for ClientGuard<'_> {
    /// Cancels the query of a dropped request and closes its connection, so that no other request waits behind it,
    /// neither in the pool nor on the server.
    fn drop(&mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        let (cancel, settings) = (client.cancel_token(), Arc::clone(&self.shared.settings));
        drop(Object::take(client));
        let at_most = self.shared.timeout;
        self.shared.runtime.spawn(async move {
            let _ = timeout(at_most, cancel.cancel_query(settings.tls.clone())).await;
        });
    }
}

impl Drop for PostgresShared {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

#[async_trait]
impl ServerStore for PostgresStore {
    async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let shared = &self.0;
        let rows = shared
            .rows(&shared.statements.list, &[], shared.timeout)
            .await?;
        let listed = rows.iter().filter_map(|row| {
            let name = row.try_get::<_, String>("name").ok()?;
            let name = percent_decode_str(&name).decode_utf8().ok()?;
            Some(Ok((Name::new(&name).ok()?, holder(row)?)))
        });
        Ok(listed.collect())
    }

    async fn wait_in_queue(&self, claim: &Claim, at_most: Duration) -> Result<(), ServerError> {
        let shared = &self.0;
        let subscription = shared.notifications.subscribe(claim.owner);
        let Some(turn) = shared.take_turn(claim.owner, shared.timeout).await? else {
            return Ok(());
        };
        // Before the request: if this future is dropped before the answer, `give_up` deletes the ticket.
        shared.keep_ticket(claim);
        let is_free = shared.wait(&claim.owner, &claim.name, false).await?;
        drop(turn);
        if is_free || timeout(at_most, subscription.notified()).await == Ok(true) {
            shared.notified().insert(claim.owner);
        }
        Ok(())
    }

    async fn leave(&self, claim: &Claim) {
        if self.0.forget_ticket(&claim.owner) {
            // After an error, other waiters skip the ticket when its reservation or its deadline has passed.
            let _ = self.0.leave(claim).await;
        }
    }

    fn start_to_leave(&self, claim: &Claim) {
        if !self.0.forget_ticket(&claim.owner) {
            return;
        }
        let (shared, claim) = (Arc::clone(&self.0), claim.clone());
        self.0
            .runtime
            .spawn(async move { shared.leave(&claim).await });
    }

    async fn lost(&self, claim: &Claim) {
        let subscription = self.0.notifications.subscribe(claim.owner);
        // After an error, the renewal of the lease notices the loss.
        if self.holds(claim, None).await.unwrap_or(true) {
            subscription.notified().await;
        }
    }
}

#[async_trait]
impl AsyncStore for PostgresStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let shared = &self.0;
        shared.cancelled.stop(&claim.owner).await;
        let lasts = record_ttl(claim.ttl).map(micros);
        let ttl = claim.ttl.duration().map(micros);
        let limit = request_timeout(shared.timeout, claim);
        let turn = shared.take_turn(claim.owner, limit).await?;
        let guard = scopeguard::guard((), |()| shared.release_cancelled(claim));
        let row = shared
            .row(
                &shared.statements.acquire,
                &[
                    &text(&claim.name),
                    &claim.owner.to_string(),
                    &lasts,
                    &ttl,
                    &shared.about,
                    &shared.channel,
                    &micros(RESERVATION),
                ],
                limit,
            )
            .await;
        ScopeGuard::into_inner(guard);
        drop(turn);
        let row = row?;
        let failed = |err| failed(&shared.server, err);
        let number = row.try_get::<_, Option<i64>>("number").map_err(failed)?;
        let number = number.and_then(|number| u64::try_from(number).ok());
        if row.try_get("granted").map_err(failed)? {
            shared.forget_ticket(&claim.owner);
            let fence = number.and_then(Fence::new);
            return Ok(Acquired::Granted { fence });
        }
        // It waits for the next notification.
        shared.notified().remove(&claim.owner);
        let remaining = number.map(Duration::from_micros);
        Ok(Acquired::Busy { remaining })
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let shared = &self.0;
        let lasts = record_ttl(claim.ttl).map(micros);
        let ttl = claim.ttl.duration().map(micros);
        let owner = claim.owner.to_string();
        let done = shared
            .asked(
                &shared.statements.extend,
                &[&text(&claim.name), &owner, &lasts, &ttl, &shared.channel],
                request_timeout(shared.timeout, claim),
            )
            .await?;
        Ok(done)
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.0.forget_ticket(&claim.owner);
        let guard = scopeguard::guard((), |()| self.0.release_cancelled(claim));
        let released = self.0.release(claim).await;
        ScopeGuard::into_inner(guard);
        Ok(released?)
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let shared = &self.0;
        let only = match only.map(|only| i64::try_from(only.get())) {
            Some(Ok(only)) => Some(only),
            // This fencing token has never been granted.
            Some(Err(_)) => return Ok(false),
            None => None,
        };
        let reservation = micros(RESERVATION);
        let parameters: [&(dyn ToSql + Sync); 3] = [&text(name), &only, &reservation];
        let done = shared
            .asked(&shared.statements.evict, &parameters, shared.timeout)
            .await?;
        Ok(done)
    }

    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let shared = &self.0;
        let rows = shared
            .rows(&shared.statements.inspect, &[&text(name)], shared.timeout)
            .await?;
        Ok(rows.first().and_then(holder).into_iter().collect())
    }

    async fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let shared = &self.0;
        let rows = shared
            .rows(
                &shared.statements.inspect,
                &[&text(&claim.name)],
                shared.timeout,
            )
            .await?;
        let owner = rows
            .first()
            .and_then(|row| row.try_get::<_, &str>("owner").ok());
        Ok(owner == Some(claim.owner.to_string().as_str()))
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        Some(waiter(self, claim))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        Some(loss_watch(self, claim))
    }

    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("server", &self.0.server)
            .finish_non_exhaustive()
    }
}
