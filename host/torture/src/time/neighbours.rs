//! Programs in other namespaces, and checks of locks between them and this program.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use verrou::blocking::Host;
use verrou::{Clock, Fence, SerializedLock, Ttl};
use verrou_host::System;

use crate::child_process::{self, DEADLINE, Ended, Running};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, catch_panic, claim};

/// A command that runs programs in new namespaces.
pub(super) struct Namespace {
    what: String,
    words: Vec<String>,
}

impl Namespace {
    /// Returns a command that runs `unshare(1)` with `options`, and the shell code `before` inside;
    /// returns `None`, and records why, if this machine does not support these namespaces.
    pub(super) fn new(
        findings: &mut Findings,
        what: &str,
        options: &[&str],
        before: &str,
    ) -> Option<Self> {
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
    pub(super) fn command(&self, program: &Path, words: &[&str]) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(&self.words[1..]).arg(program).args(words);
        command.stdin(Stdio::null());
        command
    }
}

/// Checks of locks between this program's namespaces and another one's.
pub(super) struct Neighbours<'a> {
    pub(super) namespace: &'a Namespace,
    pub(super) verrou: PathBuf,
    pub(super) setting: &'a Setting,
    pub(super) kind: Kind,
}

impl Neighbours<'_> {
    pub(super) fn inside(&self, directory: &Path, words: &[&str]) -> Result<Ended> {
        let store = self.kind.url(directory);
        let words = [&["--store", &store], words].concat();
        child_process::run(&mut self.namespace.command(&self.verrou, &words))
    }

    pub(super) fn outside(&self, directory: &Path, words: &[&str]) -> Result<Ended> {
        let store = self.kind.url(directory);
        let words = [&["--store", &store], words].concat();
        child_process::run(Command::new(&self.verrou).args(&words))
    }

    pub(super) fn check(&self, findings: &mut Findings, what: &str, ended: &Ended, code: i32) {
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

    pub(super) fn check_outcome(
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
    pub(super) fn live_holders(&self, findings: &mut Findings) -> Result<()> {
        let directory = tempfile::tempdir_in(&self.setting.directory)?;
        let directory = directory.path();
        for ttl in [Ttl::NEVER, Ttl::new(Duration::from_hours(1))?] {
            let store = self.kind.open(directory)?;
            let mine = claim("lock", 1)?.with_ttl(ttl);
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
            let holder = store.holders(&mine.name)?.pop();
            let kept = holder.and_then(|holder| holder.fence).map(Fence::get);
            self.check_outcome(
                findings,
                "extend outside",
                &outcome,
                matches!(outcome, Outcome::Granted(_)) && kept == Some(fence),
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
            let seen = catch_panic(|| store.holders(&wanted.name));
            findings.check(
                matches!(&seen, Ok(Ok(holders)) if !holders.is_empty()),
                || {
                    format!(
                        "{} ({}): inspect outside: {seen:?}",
                        self.namespace.what, self.kind
                    )
                },
            );
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
    pub(super) fn detached_leases(&self, findings: &mut Findings) -> Result<()> {
        if self.kind == Kind::File {
            return Ok(());
        }
        let directory = tempfile::tempdir_in(&self.setting.directory)?;
        let directory = directory.path();
        let store = self.kind.open(directory)?;
        let mine = claim("lock", 1)?
            .with_ttl(Ttl::new(Duration::from_hours(1))?)
            .ephemeral(false);
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
