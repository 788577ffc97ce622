//! Stores: in this module's memory, or in a JavaScript object.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;
use core::future::{self, Future};
use core::pin::pin;
use core::time::Duration;

use async_trait::async_trait;
use js_sys::BigInt;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};

use super::error::{is_not_owner, property, store_error};
use super::host::{JavaScript, awaited, millis};
use crate::claim::{Claim, Fence};
use crate::memory::MemoryStore;
use crate::name::Name;
use crate::nonblocking::AsyncHost;
use crate::store::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Holder, Renewed, StoreError,
};

/// The time from a wait that failed to the next attempt.
const AFTER_FAILED_WAIT: Duration = Duration::from_millis(250);

std::thread_local! {
    /// Whether the future polled last waits for a store's reply, and not for time to pass.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Calls `poll`, and returns also whether a request to a store is in flight after that.
pub(super) fn poll_asking<T>(poll: impl FnOnce() -> T) -> (T, bool) {
    ASKING.set(false);
    let end = poll();
    (end, ASKING.take())
}

/// A store of locks.
#[wasm_bindgen]
#[derive(Clone, Debug)]
pub struct Store(StoreKind);

#[derive(Clone, Debug)]
enum StoreKind {
    Memory(Arc<MemoryStore<JavaScript>>),
    Object(Arc<Object>),
}

/// A store in a JavaScript object, and which optional methods it has.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "methods are there independently of each other"
)]
struct Object {
    methods: LockStore,
    fences: bool,
    describes: bool,
    waits: bool,
    gives_up: bool,
    detaches: bool,
    renews: bool,
    watches: bool,
    /// Whether a wait ends when the key may be free, so that no attempt is necessary before.
    notifies: bool,
}

#[wasm_bindgen]
extern "C" {
    /// An object with the methods of `LockStore` in `package/index.d.ts`.
    #[derive(Clone, Debug)]
    pub type LockStore;

    #[wasm_bindgen(method, catch)]
    fn save(this: &LockStore, key: &str, owner: &str, ttl: &JsValue) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn delete(this: &LockStore, key: &str, owner: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch, js_name = forceDelete)]
    fn force_delete(this: &LockStore, key: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn exists(this: &LockStore, key: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn extend(this: &LockStore, key: &str, owner: &str, ttl: &JsValue) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn renew(
        this: &LockStore,
        key: &str,
        owner: &str,
        ttl: &JsValue,
        fence: &JsValue,
    ) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn fence(this: &LockStore, key: &str, owner: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn holder(this: &LockStore, key: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn wait(
        this: &LockStore,
        key: &str,
        at_most: f64,
        signal: &JsValue,
        owner: &str,
    ) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch, js_name = giveUp)]
    fn give_up(this: &LockStore, key: &str, owner: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn detach(this: &LockStore, key: &str, owner: &str) -> Result<JsValue, JsValue>;
    #[wasm_bindgen(method, catch)]
    fn watch(
        this: &LockStore,
        key: &str,
        owner: &str,
        signal: &JsValue,
    ) -> Result<JsValue, JsValue>;

    type AbortController;
    #[wasm_bindgen(constructor)]
    fn new() -> AbortController;
    #[wasm_bindgen(method, getter)]
    fn signal(this: &AbortController) -> JsValue;
    #[wasm_bindgen(method)]
    fn abort(this: &AbortController);
}

#[wasm_bindgen]
impl Store {
    /// Makes a store in this module's memory.
    #[allow(missing_docs, reason = "called by the package alone")]
    pub fn memory() -> Self {
        Self(StoreKind::Memory(Arc::new(MemoryStore::new(JavaScript))))
    }

    /// Makes a store of an object that has all required methods.
    #[allow(missing_docs, reason = "called by the package alone")]
    pub fn object(object: LockStore) -> Self {
        let has = |name| property(&object, name).is_function();
        Self(StoreKind::Object(Arc::new(Object {
            fences: has("fence"),
            describes: has("holder"),
            waits: has("wait"),
            gives_up: has("giveUp"),
            detaches: has("detach"),
            renews: has("renew"),
            watches: has("watch"),
            notifies: property(&object, "notifies").is_truthy(),
            methods: object,
        })))
    }
}

#[async_trait]
impl AsyncStore for Store {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::acquire(&**store, claim).await,
            StoreKind::Object(store) => asking(store.acquire(claim)).await,
        }
    }

    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::extend(store, claim).await,
            StoreKind::Object(store) => {
                let (key, owner) = (claim.name.as_str(), claim.owner.to_string());
                let extended = store.methods.extend(key, &owner, &length(claim));
                asking(owned(extended)).await
            }
        }
    }

    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::release(store, claim).await,
            StoreKind::Object(store) => {
                let owner = claim.owner.to_string();
                asking(owned(store.methods.delete(claim.name.as_str(), &owner))).await
            }
        }
    }

    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::force_release(store, name, only).await,
            StoreKind::Object(_) if only.is_some() => Err(StoreError::permanent(
                "this store cannot force-release only the grant with a given fencing token",
            )),
            StoreKind::Object(store) => {
                asking(owned(store.methods.force_delete(name.as_str()))).await
            }
        }
    }

    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::holders(store, name).await,
            StoreKind::Object(store) if store.describes => {
                let holder = asking(awaited(store.methods.holder(name.as_str()))).await;
                let holder = holder_of(&holder.map_err(store_error)?)?;
                Ok(holder.into_iter().collect())
            }
            StoreKind::Object(store) => {
                let exists = asking(awaited(store.methods.exists(name.as_str()))).await;
                let holder = exists
                    .map_err(store_error)?
                    .is_truthy()
                    .then_some(Holder::new(None, None));
                Ok(holder.into_iter().collect())
            }
        }
    }

    fn capabilities(&self) -> Capabilities {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::capabilities(store),
            StoreKind::Object(store) => Capabilities {
                expires: true,
                ephemeral: store.detaches,
                transfers: true,
                force_releases: true,
                fences: store.fences,
                revives: store.renews,
            },
        }
    }

    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::renew(store, claim, fence).await,
            StoreKind::Object(store) if store.renews => {
                let (key, owner) = (claim.name.as_str(), claim.owner.to_string());
                let fence = fence.map_or(JsValue::NULL, |fence| BigInt::from(fence.get()).into());
                let renewed = store.methods.renew(key, &owner, &length(claim), &fence);
                let renewed = asking(awaited(renewed)).await.map_err(store_error)?;
                match renewed.as_string().as_deref() {
                    Some("granted") => Ok(Renewed::Granted),
                    Some("released") => Ok(Renewed::Released),
                    Some("lost") => Ok(Renewed::Lost),
                    _ => Err(StoreError::permanent(
                        "the store's reply to a renewal is none of `granted`, `released` and `lost`",
                    )),
                }
            }
            StoreKind::Object(_) => self.extend(claim).await.map(Renewed::by_extension),
        }
    }

    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::detach(store, claim).await,
            // The leases of such a store are never ephemeral.
            StoreKind::Object(store) if !store.detaches => Ok(true),
            StoreKind::Object(store) => {
                let owner = claim.owner.to_string();
                asking(owned(store.methods.detach(claim.name.as_str(), &owner))).await
            }
        }
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        match &self.0 {
            StoreKind::Memory(store) => AsyncStore::waiter(store, claim),
            StoreKind::Object(store) if store.waits || store.gives_up => {
                Some(Box::new(ObjectWaiter {
                    store,
                    key: claim.name.clone(),
                    owner: claim.owner.to_string(),
                    is_granted: false,
                }))
            }
            StoreKind::Object(_) => None,
        }
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        match &self.0 {
            StoreKind::Object(store) if store.watches => Some(Box::new(ObjectLossWatch {
                store,
                key: claim.name.clone(),
                owner: claim.owner.to_string(),
            })),
            _ => None,
        }
    }
}

/// The watch of one owner's lease.
struct ObjectLossWatch<'a> {
    store: &'a Object,
    key: Name,
    owner: String,
}

#[async_trait]
impl AsyncLossWatch for ObjectLossWatch<'_> {
    async fn wait(&mut self) {
        let watching = AbortOnDrop(AbortController::new());
        let (methods, signal) = (&self.store.methods, watching.0.signal());
        let watched = methods.watch(self.key.as_str(), &self.owner, &signal);
        if awaited(watched).await.is_err() {
            // The renewals notice the loss.
            future::pending::<()>().await;
        }
    }
}

/// The waiter of one owner. Dropping it without a grant calls the object's `giveUp`.
struct ObjectWaiter<'a> {
    store: &'a Object,
    key: Name,
    owner: String,
    is_granted: bool,
}

#[async_trait]
impl AsyncWaiter for ObjectWaiter<'_> {
    async fn wait(&mut self, at_most: Duration) {
        if self.store.waits {
            let waiting = AbortOnDrop(AbortController::new());
            let (signal, millis) = (waiting.0.signal(), millis(at_most));
            let methods = &self.store.methods;
            let waited = methods.wait(self.key.as_str(), millis, &signal, &self.owner);
            if awaited(waited).await.is_ok() {
                return;
            }
            if self.store.notifies {
                // The time limit may be far. The next attempt returns the error.
                return JavaScript.sleep(AFTER_FAILED_WAIT).await;
            }
        }
        // The store cannot wait, so this waits until the caller's time limit.
        future::pending::<()>().await;
    }

    fn notifies(&self) -> bool {
        self.store.notifies
    }

    fn granted(mut self: Box<Self>) {
        self.is_granted = true;
    }
}

impl Drop for ObjectWaiter<'_> {
    fn drop(&mut self) {
        if self.store.gives_up && !self.is_granted {
            // A failure is ignored: no caller waits for the result.
            let left = self.store.methods.give_up(self.key.as_str(), &self.owner);
            wasm_bindgen_futures::spawn_local(async { drop(awaited(left).await) });
        }
    }
}

impl Object {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let (key, owner) = (claim.name.as_str(), claim.owner.to_string());
        let saved = awaited(self.methods.save(key, &owner, &length(claim))).await;
        let saved = saved.map_err(store_error)?;
        if !saved.is_truthy() {
            return Ok(Acquired::BUSY);
        }
        let token = property(&saved, "granted");
        if !token.is_undefined() {
            return Ok(Acquired::Granted {
                fence: token_of(&token)?,
            });
        }
        if !self.fences {
            return Ok(Acquired::Granted { fence: None });
        }
        let token = awaited(self.methods.fence(key, &owner)).await;
        Ok(Acquired::Granted {
            fence: token_of(&token.map_err(store_error)?)?,
        })
    }
}

/// A controller that aborts the store's wait when it is dropped.
struct AbortOnDrop(AbortController);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Awaits `request`, and sets `ASKING` whenever it is polled and not ready.
async fn asking<T>(request: impl Future<Output = T>) -> T {
    let mut request = pin!(request);
    future::poll_fn(|context| {
        let reply = request.as_mut().poll(context);
        if reply.is_pending() {
            ASKING.set(true);
        }
        reply
    })
    .await
}

async fn owned(done: Result<JsValue, JsValue>) -> Result<bool, StoreError> {
    match awaited(done).await {
        Ok(_) => Ok(true),
        Err(err) if is_not_owner(&err) => Ok(false),
        Err(err) => Err(store_error(err)),
    }
}

fn length(claim: &Claim) -> JsValue {
    let ttl = claim.ttl.duration().map(millis);
    ttl.map_or(JsValue::NULL, JsValue::from_f64)
}

/// Reads the holder that a store returned: an object with the members `fence` and `remaining`, in milliseconds, or none.
fn holder_of(value: &JsValue) -> Result<Option<Holder>, StoreError> {
    if value.is_null() || value.is_undefined() {
        return Ok(None);
    }
    let fence = token_of(&property(value, "fence"))?;
    let remaining = property(value, "remaining");
    let remaining = match remaining.as_f64() {
        None if remaining.is_null() || remaining.is_undefined() => None,
        Some(millis) if millis >= 0.0 => Duration::try_from_secs_f64(millis / 1_000.0).ok(),
        _ => {
            return Err(StoreError::permanent(
                "the store returned a remaining time that is not a number of milliseconds from 0, or null",
            ));
        }
    };
    Ok(Some(Holder::new(fence, remaining)))
}

/// Reads a fencing token that a store returned: a number, a bigint, or none.
fn token_of(value: &JsValue) -> Result<Option<Fence>, StoreError> {
    if value.is_null() || value.is_undefined() {
        return Ok(None);
    }
    let token = match value.as_f64() {
        Some(number) => BigInt::new(&JsValue::from_f64(number)).ok(),
        None => value.dyn_ref::<BigInt>().cloned(),
    };
    let token = token.and_then(|token| u64::try_from(token).ok());
    match token.and_then(Fence::new) {
        Some(fence) => Ok(Some(fence)),
        None => Err(StoreError::permanent(
            "the store returned a fencing token that is not a whole number from 1",
        )),
    }
}
