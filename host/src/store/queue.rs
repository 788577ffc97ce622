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

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::future;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use once_cell::race::OnceNonZeroUsize;
use verrou::{Claim, Name, Owner};

use super::directory::{self, Directory, View};
use super::error::FileError;
use super::inotify::{Listener, Notification};
use super::jitter;
use super::open_files::OpenFile;
use super::record::Version;
use super::tickets;
use super::wake_pipe::{WakePipe, WakePipes};
use crate::process::PerProcess;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, thread};

/// The hand-off reservation: the time for which a released lock is reserved for the head waiter.
const RESERVATION: Duration = Duration::from_millis(200);

/// The longest time that the head waiter sleeps without a check, in case an event is lost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The same, if other programs may unlock the file, of which the kernel does not notify.
const FOREIGN_WAIT: Duration = Duration::from_millis(250);

/// The longest time that any waiter sleeps without a check.
const SAFETY_CHECK: Duration = Duration::from_secs(10);

/// The time between the checks of a waiter that cannot watch the lock's file.
const BLIND_WAIT: Duration = Duration::from_millis(10);

/// The time for which the head waiter spins on the file before it watches the file: about the time that it
/// takes to fall asleep and to be woken.
const SPIN: Duration = Duration::from_micros(50);

/// The time in the queue after which a waiter also watches the end of the process before it.
const SHORT_WAIT: Duration = Duration::from_millis(20);

/// The shortest timer of a task, which is used for an immediate check.
const SHORTEST_ALARM: Duration = Duration::from_micros(20);

/// The number of listeners of former waiters that are kept for reuse.
const SPARES: usize = 16;

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

/// The position of the owner of an acquire request in the wait queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Position {
    /// There are no waiters.
    NoWaiters,
    /// The owner is the head waiter, with this ticket.
    Head(u64),
    /// The owner is the second waiter, with this ticket.
    Second(u64),
    /// Other waiters are before the owner; its ticket, if it is a waiter.
    Behind(Option<u64>),
}

impl Position {
    /// Returns the greatest ticket that does not wait any more once the owner is granted the lock, whose file
    /// contains `before`.
    pub(crate) fn served(self, before: &View) -> u64 {
        match self {
            Self::NoWaiters => before.mark.max(before.served()),
            Self::Head(ticket) | Self::Second(ticket) | Self::Behind(Some(ticket)) => {
                ticket.max(before.served())
            }
            Self::Behind(None) => before.served(),
        }
    }

    /// Returns whether the owner is a waiter.
    pub(crate) fn has_ticket(self) -> bool {
        !matches!(self, Self::NoWaiters | Self::Behind(None))
    }

    /// Returns for how long a released lock is reserved for waiters before the owner. If the head waiter does
    /// not take the lock, the second waiter may; if that one does not either, any process may.
    pub(crate) fn reservation(self) -> Duration {
        match self {
            Self::NoWaiters | Self::Head(_) => Duration::ZERO,
            _ if mutant!(QueueIgnored) => Duration::ZERO,
            _ if mutant!(EndlessPatience) => Duration::MAX,
            Self::Second(_) => RESERVATION,
            Self::Behind(_) => 2 * RESERVATION,
        }
    }
}

#[derive(Debug, Default)]
struct QueueState {
    local_queues: HashMap<Name, LocalQueue>,
    /// The listeners of former waiters, each with its wake pipe, for reuse: to begin and to end a
    /// subscription takes the kernel longer than a grant.
    spare: Vec<(Arc<WakePipe>, Arc<Listener>)>,
    /// The listeners of waiters whose file was replaced, which are still to be notified.
    displaced: Vec<Arc<Listener>>,
    /// The listeners of holders that wait for the loss of their lock.
    loss_listeners: HashMap<Owner, Arc<Listener>>,
    pipes: WakePipes,
}

/// The waiters of this process for one lock.
#[derive(Debug)]
struct LocalQueue {
    /// The lock's file, whose open file description keeps the tickets locked.
    file: Arc<OpenFile>,
    /// The wake pipe of all of them, if one was available, and its number.
    pipe: Option<Arc<WakePipe>>,
    number: u32,
    /// By ticket.
    waiters: BTreeMap<u64, Waiter>,
    tickets: HashMap<Owner, u64>,
    /// The tickets of owners that were granted the lock, until they release it.
    granted: HashMap<Owner, u64>,
}

#[derive(Debug)]
struct Waiter {
    /// `None` if no descriptor is free: then the waiter polls.
    listener: Option<Arc<Listener>>,
    stage: Stage,
    /// Whether the waiter is known to be the head waiter, which it then stays.
    is_head: bool,
}

/// The progress of a waiter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
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

/// The next action of a waiter.
#[derive(Debug)]
enum Next {
    /// Try to take the lock.
    TryLock,
    /// Spin for a short time on the file, which had this version, until the lock may be free; then call
    /// [`Queue::after_spin`].
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
enum AfterWait {
    /// Try to take the lock.
    TryLock,
    /// Ask for the next action again.
    AskAgain,
}

impl Queue {
    /// Whether waiters are notified when the lock may be free.
    pub(crate) const NOTIFIES: bool = true;

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
            Some(_) if !mutant!(NobodyWoken) => directory::touch(file),
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
    pub(crate) fn leave(&self, directory: &Directory, claim: &Claim) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let listener = state.loss_listeners.remove(&claim.owner);
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
        for listener in [own, listener].into_iter().flatten() {
            listener.wake();
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

    /// Waits until the lock of `claim` may be free for its owner, but at most for `at_most`.
    pub(crate) fn wait(&self, directory: &Directory, claim: &Claim, at_most: Duration) {
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
    pub(crate) async fn waited(&self, directory: &Directory, claim: &Claim) {
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

    /// Returns the longest time to wait without a check while the lock's file is watched.
    fn longest_wait(&self) -> Duration {
        if self.reports_all_changes {
            LONGEST_WAIT
        } else {
            FOREIGN_WAIT
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
        let Stage::Watching { version, tries } = &mut waiter.stage else {
            let is_outside = matches!(
                waiter.stage,
                Stage::OnPipe { .. } | Stage::WatchingProcess { .. }
            );
            if is_outside && notification != Notification::Advanced {
                waiter.stage = Stage::Notified;
            }
            return then;
        };
        match directory::version(&file) {
            // A waiter has joined the queue.
            Ok(now) if now == *version && notification != Notification::Ended => {
                AfterWait::AskAgain
            }
            now => {
                *version = now.unwrap_or(*version);
                *tries = 0;
                AfterWait::TryLock
            }
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

impl QueueState {
    fn find(&self, claim: &Claim) -> Option<(&LocalQueue, u64)> {
        let local = self.local_queues.get(&claim.name)?;
        Some((local, local.ticket_of(claim.owner)?))
    }

    fn waiter_mut(&mut self, claim: &Claim) -> Option<(Arc<OpenFile>, &mut Waiter)> {
        let local = self.local_queues.get_mut(&claim.name)?;
        let ticket = local.ticket_of(claim.owner)?;
        let file = Arc::clone(&local.file);
        Some((file, local.waiters.get_mut(&ticket)?))
    }

    fn next(
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
            let version = directory::version(&local.file)?;
            let served = version.served();
            // If the head waiter does not take the lock, the second waiter does, and so on.
            let has_pipe = local.pipe.is_some() || ahead_here.is_some();
            let at_most = |is_second| {
                let before = if is_second {
                    1
                } else {
                    tickets::most_between(served, ticket)
                };
                pause_behind(before, has_pipe)
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
            let is_notified = matches!(stage, Stage::BehindLocal | Stage::Notified);
            if is_head || (is_notified && local.is_second(ticket, served)?) {
                local.set(ticket, Stage::Spinning(version));
                if stage == Stage::Notified && version.is_held() {
                    // The holder is the waiter before this one, or the last one before it.
                    continue;
                }
                return Ok(Next::TryLock);
            }
            match stage {
                Stage::OnPipe { since } if SHORT_WAIT <= since.elapsed() => {}
                Stage::WatchingProcess { .. } => {}
                Stage::OnPipe { .. } => return Ok(listen(SHORT_WAIT, AfterWait::AskAgain)),
                _ => {
                    let since = Instant::now();
                    local.set(ticket, Stage::OnPipe { since });
                    return Ok(listen(SHORT_WAIT, AfterWait::AskAgain));
                }
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
            listener.watch(std::iter::empty()).ok();
            let end = WakePipes::end(directory, tickets::pipe_of(ahead));
            let is_watched = end.is_some();
            listener.watch_end(end);
            local.set(ticket, Stage::WatchingProcess { before: ahead });
            if !is_watched {
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
                let waiter = Waiter {
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
    fn notify(&mut self, directory: &Directory, whom: Option<NextWaiter>) -> Option<Arc<Listener>> {
        match whom? {
            NextWaiter::Local(listener) => Some(listener),
            NextWaiter::OtherProcess(ticket) => {
                self.pipes.wake(directory, tickets::pipe_of(ticket));
                None
            }
        }
    }

    /// Keeps a listener, and its wake pipe, for another waiter.
    fn keep_spare(&mut self, listener: Option<(Arc<WakePipe>, Arc<Listener>)>) {
        if let Some((pipe, listener)) = listener
            && listener.has_pipe()
            && self.spare.len() < SPARES
        {
            listener.watch_end(None);
            self.spare.push((pipe, listener));
        }
    }

    fn remove_if_empty(&mut self, directory: &Directory, name: &Name) {
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

/// The next waiter.
enum NextWaiter {
    /// A waiter of this process.
    Local(Arc<Listener>),
    /// A waiter of another process, with this ticket.
    OtherProcess(u64),
}

/// A waiter that was removed from the queue.
struct Removed {
    ticket: u64,
    /// The listener of the removed waiter.
    own: Option<Arc<Listener>>,
    /// The listener of the waiter that is the first of this process from now on. It sleeps until it
    /// is notified.
    next: Option<Arc<Listener>>,
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

impl LocalQueue {
    fn ticket_of(&self, owner: Owner) -> Option<u64> {
        self.tickets.get(&owner).copied()
    }

    /// Removes the waiter `owner`. Its ticket stays locked.
    fn remove_waiter(&mut self, owner: Owner) -> Option<Removed> {
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
    fn next_two(&self, ticket: u64) -> Result<(Option<u64>, Option<NextWaiter>), FileError> {
        loop {
            let served = directory::version(&self.file)?.served();
            // The head waiter may already have been granted the lock, and have released it.
            let first = if served > ticket {
                Some(served)
            } else {
                let here = self.waiters.range(ticket..).next();
                let here = here.map(|(&here, _)| here);
                let elsewhere = tickets::first_from(&self.file, ticket + 1)?;
                here.into_iter().chain(elsewhere).min()
            };
            if directory::version(&self.file)?.served() != served {
                continue;
            }
            let second = first.and_then(|first| self.next_after(first, false));
            return Ok((first, second));
        }
    }

    /// Returns the first waiter behind `ticket`. If `is_notified`, a waiter of another process has been
    /// notified already, and only one of this process is returned.
    fn next_after(&self, ticket: u64, is_notified: bool) -> Option<NextWaiter> {
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
    fn next_as_head(
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

    fn set(&mut self, ticket: u64, stage: Stage) {
        if let Some(waiter) = self.waiters.get_mut(&ticket) {
            waiter.stage = stage;
        }
    }

    /// Returns the listener of a waiter; creates it if necessary. Returns `None` if that fails.
    fn listener_of(
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
    fn is_head(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
        let is_known = |waiter: &Waiter| waiter.is_head;
        Ok(self.waiters.get(&ticket).is_some_and(is_known)
            || (self.waiters.range(..ticket).next().is_none()
                && tickets::any(&self.file, served + 1, Some(ticket))?.is_none()))
    }

    /// Returns whether `ticket` is the first of this process, and at most one waiter, of another
    /// process, is before it.
    fn is_second(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
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

impl Waiter {
    /// Watches the files at `paths`; returns the version of `file` after the watch has begun.
    fn listen<'a>(
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
        directory::version(file)
    }
}

/// Returns the longest time that a waiter behind `others` waiters sleeps. A waiter with a wake pipe
/// (`has_pipe`) is notified in time, so that it checks only in case other waiters are stopped or a
/// notification is lost.
fn pause_behind(others: u64, has_pipe: bool) -> Duration {
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

/// Returns the instant that is `length` from now, or one year if `length` is longer.
fn after(length: Duration) -> Instant {
    const AGES: Duration = Duration::from_hours(24 * 365);

    Instant::now() + length.min(AGES)
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
        match directory::version(file) {
            Ok(now) if !now.may_be_free(version) => {}
            changed => return changed.ok(),
        }
        // The holder may need this core.
        thread::yield_now();
    }
    None
}

/// The number of tries after a notification without a pause.
const IMMEDIATE_TRIES: u32 = 2;

/// The number of further tries, after pauses that double each time.
const TIMED_TRIES: u32 = 10;

/// Returns the pause before the next try after `tries` tries, or `None` after the last one. The kernel
/// reports a write, or the end of a process, shortly before the lock is free.
fn pause_after(tries: u32) -> Option<Duration> {
    match tries.checked_sub(IMMEDIATE_TRIES) {
        _ if mutant!(LookedOnceAfterNews) && tries > 0 => None,
        None => Some(Duration::ZERO),
        Some(doubled) if doubled < TIMED_TRIES => Some(Duration::from_micros(50 << doubled)),
        Some(_) => None,
    }
}

#[cfg(all(test, not(verrou_shuttle)))]
mod tests {
    use verrou::Ttl;

    use super::super::StoreOptions;
    use super::super::os::Purpose;
    use super::super::record::Kind;
    use super::*;

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
        let claim = Claim {
            name: Name::new("lock").unwrap(),
            owner: Owner::from_bytes([1; 16]),
            ttl: Ttl::NEVER,
            ephemeral: true,
        };
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
