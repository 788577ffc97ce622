//! Suspended machines: leases expire while `CLOCK_BOOTTIME` advances.

use std::time::Duration;

use anyhow::Result;
use verrou::blocking::LockFactory;
use verrou::{Error, Loss};

use super::shifted_clock::{ShiftedClock, open_with};
use crate::results::{Findings, Setting};
use crate::store_call::Kind;

/// Tests suspensions, during which `CLOCK_BOOTTIME` advances: leases expire, and their holders get
/// an error.
pub(super) fn suspend(setting: &Setting, findings: &mut Findings) -> Result<()> {
    const TTL: Duration = Duration::from_secs(30);

    for kind in Kind::BOTH {
        for jump in [
            TTL / 2,
            TTL,
            TTL + Duration::from_nanos(1),
            Duration::from_hours(24 * 365),
        ] {
            let directory = tempfile::tempdir_in(&setting.directory)?;
            let clock = ShiftedClock::default();
            let here = open_with(kind, directory.path(), &clock)?;
            let there = open_with(kind, directory.path(), &clock)?;
            let held = LockFactory::new(&*here, clock.clone());
            let other = LockFactory::new(&*there, clock.clone());
            let (held, other) = (
                held.create_lock("lock", TTL)?,
                other.create_lock("lock", TTL)?,
            );
            let fence = held.acquire()?.fence();
            clock.advance(jump);
            let is_over = jump >= TTL;
            let what = format!("suspended for {jump:?} with a lease of {TTL:?} ({kind})");
            findings.check(held.is_expired() == is_over, || {
                format!(
                    "{what}: the holder's lease has expired: {}",
                    held.is_expired()
                )
            });
            // A flock(2) lock stays the holder's until its release.
            let taken = other.try_acquire();
            let may_be_taken = is_over && kind == Kind::Lease;
            findings.check(taken.is_ok() == may_be_taken, || {
                format!("{what}: acquire by another owner: {taken:?}")
            });
            if let Ok(taken) = &taken {
                findings.check(taken.fence() > fence, || {
                    format!("{what}: fencing token {:?} after {fence:?}", taken.fence())
                });
            }
            let extended = held.extend(held.ttl());
            findings.check(extended.is_ok() != is_over, || {
                format!("{what}: extend by its holder: {extended:?}")
            });
            let released = held.release();
            findings.check(released.is_ok() != is_over, || {
                format!("{what}: release by its holder: {released:?}")
            });
            if taken.is_ok() {
                let extended = other.extend(other.ttl());
                findings.check(extended.is_ok(), || {
                    format!("{what}: extend by the next holder: {extended:?}")
                });
            } else {
                let taken = other.try_acquire();
                findings.check(taken.is_ok(), || {
                    format!("{what}: acquire by another owner after the release: {taken:?}")
                });
            }
            other.release()?;
            // The auto-renewal revives the lease, unless another owner was granted the lock
            // meanwhile.
            for is_wanted in [false, true] {
                let guard = held.guard()?;
                let fence = guard.fence();
                let mut jumped = false;
                let mut taken = false;
                let kept = guard.keep(|_, at_most| {
                    if jumped {
                        return std::ops::ControlFlow::Break(());
                    }
                    clock.advance(if is_over { jump } else { at_most });
                    taken = is_wanted && other.try_acquire().is_ok() && other.release().is_ok();
                    jumped = true;
                    std::ops::ControlFlow::Continue(())
                });
                let is_right = match &kept {
                    Ok(()) => !taken && !guard.is_expired() && guard.fence() == fence,
                    Err(Error::Lost { loss, .. }) => taken && *loss == Loss::Expired,
                    Err(_) => false,
                };
                findings.check(is_right, || {
                    format!(
                        "{what}: auto-renewal, lock granted meanwhile: {taken}, returned {kept:?}"
                    )
                });
                findings.check(taken == (is_wanted && may_be_taken), || {
                    format!("{what}: another owner was granted the lock: {taken}")
                });
                let released = guard.release();
                findings.check(released.is_ok() != taken, || {
                    format!("{what}: release after auto-renewal: {released:?}")
                });
            }
            findings.count("suspended machines", 1);
        }
    }
    Ok(())
}
