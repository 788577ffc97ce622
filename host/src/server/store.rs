//! A store on a server of any engine, and the parts that all engines share.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Process, Renewed, Reply, StoreError, Ttl,
};

#[cfg(feature = "etcd")]
use super::EtcdStore;
#[cfg(feature = "postgres")]
use super::PostgresStore;
#[cfg(feature = "redis")]
use super::RedisStore;
use super::{Engine, ServerError, ServerUrl};
use crate::store::{Listed, StoreOptions, Zombies, this_process};

/// A store on a server, of any engine that this program is built with.
///
/// The store lives in the tokio runtime in which it was [connected](Self::connect), which must have time
/// and I/O enabled, and ends with that runtime. Blocking programs use [`AnyStore`](crate::AnyStore).
///
/// ```
/// # #[cfg(all(feature = "redis", feature = "tokio"))]
/// # async fn work() -> Result<(), Box<dyn std::error::Error>> {
/// use std::sync::Arc;
/// use verrou::nonblocking::LockFactory;
/// use verrou_host::{ServerStore, StoreOptions, Tokio};
///
/// let url = "redis://locks.example".parse()?;
/// let store = ServerStore::connect(&url, &StoreOptions::default()).await?;
/// let locks = LockFactory::new(Arc::new(store), Tokio);
/// let lock = locks.create_lock("report", "30s")?;
/// let answer = lock.run(async |held| held.keep(async { 6 * 7 }).await);
/// assert_eq!(answer.await.ok().and_then(Result::ok), Some(42));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ServerStore {
    /// On Redis.
    #[cfg(feature = "redis")]
    Redis(RedisStore),
    /// On `PostgreSQL`.
    #[cfg(feature = "postgres")]
    Postgres(PostgresStore),
    /// On etcd.
    #[cfg(feature = "etcd")]
    Etcd(EtcdStore),
}

/// Evaluates an expression with the store of each engine.
macro_rules! with_engine {
    ($store:expr, $engine:ident => $done:expr) => {
        match $store {
            #[cfg(feature = "redis")]
            ServerStore::Redis($engine) => $done,
            #[cfg(feature = "postgres")]
            ServerStore::Postgres($engine) => $done,
            #[cfg(feature = "etcd")]
            ServerStore::Etcd($engine) => $done,
        }
    };
}

impl ServerStore {
    /// Connects to the store at `url`, after checking that its server is usable.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
    pub async fn connect(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let StoreOptions {
            group,
            any_file_system,
            command: _,
            handed_on: _,
            zombies,
        } = options;
        let needless = [
            ("a group", group.is_some()),
            ("a choice of file system", *any_file_system),
            (
                "waiting for a zombie of the holder",
                *zombies == Zombies::Wait,
            ),
        ];
        if let Some((what, _)) = needless.into_iter().find(|(_, is_asked)| *is_asked) {
            return Err(ServerError::Setup {
                server: url.to_string(),
                why: format!("{what} is an option of file stores only"),
                advice: "leave it out".to_owned(),
            });
        }
        match url.engine() {
            #[cfg(feature = "redis")]
            Engine::Redis => RedisStore::connect(url, options).await.map(Self::Redis),
            #[cfg(feature = "postgres")]
            Engine::Postgres => PostgresStore::connect(url, options)
                .await
                .map(Self::Postgres),
            #[cfg(feature = "etcd")]
            Engine::Etcd => EtcdStore::connect(url, options).await.map(Self::Etcd),
            #[cfg(not(all(feature = "redis", feature = "postgres", feature = "etcd")))]
            engine => Err(ServerError::Setup {
                server: url.to_string(),
                why: format!("this program is built without {engine}"),
                advice: format!("build it with the feature `{}`", engine.feature()),
            }),
        }
    }

    /// Returns the names that are held now, and their holders.
    ///
    /// # Errors
    ///
    /// Returns [`StoreError`] if the server does not answer, or refuses the request.
    pub async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        with_engine!(self, store => store.list().await)
    }

    /// Waits as [`AsyncStore::wait`] does, but always takes a ticket first, and returns errors.
    pub(crate) async fn wait_in_queue(
        &self,
        claim: &Claim,
        at_most: Duration,
    ) -> Result<(), ServerError> {
        with_engine!(self, store => store.wait_in_queue(claim, at_most).await)
    }

    /// Leaves the queue as [`AsyncStore::give_up`] does, and waits until that is done.
    pub(crate) async fn leave(&self, claim: &Claim) {
        with_engine!(self, store => store.leave(claim).await);
    }
}

/// Boxes the future of each operation: a client's state during a request takes tens of kilobytes.
impl AsyncStore for ServerStore {
    async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        with_engine!(self, store => Box::pin(store.acquire(claim)).await)
    }
    async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        with_engine!(self, store => Box::pin(store.extend(claim)).await)
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        with_engine!(self, store => Box::pin(store.renew(claim, fence)).await)
    }
    async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        with_engine!(self, store => Box::pin(store.release(claim)).await)
    }
    async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        with_engine!(self, store => Box::pin(store.evict(name, only)).await)
    }
    async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        with_engine!(self, store => Box::pin(store.inspect(name)).await)
    }
    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        with_engine!(self, store => Box::pin(store.holds(claim, fence)).await)
    }
    async fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        with_engine!(self, store => Box::pin(store.detach(claim)).await)
    }
    async fn wait(&self, claim: &Claim, at_most: Duration) {
        with_engine!(self, store => Box::pin(store.wait(claim, at_most)).await);
    }
    async fn lost(&self, claim: &Claim) {
        with_engine!(self, store => Box::pin(store.lost(claim)).await);
    }
    fn give_up(&self, claim: &Claim) {
        with_engine!(self, store => store.give_up(claim));
    }
    fn abilities(&self) -> Abilities {
        with_engine!(self, store => store.abilities())
    }
}

/// The capabilities of a store on a server: a lease does not end with its client's process, only by expiry.
pub(crate) const ABILITIES: Abilities = Abilities {
    expires: true,
    ephemeral: false,
    transfers: true,
    evicts: true,
    fences: true,
    // An expired record on a server is deleted, or does not show whether another grant followed.
    revives: false,
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
        let Process { id, host, command } = this_process(options.command.as_deref());
        Self {
            process: id,
            host,
            command,
        }
    }

    /// Returns the description as JSON.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Returns the process that `json` describes, or `None` if it has another format.
    pub(crate) fn process_of(json: &str) -> Option<Process> {
        let about: Self = serde_json::from_str(json).ok()?;
        Some(Process {
            id: about.process,
            host: about.host,
            command: about.command,
        })
    }
}
