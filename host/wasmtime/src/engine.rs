//! The wasmtime engine, and the limits of a component.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use verrou::{StoreError, Timestamp};
use wasmtime::component::{Resource, ResourceTable};
use wasmtime::error::Context as _;
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig,
    ResourceLimiter, UpdateDeadline,
};

use crate::bindings::blocking::verrou::lock::types;
use crate::bindings::blocking::wasi::{clocks, io, random};
use crate::convert;
use crate::grants::Grants;
use crate::waits::Wait;

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

    /// Creates an engine for these limits, to compile components for several runners, or to precompile them:
    /// [`Runner::from_component`](crate::Runner::from_component).
    ///
    /// # Errors
    ///
    /// Returns wasmtime's error; that there are not enough addresses for the pool names the way out.
    pub fn engine(&self) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        // These components do not await inside, and support for it would double the time of each call.
        config.concurrency_support(false);
        self.configured(config)
    }

    /// Creates an engine for these limits, as [`engine`](Self::engine) does, for components of WASI 0.3:
    /// [`ConcurrentRunner::from_component`](crate::ConcurrentRunner::from_component).
    ///
    /// # Errors
    ///
    /// Returns the errors of [`engine`](Self::engine).
    pub fn concurrent_engine(&self) -> wasmtime::Result<Engine> {
        let mut config = Config::new();
        config.wasm_component_model_async(true);
        self.configured(config)
    }

    fn configured(&self, mut config: Config) -> wasmtime::Result<Engine> {
        config.epoch_interruption(true);
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
        let engine = Engine::new(&config);
        match self.pool {
            Some(instances) => engine.with_context(|| {
                format!(
                    "a pool of {instances} instances needs {} GiB of addresses, more than this process can have: set \
                     a smaller `Limits::pool`, or none",
                    u64::from(instances) * 4 * u64::from(Self::MODULES)
                )
            }),
            None => engine,
        }
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
            waits: ResourceTable::new(),
            grants: Grants::default(),
            store,
            host,
            now,
            random,
            budget: self.budget(),
            entered: Instant::now(),
            operations: 0,
        };
        let mut wasm = wasmtime::Store::new(engine, state);
        wasm.limiter(|state| &mut state.budget);
        self.limit_time(&mut wasm, |state| state.entered);
        wasm
    }

    pub(super) fn budget(&self) -> Budget {
        Budget {
            memory: self.memory,
            elements: 1 << 17,
        }
    }

    /// Ends the code of `wasm` when it has run for too long since it was `entered`.
    pub(super) fn limit_time<T: 'static>(
        &self,
        wasm: &mut wasmtime::Store<T>,
        entered: fn(&T) -> Instant,
    ) {
        wasm.set_epoch_deadline(1);
        let time = self.time;
        wasm.epoch_deadline_callback(move |wasm| {
            let ran = entered(wasm.data()).elapsed();
            if ran > time {
                return Err(wasmtime::format_err!(
                    "the component ran for {ran:?} in one call"
                ));
            }
            Ok(UpdateDeadline::Continue(1))
        });
    }
}

/// The interval at which running code is interrupted to check its time.
const TICK: Duration = Duration::from_millis(50);

/// The engines whose epochs the thread of this process increments; `None` while there is no thread.
static TICKED: Mutex<Option<Vec<EngineWeak>>> = Mutex::new(None);

/// Increments the epoch of `engine` at each tick, until it is dropped. One thread serves all engines of the process.
pub(super) fn tick(engine: &Engine) -> wasmtime::Result<()> {
    let mut ticked = TICKED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(engines) = &mut *ticked {
        let known = engines.iter().filter_map(EngineWeak::upgrade);
        if !known.into_iter().any(|known| Engine::same(&known, engine)) {
            engines.push(engine.weak());
        }
        return Ok(());
    }
    thread::Builder::new()
        .name("component-clock".to_owned())
        .spawn(|| {
            loop {
                thread::sleep(TICK);
                let mut ticked = TICKED.lock().unwrap_or_else(PoisonError::into_inner);
                let engines = ticked.get_or_insert_default();
                engines.retain(|engine| {
                    let engine = engine.upgrade();
                    engine.inspect(Engine::increment_epoch).is_some()
                });
                if engines.is_empty() {
                    *ticked = None;
                    return;
                }
            }
        })?;
    *ticked = Some(vec![engine.weak()]);
    Ok(())
}

/// The state of an instance, from which its imports are implemented.
pub struct InstanceState<S, H> {
    pub(super) store: S,
    pub(super) host: H,
    /// The places in the store's wait queue, and the waits for them.
    pub(super) waits: ResourceTable,
    pub(super) grants: Grants,
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
pub(super) struct Budget {
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

/// Returns the error for a function of WASI that the lock component does not call.
pub(super) fn not_called<T>(function: &str) -> wasmtime::Result<T> {
    Err(wasmtime::format_err!(
        "the lock component called `{function}`, which is not for it"
    ))
}

impl<S, H> clocks::monotonic_clock::Host for InstanceState<S, H> {
    fn now(&mut self) -> wasmtime::Result<u64> {
        Ok(convert::nanos((self.now)(&self.host).since_start()))
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        not_called("resolution")
    }

    fn subscribe_instant(&mut self, _: u64) -> wasmtime::Result<Resource<Wait>> {
        not_called("subscribe-instant")
    }

    fn subscribe_duration(&mut self, _: u64) -> wasmtime::Result<Resource<Wait>> {
        not_called("subscribe-duration")
    }
}

impl<S, H> random::random::Host for InstanceState<S, H> {
    fn get_random_bytes(&mut self, _: u64) -> wasmtime::Result<Vec<u8>> {
        not_called("get-random-bytes")
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        let random = u128::from_be_bytes((self.random)(&self.host));
        Ok((random >> 64) as u64)
    }
}

impl<S, H> types::Host for InstanceState<S, H> {}

/// The component passes pollables to its driver, which waits.
impl<S, H> io::poll::Host for InstanceState<S, H> {
    fn poll(&mut self, _: Vec<Resource<Wait>>) -> wasmtime::Result<Vec<u32>> {
        not_called("poll")
    }
}

impl<S, H> io::poll::HostPollable for InstanceState<S, H> {
    fn ready(&mut self, _: Resource<Wait>) -> wasmtime::Result<bool> {
        not_called("ready")
    }

    fn block(&mut self, _: Resource<Wait>) -> wasmtime::Result<()> {
        not_called("block")
    }

    fn drop(&mut self, wait: Resource<Wait>) -> wasmtime::Result<()> {
        self.waits.delete(wait)?;
        Ok(())
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
        tick(&engine)?;
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

    #[test]
    #[cfg(target_os = "linux")]
    fn one_thread_interrupts_the_code_of_all_engines() {
        let engines = [(); 3].map(|()| Limits::default().engine().expect("an engine"));
        for engine in engines.iter().chain(&engines) {
            tick(engine).expect("a thread");
        }
        let clocks = || {
            let threads = std::fs::read_dir("/proc/self/task").expect("this process");
            let names = threads.map(|thread| {
                let name = thread.expect("a thread").path().join("comm");
                std::fs::read_to_string(name).unwrap_or_default()
            });
            names.filter(|name| name == "component-clock\n").count()
        };
        // A thread has its name some time after its start.
        while clocks() == 0 {
            thread::yield_now();
        }
        assert_eq!(clocks(), 1);
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

    #[test]
    fn pool_without_enough_addresses_is_an_error_with_advice() {
        let err = Limits::default().pool(4_000).engine().unwrap_err();
        let message = format!("{err:#}");
        assert!(message.contains("a pool of 4000 instances"), "{message}");
        assert!(message.contains("256000 GiB"), "{message}");
        assert!(message.contains("a smaller `Limits::pool`"), "{message}");
    }
}
