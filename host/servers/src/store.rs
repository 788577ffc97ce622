//! A store on a server of any engine, and the parts that all engines share.

use std::future;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use verrou::{
    AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Process, StoreError, Ttl,
    async_trait,
};
use verrou_machine::{Listed, StoreOptions, process};

use crate::error::ServerError;

/// A store on a server, of any engine: an async store with the operations that its blocking form needs.
#[async_trait]
pub(crate) trait ServerStore: AsyncStore {
    /// Returns the names that are held now, and their holders.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] if the server does not answer, or refuses the request.
    async fn list(&self) -> Result<Vec<Listed>, StoreError>;

    /// Returns the waiter of `claim`.
    fn queue_waiter(&self, claim: &Claim) -> Box<dyn ServerWaiter>;

    /// Waits until the record of the owner of `claim` may have ended.
    async fn lost(&self, claim: &Claim);
}

/// The waiter of one claim in the wait queue on a server. Dropping it starts to delete its ticket.
#[async_trait]
pub(crate) trait ServerWaiter: Send {
    /// Makes a ticket, which `at_most` does not limit, and then waits for a notification for at most `at_most`.
    async fn wait(&mut self, at_most: Duration) -> Result<(), ServerError>;

    /// Deletes the ticket, if there is one.
    async fn leave(&mut self);

    /// Ends the wait because the claim was granted: the ticket ended with the grant.
    fn granted(&mut self);
}

/// The waiter of an async store.
struct AsyncServerWaiter(Box<dyn ServerWaiter>);

#[async_trait]
impl AsyncWaiter for AsyncServerWaiter {
    async fn wait(&mut self, at_most: Duration) {
        if self.0.wait(at_most).await.is_err() {
            // The next operation returns the error.
            future::pending::<()>().await;
        }
    }

    fn granted(mut self: Box<Self>) {
        self.0.granted();
    }
}

/// Returns the waiter of `claim`.
pub(crate) fn waiter<'s>(store: &'s impl ServerStore, claim: &Claim) -> Box<dyn AsyncWaiter + 's> {
    Box::new(AsyncServerWaiter(store.queue_waiter(claim)))
}

/// A watch for the loss of one lease.
struct ServerLossWatch<'a, S: ServerStore> {
    store: &'a S,
    claim: Claim,
}

#[async_trait]
impl<S: ServerStore> AsyncLossWatch for ServerLossWatch<'_, S> {
    async fn wait(&mut self) {
        self.store.lost(&self.claim).await;
    }
}

/// Returns a watch for the loss of the lease of `claim`.
pub(crate) fn loss_watch<'s>(
    store: &'s impl ServerStore,
    claim: &Claim,
) -> Box<dyn AsyncLossWatch + 's> {
    let claim = claim.clone();
    Box::new(ServerLossWatch { store, claim })
}

/// The capabilities of a store on a server: a lease does not end with its client's process, only by expiry.
/// An expired record on a server is deleted, or does not show whether another grant followed, so none is
/// revived.
pub(crate) const CAPABILITIES: Capabilities = {
    let mut capabilities = Capabilities::NONE;
    capabilities.expires = true;
    capabilities.transfers = true;
    capabilities.force_releases = true;
    capabilities.fences = true;
    capabilities
};

/// The hand-off reservation: the time that a released lock is kept for the head waiter.
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) const RESERVATION: Duration = Duration::from_millis(500);

/// The time after a waiter's last heartbeat that its ticket stays valid.
#[cfg(any(feature = "redis", feature = "postgres"))]
pub(crate) const WAITER_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns how long a server keeps a record for a holder with `ttl`.
///
/// The two clocks may differ by one percent, and by two milliseconds because of their resolution: the
/// lease ends at the holder first, then at the server.
pub(crate) fn record_ttl(ttl: Ttl) -> Option<Duration> {
    ttl.duration().map(|ttl| ttl.saturating_add(drift(ttl)))
}

/// Returns by how much longer than `ttl` a record is kept.
pub(crate) fn drift(ttl: Duration) -> Duration {
    ttl / 100 + Duration::from_millis(2)
}

/// Returns how long an operation on `claim` waits for its answer: short enough that the request can be
/// repeated before the lease ends.
pub(crate) fn request_timeout(timeout: Duration, claim: &Claim) -> Duration {
    const SHORTEST: Duration = Duration::from_millis(50);

    claim
        .ttl
        .duration()
        .map_or(timeout, |ttl| timeout.min((ttl / 4).max(SHORTEST)))
}

/// The part of a record that describes the holder's process to people.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct About {
    process: u32,
    host: String,
    command: String,
}

impl About {
    /// Describes this process.
    pub(crate) fn this(options: &StoreOptions) -> Self {
        let process = process::described(options.label.as_deref());
        Self {
            process: process.id,
            host: process.host,
            command: process.command,
        }
    }

    /// Returns the description as JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the process that `json` describes, or `None` if it has another format.
    pub(crate) fn process_of(json: &str) -> Option<Process> {
        let about: Self = serde_json::from_str(json).ok()?;
        Some(Process::new(about.process, about.host, about.command))
    }
}
