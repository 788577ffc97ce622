//! A store for the lock component, as a component: leases in this component's memory.

use std::cell::RefCell;
use std::collections::BTreeMap;

use exports::verrou::lock::store::{
    Acquired, Capabilities, Claim, FencingToken, Guest, GuestWaiter, Holder, Mode, Renewed,
    StoreError, Waiter,
};
use wasi::clocks::monotonic_clock::{Instant, now};
use wasi::io::poll::Pollable;

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

/// Frees the name if it is held and `condition` holds; returns whether it did.
fn free(name: &str, condition: impl FnOnce(&Record) -> bool) -> bool {
    atomically(|records, _| {
        let frees = records.by_name.get(name).is_some_and(condition);
        if frees {
            records.by_name.remove(name);
        }
        frees
    })
}

/// The place in a wait queue, which this store does not have.
enum NoWaiter {}

impl GuestWaiter for NoWaiter {
    fn subscribe(&self) -> Pollable {
        match *self {}
    }
}

impl Guest for Provider {
    type Waiter = NoWaiter;

    fn acquire(claim: Claim) -> Result<Acquired, StoreError> {
        Ok(atomically(|records, now| {
            let until = end(&claim, now);
            let token = match records.by_name.get(&claim.name) {
                // A retry: the reply was lost.
                Some(record) if record.owner == claim.owner => record.token,
                Some(record) => return Acquired::Busy(record.until.map(|until| until - now)),
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
            Acquired::Granted(Some(token))
        }))
    }

    fn extend(claim: Claim) -> Result<bool, StoreError> {
        Ok(atomically(|records, now| {
            match records.by_name.get_mut(&claim.name) {
                Some(record) if record.owner == claim.owner => {
                    record.until = end(&claim, now);
                    true
                }
                _ => false,
            }
        }))
    }

    /// Renews as `extend` does, because this store does not revive records.
    fn renew(claim: Claim, _: Option<FencingToken>) -> Result<Renewed, StoreError> {
        Ok(if Self::extend(claim)? {
            Renewed::Granted
        } else {
            Renewed::Lost
        })
    }

    fn release(claim: Claim) -> Result<bool, StoreError> {
        Ok(free(&claim.name, |record| record.owner == claim.owner))
    }

    fn force_release(name: String, only: Option<FencingToken>) -> Result<bool, StoreError> {
        Ok(free(&name, |record| {
            only.is_none_or(|only| only == record.token)
        }))
    }

    fn holders(name: String) -> Result<Vec<Holder>, StoreError> {
        Ok(atomically(|records, now| {
            let holder = records.by_name.get(&name).map(|record| Holder {
                fencing_token: Some(record.token),
                mode: Mode::Exclusive,
                remaining: record.until.map(|until| until - now),
                since: None,
                process: None,
                detached: false,
            });
            holder.into_iter().collect()
        }))
    }

    /// Changes nothing, because no record is ephemeral.
    fn detach(_: Claim) -> Result<bool, StoreError> {
        Ok(true)
    }

    fn get_capabilities() -> Capabilities {
        Capabilities::EXPIRES
            | Capabilities::TRANSFERS
            | Capabilities::FORCE_RELEASES
            | Capabilities::FENCES
    }

    fn join(_: Claim) -> Option<Waiter> {
        None
    }
}
