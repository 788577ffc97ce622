//! A store for the lock component over `wasi:keyvalue`: each operation reads one value, and replaces it by
//! compare-and-swap. README.md lists the hosts on which that is safe.

mod record;

use exports::verrou::lock::store::{
    Acquired, Capabilities, Claim, FencingToken, Guest, GuestWaiter, Holder, Mode, Renewed,
    StoreError, StoreErrorCode, Waiter,
};
use record::{Holding, Record};
use wasi::keyvalue::atomics::{Cas, CasError, swap};
use wasi::keyvalue::store::{self, Error};
use wasip2::clocks::wall_clock;
use wasip2::io::poll::Pollable;

wit_bindgen::generate!({
    inline: "
        package example:provider;

        world provider {
          include verrou:lock/store-provider@0.1.0;
          import wasi:keyvalue/atomics@0.2.0-draft2;
        }
    ",
    path: ["../../wit", "wit/deps/keyvalue.wit"],
    with: { "wasi:io/poll@0.2.0": wasip2::io::poll },
    generate_all,
});
export!(Provider);

/// The bucket that hosts give to a component by default.
const BUCKET: &str = "default";
/// The prefix of a lock's name in its key: the bucket may have other keys.
const PREFIX: &str = "verrou:";
/// The maximum number of tries of an operation while other clients change the same record.
const ATTEMPTS: u32 = 100;

struct Provider;

/// Does one atomic operation. `operation` gets the record of `name`, its holding unless that has expired, and
/// the time; it returns the reply, and the new record if that changes.
fn atomically<T>(
    name: &str,
    operation: impl Fn(Record, Option<Holding>, u64) -> (T, Option<Record>),
) -> Result<T, StoreError> {
    let key = format!("{PREFIX}{name}");
    let bucket = store::open(BUCKET).map_err(failed)?;
    let mut cas = Cas::new(&bucket, &key).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        // Before every swap: some hosts compare only with the value that was read.
        let value = cas.current().map_err(failed)?;
        let record = Record::parse(value.as_deref()).map_err(|why| StoreError {
            code: StoreErrorCode::Corrupt,
            message: format!("the key {key} in the bucket {BUCKET} {why}"),
            temporary: false,
        })?;
        let now = now();
        let lasts = |held: &Holding| held.until.is_none_or(|until| now < until);
        let held = record.holding.clone().filter(lasts);
        let (reply, next) = operation(record, held, now);
        let Some(next) = next else {
            return Ok(reply);
        };
        match swap(cas, next.to_string().as_bytes()) {
            Ok(()) => return Ok(reply),
            Err(CasError::CasFailed(fresh)) => cas = fresh,
            Err(CasError::StoreError(error)) => return Err(failed(error)),
        }
    }
    Err(StoreError {
        code: StoreErrorCode::Unavailable,
        message: format!("other clients changed the key {key} {ATTEMPTS} times meanwhile"),
        temporary: true,
    })
}

/// Changes the holding of a name if it is held and `condition` holds; returns whether it did.
fn change(
    name: &str,
    condition: impl Fn(&Record, &Holding) -> bool,
    change: impl Fn(Holding, u64) -> Option<Holding>,
) -> Result<bool, StoreError> {
    atomically(name, |record, held, now| match held {
        Some(held) if condition(&record, &held) => {
            let holding = change(held, now);
            (true, Some(Record { holding, ..record }))
        }
        _ => (false, None),
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
        atomically(&claim.name, |record, held, now| {
            let token = match held {
                // A retry: the reply was lost.
                Some(held) if held.owner == claim.owner => record.token,
                Some(held) => {
                    let remaining = held.until.map(|until| until - now);
                    return (Acquired::Busy(remaining), None);
                }
                None => record.token + 1,
            };
            let holding = Some(holding(&claim, now));
            let granted = Acquired::Granted(Some(token));
            (granted, Some(Record { token, holding }))
        })
    }

    fn extend(claim: Claim) -> Result<bool, StoreError> {
        let mine = |_: &Record, held: &Holding| held.owner == claim.owner;
        change(&claim.name, mine, |_, now| Some(holding(&claim, now)))
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
        change(
            &claim.name,
            |_, held| held.owner == claim.owner,
            |_, _| None,
        )
    }

    fn force_release(name: String, only: Option<FencingToken>) -> Result<bool, StoreError> {
        let meant = |record: &Record, _: &Holding| only.is_none_or(|only| only == record.token);
        change(&name, meant, |_, _| None)
    }

    fn holders(name: String) -> Result<Vec<Holder>, StoreError> {
        atomically(&name, |record, held, now| {
            let holder = held.map(|held| Holder {
                fencing_token: Some(record.token),
                mode: Mode::Exclusive,
                remaining: held.until.map(|until| until - now),
                since: None,
                process: None,
                detached: false,
            });
            (holder.into_iter().collect(), None)
        })
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

/// Returns the holding that `claim` requests, from `now` on.
fn holding(claim: &Claim, now: u64) -> Holding {
    Holding {
        owner: claim.owner.clone(),
        until: claim.ttl.map(|ttl| now.saturating_add(ttl)),
    }
}

/// Returns the time, in nanoseconds since the start of 1970.
fn now() -> u64 {
    let now = wall_clock::now();
    now.seconds * 1_000_000_000 + u64::from(now.nanoseconds)
}

fn failed(why: Error) -> StoreError {
    let (code, message) = match why {
        Error::NoSuchStore => (
            StoreErrorCode::Other("no-such-store".to_owned()),
            format!("this host has no bucket {BUCKET}"),
        ),
        Error::AccessDenied => (
            StoreErrorCode::Denied,
            format!(
                "this component may not use the bucket {BUCKET}; allow it in the configuration of the host"
            ),
        ),
        Error::Other(message) => (StoreErrorCode::Unavailable, message),
    };
    StoreError {
        temporary: matches!(code, StoreErrorCode::Unavailable),
        code,
        message,
    }
}
