//! A corrupt fence counter.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use anyhow::Result;
use fastrand::Rng;
use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::{FILE_BYTES, Plant, RANDOM_CORRUPTIONS};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, claim, fast_directory, overwrite, try_acquire};

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
pub(super) fn corrupt_counter(
    setting: &Setting,
    findings: &mut Findings,
    rng: &mut Rng,
) -> Result<()> {
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
