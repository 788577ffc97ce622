//! The example `cron-job`, in processes of this program, together with native programs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{self, Command};
use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;
use std::{env, thread};

use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use verrou::blocking::{Lock, LockFactory};
use verrou_host::component::locks::{self, Locks, LocksView};
use verrou_host::component::wasmtime;
use verrou_host::component::wasmtime::component::{Component, Linker, ResourceTable};
use verrou_host::{LeaseFileStore, StoreOptions, System};

use crate::common::{Started, code, done, eventually, stderr, stdout, test_process};
use crate::instances::{built, load};
use crate::wasi::{self, Sleep, Wasi, WasiView};
use crate::{compose, succeeded};

/// The environment variables of the process of a job.
const COMPONENT: &str = "JOB_COMPONENT";
const STORE: &str = "JOB_STORE";
const ARGUMENTS: &str = "JOB_ARGUMENTS";
const OUTPUT: &str = "JOB_OUTPUT";

/// A test's directory: a store in `locks`, and the log of the jobs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Asserts that one job has begun its work, and has not ended it.
    #[track_caller]
    fn has_begin_only(&self) {
        let log = self.log();
        let is_begin = log.starts_with("begin ") && log.lines().count() == 1;
        assert!(is_begin, "{log}");
    }

    /// Returns the lock of the jobs, for this process.
    fn lock(&self) -> Lock<Arc<LeaseFileStore>, System> {
        let store = LeaseFileStore::open(self.path("locks"), &StoreOptions::default());
        let locks = LockFactory::new(Arc::new(store.unwrap()), System);
        locks.create_lock("nightly", "1m").unwrap()
    }

    fn is_free(&self) -> bool {
        self.lock().try_run(|_| ()).is_ok()
    }
}

struct State {
    wasi: Wasi,
    locks: Locks,
}

impl State {
    /// Returns the state of a job with its locks in the store at `store`, which appends its output to `output`.
    fn new(store: &Path, output: &Path, arguments: &str) -> Self {
        let store = LeaseFileStore::open(store, &StoreOptions::default()).unwrap();
        let output = File::options().append(true).create(true).open(output);
        let errors = File::from(rustix::io::dup(std::io::stderr()).unwrap());
        let wasi = Wasi {
            arguments: arguments.split(' ').map(Into::into).collect(),
            streams: [output.unwrap(), errors],
            sleep: Box::new(|length| Ok(Sleep::for_length(length))),
            handles: ResourceTable::new(),
        };
        let locks = Locks::new(Arc::new(store), System);
        Self { wasi, locks }
    }
}

impl WasiView for State {
    fn wasi(&mut self) -> &mut Wasi {
        &mut self.wasi
    }
}

/// The process of a job, which ends with the job's exit code; not a test.
#[test]
#[ignore = "this is the process that others start"]
fn process() {
    let variable = |name| env::var(name).unwrap();
    let component = load(Path::new(&variable(COMPONENT)));
    let (store, output) = (variable(STORE), variable(OUTPUT));
    let state = State::new(store.as_ref(), output.as_ref(), &variable(ARGUMENTS));
    let ended = runtime().block_on(run(&component, state)).unwrap();
    process::exit(i32::from(ended.is_err()));
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().build().unwrap()
}

/// Runs a job, and returns its result, or the reason for its trap.
async fn run(component: &Component, state: State) -> wasmtime::Result<Result<(), ()>> {
    let mut linker = Linker::new(component.engine());
    wasi::add_to_linker(&mut linker)?;
    locks::add_to_linker(&mut linker, |state: &mut State| LocksView {
        locks: &mut state.locks,
        table: &mut state.wasi.handles,
    })?;
    let mut wasm = wasmtime::Store::new(component.engine(), state);
    let instance = linker.instantiate_async(&mut wasm, component).await?;
    let command = instance.get_export_index(&mut wasm, None, "wasi:cli/run@0.2.0");
    let run = instance.get_export_index(&mut wasm, command.as_ref(), "run");
    let run = instance.get_typed_func::<(), (Result<(), ()>,)>(&mut wasm, run.unwrap())?;
    let (ended,) = run.call_async(&mut wasm, ()).await?;
    Ok(ended)
}

/// Returns the process of a job that works for `work` seconds, after waiting for at most `wait` seconds.
fn job(dir: &Place, component: &Path, work: u32, wait: u32) -> Command {
    let mut command = test_process("job::process");
    command
        .arg("--ignored")
        .env(COMPONENT, component)
        .env(STORE, dir.path("locks"))
        .env(ARGUMENTS, format!("cron-job {work} {wait}"))
        .env(OUTPUT, dir.path("log"));
    command
}

/// Waits until the log has a line that begins with `start`.
fn logged(dir: &Place, start: &str) {
    eventually(start, || {
        dir.log().lines().any(|line| line.starts_with(start))
    });
}

#[test]
fn jobs_and_native_programs_exclude_each_other() {
    let dir = Place::new();
    let native = || {
        let ran = dir.lock().run(|held| {
            let fence = held.lease().fence().unwrap();
            let mut log = File::options();
            let mut log = log.append(true).create(true).open(dir.path("log")).unwrap();
            writeln!(log, "begin {fence}").unwrap();
            thread::sleep(Duration::from_millis(300));
            writeln!(log, "end {fence}").unwrap();
        });
        ran.unwrap();
    };
    let mut job = job(&dir, &built("cron-job"), 1, 50);
    thread::scope(|scope| {
        let started = [(); 2].map(|()| {
            scope.spawn(native);
            Started::new(&mut job)
        });
        for process in started {
            let output = process.end();
            assert_eq!(code(&output), 0, "{} {}", stdout(&output), stderr(&output));
        }
    });

    let log = dir.log();
    let mut lines = log.lines();
    let mut before = 0;
    for _ in 0..4 {
        let token = lines.next().unwrap().strip_prefix("begin ");
        let token = token.unwrap_or_else(|| panic!("two at a time:\n{log}"));
        assert_eq!(
            lines.next(),
            Some(&*format!("end {token}")),
            "two at a time:\n{log}"
        );
        let token: u64 = token.parse().unwrap();
        assert!(
            token > before,
            "a fencing token that is not greater:\n{log}"
        );
        before = token;
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn a_job_that_runs_elsewhere_is_not_run() {
    let dir = Place::new();
    let first = Started::new(&mut job(&dir, &built("cron-job"), 50, 0));
    logged(&dir, "begin ");

    let second = done(&mut job(&dir, &built("cron-job"), 1, 0));
    assert_eq!(code(&second), 1);
    assert!(
        stderr(&second).contains("nightly: the job runs elsewhere"),
        "{}",
        stderr(&second)
    );
    assert!(!dir.is_free());

    // Its lease ends with its process.
    drop(first);
    assert!(dir.is_free());
}

#[test]
fn force_released_job_reports_the_loss() {
    let dir = Place::new();
    let running = Started::new(&mut job(&dir, &built("cron-job"), 50, 0));
    logged(&dir, "begin ");
    assert!(dir.lock().force_release(None).unwrap());
    let output = running.end();
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("nightly: the lease was revoked"),
        "{}",
        stderr(&output)
    );
    dir.has_begin_only();
}

/// The job's waits for the clock never end, so only a notification can wake it.
#[test]
fn waiting_job_is_woken_by_a_release() {
    let dir = Place::new();
    let native = dir.lock();
    native.try_acquire().unwrap();
    let mut state = State::new(&dir.path("locks"), &dir.path("log"), "cron-job 0 50");
    let (waits, waiting) = mpsc::channel();
    state.wasi.sleep = Box::new(move |_| {
        // The test may have ended.
        let _ = waits.send(());
        Ok(Sleep::Forever)
    });
    let component = load(&built("cron-job"));
    let job = thread::spawn(move || runtime().block_on(run(&component, state)));
    waiting.recv().unwrap();
    native.release().unwrap();
    eventually("the job ends", || job.is_finished());
    job.join().unwrap().unwrap().unwrap();
    let log = dir.log();
    let lines: Vec<_> = log.lines().collect();
    assert!(
        matches!(lines[..], [first, last] if first.starts_with("begin ") && last.starts_with("end ")),
        "{log}"
    );
}

#[test]
fn trapped_job_frees_its_lock_at_once() {
    let dir = Arc::new(Place::new());
    let mut state = State::new(&dir.path("locks"), &dir.path("log"), "cron-job 50 0");
    let seen = Arc::clone(&dir);
    state.wasi.sleep = Box::new(move |_| {
        assert!(!seen.is_free());
        Err(wasmtime::format_err!("the host ends the job"))
    });
    let ended = runtime().block_on(run(&load(&built("cron-job")), state));
    let why = format!("{:#}", ended.unwrap_err());
    assert!(why.contains("the host ends the job"), "{why}");
    dir.has_begin_only();
    assert!(dir.is_free());
}

#[test]
fn dropped_job_frees_its_lock_at_once() {
    let dir = Place::new();
    let mut state = State::new(&dir.path("locks"), &dir.path("log"), "cron-job 50 0");
    state.wasi.sleep = Box::new(|_| Ok(Sleep::Forever));
    {
        let component = load(&built("cron-job"));
        let mut job = pin!(run(&component, state));
        let polled = job.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending());
        dir.has_begin_only();
        assert!(!dir.is_free());
    }
    assert!(dir.is_free());
}

#[test]
fn a_job_with_the_locks_and_a_store_inside_needs_nothing_but_wasi() {
    let dir = Place::new();
    let composed = dir.path("composed.wasm");
    let (store, job_alone) = (built("provider-rust"), built("cron-job"));
    built("verrou");
    succeeded(&compose(&[
        "--store".as_ref(),
        &store,
        "--into".as_ref(),
        &job_alone,
        "--output".as_ref(),
        &composed,
    ]));
    // This lock is in another store than the one inside the job.
    assert!(dir.is_free());
    let output = done(&mut job(&dir, &composed, 6, 0));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    // The job takes longer than its ttl, so its lease is renewed.
    assert_eq!(dir.log(), "begin 1\nend 1\n");
}
