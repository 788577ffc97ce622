//! A store for the lock component over `wasi:keyvalue`: each step looks at one value, and swaps it
//! for another if nobody has changed it meanwhile. README.md says where that is safe.

mod record;

use exports::verrou::lock::store::{
    Abilities, Claim, FencingToken, Guest, Holder, Reply, StoreError,
};
use record::{Holding, Record};
use wasi::keyvalue::atomics::{Cas, CasError, swap};
use wasi::keyvalue::store::{self, Error};
use wasip2::clocks::wall_clock;

wit_bindgen::generate!({
    inline: "
        package example:provider;

        world provider {
          include verrou:lock/store-provider@0.1.0;
          import wasi:keyvalue/atomics@0.2.0-draft2;
        }
    ",
    path: ["../../wit", "wit/deps/keyvalue.wit"],
    generate_all,
});
export!(Provider);

/// The bucket that hosts give to a component unless they are told otherwise.
const BUCKET: &str = "default";
/// In front of a lock's name: there may be other things in the bucket.
const PREFIX: &str = "verrou:";
/// So often a step is tried while others change the same record.
const ATTEMPTS: u32 = 100;

struct Provider;

/// Takes one step: from the record of `name`, and who holds it at the time given, to what to say,
/// and the record to leave if that changes.
fn step<T>(
    name: &str,
    step: impl Fn(Record, Option<Holding>, u64) -> (T, Option<Record>),
) -> Result<T, StoreError> {
    let key = format!("{PREFIX}{name}");
    let bucket = store::open(BUCKET).map_err(failed)?;
    let mut cas = Cas::new(&bucket, &key).map_err(failed)?;
    for _ in 0..ATTEMPTS {
        // Before every swap: some hosts compare only with what they were asked for.
        let value = cas.current().map_err(failed)?;
        let record = Record::parse(value.as_deref())
            .map_err(|why| error(false, format!("the key {key} in the bucket {BUCKET} {why}")))?;
        let now = now();
        let lasts = |held: &Holding| held.until.is_none_or(|until| now < until);
        let held = record.holding.clone().filter(lasts);
        let (said, next) = step(record, held, now);
        let Some(next) = next else {
            return Ok(said);
        };
        match swap(cas, next.to_string().as_bytes()) {
            Ok(()) => return Ok(said),
            Err(CasError::CasFailed(fresh)) => cas = fresh,
            Err(CasError::StoreError(error)) => return Err(failed(error)),
        }
    }
    Err(error(
        true,
        format!("others changed the key {key} {ATTEMPTS} times meanwhile"),
    ))
}

/// Changes the record of a name that `whose` says may be changed; refused when it does not.
fn change(
    name: &str,
    whose: impl Fn(&Record, &Holding) -> bool,
    change: impl Fn(Holding, u64) -> Option<Holding>,
) -> Result<Reply, StoreError> {
    step(name, |record, held, now| match held {
        Some(held) if whose(&record, &held) => {
            let holding = change(held, now);
            (Reply::Granted(None), Some(Record { holding, ..record }))
        }
        _ => (Reply::Refused(None), None),
    })
}

impl Guest for Provider {
    fn acquire(claim: Claim) -> Result<Reply, StoreError> {
        step(&claim.name, |record, held, now| {
            let token = match held {
                // Asked again: the reply was lost.
                Some(held) if held.owner == claim.owner => record.token,
                Some(held) => {
                    let remaining = held.until.map(|until| until - now);
                    return (Reply::Refused(remaining), None);
                }
                None => record.token + 1,
            };
            let holding = Some(holding(&claim, now));
            (Reply::Granted(Some(token)), Some(Record { token, holding }))
        })
    }

    fn extend(claim: Claim) -> Result<Reply, StoreError> {
        let mine = |_: &Record, held: &Holding| held.owner == claim.owner;
        change(&claim.name, mine, |_, now| Some(holding(&claim, now)))
    }

    fn release(claim: Claim) -> Result<Reply, StoreError> {
        change(
            &claim.name,
            |_, held| held.owner == claim.owner,
            |_, _| None,
        )
    }

    fn evict(name: String, only: Option<FencingToken>) -> Result<Reply, StoreError> {
        let meant = |record: &Record, _: &Holding| only.is_none_or(|only| only == record.token);
        change(&name, meant, |_, _| None)
    }

    fn inspect(name: String) -> Result<Option<Holder>, StoreError> {
        step(&name, |record, held, now| {
            let holder = held.map(|held| Holder {
                fencing_token: Some(record.token),
                remaining: held.until.map(|until| until - now),
            });
            (holder, None)
        })
    }

    /// Nothing here is ephemeral, so there is nothing to do.
    fn detach(claim: Claim) -> Result<Reply, StoreError> {
        step(&claim.name, |_, held, _| match held {
            Some(held) if held.owner == claim.owner => (Reply::Granted(None), None),
            _ => (Reply::Refused(None), None),
        })
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

/// What `claim` asks for, from now on.
fn holding(claim: &Claim, now: u64) -> Holding {
    Holding {
        owner: claim.owner.clone(),
        until: claim.ttl.map(|ttl| now.saturating_add(ttl)),
    }
}

/// Nanoseconds since the start of 1970.
fn now() -> u64 {
    let now = wall_clock::now();
    now.seconds * 1_000_000_000 + u64::from(now.nanoseconds)
}

fn error(temporary: bool, message: String) -> StoreError {
    StoreError { temporary, message }
}

fn failed(why: Error) -> StoreError {
    match why {
        Error::NoSuchStore => error(false, format!("this host has no bucket {BUCKET}")),
        Error::AccessDenied => {
            let message = "this component may not use the bucket";
            error(
                false,
                format!("{message} {BUCKET}: its host has to be told that it may"),
            )
        }
        Error::Other(message) => error(true, message),
    }
}
