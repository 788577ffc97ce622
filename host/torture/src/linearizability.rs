//! Histories of many processes' requests, checked for linearizability against a model of a lock.
//!
//! The processes log each request before they send it, and each reply. Some are killed during a
//! request: the outcome of their last request is unknown, and their ephemeral leases end between
//! the kill and the end of the process. Some replies are discarded.

mod model;
mod worker;

use std::fmt::Write as _;
use std::fs;
use std::io::PipeReader;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use verrou::{Name, Store};
use verrou_host::{LeaseFileStore, StoreOptions};

use self::model::{NEVER, Operation, Reply, Request, Rules};
use self::worker::{Event, Kind, Line, Script, Usage, now};
use crate::results::{Findings, Part, Setting};

pub(crate) use self::worker::work;

pub(crate) const PART: Part = Part {
    name: "linearizability",
    about: "histories of many processes, with kills and lost replies, are linearizable",
    share: 1,
    run,
};

/// The number of locks in each store.
const NAMES: usize = 3;

/// The time within which the processes of a round end; they usually take milliseconds.
const DEADLINE: Duration = Duration::from_mins(1);

/// The longest time for checking a history, which takes milliseconds if it is linearizable, and for
/// then reducing one that is not.
const LONGEST_CHECK: Duration = Duration::from_secs(30);

/// The number of violations after which the part stops.
const ENOUGH: usize = 5;

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    setting.progress.set_length(setting.length.as_secs());
    let began = Instant::now();
    let mut random = Rng::with_seed(setting.seed);
    let mut lock_sets =
        [Kind::Leases, Kind::Locks].map(|kind| LockSet::new(kind, &setting.directory));
    let mut checks = Checks::default();
    let mut round = 0;
    // Every kind of round runs at least once.
    while (round < 8 || began.elapsed() < setting.length) && findings.violations.len() < ENOUGH {
        let lock_set = &mut lock_sets[usize::from(round % 4 == 3)];
        let usage = Usage {
            waits: random.u8(..3) == 0,
            inspects: lock_set.kind == Kind::Leases || random.bool(),
            longest: (lock_set.kind == Kind::Leases && random.u8(..3) == 0)
                .then(|| Duration::from_millis(random.u64(1..6))),
        };
        let seed = random.u64(..);
        let records = Round::new(lock_set, usage, seed, round).run(findings)?;
        check(setting, lock_set, &records, round, &mut checks, findings)?;
        lock_set.free_all()?;
        setting.progress.set_position(began.elapsed().as_secs());
        round += 1;
    }
    findings.figure("longest check", format!("{:.1?}", checks.longest));
    findings.figure(
        "most operations of a history",
        format!("{} operations", checks.most),
    );
    Ok(())
}

/// The locks of one store.
struct LockSet {
    kind: Kind,
    directory: PathBuf,
    names: Vec<String>,
    /// The greatest fencing token of each name that a process has received.
    fences: Vec<u64>,
}

impl LockSet {
    fn new(kind: Kind, directory: &Path) -> Self {
        Self {
            kind,
            directory: directory.join(format!("{kind:?}")),
            names: (0..NAMES).map(|number| format!("lock-{number}")).collect(),
            fences: vec![0; NAMES],
        }
    }

    fn rules(&self, usage: Usage) -> Rules {
        Rules {
            transfers: self.kind == Kind::Leases,
            // Inspecting a flock(2) lock acquires it in shared mode for a moment, during which
            // acquire requests are refused.
            is_prompt: !usage.waits && (self.kind == Kind::Leases || !usage.inspects),
        }
    }

    /// Force-releases the leases that have outlived all processes.
    fn free_all(&self) -> Result<()> {
        if self.kind == Kind::Leases {
            let store = LeaseFileStore::open(&self.directory, &StoreOptions::default())?;
            for name in &self.names {
                store.force_release(&Name::new(name)?, None)?;
            }
        }
        Ok(())
    }
}

/// The histories of one round, by lock.
struct Records {
    usage: Usage,
    histories: Vec<Vec<Operation>>,
}

/// Processes that request the same locks at the same time.
struct Round<'a> {
    lock_set: &'a LockSet,
    usage: Usage,
    seed: u64,
    logs: PathBuf,
    random: Rng,
    clients: u32,
    /// The processes that have not ended yet.
    running: Vec<Worker>,
    ended: Vec<EndedWorker>,
}

struct Worker {
    client: u32,
    process: Child,
}

struct EndedWorker {
    client: u32,
    killed: Option<u64>,
    /// When its process was reaped.
    gone: u64,
}

impl<'a> Round<'a> {
    fn new(lock_set: &'a LockSet, usage: Usage, seed: u64, number: u64) -> Self {
        Self {
            lock_set,
            usage,
            seed,
            logs: lock_set.directory.with_extension(format!("logs-{number}")),
            random: Rng::with_seed(seed),
            clients: 0,
            running: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn run(mut self, findings: &mut Findings) -> Result<Records> {
        fs::create_dir_all(&self.lock_set.directory)?;
        fs::create_dir(&self.logs)?;
        let (gate, opens) = std::io::pipe()?;
        let workers = self.random.usize(8..=16);
        for _ in 0..workers {
            self.start(&gate)?;
        }
        let deadline = Instant::now() + DEADLINE;
        for client in 1..=self.clients {
            while !fs::read(self.log(client)).is_ok_and(|log| log.contains(&b'\n')) {
                ensure!(Instant::now() < deadline, "a worker does not start");
                thread::sleep(Duration::from_micros(200));
            }
        }
        drop(opens);
        for _ in 0..self.random.usize(0..=workers) {
            thread::sleep(Duration::from_micros(self.random.u64(..1500)));
            self.reap()?;
            if self.running.is_empty() {
                break;
            }
            let victim = self.random.usize(..self.running.len());
            self.kill(victim)?;
            self.start(&gate)?;
            findings.count("kills", 1);
        }
        while !self.running.is_empty() {
            if deadline < Instant::now() {
                let left = self.running.len();
                findings.violation(format!("{left} processes hang; seed {}", self.seed));
                while !self.running.is_empty() {
                    self.kill(0)?;
                }
            }
            thread::sleep(Duration::from_micros(500));
            self.reap()?;
        }
        let records = self.records(findings)?;
        fs::remove_dir_all(&self.logs)?;
        Ok(records)
    }

    fn log(&self, client: u32) -> PathBuf {
        self.logs.join(client.to_string())
    }

    fn start(&mut self, gate: &PipeReader) -> Result<()> {
        self.clients += 1;
        let client = self.clients;
        let script = Script {
            store: self.lock_set.kind,
            directory: self.lock_set.directory.clone(),
            log: self.log(client),
            names: self.lock_set.names.clone(),
            client,
            operations: self.random.u32(20..=40),
            usage: self.usage,
            seed: self.random.u64(..),
        };
        let process = Command::new(std::env::current_exe()?)
            .args(["worker", "linearizability"])
            .arg(serde_json::to_string(&script)?)
            .stdin(Stdio::from(gate.try_clone()?))
            .spawn()
            .context("cannot start a worker")?;
        self.running.push(Worker { client, process });
        Ok(())
    }

    fn kill(&mut self, at: usize) -> Result<()> {
        let Worker {
            client,
            mut process,
        } = self.running.swap_remove(at);
        let killed = now();
        process.kill()?;
        process.wait()?;
        self.ended.push(EndedWorker {
            client,
            killed: Some(killed),
            gone: now(),
        });
        Ok(())
    }

    /// Reaps the processes that have ended by themselves.
    fn reap(&mut self) -> Result<()> {
        let mut at = 0;
        while at < self.running.len() {
            let Some(status) = self.running[at].process.try_wait()? else {
                at += 1;
                continue;
            };
            let gone = now();
            let client = self.running.swap_remove(at).client;
            ensure!(status.success(), "a worker ended with {status}");
            self.ended.push(EndedWorker {
                client,
                killed: None,
                gone,
            });
        }
        Ok(())
    }

    /// Reads the histories from the processes' logs.
    fn records(&self, findings: &mut Findings) -> Result<Records> {
        let mut histories = vec![Vec::new(); self.lock_set.names.len()];
        for ended in &self.ended {
            let log = match fs::read_to_string(self.log(ended.client)) {
                // The process was killed before it created its log.
                Err(_) if ended.killed.is_some() => continue,
                log => log?,
            };
            let mut last = 0;
            let mut is_done = false;
            let mut pending = None;
            // The last line may be incomplete.
            for line in log
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
            {
                let Line { at, what } =
                    serde_json::from_str(line).context("invalid line in a worker's log")?;
                last = at;
                is_done |= matches!(what, Event::Done);
                let reply = match what {
                    Event::Ready | Event::Done => continue,
                    Event::Request { name, request } => {
                        pending = Some((name, at, request));
                        continue;
                    }
                    Event::Reply(reply) => reply,
                    Event::Error { is_temporary, text } => {
                        findings.count("errors", 1);
                        findings.check(is_temporary, || {
                            format!(
                                "permanent error of an intact store: {text}; seed {}",
                                self.seed
                            )
                        });
                        Reply::Unknown
                    }
                };
                let (name, began, request) = pending.take().context("a reply without a request")?;
                if reply == Reply::Unknown {
                    findings.count("replies discarded", 1);
                }
                histories[name].push(Operation {
                    client: ended.client,
                    began,
                    ended: at,
                    request,
                    reply,
                });
            }
            if let Some((name, began, request)) = pending {
                findings.count("operations interrupted by a kill", 1);
                histories[name].push(Operation {
                    client: ended.client,
                    began,
                    ended: ended.gone,
                    request,
                    reply: Reply::Unknown,
                });
            }
            for history in &mut histories {
                history.push(Operation {
                    client: ended.client,
                    // It may have been killed after its last operation.
                    began: ended.killed.filter(|_| !is_done).unwrap_or(last),
                    ended: ended.gone,
                    request: Request::Death,
                    reply: Reply::Unknown,
                });
            }
        }
        for history in &mut histories {
            history.sort_by_key(|operation| operation.began);
        }
        Ok(Records {
            usage: self.usage,
            histories,
        })
    }
}

/// Figures about the checks.
#[derive(Default)]
struct Checks {
    longest: Duration,
    most: usize,
}

fn check(
    setting: &Setting,
    lock_set: &mut LockSet,
    records: &Records,
    round: u64,
    checks: &mut Checks,
    findings: &mut Findings,
) -> Result<()> {
    let rules = lock_set.rules(records.usage);
    for (at, history) in records.histories.iter().enumerate() {
        let began = Instant::now();
        let fence = lock_set.fences[at];
        let all = history.clone();
        let is_sound = within(LONGEST_CHECK, move || {
            model::is_linearizable(rules, fence, &all)
        });
        checks.longest = checks.longest.max(began.elapsed());
        checks.most = checks.most.max(history.len());
        let requests = history.iter().filter(|it| it.request != Request::Death);
        let number = u64::try_from(requests.count()).unwrap_or(0);
        findings.count("histories", 1);
        findings.count("operations", number);
        if is_sound != Some(true) {
            let all = history.clone();
            let least = match is_sound {
                Some(_) => within(LONGEST_CHECK, move || model::least(rules, fence, &all)),
                None => None,
            };
            let why = if is_sound.is_some() {
                "the history is not linearizable"
            } else {
                "the check for linearizability takes too long"
            };
            let least = least.as_ref().unwrap_or(history);
            let file = format!(
                "target/torture/linearizability-{}-{round}-{at}.txt",
                setting.seed
            );
            let text = describe(rules, fence, least, history);
            fs::create_dir_all("target/torture")?;
            fs::write(&file, text)?;
            findings.violation(format!(
                "{:?}: {why}: {file}; {} operations of {}; seed {}, round \
                 {round}",
                lock_set.kind,
                least.len(),
                history.len(),
                setting.seed
            ));
        }
        let fences = history.iter().filter_map(|it| match it.reply {
            Reply::Granted { fence } | Reply::Held { fence, .. } => fence,
            _ => None,
        });
        lock_set.fences[at] = fences.max().unwrap_or(0).max(fence);
    }
    Ok(())
}

/// Runs `work`, and returns its result if it ends in `time`; otherwise it continues in its thread.
fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || done.send(work()));
    is_done.recv_timeout(time).ok()
}

/// Returns a history that is not linearizable as text.
fn describe(rules: Rules, fence: u64, least: &[Operation], all: &[Operation]) -> String {
    let began = all.first().map_or(0, |first| first.began);
    let mut text = format!("{rules:?}, last granted with fencing token {fence}\n");
    for (title, operations) in [("Reduced history", least), ("Full history", all)] {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\n{title}:");
        for it in operations {
            let from = Duration::from_nanos(it.began.saturating_sub(began));
            let until = match it.ended {
                NEVER => "never".to_owned(),
                ended => format!("{:?}", Duration::from_nanos(ended.saturating_sub(began))),
            };
            let _ = writeln!(
                text,
                "process {:>3}  {from:?} to {until}  {:?} -> {:?}",
                it.client, it.request, it.reply
            );
        }
    }
    text
}
