//! The wait of a waiter: a thread or a task performs the next action until the lock may be free.

use std::future;
use std::num::NonZeroUsize;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use once_cell::race::OnceNonZeroUsize;
use verrou::{AsyncWaiter, Claim, Waiter, async_trait};
use verrou_machine::sync::thread;

use super::Queue;
use super::stage::{AfterWait, BLIND_WAIT, Next, SAFETY_CHECK, Stage};
use crate::directory::Directory;
use crate::inotify::{Listener, Notification};
use crate::jitter::jitter;
use crate::open_files::OpenFile;
use crate::record::Version;
use crate::record_file;

/// The time for which the head waiter spins on the file before it watches the file: about the time that it
/// takes to fall asleep and to be woken.
const SPIN: Duration = Duration::from_micros(50);

/// The shortest timer of a task, which is used for an immediate check.
const SHORTEST_ALARM: Duration = Duration::from_micros(20);

/// The waiter of one claim. Dropping it leaves the queue.
pub(crate) struct QueueWaiter<'a> {
    queue: &'a Queue,
    directory: &'a Directory,
    claim: Claim,
}

impl Waiter for QueueWaiter<'_> {
    fn wait(&mut self, at_most: Duration) {
        self.queue.wait(self.directory, &self.claim, at_most);
    }

    fn notifies(&self) -> bool {
        true
    }
}

#[async_trait]
impl AsyncWaiter for QueueWaiter<'_> {
    async fn wait(&mut self, _at_most: Duration) {
        self.queue.waited(self.directory, &self.claim).await;
    }

    fn notifies(&self) -> bool {
        true
    }
}

impl Drop for QueueWaiter<'_> {
    fn drop(&mut self) {
        self.queue.leave(self.directory, &self.claim);
    }
}

impl Queue {
    /// Returns the waiter of `claim`.
    pub(crate) fn waiter<'a>(&'a self, directory: &'a Directory, claim: &Claim) -> QueueWaiter<'a> {
        QueueWaiter {
            queue: self,
            directory,
            claim: claim.clone(),
        }
    }

    /// Waits until the lock of `claim` may be free for its owner, but at most for `at_most`.
    fn wait(&self, directory: &Directory, claim: &Claim, at_most: Duration) {
        let end = Instant::now() + at_most.min(SAFETY_CHECK);
        loop {
            match self.next(directory, claim) {
                Next::TryLock => return,
                Next::Spin(file, version) => {
                    let seen = spin(&file, version, end);
                    if self.after_spin(directory, claim, seen) == AfterWait::TryLock {
                        return;
                    }
                }
                Next::Wait {
                    to,
                    pause,
                    on_notification,
                    then,
                } => {
                    let notification = if pause.is_zero() {
                        thread::yield_now();
                        None
                    } else {
                        to.wait(end.min(Instant::now() + pause))
                    };
                    let then = match notification {
                        Some(notification) => {
                            self.after_notification(claim, notification, on_notification)
                        }
                        None => then,
                    };
                    if then == AfterWait::TryLock || end <= Instant::now() {
                        return;
                    }
                }
                Next::Sleep(pause) => {
                    thread::sleep(pause.min(end.saturating_duration_since(Instant::now())));
                    return;
                }
            }
        }
    }

    /// Waits as [`wait`](Self::wait) does, in a task.
    async fn waited(&self, directory: &Directory, claim: &Claim) {
        loop {
            match self.next(directory, claim) {
                Next::TryLock => return,
                // Do not spin: other tasks of this thread run meanwhile.
                Next::Spin(..) => {
                    if self.after_spin(directory, claim, None) == AfterWait::TryLock {
                        return;
                    }
                }
                Next::Wait {
                    to,
                    pause,
                    on_notification,
                    then,
                } => {
                    let until = Instant::now() + pause.max(SHORTEST_ALARM);
                    let notification = future::poll_fn(|context| to.poll(context, until)).await;
                    let then = match notification {
                        Some(notification) => {
                            self.after_notification(claim, notification, on_notification)
                        }
                        None => then,
                    };
                    if then == AfterWait::TryLock {
                        return;
                    }
                }
                Next::Sleep(pause) => {
                    // If the process has no free descriptor, the timeout of the caller must end the
                    // wait.
                    let Ok(alarm) = Listener::new() else {
                        return future::pending().await;
                    };
                    let until = Instant::now() + pause;
                    future::poll_fn(|context| alarm.poll(context, until)).await;
                    return;
                }
            }
        }
    }

    /// Returns the next action of the owner of `claim`.
    fn next(&self, directory: &Directory, claim: &Claim) -> Next {
        let longest_wait = match &self.foreign {
            Some(_) => jitter(BLIND_WAIT),
            None => self.longest_wait(),
        };
        let mut state = self.state();
        // A waiter that cannot watch the file for any reason polls.
        let next = state
            .next(directory, longest_wait, claim)
            .unwrap_or_else(|_| Next::Sleep(jitter(BLIND_WAIT)));
        let displaced = std::mem::take(&mut state.displaced);
        drop(state);
        for listener in displaced {
            listener.wake();
        }
        next
    }

    /// Records that the owner of `claim` has spun on the file, and that the file has the version `seen`
    /// now, if it has changed. Returns the next action.
    fn after_spin(&self, directory: &Directory, claim: &Claim, seen: Option<Version>) -> AfterWait {
        let mut state = self.state();
        let Some((file, waiter)) = state.waiter_mut(claim) else {
            return AfterWait::AskAgain;
        };
        waiter.stage = if let Some(version) = seen {
            Stage::Spinning(version)
        } else {
            let listening = directory.path_to_watch(&claim.name).map(|path| {
                let paths = [Some(path.as_path()), self.foreign.as_deref()];
                waiter.listen(&file, paths.into_iter().flatten())
            });
            match listening {
                Ok(Ok(version)) => Stage::Watching { version, tries: 0 },
                _ => Stage::Polling,
            }
        };
        // Changes before the watch began cause no notification.
        AfterWait::TryLock
    }

    /// Returns the action of the owner of `claim` after `notification`: `then` if it does not watch the file.
    fn after_notification(
        &self,
        claim: &Claim,
        notification: Notification,
        then: AfterWait,
    ) -> AfterWait {
        let mut state = self.state();
        let Some((file, waiter)) = state.waiter_mut(claim) else {
            return then;
        };
        let version = || record_file::version(&file).ok();
        let action;
        (waiter.stage, action) = waiter.stage.notified(notification, then, version);
        action
    }
}

/// Spins on `file` until the lock, which was held in the version `version`, may be free; returns the
/// version of the file then. Returns `None` after [`SPIN`], or at `end`.
fn spin(file: &OpenFile, version: Version, end: Instant) -> Option<Version> {
    // A forked child must not wait for a thread of its parent that initializes this.
    static CORES: OnceNonZeroUsize = OnceNonZeroUsize::new();

    // With one core, the holder cannot run meanwhile.
    let cores = CORES.get_or_init(|| available_parallelism().unwrap_or(NonZeroUsize::MIN));
    if cores == NonZeroUsize::MIN {
        return None;
    }
    let end = end.min(Instant::now() + SPIN);
    while Instant::now() < end {
        match record_file::version(file) {
            Ok(now) if !now.may_be_free(version) => {}
            changed => return changed.ok(),
        }
        // The holder may need this core.
        thread::yield_now();
    }
    None
}

#[cfg(all(test, not(verrou_shuttle)))]
mod tests {
    use verrou::{Name, Owner, Ttl};
    use verrou_machine::StoreOptions;

    use super::super::stage::SHORT_WAIT;
    use super::*;
    use crate::os::Purpose;
    use crate::record::Kind;
    use crate::tickets;

    /// A process that ends may close its wake pipe some time before its ticket is unlocked.
    #[test]
    fn waiter_checks_again_soon_if_wake_pipe_before_it_has_no_reader() {
        const WITHOUT_PIPE: u32 = 7;

        let temp_dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(
            temp_dir.path(),
            Kind::Lease,
            Purpose::Store,
            &StoreOptions::default(),
        );
        let directory = directory.unwrap();
        let claim = Claim::new(
            Name::new("lock").unwrap(),
            Owner::from_bytes([1; 16]),
            Ttl::NEVER,
        )
        .ephemeral(true);
        let others = [(); 3].map(|()| directory.take_or_create(&claim.name).unwrap());
        for file in &others {
            tickets::append(file, WITHOUT_PIPE, 0).unwrap();
        }
        let queue = Queue::new(None, true);
        let next = || match queue.next(&directory, &claim) {
            Next::Wait { pause, then, .. } => (pause, then),
            next => panic!("{next:?}"),
        };
        assert_eq!(next(), (SHORT_WAIT, AfterWait::AskAgain));
        thread::sleep(SHORT_WAIT);
        assert_eq!(
            next(),
            (SHORT_WAIT, AfterWait::AskAgain),
            "its process may be ending"
        );
        let (pause, then) = next();
        assert!(
            pause > SHORT_WAIT && then == AfterWait::TryLock,
            "{pause:?}"
        );
        drop(others);
        assert!(matches!(queue.next(&directory, &claim), Next::TryLock));
    }
}
