//! A clock that tests advance.

use alloc::sync::Arc;
use core::fmt;
use core::future::{self, Future};
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::Poll;
use core::time::Duration;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use crate::blocking::Host;
use crate::nonblocking::AsyncHost;
use crate::time::{Clock, Timestamp};

/// A blocking and async host for tests, which advances its time instead of sleeping.
///
/// Clones share one clock. A sleep advances it to the sleep's end at once, after it has yielded to
/// other threads or tasks. Its random numbers are distinct, but predictable.
#[derive(Clone)]
pub struct TestClock(Arc<Inner>);

struct Inner {
    moved: Mutex<Duration>,
    started: Option<Instant>,
}

impl TestClock {
    const START: Duration = Duration::from_secs(1_000);
    /// 2025-11-23, 10:00 UTC.
    const WALL_START: Duration = Duration::from_secs(489_970 * 60 * 60);

    /// Makes a clock that stands still until it is advanced.
    ///
    /// Not for stores that wait by a clock of their own: no time would pass here while they wait.
    pub fn still() -> Self {
        Self::with(None)
    }

    /// Makes a clock that runs like the machine's, and can be advanced.
    pub fn running() -> Self {
        Self::with(Some(Instant::now()))
    }

    fn with(started: Option<Instant>) -> Self {
        let moved = Mutex::default();
        Self(Arc::new(Inner { moved, started }))
    }

    /// Lets `time` pass.
    pub fn advance(&self, time: Duration) {
        *self.moved() += time;
    }

    /// Returns the time that has passed since this clock was made.
    pub fn elapsed(&self) -> Duration {
        *self.moved() + self.ran()
    }

    /// Advances the clock until `elapsed` has passed, if it has not yet.
    fn reach(&self, elapsed: Duration) {
        let mut moved = self.moved();
        *moved = elapsed.saturating_sub(self.ran()).max(*moved);
    }

    fn ran(&self) -> Duration {
        self.0
            .started
            .map_or(Duration::ZERO, |start| start.elapsed())
    }

    fn moved(&self) -> MutexGuard<'_, Duration> {
        self.0.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp::new(Self::START + self.elapsed())
    }
}

impl Host for TestClock {
    fn sleep(&self, pause: Duration) {
        let end = self.elapsed() + pause;
        thread::yield_now();
        self.reach(end);
    }

    fn random(&self) -> [u8; 16] {
        static DRAWN: AtomicU64 = AtomicU64::new(1);
        let drawn = u128::from(DRAWN.fetch_add(1, Ordering::Relaxed));
        // Any odd factor keeps them apart; this one also spreads them over the bits.
        drawn
            .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
            .to_le_bytes()
    }

    fn wall_clock(&self) -> Duration {
        Self::WALL_START + self.elapsed()
    }
}

impl AsyncHost for TestClock {
    fn sleep(&self, pause: Duration) -> impl Future<Output = ()> {
        let end = self.elapsed() + pause;
        let mut yielded = false;
        future::poll_fn(move |context| {
            if yielded {
                self.reach(end);
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    fn random(&self) -> [u8; 16] {
        Host::random(self)
    }

    fn wall_clock(&self) -> Duration {
        Host::wall_clock(self)
    }
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestClock").field(&self.elapsed()).finish()
    }
}
