//! Locks on one Redis server: each operation is a script, which Redis executes atomically.
//!
//! A lock is four keys with one prefix: its record, a hash that expires; the counter of its fencing
//! tokens, which never expires; the queue of its waiters; and the waiters' deadlines and channels. A release
//! reserves the lock for the head waiter for half a second, and notifies that waiter on its channel; a
//! waiter that does not acquire the lock in that time loses its ticket. See `server/redis/`.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue, ProtocolVersion, PushInfo,
    PushKind, RedisConnectionInfo, RedisError, Script, ScriptInvocation, ServerErrorKind,
    TlsCertificates, Value,
};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use scopeguard::ScopeGuard;
use tokio::runtime::Handle;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use verrou::blocking::Host;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Owner, StoreError, async_trait,
};

use super::cancelled_acquire::CancelledRequests;
use super::notifications::Notifications;
use super::queue_heartbeat::QueueHeartbeat;
use super::store::{
    About, CAPABILITIES, RESERVATION, ServerStore, WAITER_TIMEOUT, drift, loss_watch, record_ttl,
    request_timeout, waiter,
};
use super::{ServerError, ServerUrl};
use crate::System;
use crate::host_store::Listed;
use crate::store::StoreOptions;

/// Leases on one Redis server, version 6 or later.
///
/// Its operations run in the tokio runtime in which it was [connected](Self::connect). One connection
/// serves all operations and all waiters. `host/REDIS.md` lists its guarantees.
pub struct RedisStore {
    connection: ConnectionManager,
    server: String,
    prefix: String,
    timeout: Duration,
    about: String,
    /// The channel on which this process's waiters and holders are notified.
    channel: String,
    is_subscribed: OnceCell<()>,
    notifications: Arc<Notifications>,
    heartbeat: Arc<QueueHeartbeat>,
    cancelled: CancelledRequests,
    runtime: Handle,
}

macro_rules! script {
    ($file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                include_str!("redis/queue.lua"),
                include_str!($file)
            ))
        })
    };
}

static ACQUIRE: LazyLock<Script> = script!("redis/acquire.lua");
static EXTEND: LazyLock<Script> = script!("redis/extend.lua");
static RELEASE: LazyLock<Script> = script!("redis/release.lua");
static EVICT: LazyLock<Script> = script!("redis/evict.lua");
static WAIT: LazyLock<Script> = script!("redis/wait.lua");
static LEAVE: LazyLock<Script> = script!("redis/leave.lua");

/// The characters of a name that are percent-encoded in a key: braces, which would end the hash tag of
/// Redis Cluster, `%` and control characters.
const BRACES: &AsciiSet = &CONTROLS.add(b'{').add(b'}').add(b'%');

impl RedisStore {
    /// Connects to the store at `url`, after checking that its server is usable.
    ///
    /// # Errors
    ///
    /// Returns [`ServerError`], which says what is wrong with the server, and what to do about it.
    pub async fn connect(url: &ServerUrl, options: &StoreOptions) -> Result<Self, ServerError> {
        let server = url.to_string();
        let setup = |why: String, advice: &str| ServerError::Setup {
            server: server.clone(),
            why,
            advice: advice.to_owned(),
        };
        let client = client(url, &setup)?;
        let notifications = Arc::new(Notifications::default());
        let received = Arc::clone(&notifications);
        let config = ConnectionManagerConfig::new()
            // Callers retry by themselves.
            .set_number_of_retries(0)
            .set_connection_timeout(Some(url.timeout()))
            .set_response_timeout(Some(url.timeout()))
            .set_push_sender(move |push: PushInfo| {
                dispatch(&received, &push);
                Ok::<(), ::redis::aio::SendError>(())
            })
            .set_automatic_resubscription();
        let connecting = ConnectionManager::new_with_config(client, config);
        let late = |_| ServerError::Timeout {
            server: server.clone(),
            after: url.timeout(),
        };
        let mut connection = timeout(url.timeout(), connecting)
            .await
            .map_err(late)?
            .map_err(|err| not_connected(&server, err))?;
        let mut asked = ::redis::pipe();
        asked.cmd("INFO").arg("memory");
        asked.cmd("INFO").arg("replication");
        let info: Result<(String, String), _> = asked.query_async(&mut connection).await;
        // A server that does not permit `INFO` is accepted without these checks.
        if let Ok((memory, replication)) = info {
            is_kept(&memory).map_err(|why| {
                setup(
                    why,
                    "Redis could evict locks: set maxmemory-policy noeviction, or use another server",
                )
            })?;
            if field(&replication, "role") == Some("slave") {
                return Err(setup(
                    "this server is a read-only replica".to_owned(),
                    "name its primary server",
                ));
            }
        }
        let id = Owner::from_bytes(System.random());
        let prefix = url.option("prefix").unwrap_or_else(|| "verrou:".to_owned());
        Ok(Self {
            connection,
            timeout: url.timeout(),
            about: About::this(options).to_json(),
            channel: format!("{prefix}client:{id}"),
            prefix,
            server,
            is_subscribed: OnceCell::new(),
            notifications,
            heartbeat: Arc::default(),
            cancelled: CancelledRequests::new(Handle::current()),
            runtime: Handle::current(),
        })
    }

    /// Returns the owner that is recorded for `name`, and the public part of its record.
    async fn found(&self, name: &Name) -> Result<Option<(String, Holder)>, StoreError> {
        let key = self.key(name);
        let mut both = ::redis::pipe();
        both.atomic();
        both.cmd("HMGET").arg(&key);
        for field in ["owner", "fence", "ttl", "since", "about"] {
            both.arg(field);
        }
        both.cmd("PTTL").arg(&key);
        let mut connection = self.connection.clone();
        let asked = both.query_async(&mut connection);
        let (found, left): (Vec<Option<String>>, i64) = self.answered(self.timeout, asked).await?;
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
        let (key, owner) = (self.key(&claim.name), claim.owner);
        let connection = self.connection.clone();
        self.cancelled.release_later(owner, self.timeout, move || {
            let (script, mut connection) = (of_owner(&RELEASE, &key, owner), connection.clone());
            async move {
                let _: Result<Value, _> = script.invoke_async(&mut connection).await;
            }
        });
    }

    fn key(&self, name: &Name) -> String {
        key(&self.prefix, name)
    }

    /// Returns the name of the lock whose record has this key.
    fn name_of(&self, key: &str) -> Option<Name> {
        let braced = key.strip_prefix(&self.prefix)?;
        let encoded = braced.strip_prefix('{')?.strip_suffix('}')?;
        Name::new(&percent_decode_str(encoded).decode_utf8().ok()?).ok()
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

    /// Renews the ticket of `claim`'s owner until the owner is removed from the heartbeat.
    fn keep_ticket(&self, claim: &Claim) {
        if !self.heartbeat.add(claim) {
            return;
        }
        let (connection, channel) = (self.connection.clone(), self.channel.clone());
        let (prefix, notifications) = (self.prefix.clone(), Arc::clone(&self.notifications));
        self.runtime.spawn(self.heartbeat.run(move |owner, name| {
            let mut script = on_keys(&WAIT, &key(&prefix, &name));
            in_queue(&mut script, &owner, &channel, true);
            let (mut connection, notifications) = (connection.clone(), Arc::clone(&notifications));
            async move {
                // After an error, the next heartbeat comes before the ticket's deadline.
                if let Ok(true) = script.invoke_async(&mut connection).await {
                    notifications.notify(&owner);
                }
            }
        }));
    }
}

#[async_trait]
impl ServerStore for RedisStore {
    async fn list(&self) -> Result<Vec<Listed>, StoreError> {
        let escaped: String = self
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
            let (next, keys): (String, Vec<String>) = self.asked(self.timeout, &scan).await?;
            names.extend(keys.iter().filter_map(|key| self.name_of(key)));
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

    async fn wait_in_queue(&self, claim: &Claim, at_most: Duration) -> Result<(), ServerError> {
        let subscription = self.notifications.subscribe(claim.owner);
        self.subscribe().await?;
        // Before the request: if this future is dropped before the answer, `give_up` deletes the ticket.
        self.keep_ticket(claim);
        let is_free: bool = self
            .run(&WAIT, &claim.name, self.timeout, |script| {
                in_queue(script, &claim.owner, &self.channel, false);
            })
            .await?;
        if !is_free {
            let _ = timeout(at_most, subscription.notified()).await;
        }
        Ok(())
    }

    async fn leave(&self, claim: &Claim) {
        if !self.heartbeat.remove(&claim.owner) {
            return;
        }
        let left: Result<i64, _> = self
            .run(&LEAVE, &claim.name, self.timeout, |script| {
                script.arg(claim.owner.to_string()).arg(millis(RESERVATION));
            })
            .await;
        // After an error, other waiters skip the ticket when its reservation or its deadline has passed.
        drop(left);
    }

    fn start_to_leave(&self, claim: &Claim) {
        if self.heartbeat.remove(&claim.owner) {
            let leave = of_owner(&LEAVE, &self.key(&claim.name), claim.owner);
            let mut connection = self.connection.clone();
            self.runtime.spawn(async move {
                let _: Result<Value, _> = leave.invoke_async(&mut connection).await;
            });
        }
    }

    async fn lost(&self, claim: &Claim) {
        const PAUSE: Duration = Duration::from_secs(1);

        let subscription = self.notifications.subscribe(claim.owner);
        while self.subscribe().await.is_err() {
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
        let limit = request_timeout(self.timeout, claim);
        let guard = scopeguard::guard((), |()| self.release_cancelled(claim));
        let answer: Result<(bool, i64), _> = self
            .run(&ACQUIRE, &claim.name, limit, |script| {
                script
                    .arg(claim.owner.to_string())
                    .arg(or_nothing(record_ttl(claim.ttl).map(millis)))
                    .arg(or_nothing(claim.ttl.duration().map(millis)))
                    .arg(&self.about)
                    .arg(&self.channel)
                    .arg(millis(System.wall_clock()))
                    .arg(millis(RESERVATION));
            })
            .await;
        ScopeGuard::into_inner(guard);
        let (is_granted, number) = answer?;
        if is_granted {
            self.heartbeat.remove(&claim.owner);
            let fence = u64::try_from(number).ok().and_then(Fence::new);
            return Ok(Acquired::Granted { fence });
        }
        let remaining = u64::try_from(number).ok().map(Duration::from_millis);
        Ok(Acquired::Busy { remaining })
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let limit = request_timeout(self.timeout, claim);
        let done: bool = self
            .run(&EXTEND, &claim.name, limit, |script| {
                script
                    .arg(claim.owner.to_string())
                    .arg(or_nothing(record_ttl(claim.ttl).map(millis)))
                    .arg(or_nothing(claim.ttl.duration().map(millis)))
                    .arg(&self.channel);
            })
            .await?;
        Ok(done)
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let limit = request_timeout(self.timeout, claim);
        self.heartbeat.remove(&claim.owner);
        let guard = scopeguard::guard((), |()| self.release_cancelled(claim));
        let done: Result<bool, _> = self
            .run(&RELEASE, &claim.name, limit, |script| {
                script.arg(claim.owner.to_string()).arg(millis(RESERVATION));
            })
            .await;
        ScopeGuard::into_inner(guard);
        Ok(done?)
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let done: bool = self
            .run(&EVICT, name, self.timeout, |script| {
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
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Returns the key of the record of `name`. The name in braces is the hash tag of Redis Cluster.
fn key(prefix: &str, name: &Name) -> String {
    let name = utf8_percent_encode(name.as_str(), BRACES);
    format!("{prefix}{{{name}}}")
}

/// Returns an invocation of `script` on the record with that key, and its three other keys.
fn on_keys<'a>(script: &'a Script, key: &str) -> ScriptInvocation<'a> {
    let mut script = script.prepare_invoke();
    for suffix in ["", ":fence", ":queue", ":waiting"] {
        script.key(format!("{key}{suffix}"));
    }
    script
}

/// Returns an invocation of [`LEAVE`] or [`RELEASE`] with its arguments.
fn of_owner<'a>(script: &'a Script, key: &str, owner: Owner) -> ScriptInvocation<'a> {
    let mut script = on_keys(script, key);
    script.arg(owner.to_string()).arg(millis(RESERVATION));
    script
}

/// Adds the arguments of [`WAIT`].
fn in_queue(script: &mut ScriptInvocation<'_>, owner: &Owner, channel: &str, is_kept: bool) {
    script
        .arg(owner.to_string())
        .arg(millis(WAITER_TIMEOUT))
        .arg(channel)
        .arg(u8::from(is_kept));
}

/// Returns a number as text, or an empty argument.
fn or_nothing(number: Option<u64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

/// Returns a length in whole milliseconds, rounded up.
fn millis(length: Duration) -> u64 {
    // The latest expiry of a key.
    const LATEST: u128 = 1 << 53;

    length.as_nanos().div_ceil(1_000_000).min(LATEST) as u64
}

/// Passes on a push message of the server.
fn dispatch(notifications: &Arc<Notifications>, push: &PushInfo) {
    match (&push.kind, &push.data[..]) {
        (PushKind::Message, [_, payload]) => {
            notifications.dispatch(&String::from_redis_value_ref(payload).unwrap_or_default());
        }
        // Messages may have been lost.
        (PushKind::Disconnection | PushKind::Subscribe, _) => notifications.notify_all(),
        _ => {}
    }
}

fn client(
    url: &ServerUrl,
    setup: &impl Fn(String, &str) -> ServerError,
) -> Result<Client, ServerError> {
    let unread = |err: std::io::Error| setup(err.to_string(), "name a file that can be read");
    let wrong = |err: RedisError| {
        setup(
            err.to_string(),
            "write rediss://USER:PASSWORD@HOST:PORT/DATABASE, or redis:// on this machine",
        )
    };
    let (host, port) = url.hosts().swap_remove(0);
    let host = host.trim_matches(['[', ']']).to_owned();
    let port = port.unwrap_or(6379);
    let address = if url.is_encrypted() {
        ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        }
    } else {
        ConnectionAddr::Tcp(host, port)
    };
    let database = url.database().unwrap_or_else(|| "0".to_owned());
    let database = database.parse().map_err(|_| {
        setup(
            format!("`{database}` is not the number of a database"),
            "write redis://HOST/0",
        )
    })?;
    let mut settings = RedisConnectionInfo::default()
        // With RESP3, messages and answers share one connection.
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(database)
        .set_lib_name("verrou", env!("CARGO_PKG_VERSION"));
    if let Some(user) = url.user() {
        settings = settings.set_username(user);
    }
    if let Some(password) = url.password()? {
        settings = settings.set_password(password);
    }
    let tcp = TcpSettings::default().set_nodelay(true);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(url.timeout() * 2);
    let info: ConnectionInfo = ::redis::IntoConnectionInfo::into_connection_info(address)
        .map_err(wrong)?
        .set_tcp_settings(tcp)
        .set_redis_settings(settings);
    if !url.is_encrypted() {
        return Client::open(info).map_err(wrong);
    }
    super::tls::install();
    let certificates = TlsCertificates {
        client_tls: None,
        root_cert: url.authorities().map_err(unread)?,
    };
    Client::build_with_tls(info, certificates).map_err(wrong)
}

/// Returns the error for a connection that could not be made.
fn not_connected(server: &str, err: RedisError) -> ServerError {
    let setup = |why: &str, advice: &str| ServerError::Setup {
        server: server.to_owned(),
        why: format!("{why} ({err})"),
        advice: advice.to_owned(),
    };
    let is_unknown_user = matches!(err.code(), Some("NOAUTH" | "WRONGPASS"));
    match err.kind() {
        ErrorKind::RESP3NotSupported => setup("this server is too old", "use Redis 6 or later"),
        kind if is_unknown_user || kind == ErrorKind::AuthenticationFailed => setup(
            "the server refuses the user or the password",
            "write redis://USER:PASSWORD@HOST, or password-file=FILE; on another machine write rediss:// for \
             TLS, or add tls=off",
        ),
        ErrorKind::Parse | ErrorKind::UnexpectedReturnType => setup(
            "the server at this address is not Redis",
            "name the port of Redis, and write rediss:// if it expects TLS",
        ),
        _ => failed(server, err),
    }
}

/// Classifies the error of a failed request.
fn failed(server: &str, err: RedisError) -> ServerError {
    use ServerErrorKind::{BusyLoading, ClusterDown, MasterDown, ReadOnly, TryAgain};

    let server = server.to_owned();
    // Full memory or disk, too few replicas, or another client's long script: temporary.
    let passes = matches!(err.code(), Some("OOM" | "BUSY" | "MISCONF" | "NOREPLICAS"));
    match err.kind() {
        _ if passes => ServerError::Unavailable {
            server,
            source: err.into(),
        },
        ErrorKind::Io => ServerError::Disconnected {
            server,
            source: err.into(),
        },
        ErrorKind::Server(BusyLoading | ClusterDown | MasterDown | ReadOnly | TryAgain) => {
            ServerError::Unavailable {
                server,
                source: err.into(),
            }
        }
        _ if err.is_connection_dropped() || err.is_timeout() => ServerError::Disconnected {
            server,
            source: err.into(),
        },
        _ => ServerError::Refused {
            server,
            source: err.into(),
        },
    }
}

/// Returns the value of the field `name` in a section of `INFO`.
fn field<'a>(section: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = section.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(field, _)| *field == name)?;
    Some(value.trim())
}

/// Returns an error if a server with this `INFO memory` can evict keys.
fn is_kept(memory: &str) -> Result<(), String> {
    match (
        field(memory, "maxmemory"),
        field(memory, "maxmemory_policy"),
    ) {
        (Some(limit), Some(policy)) if limit != "0" && policy != "noeviction" => Err(format!(
            "when its memory is full, this server evicts keys (maxmemory-policy {policy})"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_that_evicts_keys_is_refused() {
        let memory = |limit, policy| {
            format!(
                "# Memory\r\nused_memory:1\r\nmaxmemory:{limit}\r\nmaxmemory_policy:{policy}\r\n"
            )
        };
        assert!(is_kept(&memory(0, "allkeys-lru")).is_ok());
        assert!(is_kept(&memory(1000, "noeviction")).is_ok());
        assert!(is_kept("").is_ok());
        let why = is_kept(&memory(1000, "volatile-ttl")).unwrap_err();
        assert!(why.contains("volatile-ttl"), "{why}");
    }
}
