//! Who waits for a lock, in the order in which they came.
//!
//! A place in the queue is a byte of the lock's file, far past its end, locked for as long as its
//! owner waits: a byte after all that are locked. The kernel unlocks it when the process ends.
//!
//! The head waiter first spins on the lock's file for some microseconds, as a lock that is held only
//! briefly is released in that time, and then waits for events of the file. Every other waiter sleeps
//! until its *bell*, a wake pipe that its process reads, is written to, or until the process before it
//! ends. The releasing process notifies the second waiter, so that this one is awake when it becomes
//! the head waiter. So a release wakes one process. If a notification is lost, each waiter still checks
//! from time to time, less often the more waiters are before it. See `FORMAT.md`.

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

use super::bell::{WakePipe, WakePipes};
use super::directory::{self, Directory, View};
use super::error::FileError;
use super::file_events::{Listener, Notification};
use super::jitter;
use super::open_files::OpenFile;
use super::record::Version;
use super::tickets;
use crate::process::PerProcess;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, MutexGuard, thread};

/// For how long a lock that was given back is kept for the first in its queue.
const RESERVATION: Duration = Duration::from_millis(200);

/// The longest time that the head waiter sleeps without a check, in case an event is lost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The same, if other programs may unlock the file, of which the kernel does not notify.
const FOREIGN_WAIT: Duration = Duration::from_millis(250);

/// The longest time that any waiter sleeps without a check.
const SAFETY_CHECK: Duration = Duration::from_secs(10);

/// How long is waited between looks where the kernel tells of no events.
const BLIND_WAIT: Duration = Duration::from_millis(10);

/// For how long the first looks at the file all the time before it listens: about as long as
/// falling asleep and being woken takes.
const SPIN: Duration = Duration::from_micros(50);

/// After how long in the queue it is worth listening, too, for the end of the process before.
const SHORT_WAIT: Duration = Duration::from_millis(20);

/// How soon a task that is to look again at once does so.
const SHORTEST_ALARM: Duration = Duration::from_micros(20);

/// How many of those who have left are kept to be used again.
const SPARES: usize = 16;

/// Those of this process who wait, and whom they wait behind.
#[derive(Debug)]
pub(crate) struct Queue {
    /// A file that is locked by programs that know of no queue.
    foreign: Option<PathBuf>,
    /// Whether every change of the lock causes an event of its file.
    reports_all_changes: bool,
    /// Whether anybody has ever waited, or watched.
    is_used: AtomicBool,
    /// Separate in each forked child: a child is not in the queue.
    state: PerProcess<Mutex<QueueState>>,
}

/// How somebody who asks for a lock stands to those who wait for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Position {
    /// Nobody waits.
    NoWaiters,
    /// It waits, with this ticket, and nobody before it.
    Head(u64),
    /// It waits, with this ticket, and one came before.
    Second(u64),
    /// Others came before; its ticket, if it waits.
    Behind(Option<u64>),
}

impl Position {
    /// The greatest ticket of all that do not wait any more, if this one is granted the lock, whose
    /// file says `before`.
    pub(crate) fn served(self, before: &View) -> u64 {
        match self {
            Self::NoWaiters => before.mark.max(before.served()),
            Self::Head(ticket) | Self::Second(ticket) | Self::Behind(Some(ticket)) => {
                ticket.max(before.served())
            }
            Self::Behind(None) => before.served(),
        }
    }

    /// Whether it waits.
    pub(crate) fn has_ticket(self) -> bool {
        !matches!(self, Self::NoWaiters | Self::Behind(None))
    }

    /// For how long a lock that was given back is kept from it. Should the first not come, the second
    /// takes it; should that one not come either, anybody does.
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
    /// Of those who have just left, with the bell that each listens to, to be used again: beginning
    /// to listen, and ending it, takes the kernel longer than a grant.
    spare: Vec<(Arc<WakePipe>, Arc<Listener>)>,
    /// Of those whose file was replaced, to be told.
    displaced: Vec<Arc<Listener>>,
    /// Those who hold a lock and want to know should they lose it.
    loss_listeners: HashMap<Owner, Arc<Listener>>,
    pipes: WakePipes,
}

/// Those of this process who wait for one lock.
#[derive(Debug)]
struct LocalQueue {
    /// The lock's file, whose open file description has their bytes locked.
    file: Arc<OpenFile>,
    /// The wake pipe of all of them, if one was available, and its number.
    pipe: Option<Arc<WakePipe>>,
    number: u32,
    /// By ticket.
    waiters: BTreeMap<u64, Waiter>,
    tickets: HashMap<Owner, u64>,
    /// The tickets of those who were granted the lock, until they give it back.
    granted: HashMap<Owner, u64>,
}

#[derive(Debug)]
struct Waiter {
    /// `None` when there are no more to be had: then the place is looked after from time to time.
    listener: Option<Arc<Listener>>,
    stage: Stage,
    /// Once it is so, it stays so.
    is_head: bool,
}

/// How far somebody has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Others of this process are before it, and tell it when they leave.
    BehindLocal,
    /// It is the first of this process, and listens to its bell.
    OnPipe { since: Instant },
    /// It also waits for the end of the process with this ticket.
    WatchingProcess { before: u64 },
    /// It has heard a bell.
    Notified,
    /// It is the first, or the second and was told, and looks at the file, which was like this before
    /// it tried the lock.
    Spinning(Version),
    /// As that, and there is nothing to listen with.
    Polling,
    /// As that, and listens to the lock's file.
    Watching {
        /// What the file was like when there was news.
        version: Version,
        /// How often was looked since then.
        tries: u32,
    },
}

/// What one who waits is to do.
#[derive(Debug)]
enum Next {
    /// Try to take the lock.
    TryLock,
    /// Look at the file, which was like this, until the lock may be free, but not for long; then try,
    /// or ask again.
    Spin(Arc<OpenFile>, Version),
    /// Wait until there is news, or as long as `pause`; then do what `on_notification` or `then` says.
    Wait {
        to: Arc<Listener>,
        pause: Duration,
        on_notification: AfterWait,
        then: AfterWait,
    },
    /// Let this long pass, and try to take the lock.
    Sleep(Duration),
}

/// What one who has waited is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum AfterWait {
    /// Try to take the lock.
    TryLock,
    /// Ask again.
    AskAgain,
}

impl Queue {
    /// Whether waiters are notified when the lock may be free.
    pub(crate) const NOTIFIES: bool = true;

    /// Returns a queue for locks of this software's files, or for the lock of the file `foreign`, which
    /// programs without the queue also lock. `reports_all_changes` says whether every change of the lock causes
    /// an event of its file.
    pub(crate) fn new(foreign: Option<PathBuf>, reports_all_changes: bool) -> Self {
        Self {
            foreign,
            reports_all_changes,
            is_used: AtomicBool::new(false),
            state: PerProcess::new(),
        }
    }

    /// How the owner of `claim` stands. `file` is the lock's file, and `view` what it says.
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

    /// Whether the owner of `claim` waits, and if so, whether it is known to be the first.
    pub(crate) fn is_known_head(&self, claim: &Claim) -> Option<bool> {
        let state = self.state_if_used()?;
        let (local, ticket) = state.find(claim)?;
        Some(local.waiters.get(&ticket)?.is_head)
    }

    /// Lets the first of those who wait look at `file`, the lock's file, if anybody waits.
    pub(crate) fn wake(file: &OpenFile) -> Result<(), FileError> {
        match tickets::any(file, 0, None)? {
            Some(_) if !mutant!(NobodyWoken) => directory::touch(file),
            _ => Ok(()),
        }
    }

    /// Takes note that `claim`, if it has a place, was granted. `is_next_notified` says whether who gave
    /// the lock back tells the one who is first now.
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
        // Who has not given it back has lost it.
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

    /// Ends the ticket of `claim`, which has given back the lock that it was granted, and tells the
    /// second of those who wait that it is soon to be the first, which the first was told before.
    ///
    /// Whoever gives a lock back has nothing more to do, and its core is free for the one it wakes.
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
        // Whoever is not told looks by itself.
        let (first, second) = local.next_two(ticket).unwrap_or_default();
        // One of this process may have come first when another process ended, which tells nobody.
        let first = first.and_then(|first| local.waiters.get(&first)?.listener.clone());
        let second = state.notify(directory, second);
        state.remove_if_empty(directory, &claim.name);
        drop(state);
        for listener in [first, second].into_iter().flatten() {
            listener.wake();
        }
    }

    /// Ends the place of `claim`, if it has one; whoever is first then is told, and its own wait
    /// ends.
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
            // Whoever is told too soon looks, and waits.
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

    /// Lets those who were granted a lock listen to their bells alone, now that nobody waits for
    /// that.
    pub(crate) fn tidy(&self) {
        // Nobody takes them meanwhile.
        if let Some(state) = self.state_if_used() {
            for (_, listener) in &state.spare {
                listener.watch(std::iter::empty()).ok();
            }
        }
    }

    /// Waits until the lock of `claim` may be free for its owner, but at most `at_most`.
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
                // Others on this thread have their turn meanwhile.
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

    /// Waits until something happens to the lock `name`, but at most `at_most`, without a place. Calls
    /// `is_over` once events are being watched.
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

    /// One who listens to what happens to the lock `name`.
    pub(crate) fn listen(&self, directory: &Directory, name: &Name) -> io::Result<Listener> {
        let path = directory.path_to_watch(name)?;
        let paths = [Some(path.as_path()), self.foreign.as_deref()];
        let listener = Listener::new()?;
        listener.watch(paths.into_iter().flatten())?;
        Ok(listener)
    }

    /// Waits until `holds` is false of the owner of `claim`, or it leaves, but at most `at_most`;
    /// at the first time only begins to listen. Says whether that can be told.
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

    /// [`lost`](Self::lost), for a task; where that cannot be told, this does not end.
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

    /// What the owner of `claim` is to do next.
    fn next(&self, directory: &Directory, claim: &Claim) -> Next {
        let longest_wait = match &self.foreign {
            Some(_) => jitter(BLIND_WAIT),
            None => self.longest_wait(),
        };
        let mut state = self.state();
        // What keeps it from listening keeps it from nothing else.
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

    /// The owner of `claim` has looked at the file, and `seen` that it is like this now, if it has
    /// changed.
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
        // What has happened by now is not heard of.
        AfterWait::TryLock
    }

    /// What to do now that the owner of `claim` has heard `notification`, if `then` when it is not the
    /// first.
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
            // Somebody has joined the queue.
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

    /// Nothing when nobody has ever waited or watched.
    fn state_if_used(&self) -> Option<MutexGuard<'_, QueueState>> {
        // Who has a place has set it itself.
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
                    // By the one before, who has just been granted it, or is the last to be.
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
            // It may have gone before that.
            has_slept = false;
        }
    }

    /// The ticket of the owner of `claim`, who gets the last place in the queue if it has none.
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

    /// Tells one who waits; returns whom to ring, if it is of this process.
    fn notify(&mut self, directory: &Directory, whom: Option<NextWaiter>) -> Option<Arc<Listener>> {
        match whom? {
            NextWaiter::Local(listener) => Some(listener),
            NextWaiter::OtherProcess(ticket) => {
                self.pipes.wake(directory, tickets::pipe_of(ticket));
                None
            }
        }
    }

    /// Keeps a listener, and the bell that it listens to, for another who waits.
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

    /// Ends the line of the lock `name`; returns the listeners of those who were in it.
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
            // Unless somebody still looks at it.
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

/// Who comes first.
enum NextWaiter {
    /// One of this process.
    Local(Arc<Listener>),
    /// One of another process, with this ticket.
    OtherProcess(u64),
}

/// A place that has ended.
struct Removed {
    ticket: u64,
    /// The listener of the waiter that left the place.
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

    /// Ends a place, of which only the ticket stays locked.
    fn remove_waiter(&mut self, owner: Owner) -> Option<Removed> {
        let ticket = self.tickets.remove(&owner)?;
        let own = self
            .waiters
            .remove(&ticket)
            .and_then(|waiter| waiter.listener);
        let mut first = None;
        // Whoever is the first of this process now hears its bell.
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

    /// The ticket of the first of those who wait when the lock that was granted to `ticket` has been
    /// given back, and who is the second.
    fn next_two(&self, ticket: u64) -> Result<(Option<u64>, Option<NextWaiter>), FileError> {
        loop {
            let served = directory::version(&self.file)?.served();
            // Who was the first may have been granted it already, and given it back.
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

    /// Who is the first of those who wait behind `ticket`; only of this process if `is_notified` says
    /// that any other was told.
    fn next_after(&self, ticket: u64, is_notified: bool) -> Option<NextWaiter> {
        let here = self.waiters.range(ticket + 1..).next();
        if here.is_none() && is_notified {
            return None;
        }
        // Whoever is not told looks by itself.
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

    /// The listener of a place, if there are any to be had.
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

    /// Whether nobody is before `ticket`, in this process or another, if all up to `served` do not
    /// wait any more. Who comes at the same time as the first may believe so, too.
    fn is_head(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
        let is_known = |waiter: &Waiter| waiter.is_head;
        Ok(self.waiters.get(&ticket).is_some_and(is_known)
            || (self.waiters.range(..ticket).next().is_none()
                && tickets::any(&self.file, served + 1, Some(ticket))?.is_none()))
    }

    /// Whether no more than one, of another process, is before `ticket`, which is the first of this
    /// one.
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
    /// Listens to what happens to the files at `paths`; returns what `file` is like by then.
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

/// As long from now as is asked, or as makes no difference.
fn after(length: Duration) -> Instant {
    const AGES: Duration = Duration::from_hours(24 * 365);

    Instant::now() + length.min(AGES)
}

/// Looks at `file` until the lock may be free that was not when the file was like `version`, and
/// returns what it is like then; but not for long, and not beyond `end`.
fn spin(file: &OpenFile, version: Version, end: Instant) -> Option<Version> {
    // A forked child must not wait for a thread of its parent that initializes this.
    static CORES: OnceNonZeroUsize = OnceNonZeroUsize::new();

    // With one core nothing would happen meanwhile.
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
        // Whoever has the lock may need this core.
        thread::yield_now();
    }
    None
}

/// How often to look without a pause in between.
const IMMEDIATE_TRIES: u32 = 2;

/// How often to look after pauses, of which each is twice as long as the one before.
const TIMED_TRIES: u32 = 10;

/// How long to wait before the next look after so many: the kernel tells of a write, or of a
/// process's end, a moment before the lock is free.
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
    fn a_waiter_looks_again_soon_when_the_wake_pipe_before_it_has_no_reader() {
        const WITHOUT_PIPE: u32 = 7;

        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::open(
            folder.path(),
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
