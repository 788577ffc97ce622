//! Who waits for a lock, in the order in which they came.
//!
//! A place in the queue is a byte of the lock's file, far past its end, locked for as long as its
//! owner waits: the first free byte after all that are locked. The kernel unlocks it when the
//! process ends. The first in the queue listens to the lock's file; everyone else to the bell of
//! the place before: a file of which all bells of many locks are one, that is written when a place
//! is left, and closed when a process ends. So a lock that is given back wakes one process, and
//! the next hears of it when that one has left the queue. See `FORMAT.md`.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::future;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crc32c::crc32c;
use verrou::{Claim, Name, Owner};

use super::byte_lock;
use super::directory::Directory;
use super::error::FileError;
use super::file_events::{Listener, News};
use super::jitter;
use super::open_files::OpenFile;
use super::os;

/// For how long a lock that was given back is kept for the first in its queue.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);

/// How long is waited at most without a look, should an event be lost.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// How long is waited between looks where the kernel tells of no events.
const BLIND_WAIT: Duration = Duration::from_millis(10);

/// How soon a task that is to look again at once does so.
const SHORTEST_ALARM: Duration = Duration::from_micros(20);

/// The byte of the ticket 0: past those of all grants.
const FIRST_TICKET: u64 = (1 << 62) + (1 << 61);

/// How many bells a folder has.
pub(crate) const BELLS: u32 = 64;

/// Those of this process who wait, and whom they wait behind.
#[derive(Debug)]
pub(crate) struct Queue {
    /// A file that is locked by programs that know of no queue.
    foreign: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// A forked child's copy is not in the queue.
    process: u32,
    lines: HashMap<Name, Line>,
    /// Of those who have just left, to be reused or ended when nobody waits for that: ending a
    /// watch takes the kernel longer than a grant.
    spare: Vec<Arc<Listener>>,
    /// Those who hold a lock and want to know should they lose it.
    guards: HashMap<Owner, Arc<Listener>>,
    bells: HashMap<u32, OpenFile>,
}

/// Those of this process who wait for one lock.
#[derive(Debug)]
struct Line {
    /// The lock's file, whose open file description has their bytes locked.
    file: OpenFile,
    /// By ticket.
    places: BTreeMap<u64, Place>,
    tickets: HashMap<Owner, u64>,
}

#[derive(Debug)]
struct Place {
    /// `None` when there are no more to be had: then the place is looked after from time to time.
    listener: Option<Arc<Listener>>,
    listens_to: Option<Sound>,
    /// How often was looked since there was news.
    looks: u32,
}

/// What a place listens to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sound {
    /// The lock's file.
    Lock,
    /// The bell of a place in another process.
    Bell(u32),
    /// A place in this process, which tells by itself.
    Place,
}

/// What one who waits is to do.
#[derive(Debug)]
pub(crate) enum Next {
    /// Try to take the lock.
    Look,
    /// Wait until there is news, or as long as `pause`; then do what `on_news` or `then` says.
    Listen {
        to: Arc<Listener>,
        pause: Duration,
        on_news: Then,
        then: Then,
    },
    /// Let this long pass, and try to take the lock.
    Pause(Duration),
}

/// What one who has waited is to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Then {
    /// Try to take the lock.
    Look,
    /// Ask again.
    Ask,
}

impl Queue {
    /// A queue for locks of this software's files, or for the lock of a file that is locked by
    /// programs, too, that know of no queue.
    pub(crate) fn new(foreign: Option<PathBuf>) -> Self {
        Self {
            foreign,
            state: Mutex::new(State::new()),
        }
    }

    /// Whether nobody is to be granted the lock of `claim` before its owner. `file` is the lock's
    /// file.
    pub(crate) fn is_first(&self, claim: &Claim, file: &OpenFile) -> Result<bool, FileError> {
        if let Some(state) = self.state_if_used()
            && let Some((line, ticket)) = state.place_of(claim)
        {
            return Ok(line.ahead_of(ticket)?.is_none());
        }
        Ok(any_ticket(file, 0, None)?.is_none())
    }

    /// Whether the owner of `claim` has a place that is not the first.
    pub(crate) fn is_behind(&self, claim: &Claim) -> Result<bool, FileError> {
        match self.state_if_used() {
            Some(state) => match state.place_of(claim) {
                Some((line, ticket)) => Ok(line.ahead_of(ticket)?.is_some()),
                None => Ok(false),
            },
            None => Ok(false),
        }
    }

    /// Ends the place of `claim`, which was granted, if it has one; whoever waits behind it is
    /// told.
    pub(crate) fn granted(&self, directory: &Directory, claim: &Claim) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let (own, behind) = state.leave(directory, claim);
        state.spare.extend(own);
        drop(state);
        if let Some(listener) = behind {
            listener.ring();
        }
    }

    /// Ends the place of `claim`, if it has one; whoever waits behind it is told, and its own wait
    /// ends.
    pub(crate) fn leave(&self, directory: &Directory, claim: &Claim) {
        let Some(mut state) = self.state_if_used() else {
            return;
        };
        let (own, behind) = state.leave(directory, claim);
        let guard = state.guards.remove(&claim.owner);
        drop(state);
        for listener in [own, behind, guard].into_iter().flatten() {
            listener.ring();
        }
    }

    /// Ends what is kept of those who were granted a lock, now that nobody waits for them.
    pub(crate) fn tidy(&self) {
        if let Some(mut state) = self.state_if_used() {
            let spare = std::mem::take(&mut state.spare);
            drop(state);
            drop(spare);
        }
    }

    /// Waits until the lock of `claim` may be free for its owner, but at most `at_most`.
    pub(crate) fn wait(&self, directory: &Directory, claim: &Claim, at_most: Duration) {
        let end = Instant::now() + at_most.min(LONGEST_WAIT);
        loop {
            match self.next(directory, claim) {
                Next::Look => return,
                Next::Listen {
                    to,
                    pause,
                    on_news,
                    then,
                } => {
                    let news = if pause.is_zero() {
                        thread::yield_now();
                        None
                    } else {
                        to.wait(end.min(Instant::now() + pause))
                    };
                    let then = self.heard(claim, news).map_or(then, |()| on_news);
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

    /// [`wait`](Self::wait), for a task; where the kernel tells of no events this does not end,
    /// and time has to.
    pub(crate) async fn waited(&self, directory: &Directory, claim: &Claim) {
        loop {
            match self.next(directory, claim) {
                Next::Look => return,
                Next::Listen {
                    to,
                    pause,
                    on_news,
                    then,
                } => {
                    // Others on this thread have their turn meanwhile, too.
                    let until = Instant::now() + pause.max(SHORTEST_ALARM);
                    let news = future::poll_fn(|context| to.poll(context, until)).await;
                    let then = self.heard(claim, news).map_or(then, |()| on_news);
                    if then == Then::Look {
                        return;
                    }
                }
                Next::Pause(_) => future::pending().await,
            }
        }
    }

    /// Waits until something happens to the lock `name`, but at most `at_most`, without a place.
    /// `is_over` is asked when it can be told what happens.
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
                None if listener.is_ok() && self.foreign.is_none() => LONGEST_WAIT,
                None => jitter(BLIND_WAIT),
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
        let path = directory.path_of(name);
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

    /// What the owner of `claim` is to do next.
    fn next(&self, directory: &Directory, claim: &Claim) -> Next {
        // What keeps it from listening keeps it from nothing else.
        self.state()
            .next(directory, self.foreign.as_ref(), claim)
            .unwrap_or_else(|_| Next::Pause(jitter(BLIND_WAIT)))
    }

    /// Takes note of what the owner of `claim` has heard, if anything.
    fn heard(&self, claim: &Claim, news: Option<News>) -> Option<()> {
        let news = news?;
        let mut state = self.state();
        if let Some(line) = state.lines.get_mut(&claim.name)
            && let Some(ticket) = line.ticket_of(claim.owner)
            && let Some(place) = line.places.get_mut(&ticket)
            // A bell is written when a place has been left.
            && (place.listens_to == Some(Sound::Lock) || news == News::Ended)
        {
            place.looks = 0;
        }
        Some(())
    }

    /// Nothing when nobody waits or watches, which costs no system call to tell.
    fn state_if_used(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_used =
            !(state.lines.is_empty() && state.guards.is_empty() && state.spare.is_empty());
        drop(state);
        is_used.then(|| self.state())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.process != std::process::id() {
            *state = State::new();
        }
        state
    }
}

impl State {
    fn new() -> Self {
        Self {
            process: std::process::id(),
            lines: HashMap::new(),
            spare: Vec::new(),
            guards: HashMap::new(),
            bells: HashMap::new(),
        }
    }

    fn place_of(&self, claim: &Claim) -> Option<(&Line, u64)> {
        let line = self.lines.get(&claim.name)?;
        Some((line, line.ticket_of(claim.owner)?))
    }

    fn next(
        &mut self,
        directory: &Directory,
        foreign: Option<&PathBuf>,
        claim: &Claim,
    ) -> Result<Next, FileError> {
        let ticket = self.join(directory, claim)?;
        let Some(line) = self.lines.get_mut(&claim.name) else {
            return Ok(Next::Look);
        };
        loop {
            let ahead = line.ahead_of(ticket)?;
            let is_second = match ahead {
                Some(ahead) => line.ahead_of(ahead)?.is_none(),
                None => false,
            };
            let is_here = ahead.is_some_and(|ahead| line.places.contains_key(&ahead));
            let Some(place) = line.places.get_mut(&ticket) else {
                return Ok(Next::Look);
            };
            let Some(listener) = place.listener(&mut self.spare) else {
                return Ok(Next::Pause(jitter(BLIND_WAIT)));
            };
            let sound = match ahead {
                None => Sound::Lock,
                Some(_) if is_here => Sound::Place,
                Some(ahead) => Sound::Bell(bell_of(&claim.name, ahead)),
            };
            if place.listens_to == Some(sound) {
                let pause = pause_after(place.looks);
                place.looks = place.looks.saturating_add(1);
                let look = |when| if when { Then::Look } else { Then::Ask };
                return Ok(Next::Listen {
                    to: listener,
                    pause: pause.unwrap_or(match sound {
                        Sound::Lock if foreign.is_some() => jitter(BLIND_WAIT),
                        // Should the first not take the lock, the second does.
                        _ if is_second => PATIENCE,
                        _ => LONGEST_WAIT,
                    }),
                    on_news: look(sound == Sound::Lock),
                    then: look(sound == Sound::Lock || pause.is_none()),
                });
            }
            let bell = match sound {
                Sound::Bell(bell) => Some(directory.bell_path(bell)),
                _ => None,
            };
            let (file, foreign) = match sound {
                Sound::Lock => (Some(line.file.path()), foreign.map(PathBuf::as_path)),
                _ => (bell.as_deref(), None),
            };
            listener
                .watch(file.into_iter().chain(foreign))
                .map_err(FileError::io("watch this file", line.file.path()))?;
            place.listens_to = Some(sound);
            // What has happened by now is not heard of, and its effect may be to come.
            match sound {
                Sound::Lock => {
                    place.looks = 0;
                    return Ok(Next::Look);
                }
                // Of a process that ends: few places are before one that does.
                Sound::Bell(_) => place.looks = LAST_LOOKS,
                Sound::Place => place.looks = u32::MAX,
            }
        }
    }

    /// The ticket of the owner of `claim`, who gets the last place in the queue if it has none.
    fn join(&mut self, directory: &Directory, claim: &Claim) -> Result<u64, FileError> {
        if let Some(line) = self.lines.get(&claim.name)
            && !line.file.is_current()?
        {
            // Another file counts now, and so does its queue.
            for listener in self.remove_line(directory, &claim.name) {
                listener.ring();
            }
        }
        let line = match self.lines.entry(claim.name.clone()) {
            Entry::Occupied(line) => line.into_mut(),
            Entry::Vacant(vacant) => {
                let file = directory.take_or_create(&claim.name)?;
                directory.want(&claim.name);
                vacant.insert(Line {
                    file,
                    places: BTreeMap::new(),
                    tickets: HashMap::new(),
                })
            }
        };
        if let Some(ticket) = line.ticket_of(claim.owner) {
            return Ok(ticket);
        }
        let ticket = match line.append() {
            Ok(ticket) => ticket,
            Err(err) => {
                if line.places.is_empty() {
                    self.remove_line(directory, &claim.name);
                }
                return Err(err);
            }
        };
        let place = Place {
            listener: None,
            listens_to: None,
            looks: 0,
        };
        line.places.insert(ticket, place);
        line.tickets.insert(claim.owner, ticket);
        let bell = bell_of(&claim.name, ticket);
        if let Entry::Vacant(vacant) = self.bells.entry(bell) {
            vacant.insert(directory.open_bell(bell)?);
        }
        Ok(ticket)
    }

    /// Returns the listener of the owner, and that of the place behind if it is to be told here.
    fn leave(
        &mut self,
        directory: &Directory,
        claim: &Claim,
    ) -> (Option<Arc<Listener>>, Option<Arc<Listener>>) {
        let Some(line) = self.lines.get_mut(&claim.name) else {
            return (None, None);
        };
        let Some(ticket) = line.tickets.remove(&claim.owner) else {
            return (None, None);
        };
        let own = line.places.remove(&ticket).and_then(|place| place.listener);
        // An error leaves it locked until the file is closed; those behind look by themselves.
        let _ = byte_lock::unlock(line.file.file(), FIRST_TICKET + ticket);
        let behind = line.places.range(ticket..).next().map(|(_, place)| place);
        let behind = behind.filter(|place| place.listens_to == Some(Sound::Place));
        let behind = behind.and_then(|place| place.listener.clone());
        let bell = self.bells.get(&bell_of(&claim.name, ticket));
        if let Some(bell) = bell
            && !matches!(any_ticket(&line.file, ticket, None), Ok(None))
        {
            let _ = os::write_at(bell.file(), &[0], 0);
        }
        if line.places.is_empty() {
            self.remove_line(directory, &claim.name);
        }
        (own, behind)
    }

    /// Ends the line of the lock `name`; returns the listeners of those who were in it.
    fn remove_line(&mut self, directory: &Directory, name: &Name) -> Vec<Arc<Listener>> {
        let Some(line) = self.lines.remove(name) else {
            return Vec::new();
        };
        let mut listeners = Vec::new();
        if line.places.is_empty() {
            directory.put(name, line.file);
        } else {
            listeners.extend(line.places.into_values().filter_map(|place| place.listener));
        }
        directory.unwant(name);
        listeners
    }
}

impl Line {
    fn ticket_of(&self, owner: Owner) -> Option<u64> {
        self.tickets.get(&owner).copied()
    }

    /// The nearest place ahead of `ticket`, in this process or another.
    fn ahead_of(&self, ticket: u64) -> Result<Option<u64>, FileError> {
        let here = self
            .places
            .range(..ticket)
            .next_back()
            .map(|(&ticket, _)| ticket);
        // Mostly the one right before, if any.
        let Some(mut elsewhere) =
            any_ticket(&self.file, here.map_or(0, |here| here + 1), Some(ticket))?
        else {
            return Ok(here);
        };
        let mut reach = 1;
        while let Some(start) = ticket.checked_sub(reach).filter(|&start| elsewhere < start) {
            if let Some(nearer) = any_ticket(&self.file, start, Some(ticket))? {
                elsewhere = nearer;
                break;
            }
            reach *= 2;
        }
        while let Some(nearer) = any_ticket(&self.file, elsewhere + 1, Some(ticket))? {
            elsewhere = nearer;
        }
        Ok(Some(elsewhere))
    }

    /// Locks the ticket after the last.
    fn append(&self) -> Result<u64, FileError> {
        let here = self.places.last_key_value().map(|(&ticket, _)| ticket);
        let mut next = here.map_or(0, |here| here + 1);
        let mut reach = 0;
        while let Some(ticket) = any_ticket(&self.file, next + reach, None)? {
            next = ticket + 1;
            reach = (reach * 2).max(1);
        }
        while reach > 0 {
            reach /= 2;
            while let Some(ticket) = any_ticket(&self.file, next + reach, None)? {
                next = ticket + 1;
            }
        }
        let locked = |ticket| {
            byte_lock::try_lock(self.file.file(), FIRST_TICKET + ticket)
                .map_err(FileError::io("lock a byte of this file", self.file.path()))
        };
        while !locked(next)? {
            next += 1;
        }
        Ok(next)
    }
}

impl Place {
    /// Its listener, if there are any to be had.
    fn listener(&mut self, spare: &mut Vec<Arc<Listener>>) -> Option<Arc<Listener>> {
        if self.listener.is_none() {
            let new = || Listener::new().ok().map(Arc::new);
            self.listener = spare.pop().or_else(new);
        }
        self.listener.clone()
    }
}

/// As long from now as is asked, or as makes no difference.
fn after(length: Duration) -> Instant {
    const AGES: Duration = Duration::from_hours(24 * 365);

    Instant::now() + length.min(AGES)
}

/// Some ticket of another open file description than `file`'s, from `from` on and before `end`.
fn any_ticket(file: &OpenFile, from: u64, end: Option<u64>) -> Result<Option<u64>, FileError> {
    if end.is_some_and(|end| end <= from) {
        return Ok(None);
    }
    let length = end.map(|end| end - from);
    let found = byte_lock::find(file.file(), FIRST_TICKET + from, length)
        .map_err(FileError::io("ask who waits for this file", file.path()))?;
    Ok(found.map(|byte| byte.saturating_sub(FIRST_TICKET)))
}

/// The bell of a place, which is the same in every process.
fn bell_of(name: &Name, ticket: u64) -> u32 {
    let some_of_ticket = u32::try_from(ticket % u64::from(BELLS)).unwrap_or_default();
    crc32c(name.as_str().as_bytes()).wrapping_add(some_of_ticket) % BELLS
}

/// How often to look without a pause in between.
const LOOKS_AT_ONCE: u32 = 2;

/// How often to look after pauses, of which each is twice as long as the one before.
const TIMED_LOOKS: u32 = 10;

/// After how many of them only the last are left.
const LAST_LOOKS: u32 = LOOKS_AT_ONCE + TIMED_LOOKS - 3;

/// How long to wait before the next look after so many: the kernel tells of a write, or of a
/// process's end, a moment before the lock is free.
fn pause_after(looks: u32) -> Option<Duration> {
    match looks.checked_sub(LOOKS_AT_ONCE) {
        None => Some(Duration::ZERO),
        Some(doubled) if doubled < TIMED_LOOKS => Some(Duration::from_micros(50 << doubled)),
        Some(_) => None,
    }
}
