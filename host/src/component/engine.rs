//! The wasmtime engine, and what a component may take.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Claim, StoreError, Timestamp};
use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig, ResourceLimiter,
    UpdateDeadline,
};

use super::bindings::blocking::wasi::{clocks, random};
use super::convert;

/// What one instance of a component may take, so that none hangs or exhausts its host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// How much memory, in bytes, all of its memories together: 128 MiB unless told otherwise, in
    /// which the lock component has room for all the handles that it gives out.
    pub memory: usize,
    /// For how long its code may run in one call; ten seconds unless told otherwise. What its host's
    /// store takes is not counted, but that is asked a thousand times in one call at most.
    pub time: Duration,
    /// With `Some`, addresses for the memory of this many instances are reserved beforehand, and used
    /// again and again, which makes instances cheap: for servers. More cannot be alive at a time. Each
    /// takes 64 GiB of addresses, for it may be composed of sixteen modules; a process has 128 TiB.
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

    /// How often a component may ask its store in one call: the lock component asks three times.
    const STEPS: u32 = 1_000;

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

    /// At most `time` in one call.
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
        let state = State {
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
            steps: 0,
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

/// What an instance's imports are made of.
pub struct State<S, H> {
    pub(super) store: S,
    pub(super) host: H,
    /// What was asked for last, and refused.
    pub(super) refused: Option<Claim>,
    now: fn(&H) -> Timestamp,
    random: fn(&H) -> [u8; 16],
    budget: Budget,
    entered: Instant,
    steps: u32,
}

impl<S, H> fmt::Debug for State<S, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").finish_non_exhaustive()
    }
}

impl<S, H> State<S, H> {
    /// Notes that the component is called from here on.
    pub(super) fn enter(&mut self) {
        self.entered = Instant::now();
        self.steps = 0;
    }

    /// Notes that the component asks its store, if it may.
    pub(super) fn leave(&mut self) -> Result<Left, StoreError> {
        self.steps += 1;
        if self.steps > Limits::STEPS {
            return Err(StoreError::permanent(format!(
                "the component asked its store {} times in one call",
                Limits::STEPS
            )));
        }
        Ok(Left(Instant::now()))
    }

    /// Notes that its store has answered.
    pub(super) fn come_back(&mut self, left: Left) {
        self.entered += left.0.elapsed();
    }
}

/// When a component asked its store.
#[derive(Clone, Copy)]
pub(super) struct Left(Instant);

/// What an instance may take yet. Nothing of it is given back before the instance goes.
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

#[cfg(test)]
mod tests {
    use verrou::blocking::Host;
    use wasmtime::component::{Component, HasSelf, Linker};

    use super::*;
    use crate::System;

    fn store(limits: &Limits, engine: &Engine) -> wasmtime::Store<State<(), System>> {
        let now = |host: &System| verrou::Clock::now(host);
        limits.wasm_store(engine, (), System, now, Host::random)
    }

    /// Runs what `text` exports as `run`.
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

    /// Calls to the host are no excuse.
    #[test]
    fn code_that_asks_the_time_for_ever_is_stopped() {
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

    /// Many memories take together what one may take.
    #[test]
    fn memories_count_together() {
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
    fn a_store_is_asked_a_thousand_times_in_one_call() {
        let limits = Limits::default();
        let engine = limits.engine().expect("an engine");
        let mut wasm = store(&limits, &engine);
        let state = wasm.data_mut();
        for _ in 0..2 {
            state.enter();
            for _ in 0..Limits::STEPS {
                let left = state.leave().expect("a step");
                state.come_back(left);
            }
            let Err(err) = state.leave() else {
                panic!("one more");
            };
            assert!(!err.is_temporary());
        }
    }
}
