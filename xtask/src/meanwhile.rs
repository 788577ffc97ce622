//! Runs steps of `cargo xtask test` in processes of their own, concurrently with other steps.

use std::env;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, panic};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::{NotHere, project};

/// The exit code of a step that cannot run on this machine: `EX_UNAVAILABLE` of sysexits.h.
pub(crate) const UNAVAILABLE: u8 = 69;

/// Precedes the reason why a step failed.
pub(crate) const REASON: &str = "xtask: ";

/// The path of this program, as it is before Cargo replaces the file, which changes what `current_exe` returns.
static PROGRAM: LazyLock<Option<PathBuf>> = LazyLock::new(|| env::current_exe().ok());

/// The share of the processor's time for a step.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Priority {
    Normal,
    /// The time that all other processes leave.
    Idle,
}

/// A step that runs in a process of its own.
pub(crate) struct Meanwhile {
    pub(crate) what: &'static str,
    log: PathBuf,
    ended: JoinHandle<io::Result<(ExitStatus, Duration)>>,
}

impl Meanwhile {
    /// Starts the step `what` by `cargo xtask step WHAT ARGUMENTS`.
    pub(crate) fn start(
        shell: &Shell,
        what: &'static str,
        arguments: &[String],
        priority: Priority,
    ) -> Result<Self> {
        let log = project()
            .join("target/steps")
            .join(what.replace(' ', "-"))
            .with_extension("log");
        shell.create_dir(project().join("target/steps"))?;
        let (out, began) = (File::create(&log)?, Instant::now());
        let program = PROGRAM.as_ref().context("this program has no path")?;
        let has_idle = cfg!(target_os = "linux") && priority == Priority::Idle;
        let command = if has_idle {
            cmd!(shell, "chrt --idle 0 {program} step {what} {arguments...}")
        } else {
            cmd!(shell, "{program} step {what} {arguments...}")
        };
        let mut child = Command::from(command)
            .stdin(Stdio::null())
            .stderr(out.try_clone()?)
            .stdout(out)
            .spawn()
            .with_context(|| format!("cannot start the step `{what}`"))?;
        let ended = thread::spawn(move || Ok((child.wait()?, began.elapsed())));
        Ok(Self { what, log, ended })
    }

    /// Waits for the step to end, and prints its output. Returns its duration and its result.
    pub(crate) fn join(self) -> Result<(Duration, Result<()>)> {
        let ended = self.ended.join();
        let (status, took) = ended.unwrap_or_else(|panicked| panic::resume_unwind(panicked))?;
        let output = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        print!("{output}");
        Ok((took, result(status, &output)))
    }
}

fn result(status: ExitStatus, output: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let reason = output
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(REASON));
    let reason = reason.map_or_else(|| status.to_string(), str::to_owned);
    if status.code() == Some(UNAVAILABLE.into()) {
        return Err(NotHere(reason).into());
    }
    bail!(reason)
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn failed_step_reports_its_last_reason() {
        let failed = |code: i32, output: &str| {
            let status = ExitStatus::from_raw(code << 8);
            result(status, output).unwrap_err()
        };
        let output = "xtask: a warning\nxtask: no Node.js here\n";
        assert_eq!(failed(1, output).to_string(), "no Node.js here");
        assert!(!failed(1, output).is::<NotHere>());
        assert!(failed(UNAVAILABLE.into(), output).is::<NotHere>());
        assert_eq!(failed(101, "").to_string(), "exit status: 101");
        assert!(result(ExitStatus::from_raw(0), "xtask: a warning").is_ok());
    }
}
