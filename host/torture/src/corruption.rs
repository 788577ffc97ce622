//! Corruption of lock files, and the errors that it causes.
//!
//! However a file is corrupted, a held lock is granted to no other owner, no fencing token is
//! granted twice, and each operation either succeeds or names the corrupt file in its error.

mod scene;
mod bytes;
mod files;
mod records;
mod queue;
mod counter;

use std::ops::Range;

use anyhow::Result;
use fastrand::Rng;

use self::scene::{Scene, Situation};
use crate::results::{Findings, Part, Setting};
use crate::store_call::{Kind, fast_directory};

pub(crate) const PART: Part = Part {
    name: "corruption",
    about: "corrupts lock files in every way, byte by byte",
    share: 0,
    run,
};

/// A description of an object in the place of a lock file, and a function that creates it.
type Plant<'a> = (&'a str, &'a dyn Fn() -> Result<()>);

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
        records::forged_records(setting, findings, kind)?;
        records::lost_power(setting, findings, &mut rng, kind)?;
        files::removed_files(setting, findings, kind)?;
        queue::corrupt_queue(setting, findings, kind)?;
        setting.progress.inc(2);
    }
    counter::corrupt_counter(setting, findings, &mut rng)?;
    setting.progress.inc(2);
    Ok(())
}
