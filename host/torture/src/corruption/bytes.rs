//! Changed bytes of a lock file: truncation, single bytes, and random bytes.

use std::collections::BTreeSet;

use anyhow::Result;
use fastrand::Rng;

use super::scene::Scene;
use super::{QUEUE, RANDOM_CORRUPTIONS};
use crate::results::Findings;
use crate::store_call::SLOTS;

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
}
