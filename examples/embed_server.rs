//! The lock component in a Rust program, with a server as its store: it shares its locks with all clients
//! of that server, in any language.
//!
//! `cargo run --package verrou-host --features wasmtime,redis --example embed_server -- redis://HOST`

use std::env;
use std::sync::Arc;
use std::time::Duration;

use verrou::Retry;
use verrou_host::component::{Limits, Runner};
use verrou_host::{AnyStore, StoreOptions, System};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::args()
        .nth(1)
        .ok_or("name a store, such as redis://HOST")?;
    let store = Arc::new(AnyStore::open(&url.parse()?, &StoreOptions::default())?);
    let runner = Runner::bundled(&Limits::default())?;

    let mut component = runner.instance(Arc::clone(&store), System)?;
    let lock = component.create_lock("my-resource", Some(Duration::from_secs(10)))?;
    let retry = Retry::default().timeout(Duration::from_secs(30));
    let fence = component.acquire(lock, &retry)?;
    println!("it holds the lock, fence {fence:?}"); // the work
    component.release(lock)?;
    Ok(())
}
