//! The local queue: the waiters of one process for one lock, and the waiters of other processes before and
//! behind them.

use std::collections::BTreeMap;
use std::collections::hash_map::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use verrou::Owner;

use super::position::RESERVATION;
use super::stage::{AfterWait, BLIND_WAIT, Next, Stage, pause_after};
use crate::directory::Directory;
use crate::error::FileError;
use crate::inotify::Listener;
use crate::jitter::jitter;
use crate::open_files::OpenFile;
use crate::record::Version;
use crate::wake_pipe::{WakePipe, WakePipes};
use crate::{record_file, tickets};

/// The waiters of this process for one lock.
#[derive(Debug)]
pub(super) struct LocalQueue {
    /// The lock's file, whose open file description keeps the tickets locked.
    pub(super) file: Arc<OpenFile>,
    /// The wake pipe of all of them, if one was available, and its number.
    pub(super) pipe: Option<Arc<WakePipe>>,
    pub(super) number: u32,
    /// By ticket.
    pub(super) waiters: BTreeMap<u64, LocalWaiter>,
    pub(super) tickets: HashMap<Owner, u64>,
    /// The tickets of owners that were granted the lock, until they release it.
    pub(super) granted: HashMap<Owner, u64>,
}

#[derive(Debug)]
pub(super) struct LocalWaiter {
    /// `None` if no descriptor is free: then the waiter polls.
    pub(super) listener: Option<Arc<Listener>>,
    pub(super) stage: Stage,
    /// Whether the waiter is known to be the head waiter, which it then stays.
    pub(super) is_head: bool,
}

/// The next waiter.
pub(super) enum NextWaiter {
    /// A waiter of this process.
    Local(Arc<Listener>),
    /// A waiter of another process, with this ticket.
    OtherProcess(u64),
}

/// A waiter that was removed from the queue.
pub(super) struct Removed {
    pub(super) ticket: u64,
    /// The listener of the removed waiter.
    pub(super) own: Option<Arc<Listener>>,
    /// The listener of the waiter that is the first of this process from now on. It sleeps until it
    /// is notified.
    pub(super) next: Option<Arc<Listener>>,
}

impl LocalQueue {
    pub(super) fn ticket_of(&self, owner: Owner) -> Option<u64> {
        self.tickets.get(&owner).copied()
    }

    /// Removes the waiter `owner`. Its ticket stays locked.
    pub(super) fn remove_waiter(&mut self, owner: Owner) -> Option<Removed> {
        let ticket = self.tickets.remove(&owner)?;
        let own = self
            .waiters
            .remove(&ticket)
            .and_then(|waiter| waiter.listener);
        let mut first = None;
        // Subscribe the new first waiter of this process to its wake pipe.
        if let Some(mut next) = self.waiters.first_entry()
            && ticket < *next.key()
            && let Some(listener) = &next.get().listener
        {
            first = Some(Arc::clone(listener));
            match &own {
                Some(own) if own.has_pipe() => own.hand_pipe_to(listener),
                _ => {
                    if let Some(pipe) = &self.pipe {
                        listener.subscribe_to_pipe(pipe);
                    }
                }
            }
            next.get_mut().stage = Stage::OnPipe {
                since: Instant::now(),
            };
        }
        Some(Removed {
            ticket,
            own,
            next: first,
        })
    }

    /// Returns the ticket of the head waiter after the release of the lock that was granted to
    /// `ticket`, and the second waiter.
    pub(super) fn next_two(
        &self,
        ticket: u64,
    ) -> Result<(Option<u64>, Option<NextWaiter>), FileError> {
        loop {
            let served = record_file::version(&self.file)?.served();
            // The head waiter may already have been granted the lock, and have released it.
            let first = if served > ticket {
                Some(served)
            } else {
                let here = self.waiters.range(ticket..).next();
                let here = here.map(|(&here, _)| here);
                let elsewhere = tickets::first_from(&self.file, ticket + 1)?;
                here.into_iter().chain(elsewhere).min()
            };
            if record_file::version(&self.file)?.served() != served {
                continue;
            }
            let second = first.and_then(|first| self.next_after(first, false));
            return Ok((first, second));
        }
    }

    /// Returns the first waiter behind `ticket`. If `is_notified`, a waiter of another process has been
    /// notified already, and only one of this process is returned.
    pub(super) fn next_after(&self, ticket: u64, is_notified: bool) -> Option<NextWaiter> {
        let here = self.waiters.range(ticket + 1..).next();
        if here.is_none() && is_notified {
            return None;
        }
        // A waiter that is not notified still checks from time to time.
        let elsewhere = tickets::first_from(&self.file, ticket + 1).ok().flatten();
        match (here, elsewhere) {
            (Some((&here, waiter)), elsewhere) if elsewhere.is_none_or(|it| here < it) => {
                waiter.listener.clone().map(NextWaiter::Local)
            }
            (_, Some(_)) if is_notified => None,
            (_, elsewhere) => elsewhere.map(NextWaiter::OtherProcess),
        }
    }

    /// Returns what `ticket` must do next if it is the head waiter, or the second waiter and was
    /// notified.
    pub(super) fn next_as_head(
        &mut self,
        ticket: u64,
        stage: Stage,
        longest_wait: Duration,
        spare: &mut Vec<(Arc<WakePipe>, Arc<Listener>)>,
    ) -> Result<Option<Next>, FileError> {
        let pause = match stage {
            Stage::Spinning(version) => {
                return Ok(Some(Next::Spin(Arc::clone(&self.file), version)));
            }
            Stage::Polling => jitter(BLIND_WAIT),
            Stage::Watching { version, tries } => {
                let tries_after = tries.saturating_add(1);
                self.set(
                    ticket,
                    Stage::Watching {
                        version,
                        tries: tries_after,
                    },
                );
                match pause_after(tries) {
                    Some(pause) => pause,
                    None if self.is_head(ticket, version.served())? => longest_wait,
                    None => RESERVATION.min(longest_wait),
                }
            }
            Stage::BehindLocal
            | Stage::OnPipe { .. }
            | Stage::WatchingProcess { .. }
            | Stage::Notified => {
                return Ok(None);
            }
        };
        Ok(Some(match self.listener_of(ticket, spare) {
            Some(to) => Next::Wait {
                to,
                pause,
                on_notification: AfterWait::TryLock,
                then: AfterWait::TryLock,
            },
            None => Next::Sleep(jitter(BLIND_WAIT)),
        }))
    }

    /// Watches the end of the process with the ticket `before`, for the waiter with `ticket`. Returns whether it can be
    /// watched.
    pub(super) fn watch_process(
        &mut self,
        directory: &Directory,
        ticket: u64,
        before: u64,
        listener: &Listener,
    ) -> bool {
        listener.watch(std::iter::empty()).ok();
        let end = WakePipes::end(directory, tickets::pipe_of(before));
        let is_watched = end.is_some();
        listener.watch_end(end);
        self.set(ticket, Stage::WatchingProcess { before });
        is_watched
    }

    pub(super) fn set(&mut self, ticket: u64, stage: Stage) {
        if let Some(waiter) = self.waiters.get_mut(&ticket) {
            waiter.stage = stage;
        }
    }

    /// Returns the listener of a waiter; creates it if necessary. Returns `None` if that fails.
    pub(super) fn listener_of(
        &mut self,
        ticket: u64,
        spare: &mut Vec<(Arc<WakePipe>, Arc<Listener>)>,
    ) -> Option<Arc<Listener>> {
        let waiter = self.waiters.get_mut(&ticket)?;
        if waiter.listener.is_none() {
            let fits = |pipe| self.pipe.as_ref().is_some_and(|own| Arc::ptr_eq(pipe, own));
            let fitting = spare.iter().position(|(pipe, _)| fits(pipe));
            let new = || Listener::new().ok().map(Arc::new);
            waiter.listener = match fitting {
                Some(at) => Some(spare.swap_remove(at).1),
                None => new(),
            };
        }
        waiter.listener.clone()
    }

    /// Returns whether no waiter is before `ticket`, in this process or another. The tickets up to
    /// `served` do not wait any more. A waiter that joins at the same time as the head waiter may get
    /// the same result.
    pub(super) fn is_head(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
        let is_known = |waiter: &LocalWaiter| waiter.is_head;
        Ok(self.waiters.get(&ticket).is_some_and(is_known)
            || (self.waiters.range(..ticket).next().is_none()
                && tickets::any(&self.file, served + 1, Some(ticket))?.is_none()))
    }

    /// Returns whether `ticket` is the first of this process, and at most one waiter, of another
    /// process, is before it.
    pub(super) fn is_second(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
        if self.waiters.range(..ticket).next().is_some() {
            return Ok(false);
        }
        match tickets::any(&self.file, served + 1, Some(ticket))? {
            None => Ok(true),
            Some(ahead) => Ok(
                tickets::any(&self.file, served + 1, Some(ahead.start))?.is_none()
                    && tickets::any(&self.file, ahead.end, Some(ticket))?.is_none(),
            ),
        }
    }
}

impl LocalWaiter {
    /// Watches the files at `paths`; returns the version of `file` after the watch has begun.
    pub(super) fn listen<'a>(
        &self,
        file: &OpenFile,
        paths: impl Iterator<Item = &'a Path>,
    ) -> Result<Version, FileError> {
        let listener = self.listener.as_ref();
        let watched = listener.map_or(Err(io::ErrorKind::Other.into()), |it| {
            it.watch_end(None);
            it.watch(paths)
        });
        watched.map_err(FileError::io("watch this file", file.path()))?;
        record_file::version(file)
    }
}
