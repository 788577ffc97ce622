//! Other objects in the place of a lock file, and removed files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::Plant;
use super::scene::Scene;
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim, fast_directory, overwrite, try_acquire};

impl Scene {
    /// Replaces the file by directories, devices, links and other objects.
    pub(super) fn replace_file(&self, findings: &mut Findings, setting: &Setting) -> Result<()> {
        let aside = self.directory.join("aside");
        let victim = setting.directory.join("victim");
        fs::write(&victim, "precious")?;
        let another = self.directory.join("another");
        fs::write(&another, &self.whole)?;
        let node = |kind, device| {
            let mode = Mode::RUSR | Mode::WUSR;
            Ok(mknodat(CWD, &self.path, kind, mode, device)?)
        };
        let plants: [Plant<'_>; 12] = [
            ("a directory", &|| Ok(fs::create_dir(&self.path)?)),
            ("a pipe", &|| node(FileType::Fifo, 0)),
            ("the null device", &|| {
                node(FileType::CharacterDevice, makedev(1, 3))
            }),
            ("the full device", &|| {
                node(FileType::CharacterDevice, makedev(1, 7))
            }),
            ("a terminal", &|| {
                node(FileType::CharacterDevice, makedev(5, 0))
            }),
            ("a block device without a disk", &|| {
                node(FileType::BlockDevice, makedev(7, 99))
            }),
            ("a socket", &|| {
                UnixListener::bind(&self.path).map(drop).context("bind")
            }),
            ("a symbolic link to a file", &|| {
                Ok(symlink(&victim, &self.path)?)
            }),
            ("a symbolic link to the lock's own file", &|| {
                Ok(symlink(&aside, &self.path)?)
            }),
            ("a symbolic link to nowhere", &|| {
                Ok(symlink("/nowhere/at/all", &self.path)?)
            }),
            ("a symbolic link to itself", &|| {
                Ok(symlink(&self.path, &self.path)?)
            }),
            ("a hard link", &|| Ok(fs::hard_link(&another, &self.path)?)),
        ];
        for (what, plant) in plants {
            fs::rename(&self.path, &aside)?;
            if let Err(err) = plant() {
                findings.not_done(format!("{what} in a lock file's place: {err:#}"));
                fs::rename(&aside, &self.path)?;
                continue;
            }
            self.check_operations(findings, &mut BTreeSet::new(), &|| {
                format!("replaced by {what}")
            })?;
            if fs::symlink_metadata(&self.path)?.is_dir() {
                fs::remove_dir(&self.path)?;
            } else {
                fs::remove_file(&self.path)?;
            }
            fs::rename(&aside, &self.path)?;
            // The holder continues with its original contents.
            overwrite(&self.path, &self.whole)?;
            findings.count("other objects in a lock file's place", 1);
        }
        let kept = fs::read_to_string(&victim)?;
        findings.check(kept == "precious", || {
            format!("{self}: the target of a link was written: {kept:?}")
        });
        Ok(())
    }
}

/// Tests the removal of lock files and of the fence counter.
pub(super) fn removed_files(setting: &Setting, findings: &mut Findings, kind: Kind) -> Result<()> {
    let other_kind = match kind {
        Kind::Lease => Kind::File,
        Kind::File => Kind::Lease,
    };
    // The removed files, and the kind of file in which another lock has a later fencing token.
    let cases: [(&str, bool, bool, Option<Kind>); 6] = [
        ("the file", true, false, None),
        ("the counter", false, true, None),
        (
            "the counter, with a later fencing token in another lock file",
            false,
            true,
            Some(kind),
        ),
        (
            "both, with a later fencing token in another lock file",
            true,
            true,
            Some(kind),
        ),
        (
            "both, with a later fencing token in a lock file of the other kind",
            true,
            true,
            Some(other_kind),
        ),
        (
            "the file, with a later fencing token in a lock file of the other kind",
            true,
            false,
            Some(other_kind),
        ),
    ];
    for (what, file, counter, witness) in cases {
        for is_held in [true, false] {
            let directory = fast_directory(setting)?;
            let (one, two) = (kind.open(directory.path())?, kind.open(directory.path())?);
            let (mine, wanted) = (claim("lock", 1)?, claim("lock", 2)?);
            let mut fence = 0;
            for _ in 0..3 {
                fence = Outcome::by(|| one.acquire(&mine)).granted()?;
                Outcome::by(|| one.release(&mine)).granted()?;
            }
            if is_held {
                fence = Outcome::by(|| one.acquire(&mine)).granted()?;
            }
            let path = kind.only_file(directory.path())?;
            let witness = match witness {
                Some(kind) => {
                    let store = kind.open(directory.path())?;
                    try_acquire(&*store, "witness", 9)?.granted()?;
                    Some(store)
                }
                None => None,
            };
            if file {
                fs::remove_file(&path)?;
            }
            if counter {
                fs::remove_file(directory.path().join("fences"))?;
            }
            let words = if is_held {
                "of a held lock"
            } else {
                "of a free lock"
            };
            let outcome = Outcome::by(|| two.acquire(&wanted));
            let is_right = match &outcome {
                Outcome::Granted(next) => (file || !is_held) && *next > fence,
                Outcome::Refused => !file && is_held,
                Outcome::Error(_) | Outcome::Panicked(_) => false,
            };
            findings.check(is_right, || {
                format!(
                    "removed {words}: {what} ({kind}): acquire: {outcome:?} after fencing token \
                     {fence}"
                )
            });
            if is_held && file {
                let outcome = Outcome::by(|| one.extend(&mine));
                findings.check(outcome == Outcome::Refused, || {
                    format!("removed {words}: {what} ({kind}): extend by its holder: {outcome:?}")
                });
                let outcome = Outcome::by(|| one.release(&mine));
                findings.check(outcome == Outcome::Refused, || {
                    format!("removed {words}: {what} ({kind}): release by its holder: {outcome:?}")
                });
                let outcome = Outcome::by(|| two.extend(&wanted));
                findings.check(matches!(outcome, Outcome::Granted(_)), || {
                    format!(
                        "removed {words}: {what} ({kind}): extend by the next holder: {outcome:?}"
                    )
                });
            }
            drop(witness);
            findings.count("removals", 1);
        }
    }
    Ok(())
}
