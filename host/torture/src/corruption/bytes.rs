//! Changed bytes of a lock file: truncation, single bytes, random bytes, and the whole contents.

use std::collections::BTreeSet;
use std::fs::{self, File};

use anyhow::{Context, Result};
use fastrand::Rng;

use super::scene::Scene;
use super::{FILE_BYTES, QUEUE, RANDOM_CORRUPTIONS};
use crate::results::Findings;
use crate::store_call::{Kind, SLOT_BYTES, SLOTS, overwrite, try_acquire};

impl Scene {
    /// Truncates the file to every length.
    pub(super) fn truncate(&self, findings: &mut Findings) -> Result<()> {
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
    pub(super) fn flip(&self, findings: &mut Findings) -> Result<()> {
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
    pub(super) fn scatter(&self, findings: &mut Findings, rng: &mut Rng) -> Result<()> {
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
    pub(super) fn replace_bytes(&self, findings: &mut Findings) -> Result<()> {
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
}
