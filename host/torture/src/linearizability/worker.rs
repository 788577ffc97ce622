//! A process that sends random requests, and logs each request before it sends it, and each reply
//! as soon as it has it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fastrand::Rng;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use verrou::{Claim, Fence, Name, Owner, StoreError, Ttl};
use verrou_host::{FileLockStore, HostStore, LeaseFileStore, StoreOptions};

use super::model::{self, Reply, Request};

/// The configuration of a worker.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Script {
    pub(crate) store: Kind,
    pub(crate) directory: PathBuf,
    /// The path of its log.
    pub(crate) log: PathBuf,
    pub(crate) names: Vec<String>,
    /// Its number, unique in the history.
    pub(crate) client: u32,
    pub(crate) operations: u32,
    pub(crate) usage: Usage,
    pub(crate) seed: u64,
}

/// The kind of store.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Kind {
    Leases,
    Locks,
}

/// The kinds of requests that the workers send.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Usage {
    /// Refused workers wait for a moment, with a ticket of the queue.
    pub(crate) waits: bool,
    /// Workers inspect locks, too.
    pub(crate) inspects: bool,
    /// The longest TTL; otherwise leases have no TTL, or one of an hour.
    pub(crate) longest: Option<Duration>,
}

/// A line of a worker's log.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Line {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) at: u64,
    pub(crate) what: Event,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) enum Event {
    /// The worker is ready to start.
    Ready,
    /// The worker is about to send a request.
    Request { name: usize, request: Request },
    /// The reply to the request.
    Reply(Reply),
    /// An error instead of a reply; the outcome of the request is unknown.
    Error { is_temporary: bool, text: String },
    /// The worker is about to exit.
    Done,
}

/// Returns the nanoseconds of `CLOCK_MONOTONIC`, which is the same for all processes.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Runs `torture worker linearizability SCRIPT`: starts as soon as its input ends.
pub(crate) fn work(arguments: &[String]) -> Result<()> {
    let [script] = arguments else {
        bail!("the worker `linearizability` takes one argument");
    };
    let script: Script = serde_json::from_str(script).context("invalid script")?;
    let options = StoreOptions::default();
    match script.store {
        Kind::Leases => run(&script, &LeaseFileStore::open(&script.directory, &options)?),
        Kind::Locks => run(&script, &FileLockStore::open(&script.directory, &options)?),
    }
}

fn run(script: &Script, store: &impl HostStore) -> Result<()> {
    let mut worker = Worker {
        log: Log::new(&script.log)?,
        store,
        script,
        names: script
            .names
            .iter()
            .map(|name| Name::new(name))
            .collect::<Result<_, _>>()?,
        held: vec![None; script.names.len()],
        seen: vec![(0, None); script.names.len()],
        owners: 0,
        random: Rng::with_seed(script.seed),
    };
    worker.log.write(Event::Ready)?;
    io::stdin().read_to_end(&mut Vec::new())?;
    for _ in 0..script.operations {
        worker.send_random_request()?;
    }
    worker.log.write(Event::Done)
}

struct Worker<'a, S> {
    log: Log,
    store: &'a S,
    script: &'a Script,
    names: Vec<Name>,
    /// The claims of the locks that it holds, unless they were lost.
    held: Vec<Option<Claim>>,
    /// The owner and the fencing token that it saw last of each name.
    seen: Vec<(u64, Option<u64>)>,
    owners: u32,
    random: Rng,
}

impl<S: HostStore> Worker<'_, S> {
    fn send_random_request(&mut self) -> Result<()> {
        let at = self.random.usize(..self.names.len());
        let roll = self.random.u8(..100);
        match (self.held[at].clone(), roll) {
            (Some(mine), 0..45) => {
                self.pause();
                self.release(at, &mine)?;
                self.held[at] = None;
            }
            (Some(mine), 45..70) => {
                let claim = mine.with_ttl(self.ttl());
                self.extend(at, &claim)?;
            }
            (Some(mine), 70..78) => {
                self.acquire(at, &mine)?;
            }
            (Some(mine), 78..84) => self.detach(at, &mine)?,
            (None, 0..60) => {
                let claim = self.new_claim(at);
                let mut is_granted = self.acquire(at, &claim)?;
                if !is_granted && self.script.usage.waits {
                    let store = self.store;
                    let mut waiter = store.waiter(&claim);
                    for _ in 0..self.random.u8(..4) {
                        if let Some(waiter) = &mut waiter {
                            waiter.wait(Duration::from_millis(2));
                        }
                        is_granted = self.acquire(at, &claim)?;
                        if is_granted {
                            break;
                        }
                    }
                }
                if is_granted {
                    self.held[at] = Some(claim);
                }
            }
            // As an owner that the worker has seen, and which may have lost the lock.
            (None, 60..66) => {
                let claim = self.seen_claim(at);
                self.release(at, &claim)?;
            }
            (None, 66..72) => {
                let claim = self.seen_claim(at);
                self.extend(at, &claim)?;
            }
            _ if !self.script.usage.inspects => {}
            (_, 84..92) => {
                let only = self.seen[at].1.filter(|_| self.random.u8(..3) > 0);
                self.force_release(at, only)?;
            }
            _ => self.inspect(at)?,
        }
        if self.random.u8(..8) == 0 {
            self.pause();
        }
        Ok(())
    }

    /// Lets other workers run.
    fn pause(&mut self) {
        match self.random.u8(..4) {
            0 => {}
            1 => thread::sleep(Duration::from_micros(self.random.u64(..400))),
            _ => thread::yield_now(),
        }
    }

    fn ttl(&mut self) -> Ttl {
        let length = match self.script.usage.longest {
            None if self.random.bool() => return Ttl::NEVER,
            None => Duration::from_hours(1),
            Some(longest) => longest.mul_f64(self.random.f64().max(0.1)),
        };
        Ttl::new(length).unwrap_or(Ttl::NEVER)
    }

    fn new_claim(&mut self, at: usize) -> Claim {
        self.owners += 1;
        let owner = model::owner(self.script.client, self.owners);
        Claim::new(self.names[at].clone(), owner_of(owner), self.ttl())
            .ephemeral(self.random.u8(..4) > 0)
    }

    fn seen_claim(&mut self, at: usize) -> Claim {
        Claim::new(
            self.names[at].clone(),
            owner_of(self.seen[at].0),
            self.ttl(),
        )
        .ephemeral(true)
    }

    fn acquire(&mut self, at: usize, claim: &Claim) -> Result<bool> {
        let label = number_of(claim.owner).to_string();
        self.store.set_label(Some(&label));
        let request = Request::Acquire {
            owner: number_of(claim.owner),
            is_ephemeral: claim.ephemeral,
            ttl: nanoseconds(claim.ttl),
        };
        let reply = self.request(at, request, |store| store.acquire(claim).map(Reply::from))?;
        if let Reply::Granted { fence } = reply {
            self.seen[at] = (number_of(claim.owner), fence);
            return Ok(true);
        }
        Ok(false)
    }

    fn extend(&mut self, at: usize, claim: &Claim) -> Result<()> {
        let request = Request::Extend {
            owner: number_of(claim.owner),
            ttl: nanoseconds(claim.ttl),
        };
        self.request(at, request, |store| store.extend(claim).map(Reply::from))?;
        Ok(())
    }

    fn release(&mut self, at: usize, claim: &Claim) -> Result<()> {
        let request = Request::Release {
            owner: number_of(claim.owner),
        };
        self.request(at, request, |store| store.release(claim).map(Reply::from))?;
        Ok(())
    }

    fn detach(&mut self, at: usize, claim: &Claim) -> Result<()> {
        let request = Request::Detach {
            owner: number_of(claim.owner),
        };
        self.request(at, request, |store| store.detach(claim).map(Reply::from))?;
        Ok(())
    }

    fn force_release(&mut self, at: usize, only: Option<u64>) -> Result<()> {
        let name = self.names[at].clone();
        self.request(at, Request::Evict { only }, |store| {
            match store.force_release(&name, only.and_then(Fence::new)) {
                // The only permanent error of a store of flock(2) locks.
                Err(err) if !err.is_temporary() && !store.capabilities().force_releases => {
                    Ok(Reply::NotEvictable)
                }
                other => other.map(Reply::from),
            }
        })?;
        Ok(())
    }

    fn inspect(&mut self, at: usize) -> Result<()> {
        let name = self.names[at].clone();
        let reply = self.request(at, Request::Inspect, |store| {
            Ok(match store.holders(&name)?.pop() {
                None => Reply::Free,
                Some(holder) => Reply::Held {
                    owner: holder.process.and_then(|it| it.command.parse().ok()),
                    fence: holder.fence.map(Fence::get),
                },
            })
        })?;
        if let Reply::Held {
            owner: Some(owner),
            fence,
        } = reply
        {
            self.seen[at] = (owner, fence);
        }
        Ok(())
    }

    /// Sends a request, and logs it before and its reply after; logs some replies as unknown, as if they
    /// had been lost.
    fn request(
        &mut self,
        name: usize,
        request: Request,
        send: impl FnOnce(&S) -> Result<Reply, StoreError>,
    ) -> Result<Reply> {
        let is_lost = self.random.u8(..30) == 0;
        self.log.write(Event::Request { name, request })?;
        let reply = send(self.store);
        let at = now();
        let (what, reply) = match reply {
            Ok(reply) if is_lost => (Event::Reply(Reply::Unknown), reply),
            Ok(reply) => (Event::Reply(reply.clone()), reply),
            Err(err) => (
                Event::Error {
                    is_temporary: err.is_temporary(),
                    text: err.to_string(),
                },
                Reply::Unknown,
            ),
        };
        self.log.write_at(at, what)?;
        Ok(reply)
    }
}

impl From<verrou::Acquired> for Reply {
    fn from(reply: verrou::Acquired) -> Self {
        match reply {
            verrou::Acquired::Granted { fence } => Self::Granted {
                fence: fence.map(Fence::get),
            },
            verrou::Acquired::Busy { .. } => Self::Refused,
        }
    }
}

impl From<bool> for Reply {
    fn from(is_done: bool) -> Self {
        if is_done {
            Self::Granted { fence: None }
        } else {
            Self::Refused
        }
    }
}

fn owner_of(number: u64) -> Owner {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Owner::from_bytes(bytes)
}

fn number_of(owner: Owner) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&owner.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

fn nanoseconds(ttl: Ttl) -> Option<u64> {
    Some(u64::try_from(ttl.duration()?.as_nanos()).unwrap_or(u64::MAX))
}

/// A log file whose lines are each written by one write(2): they persist when the process is killed.
struct Log(File);

impl Log {
    fn new(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().create_new(true).append(true).open(path);
        Ok(Self(file.with_context(|| path.display().to_string())?))
    }

    fn write(&mut self, what: Event) -> Result<()> {
        self.write_at(now(), what)
    }

    fn write_at(&mut self, at: u64, what: Event) -> Result<()> {
        let line = serde_json::to_string(&Line { at, what })? + "\n";
        Ok(self.0.write_all(line.as_bytes())?)
    }
}
