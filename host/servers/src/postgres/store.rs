//! The operations of the store, and the connections that they use.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Object, Pool, PoolError};
use percent_encoding::percent_decode_str;
use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    StoreError, async_trait,
};
use verrou_machine::Listed;

use super::connect::Settings;
use super::error::{failed, not_connected, setup};
use super::queue::PostgresWaiter;
use super::statements::{Statements, holder, micros, text};
use crate::cancelled_acquire::CancelledRequests;
use crate::error::ServerError;
use crate::notifications::Notifications;
use crate::queue_heartbeat::QueueHeartbeat;
use crate::store::{
    CAPABILITIES, RESERVATION, ServerStore, ServerWaiter, loss_watch, record_ttl, request_timeout,
    waiter,
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
    /// Bounds the connections of waiters that were not notified: one connection is left to holders and to
    /// notified waiters, however many others wait.
    pub(super) unnotified: Semaphore,
    pub(super) listener: AbortHandle,
    pub(super) settings: Arc<Settings>,
    pub(super) cancelled: CancelledRequests,
    pub(super) runtime: Handle,
}

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
    pub(super) async fn row(
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

    pub(super) async fn asked<T: for<'a> tokio_postgres::types::FromSql<'a>>(
        &self,
        statement: &str,
        parameters: &[&(dyn ToSql + Sync)],
        limit: Duration,
    ) -> Result<T, ServerError> {
        let row = self.row(statement, parameters, limit).await?;
        row.try_get(0).map_err(|err| failed(&self.server, err))
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

    fn queue_waiter(&self, claim: &Claim) -> Box<dyn ServerWaiter> {
        Box::new(PostgresWaiter::new(&self.0, claim))
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
        let subscription = shared.notifications.subscribe(claim.owner);
        let turn = shared.take_turn(&subscription, limit).await?;
        // If this request is refused, the waiter waits for the next notification.
        subscription.set_targeted(false);
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
        if row.is_err() && turn.is_none() {
            // The lock is still reserved for this waiter.
            subscription.set_targeted(true);
        }
        drop(turn);
        let row = row?;
        let failed = |err| failed(&shared.server, err);
        let number = row.try_get::<_, Option<i64>>("number").map_err(failed)?;
        let number = number.and_then(|number| u64::try_from(number).ok());
        if row.try_get("granted").map_err(failed)? {
            let fence = number.and_then(Fence::new);
            return Ok(Acquired::Granted { fence });
        }
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
