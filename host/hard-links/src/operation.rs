//! The operations of a store on the directory of a lock: each finds the current state, and replaces it by
//! compare-and-swap.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use verrou::{Acquired, Claim, Fence, Holder, Name, Process, Renewed};

use crate::decision::{self, Current, Decision, Moment, Next, NoFenceLeft};
use crate::file_names;
use crate::listing::Listing;
use crate::settings::{self, Settings};
use crate::state::{self, Corruption, State};
use crate::{Linked, StateFiles};

/// The suffix of the directory of a lock.
const DIRECTORY: &str = ".states";

/// The number of times that an operation begins again because other processes changed the state meanwhile.
const ATTEMPTS: u32 = 100;

/// The failure of an operation on a store's directory.
#[derive(Debug)]
#[non_exhaustive]
pub enum OperationError<E> {
    /// An operation on a file failed.
    Files(E),
    /// A file is not what the store wrote.
    Corrupt {
        /// The file's name in its directory.
        file: String,
        /// Why it is not a file of the store.
        corruption: Corruption,
    },
    /// The lock has had the greatest fencing token.
    NoFenceLeft,
    /// Other processes changed the state at every attempt.
    Contended {
        /// The number of attempts.
        attempts: u32,
    },
    /// The file system has no hard links, or replaces an existing file by a link.
    NoHardLinks,
}

type Outcome<T, E> = Result<T, OperationError<E>>;

/// Returns the name of the directory of the lock `name`, in the store's directory.
pub fn lock_directory_name(name: &Name) -> String {
    file_names::file_stem(name) + DIRECTORY
}

/// Returns whether the entry `entry` of a store's directory has the name of a lock's directory.
pub fn is_lock_directory(entry: &str) -> bool {
    entry.ends_with(DIRECTORY)
}

/// Opens the store in the directory of `files`: creates the file `store` if there is none, and examines whether the
/// file system has hard links.
///
/// # Errors
///
/// Returns an [`OperationError`] if the directory cannot be used, or was made by another version.
pub fn open<F: StateFiles>(files: &F) -> Outcome<Settings, F::Error> {
    let failed = OperationError::Files;
    let mut bytes = files
        .read(settings::FILE, settings::LONGEST)
        .map_err(failed)?;
    if bytes.is_none() {
        let draft = format!("store.{:032x}.draft", files.random());
        let text = Settings::default().to_text();
        let created = files.create(&draft, text.as_bytes());
        let linked = created.and_then(|()| files.link(&draft, settings::FILE));
        // If this fails, a small file is left.
        let _ = files.delete(&draft);
        if linked.map_err(failed)? == Linked::Refused {
            return Err(OperationError::NoHardLinks);
        }
        files.sync().map_err(failed)?;
        bytes = files
            .read(settings::FILE, settings::LONGEST)
            .map_err(failed)?;
    }
    let settings = bytes.as_deref().and_then(Settings::parse);
    let settings = settings.ok_or_else(|| OperationError::Corrupt {
        file: settings::FILE.into(),
        corruption: Corruption::Settings,
    })?;
    if has_hard_links(files).map_err(failed)? {
        Ok(settings)
    } else {
        Err(OperationError::NoHardLinks)
    }
}

/// Returns whether the file system has hard links, and none that replace an existing file.
fn has_hard_links<F: StateFiles>(files: &F) -> Result<bool, F::Error> {
    let mut linked = files.link(settings::FILE, settings::PROBE);
    if matches!(linked, Ok(Linked::Refused)) {
        // Some systems refuse a link to another user's file.
        let draft = format!("{}.{:032x}.draft", settings::PROBE, files.random());
        let created = files.create(&draft, &[]);
        linked = created.and_then(|()| files.link(&draft, settings::PROBE));
        let _ = files.delete(&draft);
    }
    let has_links = match linked {
        // Another program may do the same at the same time, so both replies show that there are links.
        Ok(linked) => matches!(linked, Linked::Done | Linked::Exists),
        // The disk is full, or read-only. Operations that need a link report that themselves.
        Err(_) => return Ok(true),
    };
    let onto_itself = files.link(settings::FILE, settings::FILE)?;
    files.delete(settings::PROBE)?;
    Ok(has_links && onto_itself == Linked::Exists)
}

/// Returns the name of the lock whose directory `files` is, if it was ever granted.
///
/// # Errors
///
/// Returns an [`OperationError`] if the directory cannot be read, or its current state is corrupt.
pub fn locked_name<F: StateFiles>(files: &F) -> Outcome<Option<Name>, F::Error> {
    let current = repeated(|| read(files))?;
    Ok(current.map(|current| current.name().clone()))
}

/// The directory of one lock, at one moment. Its operations are those of a [`Store`](verrou::Store).
#[derive(Debug)]
pub struct LockDirectory<'a, F> {
    files: &'a F,
    name: &'a Name,
    moment: Moment,
}

impl<'a, F: StateFiles> LockDirectory<'a, F> {
    /// Returns the directory of the lock `name`, whose files are `files`.
    pub fn new(files: &'a F, name: &'a Name, moment: Moment) -> Self {
        Self {
            files,
            name,
            moment,
        }
    }

    /// Records `claim` if the name is free, for `process`; see [`Store::acquire`](verrou::Store::acquire).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when the outcome is unknown.
    pub fn acquire(&self, claim: &Claim, process: Option<&Process>) -> Outcome<Acquired, F::Error> {
        self.operate(|current| decision::acquire(current, claim, process, self.moment))
    }

    /// Extends the lease, and returns whether it was extended; see [`Store::extend`](verrou::Store::extend).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when the outcome is unknown.
    pub fn extend(&self, claim: &Claim) -> Outcome<bool, F::Error> {
        self.operate(|current| Ok(decision::extend(current, claim, self.moment)))
    }

    /// Renews the lease; see [`Store::renew`](verrou::Store::renew).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when the outcome is unknown.
    pub fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Outcome<Renewed, F::Error> {
        self.operate(|current| Ok(decision::renew(current, claim, fence, self.moment)))
    }

    /// Frees the name, and returns whether it was held; see [`Store::release`](verrou::Store::release).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when the outcome is unknown.
    pub fn release(&self, claim: &Claim) -> Outcome<bool, F::Error> {
        self.operate(|current| Ok(decision::release(current, claim, self.moment)))
    }

    /// Force-releases the name, and returns whether it was held; see
    /// [`Store::force_release`](verrou::Store::force_release).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when the outcome is unknown.
    pub fn force_release(&self, only: Option<Fence>) -> Outcome<bool, F::Error> {
        self.operate(|current| Ok(decision::force_release(current, only, self.moment)))
    }

    /// Returns the holder of the name; see [`Store::holders`](verrou::Store::holders).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when the holder cannot be determined.
    pub fn holder(&self) -> Outcome<Option<Holder>, F::Error> {
        let current = self.current()?;
        Ok(decision::holder(current.as_ref(), self.moment))
    }

    /// Returns whether the owner of `claim` holds the name; see [`Store::holds`](verrou::Store::holds).
    ///
    /// # Errors
    ///
    /// Returns an [`OperationError`] when that cannot be determined.
    pub fn holds(&self, claim: &Claim) -> Outcome<bool, F::Error> {
        let current = self.current()?;
        Ok(decision::holds(current.as_ref(), claim, self.moment))
    }

    fn current(&self) -> Outcome<Option<Current>, F::Error> {
        repeated(|| self.read())
    }

    /// Reads the current state, as [`read`] does, and checks that it is this lock's.
    #[expect(
        clippy::option_option,
        reason = "to be repeated, or a lock that has no state, or one that has"
    )]
    fn read(&self) -> Outcome<Option<Option<Current>>, F::Error> {
        let found = read(self.files)?;
        match found.as_ref().and_then(Option::as_ref) {
            Some(current) if current.name() != self.name => {
                Err(corrupt(current.number(), Corruption::OtherName))
            }
            _ => Ok(found),
        }
    }

    /// Does the operation that `decide` decides on, in one atomic step.
    fn operate<T>(
        &self,
        decide: impl Fn(Option<&Current>) -> Result<Decision<T>, NoFenceLeft>,
    ) -> Outcome<T, F::Error> {
        repeated(|| {
            let Some(current) = self.read()? else {
                return Ok(None);
            };
            let number = current.as_ref().map_or(0, Current::number);
            let decision = decide(current.as_ref());
            let Decision { reply, next } =
                decision.map_err(|NoFenceLeft| OperationError::NoFenceLeft)?;
            if number >= file_names::LAST && !matches!(next, Next::None) {
                return Err(OperationError::NoFenceLeft);
            }
            let is_done = match next {
                Next::None => true,
                Next::Released(state) => self.release_state(number, &state)?,
                Next::State(state) => self.replace_state(number, &state)?,
            };
            Ok(is_done.then_some(reply))
        })
    }

    /// Gives the state `number` the next number, too, for which no file need be written. Where that fails, writes
    /// `state`. Returns `false` if `number` is not the current state any more.
    ///
    /// If another process was first, that process has linked a file to the next number. The link fails then: neither
    /// file can have been deleted without the other, because states are deleted in ascending order.
    fn release_state(&self, number: u64, state: &State) -> Outcome<bool, F::Error> {
        let link = || {
            let (from, to) = (file_names::state(number), file_names::state(number + 1));
            self.files.link(&from, &to)
        };
        let mut linked = link();
        if linked.is_err() {
            // On some file systems, a second name needs the room of a file.
            self.clean(&self.list()?, number);
            linked = link();
        }
        match linked.map_err(OperationError::Files)? {
            // Some systems refuse a link to another user's file.
            Linked::Refused => self.replace_state(number, state),
            linked => Ok(linked == Linked::Done),
        }
    }

    /// Writes `state` and links it to the number after `number`. Returns `false` if that is not the number of the
    /// current state any more.
    ///
    /// While the draft exists, no process deletes the state that it is to become, except those that listed the
    /// directory before. So the directory is listed once more after the draft was created: if `number` still is the
    /// current state, then the link can only succeed if the next number has never been used.
    fn replace_state(&self, number: u64, state: &State) -> Outcome<bool, F::Error> {
        let draft = file_names::draft(number, self.files.random());
        let text = state.to_text();
        if let Err(err) = self.files.create(&draft, text.as_bytes()) {
            // Part of it may have been written.
            let _ = self.files.delete(&draft);
            return Err(OperationError::Files(err));
        }
        let listed = self.list();
        let linked = match &listed {
            Ok(listing) if listing.current() == number || mutant!(DraftNotCheckedAgain) => {
                self.files.link(&draft, &file_names::state(number + 1))
            }
            _ => Ok(Linked::Exists),
        };
        // If this fails, the draft is deleted by the operation after the next one.
        let _ = self.files.delete(&draft);
        let listing = listed?;
        match linked.map_err(OperationError::Files)? {
            Linked::Done => {}
            Linked::Exists | Linked::Gone => return Ok(false),
            Linked::Refused => return Err(OperationError::NoHardLinks),
        }
        self.files.sync().map_err(OperationError::Files)?;
        self.clean(&listing, number);
        Ok(true)
    }

    fn list(&self) -> Outcome<Listing, F::Error> {
        list(self.files)
    }

    /// Deletes the states before `number`, and the drafts that were to follow them. `listing` was begun when the
    /// state `number` existed.
    ///
    /// Drafts are deleted before states, because a draft that exists may still be linked; and states in ascending
    /// order, because a state that exists may still be linked to the next number.
    fn clean(&self, listing: &Listing, number: u64) {
        let mut files: Vec<String> = listing.drafts_before(number).map(Into::into).collect();
        let drafts = files.len();
        files.extend(listing.states_before(number).map(file_names::state));
        if mutant!(DraftsDeletedLast) {
            files.rotate_left(drafts);
        }
        if mutant!(StatesDeletedDescending) {
            files[drafts..].reverse();
        }
        for file in files {
            // A later operation deletes the rest.
            if self.files.delete(&file).is_err() {
                return;
            }
        }
    }
}

/// Repeats `attempt` until it returns a result, but not without a limit.
fn repeated<T, E>(mut attempt: impl FnMut() -> Outcome<Option<T>, E>) -> Outcome<T, E> {
    for _ in 0..ATTEMPTS {
        if let Some(done) = attempt()? {
            return Ok(done);
        }
    }
    Err(OperationError::Contended { attempts: ATTEMPTS })
}

/// Reads the current state of a lock, which has none if it was never granted. Returns `None` if another process
/// replaced and deleted the state meanwhile.
#[expect(
    clippy::option_option,
    reason = "to be repeated, or a lock that has no state, or one that has"
)]
fn read<F: StateFiles>(files: &F) -> Outcome<Option<Option<Current>>, F::Error> {
    let number = list(files)?.current();
    if number == 0 {
        return Ok(Some(None));
    }
    let bytes = files.read(&file_names::state(number), state::LONGEST + 1);
    let Some(bytes) = bytes.map_err(OperationError::Files)? else {
        return Ok(None);
    };
    let state = State::parse(&bytes).map_err(|corruption| corrupt(number, corruption))?;
    match Current::new(number, state) {
        Some(current) => Ok(Some(Some(current))),
        None => Err(corrupt(number, Corruption::OtherNumber)),
    }
}

fn list<F: StateFiles>(files: &F) -> Outcome<Listing, F::Error> {
    let names = files.list().map_err(OperationError::Files)?;
    Listing::of(names).map_err(|file| OperationError::Corrupt {
        file,
        corruption: Corruption::Foreign,
    })
}

/// Returns the error that the file of a state is corrupt.
fn corrupt<E>(number: u64, corruption: Corruption) -> OperationError<E> {
    OperationError::Corrupt {
        file: file_names::state(number),
        corruption,
    }
}
