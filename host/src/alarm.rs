//! Waiting by the clock that leases go by, which counts while the machine is suspended. The waits of the
//! standard library and of tokio go by one that does not.

#[cfg(target_os = "linux")]
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use crate::sync::mpsc::{self, Receiver, Sender};

/// A timer that can be polled, and goes on while the machine is suspended: a timerfd(2) of
/// `CLOCK_BOOTTIME`.
#[doc(hidden)]
#[derive(Debug)]
#[cfg(target_os = "linux")]
pub struct Alarm(OwnedFd);

/// There is none on this system.
#[doc(hidden)]
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "there is none")]
#[cfg(not(target_os = "linux"))]
pub enum Alarm {}

#[cfg(target_os = "linux")]
impl Alarm {
    /// A timer that is not set; `None` where the system has none to give.
    pub fn new() -> Option<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};

        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC);
        timer.ok().map(Self)
    }

    /// Lets the descriptor be readable after `length`, and not before; returns whether it can.
    pub fn set(&self, length: Duration) -> bool {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

        // Zero would turn it off.
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
    /// `None`.
    pub fn new() -> Option<Self> {
        None
    }

    /// Is never called.
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

/// The rests of one thread.
pub(crate) struct Rest(Inner<Receiver<()>>);

/// Ends the rest of a thread, or the next one.
#[derive(Clone)]
pub(crate) struct Ender(Inner<Sender<()>>);

#[derive(Clone)]
enum Inner<T> {
    #[cfg(all(target_os = "linux", not(verrou_shuttle)))]
    Polled(std::sync::Arc<Polled>),
    Channel(T),
}

/// Rests for a thread, and what ends them.
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
    /// Rests until it is ended, but at most this long, also while the machine is suspended.
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
            // Nobody rests any more where that fails.
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
        // Longer than the kernel can count is for ever.
        if self.alarm.set(at_most) {
            awaited.push(readable(self.alarm.as_fd()));
        }
        // Interrupted, it ends early.
        let _ = poll(&mut awaited, None);
        let _ = rustix::io::read(&self.ended, &mut [0; 8]);
    }

    fn end(&self) {
        // It fails only where it was ended very often already.
        let _ = rustix::io::write(&self.ended, &1_u64.to_ne_bytes());
    }
}

/// Sleeps of tasks: one thread serves them all.
#[cfg(all(target_os = "linux", feature = "tokio"))]
pub(crate) mod tasks {
    use std::collections::BTreeMap;
    use std::io;
    use std::pin::Pin;
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::task::{Context, Poll, Waker};
    use std::thread;
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags, poll};
    use verrou::{Clock, Timestamp};

    use super::Alarm;
    use crate::System;
    use crate::process::PerProcess;

    /// The thread stays for so long when nobody sleeps.
    const LINGER: Duration = Duration::from_secs(1);

    static SLEEPERS: PerProcess<Option<Sleepers>> = PerProcess::new();

    struct Sleepers {
        alarm: Alarm,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        /// By when each is to be woken.
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

        /// Lets the thread go on when the first is to be woken, of those that are there at `now`.
        fn set(&self, state: &State, now: Timestamp) {
            let first = state.ends.keys().next();
            let length = first.map_or(LINGER, |(end, _)| end.saturating_since(now));
            // What is too long for it is for ever.
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

    /// Ends when `pause` has passed, also while the machine is suspended.
    ///
    /// # Errors
    ///
    /// What the system says when it has no timer, or no thread, to give.
    pub(crate) fn sleep(pause: Duration) -> impl Future<Output = io::Result<()>> {
        Sleep {
            end: System.now().saturating_add(pause),
            number: None,
        }
    }

    struct Sleep {
        end: Timestamp,
        /// Which of the sleepers it is.
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
            // Cloned, and the one before dropped, while nothing is locked: both may be anyone's code.
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
