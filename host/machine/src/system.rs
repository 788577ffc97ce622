//! The machine's clocks, sleep and randomness.

use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use verrou::blocking::Host;
use verrou::{Clock, Timestamp};

/// This machine, as a lock's [`Host`].
///
/// On Linux its [`Clock`] is the time since boot, including time for which the machine was suspended
/// (`CLOCK_BOOTTIME`); on other systems it is the monotonic clock of the standard library.
#[derive(Clone, Copy, Debug, Default)]
pub struct System;

impl Clock for System {
    fn now(&self) -> Timestamp {
        boot_time()
    }
}

impl Host for System {
    fn sleep(&self, pause: Duration) {
        thread::sleep(pause);
    }

    /// # Panics
    ///
    /// Panics when the operating system provides no random numbers: without them, no lock is safe.
    fn random(&self) -> [u8; 16] {
        // Owner tokens are never generated in advance: a copy of the process or of the machine would
        // contain the same token, and both copies would hold the lock. A system call costs 0.3 µs more than
        // a token from a buffer would, of the 6.2 µs that a file lock takes; from Linux 6.11 with
        // glibc 2.41 on, it is no system call.
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("random numbers from the operating system");
        bits
    }

    fn wall_clock(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

#[cfg(target_os = "linux")]
fn boot_time() -> Timestamp {
    use rustix::time::{ClockId, clock_gettime};

    let now = clock_gettime(mutant!(
        TimeToldByWallClock,
        ClockId::Realtime,
        ClockId::Boottime
    ));
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Timestamp::new(Duration::new(seconds, nanos))
}

#[cfg(not(target_os = "linux"))]
fn boot_time() -> Timestamp {
    use std::sync::OnceLock;
    use std::time::Instant;

    static START: OnceLock<Instant> = OnceLock::new();
    Timestamp::new(START.get_or_init(Instant::now).elapsed())
}
