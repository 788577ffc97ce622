//! The stages of a waiter, and the actions and pauses that follow from a stage and an observation. The
//! waiter's process makes the observations: this module performs no I/O.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::position::RESERVATION;
use crate::inotify::{Listener, Notification};
use crate::jitter::jitter;
use crate::open_files::OpenFile;
use crate::record::Version;

/// The longest time that any waiter sleeps without a check.
pub(super) const SAFETY_CHECK: Duration = Duration::from_secs(10);

/// The time between the checks of a waiter that cannot watch the lock's file.
pub(super) const BLIND_WAIT: Duration = Duration::from_millis(10);

/// The time in the queue after which a waiter also watches the end of the process before it.
pub(super) const SHORT_WAIT: Duration = Duration::from_millis(20);

/// The progress of a waiter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Other waiters of this process are before this one, and notify it when they leave.
    BehindLocal,
    /// The waiter is the first of this process, and waits for a write to its wake pipe.
    OnPipe { since: Instant },
    /// The waiter also waits for the end of the process with the ticket `before`.
    WatchingProcess { before: u64 },
    /// The waiter was woken through its wake pipe.
    Notified,
    /// The waiter is the head waiter, or the second waiter and was notified. It spins on the file, which had
    /// this version before it tried the lock.
    Spinning(Version),
    /// The waiter has spun, and polls, because it cannot watch the lock's file.
    Polling,
    /// The waiter has spun, and watches the lock's file.
    Watching {
        /// The version of the file at the last notification.
        version: Version,
        /// The number of tries since then.
        tries: u32,
    },
}

impl Stage {
    /// Returns whether the waiter may try the lock as the second waiter: if it was notified, or has just
    /// become the first of its process.
    pub(super) fn is_notified(self) -> bool {
        matches!(self, Self::BehindLocal | Self::Notified)
    }

    /// Returns the next step of the first waiter of a process that is in this stage. `may_try` states whether
    /// it is the head waiter, or the second waiter and was notified, and `is_held` whether the lock is held;
    /// `elapsed` returns the time since an instant.
    pub(super) fn step(
        self,
        may_try: bool,
        is_held: bool,
        elapsed: impl FnOnce(Instant) -> Duration,
    ) -> Step {
        match self {
            // The holder is the waiter before this one, or the last one before it.
            Self::Notified if may_try && is_held => Step::Spin,
            _ if may_try => Step::TryLock,
            Self::OnPipe { since } if SHORT_WAIT <= elapsed(since) => Step::WatchProcess,
            Self::WatchingProcess { .. } => Step::WatchProcess,
            Self::OnPipe { .. } => Step::StayOnPipe,
            _ => Step::BeginOnPipe,
        }
    }

    /// Returns the stage after `notification`, and the action: `then` if the waiter does not watch the file.
    /// `version` returns the version of the file now, if it can be read.
    pub(super) fn notified(
        self,
        notification: Notification,
        then: AfterWait,
        version: impl FnOnce() -> Option<Version>,
    ) -> (Self, AfterWait) {
        match self {
            Self::Watching {
                version: before, ..
            } => match version() {
                // A waiter has joined the queue.
                Some(now) if now == before && notification != Notification::Ended => {
                    (self, AfterWait::AskAgain)
                }
                now => {
                    let version = now.unwrap_or(before);
                    (Self::Watching { version, tries: 0 }, AfterWait::TryLock)
                }
            },
            Self::OnPipe { .. } | Self::WatchingProcess { .. }
                if notification != Notification::Advanced =>
            {
                (Self::Notified, then)
            }
            _ => (self, then),
        }
    }
}

/// The next step of the first waiter of a process that does not spin on the lock's file, nor watch it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Try to take the lock, and spin on the file afterwards.
    TryLock,
    /// Spin on the file.
    Spin,
    /// Begin to wait for a write to the wake pipe.
    BeginOnPipe,
    /// Continue to wait for a write to the wake pipe.
    StayOnPipe,
    /// Also watch the end of the process before this one.
    WatchProcess,
}

/// The next action of a waiter.
#[derive(Debug)]
pub(super) enum Next {
    /// Try to take the lock.
    TryLock,
    /// Spin for a short time on the file, which had this version, until the lock may be free; then call
    /// [`Queue::after_spin`](super::Queue::after_spin).
    Spin(Arc<OpenFile>, Version),
    /// Wait for a notification, but at most for `pause`; then do `on_notification`, or `then` if there was
    /// none.
    Wait {
        to: Arc<Listener>,
        pause: Duration,
        on_notification: AfterWait,
        then: AfterWait,
    },
    /// Sleep for this time, and try to take the lock.
    Sleep(Duration),
}

/// The action of a waiter after it has waited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum AfterWait {
    /// Try to take the lock.
    TryLock,
    /// Ask for the next action again.
    AskAgain,
}

/// Returns the longest time that a waiter behind `others` waiters sleeps. A waiter with a wake pipe
/// (`has_pipe`) is notified in time, so that it checks only in case other waiters are stopped or a
/// notification is lost.
pub(super) fn pause_behind(others: u64, has_pipe: bool) -> Duration {
    /// Shorter than the hand-off reservation of the waiter.
    const IN_TIME: Duration = Duration::from_millis(100);

    let (each, most) = if has_pipe {
        (RESERVATION, SAFETY_CHECK)
    } else {
        (BLIND_WAIT, IN_TIME)
    };
    let pause = u32::try_from(others).map_or(most, |others| each.saturating_mul(others));
    // Spread the checks of waiters that began to wait at the same time.
    let pause = pause.min(most);
    pause.saturating_sub(jitter(pause / 10))
}

/// The number of tries after a notification without a pause.
const IMMEDIATE_TRIES: u32 = 2;

/// The number of further tries, after pauses that double each time.
const TIMED_TRIES: u32 = 10;

/// Returns the pause before the next try after `tries` tries, or `None` after the last one. The kernel
/// reports a write, or the end of a process, shortly before the lock is free.
pub(super) fn pause_after(tries: u32) -> Option<Duration> {
    match tries.checked_sub(IMMEDIATE_TRIES) {
        _ if mutant!(LookedOnceAfterNews) && tries > 0 => None,
        None => Some(Duration::ZERO),
        Some(doubled) if doubled < TIMED_TRIES => Some(Duration::from_micros(50 << doubled)),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{CHANGING_BYTES, TOUCH_AT};

    /// Returns two versions of a file: before and after a touch.
    fn versions() -> [Version; 2] {
        [0, 1].map(|touch| {
            let mut bytes = [0; CHANGING_BYTES];
            bytes[TOUCH_AT] = touch;
            Version::of(&bytes)
        })
    }

    #[test]
    fn step_follows_from_stage_and_observation() {
        let [version, _] = versions();
        let on_pipe = Stage::OnPipe {
            since: Instant::now(),
        };
        let watching = Stage::WatchingProcess { before: 1 };
        let short = SHORT_WAIT.saturating_sub(Duration::from_nanos(1));
        let table = [
            // The stage, whether it may try the lock, whether that is held, the time on the pipe, the step.
            (Stage::BehindLocal, true, true, short, Step::TryLock),
            (Stage::BehindLocal, true, false, short, Step::TryLock),
            (Stage::BehindLocal, false, true, short, Step::BeginOnPipe),
            (Stage::BehindLocal, false, false, short, Step::BeginOnPipe),
            (on_pipe, true, true, SHORT_WAIT, Step::TryLock),
            (on_pipe, true, false, short, Step::TryLock),
            (on_pipe, false, true, short, Step::StayOnPipe),
            (on_pipe, false, false, short, Step::StayOnPipe),
            (on_pipe, false, true, SHORT_WAIT, Step::WatchProcess),
            (on_pipe, false, false, SHORT_WAIT, Step::WatchProcess),
            (watching, true, true, short, Step::TryLock),
            (watching, true, false, short, Step::TryLock),
            (watching, false, true, short, Step::WatchProcess),
            (watching, false, false, short, Step::WatchProcess),
            (Stage::Notified, true, true, short, Step::Spin),
            (Stage::Notified, true, false, short, Step::TryLock),
            (Stage::Notified, false, true, short, Step::BeginOnPipe),
            (Stage::Notified, false, false, short, Step::BeginOnPipe),
        ];
        for (stage, may_try, is_held, elapsed, step) in table {
            assert_eq!(
                stage.step(may_try, is_held, |_| elapsed),
                step,
                "{stage:?}, {may_try}, {is_held}, {elapsed:?}"
            );
        }
        let notified = [Stage::BehindLocal, Stage::Notified];
        let others = [on_pipe, watching, Stage::Spinning(version), Stage::Polling];
        assert!(notified.into_iter().all(Stage::is_notified));
        assert!(!others.into_iter().any(Stage::is_notified));
    }

    #[test]
    fn stage_after_notification_follows_from_stage_and_version() {
        use Notification::{Advanced, Ended, Written};

        let [before, after] = versions();
        let since = Instant::now();
        let (behind, on_pipe, notified) =
            (Stage::BehindLocal, Stage::OnPipe { since }, Stage::Notified);
        let (process, polling) = (Stage::WatchingProcess { before: 1 }, Stage::Polling);
        let [tried, reset, changed] = [(before, 3), (before, 0), (after, 0)]
            .map(|(version, tries)| Stage::Watching { version, tries });
        let [same, new, unread] = [Some(before), Some(after), None];
        let [again, try_lock] = [AfterWait::AskAgain, AfterWait::TryLock].map(Some);
        let table = [
            // The stage, the notification, the version of the file now, the next stage, and the action.
            (behind, Advanced, unread, behind, None),
            (behind, Written, unread, behind, None),
            (on_pipe, Advanced, unread, on_pipe, None),
            (on_pipe, Written, unread, notified, None),
            (on_pipe, Ended, unread, notified, None),
            (process, Advanced, unread, process, None),
            (process, Written, unread, notified, None),
            (process, Ended, unread, notified, None),
            (notified, Written, unread, notified, None),
            (polling, Written, unread, polling, None),
            (tried, Written, same, tried, again),
            (tried, Advanced, same, tried, again),
            (tried, Ended, same, reset, try_lock),
            (tried, Written, new, changed, try_lock),
            (tried, Written, unread, reset, try_lock),
        ];
        for (stage, notification, version, next, action) in table {
            for then in [AfterWait::TryLock, AfterWait::AskAgain] {
                assert_eq!(
                    stage.notified(notification, then, || version),
                    (next, action.unwrap_or(then)),
                    "{stage:?}, {notification:?}, {version:?}"
                );
            }
        }
    }
}
