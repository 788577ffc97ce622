//! Timers and sleeps on the clock that leases use. That clock advances while the machine is suspended;
//! the waits of the standard library and of tokio use a clock that does not.

#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sync::mpsc::{self, Receiver, Sender};

/// A pollable timer that advances while the machine is suspended: a timerfd(2) on `CLOCK_BOOTTIME`.
#[doc(hidden)]
#[derive(Debug)]
#[cfg(target_os = "linux")]
pub struct Alarm(OwnedFd);

/// A type without values: this system has no such timer.
#[doc(hidden)]
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is none")]
#[cfg(not(target_os = "linux"))]
pub enum Alarm {}

#[cfg(target_os = "linux")]
impl Alarm {
    /// Returns a disarmed timer; `None` where the system cannot create one.
    pub fn new() -> Option<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC);
        timer.ok().map(Self)
    }

    /// Makes the descriptor readable after `length`, and not before. Returns whether the timer was set.
    pub fn set(&self, length: Duration) -> bool {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        // A zero value would disarm the timer.
        let length = length.max(Duration::from_nanos(1));
        let Ok(it_value) = Timespec::try_from(length) else {
            return false;
        };
        let once = Itimerspec {
            it_interval: Timespec::default(),
            it_value,
        };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once).is_ok()
    }
}

#[cfg(target_os = "linux")]
impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(not(target_os = "linux"))]
impl Alarm {
    /// Returns `None`.
    pub fn new() -> Option<Self> {
        None
    }

    /// Is never called, as no value of this type exists.
    pub fn set(&self, _length: Duration) -> bool {
        match *self {}
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
impl std::os::fd::AsFd for Alarm {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match *self {}
    }
}

/// The interruptible sleep of one thread.
pub(crate) struct Rest(Inner<Receiver<()>>);

/// Interrupts the current sleep of a thread, or the next one.
#[derive(Clone)]
pub(crate) struct Ender(Inner<Sender<()>>);

#[derive(Clone)]
enum Inner<T> {
    #[cfg(all(target_os = "linux", not(verrou_shuttle)))]
    Polled(std::sync::Arc<Polled>),
    Channel(T),
}

/// Returns an interruptible sleep for a thread, and the handle that interrupts it.
pub(crate) fn rests() -> (Ender, Rest) {
    #[cfg(all(target_os = "linux", not(verrou_shuttle)))]
    if let Some(polled) = Polled::new() {
        let polled = std::sync::Arc::new(polled);
        let other = std::sync::Arc::clone(&polled);
        return (Ender(Inner::Polled(other)), Rest(Inner::Polled(polled)));
    }
    let (sender, receiver) = mpsc::channel();
    (
        Ender(Inner::Channel(sender)),
        Rest(Inner::Channel(receiver)),
    )
}

impl Rest {
    /// Sleeps until interrupted, but at most for `at_most`, including time for which the machine is
    /// suspended.
    pub(crate) fn take(&self, at_most: Duration) {
        match &self.0 {
            #[cfg(all(target_os = "linux", not(verrou_shuttle)))]
            Inner::Polled(polled) => polled.rest(at_most),
            Inner::Channel(ended) => drop(ended.recv_timeout(at_most)),
        }
    }
}

impl Ender {
    pub(crate) fn end(&self) {
        match &self.0 {
            #[cfg(all(target_os = "linux", not(verrou_shuttle)))]
            Inner::Polled(polled) => polled.end(),
            // Sending fails only when the receiver is dropped: then no thread sleeps.
            Inner::Channel(rest) => drop(rest.send(())),
        }
    }
}

#[cfg(all(target_os = "linux", not(verrou_shuttle)))]
struct Polled {
    ended: OwnedFd,
    alarm: Alarm,
}

#[cfg(all(target_os = "linux", not(verrou_shuttle)))]
impl Polled {
    fn new() -> Option<Self> {
        use rustix::event::{EventfdFlags, eventfd};

        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Some(Self {
            ended: eventfd(0, flags).ok()?,
            alarm: Alarm::new()?,
        })
    }

    fn rest(&self, at_most: Duration) {
        use rustix::event::{PollFd, PollFlags, poll};

        let readable = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut awaited = vec![readable(self.ended.as_fd())];
        // If the length is too long for the kernel, sleep without a time limit.
        if self.alarm.set(at_most) {
            awaited.push(readable(self.alarm.as_fd()));
        }
        // A signal ends the sleep early.
        let _ = poll(&mut awaited, None);
        let _ = rustix::io::read(&self.ended, &mut [0; 8]);
    }

    fn end(&self) {
        // Writing fails only when the counter is near its maximum: then the sleep is interrupted
        // already.
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
    }
}

/// Sleeps of tasks. One thread wakes all of them.
#[cfg(all(target_os = "linux", feature = "tokio"))]
pub(crate) mod tasks {
    use std::collections::BTreeMap;
    use std::pin::Pin;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;
    use std::{io, thread};

    use rustix::event::{PollFd, PollFlags, poll};
    use verrou::{Clock, Timestamp};

    use super::Alarm;
    use crate::process::PerProcess;
    use crate::system::System;

    /// How long the thread stays alive without sleeping tasks.
    const LINGER: Duration = Duration::from_secs(1);

    static SLEEPERS: PerProcess<Option<Sleepers>> = PerProcess::new();

    struct Sleepers {
        alarm: Alarm,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        /// The wakers, by the time at which each is due.
        ends: BTreeMap<(Timestamp, u64), Waker>,
        last: u64,
        is_served: bool,
    }

    impl Sleepers {
        fn of_this_process() -> Option<&'static Self> {
            let make = || {
                let alarm = Alarm::new()?;
                let state = Mutex::default();
                Some(Self { alarm, state })
            };
            SLEEPERS.get_or_init(make).as_ref()
        }

        fn state(&self) -> MutexGuard<'_, State> {
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Sets the timer to the earliest due time in `state`, as seen from `now`.
        fn set(&self, state: &State, now: Timestamp) {
            let first = state.ends.keys().next();
            let length = first.map_or(LINGER, |(end, _)| end.saturating_since(now));
            // A longer time makes no difference: cap it at a length that the timer accepts.
            let _ = self.alarm.set(length.min(Duration::from_secs(1 << 32)));
        }

        fn serve(&self) {
            loop {
                let mut awaited = [PollFd::new(&self.alarm, PollFlags::IN)];
                let _ = poll(&mut awaited, None);
                let mut state = self.state();
                let now = System.now();
                let later = state.ends.split_off(&(now, u64::MAX));
                let due = std::mem::replace(&mut state.ends, later);
                let is_over = due.is_empty() && state.ends.is_empty();
                state.is_served = !is_over;
                if !is_over {
                    self.set(&state, now);
                }
                drop(state);
                due.into_values().for_each(Waker::wake);
                if is_over {
                    return;
                }
            }
        }
    }

    /// Completes when `pause` has passed, including time for which the machine is suspended.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when it cannot create a timer or a thread.
    pub(crate) fn sleep(pause: Duration) -> impl Future<Output = io::Result<()>> {
        Sleep {
            end: System.now().saturating_add(pause),
            number: None,
        }
    }

    struct Sleep {
        end: Timestamp,
        /// The number of this sleep in the map of wakers.
        number: Option<u64>,
    }

    impl Future for Sleep {
        type Output = io::Result<()>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            let now = System.now();
            if self.end <= now {
                return Poll::Ready(Ok(()));
            }
            let Some(sleepers) = Sleepers::of_this_process() else {
                return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
            };
            // Clone the waker, and drop the old one, outside the lock: both run foreign code.
            let waker = context.waker().clone();
            let mut state = sleepers.state();
            let number = self.number.unwrap_or_else(|| {
                state.last += 1;
                state.last
            });
            self.number = Some(number);
            let key = (self.end, number);
            let before = state.ends.insert(key, waker);
            if state
                .ends
                .first_key_value()
                .is_some_and(|(it, _)| *it == key)
            {
                sleepers.set(&state, now);
            }
            let mut failed = None;
            if !state.is_served {
                let served = thread::Builder::new()
                    .name("verrou-sleep".to_owned())
                    .spawn(|| sleepers.serve());
                state.is_served = served.is_ok();
                failed = served.err();
            }
            drop(state);
            drop(before);
            failed.map_or(Poll::Pending, |err| Poll::Ready(Err(err)))
        }
    }

    impl Drop for Sleep {
        fn drop(&mut self) {
            let Some((number, sleepers)) = self.number.zip(Sleepers::of_this_process()) else {
                return;
            };
            let mut state = sleepers.state();
            let waker = state.ends.remove(&(self.end, number));
            if waker.is_some() && state.ends.is_empty() {
                sleepers.set(&state, System.now());
            }
            drop(state);
            drop(waker);
        }
    }
}
