//! The core as a WebAssembly component: [`polled`](crate::polled) locks with an imported store, clock
//! and source of randomness. This module only converts types.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use core::time::Duration;

use self::bindings::exports::verrou::lock::locks::{
    self as wit, Acquiring, ErrorCode, Grant, Guest, GuestAttempt, GuestLock, GuestRenewal,
    LockError, Progress,
};
use self::bindings::verrou::lock::{store as backend, types};
use self::bindings::wasi::clocks::monotonic_clock;
use self::bindings::wasi::io::poll::Pollable;
use self::bindings::wasi::random::random;
use crate::claim::{Claim, Fence, Mode};
use crate::error::Error;
use crate::lease::{Lease, Loss};
use crate::name::Name;
use crate::polled::{self, Keeping};
use crate::retry::{InvalidRetry, Retry};
use crate::serialized::SerializedLock;
use crate::store::{Acquired, Capabilities, Holder, Process, Renewed, Store, StoreError};
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

struct Lock(Rc<HeldLock>, Handle);
struct Renewal {
    machine: RefCell<polled::Renewal<Imported, Imported>>,
    _lock: Rc<HeldLock>,
    _handle: Handle,
}

struct Attempt {
    // Declared first, and dropped first: the place in the queue ends before the lock.
    waiter: RefCell<Option<backend::Waiter>>,
    machine: RefCell<polled::Attempt<Imported, Imported>>,
    /// The result of the first poll, until the user polls.
    first: Cell<Option<Progress>>,
    /// Whether the latest poll returned `wait`.
    waits: Cell<bool>,
    _lock: Rc<HeldLock>,
    _handle: Handle,
}

/// A lock. Dropping it releases it, unless it was detached, serialized or restored.
struct HeldLock(polled::Lock<Imported, Imported>);

impl Drop for HeldLock {
    fn drop(&mut self) {
        if self.0.lease().is_some_and(|lease| lease.claim().ephemeral) {
            // After an error the lease expires.
            let _ = self.0.release();
        }
    }
}

impl Lock {
    fn resource(lock: polled::Lock<Imported, Imported>, handle: Handle) -> wit::Lock {
        wit::Lock::new(Self(Rc::new(HeldLock(lock)), handle))
    }

    fn lock(&self) -> &polled::Lock<Imported, Imported> {
        forget_time();
        &self.0.0
    }
}

impl GuestLock for Lock {
    fn create(name: String, ttl: Option<u64>) -> Result<wit::Lock, LockError> {
        let handle = Handle::new()?;
        let lock = polled::Lock::new(Imported, Imported, &name, duration(ttl))?;
        Ok(Self::resource(lock, handle))
    }

    fn restore(serialized: String, now: u64) -> Result<wit::Lock, LockError> {
        forget_time();
        let handle = Handle::new()?;
        let serialized: SerializedLock = serialized.parse().map_err(Error::from)?;
        let wall = Duration::from_nanos(now);
        let lock = polled::Lock::restored(Imported, Imported, &serialized, wall);
        Ok(Self::resource(lock, handle))
    }

    fn acquire(&self, retry: wit::Retry) -> Result<Acquiring, LockError> {
        let handle = Handle::new()?;
        let retry = policy(&retry).map_err(Error::from)?;
        let mut attempt = self.lock().acquire(&retry, owner()?);
        let first = progress(attempt.poll())?;
        if let Progress::Acquired(grant) = first {
            return Ok(Acquiring::Acquired(grant));
        }
        Ok(Acquiring::Pending(wit::Attempt::new(Attempt {
            waiter: RefCell::default(),
            machine: RefCell::new(attempt),
            first: Cell::new(Some(first)),
            waits: Cell::new(false),
            _lock: Rc::clone(&self.0),
            _handle: handle,
        })))
    }

    fn try_acquire(&self) -> Result<Option<Grant>, LockError> {
        match self.lock().try_acquire(owner()?) {
            Ok(lease) => Ok(Some(grant(&lease))),
            Err(Error::Timeout { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn release(&self) -> Result<(), LockError> {
        Ok(self.lock().release()?)
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
        Ok(self.lock().force_release(only)?)
    }

    fn extend(&self) -> Result<(), LockError> {
        {
            let lock = self.lock();
            Ok(lock.extend(lock.ttl())?)
        }
    }

    fn extend_for(&self, ttl: Option<u64>) -> Result<(), LockError> {
        let ttl = Ttl::try_from(duration(ttl)).map_err(Error::from)?;
        Ok(self.lock().extend(ttl)?)
    }

    fn keep(&self) -> Result<wit::Renewal, LockError> {
        let handle = Handle::new()?;
        let machine = RefCell::new(self.lock().keep()?);
        Ok(wit::Renewal::new(Renewal {
            machine,
            _lock: Rc::clone(&self.0),
            _handle: handle,
        }))
    }

    fn is_expired(&self) -> bool {
        self.lock().is_expired()
    }

    fn remaining(&self) -> Option<u64> {
        self.lock().remaining().map(nanos)
    }

    fn is_locked(&self) -> Result<bool, LockError> {
        Ok(self.lock().is_locked()?)
    }

    fn is_held(&self) -> Result<bool, LockError> {
        Ok(self.lock().is_held()?)
    }

    fn holders(&self) -> Result<Vec<types::Holder>, LockError> {
        let holders = self.lock().holders()?;
        Ok(holders.into_iter().map(described).collect())
    }

    fn detach(&self) -> Result<(), LockError> {
        Ok(self.lock().detach()?)
    }

    fn serialize(&self, now: u64) -> Result<String, LockError> {
        Ok(self
            .lock()
            .serialize(Duration::from_nanos(now))?
            .to_string())
    }

    fn fencing_token(&self) -> Option<u64> {
        Some(self.lock().lease()?.fence()?.get())
    }

    fn name(&self) -> String {
        self.lock().name().to_string()
    }

    fn ttl(&self) -> Option<u64> {
        self.lock().ttl().duration().map(nanos)
    }
}

impl GuestAttempt for Attempt {
    fn poll(&self) -> Result<Progress, LockError> {
        forget_time();
        let progress = match self.first.take() {
            Some(first) => first,
            None => progress(self.machine.borrow_mut().poll())?,
        };
        self.waits.set(matches!(progress, Progress::Wait(_)));
        if matches!(progress, Progress::Acquired(_) | Progress::GaveUp(_)) {
            self.waiter.take();
        }
        Ok(progress)
    }

    fn subscribe(&self) -> Option<Pollable> {
        if !self.waits.get() {
            return None;
        }
        let mut waiter = self.waiter.borrow_mut();
        if waiter.is_none() {
            *waiter = backend::join(&record(self.machine.borrow().claim()));
        }
        Some(waiter.as_ref()?.subscribe())
    }
}

fn progress(polled: Result<polled::Progress, Error>) -> Result<Progress, LockError> {
    Ok(match polled {
        Ok(polled::Progress::Acquired(lease)) => Progress::Acquired(grant(&lease)),
        Ok(polled::Progress::Wait(pause)) => Progress::Wait(nanos(pause)),
        Ok(polled::Progress::Pause(pause)) => Progress::Pause(nanos(pause)),
        Err(Error::Timeout { attempts, .. }) => Progress::GaveUp(attempts),
        Err(error) => return Err(error.into()),
    })
}

fn grant(lease: &Lease) -> Grant {
    Grant {
        fencing_token: lease.fence().map(Fence::get),
    }
}

impl GuestRenewal for Renewal {
    fn poll(&self) -> wit::Keeping {
        forget_time();
        match self.machine.borrow_mut().poll() {
            Keeping::Held(wait) => wit::Keeping::Held(nanos(wait)),
            Keeping::Unknown { wait, why } => wit::Keeping::Unknown(wit::Doubt {
                wait: nanos(wait),
                why: why.to_string(),
            }),
            Keeping::Released => wit::Keeping::Released,
            Keeping::Lost(loss) => wit::Keeping::Lost(loss.into()),
        }
    }
}

/// The imports of the component: a store, a clock, and randomness.
#[derive(Clone, Copy, Debug)]
struct Imported;

/// The latest time of the imported clock, in nanoseconds. Locks must not see a clock that goes back.
static LATEST: AtomicU64 = AtomicU64::new(0);

/// Whether [`LATEST`] is the time now. A call of the component takes no time between its calls of the store, so it
/// asks for the time once, and again after each of them.
static IS_NOW: AtomicBool = AtomicBool::new(false);

/// Makes the next operation ask for the time.
fn forget_time() {
    IS_NOW.store(false, Ordering::Relaxed);
}

impl Clock for Imported {
    fn now(&self) -> Timestamp {
        let mut now = LATEST.load(Ordering::Relaxed);
        if !IS_NOW.swap(true, Ordering::Relaxed) {
            now = now.max(monotonic_clock::now());
            LATEST.store(now, Ordering::Relaxed);
        }
        Timestamp::new(Duration::from_nanos(now))
    }
}

/// Converts the reply of the store, which took time.
fn replied<T, U: From<T>>(reply: Result<T, backend::StoreError>) -> Result<U, StoreError> {
    forget_time();
    Ok(reply?.into())
}

impl Store for Imported {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let reply = backend::acquire(&record(claim));
        Ok(match replied(reply)? {
            backend::Acquired::Granted(token) => Acquired::Granted {
                fence: fence(token)?,
            },
            backend::Acquired::Busy(remaining) => Acquired::Busy {
                remaining: duration(remaining),
            },
        })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(backend::extend(&record(claim)))
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let reply = backend::renew(&record(claim), fence.map(Fence::get));
        Ok(match replied(reply)? {
            backend::Renewed::Granted => Renewed::Granted,
            backend::Renewed::Released => Renewed::Released,
            backend::Renewed::Lost => Renewed::Lost,
        })
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(backend::release(&record(claim)))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        replied(backend::force_release(name.as_str(), only.map(Fence::get)))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let holders: Vec<_> = replied(backend::holders(name.as_str()))?;
        holders.into_iter().map(holder).collect()
    }

    fn capabilities(&self) -> Capabilities {
        use types::Capabilities as Flags;

        let flags = backend::get_capabilities();
        Capabilities {
            expires: flags.contains(Flags::EXPIRES),
            ephemeral: flags.contains(Flags::EPHEMERAL),
            transfers: flags.contains(Flags::TRANSFERS),
            force_releases: flags.contains(Flags::FORCE_RELEASES),
            fences: flags.contains(Flags::FENCES),
            revives: flags.contains(Flags::REVIVES),
        }
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        replied(backend::detach(&record(claim)))
    }
}

fn record(claim: &Claim) -> backend::Claim {
    backend::Claim {
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
fn owner() -> Result<[u8; 16], LockError> {
    let mut bits = [0; 16];
    for half in bits.as_chunks_mut::<8>().0 {
        *half = random::get_random_u64().to_be_bytes();
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
