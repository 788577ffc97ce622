//! The core as a WebAssembly component: [`polled`](crate::polled) locks with an imported store, clock
//! and source of randomness. This module only converts types.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use core::time::Duration;

use self::bindings::exports::verrou::lock::locks::{
    self as wit, ErrorCode, Guest, GuestAttempt, GuestLock, GuestRenewal, LockError,
};
use self::bindings::verrou::lock::store as backend;
use self::bindings::wasi::clocks::monotonic_clock;
use self::bindings::wasi::random::random;
use crate::claim::{Claim, Fence};
use crate::error::Error;
use crate::lease::Loss;
use crate::name::Name;
use crate::polled::{self, Keeping, Progress};
use crate::retry::{InvalidRetry, Retry};
use crate::serialized::SerializedLock;
use crate::store::{Acquired, Capabilities, Holder, Store, StoreError};
use crate::time::{Clock, Timestamp};
use crate::ttl::Ttl;

#[allow(
    unsafe_code,
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    unreachable_pub,
    reason = "generated from `wit/`, and calls across a component's boundary pass raw memory"
)]
mod bindings {
    wit_bindgen::generate!({
        world: "lock-manager",
        path: "wit",
        generate_all,
    });

    use super::Component;
    export!(Component with_types_in self);
}

/// The runtime of a module that contains only this component: its own allocator, and a panic handler
/// without a message, because the core has no known panic.
#[cfg(target_family = "wasm")]
mod alone {
    #[global_allocator]
    static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        core::arch::wasm32::unreachable()
    }
}

struct Component;

impl Guest for Component {
    type Attempt = Attempt;
    type Lock = Lock;
    type Renewal = Renewal;
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

struct Lock(polled::Lock<Imported, Imported>, Handle);
struct Attempt(RefCell<polled::Attempt<Imported, Imported>>, Handle);
struct Renewal(RefCell<polled::Renewal<Imported, Imported>>, Handle);

impl GuestLock for Lock {
    fn new(name: String, ttl: Option<u64>) -> Result<Self, LockError> {
        let handle = Handle::new()?;
        let lock = polled::Lock::new(Imported, Imported, &name, duration(ttl))?;
        Ok(Self(lock, handle))
    }

    fn restore(serialized: String, now: u64) -> Result<wit::Lock, LockError> {
        let handle = Handle::new()?;
        let serialized: SerializedLock = serialized.parse().map_err(Error::from)?;
        let wall = Duration::from_nanos(now);
        let lock = polled::Lock::restored(Imported, Imported, &serialized, wall);
        Ok(wit::Lock::new(Self(lock, handle)))
    }

    fn acquire(&self, retry: wit::Retry) -> Result<wit::Attempt, LockError> {
        let handle = Handle::new()?;
        let attempt = self
            .0
            .acquire(&policy(&retry).map_err(Error::from)?, owner());
        Ok(wit::Attempt::new(Attempt(RefCell::new(attempt), handle)))
    }

    fn try_acquire(&self) -> Result<bool, LockError> {
        match self.0.try_acquire(owner()) {
            Ok(_) => Ok(true),
            Err(Error::Timeout { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn release(&self) -> Result<(), LockError> {
        Ok(self.0.release()?)
    }

    fn force_release(&self, only: Option<u64>) -> Result<bool, LockError> {
        // No grant has the token zero.
        let only = match only {
            None => None,
            Some(token) => match Fence::new(token) {
                None => return Ok(false),
                only => only,
            },
        };
        Ok(self.0.force_release(only)?)
    }

    fn extend(&self) -> Result<(), LockError> {
        Ok(self.0.extend(self.0.ttl())?)
    }

    fn extend_for(&self, ttl: Option<u64>) -> Result<(), LockError> {
        let ttl = Ttl::try_from(duration(ttl)).map_err(Error::from)?;
        Ok(self.0.extend(ttl)?)
    }

    fn keep(&self) -> Result<wit::Renewal, LockError> {
        let handle = Handle::new()?;
        let renewal = RefCell::new(self.0.keep()?);
        Ok(wit::Renewal::new(Renewal(renewal, handle)))
    }

    fn is_expired(&self) -> bool {
        self.0.is_expired()
    }

    fn remaining(&self) -> Option<u64> {
        self.0.remaining().map(nanos)
    }

    fn is_locked(&self) -> Result<bool, LockError> {
        Ok(self.0.is_locked()?)
    }

    fn is_held(&self) -> Result<bool, LockError> {
        Ok(self.0.is_held()?)
    }

    fn holder(&self) -> Result<Option<wit::Holder>, LockError> {
        let holder = self.0.holders()?.pop();
        Ok(holder.map(|holder| wit::Holder {
            fencing_token: holder.fence.map(Fence::get),
            remaining: holder.remaining.map(nanos),
        }))
    }

    fn serialize(&self, now: u64) -> Result<String, LockError> {
        Ok(self.0.serialize(Duration::from_nanos(now))?.to_string())
    }

    fn fencing_token(&self) -> Option<u64> {
        Some(self.0.lease()?.fence()?.get())
    }

    fn name(&self) -> String {
        self.0.name().to_string()
    }

    fn ttl(&self) -> Option<u64> {
        self.0.ttl().duration().map(nanos)
    }
}

impl GuestAttempt for Attempt {
    fn poll(&self) -> Result<wit::Progress, LockError> {
        Ok(match self.0.borrow_mut().poll() {
            Ok(Progress::Acquired(lease)) => wit::Progress::Acquired(lease.fence().map(Fence::get)),
            Ok(Progress::Wait(pause)) => wit::Progress::Wait(nanos(pause)),
            Ok(Progress::Pause(pause)) => wit::Progress::Pause(nanos(pause)),
            Err(Error::Timeout { attempts, .. }) => wit::Progress::GaveUp(attempts),
            Err(error) => return Err(error.into()),
        })
    }
}

impl GuestRenewal for Renewal {
    fn poll(&self) -> wit::Keeping {
        match self.0.borrow_mut().poll() {
            Keeping::Held(wait) => wit::Keeping::Held(nanos(wait)),
            Keeping::Unknown { wait, why } => wit::Keeping::Unknown(wit::Doubt {
                wait: nanos(wait),
                why: why.to_string(),
            }),
            // The WIT interface has no value for a release.
            Keeping::Released => wit::Keeping::Lost(wit::Loss::Revoked),
            Keeping::Lost(loss) => wit::Keeping::Lost(loss.into()),
        }
    }
}

/// The imports of the component: a store, a clock, and randomness.
#[derive(Clone, Copy, Debug)]
struct Imported;

impl Clock for Imported {
    fn now(&self) -> Timestamp {
        Timestamp::new(Duration::from_nanos(monotonic_clock::now()))
    }
}

impl Store for Imported {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        Ok(match backend::acquire(&record(claim))? {
            backend::Reply::Granted(token) => Acquired::Granted {
                fence: fence(token)?,
            },
            backend::Reply::Refused(remaining) => Acquired::Busy {
                remaining: duration(remaining),
            },
        })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        is_done(backend::extend(&record(claim)))
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        is_done(backend::release(&record(claim)))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        is_done(backend::evict(name.as_str(), only.map(Fence::get)))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let mut holders = Vec::new();
        if let Some(holder) = backend::inspect(name.as_str())? {
            holders.push(Holder::new(
                fence(holder.fencing_token)?,
                duration(holder.remaining),
            ));
        }
        Ok(holders)
    }

    fn capabilities(&self) -> Capabilities {
        let can = backend::can();
        Capabilities {
            expires: can.expires,
            ephemeral: can.ephemeral,
            transfers: can.transfers,
            force_releases: can.evicts,
            fences: can.fences,
            revives: false,
        }
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        is_done(backend::detach(&record(claim)))
    }
}

fn record(claim: &Claim) -> backend::Claim {
    backend::Claim {
        name: claim.name.to_string(),
        owner: claim.owner.to_string(),
        ttl: claim.ttl.duration().map(nanos),
        ephemeral: claim.ephemeral,
    }
}

/// Returns whether the store has performed an operation.
fn is_done(reply: Result<backend::Reply, backend::StoreError>) -> Result<bool, StoreError> {
    match reply? {
        backend::Reply::Granted(token) => fence(token).map(|_| true),
        backend::Reply::Refused(_) => Ok(false),
    }
}

impl From<backend::StoreError> for StoreError {
    fn from(error: backend::StoreError) -> Self {
        if error.temporary {
            Self::temporary(Message(error.message))
        } else {
            Self::permanent(Message(error.message))
        }
    }
}

impl From<Loss> for wit::Loss {
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

/// Returns 128 unpredictable bits.
fn owner() -> [u8; 16] {
    let mut bits = [0; 16];
    for half in bits.as_chunks_mut::<8>().0 {
        *half = random::get_random_u64().to_be_bytes();
    }
    bits
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

fn policy(retry: &wit::Retry) -> Result<Retry, InvalidRetry> {
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
