//! Conversions between the types of `wit/` and this program's types.

use std::time::Duration;

use verrou::{Acquired, Backoff, Capabilities, Claim, Fence, Holder, Name, Retry, StoreError, Ttl};

use crate::bindings::blocking::verrou::lock::store;

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
    let owner = claim.owner.parse().map_err(StoreError::permanent)?;
    let ttl = Ttl::try_from(duration(claim.ttl)).map_err(StoreError::permanent)?;
    Ok(Claim::new(name(&claim.name)?, owner, ttl).ephemeral(claim.ephemeral))
}

pub(super) fn acquired(
    reply: Result<Acquired, StoreError>,
) -> Result<store::Reply, store::StoreError> {
    Ok(match reply.map_err(|err| error(&err))? {
        Acquired::Granted { fence } => store::Reply::Granted(fence.map(Fence::get)),
        Acquired::Busy { remaining } => store::Reply::Refused(remaining.map(nanos)),
    })
}

/// Converts the reply to another operation than an acquire request.
pub(super) fn done(reply: Result<bool, StoreError>) -> Result<store::Reply, store::StoreError> {
    Ok(if reply.map_err(|err| error(&err))? {
        store::Reply::Granted(None)
    } else {
        store::Reply::Refused(None)
    })
}

pub(super) fn holder(
    holders: Result<Vec<Holder>, StoreError>,
) -> Result<Option<store::Holder>, store::StoreError> {
    let holder = holders.map_err(|err| error(&err))?.pop();
    Ok(holder.map(|holder| store::Holder {
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

pub(super) fn capabilities(capabilities: Capabilities) -> store::Abilities {
    let Capabilities {
        expires,
        ephemeral,
        transfers,
        force_releases: evicts,
        fences,
        ..
    } = capabilities;
    store::Abilities {
        expires,
        ephemeral,
        transfers,
        evicts,
        fences,
    }
}

/// Implements the conversions of policies and errors for one set of bindings: each set has its own types
/// for the exports.
macro_rules! policies {
    ($wit:ident) => {
        fn policy(retry: &verrou::Retry) -> $wit::Retry {
            let (delay, max_delay) = $crate::convert::delays(retry);
            $wit::Retry {
                attempts: retry.most_attempts().map(Into::into),
                delay: Some(delay),
                max_delay,
                timeout: retry.longest().map($crate::convert::nanos),
            }
        }

        impl From<$wit::LockError> for $crate::ComponentError {
            fn from(err: $wit::LockError) -> Self {
                use $wit::ErrorCode;

                Self::Lock($crate::LockError {
                    code: match err.code {
                        ErrorCode::InvalidName => "E_INVALID_NAME",
                        ErrorCode::InvalidRetry => "E_INVALID_RETRY",
                        ErrorCode::InvalidSerializedLock => "E_INVALID_SERIALIZED_LOCK",
                        ErrorCode::InvalidTtl => "E_INVALID_TTL",
                        ErrorCode::Lost => "E_LOCK_LOST",
                        ErrorCode::NotOwner => "E_LOCK_NOT_OWNER",
                        ErrorCode::NotSerializable => "E_LOCK_NOT_SERIALIZABLE",
                        ErrorCode::Storage => "E_LOCK_STORAGE_ERROR",
                        ErrorCode::TooManyHandles => "E_TOO_MANY_HANDLES",
                    },
                    message: err.message,
                    temporary: err.temporary,
                })
            }
        }

        impl From<$wit::Loss> for $crate::ComponentError {
            fn from(loss: $wit::Loss) -> Self {
                Self::Lost(match loss {
                    $wit::Loss::Expired => verrou::Loss::Expired,
                    $wit::Loss::Revoked => verrou::Loss::Revoked,
                })
            }
        }
    };
}

pub(super) use policies;

/// Returns the pause between two attempts, and with back-off the longest pause, in nanoseconds.
pub(super) fn delays(retry: &Retry) -> (u64, Option<u64>) {
    match retry.pauses() {
        Backoff::Jittered { first, cap } => (nanos(first), Some(nanos(cap))),
        Backoff::Constant(pause) => (nanos(pause), None),
        _ => (nanos(Retry::DEFAULT_DELAY), None),
    }
}
