//! The state of the queue in one process: its local queues, their listeners and its wake pipes; and the
//! next action of each waiter.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use verrou::{Claim, Name};

use super::local_queue::{LocalQueue, LocalWaiter, NextWaiter};
use super::stage::{AfterWait, BLIND_WAIT, Next, SHORT_WAIT, Stage, Step, pause_behind};
use crate::directory::Directory;
use crate::error::FileError;
use crate::inotify::Listener;
use crate::jitter::jitter;
use crate::open_files::OpenFile;
use crate::wake_pipe::{WakePipe, WakePipes};
use crate::{record_file, tickets};

/// The number of listeners of former waiters that are kept for reuse.
const SPARES: usize = 16;

#[derive(Debug, Default)]
pub(super) struct QueueState {
    pub(super) local_queues: HashMap<Name, LocalQueue>,
    /// The listeners of former waiters, each with its wake pipe, for reuse: to begin and to end a
    /// subscription takes the kernel longer than a grant.
    pub(super) spare: Vec<(Arc<WakePipe>, Arc<Listener>)>,
    /// The listeners of waiters whose file was replaced, which are still to be notified.
    pub(super) displaced: Vec<Arc<Listener>>,
    pipes: WakePipes,
}

impl QueueState {
    pub(super) fn find(&self, claim: &Claim) -> Option<(&LocalQueue, u64)> {
        let local = self.local_queues.get(&claim.name)?;
        Some((local, local.ticket_of(claim.owner)?))
    }

    pub(super) fn waiter_mut(
        &mut self,
        claim: &Claim,
    ) -> Option<(Arc<OpenFile>, &mut LocalWaiter)> {
        let local = self.local_queues.get_mut(&claim.name)?;
        let ticket = local.ticket_of(claim.owner)?;
        let file = Arc::clone(&local.file);
        Some((file, local.waiters.get_mut(&ticket)?))
    }

    pub(super) fn next(
        &mut self,
        directory: &Directory,
        longest_wait: Duration,
        claim: &Claim,
    ) -> Result<Next, FileError> {
        let mut has_slept = true;
        let ticket = self.join(directory, claim)?;
        let Some(local) = self.local_queues.get_mut(&claim.name) else {
            return Ok(Next::TryLock);
        };
        loop {
            let ahead_here = local.waiters.range(..ticket).next_back().map(|(&it, _)| it);
            let Some(waiter) = local.waiters.get(&ticket) else {
                return Ok(Next::TryLock);
            };
            let stage = waiter.stage;
            if let Some(next) = local.next_as_head(ticket, stage, longest_wait, &mut self.spare)? {
                return Ok(next);
            }
            let Some(listener) = local.listener_of(ticket, &mut self.spare) else {
                return Ok(Next::Sleep(jitter(BLIND_WAIT)));
            };
            let listen = |pause, then| Next::Wait {
                to: Arc::clone(&listener),
                pause,
                on_notification: AfterWait::AskAgain,
                then,
            };
            let version = record_file::version(&local.file)?;
            let served = version.served();
            // If the head waiter does not take the lock, the second waiter does, and so on.
            let has_pipe = local.pipe.is_some() || ahead_here.is_some();
            let at_most = |is_second| {
                let others = tickets::most_between(served, ticket);
                pause_behind(if is_second { 1 } else { others }, has_pipe)
            };
            if let Some(ahead) = ahead_here {
                return Ok(listen(
                    at_most(local.is_head(ahead, served)?),
                    AfterWait::TryLock,
                ));
            }
            if stage == Stage::BehindLocal
                && let Some(pipe) = &local.pipe
            {
                listener.subscribe_to_pipe(pipe);
            }
            let is_head = local.is_head(ticket, served)?;
            if let Some(waiter) = local.waiters.get_mut(&ticket) {
                waiter.is_head = is_head;
            }
            let may_try = is_head || (stage.is_notified() && local.is_second(ticket, served)?);
            match stage.step(may_try, version.is_held(), |since| since.elapsed()) {
                Step::TryLock => {
                    local.set(ticket, Stage::Spinning(version));
                    return Ok(Next::TryLock);
                }
                Step::Spin => {
                    local.set(ticket, Stage::Spinning(version));
                    continue;
                }
                Step::BeginOnPipe => {
                    let since = Instant::now();
                    local.set(ticket, Stage::OnPipe { since });
                    return Ok(listen(SHORT_WAIT, AfterWait::AskAgain));
                }
                Step::StayOnPipe => return Ok(listen(SHORT_WAIT, AfterWait::AskAgain)),
                Step::WatchProcess => {}
            }
            let Some(ahead) = tickets::nearest_before(&local.file, ticket, served)? else {
                continue;
            };
            let is_second = local.is_head(ahead, served)?;
            if stage == (Stage::WatchingProcess { before: ahead }) {
                if has_slept && !is_second {
                    listener.close_idle_instance();
                }
                return Ok(listen(at_most(is_second), AfterWait::TryLock));
            }
            if !local.watch_process(directory, ticket, ahead, &listener) {
                // A process that ends may close its wake pipe before its ticket is unlocked.
                return Ok(listen(SHORT_WAIT, AfterWait::AskAgain));
            }
            // The process may have ended before its end was watched.
            has_slept = false;
        }
    }

    /// Returns the ticket of the owner of `claim`; appends it to the queue if it has none.
    fn join(&mut self, directory: &Directory, claim: &Claim) -> Result<u64, FileError> {
        if let Some(local) = self.local_queues.get(&claim.name) {
            let ticket = local.ticket_of(claim.owner);
            let waiter = ticket.and_then(|ticket| local.waiters.get(&ticket));
            if let Some(ticket) = ticket
                && waiter.is_some_and(|waiter| waiter.stage == Stage::Notified)
            {
                return Ok(ticket);
            }
            if local.file.is_current()? {
                if let Some(ticket) = ticket {
                    return Ok(ticket);
                }
            } else {
                // The file was replaced, and so was its queue: notify the waiters behind this one.
                let first = local.waiters.first_key_value().map(|(&first, _)| first);
                let next =
                    first.and_then(|first| tickets::first_from(&local.file, first + 1).ok()?);
                if let Some(next) = next {
                    self.pipes.wake(directory, tickets::pipe_of(next));
                }
                let displaced = self.remove_queue(directory, &claim.name);
                self.displaced.extend(displaced);
            }
        }
        let local = match self.local_queues.entry(claim.name.clone()) {
            Entry::Occupied(local) => local.into_mut(),
            Entry::Vacant(vacant) => {
                let file = directory.take_or_create(&claim.name)?;
                let (number, pipe) = self.pipes.take(directory, &claim.name);
                directory.want(&claim.name);
                vacant.insert(LocalQueue {
                    file: Arc::new(file),
                    pipe,
                    number,
                    waiters: BTreeMap::new(),
                    tickets: HashMap::new(),
                    granted: HashMap::new(),
                })
            }
        };
        let here = local.waiters.last_key_value().map_or(0, |(&last, _)| last);
        match tickets::append(&local.file, local.number, here) {
            Ok(ticket) => {
                let waiter = LocalWaiter {
                    listener: None,
                    stage: Stage::BehindLocal,
                    is_head: false,
                };
                local.waiters.insert(ticket, waiter);
                local.tickets.insert(claim.owner, ticket);
                Ok(ticket)
            }
            Err(err) => {
                self.remove_if_empty(directory, &claim.name);
                Err(err)
            }
        }
    }

    /// Notifies a waiter of another process; returns the listener to wake for a waiter of this process.
    pub(super) fn notify(
        &mut self,
        directory: &Directory,
        whom: Option<NextWaiter>,
    ) -> Option<Arc<Listener>> {
        match whom? {
            NextWaiter::Local(listener) => Some(listener),
            NextWaiter::OtherProcess(ticket) => {
                self.pipes.wake(directory, tickets::pipe_of(ticket));
                None
            }
        }
    }

    /// Keeps a listener, and its wake pipe, for another waiter.
    pub(super) fn keep_spare(&mut self, listener: Option<(Arc<WakePipe>, Arc<Listener>)>) {
        if let Some((pipe, listener)) = listener
            && listener.has_pipe()
            && self.spare.len() < SPARES
        {
            listener.watch_end(None);
            self.spare.push((pipe, listener));
        }
    }

    pub(super) fn remove_if_empty(&mut self, directory: &Directory, name: &Name) {
        let local = self.local_queues.get(name);
        if local.is_some_and(|local| local.waiters.is_empty() && local.granted.is_empty()) {
            self.remove_queue(directory, name);
        }
    }

    /// Removes this process's queue for the lock `name`; returns the listeners of its waiters.
    fn remove_queue(&mut self, directory: &Directory, name: &Name) -> Vec<Arc<Listener>> {
        let Some(local) = self.local_queues.remove(name) else {
            return Vec::new();
        };
        if let Some(pipe) = &local.pipe
            && self.pipes.put(name)
        {
            self.spare.retain(|(spare, _)| !Arc::ptr_eq(spare, pipe));
        }
        let mut listeners = Vec::new();
        if local.waiters.is_empty() && local.granted.is_empty() {
            // A waiter may still spin on the file.
            if let Some(file) = Arc::into_inner(local.file) {
                directory.put(name, file);
            }
        } else {
            listeners.extend(
                local
                    .waiters
                    .into_values()
                    .filter_map(|waiter| waiter.listener),
            );
        }
        directory.unwant(name);
        listeners
    }
}
