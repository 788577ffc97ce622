//! Instances of components with the test's clock.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use verrou::Clock;
use verrou::blocking::Host;
use verrou::conformance::TestClock;
use verrou_host::component::bindings::blocking::wasi::io::poll::Pollable;
use verrou_host::component::wasmtime;
use verrou_host::component::wasmtime::component::{
    Component, ComponentType, Lift, Linker, Lower, ResourceType,
};
use verrou_host::component::wasmtime::{Config, Engine, Result};

use crate::keyvalue::{self, Bucket};

static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
    let mut config = Config::new();
    config.concurrency_support(false);
    Engine::new(&config).unwrap()
});

/// The state of an instance's imports.
pub(crate) struct State {
    clock: TestClock,
    keyvalue: keyvalue::Host,
}

/// `wasi:clocks/wall-clock.datetime`
#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(record)]
struct DateTime {
    seconds: u64,
    nanoseconds: u32,
}

/// Returns the path of a component that `cargo xtask component` has built.
pub(crate) fn built(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target/component");
    let path = path.join(format!("{name}.wasm"));
    assert!(
        path.exists(),
        "there is no {}: `cargo xtask component examples/{name}` builds it",
        path.display()
    );
    path
}

pub(crate) fn load(path: &Path) -> Component {
    Component::from_file(&ENGINE, path).unwrap()
}

/// Returns a store for an instance of `component`, and a linker with its imports: the clock, randomness and the
/// bucket.
pub(crate) fn around(
    component: &Component,
    clock: TestClock,
    bucket: Bucket,
) -> (wasmtime::Store<State>, Linker<State>) {
    let mut linker = Linker::new(component.engine());
    imports(&mut linker).unwrap();
    let keyvalue = keyvalue::Host::new(bucket);
    let wasm = wasmtime::Store::new(component.engine(), State { clock, keyvalue });
    (wasm, linker)
}

fn imports(linker: &mut Linker<State>) -> Result<()> {
    let mut clock = linker.instance("wasi:clocks/monotonic-clock@0.2.0")?;
    clock.func_wrap("now", |wasm, ()| {
        let state: &State = wasm.data();
        Ok((nanos(state.clock.now().since_start()),))
    })?;
    let mut clock = linker.instance("wasi:clocks/wall-clock@0.2.0")?;
    clock.func_wrap("now", |wasm, ()| {
        let state: &State = wasm.data();
        let now = state.clock.wall_clock();
        let (seconds, nanoseconds) = (now.as_secs(), now.subsec_nanos());
        Ok((DateTime {
            seconds,
            nanoseconds,
        },))
    })?;
    let mut random = linker.instance("wasi:random/random@0.2.0")?;
    random.func_wrap("get-random-u64", |wasm, ()| {
        let state: &State = wasm.data();
        let [first, ..] = *state.clock.random().as_chunks().0 else {
            unreachable!("there are two halves");
        };
        Ok((u64::from_le_bytes(first),))
    })?;
    // These stores have no wait queue, so no pollable exists.
    let mut poll = linker.instance("wasi:io/poll@0.2.0")?;
    poll.resource("pollable", ResourceType::host::<Pollable>(), |_, _| Ok(()))?;
    keyvalue::add_to_linker(linker, |state| &mut state.keyvalue)
}

pub(crate) fn nanos(length: Duration) -> u64 {
    length.as_nanos().try_into().unwrap()
}

pub(crate) fn length(nanos: u64) -> Duration {
    Duration::from_nanos(nanos)
}
