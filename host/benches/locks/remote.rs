//! What excludes others by a server, in Rust: ours, and the bare requests that ours makes.

use std::env;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use verrou::nonblocking::{Lock, LockFactory};
use verrou_host::{ServerStore, StoreOptions, StoreUrl, Tokio};

use crate::Result;
use crate::exclusion::Exclusion;

/// The one of that kind, if there is one.
pub(crate) fn exclusion(kind: &str) -> Result<Option<Box<dyn Exclusion>>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok(Some(match kind {
        #[cfg(feature = "redis")]
        "redis-calls" => Box::new(RedisCalls::new(runtime)?),
        "redis" | "postgres" | "etcd" => Box::new(Ours::new(runtime, kind)?),
        _ => return Ok(None),
    }))
}

/// Where the server of that kind is.
fn url(kind: &str) -> Result<String> {
    let variable = format!("VERROU_BENCH_{}", kind.to_uppercase());
    Ok(env::var(variable)?)
}

/// One of ours.
struct Ours {
    runtime: Runtime,
    lock: Lock<Arc<ServerStore>, Tokio>,
}

impl Ours {
    fn new(runtime: Runtime, kind: &str) -> Result<Self> {
        let url: StoreUrl = url(kind)?.parse()?;
        let StoreUrl::Server(url) = url else {
            return Err("this is on no server".into());
        };
        let options = StoreOptions::default();
        let store = runtime.block_on(ServerStore::connect(&url, &options))?;
        let lock = LockFactory::new(Arc::new(store), Tokio).create_lock("lock", "10s")?;
        Ok(Self { runtime, lock })
    }
}

impl Exclusion for Ours {
    fn acquire(&mut self) -> Result<()> {
        self.runtime.block_on(self.lock.acquire())?;
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.runtime.block_on(self.lock.release())?)
    }
}

/// The scripts that ours runs for a lock that nobody else wants, and nothing else.
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
            let common = include_str!("../../src/server/redis/queue.lua");
            redis::Script::new(&format!("{common}{text}"))
        };
        Ok(Self {
            runtime,
            connection,
            acquire: script(include_str!("../../src/server/redis/acquire.lua")),
            release: script(include_str!("../../src/server/redis/release.lua")),
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
