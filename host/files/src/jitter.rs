//! Pauses of random length.

use std::time::Duration;

/// Returns a random duration between half of `pause` and all of it, so that waiters do not check at the
/// same time.
pub(crate) fn jitter(pause: Duration) -> Duration {
    let roll = getrandom::u32().unwrap_or_default();
    pause.mul_f64(0.5 + 0.5 * f64::from(roll) / f64::from(u32::MAX))
}
