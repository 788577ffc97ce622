//! The wasmtime engine, and what a component may take.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use verrou::Timestamp;
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, StoreLimits,
    StoreLimitsBuilder, UpdateDeadline,
};

use super::bindings::blocking::wasi::{clocks, random};
use super::convert;

/// What one instance of a component may take, so that none hangs or exhausts its host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// How much memory, in bytes: 128 MiB unless told otherwise, in which the lock component has
    /// room for all the handles that it gives out.
    pub memory: usize,
    /// For how long its code may run without calling its host or returning to it; ten seconds
    /// unless told otherwise. What its host's store takes is not counted.
    pub time: Duration,
    /// With `Some`, the memory of this many instances is reserved beforehand and used again and
    /// again, which makes instances cheap: for servers. More cannot be alive at a time.
    pub pool: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 128 << 20,
            time: Duration::from_secs(10),
            pool: None,
        }
    }
}

impl Limits {
    /// How often code that runs is looked at.
    const TICK: Duration = Duration::from_millis(50);

    /// So many bytes of an instance's memory stay with the pool when the instance goes.
    const KEPT: usize = 1 << 18;

    /// A component that is composed of several has so many modules and memories at most.
    const MODULES: u32 = 16;

    /// For `instances` instances, whose memory is reserved beforehand: see [`Limits::pool`].
    #[must_use]
    pub fn pool(self, instances: u32) -> Self {
        Self {
            pool: Some(instances),
            ..self
        }
    }

    /// At most `bytes` of memory for an instance.
    #[must_use]
    pub fn memory(self, bytes: usize) -> Self {
        Self {
            memory: bytes,
            ..self
        }
    }

    /// At most `time` without a call to the host.
    #[must_use]
    pub fn time(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// An engine that stops to look at what runs, for as long as it is used.
    pub(super) fn engine(&self) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        // Nothing is awaited inside a component here, and being able to would cost each call
        // twice its time.
        config.concurrency_support(false);
        if let Some(instances) = self.pool {
            let modules = instances.saturating_mul(Self::MODULES);
            let mut pool = PoolingAllocationConfig::default();
            pool.total_component_instances(instances)
                .total_core_instances(modules)
                .total_memories(modules)
                .total_tables(modules)
                .total_stacks(instances)
                .max_core_instances_per_component(Self::MODULES)
                .max_memories_per_component(Self::MODULES)
                .max_tables_per_component(Self::MODULES)
                .max_memory_size(self.memory)
                // What was used little is cleared, which takes less than giving it back.
                .linear_memory_keep_resident(Self::KEPT)
                .table_keep_resident(Self::KEPT)
                .pagemap_scan(Enabled::Auto);
            config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        }
        let engine = Engine::new(&config)?;
        let ticked = engine.weak();
        thread::Builder::new()
            .name("component-clock".to_owned())
            .spawn(move || {
                while let Some(engine) = ticked.upgrade() {
                    engine.increment_epoch();
                    drop(engine);
                    thread::sleep(Self::TICK);
                }
            })?;
        Ok(engine)
    }

    /// Somewhere to instantiate a component that imports the store `store`, and whatever `host`
    /// tells of time and chance.
    pub(super) fn wasm_store<S: 'static, H: 'static>(
        &self,
        engine: &Engine,
        store: S,
        host: H,
        now: fn(&H) -> Timestamp,
        random: fn(&H) -> [u8; 16],
    ) -> wasmtime::Store<State<S, H>> {
        let limits = StoreLimitsBuilder::new()
            .memory_size(self.memory)
            .table_elements(1 << 17)
            .instances(4 * Self::MODULES as usize)
            .build();
        let state = State {
            store,
            host,
            now,
            random,
            limits,
            entered: Instant::now(),
        };
        let mut wasm = wasmtime::Store::new(engine, state);
        wasm.limiter(|state| &mut state.limits);
        wasm.set_epoch_deadline(1);
        let time = self.time;
        wasm.epoch_deadline_callback(move |wasm| {
            let ran = wasm.data().entered.elapsed();
            if ran > time {
                return Err(wasmtime::format_err!(
                    "the component ran for {ran:?} without a call to its host"
                ));
            }
            Ok(UpdateDeadline::Continue(1))
        });
        wasm
    }
}

/// What an instance's imports are made of.
pub struct State<S, H> {
    pub(super) store: S,
    pub(super) host: H,
    now: fn(&H) -> Timestamp,
    random: fn(&H) -> [u8; 16],
    limits: StoreLimits,
    entered: Instant,
}

impl<S, H> fmt::Debug for State<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl<S, H> State<S, H> {
    /// Notes that the component's code goes on from here.
    pub(super) fn enter(&mut self) {
        self.entered = Instant::now();
    }
}

impl<S, H> clocks::monotonic_clock::Host for State<S, H> {
    fn now(&mut self) -> u64 {
        convert::nanos((self.now)(&self.host).since_start())
    }
}

impl<S, H> random::random::Host for State<S, H> {
    fn get_random_u64(&mut self) -> u64 {
        let random = u128::from_be_bytes((self.random)(&self.host));
        (random >> 64) as u64
    }
}
