//! Clocks that jump, reboots, namespaces, and process IDs that are reused.
//!
//! The machine's own clocks stay unchanged, because other programs use them. The tested processes
//! see a stepped wall clock, another boot ID, and other namespaces.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use verrou::blocking::{Host, LockFactory};
use verrou::{Claim, Clock, Error, Loss, SerializedLock, Timestamp, Ttl};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions, System};

use crate::child_process::{self, DEADLINE, Ended, Running};
use crate::results::{Findings, Part, Setting};
use crate::store_call::{
    BoxedStore, Kind, Outcome, catch_panic, claim, forge_slots, ignore_absent, overwrite,
};

pub(crate) const PART: Part = Part {
    name: "time-and-identity",
    about: "jumping clocks, reboots, namespaces, and reused process IDs",
    share: 0,
    run,
};

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Section = fn(&Setting, &mut Findings) -> Result<()>;
    let sections: [(&str, Section); 9] = [
        ("a suspended machine", suspend),
        ("the shortest and the longest TTL", ttls),
        ("wall clocks in a record", recorded_wall_clock),
        ("a stepped wall clock", stepped_wall_clock),
        ("another boot of the machine", new_boot),
        ("time namespaces", time_namespaces),
        ("other namespaces", namespaces),
        ("another process with the holder's process ID", reused_pid),
        ("a record with another process's ID", forged_pid),
    ];
    setting.progress.set_length(sections.len() as u64);
    for (what, section) in sections {
        setting.progress.set_message(what);
        section(setting, findings)?;
        setting.progress.inc(1);
    }
    Ok(())
}

/// The machine's clock plus an offset.
#[derive(Clone, Default)]
struct ShiftedClock(Arc<AtomicU64>);

impl ShiftedClock {
    fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Timestamp {
        let moved = Duration::from_nanos(self.0.load(Ordering::SeqCst));
        System.now().saturating_add(moved)
    }
}

impl Host for ShiftedClock {
    fn sleep(&self, pause: Duration) {
        self.advance(pause);
        thread::yield_now();
    }

    fn random(&self) -> [u8; 16] {
        System.random()
    }

    fn wall_clock(&self) -> Duration {
        System.wall_clock()
    }
}

/// Opens a store that uses `clock`.
fn open_with(kind: Kind, directory: &Path, clock: &ShiftedClock) -> Result<BoxedStore> {
    let options = StoreOptions::default();
    Ok(match kind {
        Kind::Lease => {
            Box::new(LeaseFileStore::open(directory, &options)?.with_clock(clock.clone()))
        }
        Kind::File => Box::new(FileLockStore::open(directory, &options)?.with_clock(clock.clone())),
    })
}

/// Tests suspensions, during which `CLOCK_BOOTTIME` advances: leases expire, and their holders get
/// an error.
fn suspend(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const TTL: Duration = Duration::from_secs(30);

    for kind in Kind::BOTH {
        for jump in [
            TTL / 2,
            TTL,
            TTL + Duration::from_nanos(1),
            Duration::from_hours(24 * 365),
        ] {
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let clock = ShiftedClock::default();
            let here = open_with(kind, directory.path(), &clock)?;
            let there = open_with(kind, directory.path(), &clock)?;
            let held = LockFactory::new(&*here, clock.clone());
            let other = LockFactory::new(&*there, clock.clone());
            let (held, other) = (
                held.create_lock("lock", TTL)?,
                other.create_lock("lock", TTL)?,
            );
            let fence = held.acquire()?.fence();
            clock.advance(jump);
            let is_over = jump >= TTL;
            let what = format!("suspended for {jump:?} with a lease of {TTL:?} ({kind})");
            findings.check(held.is_expired() == is_over, || {
                format!(
                    "{what}: the holder's lease has expired: {}",
                    held.is_expired()
                )
            });
            // A flock(2) lock stays the holder's until its release.
            let taken = other.try_acquire();
            let may_be_taken = is_over && kind == Kind::Lease;
            findings.check(taken.is_ok() == may_be_taken, || {
                format!("{what}: acquire by another owner: {taken:?}")
            });
            if let Ok(taken) = &taken {
                findings.check(taken.fence() > fence, || {
                    format!("{what}: fencing token {:?} after {fence:?}", taken.fence())
                });
            }
            let extended = held.extend(None);
            findings.check(extended.is_ok() != is_over, || {
                format!("{what}: extend by its holder: {extended:?}")
            });
            let released = held.release();
            findings.check(released.is_ok() != is_over, || {
                format!("{what}: release by its holder: {released:?}")
            });
            if taken.is_ok() {
                let extended = other.extend(None);
                findings.check(extended.is_ok(), || {
                    format!("{what}: extend by the next holder: {extended:?}")
                });
            } else {
                let taken = other.try_acquire();
                findings.check(taken.is_ok(), || {
                    format!("{what}: acquire by another owner after the release: {taken:?}")
                });
            }
            other.release()?;
            // The auto-renewal revives the lease, unless another owner was granted the lock
            // meanwhile.
            for is_wanted in [false, true] {
                let guard = held.guard()?;
                let fence = guard.fence();
                let mut jumped = false;
                let mut taken = false;
                let kept = guard.keep(|_, at_most| {
                    if jumped {
                        return std::ops::ControlFlow::Break(());
                    }
                    clock.advance(if is_over { jump } else { at_most });
                    taken = is_wanted && other.try_acquire().is_ok() && other.release().is_ok();
                    jumped = true;
                    std::ops::ControlFlow::Continue(())
                });
                let is_right = match &kept {
                    Ok(()) => !taken && !guard.is_expired() && guard.fence() == fence,
                    Err(Error::Lost { loss, .. }) => taken && *loss == Loss::Expired,
                    Err(_) => false,
                };
                findings.check(is_right, || {
                    format!(
                        "{what}: auto-renewal, lock granted meanwhile: {taken}, returned {kept:?}"
                    )
                });
                findings.check(taken == (is_wanted && may_be_taken), || {
                    format!("{what}: another owner was granted the lock: {taken}")
                });
                let released = guard.release();
                findings.check(released.is_ok() != taken, || {
                    format!("{what}: release after auto-renewal: {released:?}")
                });
            }
            findings.count("suspended machines", 1);
        }
    }
    Ok(())
}

/// Tests the shortest and the longest TTL, and TTLs out of range.
fn ttls(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for millis in [0, u64::MAX, 9_223_372_036_855] {
        let refused = Ttl::new(Duration::from_millis(millis));
        findings.check(refused.is_err(), || {
            format!("a TTL of {millis} ms: {refused:?}")
        });
        let text = millis.to_string();
        findings.check(text.parse::<Ttl>().is_err(), || {
            format!("`{text}` without a unit is accepted as a TTL")
        });
    }
    let longest = Ttl::new(Ttl::MAX)?;
    for kind in Kind::BOTH {
        // The time of the clock at the grant, up to the end of its range.
        let starts = [
            0,
            u64::MAX / 2,
            u64::MAX - 3_000_000_000_000_000,
            u64::MAX / 2 + 1,
        ];
        for start in starts {
            for ttl in [Ttl::new(Duration::from_millis(1))?, longest, Ttl::NEVER] {
                let directory = tempfile::tempdir_in(&setting.directory)?;
                let clock = ShiftedClock::default();
                let (one, two) = (
                    open_with(kind, directory.path(), &clock)?,
                    open_with(kind, directory.path(), &clock)?,
                );
                clock.advance(Duration::from_nanos(start));
                for ephemeral in [true, false] {
                    let mine = Claim {
                        ttl,
                        ephemeral,
                        ..claim("lock", 1)?
                    };
                    let wanted = claim("lock", 2)?;
                    let what = format!("a TTL of {ttl} at {start} ns ({kind})");
                    let fence = Outcome::by(|| one.acquire(&mine)).granted()?;
                    let is_short = ttl.duration() == Some(Duration::from_millis(1));
                    if is_short {
                        clock.advance(Duration::from_millis(1));
                    } else {
                        clock.advance(Duration::from_secs(1));
                    }
                    let outcome = Outcome::by(|| two.acquire(&wanted));
                    let is_free = is_short && kind == Kind::Lease;
                    let is_right = match &outcome {
                        Outcome::Granted(next) => is_free && *next > fence,
                        Outcome::Refused => !is_free,
                        _ => false,
                    };
                    findings.check(is_right, || {
                        format!("{what}: acquire by another owner: {outcome:?}")
                    });
                    let outcome = Outcome::by(|| one.extend(&mine));
                    let is_right = match outcome {
                        Outcome::Granted(_) => !is_short,
                        Outcome::Refused => is_short,
                        _ => false,
                    };
                    findings.check(is_right, || {
                        format!("{what}: extend by its holder: {outcome:?}")
                    });
                    let shown = catch_panic(|| two.inspect(&mine.name));
                    findings.check(matches!(shown, Ok(Ok(_))), || {
                        format!("{what}: inspect: {shown:?}")
                    });
                    for (store, claim) in [(&one, &mine), (&two, &wanted)] {
                        let outcome = Outcome::by(|| store.release(claim));
                        findings.check(
                            !matches!(outcome, Outcome::Panicked(_) | Outcome::Error(_)),
                            || format!("{what}: release: {outcome:?}"),
                        );
                    }
                    findings.count("TTLs", 1);
                }
            }
        }
    }
    Ok(())
}

/// Tests that the wall-clock times of a record are only for display.
fn recorded_wall_clock(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const ENDS_AT: usize = 88;
    const SINCE_AT: usize = 96;

    let directory = tempfile::tempdir_in(&setting.directory)?;
    let (one, two) = (
        Kind::Lease.open(directory.path())?,
        Kind::Lease.open(directory.path())?,
    );
    let mine = Claim {
        ttl: Ttl::new(Duration::from_hours(1))?,
        ephemeral: false,
        ..claim("lock", 1)?
    };
    Outcome::by(|| one.acquire(&mine)).granted()?;
    let path = Kind::Lease.only_file(directory.path())?;
    let whole = fs::read(&path)?;
    for at in [ENDS_AT, SINCE_AT] {
        for wall in [0, 1, u64::MAX, u64::MAX / 2, 1_763_892_000_000] {
            let mut bytes = whole.clone();
            forge_slots(&mut bytes, at, &wall.to_le_bytes());
            overwrite(&path, &bytes)?;
            let wanted = claim("lock", 2)?;
            let outcome = [
                Outcome::by(|| two.acquire(&wanted)),
                Outcome::by(|| two.extend(&wanted)),
                Outcome::by(|| two.release(&wanted)),
            ];
            findings.check(outcome.iter().all(|outcome| *outcome == Outcome::Refused), || {
                format!(
                    "a wall-clock time of {wall} ms in the record: operations of another owner: \
                     {outcome:?}"
                )
            });
            let holder = two.inspect(&mine.name)?.context("the lock is held")?;
            let left = holder.remaining.unwrap_or_default();
            findings.check(left > Duration::from_mins(59), || {
                format!("a wall-clock time of {wall} ms in the record: {left:?} are left")
            });
            let outcome = Outcome::by(|| one.extend(&mine));
            findings.check(matches!(outcome, Outcome::Granted(_)), || {
                format!(
                    "a wall-clock time of {wall} ms in the record: extend by its holder: \
                     {outcome:?}"
                )
            });
            findings.count("wall-clock times in records", 1);
        }
    }
    // The wall clock at the serialization of a lock does not matter, either.
    let store = LeaseFileStore::open(directory.path(), &StoreOptions::default())?;
    let locks = LockFactory::new(&store, System);
    let lock = locks.create_lock("serialized", "1h")?;
    lock.acquire()?;
    let lease = lock.serialize()?.lease(System.now(), System.wall_clock());
    for step in [-3600_i64, 3600, i64::from(i32::MAX), -i64::from(i32::MAX)] {
        let wall = Duration::from_secs(System.wall_clock().as_secs().saturating_add_signed(step));
        let text = SerializedLock::new(&lease, lock.ttl(), System.now(), wall).to_string();
        let restored = locks.restore_lock(&text.parse()?);
        let extended = restored.extend(None);
        findings.check(extended.is_ok(), || {
            format!("serialized with a wall clock that is {step} s ahead: extend: {extended:?}")
        });
        findings.count("wall-clock times in serialized locks", 1);
    }
    lock.release()?;
    Ok(())
}

/// Runs processes that see a stepped wall clock.
struct SteppedClock {
    program: PathBuf,
    library: PathBuf,
    offset_file: PathBuf,
}

impl SteppedClock {
    /// Returns `None` if there is no C compiler to build the library with.
    fn new(setting: &Setting) -> Result<Option<Self>> {
        let source = setting.directory.join("wall_clock.c");
        let library = setting.directory.join("wall_clock.so");
        fs::write(&source, include_str!("wall_clock.c"))?;
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(&library)
            .arg(&source);
        match child_process::run(&mut compiler) {
            Ok(ended) if ended.code() == Some(0) => {}
            _ => return Ok(None),
        }
        let stepped = Self {
            program: child_process::verrou(&setting.directory)?,
            library,
            offset_file: setting.directory.join("stepped-by"),
        };
        stepped.step(0)?;
        Ok(Some(stepped))
    }

    /// Steps the clock to `seconds` ahead of the machine's clock.
    fn step(&self, seconds: i64) -> Result<()> {
        // Replaced atomically, so that no process reads half of it.
        let new = self.offset_file.with_extension("new");
        fs::write(&new, seconds.to_string())?;
        Ok(fs::rename(&new, &self.offset_file)?)
    }

    fn verrou(&self, kind: Kind, directory: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--store", &kind.url(directory)]).args(words);
        command
            .env("LD_PRELOAD", &self.library)
            .env("TORTURE_WALL_CLOCK", &self.offset_file);
        command.stdin(Stdio::null());
        command
    }
}

/// Steps the wall clock back and forth while locks are held.
fn stepped_wall_clock(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const HOUR: i64 = 3600;

    let Some(stepped) = SteppedClock::new(setting)? else {
        findings.not_done("stepping the wall clock of a process: there is no C compiler `cc`");
        return Ok(());
    };
    let expires = |ended: &Ended| -> Result<u64> {
        let text: serde_json::Value = serde_json::from_str(&ended.out)?;
        text["expires"].as_u64().context("a lease without an end")
    };
    for kind in Kind::BOTH {
        let directory = tempfile::tempdir_in(&setting.directory)?;
        let over = directory.path().join("over");
        let hold = format!("echo held; sleep 1; : > '{}'", over.display());
        let hold = ["run", "lock", "--ttl", "300ms", "--", "sh", "-c", &hold];
        let mut holder = Running::start(&mut stepped.verrou(kind, directory.path(), &hold))?;
        holder.wait_for_output("held")?;
        let mut number = 0;
        // For several times the TTL: the holder renews the lease meanwhile.
        while !holder.ends_within(Duration::from_millis(30))? {
            number += 1;
            stepped.step([HOUR, -HOUR, 0, 24 * HOUR, -24 * HOUR][number % 5])?;
            let words = ["run", "lock", "--no-wait", "--", "echo", "had"];
            let asked = child_process::run(&mut stepped.verrou(kind, directory.path(), &words))?;
            // The holder may have released the lock meanwhile.
            let is_over = over.exists();
            findings.check(asked.code() == Some(75) || is_over, || {
                format!(
                    "a wall clock stepped while a lock is held ({kind}): a second process ends \
                     with {:?}: {}",
                    asked.code(),
                    asked.err.trim_end()
                )
            });
            findings.count("steps of the wall clock", 1);
        }
        let ended = holder.end()?;
        findings.check(ended.code() == Some(0), || {
            format!(
                "a wall clock stepped while a lock is held ({kind}): the holder ends with {:?}: {}",
                ended.code(),
                ended.err.trim_end()
            )
        });
    }
    // A detached lease, which ends only by its TTL.
    for (number, step) in [HOUR, -HOUR, 10 * 365 * 24 * HOUR, -10 * 365 * 24 * HOUR]
        .into_iter()
        .enumerate()
    {
        const TTL: Duration = Duration::from_millis(700);

        let directory = tempfile::tempdir_in(&setting.directory)?;
        let verrou = |words: &[&str]| {
            child_process::run(&mut stepped.verrou(Kind::Lease, directory.path(), words))
        };
        stepped.step(0)?;
        let before = Instant::now();
        let taken = verrou(&["acquire", "lock", "--ttl", "700ms"])?;
        let after = Instant::now();
        let first = expires(&taken)?;
        stepped.step(step)?;
        let asked = verrou(&["run", "lock", "--no-wait", "--", "true"])?;
        if before.elapsed() < TTL {
            findings.check(asked.code() == Some(75), || {
                format!(
                    "a lease of {TTL:?}, the wall clock stepped by {step} s: an acquire request \
                     ends with {:?}",
                    asked.code()
                )
            });
        }
        let waited = verrou(&["run", "lock", "--wait", "20s", "--", "true"])?;
        let (least, most) = (before.elapsed(), after.elapsed());
        findings.check(waited.code() == Some(0) && least >= TTL, || {
            format!(
                "a lease of {TTL:?}, the wall clock stepped by {step} s: a waiter ends after \
                 {most:?} with {:?}",
                waited.code()
            )
        });
        // The process saw the step: the displayed end of the lease differs by it. A serialized lock
        // whose wall-clock times are long past, or far ahead, still works.
        let text = verrou(&["acquire", "lock", "--ttl", "1h"])?;
        let seen = expires(&text)?.cast_signed() - first.cast_signed();
        ensure!(
            (seen / 1000 - 3600 - step).abs() < 60,
            "the wall clock was stepped by {step} s, and the process saw {seen} ms"
        );
        stepped.step(if number % 2 == 0 { -step } else { 0 })?;
        for command in ["extend", "release"] {
            let ended = verrou(&[command, text.out.trim_end()])?;
            findings.check(ended.code() == Some(0), || {
                format!(
                    "a lock acquired while the wall clock was {step} s ahead: {command}: {:?} {}",
                    ended.code(),
                    ended.err.trim_end()
                )
            });
        }
        findings.count("steps of the wall clock", 2);
    }
    Ok(())
}

/// A command that runs programs in new namespaces.
struct Namespace {
    what: String,
    words: Vec<String>,
}

impl Namespace {
    /// Returns a command that runs `unshare(1)` with `options`, and the shell code `before` inside;
    /// returns `None`, and records why, if this machine does not support these namespaces.
    fn new(findings: &mut Findings, what: &str, options: &[&str], before: &str) -> Option<Self> {
        let mut words: Vec<String> = vec!["unshare".to_owned()];
        words.extend(options.iter().map(ToString::to_string));
        words.extend(["--", "sh", "-c"].map(str::to_owned));
        words.push(format!("{before} exec \"$@\""));
        words.push("sh".to_owned());
        let namespace = Self {
            what: what.to_owned(),
            words,
        };
        let mut tried = Command::new("unshare");
        tried.args(&namespace.words[1..]).arg("true");
        match child_process::run(&mut tried) {
            Ok(ended) if ended.code() == Some(0) => Some(namespace),
            Ok(ended) => {
                findings.not_done(format!("{what}: {}", ended.err.trim_end()));
                None
            }
            Err(err) => {
                findings.not_done(format!("{what}: {err:#}"));
                None
            }
        }
    }

    /// Returns a command that runs `program` with `words` inside the namespaces.
    fn command(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg(program).args(words);
        command.stdin(Stdio::null());
        command
    }
}

/// Checks of locks between this program's namespaces and another one's.
struct Neighbours<'a> {
    namespace: &'a Namespace,
    verrou: PathBuf,
    setting: &'a Setting,
    kind: Kind,
}

impl Neighbours<'_> {
    fn inside(&self, directory: &Path, words: &[&str]) -> Result<Ended> {
        let store = self.kind.url(directory);
        let words = [&["--store", &store], words].concat();
        child_process::run(&mut self.namespace.command(&self.verrou, &words))
    }

    fn outside(&self, directory: &Path, words: &[&str]) -> Result<Ended> {
        let store = self.kind.url(directory);
        let words = [&["--store", &store], words].concat();
        child_process::run(Command::new(&self.verrou).args(&words))
    }

    fn check(&self, findings: &mut Findings, what: &str, ended: &Ended, code: i32) {
        findings.check(ended.code() == Some(code), || {
            format!(
                "{} ({}): {what}: ended with {:?} instead of {code}: {}{}",
                self.namespace.what,
                self.kind,
                ended.code(),
                ended.out,
                ended.err.trim_end()
            )
        });
        findings.count("operations across namespaces", 1);
    }

    fn check_outcome(
        &self,
        findings: &mut Findings,
        what: &str,
        outcome: &Outcome,
        is_right: bool,
    ) {
        findings.check(is_right, || {
            format!(
                "{} ({}): {what}: {outcome:?}",
                self.namespace.what, self.kind
            )
        });
        findings.count("operations across namespaces", 1);
    }

    /// Checks that the lock of a live process is held for all others, and that of a dead one free.
    fn live_holders(&self, findings: &mut Findings) -> Result<()> {
        let directory = tempfile::tempdir_in(&self.setting.directory)?;
        let directory = directory.path();
        for ttl in [Ttl::NEVER, Ttl::new(Duration::from_hours(1))?] {
            let store = self.kind.open(directory)?;
            let mine = Claim {
                ttl,
                ..claim("lock", 1)?
            };
            let fence = Outcome::by(|| store.acquire(&mine)).granted()?;
            let asked = self.inside(directory, &["run", "lock", "--no-wait", "--", "true"])?;
            self.check(findings, "acquire inside, held outside", &asked, 75);
            let shown = self.inside(directory, &["show", "lock", "--json"])?;
            self.check(findings, "show inside, held outside", &shown, 0);
            findings.check(shown.out.contains("\"held\":true"), || {
                format!(
                    "{} ({}): show inside: {}",
                    self.namespace.what, self.kind, shown.out
                )
            });
            let outcome = Outcome::by(|| store.extend(&mine));
            self.check_outcome(
                findings,
                "extend outside",
                &outcome,
                outcome == Outcome::Granted(fence),
            );
            Outcome::by(|| store.release(&mine)).granted()?;
            let words = [
                "run",
                "lock",
                "--no-wait",
                "--",
                "sh",
                "-c",
                "echo $VERROU_FENCE",
            ];
            let asked = self.inside(directory, &words)?;
            self.check(findings, "acquire inside, released outside", &asked, 0);
            let next: u64 = asked.out.trim().parse().unwrap_or_default();
            findings.check(next > fence, || {
                format!(
                    "{} ({}): fencing token {next} after {fence}",
                    self.namespace.what, self.kind
                )
            });
            // The other way round.
            let this = std::env::current_exe()?;
            let in_directory = directory.to_string_lossy();
            let ttl = ttl.to_string();
            let kind = self.kind.to_string();
            let words = ["worker", "hold", &kind, &in_directory, "lock", &ttl];
            let mut holder = Running::start(&mut self.namespace.command(&this, &words))?;
            holder.wait_for_output("held")?;
            let wanted = claim("lock", 2)?;
            let outcome = Outcome::by(|| store.acquire(&wanted));
            self.check_outcome(
                findings,
                "acquire outside, held inside",
                &outcome,
                outcome == Outcome::Refused,
            );
            let seen = catch_panic(|| store.inspect(&wanted.name));
            findings.check(matches!(&seen, Ok(Ok(Some(_)))), || {
                format!(
                    "{} ({}): inspect outside: {seen:?}",
                    self.namespace.what, self.kind
                )
            });
            // All processes inside end with it.
            holder.kill()?;
            let began = Instant::now();
            let outcome = loop {
                let outcome = Outcome::by(|| store.acquire(&wanted));
                if outcome != Outcome::Refused || began.elapsed() > DEADLINE {
                    break outcome;
                }
                thread::sleep(Duration::from_millis(1));
            };
            let is_right = matches!(outcome, Outcome::Granted(fence) if fence > next);
            self.check_outcome(
                findings,
                "acquire outside, the holder inside killed",
                &outcome,
                is_right,
            );
            Outcome::by(|| store.release(&wanted)).granted()?;
        }
        Ok(())
    }

    /// Checks detached leases from both sides, for namespaces with the same clock.
    fn detached_leases(&self, findings: &mut Findings) -> Result<()> {
        if self.kind == Kind::File {
            return Ok(());
        }
        let directory = tempfile::tempdir_in(&self.setting.directory)?;
        let directory = directory.path();
        let store = self.kind.open(directory)?;
        let mine = Claim {
            ttl: Ttl::new(Duration::from_hours(1))?,
            ephemeral: false,
            ..claim("lock", 1)?
        };
        Outcome::by(|| store.acquire(&mine)).granted()?;
        let asked = self.inside(directory, &["run", "lock", "--no-wait", "--", "true"])?;
        self.check(findings, "acquire inside, detached outside", &asked, 75);
        Outcome::by(|| store.release(&mine)).granted()?;
        let taken = self.inside(directory, &["acquire", "lock", "--ttl", "1h"])?;
        self.check(findings, "acquire inside", &taken, 0);
        let outcome = Outcome::by(|| store.acquire(&mine));
        self.check_outcome(
            findings,
            "acquire outside, detached inside",
            &outcome,
            outcome == Outcome::Refused,
        );
        let lock: SerializedLock = taken.out.trim().parse()?;
        let lease = lock.lease(System.now(), System.wall_clock());
        let outcome = Outcome::by(|| store.extend(lease.claim()));
        self.check_outcome(
            findings,
            "extend outside",
            &outcome,
            matches!(outcome, Outcome::Granted(_)),
        );
        let released = self.inside(directory, &["release", taken.out.trim()])?;
        self.check(findings, "release inside", &released, 0);
        Ok(())
    }
}

/// Tests PID, user, UTS, IPC and network namespaces.
fn namespaces(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let kinds: [(&str, &[&str], &str); 5] = [
        (
            "a PID namespace",
            &["--pid", "--fork", "--kill-child", "--mount-proc"],
            "",
        ),
        (
            "a namespace with another host name",
            &["--uts"],
            "hostname elsewhere &&",
        ),
        ("a user namespace", &["--user", "--map-root-user"], ""),
        ("an IPC and network namespace", &["--ipc", "--net"], ""),
        (
            "a container of all of them",
            &[
                "--user",
                "--map-root-user",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--uts",
                "--ipc",
                "--net",
                "--cgroup",
            ],
            "hostname container &&",
        ),
    ];
    for (what, options, before) in kinds {
        let Some(namespace) = Namespace::new(findings, what, options, before) else {
            continue;
        };
        for kind in Kind::BOTH {
            let neighbours = Neighbours {
                namespace: &namespace,
                verrou: child_process::verrou(&setting.directory)?,
                setting,
                kind,
            };
            neighbours.live_holders(findings)?;
            neighbours.detached_leases(findings)?;
        }
    }
    Ok(())
}

/// Checks leases that end by another namespace's `CLOCK_BOOTTIME`.
fn other_clocks(
    findings: &mut Findings,
    neighbours: &Neighbours<'_>,
    directory: &Path,
    store: &BoxedStore,
    long: &Claim,
) -> Result<()> {
    // A lease without an end is held at any time.
    let endless = Claim {
        ttl: Ttl::NEVER,
        ..long.clone()
    };
    Outcome::by(|| store.acquire(&endless)).granted()?;
    let asked = neighbours.inside(directory, &["run", "lock", "--no-wait", "--", "true"])?;
    neighbours.check(
        findings,
        "acquire inside, an endless lease outside",
        &asked,
        75,
    );
    Outcome::by(|| store.release(&endless)).granted()?;
    // The other way round.
    let taken = neighbours.inside(directory, &["acquire", "lock", "--ttl", "1h"])?;
    neighbours.check(findings, "acquire inside", &taken, 0);
    let outcome = Outcome::by(|| store.acquire(long));
    let is_right = matches!(&outcome, Outcome::Error(text) if text.contains("force-release"));
    neighbours.check_outcome(
        findings,
        "acquire outside, a lease with a TTL inside",
        &outcome,
        is_right,
    );
    let extended = neighbours.inside(directory, &["extend", taken.out.trim()])?;
    neighbours.check(findings, "extend inside, by the same clock", &extended, 0);
    // A third time namespace, which may have the inode number of the one that has ended.
    let options = ["--time", "--boottime", "7000000", "--fork", "--kill-child"];
    if let Some(later) = Namespace::new(findings, "a later time namespace", &options, "") {
        let later = Neighbours {
            namespace: &later,
            verrou: neighbours.verrou.clone(),
            ..*neighbours
        };
        let asked = later.inside(directory, &["run", "lock", "--no-wait", "--", "true"])?;
        later.check(
            findings,
            "acquire, a lease with a TTL of a time namespace that has ended",
            &asked,
            74,
        );
    }
    let outcome = Outcome::by(|| store.evict(&long.name, None));
    neighbours.check_outcome(
        findings,
        "force-release outside",
        &outcome,
        matches!(outcome, Outcome::Granted(_)),
    );
    Ok(())
}

/// Tests time namespaces, in which `CLOCK_BOOTTIME` has an offset.
fn time_namespaces(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for offset in ["100000", "-50", "1000000000"] {
        let what = format!("a time namespace that is {offset} s ahead");
        let options = ["--time", "--boottime", offset, "--fork", "--kill-child"];
        let Some(namespace) = Namespace::new(findings, &what, &options, "") else {
            continue;
        };
        for kind in Kind::BOTH {
            let neighbours = Neighbours {
                namespace: &namespace,
                verrou: child_process::verrou(&setting.directory)?,
                setting,
                kind,
            };
            neighbours.live_holders(findings)?;
            if kind == Kind::File {
                continue;
            }
            let inside = |directory: &Path, words: &[&str]| neighbours.inside(directory, words);
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let directory = directory.path();
            let store = kind.open(directory)?;
            let long = Claim {
                ttl: Ttl::new(Duration::from_hours(1))?,
                ephemeral: false,
                ..claim("lock", 1)?
            };
            // Whether the lease has expired cannot be determined: every operation returns an error.
            Outcome::by(|| store.acquire(&long)).granted()?;
            for words in [
                &["run", "lock", "--no-wait", "--", "true"][..],
                &["show", "lock"],
                &["list"],
            ] {
                let ended = inside(directory, words)?;
                neighbours.check(
                    findings,
                    "an operation inside, a lease with a TTL outside",
                    &ended,
                    74,
                );
                findings.check(ended.err.contains("force-release"), || {
                    format!("{what}: the error names no remedy: {}", ended.err)
                });
            }
            let outcome = Outcome::by(|| store.extend(&long));
            neighbours.check_outcome(
                findings,
                "extend outside",
                &outcome,
                matches!(outcome, Outcome::Granted(_)),
            );
            let freed = inside(directory, &["force-release", "lock"])?;
            neighbours.check(findings, "the remedy that the error names", &freed, 0);
            let outcome = Outcome::by(|| store.extend(&long));
            neighbours.check_outcome(
                findings,
                "extend outside, force-released inside",
                &outcome,
                outcome == Outcome::Refused,
            );
            other_clocks(findings, &neighbours, directory, &store, &long)?;
            Outcome::by(|| store.acquire(&long)).granted()?;
        }
    }
    Ok(())
}

/// Tests another boot of the machine, simulated by another boot ID.
fn new_boot(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const BOOT_AT: usize = 48;

    let id = setting.directory.join("boot-id");
    fs::write(&id, "01234567-89ab-cdef-0123-456789abcdef\n")?;
    let before = format!(
        "mount --bind {} /proc/sys/kernel/random/boot_id &&",
        id.display()
    );
    let what = "another boot of the machine";
    let Some(namespace) = Namespace::new(findings, what, &["--mount"], &before) else {
        return Ok(());
    };
    for kind in Kind::BOTH {
        let neighbours = Neighbours {
            namespace: &namespace,
            verrou: child_process::verrou(&setting.directory)?,
            setting,
            kind,
        };
        // The lock of a live process is held, whatever boot ID its record has.
        neighbours.live_holders(findings)?;
        // Of a lease of an earlier boot, only the fencing token remains.
        for (words, ttl, ephemeral, is_released) in [
            (
                "detached for an hour",
                Some(Duration::from_hours(1)),
                false,
                false,
            ),
            ("detached without a TTL", None, false, false),
            ("of a dead process", None, true, false),
            ("released", None, true, true),
        ] {
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let directory = directory.path();
            let store = kind.open(directory)?;
            let mine = Claim {
                ttl: ttl.try_into()?,
                ephemeral,
                ..claim("lock", 1)?
            };
            let other = claim("other", 3)?;
            Outcome::by(|| store.acquire(&other)).granted()?;
            let mut fence = 0;
            for _ in 0..3 {
                fence = Outcome::by(|| store.acquire(&mine)).granted()?;
                if is_released {
                    Outcome::by(|| store.release(&mine)).granted()?;
                }
            }
            drop(store);
            let run = print_fence_arguments("lock");
            // A mounted boot ID counts as a container's own, by which a detached lease of another
            // boot ID may still be valid: the request fails there. The record of an earlier boot is
            // forged instead.
            let is_detached = kind == Kind::Lease && !ephemeral;
            if is_detached {
                let asked = neighbours.inside(directory, &run)?;
                neighbours.check(
                    findings,
                    &format!("a lock {words}, in a container"),
                    &asked,
                    74,
                );
                let path = kind.path_of("lock", directory, &setting.directory)?;
                let mut bytes = fs::read(&path)?;
                forge_slots(&mut bytes, BOOT_AT, &[7; 16]);
                overwrite(&path, &bytes)?;
            }
            for _ in 0..2 {
                let asked = if is_detached {
                    neighbours.outside(directory, &run)?
                } else {
                    neighbours.inside(directory, &run)?
                };
                neighbours.check(findings, &format!("a lock {words}"), &asked, 0);
                let next: u64 = asked.out.trim().parse().unwrap_or_default();
                findings.check(next > fence, || {
                    format!("{what} ({kind}), a lock {words}: fencing token {next} after {fence}")
                });
                fence = next;
            }
            // The counter may be lost by the power loss, too.
            let counter = directory.join("fences");
            fs::remove_file(&counter).or_else(ignore_absent)?;
            let asked = neighbours.inside(directory, &print_fence_arguments("another"))?;
            neighbours.check(findings, "a new lock, the counter lost", &asked, 0);
            let next: u64 = asked.out.trim().parse().unwrap_or_default();
            findings.check(next > fence, || {
                format!("{what} ({kind}), the counter lost: fencing token {next} after {fence}")
            });
        }
    }
    Ok(())
}

/// Returns the arguments of a `verrou run` that prints its fencing token if the lock is free.
const fn print_fence_arguments(name: &str) -> [&str; 7] {
    [
        "run",
        name,
        "--no-wait",
        "--",
        "sh",
        "-c",
        "echo $VERROU_FENCE",
    ]
}

/// Tests the reuse of a process ID, in a PID namespace, where the next ID can be chosen.
fn reused_pid(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let what = "a reused process ID";
    let options = ["--pid", "--fork", "--kill-child", "--mount-proc"];
    let Some(namespace) = Namespace::new(findings, what, &options, "") else {
        return Ok(());
    };
    let this = std::env::current_exe()?;
    for kind in Kind::BOTH {
        let directory = tempfile::tempdir_in(&setting.directory)?;
        let (kind, in_directory) = (kind.to_string(), directory.path().to_string_lossy());
        let words = ["worker", "reuse-pid", &kind, &in_directory];
        let ended = child_process::run(&mut namespace.command(&this, &words))?;
        match ended.code() {
            Some(0) => findings.count("reused process IDs", 1),
            Some(3) if ended.err.contains("NOT DONE") => {
                findings.not_done(format!("{what}: {}", ended.err.trim_end()));
            }
            _ => findings.violation(format!("{what} ({kind}): {}", ended.err.trim_end())),
        }
    }
    Ok(())
}

/// Runs `torture worker reuse-pid KIND DIRECTORY`: checks that the lock of a dead process is free
/// although another process has its ID, and that a lock of that other process is held.
pub(crate) fn reuse_pid(arguments: &[String]) -> Result<()> {
    const ATTEMPTS: usize = 100;

    let [kind, directory] = arguments else {
        bail!("KIND DIRECTORY");
    };
    let (store, _) = open_by_kind(kind, directory)?;
    let this = std::env::current_exe()?;
    let hold = || {
        let mut command = Command::new(&this);
        command
            .args(["worker", "hold", kind, directory, "lock", "none"])
            .stdin(Stdio::piped());
        Running::start(&mut command)
    };
    let wanted = claim("lock", 2)?;
    let mut last = 0;
    for attempt in 1..=ATTEMPTS {
        let mut holder = hold()?;
        holder.wait_for_output("held")?;
        let number = holder.pid().as_raw_nonzero().get();
        ensure!(
            Outcome::by(|| store.acquire(&wanted)) == Outcome::Refused,
            "the lock of a live process was granted"
        );
        holder.kill()?;
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string())
            .context("NOT DONE: /proc/sys/kernel/ns_last_pid")?;
        let other = Running::start(Command::new("sleep").arg("1000"))?;
        if other.pid().as_raw_nonzero().get() != number {
            continue;
        }
        let fence = Outcome::by(|| store.acquire(&wanted)).granted()?;
        ensure!(fence > last, "fencing token {fence} after {last}");
        last = fence;
        Outcome::by(|| store.release(&wanted)).granted()?;
        drop(other);
        // The next process with the same ID holds the lock itself.
        fs::write("/proc/sys/kernel/ns_last_pid", (number - 1).to_string())?;
        let mut holder = hold()?;
        holder.wait_for_output("held")?;
        let outcome = Outcome::by(|| store.acquire(&wanted));
        ensure!(
            outcome == Outcome::Refused,
            "acquire of the lock of a live process with a reused ID: {outcome:?}"
        );
        let is_same = holder.pid().as_raw_nonzero().get() == number;
        holder.kill()?;
        if is_same || attempt == ATTEMPTS {
            return Ok(());
        }
    }
    bail!("NOT DONE: no process ID was reused")
}

/// Runs `torture worker hold KIND DIRECTORY NAME TTL`: acquires the lock, prints its fencing token,
/// and holds it until the process ends.
pub(crate) fn hold(arguments: &[String]) -> Result<()> {
    let [kind, directory, name, ttl] = arguments else {
        bail!("KIND DIRECTORY NAME TTL");
    };
    let (store, _) = open_by_kind(kind, directory)?;
    let mine = Claim {
        owner: verrou::Owner::from_bytes(System.random()),
        ttl: ttl.parse()?,
        ..claim(name, 0)?
    };
    let fence = Outcome::by(|| store.acquire(&mine)).granted()?;
    println!("held {fence} {}", process::id());
    loop {
        thread::park();
    }
}

fn open_by_kind(kind: &str, directory: &str) -> Result<(BoxedStore, Kind)> {
    let kind = Kind::BOTH.into_iter().find(|it| it.to_string() == kind);
    let kind = kind.context("unknown kind of store")?;
    Ok((kind.open(Path::new(directory))?, kind))
}

/// Tests that the process ID in a record is only for display: a live holder's record with another
/// ID, and a dead holder's record with a live process's ID.
fn forged_pid(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const PROCESS_AT: usize = 104;

    let this = std::env::current_exe()?;
    for kind in Kind::BOTH {
        let directory = tempfile::tempdir_in(&setting.directory)?;
        let store = kind.open(directory.path())?;
        let in_directory = directory.path().to_string_lossy();
        let words = [
            "worker",
            "hold",
            &kind.to_string(),
            &in_directory,
            "lock",
            "none",
        ];
        let mut holder = Running::start(Command::new(&this).args(words).stdin(Stdio::null()))?;
        holder.wait_for_output("held")?;
        let path = kind.only_file(directory.path())?;
        let wanted = claim("lock", 2)?;
        for number in [0, 1, process::id(), u32::MAX, 4_000_000] {
            let mut bytes = fs::read(&path)?;
            forge_slots(&mut bytes, PROCESS_AT, &number.to_le_bytes());
            overwrite(&path, &bytes)?;
            let outcome = Outcome::by(|| store.acquire(&wanted));
            findings.check(outcome == Outcome::Refused, || {
                format!(
                    "acquire of a held lock ({kind}) whose record has the process ID {number}: \
                     {outcome:?}"
                )
            });
            findings.count("records with other process IDs", 1);
        }
        holder.kill()?;
        // The ID of this program, which is alive.
        let mut bytes = fs::read(&path)?;
        forge_slots(&mut bytes, PROCESS_AT, &process::id().to_le_bytes());
        overwrite(&path, &bytes)?;
        let outcome = Outcome::by(|| store.acquire(&wanted));
        findings.check(matches!(outcome, Outcome::Granted(_)), || {
            format!(
                "acquire of a dead process's lock ({kind}) whose record has a live process's ID: \
                 {outcome:?}"
            )
        });
        findings.count("records with other process IDs", 1);
    }
    Ok(())
}
