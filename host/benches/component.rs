//! The cost of the components: native locks and the locks of the components of WASI 0.2 and 0.3, in one run.
//!
//! The machines that this runs on are noisy, so the subjects of a comparison take turns, round by round.
//! The benchmark prints the median of each subject, and its ratio to the first one. No benchmark library was
//! found that interleaves subjects.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pollster::block_on;
use verrou::blocking::{Host, LockFactory};
use verrou::nonblocking::{AsyncHost, Inline};
use verrou::{Clock, MemoryStore, Store, Timestamp};
use verrou_host::component::wasmtime::component::{Component, Linker};
use verrou_host::component::wasmtime::{Config, Engine, InstanceAllocationStrategy};
use verrou_host::component::{ConcurrentRunner, Instance, Limits, Runner};
use verrou_host::{LeaseFileStore, StoreOptions, System};

type SharedStore = Arc<dyn Store>;
type Subject<'a> = (&'a str, Box<dyn FnMut() + 'a>);

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/component");
const ROUNDS: usize = 41;

/// This machine, for futures that do not sleep: here no lock is waited for.
#[derive(Clone, Copy)]
struct Sleepless;

impl Clock for Sleepless {
    fn now(&self) -> Timestamp {
        System.now()
    }
}

impl AsyncHost for Sleepless {
    fn sleep(&self, _: Duration) -> impl Future<Output = ()> {
        std::future::pending()
    }
    fn random(&self) -> [u8; 16] {
        System.random()
    }
    fn wall_clock(&self) -> Duration {
        System.wall_clock()
    }
}

/// The runners of both components.
struct Runners {
    polled: Runner<SharedStore, System>,
    concurrent: ConcurrentRunner<Inline<SharedStore>, Sleepless>,
}

fn read(file: &str) -> Result<Vec<u8>, String> {
    let path = format!("{DIRECTORY}/{file}");
    let bytes = std::fs::read(&path)
        .map_err(|err| format!("{path}: {err}: build it with `cargo xtask component`"))?;
    println!("{file}: {} bytes", bytes.len());
    Ok(bytes)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bytes = read("verrou.wasm")?;
    let async_bytes = read("verrou-async.wasm")?;
    let runners = Runners {
        polled: Runner::new(&bytes, &Limits::default())?,
        concurrent: ConcurrentRunner::new(&async_bytes, &Limits::default())?,
    };
    let memory: SharedStore = Arc::new(MemoryStore::new(System));
    compare_locks("acquire and release, in memory", 2_000, &runners, &memory)?;

    let directory = tempfile::tempdir()?;
    let leases = LeaseFileStore::open(directory.path(), &StoreOptions::default())?;
    let leases: SharedStore = Arc::new(leases);
    compare_locks("acquire and release, lease files", 200, &runners, &leases)?;

    let pooled = Runner::<SharedStore, System>::new(&bytes, &Limits::default().pool(4))?;
    let concurrent =
        ConcurrentRunner::<_, Sleepless>::new(&async_bytes, &Limits::default().pool(4))?;
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
                    let instance = runners.polled.instance(Arc::clone(&memory), System);
                    black_box(instance).expect("an instance");
                }),
            ),
            (
                "component of WASI 0.3, pooled",
                Box::new(|| {
                    let instance = concurrent.instance(Inline(Arc::clone(&memory)), Sleepless);
                    black_box(block_on(instance)).expect("an instance");
                }),
            ),
        ],
    );
    Ok(())
}

/// Compares a lock of this program with one of each component, all in `store`.
fn compare_locks(
    title: &str,
    times: u32,
    runners: &Runners,
    store: &SharedStore,
) -> Result<(), Box<dyn std::error::Error>> {
    let name = "a name of twenty-four by";
    let ttl = Duration::from_secs(30);
    let native = LockFactory::new(Arc::clone(store), System).create_lock(name, ttl)?;
    let mut instance: Instance<_, _> = runners.polled.instance(Arc::clone(store), System)?;
    let lock = instance.create_lock(name, Some(ttl))?;
    let concurrent = runners
        .concurrent
        .instance(Inline(Arc::clone(store)), Sleepless);
    let concurrent = block_on(concurrent)?;
    let concurrent_lock = block_on(concurrent.create_lock(name, Some(ttl)))?;
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
            (
                "component of WASI 0.3",
                Box::new(|| {
                    block_on(async {
                        assert!(
                            concurrent
                                .try_acquire(concurrent_lock)
                                .await
                                .expect("an answer")
                        );
                        concurrent.release(concurrent_lock).await.expect("my lock");
                    });
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
