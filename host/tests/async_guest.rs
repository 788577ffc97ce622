//! A guest of WASI 0.3, the component `examples/async-job`, with the locks of its host, and composed with the lock component.
//!
//! `cargo xtask component examples/async-job` builds it.
#![cfg(all(feature = "tokio", feature = "wasmtime", target_os = "linux"))]

#[path = "common/sleepless.rs"]
mod sleepless;

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use verrou::nonblocking::{AsyncHost, LockFactory};
use verrou::{AsyncStore, Fence, MemoryStore, Name, Store};
use verrou_host::component::async_locks::{AsyncLocks, add_to_linker};
use verrou_host::component::bindings::async_guest::verrou::async_lock::locks::HostLock;
use verrou_host::component::bindings::blocking::verrou::lock::types::ErrorCode;
use verrou_host::component::locks::GuestPolicy;
use verrou_host::component::wasmtime::component::{Component, Instance, Linker};
use verrou_host::component::wasmtime::{self, Config, Engine};
use verrou_host::component::{ConcurrentState, add_store_to_linker};
use verrou_host::{LeaseFileStore, StoreOptions, System, Tokio};

use sleepless::Sleepless;

const HOUR: Duration = Duration::from_hours(1);

/// The state of a guest.
struct Guest {
    locks: AsyncLocks,
}

/// A job, and the memory of its component.
struct Job<T: Send + 'static> {
    wasm: wasmtime::Store<T>,
    instance: Instance,
}

fn load(path: &Path) -> Component {
    let bytes = std::fs::read(path).unwrap_or_else(|err| {
        let path = path.display();
        panic!("{path}: {err}: build it with `cargo xtask component examples/async-job`")
    });
    let mut config = Config::new();
    config.wasm_component_model_async(true);
    let engine = Engine::new(&config).expect("an engine");
    Component::new(&engine, bytes).expect("a component")
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the project")
}

const JOB: &str = "target/component/async-job.wasm";

static COMPONENT: LazyLock<Component> = LazyLock::new(|| load(&project().join(JOB)));

/// The job, composed with the lock component.
static COMPOSED: LazyLock<Component> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let composed = directory.path().join("composed.wasm");
    let mut compose = Command::new(env!("CARGO"));
    let arguments = ["xtask", "compose", "--into", JOB, "--output"];
    compose.current_dir(project()).args(arguments);
    let output = compose.arg(&composed).output().expect("cargo");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    load(&composed)
});

impl Job<Guest> {
    /// Makes a job with the locks of this program.
    async fn new(locks: AsyncLocks) -> Self {
        let mut linker = Linker::<Guest>::new(COMPONENT.engine());
        add_to_linker(&mut linker, |guest| &mut guest.locks).expect("a new linker");
        let mut clock = linker
            .instance("wasi:clocks/monotonic-clock@0.3.0")
            .expect("a new linker");
        clock
            .func_wrap_concurrent("wait-for", |_, (how_long,): (u64,)| {
                Box::pin(async move {
                    sleep(Duration::from_nanos(how_long)).await;
                    Ok(())
                })
            })
            .expect("a new linker");
        Self::of(&COMPONENT, &linker, Guest { locks }).await
    }
}

impl<S: AsyncStore + 'static> Job<ConcurrentState<S, Tokio>> {
    /// Makes a job that is composed with the lock component, over a store of this program.
    async fn composed(store: S) -> Self {
        let mut linker = Linker::new(COMPOSED.engine());
        add_store_to_linker(&mut linker, |state| state).expect("a new linker");
        Self::of(&COMPOSED, &linker, ConcurrentState::new(store, Tokio)).await
    }
}

impl<T: Send + 'static> Job<T> {
    async fn of(component: &Component, linker: &Linker<T>, state: T) -> Self {
        let mut wasm = wasmtime::Store::new(component.engine(), state);
        let instance = linker.instantiate_async(&mut wasm, component).await;
        Self {
            instance: instance.expect("an instance"),
            wasm,
        }
    }

    /// Works for `length`, if the lock can be acquired in `patience`; returns the fencing token of the work.
    async fn run(&mut self, length: Duration, patience: Duration) -> Result<Option<u64>, String> {
        type Returned = (Result<Option<u64>, String>,);

        let run = (self.instance)
            .get_typed_func::<(u64, u64), Returned>(&mut self.wasm, "run")
            .expect("the export");
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).expect("a short time");
        let call = run.call_async(&mut self.wasm, (nanos(length), nanos(patience)));
        call.await.expect("no trap").0
    }

    /// Acquires the lock, and traps.
    async fn crash(&mut self) {
        let crash = (self.instance)
            .get_typed_func::<(), ()>(&mut self.wasm, "crash")
            .expect("the export");
        let end = crash.call_async(&mut self.wasm, ()).await;
        end.expect_err("a trap");
    }
}

fn in_runtime(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    runtime.expect("a runtime").block_on(test);
}

fn lease_files(directory: &Path) -> Arc<LeaseFileStore> {
    Arc::new(LeaseFileStore::open(directory, &StoreOptions::default()).expect("a store"))
}

fn nightly() -> Name {
    "nightly".parse().expect("a name")
}

/// A release wakes a job that waits: its host's sleeps never end.
#[test]
fn release_wakes_a_waiting_job() {
    async fn wakes<S: AsyncStore + 'static>(of_guest: Arc<S>, other: Arc<S>) {
        let natively = LockFactory::new(other, Sleepless);
        let held = natively.create_lock("nightly", "none").expect("a lock");
        let fence = held.acquire().await.expect("a free lock").fence();
        let mut job = Job::new(AsyncLocks::new(of_guest, Sleepless)).await;
        let (done, ()) = tokio::join!(job.run(Duration::ZERO, HOUR), async {
            // The job has begun to wait: the futures are polled in this order.
            held.release().await.expect("its own");
        });
        assert!(done.expect("a job") > fence.map(Fence::get));
    }

    in_runtime(async {
        let store = Arc::new(MemoryStore::new(System));
        wakes(Arc::clone(&store), store).await;
        let directory = tempfile::tempdir().expect("a directory");
        wakes(lease_files(directory.path()), lease_files(directory.path())).await;
    });
}

/// A wait that the guest drops leaves the queue: a ticket that was left behind would reserve the lock for its owner.
#[test]
fn wait_that_the_guest_drops_leaves_the_queue() {
    async fn leaves<T: Send + 'static>(directory: &Path, mut job: Job<T>) {
        let natively = LockFactory::new(lease_files(directory), Tokio);
        let [held, other] = [(); 2].map(|()| natively.create_lock("nightly", "none"));
        let (held, other) = (held.expect("a lock"), other.expect("a lock"));
        held.acquire().await.expect("a free lock");
        let impatient = job.run(Duration::ZERO, Duration::from_millis(50)).await;
        assert_eq!(impatient, Ok(None));
        held.release().await.expect("its own");
        other.try_acquire().await.expect("no waiter is left");
        other.release().await.expect("its own");
        let patient = job.run(Duration::ZERO, HOUR).await;
        assert!(patient.expect("a job").is_some());
    }

    in_runtime(async {
        let directory = tempfile::tempdir().expect("a directory");
        let locks = AsyncLocks::new(lease_files(directory.path()), Tokio);
        leaves(directory.path(), Job::new(locks).await).await;
        // In the composition, the lock component's task is cancelled.
        let composed = Job::composed(lease_files(directory.path())).await;
        leaves(directory.path(), composed).await;
    });
}

/// The lock of a job that traps, or is dropped by its host at work, is free at once.
#[test]
fn job_that_ends_holds_no_lock() {
    in_runtime(async {
        let store = Arc::new(MemoryStore::new(System));
        let locks = || AsyncLocks::new(Arc::<MemoryStore<_>>::clone(&store), Tokio);
        let holders = || Store::holders(&store, &nightly()).expect("an answer").len();

        let mut job = Job::new(locks()).await;
        job.crash().await;
        assert_eq!(holders(), 1, "the job held the lock when it trapped");
        drop(job);
        assert_eq!(holders(), 0);

        let mut job = Job::new(locks()).await;
        let working = timeout(Duration::from_millis(50), job.run(HOUR, HOUR));
        working.await.expect_err("a job that works for an hour");
        assert_eq!(holders(), 1, "the job is at work");
        drop(job);
        assert_eq!(holders(), 0);

        let mut job = Job::composed(Arc::clone(&store)).await;
        job.crash().await;
        assert_eq!(holders(), 1, "the job held the lock when it trapped");
        drop(job);
        assert_eq!(holders(), 0);
    });
}

/// Jobs and a native program take turns: each work has a fencing token of its own, and none is missing.
#[test]
fn jobs_take_turns_with_native_programs() {
    in_runtime(async {
        let directory = tempfile::tempdir().expect("a directory");
        let job = async || {
            let store = lease_files(directory.path());
            let mut job = Job::new(AsyncLocks::new(store, Tokio)).await;
            let mut tokens = Vec::new();
            for _ in 0..5 {
                let done = job.run(Duration::from_millis(2), HOUR).await;
                tokens.extend(done.expect("a job"));
            }
            tokens
        };
        let native = async {
            let factory = LockFactory::new(lease_files(directory.path()), Tokio);
            let lock = factory.create_lock("nightly", "10s").expect("a lock");
            let mut tokens = Vec::new();
            for _ in 0..5 {
                let lease = lock.acquire().await.expect("a grant");
                tokens.extend(lease.fence().map(Fence::get));
                lock.release().await.expect("its own");
            }
            tokens
        };
        let (one, two, three) = tokio::join!(job(), job(), native);
        let mut tokens = [one, two, three].concat();
        tokens.sort_unstable();
        let first = tokens[0];
        assert_eq!(tokens, (first..first + 15).collect::<Vec<_>>());
    });
}

/// A guest does only what its policy permits.
#[test]
fn guest_is_denied_what_its_policy_forbids() {
    fn locks(
        host: impl AsyncHost + 'static,
        policy: GuestPolicy,
    ) -> (Arc<MemoryStore<System>>, AsyncLocks) {
        let store = Arc::new(MemoryStore::new(System));
        let locks = AsyncLocks::new(Arc::<MemoryStore<_>>::clone(&store), host);
        (store, locks.with_policy(policy))
    }

    in_runtime(async {
        let mut policy = GuestPolicy::default();
        policy.prefix = "tenant/".to_owned();
        let (store, locks) = locks(Tokio, policy);
        let mut job = Job::new(locks).await;
        let working = timeout(Duration::from_millis(50), job.run(HOUR, HOUR));
        working.await.expect_err("a job that works for an hour");
        let full: Name = "tenant/nightly".parse().expect("a name");
        assert_eq!(Store::holders(&store, &full).expect("an answer").len(), 1);
        assert_eq!(Store::holders(&store, &nightly()).expect("an answer"), []);
    });

    let mut policy = GuestPolicy::default();
    policy.longest_ttl = Some(Duration::from_secs(5));
    policy.handles = 1;
    let (_, mut locks) = locks(Sleepless, policy);
    let second = 1_000_000_000;
    for ttl in [None, Some(6 * second)] {
        let made = locks.create("lock".to_owned(), ttl).expect("no trap");
        let err = made.expect_err("it is denied");
        assert!(matches!(err.code, ErrorCode::Denied), "{err:?}");
    }
    let mut create = || {
        locks
            .create("lock".to_owned(), Some(second))
            .expect("no trap")
    };
    create().expect("a lock");
    let err = create().expect_err("one handle is permitted");
    assert!(matches!(err.code, ErrorCode::TooManyHandles), "{err:?}");

    in_runtime(async {
        let mut policy = GuestPolicy::default();
        policy.grants = 0;
        let store = Arc::new(MemoryStore::new(System));
        let mut job = Job::new(AsyncLocks::new(store, Tokio).with_policy(policy)).await;
        let denied = job.run(Duration::ZERO, HOUR).await;
        let why = "the host does not permit this guest more than 0 locks";
        assert_eq!(denied, Err(why.to_owned()));
    });
}
