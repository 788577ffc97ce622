//! The session with the server: the state that the store and its task share, and their requests.

use std::sync::Mutex;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::client::messages::{Txn, TxnResponse};
use super::client::{Client, ClientError};
use super::error::{failed, unreached};
use super::queue::Presence;
use crate::error::ServerError;
use crate::tickets::Tickets;

/// The state that the store shares with the task that renews the tickets.
pub(super) struct EtcdShared {
    pub(super) client: Client,
    pub(super) members: usize,
    pub(super) server: String,
    pub(super) timeout: Duration,
    pub(super) runtime: Handle,
    /// The keys of the tickets of this process's waiters.
    pub(super) tickets: Mutex<Tickets<String>>,
    /// The lease of all tickets.
    pub(super) presence: tokio::sync::Mutex<Option<Presence>>,
    /// Notified when the lease of all tickets has ended, or is to be replaced.
    pub(super) lease_replaced: Notify,
}

impl EtcdShared {
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        step: impl Future<Output = Result<T, ServerError>>,
    ) -> Result<T, ServerError> {
        timeout(limit, step).await.unwrap_or_else(|_| {
            Err(ServerError::Timeout {
                server: self.server.clone(),
                after: limit,
            })
        })
    }

    pub(super) async fn asked<T, A: Future<Output = Result<T, ClientError>>>(
        &self,
        ask: impl Fn(Client) -> A,
    ) -> Result<T, ServerError> {
        let answered = of_any(self.members, &self.client, ask).await;
        answered.map_err(|err| failed(&self.server, err))
    }

    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnResponse, ServerError> {
        self.asked(|client| {
            let txn = txn.clone();
            async move { client.txn(txn).await }
        })
        .await
    }

    pub(super) async fn grant(&self, seconds: i64) -> Result<i64, ServerError> {
        let granted = self.asked(|client| async move { client.lease_grant(seconds).await });
        granted.await
    }

    /// Keeps a lease alive; returns whether the lease still exists.
    pub(super) async fn keep_alive(&self, lease: i64) -> Result<bool, ServerError> {
        self.asked(|client| async move { client.lease_keep_alive(lease).await })
            .await
    }

    /// Revokes a lease that is no longer needed. If that fails, the lease expires.
    pub(super) async fn revoke(&self, lease: i64) {
        if lease != 0 {
            let revoked = self.asked(|client| async move { client.lease_revoke(lease).await });
            let _ = timeout(self.timeout / 4, revoked).await;
        }
    }

    /// Commits a transaction that attaches a key to `lease`. Returns `None` if another user of etcd has revoked
    /// the lease; a new one is to be used then.
    pub(super) async fn attach(
        &self,
        lease: i64,
        txn: Txn,
    ) -> Result<Option<TxnResponse>, ServerError> {
        match self.txn(txn).await {
            Err(_) if lease != 0 && self.is_gone(lease).await => Ok(None),
            committed => committed.map(Some),
        }
    }

    /// Returns whether the new lease `lease` is gone. etcd lists all leases to every user, and every user can
    /// revoke a lease that has no key yet.
    pub(super) async fn is_gone(&self, lease: i64) -> bool {
        let asked =
            self.asked(|client| async move { client.lease_time_to_live(lease, false).await });
        asked.await.is_ok_and(|left| left.ttl <= 0)
    }
}

/// Returns the answer of a member that can be reached. A failed connection is retried, because the request has
/// not reached any member then.
pub(super) async fn of_any<C: Clone, T, A: Future<Output = Result<T, ClientError>>>(
    members: usize,
    client: &C,
    ask: impl Fn(C) -> A,
) -> Result<T, ClientError> {
    // The channel selects members at random.
    const DRAWS: usize = 16;

    let mut draws = if members > 1 { DRAWS * members } else { 1 };
    loop {
        let answer = ask(client.clone()).await;
        draws -= 1;
        match answer {
            Err(err) if draws > 0 && unreached(&err).is_some() => tokio::task::yield_now().await,
            answer => return answer,
        }
    }
}
