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
const PATIENCE: Duration = Duration::from_millis(200);

/// The longest time that the head waiter sleeps without a check, in case an event is lost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The same, if other programs may unlock the file, of which the kernel does not notify.
const FOREIGN_WAIT: Duration = Duration::from_millis(250);

/// The longest time that any waiter sleeps without a check.
const SAFETY_LOOK: Duration = Duration::from_secs(10);

/// How long is waited between looks where the kernel tells of no events.
const BLIND_WAIT: Duration = Duration::from_millis(10);

/// For how long the first looks at the file all the time before it listens: about as long as
/// falling asleep and being woken takes.
const STARE: Duration = Duration::from_micros(50);

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
    tells_all: bool,
    /// Whether anybody has ever waited, or watched.
    is_used: AtomicBool,
    /// Separate in each forked child: a child is not in the queue.
    state: PerProcess<Mutex<State>>,
}

/// How somebody who asks for a lock stands to those who wait for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Standing {
    /// Nobody waits.
    Alone,
    /// It waits, with this ticket, and nobody before it.
    First(u64),
    /// It waits, with this ticket, and one came before.
    Second(u64),
    /// Others came before; its ticket, if it waits.
    Behind(Option<u64>),
}

impl Standing {
    /// The greatest ticket of all that do not wait any more, if this one is granted the lock, whose
    /// file says `before`.
    pub(crate) fn served(self, before: &View) -> u64 {
        match self {
            Self::Alone => before.mark.max(before.served()),
            Self::First(ticket) | Self::Second(ticket) | Self::Behind(Some(ticket)) => {
                ticket.max(before.served())
            }
            Self::Behind(None) => before.served(),
        }
    }

    /// Whether it waits.
    pub(crate) fn waits(self) -> bool {
        !matches!(self, Self::Alone | Self::Behind(None))
    }

    /// For how long a lock that was given back is kept from it. Should the first not come, the second
    /// takes it; should that one not come either, anybody does.
    pub(crate) fn patience(self) -> Duration {
        match self {
            Self::Alone | Self::First(_) => Duration::ZERO,
            _ if mutant!(QueueIgnored) => Duration::ZERO,
            _ if mutant!(EndlessPatience) => Duration::MAX,
            Self::Second(_) => PATIENCE,
            Self::Behind(_) => 2 * PATIENCE,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    lines: HashMap<Name, Line>,
    /// Of those who have just left, with the bell that each listens to, to be used again: beginning
    /// to listen, and ending it, takes the kernel longer than a grant.
    spare: Vec<(Arc<WakePipe>, Arc<Listener>)>,
    /// Of those whose file was replaced, to be told.
    displaced: Vec<Arc<Listener>>,
    /// Those who hold a lock and want to know should they lose it.
    guards: HashMap<Owner, Arc<Listener>>,
    pipes: WakePipes,
}

/// Those of this process who wait for one lock.
#[derive(Debug)]
struct Line {
    /// The lock's file, whose open file description has their bytes locked.
    file: Arc<OpenFile>,
    /// The wake pipe of all of them, if one was available, and its number.
    pipe: Option<Arc<WakePipe>>,
    number: u32,
    /// By ticket.
    places: BTreeMap<u64, Place>,
    tickets: HashMap<Owner, u64>,
    /// The tickets of those who were granted the lock, until they give it back.
    granted: HashMap<Owner, u64>,
}

#[derive(Debug)]
struct Place {
    /// `None` when there are no more to be had: then the place is looked after from time to time.
    listener: Option<Arc<Listener>>,
    stage: Stage,
    /// Once it is so, it stays so.
    is_first: bool,
}

/// How far somebody has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// Others of this process are before it, and tell it when they leave.
    Inside,
    /// It is the first of this process, and listens to its bell.
    Outside { since: Instant },
    /// It also waits for the end of the process with this ticket.
    Long { before: u64 },
    /// It has heard a bell.
    Told,
    /// It is the first, or the second and was told, and looks at the file, which was like this before
    /// it tried the lock.
    Staring(Version),
    /// As that, and there is nothing to listen with.
    Blind,
    /// As that, and listens to the lock's file.
    Listening {
        /// What the file was like when there was news.
        version: Version,
        /// How often was looked since then.
        looks: u32,
    },
}

/// What one who waits is to do.
#[derive(Debug)]
enum Next {
    /// Try to take the lock.
    Look,
    /// Look at the file, which was like this, until the lock may be free, but not for long; then try,
    /// or ask again.
    Stare(Arc<OpenFile>, Version),
    /// Wait until there is news, or as long as `pause`; then do what `on_notification` or `then` says.
    Listen {
        to: Arc<Listener>,
        pause: Duration,
        on_notification: Then,
        then: Then,
    },
    /// Let this long pass, and try to take the lock.
    Pause(Duration),
}

/// What one who has waited is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    /// Try to take the lock.
    Look,
    /// Ask again.
    Ask,
}

impl Queue {
    /// Whether waiters are notified when the lock may be free.
    pub(crate) const NOTIFIES: bool = true;

    /// Returns a queue for locks of this software's files, or for the lock of the file `foreign`, which
    /// programs without the queue also lock. `tells_all` says whether every change of the lock causes
    /// an event of its file.
    pub(crate) fn new(foreign: Option<PathBuf>, tells_all: bool) -> Self {
        Self {
            foreign,
            tells_all,
            is_used: AtomicBool::new(false),
            state: PerProcess::new(),
        }
    }

    /// How the owner of `claim` stands. `file` is the lock's file, and `view` what it says.
    pub(crate) fn standing(
        &self,
        claim: &Claim,
        file: &OpenFile,
        view: &View,
    ) -> Result<Standing, FileError> {
        if let Some(state) = self.state_if_used()
            && let Some((line, ticket)) = state.place_of(claim)
        {
            let served = view.served();
            return Ok(if line.is_first(ticket, served)? {
                Standing::First(ticket)
            } else if line.is_second(ticket, served)? {
                Standing::Second(ticket)
            } else {
                Standing::Behind(Some(ticket))
            });
        }
        if view.mark == view.served() || tickets::any(file, view.served() + 1, None)?.is_none() {
            return Ok(Standing::Alone);
        }
        Ok(Standing::Behind(None))
    }

    /// Whether the owner of `claim` waits, and if so, whether it is known to be the first.
    pub(crate) fn place(&self, claim: &Claim) -> Option<bool> {
        let state = self.state_if_used()?;
        let (line, ticket) = state.place_of(claim)?;
        Some(line.places.get(&ticket)?.is_first)
    }

    /// Lets the first of those who wait look at `file`, the lock's file, if anybody waits.
    pub(crate) fn wake(file: &OpenFile) -> Result<(), FileError> {
        match tickets::any(file, 0, None)? {
            Some(_) if !mutant!(NobodyWoken) => directory::touch(file),
            _ => Ok(()),
        }
    }

    /// Takes note that `claim`, if it has a place, was granted. `is_next_told` says whether who gave
    /// the lock back tells the one who is first now.
    pub(crate) fn granted(&self, directory: &Directory, claim: &Claim, is_next_told: bool) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let Some(line) = state.lines.get_mut(&claim.name) else {
            return;
        };
        let Some(Ended { ticket, own, next }) = line.end_place(claim.owner) else {
            return;
        };
        // Who has not given it back has lost it.
        let lost = line.granted.extract_if(|_, lost| *lost < ticket);
        for (_, lost) in lost.collect::<Vec<_>>() {
            tickets::unlock(&line.file, lost);
        }
        line.granted.insert(claim.owner, ticket);
        let pipe = line.pipe.clone();
        let first = line.first_after(ticket, is_next_told);
        state.keep_spare(pipe.zip(own));
        let here = state.tell(directory, first);
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
        let Some(line) = state.lines.get_mut(&claim.name) else {
            return;
        };
        let Some(ticket) = line.granted.remove(&claim.owner) else {
            return;
        };
        tickets::unlock(&line.file, ticket);
        // Whoever is not told looks by itself.
        let (first, second) = line.two_after(ticket).unwrap_or_default();
        // One of this process may have come first when another process ended, which tells nobody.
        let first = first.and_then(|first| line.places.get(&first)?.listener.clone());
        let second = state.tell(directory, second);
        state.remove_line_if_empty(directory, &claim.name);
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
        let guard = state.guards.remove(&claim.owner);
        let (mut own, mut first, mut next) = (None, None, None);
        if let Some(line) = state.lines.get_mut(&claim.name)
            && let Some(ended) = line.end_place(claim.owner)
        {
            if !mutant!(PlaceKeptByGivingUp) {
                tickets::unlock(&line.file, ended.ticket);
            }
            (own, next) = (ended.own, ended.next);
            // Whoever is told too soon looks, and waits.
            let told = line.first_after(ended.ticket, false);
            first = state.tell(directory, told);
            state.remove_line_if_empty(directory, &claim.name);
        }
        drop(state);
        notify_next(first, next);
        for listener in [own, guard].into_iter().flatten() {
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
        let end = Instant::now() + at_most.min(SAFETY_LOOK);
        loop {
            match self.next(directory, claim) {
                Next::Look => return,
                Next::Stare(file, version) => {
                    let seen = stare(&file, version, end);
                    if self.has_stared(directory, claim, seen) == Then::Look {
                        return;
                    }
                }
                Next::Listen {
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
                        Some(notification) => self.heard(claim, notification, on_notification),
                        None => then,
                    };
                    if then == Then::Look || end <= Instant::now() {
                        return;
                    }
                }
                Next::Pause(pause) => {
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
                Next::Look => return,
                // Others on this thread have their turn meanwhile.
                Next::Stare(..) => {
                    if self.has_stared(directory, claim, None) == Then::Look {
                        return;
                    }
                }
                Next::Listen {
                    to,
                    pause,
                    on_notification,
                    then,
                } => {
                    let until = Instant::now() + pause.max(SHORTEST_ALARM);
                    let notification = future::poll_fn(|context| to.poll(context, until)).await;
                    let then = match notification {
                        Some(notification) => self.heard(claim, notification, on_notification),
                        None => then,
                    };
                    if then == Then::Look {
                        return;
                    }
                }
                Next::Pause(pause) => {
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
    pub(crate) fn overhear(
        &self,
        directory: &Directory,
        name: &Name,
        at_most: Duration,
        is_over: impl Fn() -> bool,
    ) {
        let end = Instant::now() + at_most.min(LONGEST_WAIT);
        let listener = self.listen(directory, name);
        let mut looks = u32::MAX;
        while !is_over() && Instant::now() < end {
            let pause = match pause_after(looks) {
                Some(pause) => pause,
                None if listener.is_err() || self.foreign.is_some() => jitter(BLIND_WAIT),
                None => self.longest_wait(),
            };
            looks = looks.saturating_add(1);
            let until = end.min(Instant::now() + pause);
            match &listener {
                Ok(listener) => {
                    if listener.wait(until).is_some() {
                        looks = 0;
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
        let guard = self.state().guards.get(&claim.owner).map(Arc::clone);
        let Some(guard) = guard else {
            let Ok(listener) = self.listen(directory, &claim.name) else {
                return false;
            };
            self.state().guards.insert(claim.owner, Arc::new(listener));
            return true;
        };
        let end = after(at_most);
        let is_guarded = || self.state().guards.contains_key(&claim.owner);
        while is_guarded() && guard.wait(end).is_some() && holds() {}
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
        if self.tells_all {
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
            .unwrap_or_else(|_| Next::Pause(jitter(BLIND_WAIT)));
        let displaced = std::mem::take(&mut state.displaced);
        drop(state);
        for listener in displaced {
            listener.wake();
        }
        next
    }

    /// The owner of `claim` has looked at the file, and `seen` that it is like this now, if it has
    /// changed.
    fn has_stared(&self, directory: &Directory, claim: &Claim, seen: Option<Version>) -> Then {
        let mut state = self.state();
        let Some((file, place)) = state.place_mut(claim) else {
            return Then::Ask;
        };
        place.stage = if let Some(version) = seen {
            Stage::Staring(version)
        } else {
            let listening = directory.path_to_watch(&claim.name).map(|path| {
                let paths = [Some(path.as_path()), self.foreign.as_deref()];
                place.listen(&file, paths.into_iter().flatten())
            });
            match listening {
                Ok(Ok(version)) => Stage::Listening { version, looks: 0 },
                _ => Stage::Blind,
            }
        };
        // What has happened by now is not heard of.
        Then::Look
    }

    /// What to do now that the owner of `claim` has heard `notification`, if `then` when it is not the
    /// first.
    fn heard(&self, claim: &Claim, notification: Notification, then: Then) -> Then {
        let mut state = self.state();
        let Some((file, place)) = state.place_mut(claim) else {
            return then;
        };
        let Stage::Listening { version, looks } = &mut place.stage else {
            let is_outside = matches!(place.stage, Stage::Outside { .. } | Stage::Long { .. });
            if is_outside && notification != Notification::Advanced {
                place.stage = Stage::Told;
            }
            return then;
        };
        match directory::version(&file) {
            // Somebody has joined the queue.
            Ok(now) if now == *version && notification != Notification::Ended => Then::Ask,
            now => {
                *version = now.unwrap_or(*version);
                *looks = 0;
                Then::Look
            }
        }
    }

    /// Nothing when nobody has ever waited or watched.
    fn state_if_used(&self) -> Option<MutexGuard<'_, State>> {
        // Who has a place has set it itself.
        self.is_used.load(Ordering::Relaxed).then(|| self.state())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.is_used.store(true, Ordering::Relaxed);
        self.state.lock_instead_of_parents()
    }
}

impl State {
    fn place_of(&self, claim: &Claim) -> Option<(&Line, u64)> {
        let line = self.lines.get(&claim.name)?;
        Some((line, line.ticket_of(claim.owner)?))
    }

    fn place_mut(&mut self, claim: &Claim) -> Option<(Arc<OpenFile>, &mut Place)> {
        let line = self.lines.get_mut(&claim.name)?;
        let ticket = line.ticket_of(claim.owner)?;
        let file = Arc::clone(&line.file);
        Some((file, line.places.get_mut(&ticket)?))
    }

    fn next(
        &mut self,
        directory: &Directory,
        longest_wait: Duration,
        claim: &Claim,
    ) -> Result<Next, FileError> {
        let mut has_slept = true;
        let ticket = self.join(directory, claim)?;
        let Some(line) = self.lines.get_mut(&claim.name) else {
            return Ok(Next::Look);
        };
        loop {
            let ahead_here = line.places.range(..ticket).next_back().map(|(&it, _)| it);
            let Some(place) = line.places.get(&ticket) else {
                return Ok(Next::Look);
            };
            let stage = place.stage;
            if let Some(next) = line.next_look(ticket, stage, longest_wait, &mut self.spare)? {
                return Ok(next);
            }
            let Some(listener) = line.listener_of(ticket, &mut self.spare) else {
                return Ok(Next::Pause(jitter(BLIND_WAIT)));
            };
            let listen = |pause, then| Next::Listen {
                to: Arc::clone(&listener),
                pause,
                on_notification: Then::Ask,
                then,
            };
            let version = directory::version(&line.file)?;
            let served = version.served();
            // If the head waiter does not take the lock, the second waiter does, and so on.
            let has_pipe = line.pipe.is_some() || ahead_here.is_some();
            let at_most = |is_second| {
                let before = if is_second {
                    1
                } else {
                    tickets::most_between(served, ticket)
                };
                pause_behind(before, has_pipe)
            };
            if let Some(ahead) = ahead_here {
                return Ok(listen(at_most(line.is_first(ahead, served)?), Then::Look));
            }
            if stage == Stage::Inside
                && let Some(pipe) = &line.pipe
            {
                listener.subscribe_to_pipe(pipe);
            }
            let is_first = line.is_first(ticket, served)?;
            if let Some(place) = line.places.get_mut(&ticket) {
                place.is_first = is_first;
            }
            let is_told = matches!(stage, Stage::Inside | Stage::Told);
            if is_first || (is_told && line.is_second(ticket, served)?) {
                line.set(ticket, Stage::Staring(version));
                if stage == Stage::Told && version.is_held() {
                    // By the one before, who has just been granted it, or is the last to be.
                    continue;
                }
                return Ok(Next::Look);
            }
            match stage {
                Stage::Outside { since } if SHORT_WAIT <= since.elapsed() => {}
                Stage::Long { .. } => {}
                Stage::Outside { .. } => return Ok(listen(SHORT_WAIT, Then::Ask)),
                _ => {
                    let since = Instant::now();
                    line.set(ticket, Stage::Outside { since });
                    return Ok(listen(SHORT_WAIT, Then::Ask));
                }
            }
            let Some(ahead) = tickets::nearest_before(&line.file, ticket, served)? else {
                continue;
            };
            let is_second = line.is_first(ahead, served)?;
            if stage == (Stage::Long { before: ahead }) {
                if has_slept && !is_second {
                    listener.close_idle_instance();
                }
                return Ok(listen(at_most(is_second), Then::Look));
            }
            listener.watch(std::iter::empty()).ok();
            let end = WakePipes::end(directory, tickets::pipe_of(ahead));
            let is_watched = end.is_some();
            listener.watch_end(end);
            line.set(ticket, Stage::Long { before: ahead });
            if !is_watched {
                // A process that ends may close its wake pipe before its ticket is unlocked.
                return Ok(listen(SHORT_WAIT, Then::Ask));
            }
            // It may have gone before that.
            has_slept = false;
        }
    }

    /// The ticket of the owner of `claim`, who gets the last place in the queue if it has none.
    fn join(&mut self, directory: &Directory, claim: &Claim) -> Result<u64, FileError> {
        if let Some(line) = self.lines.get(&claim.name) {
            let ticket = line.ticket_of(claim.owner);
            let place = ticket.and_then(|ticket| line.places.get(&ticket));
            if let Some(ticket) = ticket
                && place.is_some_and(|place| place.stage == Stage::Told)
            {
                return Ok(ticket);
            }
            if line.file.is_current()? {
                if let Some(ticket) = ticket {
                    return Ok(ticket);
                }
            } else {
                // The file was replaced, and so was its queue: notify the waiters behind this one.
                let first = line.places.first_key_value().map(|(&first, _)| first);
                let next =
                    first.and_then(|first| tickets::first_from(&line.file, first + 1).ok()?);
                if let Some(next) = next {
                    self.pipes.wake(directory, tickets::pipe_of(next));
                }
                let displaced = self.remove_line(directory, &claim.name);
                self.displaced.extend(displaced);
            }
        }
        let line = match self.lines.entry(claim.name.clone()) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(vacant) => {
                let file = directory.take_or_create(&claim.name)?;
                let (number, pipe) = self.pipes.take(directory, &claim.name);
                directory.want(&claim.name);
                vacant.insert(Line {
                    file: Arc::new(file),
                    pipe,
                    number,
                    places: BTreeMap::new(),
                    tickets: HashMap::new(),
                    granted: HashMap::new(),
                })
            }
        };
        let here = line.places.last_key_value().map_or(0, |(&last, _)| last);
        match tickets::append(&line.file, line.number, here) {
            Ok(ticket) => {
                let place = Place {
                    listener: None,
                    stage: Stage::Inside,
                    is_first: false,
                };
                line.places.insert(ticket, place);
                line.tickets.insert(claim.owner, ticket);
                Ok(ticket)
            }
            Err(err) => {
                self.remove_line_if_empty(directory, &claim.name);
                Err(err)
            }
        }
    }

    /// Tells one who waits; returns whom to ring, if it is of this process.
    fn tell(&mut self, directory: &Directory, whom: Option<First>) -> Option<Arc<Listener>> {
        match whom? {
            First::Here(listener) => Some(listener),
            First::Elsewhere(ticket) => {
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

    fn remove_line_if_empty(&mut self, directory: &Directory, name: &Name) {
        let line = self.lines.get(name);
        if line.is_some_and(|line| line.places.is_empty() && line.granted.is_empty()) {
            self.remove_line(directory, name);
        }
    }

    /// Ends the line of the lock `name`; returns the listeners of those who were in it.
    fn remove_line(&mut self, directory: &Directory, name: &Name) -> Vec<Arc<Listener>> {
        let Some(line) = self.lines.remove(name) else {
            return Vec::new();
        };
        if let Some(pipe) = &line.pipe
            && self.pipes.put(name)
        {
            self.spare.retain(|(spare, _)| !Arc::ptr_eq(spare, pipe));
        }
        let mut listeners = Vec::new();
        if line.places.is_empty() && line.granted.is_empty() {
            // Unless somebody still looks at it.
            if let Some(file) = Arc::into_inner(line.file) {
                directory.put(name, file);
            }
        } else {
            listeners.extend(line.places.into_values().filter_map(|place| place.listener));
        }
        directory.unwant(name);
        listeners
    }
}

/// Who comes first.
enum First {
    /// One of this process.
    Here(Arc<Listener>),
    /// One of another process, with this ticket.
    Elsewhere(u64),
}

/// A place that has ended.
struct Ended {
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

impl Line {
    fn ticket_of(&self, owner: Owner) -> Option<u64> {
        self.tickets.get(&owner).copied()
    }

    /// Ends a place, of which only the ticket stays locked.
    fn end_place(&mut self, owner: Owner) -> Option<Ended> {
        let ticket = self.tickets.remove(&owner)?;
        let own = self.places.remove(&ticket).and_then(|place| place.listener);
        let mut first = None;
        // Whoever is the first of this process now hears its bell.
        if let Some(mut next) = self.places.first_entry()
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
            next.get_mut().stage = Stage::Outside {
                since: Instant::now(),
            };
        }
        Some(Ended {
            ticket,
            own,
            next: first,
        })
    }

    /// The ticket of the first of those who wait when the lock that was granted to `ticket` has been
    /// given back, and who is the second.
    fn two_after(&self, ticket: u64) -> Result<(Option<u64>, Option<First>), FileError> {
        loop {
            let served = directory::version(&self.file)?.served();
            // Who was the first may have been granted it already, and given it back.
            let first = if served > ticket {
                Some(served)
            } else {
                let here = self.places.range(ticket..).next();
                let here = here.map(|(&here, _)| here);
                let elsewhere = tickets::first_from(&self.file, ticket + 1)?;
                here.into_iter().chain(elsewhere).min()
            };
            if directory::version(&self.file)?.served() != served {
                continue;
            }
            let second = first.and_then(|first| self.first_after(first, false));
            return Ok((first, second));
        }
    }

    /// Who is the first of those who wait behind `ticket`; only of this process if `is_told` says
    /// that any other was told.
    fn first_after(&self, ticket: u64, is_told: bool) -> Option<First> {
        let here = self.places.range(ticket + 1..).next();
        if here.is_none() && is_told {
            return None;
        }
        // Whoever is not told looks by itself.
        let elsewhere = tickets::first_from(&self.file, ticket + 1).ok().flatten();
        match (here, elsewhere) {
            (Some((&here, place)), elsewhere) if elsewhere.is_none_or(|it| here < it) => {
                place.listener.clone().map(First::Here)
            }
            (_, Some(_)) if is_told => None,
            (_, elsewhere) => elsewhere.map(First::Elsewhere),
        }
    }

    /// Returns what `ticket` must do next if it is the head waiter, or the second waiter and was
    /// notified.
    fn next_look(
        &mut self,
        ticket: u64,
        stage: Stage,
        longest_wait: Duration,
        spare: &mut Vec<(Arc<WakePipe>, Arc<Listener>)>,
    ) -> Result<Option<Next>, FileError> {
        let pause = match stage {
            Stage::Staring(version) => {
                return Ok(Some(Next::Stare(Arc::clone(&self.file), version)));
            }
            Stage::Blind => jitter(BLIND_WAIT),
            Stage::Listening { version, looks } => {
                let looks_again = looks.saturating_add(1);
                self.set(
                    ticket,
                    Stage::Listening {
                        version,
                        looks: looks_again,
                    },
                );
                match pause_after(looks) {
                    Some(pause) => pause,
                    None if self.is_first(ticket, version.served())? => longest_wait,
                    None => PATIENCE.min(longest_wait),
                }
            }
            Stage::Inside | Stage::Outside { .. } | Stage::Long { .. } | Stage::Told => {
                return Ok(None);
            }
        };
        Ok(Some(match self.listener_of(ticket, spare) {
            Some(to) => Next::Listen {
                to,
                pause,
                on_notification: Then::Look,
                then: Then::Look,
            },
            None => Next::Pause(jitter(BLIND_WAIT)),
        }))
    }

    fn set(&mut self, ticket: u64, stage: Stage) {
        if let Some(place) = self.places.get_mut(&ticket) {
            place.stage = stage;
        }
    }

    /// The listener of a place, if there are any to be had.
    fn listener_of(
        &mut self,
        ticket: u64,
        spare: &mut Vec<(Arc<WakePipe>, Arc<Listener>)>,
    ) -> Option<Arc<Listener>> {
        let place = self.places.get_mut(&ticket)?;
        if place.listener.is_none() {
            let fits = |pipe| self.pipe.as_ref().is_some_and(|own| Arc::ptr_eq(pipe, own));
            let fitting = spare.iter().position(|(pipe, _)| fits(pipe));
            let new = || Listener::new().ok().map(Arc::new);
            place.listener = match fitting {
                Some(at) => Some(spare.swap_remove(at).1),
                None => new(),
            };
        }
        place.listener.clone()
    }

    /// Whether nobody is before `ticket`, in this process or another, if all up to `served` do not
    /// wait any more. Who comes at the same time as the first may believe so, too.
    fn is_first(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
        let is_known = |place: &Place| place.is_first;
        Ok(self.places.get(&ticket).is_some_and(is_known)
            || (self.places.range(..ticket).next().is_none()
                && tickets::any(&self.file, served + 1, Some(ticket))?.is_none()))
    }

    /// Whether no more than one, of another process, is before `ticket`, which is the first of this
    /// one.
    fn is_second(&self, ticket: u64, served: u64) -> Result<bool, FileError> {
        if self.places.range(..ticket).next().is_some() {
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

impl Place {
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
        (PATIENCE, SAFETY_LOOK)
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
fn stare(file: &OpenFile, version: Version, end: Instant) -> Option<Version> {
    // A forked child must not wait for a thread of its parent that initializes this.
    static CORES: OnceNonZeroUsize = OnceNonZeroUsize::new();

    // With one core nothing would happen meanwhile.
    let cores = CORES.get_or_init(|| available_parallelism().unwrap_or(NonZeroUsize::MIN));
    if cores == NonZeroUsize::MIN {
        return None;
    }
    let end = end.min(Instant::now() + STARE);
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
const LOOKS_AT_ONCE: u32 = 2;

/// How often to look after pauses, of which each is twice as long as the one before.
const TIMED_LOOKS: u32 = 10;

/// How long to wait before the next look after so many: the kernel tells of a write, or of a
/// process's end, a moment before the lock is free.
fn pause_after(looks: u32) -> Option<Duration> {
    match looks.checked_sub(LOOKS_AT_ONCE) {
        _ if mutant!(LookedOnceAfterNews) && looks > 0 => None,
        None => Some(Duration::ZERO),
        Some(doubled) if doubled < TIMED_LOOKS => Some(Duration::from_micros(50 << doubled)),
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
            Next::Listen { pause, then, .. } => (pause, then),
            next => panic!("{next:?}"),
        };
        assert_eq!(next(), (SHORT_WAIT, Then::Ask));
        thread::sleep(SHORT_WAIT);
        assert_eq!(next(), (SHORT_WAIT, Then::Ask), "its process may be ending");
        let (pause, then) = next();
        assert!(pause > SHORT_WAIT && then == Then::Look, "{pause:?}");
        drop(others);
        assert!(matches!(queue.next(&directory, &claim), Next::Look));
    }
}
