//! A store for the lock component, as a component: leases in this component's memory.

use std::cell::RefCell;
use std::collections::BTreeMap;

use exports::verrou::lock::store::{
    Abilities, Claim, FencingToken, Guest, Holder, Reply, StoreError,
};
use wasi::clocks::monotonic_clock::{Instant, now};

wit_bindgen::generate!({
    inline: "
        package example:provider;

        world provider {
          include verrou:lock/store-provider@0.1.0;
          import wasi:clocks/monotonic-clock@0.2.0;
        }
    ",
    path: "../../wit",
    generate_all,
});
export!(Provider);

struct Provider;

struct Record {
    owner: String,
    token: FencingToken,
    until: Option<Instant>,
}

#[derive(Default)]
struct Records {
    by_name: BTreeMap<String, Record>,
    /// The number of grants of all names: with one counter, a free name needs no memory.
    grants: FencingToken,
}

thread_local! {
    static RECORDS: RefCell<Records> = RefCell::default();
}

/// Does one atomic operation on the records that have not expired, and passes it the time. It is atomic
/// because a component has one caller at a time.
fn atomically<T>(operation: impl FnOnce(&mut Records, Instant) -> T) -> T {
    RECORDS.with_borrow_mut(|records| {
        let now = now();
        let lasts = |record: &Record| record.until.is_none_or(|until| now < until);
        records.by_name.retain(|_, record| lasts(record));
        operation(records, now)
    })
}

/// Returns the end of a lease of `claim` that begins now.
fn end(claim: &Claim, now: Instant) -> Option<Instant> {
    claim.ttl.map(|ttl| now.saturating_add(ttl))
}

/// Frees the name if it is held and `condition` holds.
fn free(name: &str, condition: impl FnOnce(&Record) -> bool) -> Reply {
    atomically(|records, _| match records.by_name.get(name) {
        Some(record) if condition(record) => {
            records.by_name.remove(name);
            Reply::Granted(None)
        }
        _ => Reply::Refused(None),
    })
}

impl Guest for Provider {
    fn acquire(claim: Claim) -> Result<Reply, StoreError> {
        Ok(atomically(|records, now| {
            let until = end(&claim, now);
            let token = match records.by_name.get(&claim.name) {
                // A retry: the reply was lost.
                Some(record) if record.owner == claim.owner => record.token,
                Some(record) => return Reply::Refused(record.until.map(|until| until - now)),
                None => {
                    records.grants += 1;
                    records.grants
                }
            };
            let owner = claim.owner;
            records.by_name.insert(
                claim.name,
                Record {
                    owner,
                    token,
                    until,
                },
            );
            Reply::Granted(Some(token))
        }))
    }

    fn extend(claim: Claim) -> Result<Reply, StoreError> {
        Ok(atomically(|records, now| {
            match records.by_name.get_mut(&claim.name) {
                Some(record) if record.owner == claim.owner => {
                    record.until = end(&claim, now);
                    Reply::Granted(None)
                }
                _ => Reply::Refused(None),
            }
        }))
    }

    fn release(claim: Claim) -> Result<Reply, StoreError> {
        Ok(free(&claim.name, |record| record.owner == claim.owner))
    }

    fn evict(name: String, only: Option<FencingToken>) -> Result<Reply, StoreError> {
        Ok(free(&name, |record| {
            only.is_none_or(|only| only == record.token)
        }))
    }

    fn inspect(name: String) -> Result<Option<Holder>, StoreError> {
        Ok(atomically(|records, now| {
            records.by_name.get(&name).map(|record| Holder {
                fencing_token: Some(record.token),
                remaining: record.until.map(|until| until - now),
            })
        }))
    }

    /// Does nothing, because no record is ephemeral.
    fn detach(claim: Claim) -> Result<Reply, StoreError> {
        Ok(atomically(|records, _| {
            match records.by_name.get(&claim.name) {
                Some(record) if record.owner == claim.owner => Reply::Granted(None),
                _ => Reply::Refused(None),
            }
        }))
    }

    fn can() -> Abilities {
        Abilities {
            expires: true,
            ephemeral: false,
            transfers: true,
            evicts: true,
            fences: true,
        }
    }
}
