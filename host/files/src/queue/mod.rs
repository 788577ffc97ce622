//! The wait queue of a lock, in the order in which the waiters joined it.
//!
//! A waiter's *ticket* is a byte of the lock's file, far past its end, which stays locked while the waiter
//! waits. A new ticket is after all locked tickets. The kernel unlocks it when the process ends.
//!
//! The head waiter first spins on the lock's file for some microseconds, as a lock that is held only
//! briefly is released in that time, and then waits for events of the file. Every other waiter sleeps
//! until the *wake pipe* that its process reads is written to, or until the process before it ends. The
//! releasing process notifies the second waiter, so that this one is awake when it becomes the head
//! waiter. So a release wakes one process. If a notification is lost, each waiter still checks from time
//! to time, less often the more waiters are before it. See `FORMAT.md`.

mod local_queue;
mod position;
mod stage;
mod state;
mod wait;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use verrou::Claim;
use verrou_machine::process::PerProcess;
use verrou_machine::sync::atomic::{AtomicBool, Ordering};
use verrou_machine::sync::{Mutex, MutexGuard};

use self::local_queue::Removed;
pub(crate) use self::position::Position;
use self::state::QueueState;
pub(crate) use self::wait::QueueWaiter;
pub(crate) use self::watch::QueueLossWatch;
use super::error::FileError;
use super::inotify::{Listener, Notification};
use super::open_files::OpenFile;
use super::tickets;
use crate::directory::Directory;
use crate::record_file::{self, View};

/// The longest time that the head waiter sleeps without a check, in case an event is lost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The same, if other programs may unlock the file, of which the kernel does not notify.
const FOREIGN_WAIT: Duration = Duration::from_millis(250);

/// The waiters of this process, and the waiters before them.
#[derive(Debug)]
pub(crate) struct Queue {
    /// A file that is also locked by programs without this queue.
    foreign: Option<PathBuf>,
    /// Whether every change of the lock causes an event of its file.
    reports_all_changes: bool,
    /// Whether this process has ever waited for a lock, or for a loss.
    is_used: AtomicBool,
    /// Separate in each forked child: a child is not in the queue.
    state: PerProcess<Mutex<QueueState>>,
}

impl Queue {
    /// Returns a queue for locks of this software's files, or for the lock of the file `foreign`, which
    /// programs without the queue also lock. `reports_all_changes` states whether every change of the lock
    /// causes an event of its file.
    pub(crate) fn new(foreign: Option<PathBuf>, reports_all_changes: bool) -> Self {
        Self {
            foreign,
            reports_all_changes,
            is_used: AtomicBool::new(false),
            state: PerProcess::new(),
        }
    }

    /// Returns the position of the owner of `claim`. `file` is the lock's file, and `view` its contents.
    pub(crate) fn position(
        &self,
        claim: &Claim,
        file: &OpenFile,
        view: &View,
    ) -> Result<Position, FileError> {
        if let Some(state) = self.state_if_used()
            && let Some((local, ticket)) = state.find(claim)
        {
            let served = view.served();
            return Ok(if local.is_head(ticket, served)? {
                Position::Head(ticket)
            } else if local.is_second(ticket, served)? {
                Position::Second(ticket)
            } else {
                Position::Behind(Some(ticket))
            });
        }
        if view.mark == view.served() || tickets::any(file, view.served() + 1, None)?.is_none() {
            return Ok(Position::NoWaiters);
        }
        Ok(Position::Behind(None))
    }

    /// Returns whether the owner of `claim` is known to be the head waiter; `None` if it is not a waiter.
    pub(crate) fn is_known_head(&self, claim: &Claim) -> Option<bool> {
        let state = self.state_if_used()?;
        let (local, ticket) = state.find(claim)?;
        Some(local.waiters.get(&ticket)?.is_head)
    }

    /// Notifies the head waiter through `file`, the lock's file, if there are waiters.
    pub(crate) fn wake(file: &OpenFile) -> Result<(), FileError> {
        match tickets::any(file, 0, None)? {
            Some(_) if !mutant!(NobodyWoken) => record_file::touch(file),
            _ => Ok(()),
        }
    }

    /// Records that `claim`, if its owner is a waiter, was granted. `is_next_notified` states whether
    /// the process that released the lock notifies the new head waiter.
    pub(crate) fn granted(&self, directory: &Directory, claim: &Claim, is_next_notified: bool) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let Some(local) = state.local_queues.get_mut(&claim.name) else {
            return;
        };
        let Some(Removed { ticket, own, next }) = local.remove_waiter(claim.owner) else {
            return;
        };
        // An owner with an earlier ticket that has not released the lock has lost it.
        let lost = local.granted.extract_if(|_, lost| *lost < ticket);
        for (_, lost) in lost.collect::<Vec<_>>() {
            tickets::unlock(&local.file, lost);
        }
        local.granted.insert(claim.owner, ticket);
        let pipe = local.pipe.clone();
        let first = local.next_after(ticket, is_next_notified);
        state.keep_spare(pipe.zip(own));
        let here = state.notify(directory, first);
        drop(state);
        notify_next(here, next);
    }

    /// Ends the ticket of `claim`, whose owner has released the lock that it was granted, and notifies the
    /// second waiter that it will soon be the head waiter. The current head waiter was notified before.
    ///
    /// The releasing process has nothing more to do, so its core is free for the waiter that it wakes.
    pub(crate) fn released(&self, directory: &Directory, claim: &Claim) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let Some(local) = state.local_queues.get_mut(&claim.name) else {
            return;
        };
        let Some(ticket) = local.granted.remove(&claim.owner) else {
            return;
        };
        tickets::unlock(&local.file, ticket);
        // A waiter that is not notified still checks from time to time.
        let (first, second) = local.next_two(ticket).unwrap_or_default();
        // A waiter of this process may have become the head waiter by the end of another process, of which no
        // process notifies it.
        let first = first.and_then(|first| local.waiters.get(&first)?.listener.clone());
        let second = state.notify(directory, second);
        state.remove_if_empty(directory, &claim.name);
        drop(state);
        for listener in [first, second].into_iter().flatten() {
            listener.wake();
        }
    }

    /// Ends the ticket of `claim`, if its owner is a waiter, and its wait; notifies the new head waiter.
    fn leave(&self, directory: &Directory, claim: &Claim) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let (mut own, mut first, mut next) = (None, None, None);
        if let Some(local) = state.local_queues.get_mut(&claim.name)
            && let Some(ended) = local.remove_waiter(claim.owner)
        {
            if !mutant!(PlaceKeptByGivingUp) {
                tickets::unlock(&local.file, ended.ticket);
            }
            (own, next) = (ended.own, ended.next);
            // A waiter that is notified too early tries the lock, and waits again.
            let head = local.next_after(ended.ticket, false);
            first = state.notify(directory, head);
            state.remove_if_empty(directory, &claim.name);
        }
        drop(state);
        notify_next(first, next);
        if let Some(own) = own {
            own.wake();
        }
    }

    /// Ends the file watches of the spare listeners, after a release, so that no waiter is delayed by
    /// it. Their subscriptions to wake pipes stay.
    pub(crate) fn tidy(&self) {
        // The mutex keeps waiters from taking these listeners meanwhile.
        if let Some(state) = self.state_if_used() {
            for (_, listener) in &state.spare {
                listener.watch(std::iter::empty()).ok();
            }
        }
    }

    /// Returns the longest time to wait without a check while the lock's file is watched.
    fn longest_wait(&self) -> Duration {
        if self.reports_all_changes {
            LONGEST_WAIT
        } else {
            FOREIGN_WAIT
        }
    }

    /// Returns the state, or `None` if this process has never waited or watched.
    fn state_if_used(&self) -> Option<MutexGuard<'_, QueueState>> {
        // A waiter has set the flag itself.
        self.is_used.load(Ordering::Relaxed).then(|| self.state())
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.is_used.store(true, Ordering::Relaxed);
        self.state.lock_instead_of_parents()
    }
}

/// Notifies `first`, the first of all waiters, if it is in this process, or else `next`, the first
/// waiter of this process, which has to watch the waiter before it from now on.
fn notify_next(first: Option<Arc<Listener>>, next: Option<Arc<Listener>>) {
    if let Some(first) = first {
        first.wake();
    } else if let Some(next) = next {
        next.notify(Notification::Advanced);
    }
}
