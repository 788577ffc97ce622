//! The machine's clocks, sleep and randomness.

use std::cell::RefCell;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use verrou::blocking::Host;
use verrou::{Clock, Timestamp};

/// This machine, as a lock's [`Host`].
///
/// Its [`Clock`] is the time since the machine started, suspend included (`CLOCK_BOOTTIME`), on
/// Linux; elsewhere it is the nearest the standard library has.
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
    /// When the operating system has no random numbers to give: there is no safe lock without.
    fn random(&self) -> [u8; 16] {
        RANDOM.with_borrow_mut(Random::take)
    }

    fn wall_clock(&self) -> Duration {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
    }
}

thread_local! {
    static RANDOM: RefCell<Random> = const { RefCell::new(Random::NONE) };
}

/// Random bits for some owners: asking the system for those of one takes as long.
struct Random {
    bits: [[u8; 16]; 16],
    /// How many are left.
    left: usize,
    /// A forked child has a copy, which is not its own to use.
    process: u32,
}

impl Random {
    const NONE: Self = Self {
        bits: [[0; 16]; 16],
        left: 0,
        process: 0,
    };

    fn take(&mut self) -> [u8; 16] {
        // Asked of the system, however the process was made: two with one owner would both hold.
        let process = std::process::id();
        if self.left == 0 || self.process != process {
            getrandom::fill(self.bits.as_flattened_mut())
                .expect("the operating system gives random numbers");
            self.left = self.bits.len();
            self.process = process;
        }
        self.left -= 1;
        // Nobody finds them here later.
        std::mem::take(&mut self.bits[self.left])
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
