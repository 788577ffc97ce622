//! An adapter from a store that is a component to a store of this program.

use std::fmt;
use std::sync::Mutex;

use verrou::conformance::TestClock;
use verrou::{
    Acquired, Capabilities, Claim, Fence, Holder, Mode, Name, Process, Renewed, Store, StoreError,
};
use verrou_host::component::bindings::blocking::verrou::lock::types;
use verrou_host::component::wasmtime::component::Component;

use self::bindings::StoreProvider;
use self::bindings::exports::verrou::lock::store as wit;
use crate::instances::{self, State};
use crate::keyvalue::Bucket;

pub(crate) use self::wit::StoreErrorCode as ErrorCode;

mod bindings {
    verrou_host::component::wasmtime::component::bindgen!({
        world: "store-provider",
        path: "../wit",
        wasmtime_crate: verrou_host::component::wasmtime,
        with: {
            "verrou:lock/types": verrou_host::component::bindings::blocking::verrou::lock::types,
            "wasi:io": verrou_host::component::bindings::blocking::wasi::io,
        },
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
        Self::of(component, instances::around(component, clock, bucket))
    }

    /// Creates an instance in a store, with the imports of a linker.
    pub(crate) fn of(
        component: &Component,
        (mut wasm, linker): (
            verrou_host::component::wasmtime::Store<State>,
            verrou_host::component::wasmtime::component::Linker<State>,
        ),
    ) -> Self {
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
        self.call(operation).map_err(|err| {
            if err.temporary {
                StoreError::temporary(err.message)
            } else {
                StoreError::permanent(err.message)
            }
        })
    }

    /// Calls the store, and returns its answer with the code of its error.
    fn call<T>(
        &self,
        operation: impl FnOnce(
            &wit::Guest,
            &mut verrou_host::component::wasmtime::Store<State>,
        ) -> Answer<T>,
    ) -> Result<T, wit::StoreError> {
        let inner = &mut *self.0.lock().unwrap();
        operation(inner.component.verrou_lock_store(), &mut inner.wasm).expect("no trap")
    }

    /// Returns the code of the error of a failed acquire request.
    pub(crate) fn error_code(&self, asked: &Claim) -> ErrorCode {
        let reply = self.call(|store, wasm| store.call_acquire(wasm, &claim(asked)));
        reply.expect_err("a failure").code
    }

    /// Returns whether the store has a wait queue.
    pub(crate) fn has_queue(&self, asked: &Claim) -> bool {
        let joined = self.call(|store, wasm| Ok(Ok(store.call_join(wasm, &claim(asked))?)));
        joined.expect("a join cannot fail").is_some()
    }
}

fn claim(claim: &Claim) -> wit::Claim {
    wit::Claim {
        name: claim.name.to_string(),
        owner: claim.owner.to_string(),
        mode: match claim.mode {
            Mode::Exclusive => types::Mode::Exclusive,
            other => unreachable!("the suite does not claim {other:?}"),
        },
        ttl: claim.ttl.duration().map(instances::nanos),
        ephemeral: claim.ephemeral,
    }
}

fn holder(holder: types::Holder) -> Holder {
    let fence = holder.fencing_token.and_then(Fence::new);
    let mut converted = Holder::new(fence, holder.remaining.map(instances::length));
    converted.since = holder.since.map(instances::length);
    converted.process = holder
        .process
        .map(|process| Process::new(process.id, process.host, process.command));
    converted.detached = holder.detached;
    converted
}

impl Store for Provider {
    fn acquire(&self, asked: &Claim) -> Result<Acquired, StoreError> {
        let reply = self.ask(|store, wasm| store.call_acquire(wasm, &claim(asked)))?;
        Ok(match reply {
            wit::Acquired::Granted(token) => Acquired::Granted {
                fence: token.map(|token| Fence::new(token).expect("no token is zero")),
            },
            wit::Acquired::Busy(remaining) => Acquired::Busy {
                remaining: remaining.map(instances::length),
            },
        })
    }

    fn extend(&self, asked: &Claim) -> Result<bool, StoreError> {
        self.ask(|store, wasm| store.call_extend(wasm, &claim(asked)))
    }

    fn renew(&self, asked: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        let token = fence.map(Fence::get);
        let reply = self.ask(|store, wasm| store.call_renew(wasm, &claim(asked), token))?;
        Ok(match reply {
            wit::Renewed::Granted => Renewed::Granted,
            wit::Renewed::Released => Renewed::Released,
            wit::Renewed::Lost => Renewed::Lost,
        })
    }

    fn release(&self, asked: &Claim) -> Result<bool, StoreError> {
        self.ask(|store, wasm| store.call_release(wasm, &claim(asked)))
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        let only = only.map(Fence::get);
        self.ask(|store, wasm| store.call_force_release(wasm, name.as_str(), only))
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        let holders = self.ask(|store, wasm| store.call_holders(wasm, name.as_str()))?;
        Ok(holders.into_iter().map(holder).collect())
    }

    fn detach(&self, asked: &Claim) -> Result<bool, StoreError> {
        self.ask(|store, wasm| store.call_detach(wasm, &claim(asked)))
    }

    fn capabilities(&self) -> Capabilities {
        use types::Capabilities as Flags;

        let flags = self.ask(|store, wasm| Ok(Ok(store.call_get_capabilities(wasm)?)));
        let flags = flags.expect("capabilities");
        let mut capabilities = Capabilities::NONE;
        capabilities.expires = flags.contains(Flags::EXPIRES);
        capabilities.ephemeral = flags.contains(Flags::EPHEMERAL);
        capabilities.transfers = flags.contains(Flags::TRANSFERS);
        capabilities.force_releases = flags.contains(Flags::FORCE_RELEASES);
        capabilities.fences = flags.contains(Flags::FENCES);
        capabilities.revives = flags.contains(Flags::REVIVES);
        capabilities
    }
}
