//! A corrupt mark of the wait queue.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::QUEUE;
use crate::child_process::{self, Running};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim, fast_directory, overwrite};

/// Tests a corrupt queue mark, which has no checksum: all waiters must still acquire the lock.
pub(super) fn corrupt_queue(setting: &Setting, findings: &mut Findings, kind: Kind) -> Result<()> {
    // A hand-off takes milliseconds, and skipping two stopped waiters less than a second.
    const TURN: Duration = Duration::from_secs(10);
    const WAITERS: usize = 3;

    let verrou = child_process::verrou(&setting.directory)?;
    let marks: [u64; 9] = [
        u64::MAX,
        (1 << 60) - 1,
        (1 << 60) - 4096,
        1 << 60,
        (1 << 59) - 1,
        1 << 59,
        1 << 63,
        0x00ff_0000_0000_0000,
        1,
    ];
    let mut longest = Duration::ZERO;
    for mark in marks {
        for is_early in [true, false] {
            let directory = fast_directory(setting)?;
            let store = kind.open(directory.path())?;
            let mine = claim("lock", 1)?;
            Outcome::by(|| store.acquire(&mine)).granted()?;
            let path = kind.only_file(directory.path())?;
            let corruption = || -> Result<()> {
                let mut bytes = fs::read(&path)?;
                bytes[QUEUE.start..QUEUE.start + 8].copy_from_slice(&mark.to_le_bytes());
                Ok(overwrite(&path, &bytes)?)
            };
            if is_early {
                // The grant reads the corrupt mark.
                Outcome::by(|| store.release(&mine)).granted()?;
                corruption()?;
                Outcome::by(|| store.acquire(&mine)).granted()?;
            } else {
                corruption()?;
            }
            let mut waiters = Vec::new();
            for number in 1..=WAITERS {
                let mut command = Command::new(&verrou);
                command.args(["--store", &kind.url(directory.path())]);
                command.args(["run", "lock", "--wait", "1m", "--", "true"]);
                waiters.push(Running::start(command.stdin(Stdio::null()))?);
                // A waiter that cannot get a ticket waits nevertheless.
                let began = Instant::now();
                while tickets(&path)? < number && began.elapsed() < Duration::from_millis(500) {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            // A waiter can time out, whatever the state of the others.
            let mut command = Command::new(&verrou);
            command.args(["--store", &kind.url(directory.path())]);
            command.args(["run", "lock", "--wait", "50ms", "--", "true"]);
            let ended = Running::start(command.stdin(Stdio::null()))?.end_within(TURN)?;
            findings.check(ended.code() == Some(75), || {
                format!(
                    "a queue mark corrupted to {mark:#x} ({kind}): a waiter with a timeout of \
                     50 ms ends with {:?} after {:?}",
                    ended.code(),
                    ended.took
                )
            });
            Outcome::by(|| store.release(&mine)).granted()?;
            let began = Instant::now();
            for waiter in waiters {
                let ended = waiter.end_within(TURN)?;
                findings.check(ended.code() == Some(0), || {
                    let when = if is_early { "before" } else { "during" };
                    format!(
                        "a queue mark corrupted to {mark:#x} {when} a grant ({kind}): \
                         a waiter ends with {:?} after {:?}: {}",
                        ended.code(),
                        ended.took,
                        ended.err.trim_end()
                    )
                });
            }
            longest = longest.max(began.elapsed());
            findings.count("queues with a corrupt mark", 1);
        }
    }
    findings.figure(
        format!("longest time until {WAITERS} waiters of a corrupt queue were done ({kind})"),
        format!("{} ms", longest.as_millis()),
    );
    Ok(())
}

/// Returns the number of locked tickets of the file at `path`, by `/proc/locks`: proc(5).
fn tickets(path: &Path) -> Result<usize> {
    const FIRST_TICKET: u64 = (1 << 62) + (1 << 61);

    let inode = fs::metadata(path)?.ino();
    let locks = fs::read_to_string("/proc/locks")?;
    let waiting = locks.lines().filter(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let is_its = words
            .get(5)
            .is_some_and(|it| it.ends_with(&format!(":{inode}")));
        let first = words.get(6).and_then(|it| it.parse().ok());
        is_its && first.is_some_and(|first: u64| first >= FIRST_TICKET)
    });
    Ok(waiting.count())
}
