//! The lock component in a Rust program, with a store of that program.
//!
//! `cargo run --package verrou-host --features wasmtime --example embed`

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Acquired, Capabilities, Claim, Fence, Holder, Name, Retry, Store, StoreError};
use verrou_host::System;
use verrou_host::component::{Limits, Runner};

/// A store of leases in a map, by this process's monotonic clock.
#[derive(Debug, Default)]
struct MapStore(Mutex<Records>);

#[derive(Debug, Default)]
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
    ) -> bool {
        self.atomically(|records| match records.held.get(name) {
            Some(record) if condition(record) => records.held.remove(name).is_some(),
            _ => false,
        })
    }
}

impl Records {
    /// Extends the lease of `claim.owner`, and returns its fencing token.
    fn extend(&mut self, claim: &Claim) -> Option<Fence> {
        let (mine, fence, until) = self.held.get_mut(&claim.name)?;
        if mine.owner != claim.owner {
            return None;
        }
        *until = claim.ttl.duration().map(|ttl| Instant::now() + ttl);
        Some(*fence)
    }
}

impl Store for MapStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Ok(self.atomically(|records| {
            if let Some(fence) = records.extend(claim) {
                return Acquired::Granted { fence: Some(fence) }; // a retry: the reply was lost
            }
            if let Some((.., until)) = records.held.get(&claim.name) {
                let remaining = until.map(|until| until.saturating_duration_since(Instant::now()));
                return Acquired::Busy { remaining };
            }
            records.grants += 1;
            let fence = Fence::new(records.grants).unwrap_or(Fence::FIRST);
            let until = claim.ttl.duration().map(|ttl| Instant::now() + ttl);
            let record = (claim.clone(), fence, until);
            records.held.insert(claim.name.clone(), record);
            Acquired::Granted { fence: Some(fence) }
        }))
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self.atomically(|records| records.extend(claim)).is_some())
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self.free(&claim.name, |(mine, ..)| mine.owner == claim.owner))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Ok(self.free(name, |(_, fence, _)| only.is_none_or(|only| only == *fence)))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Ok(self.atomically(|records| {
            let held = records.held.get(name).into_iter();
            let holder = |(_, fence, until): &(_, Fence, Option<Instant>)| {
                Holder::new(
                    Some(*fence),
                    until.map(|until| until.saturating_duration_since(Instant::now())),
                )
            };
            held.map(holder).collect()
        }))
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.expires = true;
        capabilities.transfers = true;
        capabilities.force_releases = true;
        capabilities.fences = true;
        capabilities
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(MapStore::default());
    let runner = Runner::bundled(&Limits::default())?;

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
