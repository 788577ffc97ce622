//! Process IDs that are reused, and records with another process's ID.

use std::fs;
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::holder::open_by_kind;
use super::neighbours::Namespace;
use crate::child_process::{self, Running};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim, forge_slots, overwrite};

/// Tests the reuse of a process ID, in a PID namespace, where the next ID can be chosen.
pub(super) fn reused_pid(setting: &Setting, findings: &mut Findings) -> Result<()> {
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

/// Tests that the process ID in a record is only for display: a live holder's record with another
/// ID, and a dead holder's record with a live process's ID.
pub(super) fn forged_pid(setting: &Setting, findings: &mut Findings) -> Result<()> {
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
