//! The lock component of WASI 0.3 in a Rust program on tokio: several tasks wait in one instance.
//!
//! `cargo run --package verrou-host --features tokio,wasmtime --example embed_async`

use std::time::Duration;

use tokio::time::timeout;
use verrou::{MemoryStore, Retry};
use verrou_host::component::{ConcurrentRunner, Limits};
use verrou_host::{System, Tokio};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runner = ConcurrentRunner::bundled(&Limits::default())?;
    // Any `AsyncStore` is a store of the component, such as one on a server.
    let instance = runner.instance(MemoryStore::new(System), Tokio).await?;
    let ttl = Some(Duration::from_secs(2));
    let retry = Retry::default();

    let first = instance.create_lock("my-resource", ttl).await?;
    let fence = instance.acquire(first, &retry).await?;
    println!("the first holds it, fence {fence:?}");

    // A wait that is dropped leaves the queue.
    let second = instance.create_lock("my-resource", ttl).await?;
    let waiting = instance.acquire(second, &retry);
    let waited = timeout(Duration::from_millis(50), waiting).await;
    assert!(waited.is_err(), "the first holds it");

    // Two calls of one instance at a time: one waits, the other works, renews its lease, and releases it.
    let works = async {
        let work = tokio::time::sleep(Duration::from_millis(100));
        instance.keep(first, work).await?;
        instance.release(first).await
    };
    let (fence, worked) = tokio::join!(instance.acquire(second, &retry), works);
    worked?;
    println!("the second acquired it, fence {:?}", fence?);
    instance.forget(second).await?;
    assert!(!instance.is_locked(first).await?, "a dropped lock is free");
    Ok(())
}
