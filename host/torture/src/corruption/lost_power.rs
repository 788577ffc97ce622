//! Records that were torn by a power loss.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use verrou::Ttl;

use super::{BOOT_AT, FILE_BYTES};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, SLOT_BYTES, SLOTS, claim, fast_directory, forge};

/// The name of an operation, and a function that runs it.
type NamedOperation<'a> = (&'a str, &'a dyn Fn() -> Outcome);

/// Tests torn writes at a power loss: any part of the last write is on the disk after the reboot.
pub(super) fn lost_power(
    setting: &Setting,
    findings: &mut Findings,
    rng: &mut Rng,
    kind: Kind,
) -> Result<()> {
    let directory = setting.directory.join(format!("lost-power-{kind}"));
    let (mine, wanted) = (claim("lock", 1)?, claim("lock", 2)?);
    let detached = claim("lock", 3)?
        .with_ttl(Ttl::new(Duration::from_hours(1))?)
        .ephemeral(false);
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
            Kind::Lease => Outcome::by(|| store.force_release(&mine.name, None)),
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
