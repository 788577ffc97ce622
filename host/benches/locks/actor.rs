//! Processes that acquire and release a lock on request. Actors in all languages have the same protocol: a line for
//! each request, and a line for its answer.
//!
//! | request | answer |
//! | --- | --- |
//! | `pairs N`: acquire and release, N times | the duration in nanoseconds |
//! | `acquire` | the time of the grant, and the process that holds the lock |
//! | `release` | the time when the release began |
//! | `turn`: acquire and release | the time of the grant |
//! | `storm SECONDS HOLD`: acquire, hold for HOLD µs, and release, repeatedly | the number of grants, and the longest wait in nanoseconds |
//! | `crowd N`: acquire and release in N threads at once | the time of the last grant |
//!
//! Times are in nanoseconds, of the monotonic clock that all processes share.

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

/// Returns the current time.
pub(crate) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec * 1_000_000_000 + now.tv_nsec).unwrap_or_default()
}

/// Runs an actor with the exclusion `kind`, until its standard input ends.
pub(crate) fn act(kind: &str, directory: &Path) -> Result<()> {
    let mut lock = exclusion(kind, directory)?;
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
            ["crowd", threads] => crowd(kind, directory, threads.parse()?)?.to_string(),
            _ => return Err(format!("unknown request `{line}`").into()),
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

fn crowd(kind: &str, directory: &Path, threads: u32) -> Result<u64> {
    let store = open(kind, directory)?;
    thread::scope(|scope| {
        let one = || -> u64 {
            let lock = LockFactory::new(&store, System).create_lock("lock", "1h");
            let lock = lock.expect("a lock");
            let held = lock.guard().expect("a lease");
            let taken = now();
            held.release().expect("a held lock");
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

/// An actor's process.
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

    /// Sends a request.
    pub(crate) fn send(&mut self, request: &str) -> Result<()> {
        Ok(writeln!(self.stdin, "{request}")?)
    }

    /// Waits for the answer and returns its first two words; if there is only one word, returns it twice.
    pub(crate) fn receive<T: FromStr<Err: Into<Box<dyn std::error::Error>>>>(
        &mut self,
    ) -> Result<(u64, T)> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let first = words
            .next()
            .ok_or("an actor has ended; its error is printed above")?;
        let second = words.next().unwrap_or(first);
        Ok((first.parse()?, second.parse().map_err(Into::into)?))
    }

    pub(crate) fn request(&mut self, request: &str) -> Result<u64> {
        self.send(request)?;
        let (answer, _) = self.receive::<u64>()?;
        Ok(answer)
    }

    /// Makes the actor acquire the lock; returns the process that holds it.
    pub(crate) fn acquire(&mut self) -> Result<i32> {
        self.send("acquire")?;
        let (_, process) = self.receive()?;
        Ok(process)
    }
}

/// Kills `process`; returns the time.
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
