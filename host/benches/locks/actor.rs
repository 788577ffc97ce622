//! Processes that take a lock when they are told to. All speak the same, in whatever language they
//! are written: a line for each thing to do, and a line when it is done.
//!
//! | to do | done |
//! | --- | --- |
//! | `pairs N`: take it and give it back, N times | for how many nanoseconds |
//! | `acquire` | when, and which process has it |
//! | `release` | when this was begun |
//! | `turn`: take it and give it back | when it had it |
//! | `storm SECONDS HOLD`: take it, hold it for HOLD µs, and give it back, again and again | how often, and the longest wait in nanoseconds |
//! | `crowd N`: take it and give it back in N threads at once | when the last had it |
//!
//! Times are those of the clock that all processes share, in nanoseconds.

use std::hint::spin_loop;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use verrou::blocking::LockFactory;
use verrou_host::System;

use crate::Result;
use crate::exclusion::{Exclusion, exclusion, open};

/// The time now.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
}

/// Is an actor with the exclusion `kind`, until there is no more to do.
pub(crate) fn act(kind: &str, folder: &Path) -> Result<()> {
    let mut lock = exclusion(kind, folder)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = match words[..] {
            ["pairs", times] => pairs(&mut *lock, times.parse()?)?.to_string(),
            ["acquire"] => {
                lock.acquire()?;
                format!("{} {}", now(), lock.process())
            }
            ["release"] => {
                let began = now();
                lock.release()?;
                began.to_string()
            }
            ["turn"] => {
                lock.acquire()?;
                let taken = now();
                lock.release()?;
                taken.to_string()
            }
            ["storm", seconds, hold] => {
                let length = Duration::from_secs_f64(seconds.parse()?);
                let hold = Duration::from_micros(hold.parse()?);
                storm(&mut *lock, length, hold)?
            }
            ["crowd", threads] => crowd(kind, folder, threads.parse()?)?.to_string(),
            _ => return Err(format!("what is `{line}`?").into()),
        };
        writeln!(out, "{done}")?;
        out.flush()?;
    }
    Ok(())
}

fn pairs(lock: &mut dyn Exclusion, times: u32) -> Result<u128> {
    let began = Instant::now();
    for _ in 0..times {
        lock.acquire()?;
        lock.release()?;
    }
    Ok(began.elapsed().as_nanos())
}

fn storm(lock: &mut dyn Exclusion, length: Duration, hold: Duration) -> Result<String> {
    let (mut times, mut longest) = (0u64, Duration::ZERO);
    let began = Instant::now();
    while began.elapsed() < length {
        let asked = Instant::now();
        lock.acquire()?;
        longest = longest.max(asked.elapsed());
        let taken = Instant::now();
        while taken.elapsed() < hold {
            spin_loop();
        }
        lock.release()?;
        times += 1;
    }
    Ok(format!("{times} {}", longest.as_nanos()))
}

fn crowd(kind: &str, folder: &Path, threads: u32) -> Result<u64> {
    let store = open(kind, folder)?;
    thread::scope(|scope| {
        let one = || -> u64 {
            let lock = LockFactory::new(&store, System).create_lock("lock", "1h");
            let lock = lock.expect("a lock");
            let held = lock.guard().expect("a lease");
            let taken = now();
            held.release().expect("my lock");
            taken
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let mut last = 0;
        for thread in threads {
            last = last.max(thread.join().map_err(|_| "a thread panicked")?);
        }
        Ok(last)
    })
}

/// A process that is told what to do.
pub(crate) struct Actor {
    process: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Actor {
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn()?;
        let stdin = process.stdin.take().ok_or("no input")?;
        let stdout = process.stdout.take().ok_or("no output")?;
        Ok(Self {
            process,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// Tells it to begin something.
    pub(crate) fn tell(&mut self, what: &str) -> Result<()> {
        Ok(writeln!(self.stdin, "{what}")?)
    }

    /// The first two words that it says when it is done: the second is the first again if there is
    /// one only.
    pub(crate) fn hear<T: FromStr<Err: Into<Box<dyn std::error::Error>>>>(
        &mut self,
    ) -> Result<(u64, T)> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let first = words
            .next()
            .ok_or("an actor has left: see its words above")?;
        let second = words.next().unwrap_or(first);
        Ok((first.parse()?, second.parse().map_err(Into::into)?))
    }

    pub(crate) fn ask(&mut self, what: &str) -> Result<u64> {
        self.tell(what)?;
        let (said, _) = self.hear::<u64>()?;
        Ok(said)
    }

    /// Lets it take the lock; returns the process that has it.
    pub(crate) fn acquire(&mut self) -> Result<i32> {
        self.tell("acquire")?;
        let (_, process) = self.hear()?;
        Ok(process)
    }
}

/// Ends `process` at once; returns when.
pub(crate) fn kill(process: i32) -> Result<u64> {
    let process = Pid::from_raw(process).ok_or("no process")?;
    let killed = now();
    kill_process(process, Signal::KILL)?;
    Ok(killed)
}

impl Drop for Actor {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
