//! Conversions between the types of `wit/` and this program's types.

use std::fmt;
use std::time::Duration;

use verrou::{
    Acquired, Backoff, Capabilities, Claim, Error, Fence, Holder, InvalidRetry, Lease, Loss, Mode,
    Name, Process, Renewed, Retry, SerializedLock, StoreError, Ttl,
};

use crate::bindings::blocking::verrou::lock::types;
use crate::error::{ComponentError, LockError};

pub(super) fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap_or(u64::MAX)
}

pub(super) fn duration(nanos: Option<u64>) -> Option<Duration> {
    nanos.map(Duration::from_nanos)
}

/// Returns the text of a name, which is short.
pub(super) fn checked_name(text: &str) -> Result<String, LockError> {
    Name::new(text).map_err(Error::from)?;
    Ok(text.to_owned())
}

/// Returns the text of a serialized lock: a long one in its shortest form, so that no long text is copied into the component.
pub(super) fn checked_text(text: &str) -> Result<String, LockError> {
    const MOST_BYTES: usize = 1 << 16;

    if text.len() > MOST_BYTES {
        let serialized = text.parse::<SerializedLock>().map_err(Error::from)?;
        return Ok(serialized.to_string());
    }
    Ok(text.to_owned())
}

impl From<Error> for LockError {
    fn from(err: Error) -> Self {
        Self {
            code: err.code(),
            message: err.to_string(),
            temporary: err.is_temporary(),
        }
    }
}

/// Returns the beginning of an error's message: a long one would fill the component's memory.
fn shortened(message: String) -> String {
    const MOST_BYTES: usize = 1 << 12;

    if message.len() <= MOST_BYTES {
        return message;
    }
    let end = message.floor_char_boundary(MOST_BYTES);
    format!("{}…", &message[..end])
}

pub(super) fn name(text: &str) -> Result<Name, StoreError> {
    Name::new(text).map_err(StoreError::permanent)
}

/// Converts a claim, whose mode must be one that the stores have.
pub(super) fn claim(claim: &types::Claim) -> Result<Claim, StoreError> {
    let mode = match claim.mode {
        types::Mode::Exclusive => Mode::Exclusive,
        types::Mode::Shared | types::Mode::Permit(_) => {
            return Err(StoreError::permanent(
                "this store has only the mode `exclusive`",
            ));
        }
    };
    let owner = claim.owner.parse().map_err(StoreError::permanent)?;
    let ttl = Ttl::try_from(duration(claim.ttl)).map_err(StoreError::permanent)?;
    let mut converted = Claim::new(name(&claim.name)?, owner, ttl).ephemeral(claim.ephemeral);
    converted.mode = mode;
    Ok(converted)
}

/// Returns the fencing token of a force-release, or `Err` for a token that no grant has.
pub(super) fn only(token: Option<u64>) -> Result<Option<Fence>, NoGrant> {
    token
        .map(|token| Fence::new(token).ok_or(NoGrant))
        .transpose()
}

/// The fencing token zero, which no grant has.
pub(super) struct NoGrant;

pub(super) fn acquired(
    reply: Result<Acquired, StoreError>,
) -> Result<types::Acquired, types::StoreError> {
    Ok(match reply.map_err(|err| error(&err))? {
        Acquired::Granted { fence } => types::Acquired::Granted(fence.map(Fence::get)),
        Acquired::Busy { remaining } => types::Acquired::Busy(remaining.map(nanos)),
    })
}

pub(super) fn renewed(
    reply: Result<Renewed, StoreError>,
) -> Result<types::Renewed, types::StoreError> {
    Ok(match reply.map_err(|err| error(&err))? {
        Renewed::Granted => types::Renewed::Granted,
        Renewed::Released => types::Renewed::Released,
        Renewed::Lost => types::Renewed::Lost,
    })
}

pub(super) fn done(reply: Result<bool, StoreError>) -> Result<bool, types::StoreError> {
    reply.map_err(|err| error(&err))
}

pub(super) fn holders(
    holders: Result<Vec<Holder>, StoreError>,
) -> Result<Vec<types::Holder>, types::StoreError> {
    let holders = holders.map_err(|err| error(&err))?;
    Ok(holders.into_iter().map(holder).collect())
}

pub(super) fn holder(holder: Holder) -> types::Holder {
    types::Holder {
        fencing_token: holder.fence.map(Fence::get),
        mode: types::Mode::Exclusive,
        remaining: holder.remaining.map(nanos),
        since: holder.since.map(nanos),
        process: holder.process.map(|process| types::Process {
            id: process.id,
            host: process.host,
            command: process.command,
        }),
        detached: holder.detached,
    }
}

/// Converts a holder that the component returned.
pub(super) fn described(holder: types::Holder) -> Holder {
    let fence = holder.fencing_token.and_then(Fence::new);
    let mut described = Holder::new(fence, duration(holder.remaining));
    described.since = duration(holder.since);
    described.process = holder
        .process
        .map(|process| Process::new(process.id, process.host, process.command));
    described.detached = holder.detached;
    described
}

fn error(err: &StoreError) -> types::StoreError {
    use types::StoreErrorCode;

    types::StoreError {
        code: if err.is_temporary() {
            StoreErrorCode::Unavailable
        } else {
            StoreErrorCode::Other(String::new())
        },
        message: shortened(err.to_string()),
        temporary: err.is_temporary(),
    }
}

pub(super) fn capabilities(capabilities: Capabilities) -> types::Capabilities {
    use types::Capabilities as Flags;

    let Capabilities {
        expires,
        ephemeral,
        transfers,
        force_releases,
        fences,
        revives,
        ..
    } = capabilities;
    let flags = [
        (expires, Flags::EXPIRES),
        (ephemeral, Flags::EPHEMERAL),
        (transfers, Flags::TRANSFERS),
        (force_releases, Flags::FORCE_RELEASES),
        (fences, Flags::FENCES),
        (revives, Flags::REVIVES),
    ];
    let mut set = Flags::default();
    for (has, flag) in flags {
        if has {
            set |= flag;
        }
    }
    set
}

/// Converts a policy for the component.
pub(super) fn retry(retry: &Retry) -> types::Retry {
    let (delay, max_delay) = delays(retry);
    types::Retry {
        attempts: retry.most_attempts().map(Into::into),
        delay: Some(delay),
        max_delay,
        timeout: retry.longest().map(nanos),
    }
}

/// Converts the policy of a guest.
pub(super) fn policy(retry: &types::Retry) -> Result<Retry, InvalidRetry> {
    Retry::new(
        retry.attempts,
        duration(retry.delay),
        duration(retry.max_delay),
        duration(retry.timeout),
    )
}

pub(super) fn grant(lease: &Lease) -> types::Grant {
    types::Grant {
        fencing_token: lease.fence().map(Fence::get),
    }
}

pub(super) fn loss(loss: Loss) -> types::Loss {
    match loss {
        Loss::Revoked => types::Loss::Revoked,
        _ => types::Loss::Expired,
    }
}

impl From<types::LockError> for ComponentError {
    fn from(err: types::LockError) -> Self {
        use types::ErrorCode;

        Self::Lock(LockError {
            code: match err.code {
                ErrorCode::InvalidName => "E_INVALID_NAME",
                ErrorCode::InvalidRetry => "E_INVALID_RETRY",
                ErrorCode::InvalidSerializedLock => "E_INVALID_SERIALIZED_LOCK",
                ErrorCode::InvalidTtl => "E_INVALID_TTL",
                ErrorCode::Lost => "E_LOCK_LOST",
                ErrorCode::NotOwner => "E_LOCK_NOT_OWNER",
                ErrorCode::NotSerializable => "E_LOCK_NOT_SERIALIZABLE",
                // The component returns no other one.
                ErrorCode::Storage | ErrorCode::Other(_) => "E_LOCK_STORAGE_ERROR",
                ErrorCode::TooManyHandles => "E_TOO_MANY_HANDLES",
                ErrorCode::Denied => "E_LOCK_DENIED",
            },
            message: err.message,
            temporary: err.temporary,
        })
    }
}

impl From<types::Loss> for ComponentError {
    fn from(loss: types::Loss) -> Self {
        Self::Lost(match loss {
            types::Loss::Expired => Loss::Expired,
            types::Loss::Revoked => Loss::Revoked,
        })
    }
}

impl From<Error> for types::LockError {
    fn from(err: Error) -> Self {
        use types::ErrorCode;

        let (code, why): (_, &dyn fmt::Display) = match &err {
            Error::InvalidName(why) => (ErrorCode::InvalidName, why),
            Error::InvalidRetry(why) => (ErrorCode::InvalidRetry, why),
            Error::InvalidSerializedLock(why) => (ErrorCode::InvalidSerializedLock, why),
            Error::InvalidTtl(why) => (ErrorCode::InvalidTtl, why),
            Error::Lost { .. } => (ErrorCode::Lost, &err),
            Error::NotOwner { .. } => (ErrorCode::NotOwner, &err),
            Error::NotSerializable { .. } => (ErrorCode::NotSerializable, &err),
            Error::Storage(why) => (ErrorCode::Storage, why),
            _ => (ErrorCode::Storage, &err),
        };
        Self {
            code,
            message: why.to_string(),
            temporary: err.is_temporary(),
        }
    }
}

/// Returns the pause between two attempts, and with back-off the longest pause, in nanoseconds.
pub(super) fn delays(retry: &Retry) -> (u64, Option<u64>) {
    match retry.pauses() {
        Backoff::Jittered { first, cap } => (nanos(first), Some(nanos(cap))),
        Backoff::Constant(pause) => (nanos(pause), None),
        _ => (nanos(Retry::DEFAULT_DELAY), None),
    }
}
