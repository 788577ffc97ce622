//! The operations on a lock, each of which is run with a fault at every one of its system calls.

use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use verrou::{Acquired, Claim, Fence, Name, Owner, Store, StoreError, Ttl, Waiter};
use verrou_host::{AnyStore, StoreOptions, StoreUrl};

use crate::store_call::Reply;
use crate::tracer;

/// The state of the lock before an operation.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Before {
    /// The lock has no file.
    Nothing,
    /// The lock is free, and was held once.
    Free,
    /// The lock's holder has died.
    HolderDead,
    /// The lock has a detached lease that has expired.
    Expired,
    /// The lock has a detached lease of one hour.
    Detached,
    /// The process holds the lock.
    Held,
    /// The process holds the lock, and another owner waits.
    HeldWithWaiter,
    /// Another owner holds the lock.
    HeldByOther,
    /// Another owner holds the lock, and the process waits.
    WaitingForOther,
}

/// The operation that a process performs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Act {
    Acquire,
    Extend,
    Release,
    ForceRelease,
    Detach,
    /// Requests the lock, is refused, and waits for a moment.
    Wait,
    /// Ends its wait.
    EndWait,
    /// Closes the store.
    CloseStore,
    Inspect,
}

/// An operation: its name, the state before it, its action, and the kinds of store that have it.
pub(crate) struct TestedOperation {
    pub(crate) name: &'static str,
    pub(crate) before: Before,
    pub(crate) act: Act,
    pub(crate) kinds: &'static [&'static str],
}

const BOTH: &[&str] = &["file", "lease"];
const LEASE: &[&str] = &["lease"];

/// All operations.
#[rustfmt::skip]
pub(crate) const OPERATIONS: &[TestedOperation] = &[
    TestedOperation { name: "first acquire", before: Before::Nothing, act: Act::Acquire, kinds: BOTH },
    TestedOperation { name: "acquire", before: Before::Free, act: Act::Acquire, kinds: BOTH },
    TestedOperation { name: "take over from a dead holder", before: Before::HolderDead, act: Act::Acquire, kinds: BOTH },
    TestedOperation { name: "take over an expired lease", before: Before::Expired, act: Act::Acquire, kinds: LEASE },
    TestedOperation { name: "extend", before: Before::Held, act: Act::Extend, kinds: BOTH },
    TestedOperation { name: "release", before: Before::Held, act: Act::Release, kinds: BOTH },
    TestedOperation { name: "hand-off", before: Before::HeldWithWaiter, act: Act::Release, kinds: BOTH },
    TestedOperation { name: "force-release", before: Before::Detached, act: Act::ForceRelease, kinds: LEASE },
    TestedOperation { name: "detach", before: Before::Held, act: Act::Detach, kinds: LEASE },
    TestedOperation { name: "wait", before: Before::HeldByOther, act: Act::Wait, kinds: BOTH },
    TestedOperation { name: "end a wait", before: Before::WaitingForOther, act: Act::EndWait, kinds: BOTH },
    TestedOperation { name: "close the store", before: Before::HeldWithWaiter, act: Act::CloseStore, kinds: BOTH },
    TestedOperation { name: "inspect", before: Before::Detached, act: Act::Inspect, kinds: LEASE },
    TestedOperation { name: "inspect", before: Before::Free, act: Act::Inspect, kinds: &["file"] },
];

/// The TTL of a lease that its process detaches.
pub(crate) const DETACHED_TTL: Duration = Duration::from_millis(200);

/// The configuration of the process that performs an operation.
#[derive(Debug, Deserialize, Serialize)]
struct Order {
    store: String,
    act: Act,
    owns: bool,
}

/// The result of an attempt, as the process reports it.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum AttemptResult {
    Granted {
        fence: Option<u64>,
    },
    Refused,
    Error {
        text: String,
    },
    /// The end of an operation without a result.
    Done,
}

fn claim(owner: u8, ttl: Option<Duration>) -> Claim {
    Claim::new(
        Name::new("lock").expect("a valid name"),
        Owner::from_bytes([owner; 16]),
        ttl.map_or(Ttl::NEVER, |ttl| Ttl::new(ttl).expect("a valid TTL")),
    )
    .ephemeral(true)
}

fn open(kind: &str, directory: &Path) -> Result<AnyStore> {
    let url: StoreUrl = format!("{kind}:{}", directory.display()).parse()?;
    Ok(AnyStore::open(&url, &StoreOptions::default())?)
}

/// Runs the worker `operation`: performs the operation, reports its result, and repeats it for each
/// line of its input, until the input ends.
pub(crate) fn work(arguments: &[String]) -> Result<()> {
    let [text] = arguments else {
        bail!("the worker `operation` takes one argument")
    };
    let order: Order = serde_json::from_str(text)?;
    let store = AnyStore::open(&order.store.parse::<StoreUrl>()?, &StoreOptions::default())?;
    let ttl = (order.act == Act::Detach).then_some(DETACHED_TTL);
    let claim = claim(1, ttl);
    if order.owns {
        send(&attempt_result(store.acquire(&claim)))?;
        // The other owner begins to wait.
        io::stdin().lines().next();
    }
    match order.act {
        Act::Acquire => perform(|| attempt_result(store.acquire(&claim))),
        Act::Extend => perform(|| attempt_result(store.extend(&claim))),
        Act::Release => perform(|| attempt_result(store.release(&claim))),
        Act::ForceRelease => perform(|| attempt_result(store.force_release(&claim.name, None))),
        Act::Detach => perform(|| attempt_result(store.detach(&claim))),
        Act::Wait => {
            let mut waiter = waiter(&store, &claim);
            perform(|| {
                let first = attempt_result(store.acquire(&claim));
                waiter.wait(Duration::from_millis(5));
                match first {
                    AttemptResult::Error { .. } => first,
                    _ => attempt_result(store.acquire(&claim)),
                }
            })
        }
        Act::EndWait => {
            attempt_result(store.acquire(&claim));
            let mut waiter = waiter(&store, &claim);
            waiter.wait(Duration::ZERO);
            let mut waiter = Some(waiter);
            perform(|| {
                drop(waiter.take());
                AttemptResult::Done
            })
        }
        Act::CloseStore => {
            let mut store = Some(store);
            perform(|| {
                drop(store.take());
                AttemptResult::Done
            })
        }
        Act::Inspect => perform(|| inspected(&store, &claim.name)),
    }
}

/// Performs `act` under the tracer, reports its result, and repeats it for each line of the input.
fn perform(mut act: impl FnMut() -> AttemptResult) -> Result<()> {
    let first = tracer::traced(&mut act)?;
    send(&first)?;
    for _ in io::stdin().lines() {
        send(&act())?;
    }
    Ok(())
}

fn send(result: &AttemptResult) -> Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{}", serde_json::to_string(result)?)?;
    Ok(output.flush()?)
}

/// Returns the waiter of `claim`, which has no ticket before its first wait.
fn waiter<'s>(store: &'s AnyStore, claim: &Claim) -> Box<dyn Waiter + 's> {
    store.waiter(claim).expect("a store that can wait")
}

/// Returns the holder of `name` as the result of an attempt.
fn inspected(store: &AnyStore, name: &Name) -> AttemptResult {
    match store.holders(name).map(|mut holders| holders.pop()) {
        Ok(Some(holder)) => AttemptResult::Granted {
            fence: holder.fence.map(Fence::get),
        },
        Ok(None) => AttemptResult::Refused,
        Err(err) => AttemptResult::error(err),
    }
}

fn attempt_result(reply: Result<impl Reply, StoreError>) -> AttemptResult {
    match reply.map(Reply::into_acquired) {
        Ok(Acquired::Granted { fence }) => AttemptResult::Granted {
            fence: fence.map(Fence::get),
        },
        Ok(Acquired::Busy { .. }) => AttemptResult::Refused,
        Err(err) => AttemptResult::error(err),
    }
}

impl AttemptResult {
    fn error(err: StoreError) -> Self {
        Self::Error {
            text: format!("{:#}", anyhow::Error::from(err)),
        }
    }
}

/// An operation, and a template of the state before it.
pub(crate) struct Stage {
    kind: &'static str,
    operation: &'static TestedOperation,
    /// The directory of the state before the operation, to be copied.
    template: PathBuf,
    /// The greatest fencing token that was granted before.
    fence: u64,
}

/// A process that is about to perform an operation.
pub(crate) struct Scene<'s> {
    pub(crate) directory: PathBuf,
    kind: &'static str,
    operation: &'static TestedOperation,
    /// The process, stopped before its operation.
    pub(crate) process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The store of the other owners.
    other: &'s AnyStore,
    /// The claim of the other owner that holds the lock.
    has: Option<Claim>,
    /// The claim of the next owner, and its waiter while it waits.
    next: Claim,
    waiter: Option<Box<dyn Waiter + 's>>,
    pub(crate) fence: u64,
}

impl Stage {
    pub(crate) fn new(
        directory: &Path,
        operation: &'static TestedOperation,
        kind: &'static str,
    ) -> Result<Self> {
        let template = tempfile::tempdir_in(directory)?.keep();
        let mut fence = 0;
        let locks = template.join("locks");
        fs::create_dir(&locks)?;
        if operation.before != Before::Nothing {
            let store = open(kind, &locks)?;
            let ttl = match operation.before {
                Before::Expired => Some(Duration::from_millis(1)),
                Before::Detached => Some(Duration::from_hours(1)),
                _ => None,
            };
            let claim = claim(2, ttl).ephemeral(ttl.is_none());
            fence = granted(store.acquire(&claim))?;
            match operation.before {
                Before::HolderDead => {
                    // Copies have other inodes, which no process has locked.
                    copy(&locks, &template.join("dead"))?;
                    fs::remove_dir_all(&locks)?;
                    fs::rename(template.join("dead"), &locks)?;
                }
                Before::Expired | Before::Detached => {}
                _ => {
                    ensure!(store.release(&claim)?, "the lock is lost");
                }
            }
        }
        Ok(Self {
            kind,
            operation,
            template: locks,
            fence,
        })
    }

    /// Returns the operation's action.
    pub(crate) fn act(&self) -> Act {
        self.operation.act
    }

    /// Creates `directory` in the state before the operation, and opens the store of the other owners.
    pub(crate) fn open_copy(&self, directory: &Path) -> Result<AnyStore> {
        copy(&self.template, directory)?;
        open(self.kind, directory)
    }

    /// Starts a process in `directory`, and lets it run up to its operation. `other` is the
    /// [store of the other owners](Self::open_copy) there.
    pub(crate) fn scene<'s>(&self, directory: PathBuf, other: &'s AnyStore) -> Result<Scene<'s>> {
        let before = self.operation.before;
        let mut has = None;
        let mut fence = self.fence;
        if matches!(before, Before::HeldByOther | Before::WaitingForOther) {
            let claim = claim(2, None);
            fence = granted(other.acquire(&claim))?;
            has = Some(claim);
        }
        let owns = matches!(before, Before::Held | Before::HeldWithWaiter);
        let order = Order {
            store: format!("{}:{}", self.kind, directory.display()),
            act: self.operation.act,
            owns,
        };
        let mut process = Command::new(env::current_exe()?)
            .args(["worker", "operation", &serde_json::to_string(&order)?])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = process
            .stdout
            .take()
            .context("the process has no standard output")?;
        let mut scene = Scene {
            kind: self.kind,
            operation: self.operation,
            input: process.stdin.take(),
            output: BufReader::new(output),
            process,
            other,
            has,
            next: claim(4, None),
            waiter: None,
            fence,
            directory,
        };
        if owns {
            match scene.receive()? {
                Some(AttemptResult::Granted { fence: Some(fence) }) => scene.fence = fence,
                other => bail!("a free lock was not granted: {other:?}"),
            }
            if before == Before::HeldWithWaiter {
                scene.next = claim(3, None);
                scene.next_attempts()?;
                scene.next_waits(Duration::ZERO);
            }
            scene.resume()?;
        }
        Ok(scene)
    }
}

impl Scene<'_> {
    /// Reads the next result of the process; returns `None` if the process is gone.
    pub(crate) fn receive(&mut self) -> Result<Option<AttemptResult>> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }

    /// Lets the process continue.
    pub(crate) fn resume(&mut self) -> Result<()> {
        let input = self
            .input
            .as_mut()
            .context("the process has no standard input")?;
        Ok(writeln!(input)?)
    }

    /// Ends the process, and returns its standard error and whether it succeeded.
    pub(crate) fn end_process(&mut self) -> Result<(String, bool)> {
        drop(self.input.take());
        // The tracer may have reaped it already.
        let ended_well = self.process.wait().is_ok_and(|status| status.success());
        let mut errors = String::new();
        if let Some(mut stderr) = self.process.stderr.take() {
            io::Read::read_to_string(&mut stderr, &mut errors)?;
        }
        Ok((errors, ended_well))
    }

    /// Returns whether another owner can acquire the lock now.
    pub(crate) fn is_free_to_others(&self) -> Result<bool> {
        let claim = claim(4, None);
        let is_granted = self.other.acquire(&claim)?.is_granted();
        if is_granted {
            self.other.release(&claim)?;
        }
        Ok(is_granted)
    }

    /// Requests the lock for the next owner.
    fn next_attempts(&mut self) -> Result<Acquired, StoreError> {
        let reply = self.other.acquire(&self.next)?;
        if reply.is_granted()
            && let Some(waiter) = self.waiter.take()
        {
            waiter.granted();
        }
        Ok(reply)
    }

    /// Waits for the lock as the next owner, which stays in the queue until its grant.
    fn next_waits(&mut self, at_most: Duration) {
        let waiter = self
            .waiter
            .get_or_insert_with(|| waiter(self.other, &self.next));
        waiter.wait(at_most);
    }

    /// Returns whether the next owner can acquire the lock within five seconds.
    pub(crate) fn is_free_to_others_soon(&mut self) -> Result<bool> {
        let began = Instant::now();
        loop {
            if self.next_attempts()?.is_granted() {
                self.other.release(&self.next)?;
                return Ok(true);
            }
            if began.elapsed() > Duration::from_secs(5) {
                return Ok(false);
            }
            self.next_waits(Duration::from_millis(50));
        }
    }

    /// Returns the fencing token of the lock's holder.
    pub(crate) fn held_under(&self) -> Result<Option<u64>> {
        let holder = self.other.holders(&claim(1, None).name)?.pop();
        Ok(holder.and_then(|holder| holder.fence).map(Fence::get))
    }

    /// Acquires the lock for the next owner, which must succeed in the end; returns the violations.
    pub(crate) fn others_get_in(&mut self, bound: Duration) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        // The record has the fencing token of a grant whose reply was lost.
        if let Ok(Some(fence)) = self.held_under() {
            self.fence = fence.max(self.fence);
        }
        if let Some(claim) = self.has.take() {
            self.other.release(&claim)?;
        }
        let bound = match (self.operation.act, self.operation.before) {
            (Act::Detach, _) => bound + DETACHED_TTL,
            // The lease lasts for an hour, unless it was force-released.
            (Act::ForceRelease | Act::Inspect, Before::Detached) => {
                self.other.force_release(&self.next.name, None)?;
                bound
            }
            _ => bound,
        };
        let began = Instant::now();
        let fence = loop {
            match self.next_attempts() {
                Ok(Acquired::Granted { fence }) => break fence.map_or(0, Fence::get),
                Ok(Acquired::Busy { .. }) => {}
                Err(err) => {
                    wrong.push(format!("acquiring: {:#}", anyhow::Error::from(err)));
                    return Ok(wrong);
                }
            }
            if began.elapsed() > Duration::from_secs(10) {
                wrong.push("the lock cannot be acquired any more".to_owned());
                return Ok(wrong);
            }
            self.next_waits(Duration::from_millis(50));
        };
        let took = began.elapsed();
        if took > bound {
            wrong.push(format!("the next owner acquired the lock after {took:?}"));
        }
        if fence <= self.fence {
            let before = self.fence;
            wrong.push(format!("fencing token {fence}, after {before}"));
        }
        if !self.other.release(&self.next)? {
            wrong.push("the next owner's release was refused".to_owned());
        }
        for listed in self.other.list()? {
            match listed {
                Ok((name, _)) => wrong.push(format!("`{name}` is listed as held")),
                Err(err) => wrong.push(format!("listing: {err}")),
            }
        }
        let foreign_files = crate::stress::foreign_files(&self.directory)?;
        if !foreign_files.is_empty() {
            wrong.push(format!("these foreign files are left: {foreign_files:?}"));
        }
        Ok(wrong)
    }

    /// Returns the operation's name and kind of store.
    pub(crate) fn title(&self) -> String {
        format!("{}, {}", self.operation.name, self.kind)
    }
}

impl Drop for Scene<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn granted(reply: Result<Acquired, StoreError>) -> Result<u64> {
    match reply? {
        Acquired::Granted { fence } => Ok(fence.map_or(0, Fence::get)),
        Acquired::Busy { .. } => bail!("a free lock was refused"),
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
