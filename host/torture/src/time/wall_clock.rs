//! Wall clocks: other times in records and serialized locks, and steps while locks are held.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use verrou::blocking::{Host, LockFactory};
use verrou::{Clock, SerializedLock, Ttl};
use verrou_host::{LeaseFileStore, StoreOptions, System};

use crate::child_process::{self, Ended, Running};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim, forge_slots, overwrite};

/// Tests that the wall-clock times of a record are only for display.
pub(super) fn recorded_wall_clock(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const ENDS_AT: usize = 88;
    const SINCE_AT: usize = 96;

    let directory = tempfile::tempdir_in(&setting.directory)?;
    let (one, two) = (
        Kind::Lease.open(directory.path())?,
        Kind::Lease.open(directory.path())?,
    );
    let mine = claim("lock", 1)?
        .with_ttl(Ttl::new(Duration::from_hours(1))?)
        .ephemeral(false);
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
            let holder = two.holders(&mine.name)?.pop().context("the lock is held")?;
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
        let extended = restored.extend(restored.ttl());
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
pub(super) fn stepped_wall_clock(setting: &Setting, findings: &mut Findings) -> Result<()> {
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
