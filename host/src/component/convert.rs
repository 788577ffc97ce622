//! Between the words of `wit/` and this program's.

use std::time::Duration;

use verrou::{Abilities, Backoff, Claim, Fence, Holder, Name, Reply, Retry, StoreError, Ttl};

use super::bindings::blocking::exports::verrou::lock::locks;
use super::bindings::blocking::verrou::lock::store;

pub(super) fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap_or(u64::MAX)
}

pub(super) fn duration(nanos: Option<u64>) -> Option<Duration> {
    nanos.map(Duration::from_nanos)
}

pub(super) fn name(text: &str) -> Result<Name, StoreError> {
    Name::new(text).map_err(StoreError::permanent)
}

pub(super) fn claim(claim: &store::Claim) -> Result<Claim, StoreError> {
    Ok(Claim {
        name: name(&claim.name)?,
        owner: claim.owner.parse().map_err(StoreError::permanent)?,
        ttl: Ttl::try_from(duration(claim.ttl)).map_err(StoreError::permanent)?,
        ephemeral: claim.ephemeral,
    })
}

pub(super) fn reply(reply: Result<Reply, StoreError>) -> Result<store::Reply, store::StoreError> {
    Ok(match reply.map_err(|err| error(&err))? {
        Reply::Granted { fence } => store::Reply::Granted(fence.map(Fence::get)),
        Reply::Refused { remaining } => store::Reply::Refused(remaining.map(nanos)),
    })
}

pub(super) fn holder(
    holder: Result<Option<Holder>, StoreError>,
) -> Result<Option<store::Holder>, store::StoreError> {
    let holder = holder.map_err(|err| error(&err))?;
    Ok(holder.map(|holder| store::Holder {
        owner: holder.owner.map(|owner| owner.to_string()),
        fencing_token: holder.fence.map(Fence::get),
        remaining: holder.remaining.map(nanos),
    }))
}

fn error(err: &StoreError) -> store::StoreError {
    store::StoreError {
        temporary: err.is_temporary(),
        message: err.to_string(),
    }
}

pub(super) fn abilities(abilities: Abilities) -> store::Abilities {
    let Abilities {
        expires,
        ephemeral,
        transfers,
        evicts,
        fences,
    } = abilities;
    store::Abilities {
        expires,
        ephemeral,
        transfers,
        evicts,
        fences,
    }
}

pub(super) fn retry(retry: &Retry) -> locks::Retry {
    let (delay, max_delay) = match retry.pauses() {
        Backoff::Jittered { first, cap } => (first, Some(cap)),
        Backoff::Constant(pause) => (pause, None),
        _ => (Retry::DEFAULT_DELAY, None),
    };
    locks::Retry {
        attempts: retry.most_attempts().map(Into::into),
        delay: Some(nanos(delay)),
        max_delay: max_delay.map(nanos),
        timeout: retry.longest().map(nanos),
    }
}
