//! The shortest and the longest TTL, and TTLs out of range.

use std::time::Duration;

use anyhow::Result;
use verrou::Ttl;

use super::shifted_clock::{ShiftedClock, open_with};
use crate::results::{Findings, Setting};
use crate::store_call::{Kind, Outcome, catch_panic, claim};

/// Tests the shortest and the longest TTL, and TTLs out of range.
pub(super) fn ttls(setting: &Setting, findings: &mut Findings) -> Result<()> {
    for millis in [0, u64::MAX, 9_223_372_036_855] {
        let refused = Ttl::new(Duration::from_millis(millis));
        findings.check(refused.is_err(), || {
            format!("a TTL of {millis} ms: {refused:?}")
        });
        let text = millis.to_string();
        findings.check(text.parse::<Ttl>().is_err(), || {
            format!("`{text}` without a unit is accepted as a TTL")
        });
    }
    let longest = Ttl::new(Ttl::MAX)?;
    for kind in Kind::BOTH {
        // The time of the clock at the grant, up to the end of its range.
        let starts = [
            0,
            u64::MAX / 2,
            u64::MAX - 3_000_000_000_000_000,
            u64::MAX / 2 + 1,
        ];
        for start in starts {
            for ttl in [Ttl::new(Duration::from_millis(1))?, longest, Ttl::NEVER] {
                let directory = tempfile::tempdir_in(&setting.directory)?;
                let clock = ShiftedClock::default();
                let (one, two) = (
                    open_with(kind, directory.path(), &clock)?,
                    open_with(kind, directory.path(), &clock)?,
                );
                clock.advance(Duration::from_nanos(start));
                for ephemeral in [true, false] {
                    let mine = claim("lock", 1)?.with_ttl(ttl).ephemeral(ephemeral);
                    let wanted = claim("lock", 2)?;
                    let what = format!("a TTL of {ttl} at {start} ns ({kind})");
                    let fence = Outcome::by(|| one.acquire(&mine)).granted()?;
                    let is_short = ttl.duration() == Some(Duration::from_millis(1));
                    if is_short {
                        clock.advance(Duration::from_millis(1));
                    } else {
                        clock.advance(Duration::from_secs(1));
                    }
                    let outcome = Outcome::by(|| two.acquire(&wanted));
                    let is_free = is_short && kind == Kind::Lease;
                    let is_right = match &outcome {
                        Outcome::Granted(next) => is_free && *next > fence,
                        Outcome::Refused => !is_free,
                        _ => false,
                    };
                    findings.check(is_right, || {
                        format!("{what}: acquire by another owner: {outcome:?}")
                    });
                    let outcome = Outcome::by(|| one.extend(&mine));
                    let is_right = match outcome {
                        Outcome::Granted(_) => !is_short,
                        Outcome::Refused => is_short,
                        _ => false,
                    };
                    findings.check(is_right, || {
                        format!("{what}: extend by its holder: {outcome:?}")
                    });
                    let shown = catch_panic(|| two.holders(&mine.name));
                    findings.check(matches!(shown, Ok(Ok(_))), || {
                        format!("{what}: inspect: {shown:?}")
                    });
                    for (store, claim) in [(&one, &mine), (&two, &wanted)] {
                        let outcome = Outcome::by(|| store.release(claim));
                        findings.check(
                            !matches!(outcome, Outcome::Panicked(_) | Outcome::Error(_)),
                            || format!("{what}: release: {outcome:?}"),
                        );
                    }
                    findings.count("TTLs", 1);
                }
            }
        }
    }
    Ok(())
}
