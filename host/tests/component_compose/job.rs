//! The example `cron-job`, in processes of this program, together with native programs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::Arc;
use std::time::Duration;
use std::{env, thread};

use tempfile::TempDir;
use verrou::blocking::{Lock, LockFactory};
use verrou_host::component::locks::{self, Locks};
use verrou_host::component::wasmtime::component::{Component, Linker, ResourceTable};
use verrou_host::{LeaseFileStore, StoreOptions, System};

use crate::common::{Started, code, done, eventually, stderr, stdout, test_process};
use crate::instances::{built, load};
use crate::wasi::{self, Wasi};
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

/// The process of a job, which ends with the job's exit code; not a test.
#[test]
#[ignore = "this is the process that others start"]
fn process() {
    let variable = |name| env::var(name).unwrap();
    let component = load(Path::new(&variable(COMPONENT)));
    let store = LeaseFileStore::open(variable(STORE), &StoreOptions::default()).unwrap();
    let output = File::options()
        .append(true)
        .create(true)
        .open(variable(OUTPUT));
    let errors = File::from(rustix::io::dup(std::io::stderr()).unwrap());
    let arguments = variable(ARGUMENTS);
    let wasi = Wasi {
        arguments: arguments.split(' ').map(Into::into).collect(),
        streams: [output.unwrap(), errors],
        handles: ResourceTable::new(),
    };
    let locks = Locks::new(Arc::new(store), System);
    let ended = run(&component, State { wasi, locks });
    process::exit(i32::from(ended.is_err()));
}

fn run(component: &Component, state: State) -> Result<(), ()> {
    let mut linker = Linker::new(component.engine());
    wasi::add_to_linker(&mut linker, |state: &mut State| &mut state.wasi).unwrap();
    locks::add_to_linker(&mut linker, |state: &mut State| &mut state.locks).unwrap();
    let mut wasm = verrou_host::component::wasmtime::Store::new(component.engine(), state);
    let instance = linker.instantiate(&mut wasm, component).unwrap();
    let command = instance.get_export_index(&mut wasm, None, "wasi:cli/run@0.2.0");
    let run = instance.get_export_index(&mut wasm, command.as_ref(), "run");
    let run = instance.get_typed_func::<(), (Result<(), ()>,)>(&mut wasm, run.unwrap());
    run.unwrap().call(&mut wasm, ()).unwrap().0
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
    let log = dir.log();
    assert!(
        log.starts_with("begin ") && log.lines().count() == 1,
        "{log}"
    );
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
