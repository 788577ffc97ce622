//! One of many processes that acquire the same lock, until it is stopped or killed.

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
use verrou_host::{AnyStore, FileError, StoreOptions, StoreUrl, System};

use crate::checked_log::{Resource, Verdict, Word, now};

/// The name of the contended lock.
pub(crate) const LOCK: &str = "wanted";

/// The configuration of a contending process.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "the options are independent")]
pub(crate) struct Contender {
    /// The unique number of the process.
    pub(crate) number: u64,
    pub(crate) seed: u64,
    pub(crate) store: String,
    pub(crate) resource: PathBuf,
    /// The TTL of its leases, in milliseconds.
    pub(crate) ttl: Option<u64>,
    /// Whether it detaches its leases.
    pub(crate) detaches: bool,
    /// The longest time that it holds the lock, in microseconds.
    pub(crate) hold: u64,
    /// The longest pause between two acquire requests, in microseconds.
    pub(crate) pause: u64,
    /// The longest time that it waits for the lock, in microseconds; `None` is without limit.
    pub(crate) timeout: Option<u64>,
    /// Whether it releases the lock; if not, it holds the lock until its lease has expired.
    pub(crate) releases: bool,
    /// Whether the test removes the files of held locks, so that another process may acquire the
    /// lock. The earlier holder must then get an error.
    pub(crate) files_are_removed: bool,
    /// Whether the test renames the directory for moments, during which every operation may fail.
    pub(crate) directory_moves: bool,
}

/// The worker `contend`.
pub(crate) fn contend(arguments: &[String]) -> Result<()> {
    let [text] = arguments else {
        anyhow::bail!("the worker `contend` takes one argument")
    };
    let it: Contender = serde_json::from_str(text)?;
    let store = it.store.parse::<StoreUrl>()?;
    let store = AnyStore::open(&store, &StoreOptions::default())?;
    it.run(&store)
}

impl Contender {
    /// Reports each violation as a line on standard error.
    fn run(&self, store: &AnyStore) -> Result<()> {
        let resource = Resource::open(&self.resource)?;
        let mut random = Rng::with_seed(self.seed ^ self.number);
        let ttl = match self.ttl {
            Some(millis) => Ttl::new(Duration::from_millis(millis))?,
            None => Ttl::NEVER,
        };
        let lock = LockFactory::new(store, System).create_lock(LOCK, ttl)?;
        let expires = store.capabilities().expires;

        while resource.get(Word::Stop) == 0 {
            let wanting = resource.word(Word::Wanting).fetch_add(1, SeqCst);
            let timeout = self
                .timeout
                .map(|most| Duration::from_micros(random.u64(..=most)));
            let retry = match timeout {
                Some(timeout) => Retry::FOR_EVER.timeout(timeout),
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
                        && !is_expired(&lease)
                    {
                        self.report(format!("detaching: {:#}", anyhow::Error::from(err)));
                    }
                    let stay = Duration::from_micros(random.u64(..=self.hold));
                    self.hold(&resource, &lease, expires, stay, || lock.release())?;
                }
                Err(Error::Timeout { .. }) if timeout.is_some() => {
                    resource.word(Word::TimedOut).fetch_add(1, SeqCst);
                    let over = waited.saturating_sub(timeout.unwrap_or_default());
                    let over = u64::try_from(over.as_nanos())?;
                    resource.word(Word::Overshoot).fetch_max(over, SeqCst);
                }
                Err(Error::Storage(err)) if self.directory_moves && is_directory_missing(&err) => {
                    resource.word(Word::DirectoryMissing).fetch_add(1, SeqCst);
                }
                Err(err) => self.report(format!("acquiring: {:#}", anyhow::Error::from(err))),
            }
            resource.word(Word::Wanting).fetch_sub(1, SeqCst);
            spend(Duration::from_micros(random.u64(..=self.pause)));
        }
        Ok(())
    }

    /// Uses the protected resource under a new grant, and releases the lock.
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
            Verdict::Overlap(what) if !self.files_are_removed => self.report(what),
            Verdict::FenceDecreased(what) if !self.files_are_removed => self.report(what),
            Verdict::FenceRepeated(what) => self.report(what),
            _ => {}
        }
        let was_stale = entered == Verdict::Stale;
        let mut was_displaced = matches!(entered, Verdict::FenceDecreased(_));
        if !was_stale {
            if deadline == u64::MAX && !self.files_are_removed {
                resource.count(|| spend(stay));
            } else {
                spend(stay);
            }
            if !self.releases {
                // The lease expires while the process uses the resource.
                while now() < deadline {
                    spend(Duration::from_micros(50));
                }
            }
            match resource.leave(self.number) {
                Verdict::Overlap(what) if !self.files_are_removed => self.report(what),
                Verdict::Fine => {}
                _ => was_displaced = true,
            }
            was_displaced |= resource.was_displaced(self.number);
        }
        match release_with_retries(release, lease) {
            Ok(()) if was_displaced => {
                self.report(
                    "another process acquired the lock at the same time, and the release succeeded",
                );
            }
            Err(Error::Storage(err)) if self.directory_moves && is_directory_missing(&err) => {}
            Err(err)
                if !was_displaced
                    && !was_stale
                    && !is_expired(lease)
                    && !self.files_are_removed =>
            {
                self.report(format!("releasing: {:#}", anyhow::Error::from(err)));
            }
            _ => {}
        }
        Ok(())
    }

    fn report(&self, what: impl AsRef<str>) {
        let line = format!("process {}: {}\n", self.number, what.as_ref());
        // With one write, because other processes write to the same file.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Returns whether the operation failed because the directory was missing.
fn is_directory_missing(err: &StoreError) -> bool {
    let err = err.get_ref().downcast_ref();
    matches!(err, Some(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound)
}

/// Releases a lock; retries after temporary errors, because another process may be stopped in the
/// middle of an operation.
fn release_with_retries(
    release: impl Fn() -> Result<(), Error>,
    lease: &Lease,
) -> Result<(), Error> {
    const LONGEST: Duration = Duration::from_secs(2);

    let began = Instant::now();
    loop {
        match release() {
            Err(Error::Storage(err))
                if err.is_temporary() && !is_expired(lease) && began.elapsed() < LONGEST => {}
            ended => return ended,
        }
    }
}

/// Returns whether `lease` has expired.
fn is_expired(lease: &Lease) -> bool {
    lease.is_expired(System.now())
}

/// Waits for `length`: spins for short times, and sleeps for longer ones.
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
