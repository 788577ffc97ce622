//! Corruption of lock files, and the errors that it causes.
//!
//! However a file is corrupted, a held lock is granted to no other owner, no fencing token is
//! granted twice, and each operation either succeeds or names the corrupt file in its error.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use verrou::{Claim, Ttl};

use crate::child_process::{self, Running};
use crate::results::{Findings, Part, Setting};
use crate::store_call::{
    BoxedStore, Kind, Outcome, SLOT_BYTES, SLOTS, claim, fast_directory, forge, forge_slots,
    ignore_absent, overwrite, try_acquire,
};

pub(crate) const PART: Part = Part {
    name: "corruption",
    about: "corrupts lock files in every way, byte by byte",
    share: 0,
    run,
};

/// A description of an object in the place of a lock file, and a function that creates it.
type Plant<'a> = (&'a str, &'a dyn Fn() -> Result<()>);

/// The name of an operation, and a function that runs it.
type NamedOperation<'a> = (&'a str, &'a dyn Fn() -> Outcome);

/// The length of a lock file, in bytes.
const FILE_BYTES: usize = 4096;

/// The range of the queue's mark and touch: numbers without a checksum.
const QUEUE: Range<usize> = 1536..1552;

/// The offset of the boot ID in a record.
const BOOT_AT: usize = 48;

/// The number of random corruptions in each situation.
const RANDOM_CORRUPTIONS: u32 = 1000;

fn run(setting: &Setting, findings: &mut Findings) -> Result<()> {
    let mut rng = Rng::with_seed(setting.seed);
    setting.progress.set_length(Situation::ALL.len() as u64 + 6);
    for situation in Situation::ALL {
        setting.progress.set_message(situation.description());
        let directory = fast_directory(setting)?;
        let scene = Scene::new(situation, &directory.path().join("locks"))?;
        scene.truncate(findings)?;
        scene.flip(findings)?;
        scene.scatter(findings, &mut rng)?;
        scene.replace_bytes(findings)?;
        scene.end(findings)?;
        // A file system in memory may not support devices.
        let scene = Scene::new(situation, &setting.directory.join(format!("{situation:?}")))?;
        scene.replace_file(findings, setting)?;
        scene.end(findings)?;
        setting.progress.inc(1);
    }
    for kind in Kind::BOTH {
        forged_records(setting, findings, kind)?;
        lost_power(setting, findings, &mut rng, kind)?;
        removed_files(setting, findings, kind)?;
        corrupt_queue(setting, findings, kind)?;
        setting.progress.inc(2);
    }
    corrupt_counter(setting, findings, &mut rng)?;
    setting.progress.inc(2);
    Ok(())
}

/// The state of the lock whose file is corrupted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Situation {
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
    const ALL: [Self; 8] = [
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

    fn description(self) -> &'static str {
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
struct Scene {
    situation: Situation,
    directory: PathBuf,
    path: PathBuf,
    holder: BoxedStore,
    held: Claim,
    other: BoxedStore,
    wanted: Claim,
    /// The last fencing token that was granted.
    fence: u64,
    whole: Vec<u8>,
}

impl Scene {
    fn new(situation: Situation, directory: &Path) -> Result<Self> {
        let kind = situation.kind();
        let (mut holder, other) = (kind.open(directory)?, kind.open(directory)?);
        let held = Claim {
            ephemeral: situation != Situation::DetachedLease,
            ..claim("lock", 1)?
        };
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

    /// Truncates the file to every length.
    fn truncate(&self, findings: &mut Findings) -> Result<()> {
        let mut known_errors = BTreeSet::new();
        for length in 0..self.whole.len() {
            let corruption = || format!("truncated to {length} bytes");
            self.corrupt_and_check(
                findings,
                &mut known_errors,
                &corruption,
                &self.whole[..length],
            )?;
        }
        findings.count(
            "lengths that files were truncated to",
            self.whole.len() as u64,
        );
        Ok(())
    }

    /// Changes every byte alone.
    fn flip(&self, findings: &mut Findings) -> Result<()> {
        let mut known_errors = BTreeSet::new();
        let mut bytes = self.whole.clone();
        for at in 0..bytes.len() {
            for pattern in [0x01, 0x80, 0xff] {
                bytes[at] ^= pattern;
                let corruption = || format!("with byte {at} changed by {pattern:#x}");
                self.corrupt_and_check(findings, &mut known_errors, &corruption, &bytes)?;
                bytes[at] = self.whole[at];
            }
        }
        findings.count("single bytes changed", 3 * bytes.len() as u64);
        Ok(())
    }

    /// Changes several bytes at once, most of them in fields of the file.
    fn scatter(&self, findings: &mut Findings, rng: &mut Rng) -> Result<()> {
        let mut known_errors = BTreeSet::new();
        for _ in 0..RANDOM_CORRUPTIONS {
            let mut bytes = self.whole.clone();
            let mut changed = Vec::new();
            for _ in 0..rng.usize(2..=16) {
                let places = [
                    0..24,
                    SLOTS[0]..SLOTS[0] + 120,
                    SLOTS[1]..SLOTS[1] + 120,
                    QUEUE,
                ];
                let at = match rng.usize(0..8) {
                    chosen @ 0..4 => rng.usize(places[chosen].clone()),
                    4 => 2048,
                    _ => rng.usize(..bytes.len()),
                };
                bytes[at] = rng.u8(..);
                changed.push(at);
            }
            let corruption = || format!("with the bytes {changed:?} changed");
            self.corrupt_and_check(findings, &mut known_errors, &corruption, &bytes)?;
        }
        findings.count(
            "times several bytes were changed",
            RANDOM_CORRUPTIONS.into(),
        );
        Ok(())
    }

    /// Replaces the contents by those of other versions, programs and locks, and by lost sectors.
    fn replace_bytes(&self, findings: &mut Findings) -> Result<()> {
        let with = |at: usize, value: &[u8]| {
            let mut bytes = self.whole.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            bytes
        };
        let slot = |at: usize| &self.whole[SLOTS[at]..SLOTS[at] + SLOT_BYTES];
        let other_kind = match self.situation.kind() {
            Kind::Lease => Kind::File,
            Kind::File => Kind::Lease,
        };
        let mut corruptions = vec![
            ("of version 2", with(8, &2_u32.to_le_bytes())),
            ("of the maximum version", with(8, &u32::MAX.to_le_bytes())),
            ("of version 0", with(8, &0_u32.to_le_bytes())),
            ("of zeros", vec![0; FILE_BYTES]),
            ("of ones", vec![0xff; FILE_BYTES]),
            ("of another program", b"#!/bin/sh\nexit 1\n".to_vec()),
            (
                "of another program, of the same length",
                b"another\n".repeat(FILE_BYTES / 8),
            ),
            (
                "with an additional byte",
                [self.whole.clone(), vec![0]].concat(),
            ),
            ("twice as long", self.whole.repeat(2)),
            ("with both slots corrupt", {
                let bytes = with(SLOTS[0] + 200, &[0x5a]);
                [&bytes[..SLOTS[1] + 200], &[0x5a], &bytes[SLOTS[1] + 201..]].concat()
            }),
            (
                "of another kind of lock",
                self.bytes_of(other_kind, "lock")?,
            ),
            (
                "of another lock",
                self.bytes_of(self.situation.kind(), "another")?,
            ),
            ("with two copies of the first slot", with(SLOTS[1], slot(0))),
            (
                "with two copies of the second slot",
                with(SLOTS[0], slot(1)),
            ),
            (
                "with its slots exchanged",
                with(SLOTS[0], &[slot(1), slot(0)].concat()),
            ),
            ("with a mark of ones", with(QUEUE.start, &[0xff; 8])),
            (
                "with mark and touch of ones",
                with(QUEUE.start, &[0xff; 16]),
            ),
        ];
        for start in (0..FILE_BYTES).step_by(SLOT_BYTES) {
            for (what, byte) in [("a sector of zeros", 0), ("a sector of ones", 0xff)] {
                // Only one sector at a time: without both records the file would look like a new one,
                // and one of two records is enough.
                corruptions.push((what, with(start, &[byte; SLOT_BYTES])));
            }
        }
        findings.count(
            "times the whole contents were changed",
            corruptions.len() as u64,
        );
        let mut known_errors = BTreeSet::new();
        for (what, bytes) in corruptions {
            self.corrupt_and_check(findings, &mut known_errors, &|| what.to_owned(), &bytes)?;
        }
        // A sparse file.
        let look = |findings: &mut Findings, length: u64| -> Result<()> {
            File::options()
                .write(true)
                .open(&self.path)?
                .set_len(length)?;
            let corruption = || format!("grown to {length} bytes");
            self.check_operations(findings, &mut BTreeSet::new(), &corruption)?;
            findings.count("times the whole contents were changed", 1);
            Ok(overwrite(&self.path, &self.whole)?)
        };
        for length in [FILE_BYTES as u64 + 1, 1 << 20, 2 << 30] {
            look(findings, length)?;
        }
        Ok(())
    }

    /// Returns the contents of the file of another lock, from a directory of its own.
    fn bytes_of(&self, kind: Kind, name: &str) -> Result<Vec<u8>> {
        let directory = tempfile::tempdir_in(
            self.directory
                .parent()
                .context("the directory has a parent")?,
        )?;
        let store = kind.open(directory.path())?;
        try_acquire(&*store, name, 3)?.granted()?;
        Ok(fs::read(kind.only_file(directory.path())?)?)
    }

    /// Replaces the file by directories, devices, links and other objects.
    fn replace_file(&self, findings: &mut Findings, setting: &Setting) -> Result<()> {
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

    /// Corrupts the file, checks all operations, and restores the file.
    fn corrupt_and_check(
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
                    let held = self.other.inspect(&self.wanted.name)?;
                    // Converted to a reply, for the common check.
                    Ok(
                        held.map_or(verrou::Reply::REFUSED, |_| verrou::Reply::Granted {
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
    fn end(&self, findings: &mut Findings) -> Result<()> {
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

/// Tests records with extreme numbers and a correct checksum: no operation may panic or hang.
fn forged_records(setting: &Setting, findings: &mut Findings, kind: Kind) -> Result<()> {
    const COUNTED: u64 = 1 << 62;
    const NUMBERS: [u64; 9] = [
        0,
        1,
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        (1 << 60) - 1,
        COUNTED - 1,
        COUNTED - 2,
        COUNTED - 3,
    ];
    // Each field, with its offset and its length in bytes.
    let fields: [(&str, usize, usize); 13] = [
        ("flags", 4, 4),
        ("sequence", 8, 8),
        ("fence", 16, 8),
        ("last fence", 24, 8),
        ("time namespace", 64, 8),
        ("ttl", 72, 8),
        ("end", 80, 8),
        ("end by the wall clock", 88, 8),
        ("grant by the wall clock", 96, 8),
        ("process", 104, 4),
        ("length of host", 108, 2),
        ("length of command", 110, 2),
        ("served", 496, 8),
    ];
    for (field, at, width) in fields {
        for number in NUMBERS {
            for also in [None, Some((16, 24)), Some((24, 16))] {
                let directory = fast_directory(setting)?;
                let store = kind.open(directory.path())?;
                let (mine, wanted) = (claim("lock", 1)?, claim("lock", 2)?);
                Outcome::by(|| store.acquire(&mine)).granted()?;
                Outcome::by(|| store.release(&mine)).granted()?;
                let path = kind.only_file(directory.path())?;
                let mut bytes = fs::read(&path)?;
                forge_slots(&mut bytes, at, &number.to_le_bytes()[..width]);
                if let Some((to, _)) = also {
                    // The number also as a fencing token.
                    forge_slots(&mut bytes, to, &number.to_le_bytes());
                }
                // The sequence numbers of the two slots stay consecutive.
                if field == "sequence" {
                    let before = number.wrapping_sub(1);
                    let [one, two] = if number % 2 == 1 {
                        SLOTS
                    } else {
                        [SLOTS[1], SLOTS[0]]
                    };
                    forge(&mut bytes[one..one + SLOT_BYTES], 8, &before.to_le_bytes());
                    forge(&mut bytes[two..two + SLOT_BYTES], 8, &number.to_le_bytes());
                }
                overwrite(&path, &bytes)?;
                let store = kind.open(directory.path())?;
                let looked =
                    Outcome::by(|| store.inspect(&mine.name).map(|_| verrou::Reply::REFUSED));
                let was_corrupt = matches!(looked, Outcome::Error(_));
                let operations = [
                    Outcome::by(|| store.extend(&mine)),
                    Outcome::by(|| store.acquire(&wanted)),
                    Outcome::by(|| store.extend(&wanted)),
                    Outcome::by(|| store.inspect(&wanted.name).map(|_| verrou::Reply::REFUSED)),
                    Outcome::by(|| store.release(&wanted)),
                    Outcome::by(|| store.evict(&wanted.name, None)),
                    Outcome::by(|| store.acquire(&mine)),
                    Outcome::by(|| store.release(&mine)),
                ];
                let in_directory = directory.path().to_string_lossy().into_owned();
                for outcome in operations {
                    let is_named = match &outcome {
                        Outcome::Panicked(_) => false,
                        // The error about a lease of another time namespace names the lock instead.
                        Outcome::Error(text) => {
                            text.contains(&in_directory) || text.contains("`lock`")
                        }
                        Outcome::Granted(_) | Outcome::Refused => true,
                    };
                    findings.check(is_named, || {
                        format!("a {kind} record with {number:#x} as its {field}: {outcome:?}")
                    });
                }
                // A readable record stays readable: an operation whose counter would overflow
                // changes nothing.
                let store = kind.open(directory.path())?;
                let text =
                    Outcome::by(|| store.inspect(&mine.name).map(|_| verrou::Reply::REFUSED));
                findings.check(was_corrupt || !matches!(text, Outcome::Error(_)), || {
                    format!("a {kind} record with {number:#x} as its {field}, in the end: {text:?}")
                });
                findings.count("forged records", 1);
            }
        }
    }
    Ok(())
}

/// Tests torn writes at a power loss: any part of the last write is on the disk after the reboot.
fn lost_power(setting: &Setting, findings: &mut Findings, rng: &mut Rng, kind: Kind) -> Result<()> {
    let directory = setting.directory.join(format!("lost-power-{kind}"));
    let (mine, wanted) = (claim("lock", 1)?, claim("lock", 2)?);
    let detached = Claim {
        ephemeral: false,
        ttl: Ttl::new(Duration::from_hours(1))?,
        ..claim("lock", 3)?
    };
    let store = kind.open(&directory)?;
    let mut fence = Outcome::by(|| store.acquire(&mine)).granted()?;
    let path = kind.only_file(&directory)?;
    let first = fs::read(&path)?;
    let operations: [NamedOperation<'_>; 7] = [
        ("an extension", &|| Outcome::by(|| store.extend(&mine))),
        ("a release", &|| Outcome::by(|| store.release(&mine))),
        ("a grant", &|| Outcome::by(|| store.acquire(&mine))),
        ("a second release", &|| Outcome::by(|| store.release(&mine))),
        ("a detached grant", &|| {
            Outcome::by(|| store.acquire(&detached))
        }),
        ("a force-release", &|| match kind {
            Kind::Lease => Outcome::by(|| store.evict(&mine.name, None)),
            Kind::File => Outcome::by(|| store.release(&detached)),
        }),
        ("a last grant", &|| Outcome::by(|| store.acquire(&mine))),
    ];
    let mut before = first;
    for (number, (what, operation)) in operations.into_iter().enumerate() {
        if let Outcome::Granted(granted) = operation() {
            fence = fence.max(granted);
        }
        let after = fs::read(&path)?;
        let changed: Vec<_> = (0..FILE_BYTES)
            .filter(|&at| before[at] != after[at])
            .collect();
        let sectors: BTreeSet<_> = changed.iter().map(|at| at / SLOT_BYTES).collect();
        // Every subset of the sectors, and prefixes and suffixes of the changed bytes.
        let mut mixes: Vec<(String, Vec<u8>)> = Vec::new();
        for chosen in 0..1_u32 << sectors.len() {
            let mut bytes = before.clone();
            for (bit, sector) in sectors.iter().enumerate() {
                if chosen >> bit & 1 == 1 {
                    let sector = sector * SLOT_BYTES..(sector + 1) * SLOT_BYTES;
                    bytes[sector.clone()].copy_from_slice(&after[sector]);
                }
            }
            mixes.push((format!("sectors {chosen:b} of {sectors:?}"), bytes));
        }
        let cuts: Vec<usize> = if number == 2 {
            (0..changed.len()).collect()
        } else {
            (0..16.min(changed.len()))
                .map(|_| rng.usize(..changed.len()))
                .collect()
        };
        for cut in cuts {
            for (is_head, part) in [(true, &changed[..cut]), (false, &changed[cut..])] {
                let mut bytes = before.clone();
                for &at in part {
                    bytes[at] = after[at];
                }
                let end = if is_head { "first" } else { "last" };
                mixes.push((format!("the {end} {} changed bytes", part.len()), bytes));
            }
        }
        for (mix, mut bytes) in mixes {
            // The record is of the earlier boot; a slot with a correct checksum gets a new one.
            for start in SLOTS {
                let slot = &mut bytes[start..start + SLOT_BYTES];
                let is_whole = slot[..4] == crc32c::crc32c(&slot[4..]).to_le_bytes();
                if is_whole {
                    forge(slot, BOOT_AT, &[0xab; 16]);
                }
            }
            let torn = fast_directory(setting)?;
            fs::copy(directory.join("fences"), torn.path().join("fences"))?;
            let there = torn.path().join(path.file_name().context("a name")?);
            fs::write(&there, &bytes)?;
            let reopened = kind.open(torn.path())?;
            match Outcome::by(|| reopened.acquire(&wanted)) {
                Outcome::Granted(granted) => findings.check(granted > fence, || {
                    format!(
                        "power lost in {what} ({kind}), {mix}: fencing token {granted} after \
                         {fence}"
                    )
                }),
                outcome => findings.violation(format!(
                    "power lost in {what} ({kind}), {mix}: acquire of a free lock: {outcome:?}"
                )),
            }
            findings.count("torn writes", 1);
        }
        before = after;
    }
    Ok(())
}

/// Tests the removal of lock files and of the fence counter.
fn removed_files(setting: &Setting, findings: &mut Findings, kind: Kind) -> Result<()> {
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

/// Tests a corrupt queue mark, which has no checksum: all waiters must still acquire the lock.
fn corrupt_queue(setting: &Setting, findings: &mut Findings, kind: Kind) -> Result<()> {
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

/// Returns corruptions of the counter file `whole`: truncated, changed, forged and foreign
/// contents.
fn counter_corruptions(whole: &[u8], rng: &mut Rng) -> Vec<(String, Vec<u8>)> {
    let mut corruptions: Vec<(String, Vec<u8>)> = Vec::new();
    for length in 0..whole.len() {
        corruptions.push((
            format!("truncated to {length} bytes"),
            whole[..length].to_vec(),
        ));
    }
    for at in 0..whole.len() {
        for pattern in 1..=u8::MAX {
            let mut bytes = whole.to_vec();
            bytes[at] ^= pattern;
            corruptions.push((format!("with byte {at} changed by {pattern:#x}"), bytes));
        }
    }
    for _ in 0..RANDOM_CORRUPTIONS {
        let mut bytes = whole.to_vec();
        for _ in 0..rng.usize(2..8) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        if bytes != whole {
            corruptions.push((format!("changed to {bytes:?}"), bytes));
        }
    }
    let of_number = |number: u64| {
        let mut bytes = whole.to_vec();
        bytes[16..].copy_from_slice(&number.to_le_bytes());
        let checksum = crc32c::crc32c(&bytes[12..]);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    };
    for number in [u64::MAX, u64::MAX - 16_383] {
        corruptions.push((format!("with the number {number}"), of_number(number)));
    }
    corruptions.push(("with an additional byte".to_owned(), [whole, &[0]].concat()));
    corruptions.push(("of zeros".to_owned(), vec![0; whole.len()]));
    corruptions.push((
        "of the length of a lock file".to_owned(),
        vec![0; FILE_BYTES],
    ));
    corruptions.push(("of another program".to_owned(), b"17\n".to_vec()));
    corruptions
}

/// Tests corruption of the counter that allots fencing tokens to all locks of a directory.
fn corrupt_counter(setting: &Setting, findings: &mut Findings, rng: &mut Rng) -> Result<()> {
    for kind in Kind::BOTH {
        let place = fast_directory(setting)?;
        let directory = place.path().join("locks");
        let store = kind.open(&directory)?;
        let known = claim("known", 1)?;
        let mut fence = Outcome::by(|| store.acquire(&known)).granted()?;
        let path = directory.join("fences");
        let whole = fs::read(&path)?;
        let corruptions = counter_corruptions(&whole, rng);
        let mut check_operations = |findings: &mut Findings, corruption: &str| -> Result<()> {
            let outcome = try_acquire(&*store, "new", 2)?;
            let is_named =
                matches!(&outcome, Outcome::Error(text) if text.contains(&*path.to_string_lossy()));
            findings.check(is_named, || {
                format!("a fence counter {corruption} ({kind}): acquire of a new lock: {outcome:?}")
            });
            // Locks with an allotment of fencing tokens do not need the counter.
            Outcome::by(|| store.release(&known)).granted()?;
            match Outcome::by(|| store.acquire(&known)) {
                Outcome::Granted(next) if next > fence => fence = next,
                outcome => findings.violation(format!(
                    "a fence counter {corruption} ({kind}): acquire with allotted tokens: \
                     {outcome:?} after {fence}"
                )),
            }
            findings.count("corruptions of the fence counter", 1);
            Ok(())
        };
        for (corruption, bytes) in &corruptions {
            overwrite(&path, bytes)?;
            check_operations(findings, corruption)?;
        }
        File::options().write(true).open(&path)?.set_len(2 << 30)?;
        check_operations(findings, "grown to 2 GiB")?;

        let aside = directory.join("aside");
        overwrite(&path, &whole)?;
        fs::rename(&path, &aside)?;
        let node = |kind, device| Ok(mknodat(CWD, &path, kind, Mode::RUSR | Mode::WUSR, device)?);
        let plants: [Plant<'_>; 7] = [
            ("replaced by a directory", &|| Ok(fs::create_dir(&path)?)),
            ("replaced by a pipe", &|| node(FileType::Fifo, 0)),
            ("replaced by the null device", &|| {
                node(FileType::CharacterDevice, makedev(1, 3))
            }),
            ("replaced by a socket", &|| {
                Ok(UnixListener::bind(&path).map(drop)?)
            }),
            ("replaced by a link to nowhere", &|| {
                Ok(symlink("/nowhere/at/all", &path)?)
            }),
            ("replaced by a link to itself", &|| {
                Ok(symlink(&aside, &path)?)
            }),
            ("with a hard link", &|| Ok(fs::hard_link(&aside, &path)?)),
        ];
        for (corruption, plant) in plants {
            if let Err(err) = plant() {
                findings.not_done(format!("a fence counter {corruption}: {err:#}"));
                continue;
            }
            check_operations(findings, corruption)?;
            if fs::symlink_metadata(&path)?.is_dir() {
                fs::remove_dir(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        }

        // The remedy: the store recreates a counter that was moved away.
        let outcome = try_acquire(&*store, "new", 2)?;
        findings.check(
            matches!(outcome, Outcome::Granted(next) if next > fence),
            || {
                format!(
                    "a fence counter moved away ({kind}): acquire of a new lock: {outcome:?} after \
                 {fence}"
                )
            },
        );
    }
    Ok(())
}
