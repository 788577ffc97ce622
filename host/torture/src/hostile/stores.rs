//! Locks on stores that return wrong replies, err, or panic.

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use verrou::blocking::{Lock, LockFactory};
use verrou::{
    Acquired, Capabilities, Claim, Error, Fence, Holder, LossWatch, MemoryStore, Name, Owner,
    Process, Renewed, Retry, Store, StoreError, Waiter,
};
use verrou_host::{System, keep_alive};

use crate::results::{Findings, Setting};
use crate::store_call::{catch_panic, with_time_limit};

/// A fault of a store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum StoreFault {
    None,
    FencesDecrease,
    FencesMissing,
    FencesRepeat,
    GrantsToAll,
    GrantsLate,
    RefusesAll,
    RefusesWithMaxRemaining,
    RefusesWithZeroRemaining,
    ErrsTemporarily,
    ErrsPermanently,
    ErrsEverySecondTime,
    ErrsAfterGranting,
    WaitReturnsAtOnce,
    WaitsAndPanics,
    AcquiresAndPanics,
    ExtendsNothing,
    ErrsAtExtensions,
    ExtendsAndPanics,
    ReleasesNothing,
    ErrsAtReleases,
    ErrsAtFirstRelease,
    InspectsOtherHolder,
    InspectsNonsense,
    ErrsAtInspections,
    DetachesNothing,
    ErrsAtDetaching,
    ReportsLossesAlways,
    ReportsLossesAndPanics,
    HasNoCapabilities,
}

impl StoreFault {
    const ALL: [Self; 30] = [
        Self::None,
        Self::FencesDecrease,
        Self::FencesMissing,
        Self::FencesRepeat,
        Self::GrantsToAll,
        Self::GrantsLate,
        Self::RefusesAll,
        Self::RefusesWithMaxRemaining,
        Self::RefusesWithZeroRemaining,
        Self::ErrsTemporarily,
        Self::ErrsPermanently,
        Self::ErrsEverySecondTime,
        Self::ErrsAfterGranting,
        Self::WaitReturnsAtOnce,
        Self::WaitsAndPanics,
        Self::AcquiresAndPanics,
        Self::ExtendsNothing,
        Self::ErrsAtExtensions,
        Self::ExtendsAndPanics,
        Self::ReleasesNothing,
        Self::ErrsAtReleases,
        Self::ErrsAtFirstRelease,
        Self::InspectsOtherHolder,
        Self::InspectsNonsense,
        Self::ErrsAtInspections,
        Self::DetachesNothing,
        Self::ErrsAtDetaching,
        Self::ReportsLossesAlways,
        Self::ReportsLossesAndPanics,
        Self::HasNoCapabilities,
    ];

    /// Returns whether the store panics.
    fn panics(self) -> bool {
        matches!(
            self,
            Self::WaitsAndPanics
                | Self::AcquiresAndPanics
                | Self::ExtendsAndPanics
                | Self::ReportsLossesAndPanics
        )
    }

    /// Returns whether the store never grants the lock.
    fn grants_nothing(self) -> bool {
        matches!(
            self,
            Self::RefusesAll
                | Self::RefusesWithMaxRemaining
                | Self::RefusesWithZeroRemaining
                | Self::WaitReturnsAtOnce
                | Self::WaitsAndPanics
                | Self::ErrsTemporarily
                | Self::ErrsPermanently
                | Self::ErrsAfterGranting
                | Self::AcquiresAndPanics
                | Self::GrantsLate
        )
    }
}

/// A store that counts its calls, and has a fault.
#[derive(Debug)]
struct FaultyStore {
    fault: StoreFault,
    inner: MemoryStore<System>,
    calls: AtomicU64,
    acquired: AtomicU64,
    /// The owners that were, or may have been, granted the lock, and have not released it.
    unreleased: Mutex<HashSet<Owner>>,
    released: AtomicU64,
}

impl FaultyStore {
    fn new(fault: StoreFault) -> Self {
        Self {
            fault,
            inner: MemoryStore::new(System),
            calls: AtomicU64::new(0),
            acquired: AtomicU64::new(0),
            unreleased: Mutex::default(),
            released: AtomicU64::new(0),
        }
    }

    fn called(&self) {
        self.calls.fetch_add(1, Ordering::Relaxed);
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn unreleased(&self) -> usize {
        self.unreleased
            .lock()
            .map_or(usize::MAX, |owners| owners.len())
    }

    fn note(&self, owner: Owner, holds: bool) {
        if let Ok(mut owners) = self.unreleased.lock() {
            if holds {
                owners.insert(owner);
            } else {
                owners.remove(&owner);
            }
        }
    }
}

/// Panics without a message on the terminal.
fn panic_silently() -> ! {
    resume_unwind(Box::new("panic of the store"))
}

fn temporary() -> StoreError {
    StoreError::temporary("temporary failure of the store")
}

fn permanent() -> StoreError {
    StoreError::permanent("permanent failure of the store")
}

impl Store for FaultyStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.called();
        let number = self.acquired.fetch_add(1, Ordering::Relaxed);
        match self.fault {
            StoreFault::RefusesAll | StoreFault::WaitReturnsAtOnce | StoreFault::WaitsAndPanics => {
                return Ok(Acquired::BUSY);
            }
            StoreFault::RefusesWithMaxRemaining => {
                let remaining = Some(Duration::MAX);
                return Ok(Acquired::Busy { remaining });
            }
            StoreFault::RefusesWithZeroRemaining => {
                let remaining = Some(Duration::ZERO);
                return Ok(Acquired::Busy { remaining });
            }
            _ => {}
        }
        // From here on, the lock may have been granted.
        self.note(claim.owner, true);
        match self.fault {
            StoreFault::ErrsTemporarily => return Err(temporary()),
            StoreFault::ErrsPermanently => return Err(permanent()),
            StoreFault::ErrsEverySecondTime if number.is_multiple_of(2) => return Err(temporary()),
            StoreFault::AcquiresAndPanics => panic_silently(),
            _ => {}
        }
        if self.fault == StoreFault::GrantsLate {
            // Longer than the TTL.
            thread::sleep(Duration::from_millis(25));
        }
        let reply = Store::acquire(&self.inner, claim)?;
        if self.fault == StoreFault::ErrsAfterGranting {
            return Err(temporary());
        }
        let fence = match self.fault {
            StoreFault::FencesDecrease => Fence::new(1000 - number.min(999)),
            StoreFault::FencesRepeat => Some(Fence::FIRST),
            StoreFault::FencesMissing => None,
            StoreFault::GrantsToAll => Fence::new(number + 1),
            _ => {
                if !reply.is_granted() {
                    self.note(claim.owner, false);
                }
                return Ok(reply);
            }
        };
        if reply.is_granted() || self.fault == StoreFault::GrantsToAll {
            return Ok(Acquired::Granted { fence });
        }
        self.note(claim.owner, false);
        Ok(reply)
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.called();
        match self.fault {
            StoreFault::ExtendsNothing => Ok(false),
            StoreFault::ErrsAtExtensions => Err(temporary()),
            StoreFault::ExtendsAndPanics => panic_silently(),
            _ => Store::extend(&self.inner, claim),
        }
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.called();
        match self.fault {
            StoreFault::ExtendsNothing => Ok(Renewed::Lost),
            StoreFault::ErrsAtExtensions => Err(temporary()),
            StoreFault::ExtendsAndPanics => panic_silently(),
            _ => Store::renew(&self.inner, claim, fence),
        }
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.called();
        let number = self.released.fetch_add(1, Ordering::Relaxed);
        self.note(claim.owner, false);
        match self.fault {
            StoreFault::ReleasesNothing => Ok(false),
            StoreFault::ErrsAtReleases => Err(permanent()),
            StoreFault::ErrsAtFirstRelease if number == 0 => Err(temporary()),
            _ => Store::release(&self.inner, claim),
        }
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.called();
        Store::force_release(&self.inner, name, only)
    }

    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        match self.fault {
            StoreFault::ErrsAtInspections
            | StoreFault::InspectsOtherHolder
            | StoreFault::InspectsNonsense => {
                let mut holders = self.holders(&claim.name)?.into_iter();
                Ok(holders.any(|holder| fence.is_some() && holder.fence == fence))
            }
            _ => Store::holds(&self.inner, claim, fence),
        }
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.called();
        match self.fault {
            StoreFault::ErrsAtInspections => Err(temporary()),
            StoreFault::InspectsOtherHolder => Ok(vec![Holder::new(Some(Fence::FIRST), None)]),
            StoreFault::InspectsNonsense => {
                let mut holder = Holder::new(Fence::new(u64::MAX), Some(Duration::MAX));
                let command = "\u{1b}[31m".repeat(1 << 16);
                holder.process = Some(Process::new(u32::MAX, "\0".repeat(1 << 16), command));
                holder.since = Some(Duration::MAX);
                holder.detached = true;
                Ok(vec![holder])
            }
            _ => Store::holders(&self.inner, name),
        }
    }

    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.called();
        match self.fault {
            StoreFault::DetachesNothing => Ok(false),
            StoreFault::ErrsAtDetaching => Err(temporary()),
            _ => Store::detach(&self.inner, claim),
        }
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        let waiter = Store::waiter(&self.inner, claim)?;
        Some(Box::new(FaultyWaiter {
            store: self,
            waiter,
        }))
    }

    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        self.called();
        match self.fault {
            StoreFault::ReportsLossesAlways | StoreFault::ReportsLossesAndPanics => {
                Some(Box::new(FaultyLossWatch(self)))
            }
            _ => Store::watch(&self.inner, claim),
        }
    }

    fn capabilities(&self) -> Capabilities {
        match self.fault {
            StoreFault::HasNoCapabilities => Capabilities::default(),
            _ => Store::capabilities(&self.inner),
        }
    }
}

struct FaultyWaiter<'a> {
    store: &'a FaultyStore,
    waiter: Box<dyn Waiter + 'a>,
}

impl Waiter for FaultyWaiter<'_> {
    fn wait(&mut self, at_most: Duration) {
        self.store.called();
        match self.store.fault {
            StoreFault::WaitReturnsAtOnce => {}
            StoreFault::WaitsAndPanics => panic_silently(),
            _ => self.waiter.wait(at_most),
        }
    }
}

struct FaultyLossWatch<'a>(&'a FaultyStore);

impl LossWatch for FaultyLossWatch<'_> {
    fn wait(&self, _at_most: Duration) {
        self.0.called();
        if self.0.fault == StoreFault::ReportsLossesAndPanics {
            panic_silently();
        }
    }

    fn cancel(&self) {}
}

/// The timeout of acquire requests.
const TIMEOUT: Duration = Duration::from_millis(100);

/// Returns the greatest number of calls in a time that does not count as busy waiting: an attempt
/// and a wait per millisecond, and some more at the beginning.
fn most_calls(took: Duration) -> u64 {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    millis.saturating_mul(2).saturating_add(250)
}

/// Uses locks of faulty stores in all ways of the API.
pub(super) fn faulty_stores(_setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Use = fn(&Lock<&FaultyStore, System>) -> Result<(), Error>;
    let uses: [(&str, Use); 5] = [
        ("acquire and release", |lock| {
            for _ in 0..2 {
                lock.acquire()?;
                lock.release()?;
            }
            Ok(())
        }),
        ("guard", |lock| {
            for _ in 0..2 {
                let held = lock.guard()?;
                let _ = held.extend(held.ttl());
                held.release()?;
            }
            Ok(())
        }),
        ("drop", |lock| {
            for _ in 0..2 {
                drop(lock.guard()?);
            }
            Ok(())
        }),
        ("run", |lock| {
            for _ in 0..2 {
                match lock.run(|held| (held.fence(), held.remaining())) {
                    Ok(_) => {}
                    Err(
                        verrou::RunError::NotAcquired(err)
                        | verrou::RunError::Ended { error: err, .. },
                    ) => {
                        return Err(err);
                    }
                }
            }
            Ok(())
        }),
        ("everything else", |lock| {
            let taken = lock.try_acquire();
            let _ = (lock.is_expired(), lock.remaining(), lock.lease());
            let _ = (lock.is_locked(), lock.is_held(), lock.extend(lock.ttl()));
            let _ = lock.serialize();
            let released = lock.release();
            taken.and(released)
        }),
    ];
    for fault in StoreFault::ALL {
        for (what, attempt) in uses {
            let store = FaultyStore::new(fault);
            // Shorter than the delay of the late grant.
            let ttl = if fault == StoreFault::GrantsLate {
                "20ms"
            } else {
                "10s"
            };
            let retry = Retry::default()
                .delay(Duration::from_millis(10))
                .map_err(Error::from)?
                .timeout(TIMEOUT);
            let lock = LockFactory::new(&store, System)
                .retry(retry)
                .create_lock("lock", ttl)?;
            let began = Instant::now();
            let title = format!("faulty store {fault:?}: {what}");
            let end = with_time_limit(&title, || catch_panic(|| attempt(&lock)));
            let took = began.elapsed();
            check_end(findings, &title, fault, &store, &end, took);
            findings.count("uses of faulty stores", 1);
        }
    }
    two_at_once(findings)
}

/// Checks that only the store panicked, that the result is right for its fault, that it was not
/// called without end, and that no grant is left.
fn check_end(
    findings: &mut Findings,
    title: &str,
    fault: StoreFault,
    store: &FaultyStore,
    end: &Result<Result<(), Error>, String>,
    took: Duration,
) {
    match end {
        Err(panic) => {
            findings.check(fault.panics() && panic == "panic of the store", || {
                format!("{title}: panic: {panic}")
            });
            return;
        }
        Ok(Ok(())) => findings.check(!fault.grants_nothing(), || {
            format!("{title}: returned a lock that was not granted")
        }),
        Ok(Err(err)) => {
            let is_expected = match fault {
                StoreFault::None
                | StoreFault::FencesMissing
                | StoreFault::GrantsToAll
                | StoreFault::ErrsEverySecondTime => false,
                StoreFault::FencesDecrease | StoreFault::FencesRepeat => {
                    matches!(err, Error::Storage(source) if source.to_string().contains("went back"))
                }
                StoreFault::RefusesAll
                | StoreFault::RefusesWithMaxRemaining
                | StoreFault::RefusesWithZeroRemaining
                | StoreFault::WaitReturnsAtOnce
                | StoreFault::WaitsAndPanics => matches!(err, Error::Timeout { .. }),
                StoreFault::GrantsLate => matches!(err, Error::Lost { .. }),
                // A failed drop is not reported, but the next acquire request finds the lock held.
                StoreFault::ReleasesNothing
                | StoreFault::ErrsAtReleases
                | StoreFault::ErrsAtFirstRelease
                    if title.ends_with("drop") =>
                {
                    matches!(err, Error::Timeout { .. })
                }
                StoreFault::ReleasesNothing => {
                    matches!(err, Error::NotOwner { .. } | Error::Lost { .. })
                }
                _ => matches!(
                    err,
                    Error::Storage(_)
                        | Error::NotOwner { .. }
                        | Error::Lost { .. }
                        | Error::NotSerializable { .. }
                ),
            };
            // A single attempt returns a temporary error.
            let is_once =
                fault == StoreFault::ErrsEverySecondTime && title.ends_with("everything else");
            findings.check(is_expected || is_once, || {
                format!("{title}: {err} ({err:?})")
            });
        }
    }
    let calls = store.calls();
    findings.check(calls < most_calls(took), || {
        format!("{title}: {calls} calls of the store in {took:?}")
    });
    findings.check(took < 20 * TIMEOUT, || {
        format!("{title}: {took:?} instead of {TIMEOUT:?}")
    });
    let left = store.unreleased();
    findings.check(left == 0, || {
        format!("{title}: {left} owner(s) may hold the lock, and have not released it")
    });
}

/// Uses a store that grants to all: the second owner's other operations are refused.
fn two_at_once(findings: &mut Findings) -> Result<()> {
    let store = FaultyStore::new(StoreFault::GrantsToAll);
    let locks = LockFactory::new(&store, System);
    let (one, two) = (
        locks.create_lock("lock", "10s")?,
        locks.create_lock("lock", "10s")?,
    );
    one.acquire()?;
    two.acquire()?;
    let held = [one.is_held()?, two.is_held()?];
    findings.check(held == [true, false], || {
        format!("a store that granted to two: is_held: {held:?}")
    });
    let extended = two.extend(two.ttl());
    findings.check(matches!(extended, Err(Error::NotOwner { .. })), || {
        format!("a store that granted to two: extend by the second: {extended:?}")
    });
    let released = [two.release(), one.release()];
    findings.check(
        matches!(released, [Err(Error::NotOwner { .. }), Ok(())]),
        || format!("a store that granted to two: releases: {released:?}"),
    );
    Ok(())
}

/// Runs auto-renewal on faulty stores.
pub(super) fn faulty_stores_under_renewal(
    _setting: &Setting,
    findings: &mut Findings,
) -> Result<()> {
    const WORK: Duration = Duration::from_millis(200);

    for fault in StoreFault::ALL {
        if fault.grants_nothing() {
            continue;
        }
        let store = FaultyStore::new(fault);
        let title = format!("faulty store {fault:?}: keep_alive");
        let retry = Retry::default().timeout(Duration::from_secs(1));
        let lock = LockFactory::new(&store, System)
            .retry(retry)
            .create_lock("lock", "90ms")?;
        let held = match catch_panic(|| lock.guard()) {
            Ok(Ok(held)) => held,
            end => {
                findings.violation(format!("{title}: not granted: {end:?}"));
                continue;
            }
        };
        let before = store.calls();
        let began = Instant::now();
        let end = with_time_limit(&title, || {
            catch_panic(|| keep_alive(&held, || thread::sleep(WORK)).is_ok())
        });
        let calls = store.calls() - before;
        let is_right = match (fault, &end) {
            (_, Err(panic)) => fault.panics() && panic == "panic of the store",
            // With `FencesDecrease`, a renewal contains the changed fencing token, which is not that
            // of the grant.
            (
                StoreFault::ExtendsNothing
                | StoreFault::ErrsAtExtensions
                | StoreFault::FencesDecrease,
                Ok(is_kept),
            ) => !is_kept,
            (_, Ok(is_kept)) => *is_kept,
        };
        findings.check(is_right, || format!("{title}: result: {end:?}"));
        let took = began.elapsed();
        findings.check(calls < most_calls(took), || {
            format!("{title}: {calls} calls of the store in {took:?}")
        });
        let released = catch_panic(|| held.release());
        findings.check(released.is_ok(), || {
            format!("{title}: release: {released:?}")
        });
        let left = store.unreleased();
        findings.check(left == 0, || format!("{title}: the lock was not released"));
        findings.count("uses of faulty stores", 1);
    }
    Ok(())
}
