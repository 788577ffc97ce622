//! Corruption of lock files, byte by byte and at random, and the errors that it causes.
//!
//! However a file is corrupted, a held lock is granted to no other owner, no fencing token is
//! granted twice, and each operation either succeeds or names the corrupt file in its error.

mod scene;
mod bytes;
mod lost_power;

use std::ops::Range;

use anyhow::Result;
use fastrand::Rng;

use self::scene::{Scene, Situation};
use crate::results::{Findings, Part, Setting};
use crate::store_call::{Kind, fast_directory};

pub(crate) const PART: Part = Part {
    name: "corruption",
    about: "corrupts lock files byte by byte, at random, and by losses of power",
    share: 0,
    run,
};

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
    setting
        .progress
        .set_length((Situation::ALL.len() + Kind::BOTH.len()) as u64);
    for situation in Situation::ALL {
        setting.progress.set_message(situation.description());
        let directory = fast_directory(setting)?;
        let scene = Scene::new(situation, &directory.path().join("locks"))?;
        scene.truncate(findings)?;
        scene.flip(findings)?;
        scene.scatter(findings, &mut rng)?;
        scene.end(findings)?;
        setting.progress.inc(1);
    }
    for kind in Kind::BOTH {
        setting.progress.set_message("lost power");
        lost_power::lost_power(setting, findings, &mut rng, kind)?;
        setting.progress.inc(1);
    }
    Ok(())
}
