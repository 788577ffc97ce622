//! A store of your own: five atomic operations on its records, here in a vector.
//!
//! `cargo run --example bring_your_own`. The tests below are the suite that every store must pass:
//! `cargo test --example bring_your_own`

use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use verrou::blocking::LockFactory;
use verrou::{
    Acquired, Capabilities, Claim, Clock, Fence, Holder, Name, Store, StoreError, Timestamp,
};
use verrou_host::System;

#[derive(Debug)]
struct VecStore<C> {
    clock: C,
    records: Mutex<(u64, Vec<Record>)>,
}

#[derive(Debug)]
struct Record {
    claim: Claim,
    fence: Option<Fence>,
    until: Option<Timestamp>,
}

impl<C: Clock> VecStore<C> {
    fn new(clock: C) -> Self {
        Self {
            clock,
            records: Mutex::default(),
        }
    }

    /// Returns the number of grants, the records that have not expired, and the time.
    fn open(&self) -> (MutexGuard<'_, (u64, Vec<Record>)>, Timestamp) {
        let mut records = self.records.lock().expect("no operation panics");
        let now = self.clock.now();
        records
            .1
            .retain(|record| record.until.is_none_or(|until| now < until));
        (records, now)
    }

    fn remove(&self, condition: impl Fn(&Record) -> bool) -> bool {
        let (mut records, _) = self.open();
        let before = records.1.len();
        records.1.retain(|record| !condition(record));
        records.1.len() < before
    }
}

impl<C: Clock + Debug + Send + Sync> Store for VecStore<C> {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let (mut records, now) = self.open();
        let until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
        let mut held = records.1.iter_mut();
        if let Some(held) = held.find(|record| record.claim.name == claim.name) {
            if held.claim.owner == claim.owner {
                held.until = until; // a retry: the reply was lost
                return Ok(Acquired::Granted { fence: held.fence });
            }
            let remaining = held.until.map(|until| until.saturating_since(now));
            return Ok(Acquired::Busy { remaining });
        }
        records.0 += 1;
        let fence = Fence::new(records.0);
        records.1.push(Record {
            claim: claim.clone(),
            fence,
            until,
        });
        Ok(Acquired::Granted { fence })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let (mut records, now) = self.open();
        let mine = |record: &&mut Record| {
            record.claim.name == claim.name && record.claim.owner == claim.owner
        };
        let record = records.1.iter_mut().find(mine);
        Ok(record.is_some_and(|record| {
            record.until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
            true
        }))
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        Ok(self
            .remove(|record| record.claim.name == claim.name && record.claim.owner == claim.owner))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        Ok(self.remove(|record| {
            record.claim.name == *name && (only.is_none() || only == record.fence)
        }))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let (records, now) = self.open();
        let found = records.1.iter().filter(|record| record.claim.name == *name);
        let holders = found.map(|record| {
            Holder::new(
                record.fence,
                record.until.map(|until| until.saturating_since(now)),
            )
        });
        Ok(holders.collect())
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
    let locks = LockFactory::new(Arc::new(VecStore::new(System)), System);
    let lock = locks.create_lock("my-resource", Duration::from_secs(2))?;
    lock.run(|held| println!("held under fence {:?}", held.fence()))?;
    assert!(!lock.is_locked()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use verrou::conformance::{Fixture, TestClock};

    use super::*;

    struct Place(TestClock, Arc<VecStore<TestClock>>);

    fn place() -> Place {
        let clock = TestClock::running();
        Place(clock.clone(), Arc::new(VecStore::new(clock)))
    }

    impl Fixture for Place {
        type Store = Arc<VecStore<TestClock>>;
        type Host = TestClock;

        fn client(&self) -> Self::Store {
            Arc::clone(&self.1)
        }
        fn host(&self) -> TestClock {
            self.0.clone()
        }
        fn pass(&self, time: Duration) {
            self.0.advance(time);
        }
    }

    verrou::conformance!(vec_store, place());
}
