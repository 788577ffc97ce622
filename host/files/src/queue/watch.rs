//! The notifications of a lock's changes outside its queue: to holders, of the loss of their lock, and to
//! callers that wait for any change.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{future, io};

use verrou::{AsyncLossWatch, LossWatch, Name, async_trait};
use verrou_machine::LossSignal;
use verrou_machine::sync::atomic::{AtomicBool, Ordering};
use verrou_machine::sync::thread;

use super::stage::{BLIND_WAIT, pause_after};
use super::{LONGEST_WAIT, Queue};
use crate::directory::Directory;
use crate::error::FileError;
use crate::inotify::Listener;
use crate::jitter::jitter;
use crate::open_files::OpenFile;
use crate::tickets;

impl Queue {
    /// Waits until `is_over` returns true, but at most for `at_most`; calls it again after each change
    /// of the lock `name`. Does not join the queue. First calls `is_over` once events are being
    /// watched.
    pub(crate) fn watch_changes(
        &self,
        directory: &Directory,
        name: &Name,
        at_most: Duration,
        is_over: impl Fn() -> bool,
    ) {
        let end = Instant::now() + at_most.min(LONGEST_WAIT);
        let listener = self.listen(directory, name);
        let mut tries = u32::MAX;
        while !is_over() && Instant::now() < end {
            let pause = match pause_after(tries) {
                Some(pause) => pause,
                None if listener.is_err() || self.foreign.is_some() => jitter(BLIND_WAIT),
                None => self.longest_wait(),
            };
            tries = tries.saturating_add(1);
            let until = end.min(Instant::now() + pause);
            match &listener {
                Ok(listener) => {
                    if listener.wait(until).is_some() {
                        tries = 0;
                    }
                }
                Err(_) => thread::sleep(until.saturating_duration_since(Instant::now())),
            }
        }
    }

    /// Returns a listener that watches the lock `name`.
    pub(crate) fn listen(&self, directory: &Directory, name: &Name) -> io::Result<Listener> {
        let path = directory.path_to_watch(name)?;
        let paths = [Some(path.as_path()), self.foreign.as_deref()];
        let listener = Listener::new()?;
        listener.watch(paths.into_iter().flatten())?;
        Ok(listener)
    }

    /// Returns a watch for changes of the lock `name`, which ends a wait when `is_lost` returns true.
    pub(crate) fn loss_watch<'a>(
        &self,
        directory: &Directory,
        name: &Name,
        is_lost: impl Fn() -> bool + Send + Sync + 'a,
    ) -> io::Result<QueueLossWatch<'a>> {
        let listener = self.listen(directory, name)?;
        Ok(QueueLossWatch {
            descriptor: listener.descriptor(),
            listener,
            is_cancelled: AtomicBool::new(false),
            is_lost: Box::new(is_lost),
        })
    }

    /// Makes a process that releases the lock of `file` change the file even if it saw no waiter, until
    /// `file` is [ignored](Self::ignore) or closed.
    pub(crate) fn watch(file: &OpenFile) -> Result<(), FileError> {
        tickets::watch(file)
    }

    /// Ends a [`watch`](Self::watch).
    pub(crate) fn ignore(file: &OpenFile) {
        tickets::unlock(file, tickets::WATCHER);
    }
}

/// A watch for the loss of one lock.
pub(crate) struct QueueLossWatch<'a> {
    listener: Listener,
    descriptor: Option<Arc<OwnedFd>>,
    is_cancelled: AtomicBool,
    is_lost: Box<dyn Fn() -> bool + Send + Sync + 'a>,
}

impl LossWatch for QueueLossWatch<'_> {
    fn wait(&self, at_most: Duration) {
        let end = after(at_most);
        while !self.is_cancelled.load(Ordering::SeqCst) {
            if self.listener.wait(end).is_none() || (self.is_lost)() {
                return;
            }
        }
    }

    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::SeqCst);
        self.listener.wake();
    }
}

#[async_trait]
impl AsyncLossWatch for QueueLossWatch<'_> {
    async fn wait(&mut self) {
        while !(self.is_lost)() {
            let end = after(Duration::MAX);
            future::poll_fn(|context| self.listener.poll(context, end)).await;
        }
    }
}

impl LossSignal for QueueLossWatch<'_> {
    fn is_lost(&self) -> bool {
        self.listener.has_notification();
        (self.is_lost)()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_ref().map(|it| it.as_fd())
    }
}

/// Returns the instant that is `length` from now, or one year if `length` is longer.
fn after(length: Duration) -> Instant {
    const AGES: Duration = Duration::from_hours(24 * 365);

    Instant::now() + length.min(AGES)
}
