//! The cost of the component: native locks and the component's locks, in one run.
//!
//! The machines that this runs on are noisy, so the subjects of a comparison take turns, round by round.
//! The benchmark prints the median of each subject, and its ratio to the first one. No benchmark library was
//! found that interleaves subjects.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use verrou::blocking::LockFactory;
use verrou::{MemoryStore, Store};
use verrou_host::component::wasmtime::component::{Component, Linker};
use verrou_host::component::wasmtime::{Config, Engine, InstanceAllocationStrategy};
use verrou_host::component::{Instance, Limits, Runner};
use verrou_host::{LeaseFileStore, StoreOptions, System};

type SharedStore = Arc<dyn Store>;
type Subject<'a> = (&'a str, Box<dyn FnMut() + 'a>);

const COMPONENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../target/component/verrou.wasm"
);
const ROUNDS: usize = 41;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bytes = std::fs::read(COMPONENT)
        .map_err(|err| format!("{COMPONENT}: {err}: build it with `cargo xtask component`"))?;
    println!("component: {} bytes", bytes.len());

    let runner = Runner::<SharedStore, System>::new(&bytes, &Limits::default())?;
    let memory: SharedStore = Arc::new(MemoryStore::new(System));
    pair("acquire and release, in memory", 2_000, &runner, &memory)?;

    let directory = tempfile::tempdir()?;
    let leases = LeaseFileStore::open(directory.path(), &StoreOptions::default())?;
    let leases: SharedStore = Arc::new(leases);
    pair("acquire and release, lease files", 200, &runner, &leases)?;

    let pooled = Runner::<SharedStore, System>::new(&bytes, &Limits::default().pool(4))?;
    let mut config = Config::new();
    config.allocation_strategy(InstanceAllocationStrategy::pooling());
    let engine = Engine::new(&config)?;
    // One module with one page of memory, and nothing else.
    let text = "(component (core module $m (memory 1)) (core instance (instantiate $m)))";
    let empty = Component::new(&engine, wat::parse_str(text)?)?;
    let empty = Linker::<()>::new(&engine).instantiate_pre(&empty)?;
    compare(
        "an instance, made and dropped",
        500,
        [
            (
                "empty component, pooled",
                Box::new(|| {
                    let mut wasm = verrou_host::component::wasmtime::Store::new(&engine, ());
                    black_box(empty.instantiate(&mut wasm).expect("an instance"));
                }),
            ),
            (
                "lock component, pooled",
                Box::new(|| {
                    black_box(pooled.instance(Arc::clone(&memory), System)).expect("an instance");
                }),
            ),
            (
                "lock component, on demand",
                Box::new(|| {
                    black_box(runner.instance(Arc::clone(&memory), System)).expect("an instance");
                }),
            ),
        ],
    );
    Ok(())
}

/// Compares a lock of this program with one of the component, both in `store`.
fn pair(
    title: &str,
    times: u32,
    runner: &Runner<SharedStore, System>,
    store: &SharedStore,
) -> Result<(), Box<dyn std::error::Error>> {
    let name = "a name of twenty-four by";
    let ttl = Duration::from_secs(30);
    let native = LockFactory::new(Arc::clone(store), System).create_lock(name, ttl)?;
    let mut instance: Instance<_, _> = runner.instance(Arc::clone(store), System)?;
    let lock = instance.create_lock(name, Some(ttl))?;
    compare(
        title,
        times,
        [
            (
                "native",
                Box::new(|| {
                    black_box(native.try_acquire()).expect("a free lock");
                    native.release().expect("my lock");
                }),
            ),
            (
                "component",
                Box::new(|| {
                    assert!(instance.try_acquire(lock).expect("an answer"));
                    instance.release(lock).expect("my lock");
                }),
            ),
        ],
    );
    Ok(())
}

/// Runs the subjects in turns, each `times` times in a round, and prints their medians.
fn compare<const N: usize>(title: &str, times: u32, mut subjects: [Subject<'_>; N]) {
    let mut taken: [Vec<Duration>; N] = std::array::from_fn(|_| Vec::with_capacity(ROUNDS));
    for _ in 0..ROUNDS {
        for ((_, subject), taken) in subjects.iter_mut().zip(&mut taken) {
            let began = Instant::now();
            for _ in 0..times {
                subject();
            }
            taken.push(began.elapsed() / times);
        }
    }
    println!("\n{title} (median of {ROUNDS} rounds of {times})");
    let medians = taken.map(|mut taken| {
        taken.sort_unstable();
        taken[ROUNDS / 2]
    });
    for ((name, _), median) in subjects.iter().zip(medians) {
        let ratio = median.as_secs_f64() / medians[0].as_secs_f64();
        println!("  {name:<28} {median:>12.3?} {ratio:>8.2} ×");
    }
}
