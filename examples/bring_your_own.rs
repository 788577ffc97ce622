//! A store of your own: five atomic operations on its records, here in a vector.
//!
//! `cargo run --example bring_your_own`. The tests below are the suite that every store must pass:
//! `cargo test --example bring_your_own`

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use verrou::blocking::LockFactory;
use verrou::{
    Abilities, Claim, Clock, Fence, Holder, Name, Renewed, Reply, Store, StoreError, Timestamp,
};
use verrou_host::System;

struct VecStore<C> {
    clock: C,
    records: Mutex<(u64, Vec<Record>)>,
}

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

    fn remove(&self, condition: impl Fn(&Record) -> bool) -> Reply {
        let (mut records, _) = self.open();
        let before = records.1.len();
        records.1.retain(|record| !condition(record));
        if records.1.len() < before {
            Reply::Granted { fence: None }
        } else {
            Reply::REFUSED
        }
    }
}

impl<C: Clock> Store for VecStore<C> {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        if let extended @ Reply::Granted { .. } = self.extend(claim)? {
            return Ok(extended); // a retry: the reply was lost
        }
        let (mut records, now) = self.open();
        if let Some(held) = records
            .1
            .iter()
            .find(|record| record.claim.name == claim.name)
        {
            let remaining = held.until.map(|until| until.saturating_since(now));
            return Ok(Reply::Refused { remaining });
        }
        records.0 += 1;
        let fence = Fence::new(records.0);
        let until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
        records.1.push(Record {
            claim: claim.clone(),
            fence,
            until,
        });
        Ok(Reply::Granted { fence })
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        let (mut records, now) = self.open();
        let mine = |record: &&mut Record| {
            record.claim.name == claim.name && record.claim.owner == claim.owner
        };
        Ok(match records.1.iter_mut().find(mine) {
            Some(record) => {
                record.until = claim.ttl.duration().map(|ttl| now.saturating_add(ttl));
                Reply::Granted {
                    fence: record.fence,
                }
            }
            None => Reply::REFUSED,
        })
    }

    fn renew(&self, claim: &Claim, _: Option<Fence>) -> Result<Renewed, StoreError> {
        Ok(self.extend(claim)?.into())
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        Ok(self
            .remove(|record| record.claim.name == claim.name && record.claim.owner == claim.owner))
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        Ok(self.remove(|record| {
            record.claim.name == *name && (only.is_none() || only == record.fence)
        }))
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        let (records, now) = self.open();
        let found = records.1.iter().find(|record| record.claim.name == *name);
        Ok(found.map(|record| Holder {
            fence: record.fence,
            since: None,
            remaining: record.until.map(|until| until.saturating_since(now)),
            process: None,
            detached: false,
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
