//! The core as a WebAssembly component, in two worlds: [`polled`](crate::polled) locks for WASI 0.2, and
//! [`nonblocking`](crate::nonblocking) locks for WASI 0.3. Each has an imported store, clock and source of randomness.
//! These modules only convert types; this one has the conversions that both worlds use.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use self::bindings::verrou::lock::types::{self, ErrorCode, LockError};
use crate::claim::{Claim, Fence, Mode};
use crate::error::Error;
use crate::lease::{Lease, Loss};
use crate::retry::{InvalidRetry, Retry};
use crate::store::{Acquired, Capabilities, Holder, Process, Renewed, StoreError};
use crate::time::Timestamp;
use crate::ttl::Ttl;

#[cfg(feature = "component-async")]
mod async_world;
#[cfg(feature = "component")]
mod polled_world;

/// The types that both worlds share.
#[allow(
    unsafe_code,
    missing_docs,
    dead_code,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    unreachable_pub,
    reason = "generated from `wit/`"
)]
mod bindings {
    wit_bindgen::generate!({
        inline: "
            package verrou:shared;
            world shared { import verrou:lock/types@0.1.0; }
        ",
        path: "wit",
        generate_all,
    });
}

/// The runtime of a module that contains only this component: its own allocator, and without `std` a panic handler
/// without a message, because the core has no known panic.
#[cfg(target_family = "wasm")]
mod alone {
    #[global_allocator]
    static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();

    #[cfg(not(feature = "std"))]
    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        core::arch::wasm32::unreachable()
    }
}

static ALIVE: AtomicU32 = AtomicU32::new(0);

/// The count of one resource for which the component's user has a handle.
struct Handle;

impl Handle {
    /// The maximum number of handles: enough for any use, and their resources fit into 128 MiB.
    const MAX: u32 = 1 << 15;

    fn new() -> Result<Self, LockError> {
        if ALIVE.load(Ordering::Relaxed) >= Self::MAX {
            return Err(LockError {
                code: ErrorCode::TooManyHandles,
                message: "too many locks, attempts and renewals are alive: drop some".into(),
                temporary: true,
            });
        }
        ALIVE.fetch_add(1, Ordering::Relaxed);
        Ok(Self)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        ALIVE.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The latest time of the imported clock, in nanoseconds. Locks must not see a clock that goes back.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// Whether [`LATEST`] is the time now. A call of the component takes no time between its calls of the store, so it
/// asks for the time once, and again after each of them.
static IS_NOW: AtomicBool = AtomicBool::new(false);

/// Makes the next operation ask for the time.
fn forget_time() {
    IS_NOW.store(false, Ordering::Relaxed);
}

/// Returns the time, which `clock` returns in nanoseconds.
fn time(clock: impl FnOnce() -> u64) -> Timestamp {
    let mut now = LATEST.load(Ordering::Relaxed);
    if !IS_NOW.swap(true, Ordering::Relaxed) {
        now = now.max(clock());
        LATEST.store(now, Ordering::Relaxed);
    }
    Timestamp::new(Duration::from_nanos(now))
}

/// Converts the reply of the store, which took time.
fn replied<T>(reply: Result<T, types::StoreError>) -> Result<T, StoreError> {
    forget_time();
    Ok(reply?)
}

fn acquired(reply: Result<types::Acquired, types::StoreError>) -> Result<Acquired, StoreError> {
    Ok(match replied(reply)? {
        types::Acquired::Granted(token) => Acquired::Granted {
            fence: fence(token)?,
        },
        types::Acquired::Busy(remaining) => Acquired::Busy {
            remaining: duration(remaining),
        },
    })
}

fn renewed(reply: Result<types::Renewed, types::StoreError>) -> Result<Renewed, StoreError> {
    Ok(match replied(reply)? {
        types::Renewed::Granted => Renewed::Granted,
        types::Renewed::Released => Renewed::Released,
        types::Renewed::Lost => Renewed::Lost,
    })
}

fn held_by(
    reply: Result<Vec<types::Holder>, types::StoreError>,
) -> Result<Vec<Holder>, StoreError> {
    replied(reply)?.into_iter().map(holder).collect()
}

fn capabilities(flags: types::Capabilities) -> Capabilities {
    use types::Capabilities as Flags;

    Capabilities {
        expires: flags.contains(Flags::EXPIRES),
        ephemeral: flags.contains(Flags::EPHEMERAL),
        transfers: flags.contains(Flags::TRANSFERS),
        force_releases: flags.contains(Flags::FORCE_RELEASES),
        fences: flags.contains(Flags::FENCES),
        revives: flags.contains(Flags::REVIVES),
    }
}

fn grant(lease: &Lease) -> types::Grant {
    types::Grant {
        fencing_token: lease.fence().map(Fence::get),
    }
}

fn record(claim: &Claim) -> types::Claim {
    types::Claim {
        name: claim.name.to_string(),
        owner: claim.owner.to_string(),
        mode: match claim.mode {
            Mode::Exclusive => types::Mode::Exclusive,
        },
        ttl: claim.ttl.duration().map(nanos),
        ephemeral: claim.ephemeral,
    }
}

fn holder(holder: types::Holder) -> Result<Holder, StoreError> {
    let mut converted = Holder::new(fence(holder.fencing_token)?, duration(holder.remaining));
    converted.since = duration(holder.since);
    converted.process = holder
        .process
        .map(|process| Process::new(process.id, process.host, process.command));
    converted.detached = holder.detached;
    Ok(converted)
}

fn described(holder: Holder) -> types::Holder {
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

impl From<types::StoreError> for StoreError {
    fn from(error: types::StoreError) -> Self {
        if error.temporary {
            Self::temporary(Message(error.message))
        } else {
            Self::permanent(Message(error.message))
        }
    }
}

impl From<Loss> for types::Loss {
    fn from(loss: Loss) -> Self {
        match loss {
            Loss::Expired => Self::Expired,
            Loss::Revoked => Self::Revoked,
        }
    }
}

impl From<Error> for LockError {
    fn from(error: Error) -> Self {
        let (code, why): (_, &dyn fmt::Display) = match &error {
            Error::InvalidName(why) => (ErrorCode::InvalidName, why),
            Error::InvalidRetry(why) => (ErrorCode::InvalidRetry, why),
            Error::InvalidSerializedLock(why) => (ErrorCode::InvalidSerializedLock, why),
            Error::InvalidTtl(why) => (ErrorCode::InvalidTtl, why),
            Error::Lost { .. } => (ErrorCode::Lost, &error),
            Error::NotOwner { .. } => (ErrorCode::NotOwner, &error),
            Error::NotSerializable { .. } => (ErrorCode::NotSerializable, &error),
            Error::Storage(why) => (ErrorCode::Storage, why),
            // Neither reaches this function: an attempt returns `gave-up` on a timeout, and there is
            // only one store.
            Error::Timeout { .. } | Error::UnknownStore { .. } => (ErrorCode::Storage, &error),
        };
        Self {
            code,
            message: why.to_string(),
            temporary: error.is_temporary(),
        }
    }
}

/// The message of an error that the store returned, or of an invalid reply.
struct Message(String);

impl fmt::Display for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Writes the text unescaped: the tables of characters to escape would be a tenth of the component.
impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl core::error::Error for Message {}

/// Returns 128 unpredictable bits, of which `random` returns 64.
fn owner(random: impl Fn() -> u64) -> Result<[u8; 16], LockError> {
    let mut bits = [0; 16];
    for half in bits.as_chunks_mut::<8>().0 {
        *half = random().to_be_bytes();
    }
    // One in 2^128, or a host without randomness, whose owners would all be one.
    if bits == [0; 16] {
        let why = "the host's random numbers are zeros, so all owners would be equal";
        return Err(Error::Storage(StoreError::permanent(Message(why.into()))).into());
    }
    Ok(bits)
}

fn fence(token: Option<u64>) -> Result<Option<Fence>, StoreError> {
    let zero = || {
        StoreError::permanent(Message(
            "the store returned fencing token 0, which no grant has".into(),
        ))
    };
    token
        .map(|token| Fence::new(token).ok_or_else(zero))
        .transpose()
}

fn policy(retry: &types::Retry) -> Result<Retry, InvalidRetry> {
    Retry::new(
        retry.attempts,
        duration(retry.delay),
        duration(retry.max_delay),
        duration(retry.timeout),
    )
}

fn duration(nanos: Option<u64>) -> Option<Duration> {
    nanos.map(Duration::from_nanos)
}

/// Returns the length in nanoseconds, of which 64 bits hold every lease and pause.
fn nanos(length: Duration) -> u64 {
    length
        .as_secs()
        .saturating_mul(1_000_000_000)
        .saturating_add(length.subsec_nanos().into())
}

/// Returns the fencing token of a force-release, or `Err` for a token that no grant has.
fn only(token: Option<u64>) -> Result<Option<Fence>, NoGrant> {
    token
        .map(|token| Fence::new(token).ok_or(NoGrant))
        .transpose()
}

/// The fencing token zero, which no grant has.
struct NoGrant;

fn ttl(nanos: Option<u64>) -> Result<Ttl, LockError> {
    Ok(Ttl::try_from(duration(nanos)).map_err(Error::from)?)
}
