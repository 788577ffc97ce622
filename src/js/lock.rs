//! Locks, and what is held.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use js_sys::Promise;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen_futures::{JsFuture, spawn_local};

use super::error::thrown;
use super::host::{JavaScript, millis, settle};
use super::retry::{Retry, ttl};
use super::store::{Store, asks};
use crate::claim::{Fence, Owner};
use crate::error::Error;
use crate::holds::Hold;
use crate::nonblocking::{self, AsyncHost, LockFactory};
use crate::serialized::{InvalidSerializedLock, SerializedLock};
use crate::time::Clock;

type Inner = nonblocking::Lock<Store, JavaScript>;

/// A lock that may be taken.
#[wasm_bindgen]
#[derive(Clone, Debug)]
pub struct Lock(Rc<Inner>);

#[wasm_bindgen]
#[allow(missing_docs, reason = "called by the package alone")]
impl Lock {
    /// One called `name`, whose leases last `length`.
    #[wasm_bindgen(constructor)]
    pub fn new(store: &Store, name: &str, length: &JsValue) -> Result<Self, JsValue> {
        let lock = ttl(length).and_then(|ttl| factory(store).create_lock(name, ttl));
        lock.map(|lock| Self(Rc::new(lock)))
            .map_err(|err| thrown(&err))
    }

    /// The one that was written down.
    pub fn restore(store: &Store, text: &str) -> Result<Self, JsValue> {
        let serialized: Result<SerializedLock, _> = text.parse();
        let serialized = serialized.map_err(|err| thrown(&err.into()))?;
        Ok(Self(Rc::new(factory(store).restore_lock(&serialized))))
    }

    /// Takes it for `owner`, or one that is drawn, unless `aborted` comes first: what is held then
    /// if that is `wanted`, or just that it is.
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
            Ok(match lock.take(owner, &retry, aborted).await? {
                None => JsValue::UNDEFINED,
                Some(_) if !wanted => true.into(),
                Some(hold) => Held { lock: lock.0, hold }.into(),
            })
        })
    }

    /// Takes it if it is free now: whether it was.
    #[wasm_bindgen(js_name = tryAcquire)]
    pub fn try_acquire(&self) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move {
            match lock.0.try_acquire().await {
                Ok(_) => Ok(true.into()),
                Err(Error::Timeout { .. }) => Ok(false.into()),
                Err(err) => Err(thrown(&err)),
            }
        })
    }

    pub fn release(&self) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move { done(lock.0.release().await) })
    }

    /// Frees it, whoever holds it, or only the grant whose fencing token is `only`: whether there
    /// was somebody to evict.
    #[wasm_bindgen(js_name = forceRelease)]
    pub fn force_release(&self, only: Option<u64>) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move {
            // No grant has the token zero.
            let only = match only.map(Fence::new) {
                Some(None) => return Ok(false.into()),
                only => only.flatten(),
            };
            let evicted = lock.0.evict(only).await;
            evicted.map(JsValue::from).map_err(|err| thrown(&err))
        })
    }

    /// Lets the lease last `length` from now, or the lock's own ttl if that is `undefined`.
    pub fn extend(&self, length: &JsValue) -> Result<JsValue, JsValue> {
        let length = (!length.is_undefined()).then(|| ttl(length)).transpose();
        let lock = self.clone();
        settle(async move {
            match length {
                Ok(length) => done(lock.0.extend(length).await),
                Err(err) => Err(thrown(&err)),
            }
        })
    }

    #[wasm_bindgen(js_name = isExpired)]
    pub fn is_expired(&self) -> bool {
        self.0.is_expired()
    }

    /// In milliseconds.
    pub fn remaining(&self) -> Option<f64> {
        self.0.remaining().map(millis)
    }

    /// Who holds it, as the store says.
    pub fn holder(&self) -> Result<JsValue, JsValue> {
        let lock = self.clone();
        settle(async move {
            let holder = lock.0.holder().await.map_err(|err| thrown(&err))?;
            Ok(holder.map_or(JsValue::UNDEFINED, |holder| Holder(holder).into()))
        })
    }

    /// Writes the lease down. A store that has to let it outlive this process is told so, and its
    /// answer is waited for only where `wait` says so: without, this is done at once.
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
        // Whoever restores it is told by the store if it is not so.
        spawn_local(async move { drop(written.await) });
        let text = self.0.written().map_err(|err| thrown(&err))?;
        Ok(text.to_string().into())
    }

    /// The latest acquisition's fencing token.
    #[wasm_bindgen(getter)]
    pub fn fence(&self) -> Option<u64> {
        Some(self.0.lease()?.fence()?.get())
    }

    /// The latest acquisition's owner.
    #[wasm_bindgen(getter)]
    pub fn owner(&self) -> Option<String> {
        Some(self.0.lease()?.owner().to_string())
    }

    #[wasm_bindgen(getter)]
    pub fn name(&self) -> String {
        self.0.name().to_string()
    }

    /// In milliseconds.
    #[wasm_bindgen(getter)]
    pub fn ttl(&self) -> Option<f64> {
        self.0.ttl().duration().map(millis)
    }
}

impl Lock {
    /// Nothing, if `aborted` came first: then nothing is held, and no request is in doubt.
    async fn take(
        &self,
        owner: [u8; 16],
        retry: &crate::Retry,
        aborted: Option<Promise>,
    ) -> Result<Option<Hold>, JsValue> {
        let held = {
            let mut acquired = pin!(self.0.held_by(owner, retry));
            let mut aborted = pin!(async {
                match aborted {
                    Some(aborted) => drop(JsFuture::from(aborted).await),
                    None => core::future::pending().await,
                }
            });
            let mut is_aborted = false;
            poll_fn(|context| {
                let (polled, asking) = asks(|| acquired.as_mut().poll(context));
                if let Poll::Ready(held) = polled {
                    return Poll::Ready(Some(held.map(|held| (held, is_aborted))));
                }
                is_aborted = is_aborted || aborted.as_mut().poll(context).is_ready();
                if is_aborted && !asking {
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
                // It came too late. Whoever aborted hears of that, and not of what the store says.
                drop(held.release().await);
                Ok(None)
            }
            Some(Ok((held, false))) => Ok(Some(held.into_hold())),
        }
    }
}

/// The owner written in `text`, or one that nobody can guess.
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

/// Who holds a lock.
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

    /// In milliseconds.
    #[wasm_bindgen(getter)]
    pub fn remaining(&self) -> Option<f64> {
        self.0.remaining.map(millis)
    }
}

/// What one acquisition holds.
#[wasm_bindgen]
#[derive(Debug)]
pub struct Held {
    lock: Rc<Inner>,
    hold: Hold,
}

#[wasm_bindgen]
#[allow(missing_docs, reason = "called by the package alone")]
impl Held {
    #[wasm_bindgen(getter)]
    pub fn fence(&self) -> Option<u64> {
        self.hold.lease().fence().map(Fence::get)
    }

    /// In milliseconds.
    pub fn remaining(&self) -> Option<f64> {
        let left = self.hold.lease().remaining(JavaScript.now())?;
        Some(millis(left))
    }

    /// Keeps the lease alive until `finished`: what was lost, if it was.
    pub fn keep(&self, finished: Promise) -> Result<JsValue, JsValue> {
        let (lock, hold) = (Rc::clone(&self.lock), self.hold.clone());
        settle(async move {
            let finished = async { drop(JsFuture::from(finished).await) };
            match lock.keep_hold(&hold, finished).await {
                Ok(()) => Ok(JsValue::UNDEFINED),
                Err(err) => Ok(thrown(&err)),
            }
        })
    }

    /// Gives the lock back; that it was lost is thrown as such.
    pub fn release(&self) -> Result<JsValue, JsValue> {
        let (lock, hold) = (Rc::clone(&self.lock), self.hold.clone());
        settle(async move { done(lock.end_hold(&hold).await) })
    }
}
