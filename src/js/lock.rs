//! Locks and grants for JavaScript.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::cell::Cell;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;
use core::time::Duration;

use js_sys::Promise;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::{JsFuture, spawn_local};

use super::error::thrown;
use super::host::{JavaScript, millis, settle};
use super::retry::{Retry, ttl};
use super::store::{Store, poll_asking};
use crate::claim::{Fence, Owner};
use crate::error::Error;
use crate::held_lease::Acquisition;
use crate::lease::Lease;
use crate::nonblocking::{self, AsyncHost, LockFactory};
use crate::serialized::{InvalidSerializedLock, SerializedLock};
use crate::time::{Clock, Timestamp};

type Inner = nonblocking::Lock<Store, JavaScript>;

/// The expiry of a lease by the wall clock. That clock does not stop while the machine is suspended; the clock of
/// `performance.now` does on some systems.
#[derive(Debug, Default)]
struct WallExpiry(Cell<Option<(Timestamp, Duration)>>);

impl WallExpiry {
    /// The resolution of the wall clock.
    const RESOLUTION: Duration = Duration::from_millis(1);

    /// Records when `lease`, which was just granted or extended, expires by the wall clock.
    fn record(&self, lease: &Lease) -> Option<Duration> {
        let left = lease.remaining(JavaScript.now())?;
        let end = JavaScript.wall_clock() + left + Self::RESOLUTION;
        self.0.set(lease.ends().map(|until| (until, end)));
        Some(left)
    }

    /// Returns the remaining time of `lease`, by the clock by which it expires sooner.
    fn remaining(&self, lease: &Lease) -> Option<Duration> {
        match self.0.get() {
            Some((until, end)) if lease.ends() == Some(until) => {
                let by_wall_clock = end.saturating_sub(JavaScript.wall_clock());
                Some(lease.remaining(JavaScript.now())?.min(by_wall_clock))
            }
            // Renewed since.
            _ => self.record(lease),
        }
    }
}

/// A lock that can be acquired.
#[wasm_bindgen]
#[derive(Clone, Debug)]
pub struct Lock(Rc<Inner>, Rc<WallExpiry>);

#[wasm_bindgen]
#[allow(missing_docs, reason = "called by the package alone")]
impl Lock {
    /// Makes a lock called `name`, whose leases last `length`.
    #[wasm_bindgen(constructor)]
    pub fn new(store: &Store, name: &str, length: &JsValue) -> Result<Self, JsValue> {
        let lock = ttl(length).and_then(|ttl| factory(store).create_lock(name, ttl));
        lock.map(|lock| Self(Rc::new(lock), Rc::default()))
            .map_err(|err| thrown(&err))
    }

    /// Restores the lock that was serialized as `text`.
    pub fn restore(store: &Store, text: &str) -> Result<Self, JsValue> {
        let serialized: Result<SerializedLock, _> = text.parse();
        let serialized = serialized.map_err(|err| thrown(&err.into()))?;
        let lock = factory(store).restore_lock(&serialized);
        let restored = Self(Rc::new(lock), Rc::default());
        restored.record_expiry();
        Ok(restored)
    }

    /// Acquires the lock for `owner`, or for a new owner token. Returns the grant if that is `wanted`, `true`
    /// otherwise, and `undefined` if `aborted` resolves first.
    pub fn acquire(
        &self,
        retry: &Retry,
        wanted: bool,
        aborted: Option<Promise>,
        owner: Option<String>,
    ) -> Result<JsValue, JsValue> {
        let (lock, retry) = (self.clone(), retry.0.clone());
        let owner = owner_of(owner)?;
        settle(async move {
            let acquired = lock.acquire_or_abort(owner, &retry, aborted).await?;
            lock.record_expiry();
            Ok(match acquired {
                None => JsValue::UNDEFINED,
                Some(_) if !wanted => true.into(),
                Some(acquisition) => Held {
                    lock: lock.0,
                    acquisition,
                }
                .into(),
            })
        })
    }

    /// Acquires the lock if it is free now, and returns whether it was.
    #[wasm_bindgen(js_name = tryAcquire)]
    pub fn try_acquire(&self) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move {
            match lock.0.try_acquire().await {
                Ok(_) => {
                    lock.record_expiry();
                    Ok(true.into())
                }
                Err(Error::Timeout { .. }) => Ok(false.into()),
                Err(err) => Err(thrown(&err)),
            }
        })
    }

    pub fn release(&self) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move { done(lock.0.release().await) })
    }

    /// Force-releases the lock, or only the grant with the fencing token `only`. Returns whether there was
    /// such a grant.
    #[wasm_bindgen(js_name = forceRelease)]
    pub fn force_release(&self, only: Option<u64>) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move {
            // No grant has the token zero.
            let only = match only.map(Fence::new) {
                Some(None) => return Ok(false.into()),
                only => only.flatten(),
            };
            let released = lock.0.force_release(only).await;
            released.map(JsValue::from).map_err(|err| thrown(&err))
        })
    }

    /// Extends the lease to `length` from now, or to the lock's own ttl if that is `undefined`.
    pub fn extend(&self, length: &JsValue) -> Result<JsValue, JsValue> {
        let length = (!length.is_undefined()).then(|| ttl(length)).transpose();
        let lock = self.clone();
        settle(async move {
            match length {
                Ok(length) => {
                    let extended = lock.0.extend(length.unwrap_or(lock.0.ttl())).await;
                    lock.record_expiry();
                    done(extended)
                }
                Err(err) => Err(thrown(&err)),
            }
        })
    }

    #[wasm_bindgen(js_name = isExpired)]
    pub fn is_expired(&self) -> bool {
        self.0.is_expired() || self.remaining_time().is_some_and(|left| left.is_zero())
    }

    /// Returns the remaining time of the lease, in milliseconds.
    pub fn remaining(&self) -> Option<f64> {
        self.remaining_time().map(millis)
    }

    /// Returns the holder that the store records.
    pub fn holder(&self) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move {
            let holders = lock.0.holders().await.map_err(|err| thrown(&err))?;
            let holder = holders.into_iter().next();
            Ok(holder.map_or(JsValue::UNDEFINED, |holder| Holder(holder).into()))
        })
    }

    /// Serializes the lease, after a request to the store to detach it if it is ephemeral. Waits for the
    /// store's reply only with `wait`; without, returns at once.
    pub fn serialize(&self, wait: bool) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        let written = async move {
            let serialized = lock.0.serialize().await.map_err(|err| thrown(&err))?;
            Ok(serialized.to_string().into())
        };
        if wait {
            return settle(written);
        }
        let mut written = std::boxed::Box::pin(written);
        let mut context = core::task::Context::from_waker(core::task::Waker::noop());
        if let Poll::Ready(end) = written.as_mut().poll(&mut context) {
            return end;
        }
        // If the store fails to detach the lease, the restored lock's requests fail.
        spawn_local(async move { drop(written.await) });
        let text = self.0.serialize_attached().map_err(|err| thrown(&err))?;
        Ok(text.to_string().into())
    }

    /// The fencing token of the latest acquisition.
    #[wasm_bindgen(getter)]
    pub fn fence(&self) -> Option<u64> {
        Some(self.0.lease()?.fence()?.get())
    }

    /// The owner token of the latest acquisition.
    #[wasm_bindgen(getter)]
    pub fn owner(&self) -> Option<String> {
        Some(self.0.lease()?.owner().to_string())
    }

    #[wasm_bindgen(getter)]
    pub fn name(&self) -> String {
        self.0.name().to_string()
    }

    /// The ttl, in milliseconds.
    #[wasm_bindgen(getter)]
    pub fn ttl(&self) -> Option<f64> {
        self.0.ttl().duration().map(millis)
    }
}

impl Lock {
    /// Records when the lease expires by the wall clock.
    fn record_expiry(&self) {
        if let Some(lease) = self.0.lease() {
            self.1.record(&lease);
        }
    }

    fn remaining_time(&self) -> Option<Duration> {
        self.1.remaining(&self.0.lease()?)
    }

    /// Acquires the lock. Returns `None` if `aborted` resolved first: then nothing is held, and no request has an
    /// unknown outcome.
    async fn acquire_or_abort(
        &self,
        owner: [u8; 16],
        retry: &crate::Retry,
        aborted: Option<Promise>,
    ) -> Result<Option<Acquisition>, JsValue> {
        let held = {
            let mut acquired = pin!(self.0.guard_as(owner, retry));
            let mut aborted = pin!(async {
                match aborted {
                    Some(aborted) => drop(JsFuture::from(aborted).await),
                    None => core::future::pending().await,
                }
            });
            let mut is_aborted = false;
            poll_fn(|context| {
                let (polled, is_asking) = poll_asking(|| acquired.as_mut().poll(context));
                if let Poll::Ready(held) = polled {
                    return Poll::Ready(Some(held.map(|held| (held, is_aborted))));
                }
                is_aborted = is_aborted || aborted.as_mut().poll(context).is_ready();
                if is_aborted && !is_asking {
                    return Poll::Ready(None);
                }
                Poll::Pending
            })
            .await
        };
        match held {
            None => Ok(None),
            Some(Err(err)) => Err(thrown(&err)),
            Some(Ok((held, true))) => {
                // The grant came after the abort. The caller gets the abort's reason, not an error of the store.
                drop(held.release().await);
                Ok(None)
            }
            Some(Ok((held, false))) => Ok(Some(held.into_acquisition())),
        }
    }
}

/// Returns the owner token written in `text`, or a random one.
fn owner_of(text: Option<String>) -> Result<[u8; 16], JsValue> {
    let Some(text) = text else {
        return Ok(JavaScript.random());
    };
    match text.parse::<Owner>() {
        Ok(owner) => Ok(*owner.as_bytes()),
        Err(why) => Err(thrown(&InvalidSerializedLock::Owner(why).into())),
    }
}

fn factory(store: &Store) -> LockFactory<Store, JavaScript> {
    LockFactory::new(store.clone(), JavaScript)
}

fn done(end: Result<(), Error>) -> Result<JsValue, JsValue> {
    end.map(|()| JsValue::UNDEFINED).map_err(|err| thrown(&err))
}

/// The holder of a lock.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Holder(crate::store::Holder);

#[wasm_bindgen]
#[allow(missing_docs, reason = "called by the package alone")]
impl Holder {
    #[wasm_bindgen(getter)]
    pub fn fence(&self) -> Option<u64> {
        self.0.fence.map(Fence::get)
    }

    /// The remaining time of the lease, in milliseconds.
    #[wasm_bindgen(getter)]
    pub fn remaining(&self) -> Option<f64> {
        self.0.remaining.map(millis)
    }
}

/// The grant of one acquisition.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Held {
    lock: Rc<Inner>,
    acquisition: Acquisition,
}

#[wasm_bindgen]
#[allow(missing_docs, reason = "called by the package alone")]
impl Held {
    #[wasm_bindgen(getter)]
    pub fn fence(&self) -> Option<u64> {
        self.acquisition.lease().fence().map(Fence::get)
    }

    /// Returns the remaining time of the lease, in milliseconds.
    pub fn remaining(&self) -> Option<f64> {
        let left = self.acquisition.lease().remaining(JavaScript.now())?;
        Some(millis(left))
    }

    /// Whether the owner has released the lock.
    #[wasm_bindgen(getter, js_name = isReleased)]
    pub fn is_released(&self) -> bool {
        self.acquisition.is_released()
    }

    /// Renews the lease until `finished` resolves. Returns the error if the lease was lost.
    pub fn keep(&self, finished: Promise) -> Result<JsValue, JsValue> {
        let (lock, acquisition) = (Rc::clone(&self.lock), self.acquisition.clone());
        settle(async move {
            let finished = async { drop(JsFuture::from(finished).await) };
            match lock.renew_during(&acquisition, finished).await {
                Ok(()) => Ok(JsValue::UNDEFINED),
                Err(err) => Ok(thrown(&err)),
            }
        })
    }

    /// Releases the lock; throws `E_LOCK_LOST` if the lease was lost.
    pub fn release(&self) -> Result<JsValue, JsValue> {
        let (lock, acquisition) = (Rc::clone(&self.lock), self.acquisition.clone());
        settle(async move { done(lock.release_guarded(&acquisition).await) })
    }
}
