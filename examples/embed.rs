//! The lock component in a Rust program, with a store of that program.
//!
//! `cargo xtask component`, then
//! `cargo run --package verrou-host --features wasmtime --example embed`

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Abilities, Claim, Fence, Holder, Name, Renewed, Reply, Retry, Store, StoreError};
use verrou_host::System;
use verrou_host::component::{Limits, Runner};

/// A store of leases in a map, by this process's monotonic clock.
#[derive(Default)]
struct MapStore(Mutex<Records>);

#[derive(Default)]
struct Records {
    held: HashMap<Name, (Claim, Fence, Option<Instant>)>,
    grants: u64,
}

impl MapStore {
    /// Does one atomic operation on the records that have not expired.
    fn atomically<T>(&self, operation: impl FnOnce(&mut Records) -> T) -> T {
        let mut records = self.0.lock().expect("no operation panics");
        let now = Instant::now();
        records
            .held
            .retain(|_, (.., until)| until.is_none_or(|until| now < until));
        operation(&mut records)
    }

    /// Removes the record of `name` if `condition` holds.
    fn free(
        &self,
        name: &Name,
        condition: impl FnOnce(&(Claim, Fence, Option<Instant>)) -> bool,
    ) -> Reply {
        self.atomically(|records| match records.held.get(name) {
            Some(record) if condition(record) => {
                records.held.remove(name);
                Reply::Granted { fence: None }
            }
            _ => Reply::REFUSED,
        })
    }
}

impl Records {
    fn extend(&mut self, claim: &Claim) -> Reply {
        match self.held.get_mut(&claim.name) {
            Some((mine, fence, until)) if mine.owner == claim.owner => {
                *until = claim.ttl.duration().map(|ttl| Instant::now() + ttl);
                Reply::Granted {
                    fence: Some(*fence),
                }
            }
            _ => Reply::REFUSED,
        }
    }
}

impl Store for MapStore {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Ok(self.atomically(|records| {
            if let extended @ Reply::Granted { .. } = records.extend(claim) {
                return extended; // a retry: the reply was lost
            }
            if let Some((.., until)) = records.held.get(&claim.name) {
                let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
                return Reply::Refused { remaining };
            }
            records.grants += 1;
            let fence = Fence::new(records.grants).unwrap_or(Fence::FIRST);
            let until = claim.ttl.duration().map(|ttl| Instant::now() + ttl);
            let record = (claim.clone(), fence, until);
            records.held.insert(claim.name.clone(), record);
            Reply::Granted { fence: Some(fence) }
        }))
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Ok(self.atomically(|records| records.extend(claim)))
    }

    fn renew(&self, claim: &Claim, _: Option<Fence>) -> Result<Renewed, StoreError> {
        Ok(self.extend(claim)?.into())
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Ok(self.free(&claim.name, |(mine, ..)| mine.owner == claim.owner))
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        Ok(self.free(name, |(_, fence, _)| only.is_none_or(|only| only == *fence)))
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        Ok(self.atomically(|records| {
            records.held.get(name).map(|(_, fence, until)| Holder {
                fence: Some(*fence),
                since: None,
                remaining: until.map(|until| until.saturating_duration_since(Instant::now())),
                process: None,
                detached: false,
            })
        }))
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            expires: true,
            ephemeral: false,
            transfers: true,
            evicts: true,
            fences: true,
            revives: false,
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(MapStore::default());
    let runner = Runner::load("target/component/verrou.wasm", &Limits::default())?;

    // An instance for each thread, all of them with this store.
    let mut first = runner.instance(Arc::clone(&store), System)?;
    let lock = first.create_lock("my-resource", Some(Duration::from_secs(2)))?;
    let fence = first.acquire(lock, &Retry::default())?;
    println!("the first holds it, fence {fence:?}");
    thread::scope(|scope| {
        let second = scope.spawn(|| {
            let mut second = runner
                .instance(Arc::clone(&store), System)
                .expect("an instance");
            let lock = second.create_lock("my-resource", None).expect("a lock");
            assert!(!second.try_acquire(lock).expect("an answer"));
            let retry = Retry::default().timeout(Duration::from_secs(10));
            second.acquire(lock, &retry).expect("a lock that gets free")
        });
        thread::sleep(Duration::from_millis(100)); // the work
        first.release(lock).expect("my lock");
        println!(
            "the second acquired it, fence {:?}",
            second.join().expect("a thread")
        );
    });
    Ok(())
}
