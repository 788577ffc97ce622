//! Exclusions by a server, in Rust: Verrou's locks, and their bare requests.

use std::env;
#[cfg(feature = "etcd")]
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use verrou::nonblocking::{Lock, LockFactory};
use verrou_host::{AnyAsyncStore, StoreOptions, StoreUrl, Tokio};
#[cfg(feature = "etcd")]
use verrou_servers::clients::etcd::messages::{Compare, CompareOp, Range, Txn, TxnOp};
#[cfg(feature = "etcd")]
use verrou_servers::clients::etcd::{Client, ClientError, ConnectOptions};
#[cfg(feature = "redis")]
use verrou_servers::clients::redis;
#[cfg(feature = "postgres")]
use verrou_servers::clients::tokio_postgres;

use crate::Result;
use crate::exclusion::Exclusion;

/// Returns the exclusion of that kind, if there is one.
pub(crate) fn exclusion(kind: &str) -> Result<Option<Box<dyn Exclusion>>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok(Some(match kind {
        #[cfg(feature = "redis")]
        "redis-calls" => Box::new(RedisCalls::new(runtime)?),
        #[cfg(feature = "postgres")]
        "postgres-calls" => Box::new(PostgresCalls::new(runtime)?),
        #[cfg(feature = "postgres")]
        "postgres-advisory" => Box::new(Advisory::new(runtime)?),
        #[cfg(feature = "etcd")]
        "etcd-calls" => Box::new(EtcdCalls::new(runtime)?),
        "redis" | "postgres" | "etcd" => Box::new(VerrouServerLock::new(runtime, kind)?),
        _ => return Ok(None),
    }))
}

/// Returns the URL of the server of that kind.
fn url(kind: &str) -> Result<String> {
    let variable = format!("VERROU_BENCH_{}", kind.to_uppercase());
    Ok(env::var(variable)?)
}

/// A lock of Verrou.
struct VerrouServerLock {
    runtime: Runtime,
    lock: Lock<AnyAsyncStore, Tokio>,
}

impl VerrouServerLock {
    fn new(runtime: Runtime, kind: &str) -> Result<Self> {
        let url: StoreUrl = url(kind)?.parse()?;
        let options = StoreOptions::default();
        let store = runtime.block_on(AnyAsyncStore::open(&url, &options))?;
        let lock = LockFactory::new(store, Tokio).create_lock("lock", "10s")?;
        Ok(Self { runtime, lock })
    }
}

impl Exclusion for VerrouServerLock {
    fn acquire(&mut self) -> Result<()> {
        self.runtime.block_on(self.lock.acquire())?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.lock.release())?)
    }
}

/// The scripts of an uncontended lock of Verrou, and nothing else.
#[cfg(feature = "redis")]
struct RedisCalls {
    runtime: Runtime,
    connection: redis::aio::MultiplexedConnection,
    acquire: redis::Script,
    release: redis::Script,
}

#[cfg(feature = "redis")]
impl RedisCalls {
    const KEYS: [&str; 4] = [
        "calls:{lock}",
        "calls:{lock}:fence",
        "calls:{lock}:queue",
        "calls:{lock}:waiting",
    ];
    const OWNER: &str = "00112233445566778899aabbccddeeff";

    fn new(runtime: Runtime) -> Result<Self> {
        let client = redis::Client::open(format!("{}?protocol=resp3", url("redis")?))?;
        let connection = runtime.block_on(client.get_multiplexed_async_connection())?;
        let script = |text: &str| {
            let common = include_str!("../../servers/src/redis/queue.lua");
            redis::Script::new(&format!("{common}{text}"))
        };
        Ok(Self {
            runtime,
            connection,
            acquire: script(include_str!("../../servers/src/redis/acquire.lua")),
            release: script(include_str!("../../servers/src/redis/release.lua")),
        })
    }

    fn run(&mut self, script: impl Fn(&Self) -> redis::ScriptInvocation<'_>) -> Result<()> {
        let mut connection = self.connection.clone();
        let asked = async {
            script(self)
                .invoke_async::<redis::Value>(&mut connection)
                .await
        };
        self.runtime.block_on(asked)?;
        Ok(())
    }
}

#[cfg(feature = "redis")]
impl Exclusion for RedisCalls {
    fn acquire(&mut self) -> Result<()> {
        self.run(|this| {
            let mut script = this.acquire.key(Self::KEYS[0]);
            for key in &Self::KEYS[1..] {
                script.key(*key);
            }
            for word in [
                Self::OWNER,
                "10102",
                "10000",
                "{}",
                "calls:client",
                "1",
                "500",
            ] {
                script.arg(word);
            }
            script
        })
    }
    fn release(&mut self) -> Result<()> {
        self.run(|this| {
            let mut script = this.release.key(Self::KEYS[0]);
            for key in &Self::KEYS[1..] {
                script.key(*key);
            }
            script.arg(Self::OWNER).arg("500");
            script
        })
    }
}

/// Connects to `PostgreSQL`; the runtime serves the connection.
#[cfg(feature = "postgres")]
fn postgres(runtime: &Runtime) -> Result<tokio_postgres::Client> {
    let url = url("postgres")?;
    let connecting = tokio_postgres::connect(&url, tokio_postgres::NoTls);
    let (client, connection) = runtime.block_on(connecting)?;
    runtime.spawn(connection);
    Ok(client)
}

/// The function calls of an uncontended lock of Verrou, and nothing else.
#[cfg(feature = "postgres")]
struct PostgresCalls {
    runtime: Runtime,
    client: tokio_postgres::Client,
    acquire: tokio_postgres::Statement,
    release: tokio_postgres::Statement,
}

#[cfg(feature = "postgres")]
impl PostgresCalls {
    const OWNER: &str = "00112233445566778899aabbccddeeff";

    fn new(runtime: Runtime) -> Result<Self> {
        // Opening a store creates the schema, if it does not exist.
        drop(VerrouServerLock::new(
            Builder::new_current_thread().enable_all().build()?,
            "postgres",
        )?);
        let client = postgres(&runtime)?;
        let (acquire, release) = runtime.block_on(async {
            let acquire = "select granted, number from verrou.acquire($1, $2, $3, $4, $5, $6, $7)";
            let acquire = client.prepare(acquire).await?;
            let release = client.prepare("select verrou.release($1, $2, $3)").await?;
            Ok::<_, tokio_postgres::Error>((acquire, release))
        })?;
        Ok(Self {
            runtime,
            client,
            acquire,
            release,
        })
    }
}

#[cfg(feature = "postgres")]
impl Exclusion for PostgresCalls {
    fn acquire(&mut self) -> Result<()> {
        let asked = self.client.query_one(
            &self.acquire,
            &[
                &"calls",
                &Self::OWNER,
                &10_102_000_i64,
                &10_000_000_i64,
                &"{}",
                &"calls",
                &500_000_i64,
            ],
        );
        self.runtime.block_on(asked)?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        let asked = self
            .client
            .query_one(&self.release, &[&"calls", &Self::OWNER, &500_000_i64]);
        self.runtime.block_on(asked)?;
        Ok(())
    }
}

/// An advisory lock of `PostgreSQL`, of a session.
#[cfg(feature = "postgres")]
struct Advisory {
    runtime: Runtime,
    client: tokio_postgres::Client,
    lock: tokio_postgres::Statement,
    unlock: tokio_postgres::Statement,
}

#[cfg(feature = "postgres")]
impl Advisory {
    fn new(runtime: Runtime) -> Result<Self> {
        let client = postgres(&runtime)?;
        let (lock, unlock) = runtime.block_on(async {
            let lock = client.prepare("select pg_advisory_lock(7)").await?;
            let unlock = client.prepare("select pg_advisory_unlock(7)").await?;
            Ok::<_, tokio_postgres::Error>((lock, unlock))
        })?;
        Ok(Self {
            runtime,
            client,
            lock,
            unlock,
        })
    }
}

#[cfg(feature = "postgres")]
impl Exclusion for Advisory {
    fn acquire(&mut self) -> Result<()> {
        self.runtime
            .block_on(self.client.query_one(&self.lock, &[]))?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        self.runtime
            .block_on(self.client.query_one(&self.unlock, &[]))?;
        Ok(())
    }
}

/// The requests of an uncontended lock of Verrou on etcd, and nothing else.
#[cfg(feature = "etcd")]
struct EtcdCalls {
    runtime: Runtime,
    client: Client,
    lease: i64,
}

#[cfg(feature = "etcd")]
impl EtcdCalls {
    const RANGE: &str = "calls/lock/";
    const KEY: &str = "calls/lock/00112233445566778899aabbccddeeff";

    fn new(runtime: Runtime) -> Result<Self> {
        let member = url("etcd")?.replace("etcd://", "http://");
        let options = ConnectOptions {
            timeout: Duration::from_secs(2),
            user: None,
            tls: None,
        };
        let client = runtime.block_on(Client::connect(&[member], &options))?;
        Ok(Self {
            runtime,
            client,
            lease: 0,
        })
    }
}

#[cfg(feature = "etcd")]
impl Exclusion for EtcdCalls {
    fn acquire(&mut self) -> Result<()> {
        let client = &self.client;
        self.lease = self.runtime.block_on(async {
            let first = Range::prefix(Self::RANGE);
            let look = [TxnOp::range(first.limit(1)), TxnOp::get(Self::KEY)];
            client.txn(Txn::new().and_then(look)).await?;
            let lease = client.lease_grant(11).await?;
            let free = Compare::create_revision(Self::RANGE, CompareOp::Equal, 0).with_prefix();
            let put = TxnOp::put(Self::KEY, "{}", lease);
            client.txn(Txn::new().when([free]).and_then([put])).await?;
            Ok::<_, ClientError>(lease)
        })?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        let (client, lease) = (&self.client, self.lease);
        self.runtime.block_on(async {
            let gone = [TxnOp::get(Self::KEY), TxnOp::delete(Self::KEY)];
            client.txn(Txn::new().and_then(gone)).await?;
            client.lease_revoke(lease).await
        })?;
        Ok(())
    }
}
