//! The wasmtime engine, and the limits of a component.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Claim, StoreError, Timestamp};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ResourceLimiter,
    UpdateDeadline,
};

use crate::bindings::blocking::wasi::{clocks, random};
use crate::convert;

/// The limits of one instance of a component, so that no instance blocks or exhausts its host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// The maximum size of all memories of the instance together, in bytes; by default 128 MiB, which is
    /// enough for all handles of the lock component.
    pub memory: usize,
    /// The maximum time for which the component's code may run in one call; by default ten seconds. The
    /// time of the store's operations is not counted, but one call may request at most a thousand of
    /// them.
    pub time: Duration,
    /// With `Some`, addresses for the memory of this many instances are reserved in advance and reused,
    /// which makes instances cheap, as servers need. No more instances can exist at a time. Each takes
    /// 64 GiB of addresses, because it may be composed of sixteen modules; a process has 128 TiB.
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
    /// The interval at which running code is interrupted to check its time.
    const TICK: Duration = Duration::from_millis(50);

    /// The maximum number of store operations in one call; the lock component needs three.
    const OPERATIONS: u32 = 1_000;

    /// How many bytes of an instance's memory stay in the pool when the instance is dropped.
    const KEPT: usize = 1 << 18;

    /// The maximum number of modules, and of memories, in a composed component.
    const MODULES: u32 = 16;

    /// Returns the limits with a pool of `instances` instances: see [`Limits::pool`].
    #[must_use]
    pub fn pool(self, instances: u32) -> Self {
        Self {
            pool: Some(instances),
            ..self
        }
    }

    /// Returns the limits with at most `bytes` of memory for an instance.
    #[must_use]
    pub fn memory(self, bytes: usize) -> Self {
        Self {
            memory: bytes,
            ..self
        }
    }

    /// Returns the limits with at most `time` in one call.
    #[must_use]
    pub fn time(self, time: Duration) -> Self {
        Self { time, ..self }
    }

    /// Creates an engine that interrupts running code at each tick, until the engine is dropped.
    pub(super) fn engine(&self) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        config.epoch_interruption(true);
        // These components do not await inside, and support for it would double the time of each call.
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
                // Clearing a small memory takes less time than unmapping it.
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

    /// Creates the wasmtime store for an instance of a component that imports `store`, and the clock and
    /// randomness of `host`.
    pub(super) fn wasm_store<S: 'static, H: 'static>(
        &self,
        engine: &Engine,
        store: S,
        host: H,
        now: fn(&H) -> Timestamp,
        random: fn(&H) -> [u8; 16],
    ) -> wasmtime::Store<InstanceState<S, H>> {
        let state = InstanceState {
            refused: None,
            store,
            host,
            now,
            random,
            budget: Budget {
                memory: self.memory,
                elements: 1 << 17,
            },
            entered: Instant::now(),
            operations: 0,
        };
        let mut wasm = wasmtime::Store::new(engine, state);
        wasm.limiter(|state| &mut state.budget);
        wasm.set_epoch_deadline(1);
        let time = self.time;
        wasm.epoch_deadline_callback(move |wasm| {
            let ran = wasm.data().entered.elapsed();
            if ran > time {
                return Err(wasmtime::format_err!(
                    "the component ran for {ran:?} in one call"
                ));
            }
            Ok(UpdateDeadline::Continue(1))
        });
        wasm
    }
}

/// The state of an instance, from which its imports are implemented.
pub struct InstanceState<S, H> {
    pub(super) store: S,
    pub(super) host: H,
    /// The claim of the latest acquire request, if it was refused.
    pub(super) refused: Option<Claim>,
    now: fn(&H) -> Timestamp,
    random: fn(&H) -> [u8; 16],
    budget: Budget,
    entered: Instant,
    operations: u32,
}

impl<S, H> fmt::Debug for InstanceState<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceState").finish_non_exhaustive()
    }
}

impl<S, H> InstanceState<S, H> {
    /// Records the start of a call of the component.
    pub(super) fn enter(&mut self) {
        self.entered = Instant::now();
        self.operations = 0;
    }

    /// Records the start of a store operation, if the component may request one.
    pub(super) fn leave(&mut self) -> Result<Left, StoreError> {
        self.operations += 1;
        if self.operations > Limits::OPERATIONS {
            return Err(StoreError::permanent(format!(
                "the component requested more than {} store operations in one call",
                Limits::OPERATIONS
            )));
        }
        Ok(Left(Instant::now()))
    }

    /// Records the end of a store operation.
    pub(super) fn come_back(&mut self, left: Left) {
        self.entered += left.0.elapsed();
    }
}

/// The start of a store operation.
#[derive(Clone, Copy)]
pub(super) struct Left(Instant);

/// The memory and table elements that an instance may still allocate. None are freed before the instance is
/// dropped.
#[derive(Debug)]
struct Budget {
    memory: usize,
    elements: usize,
}

impl ResourceLimiter for Budget {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(grow(&mut self.memory, current, desired))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(grow(&mut self.elements, current, desired))
    }

    fn instances(&self) -> usize {
        4 * Limits::MODULES as usize
    }

    fn memories(&self) -> usize {
        Limits::MODULES as usize
    }

    fn tables(&self) -> usize {
        Limits::MODULES as usize
    }
}

fn grow(left: &mut usize, current: usize, desired: usize) -> bool {
    let rest = left.checked_sub(desired.saturating_sub(current));
    *left = rest.unwrap_or(*left);
    rest.is_some()
}

impl<S, H> clocks::monotonic_clock::Host for InstanceState<S, H> {
    fn now(&mut self) -> u64 {
        convert::nanos((self.now)(&self.host).since_start())
    }
}

impl<S, H> random::random::Host for InstanceState<S, H> {
    fn get_random_u64(&mut self) -> u64 {
        let random = u128::from_be_bytes((self.random)(&self.host));
        (random >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use verrou::blocking::Host;
    use wasmtime::component::{Component, HasSelf, Linker};

    use super::*;
    use verrou_host::System;

    fn store(limits: &Limits, engine: &Engine) -> wasmtime::Store<InstanceState<(), System>> {
        let now = |host: &System| verrou::Clock::now(host);
        limits.wasm_store(engine, (), System, now, Host::random)
    }

    /// Runs the export `run` of the component `text`.
    fn run(limits: &Limits, text: &str) -> wasmtime::Result<()> {
        let engine = limits.engine()?;
        let component = Component::new(&engine, wat::parse_str(text)?)?;
        let mut linker = Linker::new(&engine);
        clocks::monotonic_clock::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state)?;
        let mut wasm = store(limits, &engine);
        let instance = linker.instantiate(&mut wasm, &component)?;
        let run = instance.get_typed_func::<(), ()>(&mut wasm, "run")?;
        wasm.data_mut().enter();
        run.call(&mut wasm, ())
    }

    /// The time of calls to the host's clock is counted.
    #[test]
    fn endless_loop_that_reads_the_clock_is_stopped() {
        let text = r#"(component
            (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
                (export "now" (func (result u64)))))
            (core func $now (canon lower (func $clock "now")))
            (core module $m
                (import "clock" "now" (func $now (result i64)))
                (func (export "run") (loop (drop (call $now)) (br 0))))
            (core instance $i (instantiate $m
                (with "clock" (instance (export "now" (func $now))))))
            (func (export "run") (canon lift (core func $i "run"))))"#;
        let limits = Limits::default().time(Duration::from_millis(100));
        let err = run(&limits, text).expect_err("a loop");
        assert!(
            err.root_cause().to_string().contains("in one call"),
            "{err:#}"
        );
    }

    /// The limit is that of all memories together.
    #[test]
    fn memory_limit_is_that_of_all_memories() {
        let with = |pages: u32| {
            let module = format!("(core module $m (memory {pages}) (func (export \"run\")))");
            format!(
                "(component {module} (core instance $i (instantiate $m))
                    (core instance (instantiate $m))
                    (func (export \"run\") (canon lift (core func $i \"run\"))))"
            )
        };
        let limits = Limits::default().memory(4 << 16);
        run(&limits, &with(2)).expect("two memories of two pages");
        run(&limits, &with(3)).expect_err("two memories of three pages");
    }

    #[test]
    fn store_operations_in_one_call_are_limited() {
        let limits = Limits::default();
        let engine = limits.engine().expect("an engine");
        let mut wasm = store(&limits, &engine);
        let state = wasm.data_mut();
        for _ in 0..2 {
            state.enter();
            for _ in 0..Limits::OPERATIONS {
                let left = state.leave().expect("an operation");
                state.come_back(left);
            }
            let Err(err) = state.leave() else {
                panic!("one more");
            };
            assert!(!err.is_temporary());
        }
    }
}
