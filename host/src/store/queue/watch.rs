//! The notifications of a lock's changes outside its queue: to holders, of the loss of their lock, and to
//! callers that wait for any change.

use std::future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use verrou::{Claim, Name};

use super::super::directory::Directory;
use super::super::error::FileError;
use super::super::inotify::Listener;
use super::super::open_files::OpenFile;
use super::super::{jitter, tickets};
use super::stage::{BLIND_WAIT, pause_after};
use super::{LONGEST_WAIT, Queue};
use crate::sync::thread;

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

    /// Waits until `holds` returns false for the owner of `claim`, or the owner [leaves](Self::leave), but at
    /// most for `at_most`. The first call only begins to watch the lock. Returns whether the loss of the lock
    /// can be noticed.
    pub(crate) fn lost(
        &self,
        directory: &Directory,
        claim: &Claim,
        at_most: Duration,
        holds: impl Fn() -> bool,
    ) -> bool {
        let listener = self
            .state()
            .loss_listeners
            .get(&claim.owner)
            .map(Arc::clone);
        let Some(listener) = listener else {
            let Ok(listener) = self.listen(directory, &claim.name) else {
                return false;
            };
            self.state()
                .loss_listeners
                .insert(claim.owner, Arc::new(listener));
            return true;
        };
        let end = after(at_most);
        let is_registered = || self.state().loss_listeners.contains_key(&claim.owner);
        while is_registered() && listener.wait(end).is_some() && holds() {}
        true
    }

    /// Waits as [`lost`](Self::lost) does, in a task. Never ends if the loss of the lock cannot be noticed.
    pub(crate) async fn awaited_loss(
        &self,
        directory: &Directory,
        claim: &Claim,
        holds: impl Fn() -> bool,
    ) {
        let Ok(listener) = self.listen(directory, &claim.name) else {
            return future::pending().await;
        };
        while holds() {
            let end = after(Duration::MAX);
            future::poll_fn(|context| listener.poll(context, end)).await;
        }
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

/// Returns the instant that is `length` from now, or one year if `length` is longer.
fn after(length: Duration) -> Instant {
    const AGES: Duration = Duration::from_hours(24 * 365);

    Instant::now() + length.min(AGES)
}
