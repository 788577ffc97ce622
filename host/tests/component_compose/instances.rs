//! Instances of components with the test's clock, and with a host of WASI.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use verrou::Clock;
use verrou::blocking::Host;
use verrou::conformance::TestClock;
use verrou_host::component::bindings::blocking::wasi::io::poll::Pollable;
use verrou_host::component::wasmtime;
use verrou_host::component::wasmtime::component::{
    Component, ComponentType, Lift, Linker, Lower, ResourceTable, ResourceType,
};
use verrou_host::component::wasmtime::{Config, Engine, Result};
use wasmtime_wasi::{FsPerms, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

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
    wasi: WasiCtx,
    handles: ResourceTable,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.handles,
        }
    }
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
    let state = State {
        clock,
        keyvalue,
        wasi: WasiCtx::builder().build(),
        handles: ResourceTable::new(),
    };
    (wasmtime::Store::new(component.engine(), state), linker)
}

/// Returns a store for an instance of `component`, and a linker with WASI: with the directory `locks` as the
/// preopened one of that name, and the wall clock of `clock`, or else the machine's.
pub(crate) fn in_directory(
    component: &Component,
    locks: &Path,
    clock: Option<TestClock>,
) -> (wasmtime::Store<State>, Linker<State>) {
    let mut wasi = WasiCtx::builder();
    wasi.preopened_dir(locks, "locks", FsPerms::ReadWrite)
        .unwrap();
    with_wasi(component, wasi, clock)
}

/// Returns the same with no directory of that name.
pub(crate) fn without_directory(
    component: &Component,
    clock: TestClock,
) -> (wasmtime::Store<State>, Linker<State>) {
    let mut wasi = WasiCtx::builder();
    let other = std::env::temp_dir();
    wasi.preopened_dir(other, "other/locks", FsPerms::ReadWrite)
        .unwrap();
    with_wasi(component, wasi, Some(clock))
}

fn with_wasi(
    component: &Component,
    mut wasi: WasiCtxBuilder,
    clock: Option<TestClock>,
) -> (wasmtime::Store<State>, Linker<State>) {
    wasi.allow_blocking_current_thread(true);
    if let Some(clock) = &clock {
        wasi.wall_clock(WallClock(clock.clone()));
    }
    let mut linker = Linker::new(component.engine());
    wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
    // The bindings have another type for pollables, of which these stores have none.
    linker.allow_shadowing(true);
    for version in ["0.2.0", "0.2.12"] {
        let poll = linker.instance(&format!("wasi:io/poll@{version}"));
        let pollable = ResourceType::host::<Pollable>();
        poll.unwrap()
            .resource("pollable", pollable, |_, _| Ok(()))
            .unwrap();
    }
    let state = State {
        clock: clock.unwrap_or_else(TestClock::still),
        keyvalue: keyvalue::Host::new(Bucket::default()),
        wasi: wasi.build(),
        handles: ResourceTable::new(),
    };
    (wasmtime::Store::new(component.engine(), state), linker)
}

/// The wall clock of a test, for WASI.
struct WallClock(TestClock);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(1)
    }

    fn now(&self) -> Duration {
        self.0.wall_clock()
    }
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
