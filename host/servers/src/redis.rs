//! Locks on one Redis server: each operation is a script, which Redis executes atomically.
//!
//! A lock is four keys with one prefix: its record, a hash that expires; the counter of its fencing
//! tokens, which never expires; the queue of its waiters; and the waiters' deadlines and channels. A release
//! reserves the lock for the head waiter for half a second, and notifies that waiter on its channel; a
//! waiter that does not acquire the lock in that time loses its ticket. See `server/redis/`.

mod connect;
mod error;
mod queue;
mod scripts;

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::ConnectionManager;
use ::redis::{FromRedisValue, RedisError, Script, ScriptInvocation, Value};
use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use verrou::blocking::Host;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Owner, StoreError, async_trait,
};
use verrou_machine::{Listed, StoreOptions, System};

use self::error::failed;
use self::queue::RedisWaiter;
use self::scripts::{ACQUIRE, EVICT, EXTEND, RELEASE, key, millis, of_owner, on_keys, or_nothing};
use crate::cancelled_acquire::CancelledRequests;
use crate::error::ServerError;
use crate::notifications::Notifications;
use crate::queue_heartbeat::QueueHeartbeat;
use crate::store::{
    About, CAPABILITIES, RESERVATION, ServerStore, ServerWaiter, drift, loss_watch, record_ttl,
    request_timeout, waiter,
};
use crate::url::ServerUrl;

/// Leases on one Redis server, version 6 or later.
///
/// Its operations run in the tokio runtime in which it was [connected](Self::connect). One connection
/// serves all operations and all waiters. `host/servers/REDIS.md` lists its guarantees.
pub struct RedisStore {
    shared: Arc<RedisShared>,
    about: String,
    cancelled: CancelledRequests,
}

/// The part of the store that its waiters share.
struct RedisShared {
    connection: ConnectionManager,
    server: String,
    prefix: String,
    timeout: Duration,
    /// The channel on which this process's waiters and holders are notified.
    channel: String,
    is_subscribed: OnceCell<()>,
    notifications: Arc<Notifications>,
    heartbeat: Arc<QueueHeartbeat>,
    runtime: Handle,
}

impl RedisStore {
    /// Connects to the store at `url`, after checking that its server is usable.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
    pub async fn connect(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let notifications = Arc::new(Notifications::default());
        let connection = connect::connection(url, &notifications).await?;
        let id = Owner::from_bytes(System.random());
        let prefix = url.option("prefix").unwrap_or_else(|| "verrou:".to_owned());
        Ok(Self {
            shared: Arc::new(RedisShared {
                connection,
                timeout: url.timeout(),
                channel: format!("{prefix}client:{id}"),
                prefix,
                server: url.to_string(),
                is_subscribed: OnceCell::new(),
                notifications,
                heartbeat: Arc::default(),
                runtime: Handle::current(),
            }),
            about: About::this(options).to_json(),
            cancelled: CancelledRequests::new(Handle::current()),
        })
    }

    /// Returns the owner that is recorded for `name`, and the public part of its record.
    async fn found(&self, name: &Name) -> Result<Option<(String, Holder)>, StoreError> {
        let key = self.shared.key(name);
        let mut both = ::redis::pipe();
        both.atomic();
        both.cmd("HMGET").arg(&key);
        for field in ["owner", "fence", "ttl", "since", "about"] {
            both.arg(field);
        }
        both.cmd("PTTL").arg(&key);
        let mut connection = self.shared.connection.clone();
        let asked = both.query_async(&mut connection);
        let (found, left): (Vec<Option<String>>, i64) =
            self.shared.answered(self.shared.timeout, asked).await?;
        let [Some(owner), fence, ttl, since, about] = &found[..] else {
            return Ok(None);
        };
        let number = |text: &Option<String>| text.as_ref()?.parse::<u64>().ok();
        // Subtract the time by which the record outlives the lease at its holder; never return zero.
        let remaining = u64::try_from(left).ok().map(|left| {
            let drift = number(ttl).map_or(Duration::ZERO, |ttl| drift(Duration::from_millis(ttl)));
            let left = Duration::from_millis(left).saturating_sub(drift);
            left.max(Duration::from_millis(1))
        });
        let mut holder = Holder::new(number(fence).and_then(Fence::new), remaining);
        holder.since = number(since).map(Duration::from_millis);
        holder.process = about.as_deref().and_then(About::process_of);
        Ok(Some((owner.clone(), holder)))
    }

    /// Releases the lock that a dropped request may have acquired.
    fn release_cancelled(&self, claim: &Claim) {
        let (key, owner) = (self.shared.key(&claim.name), claim.owner);
        let connection = self.shared.connection.clone();
        self.cancelled
            .release_later(owner, self.shared.timeout, move || {
                let (script, mut connection) =
                    (of_owner(&RELEASE, &key, owner), connection.clone());
                async move {
                    let _: Result<Value, _> = script.invoke_async(&mut connection).await;
                }
            });
    }
}

impl RedisShared {
    fn key(&self, name: &Name) -> String {
        key(&self.prefix, name)
    }

    /// Runs `script` on the keys of `name`.
    async fn run<T: FromRedisValue>(
        &self,
        script: &Script,
        name: &Name,
        limit: Duration,
        arguments: impl FnOnce(&mut ScriptInvocation<'_>),
    ) -> Result<T, ServerError> {
        let mut script = on_keys(script, &self.key(name));
        arguments(&mut script);
        let mut connection = self.connection.clone();
        let asked = script.invoke_async(&mut connection);
        self.answered(limit, asked).await
    }

    async fn asked<T: FromRedisValue>(
        &self,
        limit: Duration,
        command: &::redis::Cmd,
    ) -> Result<T, ServerError> {
        let mut connection = self.connection.clone();
        let asked = command.query_async(&mut connection);
        self.answered(limit, asked).await
    }

    async fn answered<T>(
        &self,
        limit: Duration,
        asked: impl Future<Output = Result<T, RedisError>>,
    ) -> Result<T, ServerError> {
        match timeout(limit, asked).await {
            Ok(answer) => answer.map_err(|err| failed(&self.server, err)),
            Err(_) => Err(ServerError::Timeout {
                server: self.server.clone(),
                after: limit,
            }),
        }
    }

    /// Subscribes this process to its channel, once.
    async fn subscribe(&self) -> Result<(), ServerError> {
        let subscribed = self.is_subscribed.get_or_try_init(async || {
            let mut connection = self.connection.clone();
            let subscribing = connection.subscribe(&self.channel);
            self.answered(self.timeout, subscribing).await
        });
        subscribed.await.copied()
    }
}

#[async_trait]
impl ServerStore for RedisStore {
    async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let escaped: String = self
            .shared
            .prefix
            .chars()
            .flat_map(|char| match char {
                '*' | '?' | '[' | ']' | '\\' => vec!['\\', char],
                char => vec![char],
            })
            .collect();
        let pattern = format!("{escaped}{{*}}");
        let mut names = HashSet::new();
        let mut cursor = "0".to_owned();
        loop {
            let mut scan = ::redis::cmd("SCAN");
            scan.arg(&cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(1000);
            scan.arg("TYPE").arg("hash");
            let (next, keys): (String, Vec<String>) =
                self.shared.asked(self.shared.timeout, &scan).await?;
            names.extend(
                keys.iter()
                    .filter_map(|key| scripts::name_of(&self.shared.prefix, key)),
            );
            if next == "0" {
                break;
            }
            cursor = next;
        }
        let mut names: Vec<Name> = names.into_iter().collect();
        names.sort_unstable();
        let mut listed = Vec::new();
        for name in names {
            for holder in self.holders(&name).await? {
                listed.push(Ok((name.clone(), holder)));
            }
        }
        Ok(listed)
    }

    fn queue_waiter(&self, claim: &Claim) -> Box<dyn ServerWaiter> {
        Box::new(RedisWaiter::new(&self.shared, claim))
    }

    async fn lost(&self, claim: &Claim) {
        const PAUSE: Duration = Duration::from_secs(1);

        let subscription = self.shared.notifications.subscribe(claim.owner);
        while self.shared.subscribe().await.is_err() {
            sleep(PAUSE).await;
        }
        // After an error, the renewal of the lease notices the loss.
        if self.holds(claim, None).await.unwrap_or(true) {
            subscription.notified().await;
        }
    }
}

#[async_trait]
impl AsyncStore for RedisStore {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.cancelled.stop(&claim.owner).await;
        let limit = request_timeout(self.shared.timeout, claim);
        let guard = scopeguard::guard((), |()| self.release_cancelled(claim));
        let answer: Result<(bool, i64), _> = self
            .shared
            .run(&ACQUIRE, &claim.name, limit, |script| {
                script
                    .arg(claim.owner.to_string())
                    .arg(or_nothing(record_ttl(claim.ttl).map(millis)))
                    .arg(or_nothing(claim.ttl.duration().map(millis)))
                    .arg(&self.about)
                    .arg(&self.shared.channel)
                    .arg(millis(System.wall_clock()))
                    .arg(millis(RESERVATION));
            })
            .await;
        ScopeGuard::into_inner(guard);
        let (is_granted, number) = answer?;
        if is_granted {
            let fence = u64::try_from(number).ok().and_then(Fence::new);
            return Ok(Acquired::Granted { fence });
        }
        let remaining = u64::try_from(number).ok().map(Duration::from_millis);
        Ok(Acquired::Busy { remaining })
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let limit = request_timeout(self.shared.timeout, claim);
        let done: bool = self
            .shared
            .run(&EXTEND, &claim.name, limit, |script| {
                script
                    .arg(claim.owner.to_string())
                    .arg(or_nothing(record_ttl(claim.ttl).map(millis)))
                    .arg(or_nothing(claim.ttl.duration().map(millis)))
                    .arg(&self.shared.channel);
            })
            .await?;
        Ok(done)
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let limit = request_timeout(self.shared.timeout, claim);
        let guard = scopeguard::guard((), |()| self.release_cancelled(claim));
        let done: Result<bool, _> = self
            .shared
            .run(&RELEASE, &claim.name, limit, |script| {
                script.arg(claim.owner.to_string()).arg(millis(RESERVATION));
            })
            .await;
        ScopeGuard::into_inner(guard);
        Ok(done?)
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let done: bool = self
            .shared
            .run(&EVICT, name, self.shared.timeout, |script| {
                script
                    .arg(or_nothing(only.map(Fence::get)))
                    .arg(millis(RESERVATION));
            })
            .await?;
        Ok(done)
    }

    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let found = self.found(name).await?;
        Ok(found.map(|(_, holder)| holder).into_iter().collect())
    }

    async fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let found = self.found(&claim.name).await?;
        Ok(found.is_some_and(|(owner, _)| owner == claim.owner.to_string()))
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

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.shared.server)
            .finish_non_exhaustive()
    }
}
