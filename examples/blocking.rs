//! Acquires a lock that all processes of this machine share, works, extends the lease, and releases it.
//!
//! `cargo run --example blocking`

use std::time::Duration;

use verrou::blocking::LockFactory;
use verrou::{Error, Fence, Retry};
use verrou_host::{LeaseFileStore, StoreOptions, System};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?; // a program would use a permanent directory
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default())?;
    let locks = LockFactory::new(&store, System);
    let lock = locks.create_lock("my-resource", "10s")?;

    // By a closure: released when it returns, and when it panics.
    let length = lock.run(|held| {
        println!("working under fence {}", held.fence().map_or(0, Fence::get));
        "work".len()
    })?;
    assert_eq!(length, 4);

    // By a guard: released when it is dropped.
    let held = lock.guard()?;
    held.extend("5s")?;
    assert!(held.remaining() <= Some(Duration::from_secs(5)));

    // Another acquire request waits until its own timeout.
    let retry = Retry::default().timeout(Duration::from_millis(100));
    match locks
        .create_lock("my-resource", "10s")?
        .acquire_with(&retry)
    {
        Err(Error::Timeout { .. }) => println!("the other request timed out"),
        other => panic!("the lock is held: {other:?}"),
    }
    held.release()?;
    assert!(!lock.is_locked()?);
    Ok(())
}
