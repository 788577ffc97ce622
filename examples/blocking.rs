//! Takes a lock that every process of this machine sees, works, extends it, gives it back.
//!
//! `cargo run --example blocking`

use std::time::Duration;

use verrou::blocking::LockFactory;
use verrou::{Error, Fence, Retry, Ttl};
use verrou_host::{LeaseFileStore, StoreOptions, System};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = tempfile::tempdir()?; // a program would use a folder that stays
    let store = LeaseFileStore::open(folder.path(), &StoreOptions::default())?;
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
    held.extend(Some(Ttl::new(Duration::from_secs(5))?))?;
    assert!(held.remaining() <= Some(Duration::from_secs(5)));

    // Whoever comes meanwhile waits for as long as they like.
    let patience = Retry::default().timeout(Duration::from_millis(100));
    match locks
        .create_lock("my-resource", "10s")?
        .acquire_with(&patience)
    {
        Err(Error::Timeout { .. }) => println!("the other one gave up"),
        other => panic!("the lock is held: {other:?}"),
    }
    held.release()?;
    assert!(!lock.is_locked()?);
    Ok(())
}
