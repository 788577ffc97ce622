//! The cost of locks, compared with the bare system calls and with other lock libraries: the subjects of a comparison
//! take turns in one run. `cargo xtask bench` installs the other libraries.
//!
//! `VERROU_BENCH_PYTHON` is an interpreter with the packages of `requirements.txt`. The packages of `package.json`
//! are in `node_modules` beside it; `redis-server`, `etcd`, `etcdctl` and `setlock` are in `PATH`.
//! `VERROU_BENCH_COMMAND` is a release build of the command `verrou`. A missing subject is not measured, and is
//! reported as such. `VERROU_BENCH_JSON` is the file to write the figures to.
#![cfg(target_os = "linux")]

mod actor;
#[cfg(feature = "postgres")]
#[path = "../../tests/common/mod.rs"]
mod common;
mod exclusion;
#[cfg(all(feature = "server", feature = "tokio"))]
mod remote;
mod report;
#[cfg(feature = "postgres")]
#[expect(dead_code, reason = "the server is not stopped or restarted here")]
#[path = "../../tests/servers/running.rs"]
mod running;
mod servers;

#[cfg(feature = "postgres")]
use std::cell::LazyCell;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use actor::{Actor, kill};
use exclusion::open;
use report::{Report, Unit};
#[cfg(feature = "postgres")]
use running::Running;
use rustix::process::{Pid, Signal, kill_process_group};
use servers::Server;
use verrou::blocking::Host;
use verrou::{Claim, Name, Owner, Store, Ttl};
use verrou_host::{AnyStore, System};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The default number of turns of each subject.
const ROUNDS: usize = 41;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let ["act", kind, directory] = words[..] {
        return actor::act(kind, Path::new(directory));
    }
    let directory = tempfile::tempdir()?;
    let mut bench = Bench::new(directory.path().to_owned());
    let wanted: Vec<_> = words.iter().filter(|word| !word.starts_with('-')).collect();
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.contains(&&name) {
            part(&mut bench)?;
        }
    }
    if let Some(path) = env::var_os("VERROU_BENCH_JSON") {
        bench.report.write(Path::new(&path))?;
    }
    Ok(())
}

/// The parts of the benchmark, and their names on the command line, as in
/// `cargo bench --package verrou-host --bench locks -- hand-over`.
const PARTS: [(&str, Part); 13] = [
    ("uncontended", Bench::uncontended),
    ("start-up", |bench| {
        bench.start_up();
        Ok(())
    }),
    ("hand-over", Bench::handed_over),
    ("killed", |bench| {
        bench.killed();
        Ok(())
    }),
    ("order", Bench::order),
    ("storm-8", |bench| bench.storm(8)),
    ("storm-64", |bench| bench.storm(64)),
    ("crowds", Bench::crowds),
    ("idle", |bench| {
        bench.idle();
        Ok(())
    }),
    ("names", Bench::names),
    ("growth", Bench::growth),
    ("servers", Bench::servers),
    ("servers-hand-over", Bench::handed_over_by_servers),
];

type Part = fn(&mut Bench) -> Result<()>;

/// The kind of an actor: its language, and its kind of lock.
#[derive(Clone, Copy)]
enum Kind {
    Rust(&'static str),
    Python(&'static str),
    Node(&'static str),
}

use Kind::{Node, Python, Rust};

struct Bench {
    directory: PathBuf,
    report: Report,
    redis: Result<Server>,
    etcd: Result<Server>,
    /// Started on first use.
    #[cfg(feature = "postgres")]
    postgres: LazyCell<Running>,
}

impl Bench {
    fn new(directory: PathBuf) -> Self {
        Self {
            report: Report::new(&directory),
            redis: Server::redis(),
            etcd: Server::etcd(&directory),
            #[cfg(feature = "postgres")]
            postgres: LazyCell::new(|| Running::postgres(&[])),
            directory,
        }
    }

    /// Starts an actor.
    fn actor(&self, kind: Kind) -> Result<Actor> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/locks");
        let (mut command, kind) = match kind {
            Rust(kind) => {
                let mut command = Command::new(env::current_exe()?);
                command.arg("act");
                (command, kind)
            }
            Python(kind) => {
                let python = env::var_os("VERROU_BENCH_PYTHON");
                let mut command = Command::new(python.ok_or("VERROU_BENCH_PYTHON is not set")?);
                command.arg(here.join("actor.py"));
                (command, kind)
            }
            Node(kind) => {
                let packages = here.join("node_modules");
                if !packages.exists() {
                    return Err(format!("there is no {}", packages.display()).into());
                }
                let mut command = Command::new("node");
                command.arg(here.join("actor.mjs"));
                (command, kind)
            }
        };
        if kind.contains("redis") || kind == "redlock" {
            command.env("VERROU_BENCH_REDIS", url(&self.redis)?);
        }
        if kind.contains("etcd") {
            let url = url(&self.etcd)?;
            command.env("VERROU_BENCH_ETCD", url.replace("http://", "etcd://"));
            command.env("ETCDCTL_ENDPOINTS", url);
            command.env("ETCDCTL_API", "3");
        }
        #[cfg(feature = "postgres")]
        if kind.contains("postgres") {
            let url = format!(
                "postgres://verrou@127.0.0.1:{}/postgres",
                self.postgres.port
            );
            command.env("VERROU_BENCH_POSTGRES", url);
        }
        Actor::start(command.arg(kind).arg(&self.directory))
    }

    /// Starts `wanted` actors of each kind that is available.
    fn actors<T: Copy>(
        &mut self,
        subjects: &[(&'static str, Kind, T)],
        wanted: usize,
    ) -> Vec<(&'static str, T, Vec<Actor>)> {
        let mut all = Vec::new();
        for &(name, kind, how) in subjects {
            let actors: Result<Vec<_>> = (0..wanted).map(|_| self.actor(kind)).collect();
            match actors {
                Ok(actors) => all.push((name, how, actors)),
                Err(err) => self.report.miss(name, &err),
            }
        }
        all
    }

    fn uncontended(&mut self) -> Result<()> {
        let title = "Uncontended: acquire and release";
        self.report.begin(title, Unit::Nanoseconds);
        let actors = self.actors(
            &[
                ("open, flock, unlock, close", Rust("open-flock"), 1_000),
                ("2 × (flock, pread, pwrite, unlock)", Rust("update"), 1_000),
                ("Verrou, file lock", Rust("file"), 1_000),
                ("  its system calls alone", Rust("file-calls"), 1_000),
                ("Verrou, lease file", Rust("lease"), 1_000),
                ("  its system calls alone", Rust("lease-calls"), 1_000),
                ("std File::lock, open file", Rust("std"), 1_000),
                ("fs4, open file", Rust("fs4"), 1_000),
                ("fd-lock, open file", Rust("fd-lock"), 1_000),
                ("filelock (Python)", Python("filelock"), 200),
                ("portalocker (Python)", Python("portalocker"), 200),
                ("proper-lockfile (Node.js)", Node("proper-lockfile"), 10),
                (
                    "@verrou/core, memory (Node.js)",
                    Node("verrou-memory"),
                    1_000,
                ),
                ("@verrou/core, Redis (Node.js)", Node("verrou-redis"), 50),
                ("redis-py Lock (Python)", Python("redis"), 50),
            ],
            1,
        );
        self.pairs(actors)
    }

    /// Measures the first actor of each subject acquiring and releasing its lock, so many times in each turn.
    fn pairs(&mut self, mut actors: Vec<(&'static str, i32, Vec<Actor>)>) -> Result<()> {
        let mut samples = vec![Vec::new(); actors.len()];
        // The first round is a warm-up.
        for round in 0..=ROUNDS {
            for ((_, times, actors), samples) in actors.iter_mut().zip(&mut samples) {
                let nanoseconds = actors[0].request(&format!("pairs {times}"))?;
                if round > 0 {
                    samples.push(float(nanoseconds) / f64::from(*times));
                }
            }
        }
        for ((name, ..), samples) in actors.iter().zip(samples) {
            self.report.add(name, samples, String::new());
        }
        Ok(())
    }

    fn start_up(&mut self) {
        let title = "Start-up: a command that does nothing, under a lock";
        self.report.begin(title, Unit::Nanoseconds);
        let file = self.directory.join("start-up");
        let program = our_command();
        let verrou = |kind: &str| {
            let mut command = Command::new(&program);
            let store = format!("{kind}:{}", self.directory.join(kind).display());
            command.args(["run", "start-up", "--store", &store, "--", "true"]);
            command
        };
        let locked = |program: &str| {
            let mut command = Command::new(program);
            command.arg(&file).arg("true");
            command
        };
        let mut etcdctl = Command::new("etcdctl");
        etcdctl.args(["lock", "start-up", "true"]);
        etcdctl.env("ETCDCTL_API", "3");
        if let Ok(server) = &self.etcd {
            etcdctl.env("ETCDCTL_ENDPOINTS", &server.url);
        }
        let subjects = [
            ("flock f true", locked("flock"), 5),
            ("verrou run k -- true, file lock", verrou("file"), 5),
            ("verrou run k -- true, lease file", verrou("lease"), 5),
            ("setlock f true", locked("setlock"), 5),
            ("etcdctl lock k true", etcdctl, 1),
        ];
        let subjects = subjects.map(|(name, mut command, times)| {
            let turn: Turn<'_> = Box::new(move || {
                let began = Instant::now();
                for _ in 0..times {
                    run(&mut command)?;
                }
                Ok(nanoseconds(began.elapsed()) / f64::from(times))
            });
            (name, ROUNDS, turn)
        });
        for (name, samples) in take_turns(subjects.into()) {
            self.report.add_result(name, samples);
        }
    }

    /// Measures the time from the release in one process to the grant to a waiter in another process.
    fn handed_over(&mut self) -> Result<()> {
        let title = "Hand-over: released in one process, taken in another";
        self.report.begin(title, Unit::Nanoseconds);
        let actors = self.actors(
            &[
                ("flock, blocking", Rust("flock"), (300, 7)),
                ("Verrou, file lock", Rust("file"), (300, 7)),
                ("Verrou, lease file", Rust("lease"), (300, 7)),
                ("filelock (Python)", Python("filelock"), (60, 50)),
                ("filelock, polling 1 ms", Python("filelock-1ms"), (60, 7)),
                (
                    "proper-lockfile, 10 retries (Node.js)",
                    Node("proper-lockfile"),
                    (9, 1_000),
                ),
                (
                    "proper-lockfile, polling 1 ms",
                    Node("proper-lockfile-1ms"),
                    (60, 7),
                ),
                (
                    "@verrou/core, Redis (Node.js)",
                    Node("verrou-redis"),
                    (25, 250),
                ),
                (
                    "@verrou/core, Redis, polling 1 ms",
                    Node("verrou-redis-1ms"),
                    (60, 7),
                ),
            ],
            2,
        );
        self.hand_over(actors)
    }

    /// Measures hand-offs between two actors of each subject: their number, and the polling interval of the waiter
    /// in milliseconds, are in the subject.
    fn hand_over(&mut self, mut actors: Vec<(&'static str, (u64, u64), Vec<Actor>)>) -> Result<()> {
        let mut samples = vec![Vec::new(); actors.len()];
        for round in 0..300 {
            for ((_, (times, interval), actors), samples) in actors.iter_mut().zip(&mut samples) {
                if round >= *times {
                    continue;
                }
                let [holder, waiter] = &mut actors[..] else {
                    continue;
                };
                holder.acquire()?;
                waiter.send("acquire")?;
                // Long enough that it waits, and at varying times within its polling interval.
                thread::sleep(Duration::from_millis(8 + round * 617 % *interval));
                let released = holder.request("release")?;
                let (entered, _) = waiter.receive::<i32>()?;
                samples.push(float(entered.saturating_sub(released)));
                waiter.request("release")?;
            }
        }
        for ((name, ..), samples) in actors.iter().zip(samples) {
            self.report.add(name, samples, String::new());
        }
        Ok(())
    }

    /// Measures uncontended locks on an otherwise idle server.
    fn servers(&mut self) -> Result<()> {
        let title = "On servers: acquire and release";
        self.report.begin(title, Unit::Nanoseconds);
        let actors = self.actors(
            &[
                ("Redis: the scripts alone", Rust("redis-calls"), 100),
                ("Verrou, Redis", Rust("redis"), 100),
                ("redis-py Lock (Python)", Python("redis"), 100),
                ("node-redlock (Node.js)", Node("redlock"), 100),
                ("@verrou/core, Redis (Node.js)", Node("verrou-redis"), 100),
                (
                    "PostgreSQL: the functions alone",
                    Rust("postgres-calls"),
                    50,
                ),
                ("Verrou, PostgreSQL", Rust("postgres"), 50),
                ("PostgreSQL, advisory lock", Rust("postgres-advisory"), 100),
                ("etcd: the requests alone", Rust("etcd-calls"), 10),
                ("Verrou, etcd", Rust("etcd"), 10),
            ],
            1,
        );
        self.pairs(actors)
    }

    /// Measures [`handed_over`](Self::handed_over) for locks on servers.
    fn handed_over_by_servers(&mut self) -> Result<()> {
        let title = "On servers: released in one process, taken in another";
        self.report.begin(title, Unit::Nanoseconds);
        let actors = self.actors(
            &[
                ("Verrou, Redis", Rust("redis"), (200, 50)),
                ("Verrou, PostgreSQL", Rust("postgres"), (200, 50)),
                ("Verrou, etcd", Rust("etcd"), (100, 50)),
                (
                    "PostgreSQL, advisory lock",
                    Rust("postgres-advisory"),
                    (200, 50),
                ),
                ("etcdctl lock", Rust("etcdctl"), (20, 50)),
                ("redis-py Lock (Python)", Python("redis"), (60, 100)),
                ("node-redlock (Node.js)", Node("redlock"), (40, 200)),
                (
                    "@verrou/core, Redis (Node.js)",
                    Node("verrou-redis"),
                    (40, 250),
                ),
            ],
            2,
        );
        self.hand_over(actors)
    }

    /// Measures the time from the end of a killed holder to the grant to a waiter.
    fn killed(&mut self) {
        let title = "The holder is killed (kill -9): until another has the lock";
        self.report.begin(title, Unit::Nanoseconds);
        let subjects = [
            ("flock, blocking", Rust("flock"), 60),
            ("Verrou, file lock", Rust("file"), 60),
            ("Verrou, lease file, ttl 1 h", Rust("lease"), 60),
            (
                "filelock SoftFileLease, 10 s (Python)",
                Python("filelock-lease"),
                3,
            ),
            ("redis-py Lock, ttl 10 s (Python)", Python("redis"), 3),
            ("etcdctl lock, ttl 10 s", Rust("etcdctl"), 3),
        ];
        let subjects = subjects.map(|(name, kind, times)| {
            let this = &*self;
            let turn: Turn<'_> = Box::new(move || this.kill_one(kind));
            (name, times, turn)
        });
        for (name, samples) in take_turns(subjects.into()) {
            self.report.add_result(name, samples);
        }
    }

    fn kill_one(&self, kind: Kind) -> Result<f64> {
        let (mut holder, mut waiter) = (self.actor(kind)?, self.actor(kind)?);
        let process = holder.acquire()?;
        waiter.send("acquire")?;
        let is_slow = !matches!(kind, Rust("flock" | "file" | "lease"));
        thread::sleep(Duration::from_millis(if is_slow { 500 } else { 20 }));
        let killed = kill(process)?;
        let (entered, _) = waiter.receive::<i32>()?;
        waiter.request("release")?;
        Ok(float(entered.saturating_sub(killed)))
    }

    /// Counts the waiters that are served before an earlier one.
    fn order(&mut self) -> Result<()> {
        const WAITERS: usize = 16;

        self.report.begin(
            "16 wait, one after the other: pairs served in the wrong order, of 120",
            Unit::Pairs,
        );
        let subjects = [
            ("flock, blocking", Rust("flock"), ()),
            ("Verrou, file lock", Rust("file"), ()),
            ("Verrou, lease file", Rust("lease"), ()),
            ("filelock, polling 1 ms", Python("filelock-1ms"), ()),
        ];
        let mut all = self.actors(&subjects, WAITERS + 1);
        let mut samples = vec![Vec::new(); all.len()];
        for _ in 0..20 {
            for ((_, (), actors), samples) in all.iter_mut().zip(&mut samples) {
                let Some((holder, waiters)) = actors.split_first_mut() else {
                    continue;
                };
                holder.acquire()?;
                for waiter in waiters.iter_mut() {
                    waiter.send("turn")?;
                    // Wait until the actor waits.
                    thread::sleep(Duration::from_millis(3));
                }
                holder.request("release")?;
                let entered: Result<Vec<_>> = waiters
                    .iter_mut()
                    .map(|waiter| Ok(waiter.receive::<u64>()?.0))
                    .collect();
                let entered = entered?;
                let wrong = |(at, time): (usize, &u64)| {
                    entered[at..].iter().filter(|later| *later < time).count()
                };
                let inversions: usize = entered.iter().enumerate().map(wrong).sum();
                samples.push(float(u64::try_from(inversions)?));
            }
        }
        for ((name, ..), samples) in all.iter().zip(samples) {
            self.report.add(name, samples, String::new());
        }
        Ok(())
    }

    /// Measures the throughput of one lock that many processes request all the time.
    fn storm(&mut self, processes: usize) -> Result<()> {
        const SECONDS: u32 = 2;
        const TURNS: usize = 3;

        let title = format!("{processes} processes, each holds it for 20 µs and asks again");
        self.report.begin(&title, Unit::GrantsPerSecond);
        let subjects = [
            ("flock, blocking", Rust("flock"), ()),
            ("two flocks, in turns", Rust("turnstile"), ()),
            ("Verrou, file lock", Rust("file"), ()),
            ("Verrou, lease file", Rust("lease"), ()),
            ("filelock (Python)", Python("filelock"), ()),
            ("filelock, polling 1 ms", Python("filelock-1ms"), ()),
        ];
        let mut all = self.actors(&subjects, processes);
        let mut samples = vec![(Vec::new(), 0, Vec::new()); all.len()];
        for _ in 0..TURNS {
            for ((_, (), actors), (grants, longest, shares)) in all.iter_mut().zip(&mut samples) {
                for actor in actors.iter_mut() {
                    actor.send(&format!("storm {SECONDS} 20"))?;
                }
                let mut counts = Vec::new();
                for actor in actors {
                    let (count, waited) = actor.receive::<u64>()?;
                    counts.push(float(count));
                    *longest = waited.max(*longest);
                }
                grants.push(counts.iter().sum::<f64>() / f64::from(SECONDS));
                let most = counts.iter().copied().fold(0.0, f64::max);
                let least = counts.iter().copied().fold(f64::INFINITY, f64::min);
                shares.push(most / least.max(1.0));
            }
        }
        for ((name, ..), (grants, longest, mut shares)) in all.iter().zip(samples) {
            shares.sort_unstable_by(f64::total_cmp);
            let note = format!(
                "longest wait {:.1} ms, most to least {:.2}",
                float(longest) / 1e6,
                shares[TURNS / 2]
            );
            self.report.add(name, grants, note);
        }
        Ok(())
    }

    /// Measures the cost of a grant for different numbers of waiters, each of which acquires and releases once.
    fn crowds(&mut self) -> Result<()> {
        const PROCESSES: u32 = 10;

        for (kind, name) in KINDS {
            let title = format!("Waiters on one name, {name}: for each grant");
            self.report.begin(&title, Unit::Nanoseconds);
            let subjects = [("10", Rust(kind), 1), ("1,000", Rust(kind), 100)];
            let mut holder = self.actor(Rust(kind))?;
            let mut all = self.actors(&subjects, PROCESSES as usize);
            let mut samples = vec![Vec::new(); all.len()];
            for _ in 0..7 {
                for ((_, threads, actors), samples) in all.iter_mut().zip(&mut samples) {
                    holder.acquire()?;
                    for actor in actors.iter_mut() {
                        actor.send(&format!("crowd {threads}"))?;
                    }
                    // Wait until all threads wait.
                    thread::sleep(Duration::from_millis(500 + 20 * u64::from(*threads)));
                    let released = holder.request("release")?;
                    let mut last = 0;
                    for actor in actors {
                        last = last.max(actor.receive::<u64>()?.0);
                    }
                    let grants = f64::from(PROCESSES * *threads);
                    samples.push(float(last.saturating_sub(released)) / grants);
                }
            }
            for ((name, ..), samples) in all.iter().zip(samples) {
                self.report.add(name, samples, String::new());
            }
        }
        Ok(())
    }

    /// Measures the cost of waiters while the lock stays held.
    fn idle(&mut self) {
        const WAITERS: usize = 400;

        let title = format!("{WAITERS} commands wait for one name: how often one falls asleep");
        self.report.begin(&title, Unit::PerSecond);
        let file = self.directory.join("idle");
        let program = our_command();
        for (name, kind) in [
            ("flock f true", None),
            ("verrou run k -- true, file lock", Some("file")),
            ("verrou run k -- true, lease file", Some("lease")),
        ] {
            let waiter = |command: &[&str]| {
                let Some(kind) = kind else {
                    let mut flock = Command::new("flock");
                    flock.arg(&file).args(command);
                    return flock;
                };
                let store = format!("{kind}:{}", self.directory.join("idle-store").display());
                let mut verrou = Command::new(&program);
                verrou.args(["run", "k", "--store", &store, "--"]);
                verrou.args(command);
                verrou
            };
            match idle(waiter, WAITERS) {
                Ok((switches, percent)) => {
                    let note = format!("{percent:.2} % of a core");
                    self.report.add(name, vec![switches], note);
                }
                Err(err) => self.report.miss(name, &err),
            }
        }
    }

    /// Measures the cost of an operation for different numbers of files in the directory.
    fn names(&mut self) -> Result<()> {
        // The number of names in use, spread over all names: few enough to be read from memory, not from the disk,
        // and more than any cache of Verrou holds.
        const USED: u32 = 1_000;

        let many: u32 = match env::var("VERROU_BENCH_NAMES") {
            Ok(number) => number.parse()?,
            Err(_) => 1_000_000,
        };
        for (kind, name) in KINDS {
            let title = format!("Names in one directory, {name}: acquire and release one of them");
            self.report.begin(&title, Unit::Nanoseconds);
            let mut stores = Vec::new();
            for count in [USED, many] {
                let store = open(kind, &self.directory.join(format!("{kind}-{count}")))?;
                for number in 0..count {
                    pair(&store, number)?;
                }
                stores.push((count, store, Vec::new()));
            }
            // The first round is a warm-up.
            for round in 0..=ROUNDS {
                for (count, store, samples) in &mut stores {
                    let began = Instant::now();
                    for number in 0..USED {
                        pair(store, number * (*count / USED))?;
                    }
                    if round > 0 {
                        samples.push(nanoseconds(began.elapsed()) / f64::from(USED));
                    }
                }
            }
            for (count, _, samples) in stores {
                self.report.add(&count.to_string(), samples, String::new());
            }
            fs::remove_dir_all(self.directory.join(format!("{kind}-{many}")))?;
        }
        Ok(())
    }

    /// Measures the growth of memory and descriptors over many operations.
    fn growth(&mut self) -> Result<()> {
        const OPERATIONS: u32 = 1_000_000;

        let title = "Growth of this process's memory over 10⁶ operations";
        self.report.begin(title, Unit::Kibibytes);
        for (kind, name) in KINDS {
            let store = open(kind, &self.directory)?;
            for number in 0..OPERATIONS / 100 {
                pair(&store, number % 300)?;
            }
            let before = used()?;
            for number in 0..OPERATIONS / 2 {
                pair(&store, number % 300)?;
            }
            let after = used()?;
            let note = format!("descriptors {}, then {}", before.1, after.1);
            self.report.add(name, vec![after.0 - before.0], note);
        }
        Ok(())
    }
}

/// The file stores of Verrou.
const KINDS: [(&str, &str); 2] = [
    ("file", "Verrou, file lock"),
    ("lease", "Verrou, lease file"),
];

/// A function that takes one sample.
type Turn<'a> = Box<dyn FnMut() -> Result<f64> + 'a>;

/// Runs all subjects in turns, each as many times as it has; a subject that fails is not run again.
fn take_turns<'a>(
    mut subjects: Vec<(&'a str, usize, Turn<'_>)>,
) -> Vec<(&'a str, Result<Vec<f64>>)> {
    let mut all: Vec<_> = subjects
        .iter()
        .map(|&(name, ..)| (name, Ok(Vec::new())))
        .collect();
    let most = subjects.iter().map(|&(_, times, _)| times).max();
    for round in 0..most.unwrap_or_default() {
        for ((_, times, turn), (_, samples)) in subjects.iter_mut().zip(&mut all) {
            if let Ok(taken) = samples
                && round < *times
            {
                match turn() {
                    Ok(sample) => taken.push(sample),
                    Err(err) => *samples = Err(err),
                }
            }
        }
    }
    all
}

fn url(server: &Result<Server>) -> Result<&str> {
    match server {
        Ok(server) => Ok(&server.url),
        Err(err) => Err(err.to_string().into()),
    }
}

fn run(command: &mut Command) -> std::result::Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command
        .status()
        .map_err(|err| format!("{program}: {err}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{program}: {status}"))
    }
}

fn pair(store: &AnyStore, number: u32) -> Result<()> {
    let claim = Claim::new(
        Name::new(&format!("name {number}"))?,
        Owner::from_bytes(System.random()),
        Ttl::NEVER,
    )
    .ephemeral(true);
    if !store.acquire(&claim)?.is_granted() || !store.release(&claim)? {
        return Err("a free lock was refused".into());
    }
    Ok(())
}

/// Returns the path of the `verrou` command: the release build named by `VERROU_BENCH_COMMAND`, or the one in the
/// directory of the release build, where `cargo build --release` puts it.
fn our_command() -> OsString {
    let beside = || {
        let this = env::current_exe().ok()?;
        Some(this.ancestors().nth(2)?.join("verrou").into())
    };
    let given = env::var_os("VERROU_BENCH_COMMAND");
    given.or_else(beside).unwrap_or_else(|| "verrou".into())
}

/// Starts `count` processes that wait, by the command of `waiter`, for a held lock. Returns the
/// voluntary context switches per second of one process, and the CPU time of all of them in percent of
/// a core.
fn idle(waiter: impl Fn(&[&str]) -> Command, count: usize) -> Result<(f64, f64)> {
    const SETTLED: Duration = Duration::from_secs(15);
    const LENGTH: Duration = Duration::from_secs(20);

    let mut all = Processes(Vec::new());
    let mut holder = waiter(&["sh", "-c", "echo held; exec sleep 1000"]);
    let mut holder = holder.process_group(0).stdout(Stdio::piped()).spawn()?;
    let held = holder.stdout.take().ok_or("no output")?;
    all.0.push(holder);
    BufReader::new(held).read_line(&mut String::new())?;
    for _ in 0..count {
        all.0.push(waiter(&["true"]).process_group(0).spawn()?);
    }
    thread::sleep(SETTLED);
    let before = all.cost()?;
    thread::sleep(LENGTH);
    let after = all.cost()?;
    let seconds = LENGTH.as_secs_f64();
    let nanoseconds = float(after.1 - before.1);
    let switches = float(after.0 - before.0);
    Ok((switches / seconds, nanoseconds / seconds / 1e7))
}

/// Processes, each in its own process group, that are killed when this is dropped. The first one holds
/// the lock.
struct Processes(Vec<Child>);

impl Processes {
    /// Returns the total voluntary context switches of the waiters, and their total CPU time in
    /// nanoseconds.
    fn cost(&self) -> Result<(u64, u64)> {
        let (mut switches, mut ran) = (0, 0);
        for process in &self.0[1..] {
            let of = |file: &str| fs::read_to_string(format!("/proc/{}/{file}", process.id()));
            let (status, times) = (of("status")?, of("schedstat")?);
            let mut lines = status.lines();
            let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            switches += count.ok_or("no switches")?.trim().parse::<u64>()?;
            ran += times.split(' ').next().ok_or("no times")?.parse::<u64>()?;
        }
        Ok((switches, ran))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Kill the waiters before the holder, so that no waiter is granted the lock.
        for process in self.0.iter_mut().rev() {
            if let Some(group) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = process.wait();
        }
    }
}

/// Returns this process's memory in KiB, and its number of descriptors.
fn used() -> Result<(f64, usize)> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    let descriptors = fs::read_dir(PathBuf::from("/proc/self/fd"))?.count();
    Ok((kib.ok_or("no VmRSS")?.parse()?, descriptors))
}

fn nanoseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

#[expect(clippy::cast_precision_loss, reason = "no more than some minutes")]
fn float(number: u64) -> f64 {
    number as f64
}
