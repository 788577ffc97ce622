//! An adapter from a store that is a component to a store of this program.

use std::fmt;
use std::sync::Mutex;

use verrou::conformance::TestClock;
use verrou::{Acquired, Capabilities, Claim, Fence, Holder, Name, Store, StoreError};
use verrou_host::component::wasmtime::component::Component;

use self::bindings::StoreProvider;
use self::bindings::exports::verrou::lock::store as wit;
use crate::instances::{self, State};
use crate::keyvalue::Bucket;

mod bindings {
    verrou_host::component::wasmtime::component::bindgen!({
        world: "store-provider",
        path: "../wit",
        wasmtime_crate: verrou_host::component::wasmtime,
    });
}

/// An instance of a store.
pub(crate) struct Provider(Mutex<Inner>);

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").finish_non_exhaustive()
    }
}

struct Inner {
    wasm: verrou_host::component::wasmtime::Store<State>,
    component: StoreProvider,
}

type Answer<T> = verrou_host::component::wasmtime::Result<Result<T, wit::StoreError>>;

impl Provider {
    /// Creates an instance, which shares only the bucket with others, if it uses that.
    pub(crate) fn new(component: &Component, clock: TestClock, bucket: Bucket) -> Self {
        let (mut wasm, linker) = instances::around(component, clock, bucket);
        let component = StoreProvider::instantiate(&mut wasm, component, &linker).unwrap();
        Self(Mutex::new(Inner { wasm, component }))
    }

    fn ask<T>(
        &self,
        operation: impl FnOnce(
            &wit::Guest,
            &mut verrou_host::component::wasmtime::Store<State>,
        ) -> Answer<T>,
    ) -> Result<T, StoreError> {
        let inner = &mut *self.0.lock().unwrap();
        let answer = operation(inner.component.verrou_lock_store(), &mut inner.wasm);
        answer.expect("no trap").map_err(|err| {
            if err.temporary {
                StoreError::temporary(err.message)
            } else {
                StoreError::permanent(err.message)
            }
        })
    }

    fn is_done(
        &self,
        operation: impl FnOnce(
            &wit::Guest,
            &mut verrou_host::component::wasmtime::Store<State>,
        ) -> Answer<wit::Reply>,
    ) -> Result<bool, StoreError> {
        Ok(matches!(self.ask(operation)?, wit::Reply::Granted(_)))
    }
}

fn claim(claim: &Claim) -> wit::Claim {
    wit::Claim {
        name: claim.name.to_string(),
        owner: claim.owner.to_string(),
        ttl: claim.ttl.duration().map(instances::nanos),
        ephemeral: claim.ephemeral,
    }
}

impl Store for Provider {
    fn acquire(&self, asked: &Claim) -> Result<Acquired, StoreError> {
        let reply = self.ask(|store, wasm| store.call_acquire(wasm, &claim(asked)))?;
        Ok(match reply {
            wit::Reply::Granted(token) => Acquired::Granted {
                fence: token.map(|token| Fence::new(token).expect("no token is zero")),
            },
            wit::Reply::Refused(remaining) => Acquired::Busy {
                remaining: remaining.map(instances::length),
            },
        })
    }

    fn extend(&self, asked: &Claim) -> Result<bool, StoreError> {
        self.is_done(|store, wasm| store.call_extend(wasm, &claim(asked)))
    }

    fn release(&self, asked: &Claim) -> Result<bool, StoreError> {
        self.is_done(|store, wasm| store.call_release(wasm, &claim(asked)))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let only = only.map(Fence::get);
        self.is_done(|store, wasm| store.call_evict(wasm, name.as_str(), only))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let holder = self.ask(|store, wasm| store.call_inspect(wasm, name.as_str()))?;
        let holder = holder.map(|holder| {
            Holder::new(
                holder.fencing_token.and_then(Fence::new),
                holder.remaining.map(instances::length),
            )
        });
        Ok(holder.into_iter().collect())
    }

    fn detach(&self, asked: &Claim) -> Result<bool, StoreError> {
        self.is_done(|store, wasm| store.call_detach(wasm, &claim(asked)))
    }

    fn capabilities(&self) -> Capabilities {
        let can = self.ask(|store, wasm| Ok(Ok(store.call_can(wasm)?)));
        let can = can.expect("capabilities");
        let mut capabilities = Capabilities::NONE;
        capabilities.expires = can.expires;
        capabilities.ephemeral = can.ephemeral;
        capabilities.transfers = can.transfers;
        capabilities.force_releases = can.evicts;
        capabilities.fences = can.fences;
        capabilities
    }
}
