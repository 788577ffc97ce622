//! One of many processes that want the same lock, until it is told to stop, or killed.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use verrou::blocking::LockFactory;
use verrou::{Clock, Error, Lease, Retry, Store, StoreError, Ttl};
use verrou_host::{FileError, FileStore, StoreOptions, StoreUrl, System};

use crate::resource::{Resource, Verdict, Word, now};

/// The lock they all want.
pub(crate) const LOCK: &str = "wanted";

/// What a contender is to do.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a wish of its own")]
pub(crate) struct Contender {
    /// Which one it is: no two have the same number.
    pub(crate) number: u64,
    pub(crate) seed: u64,
    pub(crate) store: String,
    pub(crate) resource: PathBuf,
    /// In milliseconds.
    pub(crate) ttl: Option<u64>,
    /// Whether its leases outlive it.
    pub(crate) detaches: bool,
    /// For how long it is inside, at most, in microseconds.
    pub(crate) hold: u64,
    /// For how long it does something else, at most, in microseconds.
    pub(crate) rest: u64,
    /// For how long it waits, at most, in microseconds; for ever when there is none.
    pub(crate) patience: Option<u64>,
    /// Whether it gives the lock back; if not, it lets its time pass.
    pub(crate) releases: bool,
    /// Whether somebody removes the files of locks that are held, so that another may get in. Then
    /// who held the lock is to be told.
    pub(crate) files_go: bool,
    /// Whether somebody renames the folder for moments, in which nothing can be told.
    pub(crate) folder_goes: bool,
}

/// The worker `contend`.
pub(crate) fn contend(arguments: &[String]) -> Result<()> {
    let [text] = arguments else {
        anyhow::bail!("what to do is one argument")
    };
    let it: Contender = serde_json::from_str(text)?;
    let store = it.store.parse::<StoreUrl>()?;
    let store = FileStore::open(&store, &StoreOptions::default())?;
    it.run(&store)
}

impl Contender {
    /// What must not happen is said on standard error, a line for each.
    fn run(&self, store: &FileStore) -> Result<()> {
        let resource = Resource::open(&self.resource)?;
        let mut random = Rng::with_seed(self.seed ^ self.number);
        let ttl = match self.ttl {
            Some(millis) => Ttl::new(Duration::from_millis(millis))?,
            None => Ttl::NEVER,
        };
        let lock = LockFactory::new(store, System).create_lock(LOCK, ttl)?;
        let expires = store.abilities().expires;

        while resource.get(Word::Stop) == 0 {
            let wanting = resource.word(Word::Wanting).fetch_add(1, SeqCst);
            let patience = self
                .patience
                .map(|most| Duration::from_micros(random.u64(..=most)));
            let retry = match patience {
                Some(patience) => Retry::FOR_EVER.timeout(patience),
                None => Retry::FOR_EVER,
            };
            let began = Instant::now();
            let acquired = lock.acquire_with(&retry);
            let waited = began.elapsed();
            match acquired {
                Ok(lease) => {
                    if wanting > 0 {
                        resource.word(Word::Contended).fetch_add(1, SeqCst);
                    }
                    if self.detaches
                        && let Err(err) = lock.serialize()
                        && !is_over(&lease)
                    {
                        self.complain(format!("detaching: {:#}", anyhow::Error::from(err)));
                    }
                    let stay = Duration::from_micros(random.u64(..=self.hold));
                    self.hold(&resource, &lease, expires, stay, || lock.release())?;
                }
                Err(Error::Timeout { .. }) if patience.is_some() => {
                    resource.word(Word::TimedOut).fetch_add(1, SeqCst);
                    let over = waited.saturating_sub(patience.unwrap_or_default());
                    let over = u64::try_from(over.as_nanos())?;
                    resource.word(Word::Overshoot).fetch_max(over, SeqCst);
                }
                Err(Error::Storage(err)) if self.folder_goes && is_nowhere(&err) => {
                    resource.word(Word::Nowhere).fetch_add(1, SeqCst);
                }
                Err(err) => self.complain(format!("acquiring: {:#}", anyhow::Error::from(err))),
            }
            resource.word(Word::Wanting).fetch_sub(1, SeqCst);
            spend(Duration::from_micros(random.u64(..=self.rest)));
        }
        Ok(())
    }

    /// What is done with a lock that was just granted.
    fn hold(
        &self,
        resource: &Resource,
        lease: &Lease,
        expires: bool,
        stay: Duration,
        release: impl Fn() -> Result<(), Error>,
    ) -> Result<()> {
        let fence = lease.fence().context("every grant has a fencing token")?;
        let deadline = match lease.ends().filter(|_| expires) {
            Some(ends) => u64::try_from(ends.since_start().as_nanos())?,
            None => u64::MAX,
        };
        let entered = resource.enter(self.number, fence.get(), deadline);
        match &entered {
            Verdict::Beside(what) if !self.files_go => self.complain(what),
            Verdict::FenceWentBack(what) if !self.files_go => self.complain(what),
            Verdict::FenceCameAgain(what) => self.complain(what),
            _ => {}
        }
        let came_too_late = entered == Verdict::Stale;
        let mut was_passed = matches!(entered, Verdict::FenceWentBack(_));
        if !came_too_late {
            if deadline == u64::MAX && !self.files_go {
                resource.count(|| spend(stay));
            } else {
                spend(stay);
            }
            if !self.releases {
                // Its time passes while it is inside.
                while now() < deadline {
                    spend(Duration::from_micros(50));
                }
            }
            match resource.leave(self.number) {
                Verdict::Beside(what) if !self.files_go => self.complain(what),
                Verdict::Fine => {}
                _ => was_passed = true,
            }
            was_passed |= resource.was_displaced(self.number);
        }
        match released(release, lease) {
            Ok(()) if was_passed => {
                self.complain("another got in beside it, and it was told that all was well");
            }
            Err(Error::Storage(err)) if self.folder_goes && is_nowhere(&err) => {}
            Err(err) if !was_passed && !came_too_late && !is_over(lease) && !self.files_go => {
                self.complain(format!("giving it back: {:#}", anyhow::Error::from(err)));
            }
            _ => {}
        }
        Ok(())
    }

    fn complain(&self, what: impl AsRef<str>) {
        let line = format!("number {}: {}\n", self.number, what.as_ref());
        // In one piece, for others write there, too.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Whether the folder was not there.
fn is_nowhere(err: &StoreError) -> bool {
    let err = err.get_ref().downcast_ref();
    matches!(err, Some(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}

/// Gives a lock back; asks again where the store says that it may soon be able to: another may be
/// stopped in the middle of a step.
fn released(release: impl Fn() -> Result<(), Error>, lease: &Lease) -> Result<(), Error> {
    const LONGEST: Duration = Duration::from_secs(2);

    let began = Instant::now();
    loop {
        match release() {
            Err(Error::Storage(err))
                if err.is_temporary() && !is_over(lease) && began.elapsed() < LONGEST => {}
            ended => return ended,
        }
    }
}

/// Whether the time of `lease` has passed.
fn is_over(lease: &Lease) -> bool {
    lease.is_expired(System.now())
}

/// Lets this much time pass: too little to sleep through, or else asleep.
fn spend(length: Duration) {
    if length > Duration::from_micros(300) {
        thread::sleep(length);
        return;
    }
    let began = Instant::now();
    while began.elapsed() < length {
        std::hint::spin_loop();
    }
}
