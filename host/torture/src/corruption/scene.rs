//! A lock whose file is corrupted, and the checks of its operations.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use verrou::Claim;

use super::{BOOT_AT, FILE_BYTES};
use crate::results::Findings;
use crate::store_call::{BoxedStore, Kind, Outcome, claim, forge_slots, ignore_absent, overwrite};

/// The state of the lock whose file is corrupted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Situation {
    HeldLease,
    LeaseHeldFirst,
    LeaseHeldFirstSinceStart,
    DetachedLease,
    FreeLease,
    HeldLock,
    LockHeldFirst,
    FreeLock,
}

impl Situation {
    pub(super) const ALL: [Self; 8] = [
        Self::HeldLease,
        Self::LeaseHeldFirst,
        Self::LeaseHeldFirstSinceStart,
        Self::DetachedLease,
        Self::FreeLease,
        Self::HeldLock,
        Self::LockHeldFirst,
        Self::FreeLock,
    ];

    fn kind(self) -> Kind {
        match self {
            Self::HeldLock | Self::LockHeldFirst | Self::FreeLock => Kind::File,
            _ => Kind::Lease,
        }
    }

    fn is_held(self) -> bool {
        !matches!(self, Self::FreeLease | Self::FreeLock)
    }

    pub(super) fn description(self) -> &'static str {
        match self {
            Self::HeldLease => "a held lease",
            Self::LeaseHeldFirst => "a lease that is held for the first time",
            Self::LeaseHeldFirstSinceStart => {
                "a lease that is held for the first time since the boot"
            }
            Self::DetachedLease => "a detached lease",
            Self::FreeLease => "a free lease",
            Self::HeldLock => "a held lock",
            Self::LockHeldFirst => "a lock that is held for the first time",
            Self::FreeLock => "a free lock",
        }
    }
}

/// A lock in a [`Situation`], whose file is corrupted again and again.
pub(super) struct Scene {
    situation: Situation,
    directory: PathBuf,
    path: PathBuf,
    holder: BoxedStore,
    held: Claim,
    other: BoxedStore,
    wanted: Claim,
    /// The last fencing token that was granted.
    fence: u64,
    pub(super) whole: Vec<u8>,
}

impl Scene {
    pub(super) fn new(situation: Situation, directory: &Path) -> Result<Self> {
        let kind = situation.kind();
        let (mut holder, other) = (kind.open(directory)?, kind.open(directory)?);
        let held = claim("lock", 1)?.ephemeral(situation != Situation::DetachedLease);
        let take = |store: &BoxedStore| Outcome::by(|| store.acquire(&held)).granted();
        let give = |store: &BoxedStore| Outcome::by(|| store.release(&held)).granted();
        let mut fence = take(&holder)?;
        let path = kind.only_file(directory)?;
        match situation {
            Situation::LeaseHeldFirst | Situation::LockHeldFirst => {}
            Situation::LeaseHeldFirstSinceStart => {
                give(&holder)?;
                let mut earlier = fs::read(&path)?;
                forge_slots(&mut earlier, BOOT_AT, &[0xab; 16]);
                overwrite(&path, &earlier)?;
                holder = kind.open(directory)?;
                fence = take(&holder)?;
            }
            _ => {
                give(&holder)?;
                fence = take(&holder)?;
            }
        }
        if !situation.is_held() {
            give(&holder)?;
        }
        let whole = fs::read(&path)?;
        ensure!(
            whole.len() == FILE_BYTES,
            "a lock file does not have {FILE_BYTES} bytes"
        );
        Ok(Self {
            situation,
            directory: directory.to_owned(),
            path,
            holder,
            held,
            other,
            wanted: claim("lock", 2)?,
            fence,
            whole,
        })
    }

    /// Corrupts the file, checks all operations, and restores the file.
    pub(super) fn corrupt_and_check(
        &self,
        findings: &mut Findings,
        known_errors: &mut BTreeSet<String>,
        corruption: &dyn Fn() -> String,
        bytes: &[u8],
    ) -> Result<()> {
        overwrite(&self.path, bytes)?;
        self.check_operations(findings, known_errors, corruption)?;
        Ok(overwrite(&self.path, &self.whole)?)
    }

    /// Runs the operations on the corrupt file, and tries, once for each kind of error, the remedy
    /// that the error names.
    fn check_operations(
        &self,
        findings: &mut Findings,
        known_errors: &mut BTreeSet<String>,
        corruption: &dyn Fn() -> String,
    ) -> Result<()> {
        let is_held = self.situation.is_held();
        let outcome = Outcome::by(|| self.other.acquire(&self.wanted));
        match &outcome {
            Outcome::Granted(fence) => {
                findings.check(!is_held, || {
                    format!("{self}, {}: granted to another owner", corruption())
                });
                findings.check(*fence > self.fence, || {
                    format!(
                        "{self}, {}: fencing token {fence} after {}",
                        corruption(),
                        self.fence
                    )
                });
            }
            Outcome::Refused => findings.check(is_held, || {
                format!("{self}, {}: refused without a holder", corruption())
            }),
            _ => {}
        }
        self.check_message(findings, &outcome, corruption, "acquire");
        if matches!(outcome, Outcome::Granted(_)) {
            let given = Outcome::by(|| self.other.release(&self.wanted));
            self.check_message(findings, &given, corruption, "release");
            return Ok(());
        }
        let operations: [(&str, Outcome); 3] = [
            ("extend", Outcome::by(|| self.holder.extend(&self.held))),
            (
                "extend by another owner",
                Outcome::by(|| self.other.extend(&self.wanted)),
            ),
            (
                "inspect",
                Outcome::by(|| {
                    let held = self.other.holders(&self.wanted.name)?.pop();
                    // Converted to a reply, for the common check.
                    Ok(
                        held.map_or(verrou::Acquired::BUSY, |_| verrou::Acquired::Granted {
                            fence: None,
                        }),
                    )
                }),
            ),
        ];
        for (operation, outcome) in &operations {
            self.check_message(findings, outcome, corruption, operation);
        }
        if let Outcome::Error(text) = outcome {
            let sort: String = text.chars().filter(|char| !char.is_ascii_digit()).collect();
            if known_errors.insert(sort) {
                self.recover(findings, corruption)?;
            }
        }
        Ok(())
    }

    /// Checks that the operation did not panic, and that its error names the file.
    fn check_message(
        &self,
        findings: &mut Findings,
        outcome: &Outcome,
        corruption: &dyn Fn() -> String,
        operation: &str,
    ) {
        match outcome {
            Outcome::Panicked(panic) => {
                findings.violation(format!(
                    "{self}, {}: {operation} panicked: {panic}",
                    corruption()
                ));
            }
            Outcome::Error(text) => {
                findings.check(text.contains(&*self.path.to_string_lossy()), || {
                    format!(
                        "{self}, {}: {operation} does not name the file: {text}",
                        corruption()
                    )
                });
            }
            Outcome::Granted(_) | Outcome::Refused => {}
        }
    }

    /// Tries the remedy that the errors name: moving the file away, and retrying.
    fn recover(&self, findings: &mut Findings, corruption: &dyn Fn() -> String) -> Result<()> {
        let away = self.directory.join("moved");
        fs::rename(&self.path, &away)?;
        match Outcome::by(|| self.other.acquire(&self.wanted)) {
            Outcome::Granted(fence) => {
                findings.check(fence > self.fence, || {
                    format!(
                        "{self}, {}, after moving the file away: fencing token {fence} after {}",
                        corruption(),
                        self.fence
                    )
                });
                if self.situation.is_held() {
                    let outcome = Outcome::by(|| self.holder.extend(&self.held));
                    findings.check(outcome == Outcome::Refused, || {
                        format!(
                            "{self}, {}, after moving the file away: extend by its holder: {outcome:?}",
                            corruption()
                        )
                    });
                }
                Outcome::by(|| self.other.release(&self.wanted)).granted()?;
            }
            outcome => findings.violation(format!(
                "{self}, {}: moving the file away does not help: {outcome:?}",
                corruption()
            )),
        }
        fs::remove_file(&self.path).or_else(ignore_absent)?;
        fs::rename(&away, &self.path)?;
        findings.count("remedies tried", 1);
        Ok(())
    }

    /// Checks that the lock is in its original state after the file was restored.
    pub(super) fn end(&self, findings: &mut Findings) -> Result<()> {
        if self.situation.is_held() {
            let outcome = Outcome::by(|| self.other.acquire(&self.wanted));
            findings.check(outcome == Outcome::Refused, || {
                format!("{self}, restored: acquire by another owner: {outcome:?}")
            });
            Outcome::by(|| self.holder.release(&self.held)).granted()?;
        }
        let fence = Outcome::by(|| self.other.acquire(&self.wanted)).granted()?;
        findings.check(fence > self.fence, || {
            format!(
                "{self}, restored: fencing token {fence} after {}",
                self.fence
            )
        });
        Ok(())
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.situation.description())
    }
}
