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
    Abilities, Claim, Error, Fence, Holder, MemoryStore, Name, Owner, Process, Renewed, Reply,
    Retry, Store, StoreError, Waited,
};
use verrou_host::{System, keep_alive};

use crate::attempts::{caught, watched};
use crate::findings::{Findings, Setting};

/// A fault of a store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Lie {
    None,
    CountsDown,
    CountsNothing,
    CountsTheSame,
    GrantsToAll,
    GrantsLate,
    RefusesAll,
    RefusesForAges,
    RefusesForNoTime,
    ErrsForNow,
    ErrsForGood,
    ErrsEverySecondTime,
    ErrsAfterGranting,
    WaitsForNoTime,
    WaitsAndPanics,
    AcquiresAndPanics,
    ExtendsNothing,
    ErrsAtExtensions,
    ExtendsAndPanics,
    ReleasesNothing,
    ErrsAtReleases,
    ErrsAtReleasesAtFirst,
    InspectsAnother,
    InspectsNonsense,
    ErrsAtInspections,
    DetachesNothing,
    ErrsAtDetaching,
    TellsOfLossesAllTheTime,
    TellsOfLossesAndPanics,
    CanDoNothing,
}

impl Lie {
    const ALL: [Self; 30] = [
        Self::None,
        Self::CountsDown,
        Self::CountsNothing,
        Self::CountsTheSame,
        Self::GrantsToAll,
        Self::GrantsLate,
        Self::RefusesAll,
        Self::RefusesForAges,
        Self::RefusesForNoTime,
        Self::ErrsForNow,
        Self::ErrsForGood,
        Self::ErrsEverySecondTime,
        Self::ErrsAfterGranting,
        Self::WaitsForNoTime,
        Self::WaitsAndPanics,
        Self::AcquiresAndPanics,
        Self::ExtendsNothing,
        Self::ErrsAtExtensions,
        Self::ExtendsAndPanics,
        Self::ReleasesNothing,
        Self::ErrsAtReleases,
        Self::ErrsAtReleasesAtFirst,
        Self::InspectsAnother,
        Self::InspectsNonsense,
        Self::ErrsAtInspections,
        Self::DetachesNothing,
        Self::ErrsAtDetaching,
        Self::TellsOfLossesAllTheTime,
        Self::TellsOfLossesAndPanics,
        Self::CanDoNothing,
    ];

    /// Returns whether the store panics.
    fn panics(self) -> bool {
        matches!(
            self,
            Self::WaitsAndPanics
                | Self::AcquiresAndPanics
                | Self::ExtendsAndPanics
                | Self::TellsOfLossesAndPanics
        )
    }

    /// Returns whether the store never grants the lock.
    fn grants_nothing(self) -> bool {
        matches!(
            self,
            Self::RefusesAll
                | Self::RefusesForAges
                | Self::RefusesForNoTime
                | Self::WaitsForNoTime
                | Self::WaitsAndPanics
                | Self::ErrsForNow
                | Self::ErrsForGood
                | Self::ErrsAfterGranting
                | Self::AcquiresAndPanics
                | Self::GrantsLate
        )
    }
}

/// A store that counts its calls, and has a fault.
#[derive(Debug)]
struct Liar {
    lie: Lie,
    truth: MemoryStore<System>,
    calls: AtomicU64,
    acquired: AtomicU64,
    /// The owners that were, or may have been, granted the lock, and have not released it.
    unreleased: Mutex<HashSet<Owner>>,
    released: AtomicU64,
}

impl Liar {
    fn new(lie: Lie) -> Self {
        Self {
            lie,
            truth: MemoryStore::new(System),
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
fn fall_over() -> ! {
    resume_unwind(Box::new("panic of the store"))
}

fn temporary() -> StoreError {
    StoreError::temporary("temporary failure of the store")
}

fn permanent() -> StoreError {
    StoreError::permanent("permanent failure of the store")
}

impl Store for Liar {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.called();
        let number = self.acquired.fetch_add(1, Ordering::Relaxed);
        match self.lie {
            Lie::RefusesAll | Lie::WaitsForNoTime | Lie::WaitsAndPanics => {
                return Ok(Reply::REFUSED);
            }
            Lie::RefusesForAges => {
                let remaining = Some(Duration::MAX);
                return Ok(Reply::Refused { remaining });
            }
            Lie::RefusesForNoTime => {
                let remaining = Some(Duration::ZERO);
                return Ok(Reply::Refused { remaining });
            }
            _ => {}
        }
        // From here on, the lock may have been granted.
        self.note(claim.owner, true);
        match self.lie {
            Lie::ErrsForNow => return Err(temporary()),
            Lie::ErrsForGood => return Err(permanent()),
            Lie::ErrsEverySecondTime if number.is_multiple_of(2) => return Err(temporary()),
            Lie::AcquiresAndPanics => fall_over(),
            _ => {}
        }
        if self.lie == Lie::GrantsLate {
            // Longer than the TTL.
            thread::sleep(Duration::from_millis(25));
        }
        let reply = Store::acquire(&self.truth, claim)?;
        if self.lie == Lie::ErrsAfterGranting {
            return Err(temporary());
        }
        let fence = match self.lie {
            Lie::CountsDown => Fence::new(1000 - number.min(999)),
            Lie::CountsTheSame => Some(Fence::FIRST),
            Lie::CountsNothing => None,
            Lie::GrantsToAll => Fence::new(number + 1),
            _ => {
                if !reply.is_granted() {
                    self.note(claim.owner, false);
                }
                return Ok(reply);
            }
        };
        if reply.is_granted() || self.lie == Lie::GrantsToAll {
            return Ok(Reply::Granted { fence });
        }
        self.note(claim.owner, false);
        Ok(reply)
    }

    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.called();
        match self.lie {
            Lie::ExtendsNothing => Ok(Reply::REFUSED),
            Lie::ErrsAtExtensions => Err(temporary()),
            Lie::ExtendsAndPanics => fall_over(),
            _ => Store::extend(&self.truth, claim),
        }
    }

    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.called();
        match self.lie {
            Lie::ExtendsNothing => Ok(Renewed::Lost),
            Lie::ErrsAtExtensions => Err(temporary()),
            Lie::ExtendsAndPanics => fall_over(),
            _ => Store::renew(&self.truth, claim, fence),
        }
    }

    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.called();
        let number = self.released.fetch_add(1, Ordering::Relaxed);
        self.note(claim.owner, false);
        match self.lie {
            Lie::ReleasesNothing => Ok(Reply::REFUSED),
            Lie::ErrsAtReleases => Err(permanent()),
            Lie::ErrsAtReleasesAtFirst if number == 0 => Err(temporary()),
            _ => Store::release(&self.truth, claim),
        }
    }

    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        self.called();
        Store::evict(&self.truth, name, only)
    }

    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        match self.lie {
            Lie::ErrsAtInspections | Lie::InspectsAnother | Lie::InspectsNonsense => {
                let holder = self.inspect(&claim.name)?;
                Ok(holder.is_some_and(|holder| fence.is_some() && holder.fence == fence))
            }
            _ => Store::holds(&self.truth, claim, fence),
        }
    }

    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        self.called();
        match self.lie {
            Lie::ErrsAtInspections => Err(temporary()),
            Lie::InspectsAnother => Ok(Some(Holder {
                fence: Some(Fence::FIRST),
                since: None,
                remaining: None,
                process: None,
                detached: false,
            })),
            Lie::InspectsNonsense => Ok(Some(Holder {
                fence: Fence::new(u64::MAX),
                since: Some(Duration::MAX),
                remaining: Some(Duration::MAX),
                process: Some(Process {
                    id: u32::MAX,
                    host: "\0".repeat(1 << 16),
                    command: "\u{1b}[31m".repeat(1 << 16),
                }),
                detached: true,
            })),
            _ => Store::inspect(&self.truth, name),
        }
    }

    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.called();
        match self.lie {
            Lie::DetachesNothing => Ok(Reply::REFUSED),
            Lie::ErrsAtDetaching => Err(temporary()),
            _ => Store::detach(&self.truth, claim),
        }
    }

    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.called();
        match self.lie {
            Lie::WaitsForNoTime => Waited::Done,
            Lie::WaitsAndPanics => fall_over(),
            _ => Store::wait(&self.truth, claim, at_most),
        }
    }

    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.called();
        match self.lie {
            Lie::TellsOfLossesAndPanics if !at_most.is_zero() => fall_over(),
            Lie::TellsOfLossesAllTheTime | Lie::TellsOfLossesAndPanics => Waited::Done,
            _ => Store::lost(&self.truth, claim, at_most),
        }
    }

    fn give_up(&self, claim: &Claim) {
        Store::give_up(&self.truth, claim);
    }

    fn abilities(&self) -> Abilities {
        match self.lie {
            Lie::CanDoNothing => Abilities::default(),
            _ => Store::abilities(&self.truth),
        }
    }
}

/// The timeout of acquire requests.
const PATIENCE: Duration = Duration::from_millis(100);

/// Returns the greatest number of calls in a time that does not count as busy waiting: an attempt and
/// a wait per millisecond, and some more at the beginning.
fn most_calls(took: Duration) -> u64 {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    millis.saturating_mul(2).saturating_add(250)
}

/// Uses locks of faulty stores in all ways of the API.
pub(super) fn lies(_setting: &Setting, findings: &mut Findings) -> Result<()> {
    type Use = fn(&Lock<&Liar, System>) -> Result<(), Error>;
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
                let _ = held.extend(None);
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
            let _ = (lock.is_locked(), lock.is_held(), lock.extend(None));
            let _ = lock.serialize();
            let given = lock.release();
            taken.and(given)
        }),
    ];
    for lie in Lie::ALL {
        for (what, attempt) in uses {
            let store = Liar::new(lie);
            // Shorter than the delay of the late grant.
            let ttl = if lie == Lie::GrantsLate {
                "20ms"
            } else {
                "10s"
            };
            let retry = Retry::default()
                .delay(Duration::from_millis(10))
                .map_err(Error::from)?
                .timeout(PATIENCE);
            let lock = LockFactory::new(&store, System)
                .retry(retry)
                .create_lock("lock", ttl)?;
            let began = Instant::now();
            let whole = format!("faulty store {lie:?}: {what}");
            let end = watched(&whole, || caught(|| attempt(&lock)));
            let took = began.elapsed();
            check_end(findings, &whole, lie, &store, &end, took);
            findings.count("uses of faulty stores", 1);
        }
    }
    two_at_once(findings)
}

/// Checks that only the store panicked, that the result is right for its fault, that it was not called
/// without end, and that no grant is left.
fn check_end(
    findings: &mut Findings,
    whole: &str,
    lie: Lie,
    store: &Liar,
    end: &Result<Result<(), Error>, String>,
    took: Duration,
) {
    match end {
        Err(panic) => {
            findings.check(lie.panics() && panic == "panic of the store", || {
                format!("{whole}: panic: {panic}")
            });
            return;
        }
        Ok(Ok(())) => findings.check(!lie.grants_nothing(), || {
            format!("{whole}: returned a lock that was not granted")
        }),
        Ok(Err(err)) => {
            let is_honest = match lie {
                Lie::None | Lie::CountsNothing | Lie::GrantsToAll | Lie::ErrsEverySecondTime => {
                    false
                }
                Lie::CountsDown | Lie::CountsTheSame => {
                    matches!(err, Error::Storage(said) if said.to_string().contains("went back"))
                }
                Lie::RefusesAll
                | Lie::RefusesForAges
                | Lie::RefusesForNoTime
                | Lie::WaitsForNoTime
                | Lie::WaitsAndPanics => matches!(err, Error::Timeout { .. }),
                Lie::GrantsLate => matches!(err, Error::Lost { .. }),
                // A failed drop is not reported, but the next acquire request finds the lock held.
                Lie::ReleasesNothing | Lie::ErrsAtReleases | Lie::ErrsAtReleasesAtFirst
                    if whole.ends_with("drop") =>
                {
                    matches!(err, Error::Timeout { .. })
                }
                Lie::ReleasesNothing => {
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
            let is_once = lie == Lie::ErrsEverySecondTime && whole.ends_with("everything else");
            findings.check(is_honest || is_once, || format!("{whole}: {err} ({err:?})"));
        }
    }
    let calls = store.calls();
    findings.check(calls < most_calls(took), || {
        format!("{whole}: {calls} calls of the store in {took:?}")
    });
    findings.check(took < 20 * PATIENCE, || {
        format!("{whole}: {took:?} instead of {PATIENCE:?}")
    });
    let left = store.unreleased();
    findings.check(left == 0, || {
        format!("{whole}: {left} owner(s) may hold the lock, and have not released it")
    });
}

/// Uses a store that grants to all: the second owner's other operations are refused.
fn two_at_once(findings: &mut Findings) -> Result<()> {
    let store = Liar::new(Lie::GrantsToAll);
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
    let extended = two.extend(None);
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
pub(super) fn lies_to_keepers(_setting: &Setting, findings: &mut Findings) -> Result<()> {
    const WORK: Duration = Duration::from_millis(200);

    for lie in Lie::ALL {
        if lie.grants_nothing() {
            continue;
        }
        let store = Liar::new(lie);
        let whole = format!("faulty store {lie:?}: keep_alive");
        let retry = Retry::default().timeout(Duration::from_secs(1));
        let lock = LockFactory::new(&store, System)
            .retry(retry)
            .create_lock("lock", "90ms")?;
        let held = match caught(|| lock.guard()) {
            Ok(Ok(held)) => held,
            end => {
                findings.violation(format!("{whole}: not granted: {end:?}"));
                continue;
            }
        };
        let before = store.calls();
        let began = Instant::now();
        let end = watched(&whole, || {
            caught(|| keep_alive(&held, || thread::sleep(WORK)).is_ok())
        });
        let calls = store.calls() - before;
        let is_right = match (lie, &end) {
            (_, Err(panic)) => lie.panics() && panic == "panic of the store",
            // With `FencesDecrease`, a renewal contains the changed fencing token, which is not that
            // of the grant.
            (Lie::ExtendsNothing | Lie::ErrsAtExtensions | Lie::CountsDown, Ok(is_kept)) => {
                !is_kept
            }
            (_, Ok(is_kept)) => *is_kept,
        };
        findings.check(is_right, || format!("{whole}: result: {end:?}"));
        let took = began.elapsed();
        findings.check(calls < most_calls(took), || {
            format!("{whole}: {calls} calls of the store in {took:?}")
        });
        let given = caught(|| held.release());
        findings.check(given.is_ok(), || format!("{whole}: release: {given:?}"));
        let left = store.unreleased();
        findings.check(left == 0, || format!("{whole}: the lock was not released"));
        findings.count("uses of faulty stores", 1);
    }
    Ok(())
}
