//! Locks on stores that return wrong replies, fail or panic: each use of a lock ends with an error that says so, or
//! with a panic of the store alone, calls the store a limited number of times and leaves no grant behind.
#![cfg(unix)]

mod common;

use std::collections::HashSet;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::eventually;
use verrou::blocking::{Guard, Lock, LockFactory};
use verrou::conformance::TestClock;
use verrou::{
    Acquired, Capabilities, Claim, Error, Fence, Holder, LossWatch, MemoryStore, Name, Owner,
    Process, Renewed, Retry, RunError, Store, StoreError, StoreWrapper, Waiter,
};
use verrou_host::keep_alive;

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

    /// Returns whether the fencing token of a grant is not greater than that of the grant before.
    fn repeats_fences(self) -> bool {
        matches!(self, Self::FencesDecrease | Self::FencesRepeat)
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

/// A store with a fault that counts its calls.
#[derive(Debug)]
struct FaultyStore {
    fault: StoreFault,
    clock: TestClock,
    inner: MemoryStore<TestClock>,
    calls: AtomicU64,
    acquired: AtomicU64,
    renewed: AtomicU64,
    released: AtomicU64,
    /// The owners that were, or may have been, granted the lock, and have not released it.
    unreleased: Mutex<HashSet<Owner>>,
}

/// The message of a panic of the store.
const PANIC: &str = "panic of the store";

/// Panics without a message on the terminal.
fn panic_silently() -> ! {
    resume_unwind(Box::new(PANIC))
}

fn temporary() -> StoreError {
    StoreError::temporary("temporary failure of the store")
}

impl FaultyStore {
    fn new(fault: StoreFault, clock: TestClock) -> Self {
        Self {
            fault,
            inner: MemoryStore::new(clock.clone()),
            clock,
            calls: AtomicU64::new(0),
            acquired: AtomicU64::new(0),
            renewed: AtomicU64::new(0),
            released: AtomicU64::new(0),
            unreleased: Mutex::default(),
        }
    }

    fn called(&self) {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        // The clock of a loop that never sleeps stands still.
        assert!(calls < 1_000_000, "the store is called without end");
    }

    fn unreleased(&self) -> usize {
        self.unreleased.lock().unwrap().len()
    }

    fn note(&self, owner: Owner, holds: bool) {
        let mut owners = self.unreleased.lock().unwrap();
        if holds {
            owners.insert(owner);
        } else {
            owners.remove(&owner);
        }
    }
}

impl StoreWrapper for FaultyStore {
    type Inner = MemoryStore<TestClock>;

    fn inner(&self) -> &Self::Inner {
        &self.inner
    }

    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.called();
        let number = self.acquired.fetch_add(1, Ordering::Relaxed);
        let remaining = match self.fault {
            StoreFault::RefusesAll | StoreFault::WaitReturnsAtOnce | StoreFault::WaitsAndPanics => {
                return Ok(Acquired::BUSY);
            }
            StoreFault::RefusesWithMaxRemaining => Some(Duration::MAX),
            StoreFault::RefusesWithZeroRemaining => Some(Duration::ZERO),
            _ => None,
        };
        if remaining.is_some() {
            return Ok(Acquired::Busy { remaining });
        }
        // From here on, the lock may have been granted.
        self.note(claim.owner, true);
        match self.fault {
            StoreFault::ErrsTemporarily => return Err(temporary()),
            StoreFault::ErrsPermanently => {
                return Err(StoreError::permanent("permanent failure of the store"));
            }
            StoreFault::ErrsEverySecondTime if number.is_multiple_of(2) => return Err(temporary()),
            StoreFault::AcquiresAndPanics => panic_silently(),
            StoreFault::GrantsLate => self.clock.advance(LATE),
            _ => {}
        }
        let reply = Store::acquire(&self.inner, claim)?;
        let fence = match self.fault {
            StoreFault::ErrsAfterGranting => return Err(temporary()),
            StoreFault::FencesDecrease => Fence::new(1000 - number.min(999)),
            StoreFault::FencesRepeat => Some(Fence::FIRST),
            StoreFault::FencesMissing => None,
            StoreFault::GrantsToAll => Fence::new(number + 1),
            _ => {
                self.note(claim.owner, reply.is_granted());
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
        self.renewed.fetch_add(1, Ordering::Relaxed);
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
            StoreFault::ErrsAtReleases => {
                Err(StoreError::permanent("permanent failure of the store"))
            }
            StoreFault::ErrsAtFirstRelease if number == 0 => Err(temporary()),
            _ => Store::release(&self.inner, claim),
        }
    }

    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        match self.fault {
            StoreFault::ErrsAtInspections
            | StoreFault::InspectsOtherHolder
            | StoreFault::InspectsNonsense => {
                let mut holders = StoreWrapper::holders(self, &claim.name)?.into_iter();
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

    fn waiter<'s>(&'s self, _: &Claim) -> Option<Box<dyn Waiter + 's>> {
        Some(Box::new(FaultyWaiter(self)))
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

/// A waiter that is never notified.
struct FaultyWaiter<'a>(&'a FaultyStore);

impl Waiter for FaultyWaiter<'_> {
    fn wait(&mut self, at_most: Duration) {
        self.0.called();
        match self.0.fault {
            StoreFault::WaitReturnsAtOnce => {}
            StoreFault::WaitsAndPanics => panic_silently(),
            _ => self.0.clock.advance(at_most),
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

/// The delay of a late grant.
const LATE: Duration = Duration::from_millis(25);

/// A ttl that is shorter than the delay of a late grant.
const SHORT_TTL: &str = "20ms";

/// Runs `work`, and returns its result, or the message of its panic.
fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(ToString::to_string);
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .expect("a text message")
    })
}

/// Asserts that the store is not called in a busy loop: an attempt and a wait per millisecond, and some more at the
/// beginning.
fn assert_few_calls(store: &FaultyStore, took: Duration, title: &str) {
    let calls = store.calls.load(Ordering::Relaxed);
    let most = took.as_millis() * 2 + 250;
    assert!(
        u128::from(calls) < most,
        "{title}: {calls} calls in {took:?}"
    );
}

type FaultyLock<'a> = Lock<&'a FaultyStore, TestClock>;

type Use = fn(&FaultyLock<'_>) -> Result<(), Error>;

/// Uses of a lock.
const USES: [(&str, Use); 5] = [
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
            let ran = lock.run(|held| (held.fence(), held.remaining()));
            ran.map_err(|err| match err {
                RunError::NotAcquired(error) | RunError::Ended { error, .. } => error,
            })?;
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

/// Returns whether a use of a lock may end with this error of a store with this fault.
fn is_expected(fault: StoreFault, what: &str, err: &Error) -> bool {
    match fault {
        // A single attempt returns a temporary error.
        StoreFault::ErrsEverySecondTime => what == "everything else",
        StoreFault::None | StoreFault::FencesMissing | StoreFault::GrantsToAll => false,
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
            if what == "drop" =>
        {
            matches!(err, Error::Timeout { .. })
        }
        StoreFault::ReleasesNothing => matches!(err, Error::NotOwner { .. } | Error::Lost { .. }),
        _ => matches!(
            err,
            Error::Storage(_)
                | Error::NotOwner { .. }
                | Error::Lost { .. }
                | Error::NotSerializable { .. }
        ),
    }
}

#[test]
fn use_of_a_faulty_store_ends_with_its_error_and_leaves_no_grant() {
    for fault in StoreFault::ALL {
        for (what, attempt) in USES {
            let title = format!("{fault:?}: {what}");
            let clock = TestClock::still();
            let store = FaultyStore::new(fault, clock.clone());
            let ttl = if fault == StoreFault::GrantsLate {
                SHORT_TTL
            } else {
                "10s"
            };
            let retry = Retry::default().delay(Duration::from_millis(10));
            let lock = LockFactory::new(&store, clock.clone())
                .retry(retry.unwrap().timeout(TIMEOUT))
                .create_lock("lock", ttl)
                .unwrap();
            match catch_panic(|| attempt(&lock)) {
                Err(panic) => {
                    assert!(fault.panics() && panic == PANIC, "{title}: {panic}");
                    continue;
                }
                Ok(Ok(())) => {
                    assert!(!fault.grants_nothing(), "{title}: a lock without a grant");
                    // All other uses acquire the lock twice.
                    let is_once = what == "everything else";
                    assert!(
                        is_once || !fault.repeats_fences(),
                        "{title}: a fencing token that is not greater"
                    );
                }
                Ok(Err(err)) => assert!(is_expected(fault, what, &err), "{title}: {err:?}"),
            }
            let took = clock.elapsed();
            assert!(took < 20 * TIMEOUT, "{title}: {took:?}");
            assert_few_calls(&store, took, &title);
            assert_eq!(store.unreleased(), 0, "{title}: grants without a release");
        }
    }
}

#[test]
fn second_owner_in_a_store_that_grants_to_all_is_refused_later() {
    let clock = TestClock::still();
    let store = FaultyStore::new(StoreFault::GrantsToAll, clock.clone());
    let locks = LockFactory::new(&store, clock);
    let [one, two] = [(); 2].map(|()| locks.create_lock("lock", "10s").unwrap());
    one.acquire().unwrap();
    two.acquire().unwrap();
    assert!(one.is_held().unwrap() && !two.is_held().unwrap());
    let not_owner = |done: Result<(), Error>| assert!(matches!(done, Err(Error::NotOwner { .. })));
    not_owner(two.extend(two.ttl()));
    not_owner(two.release());
    one.release().unwrap();
}

/// Holds a lock of a store with this fault until its lease was renewed twice, or cannot be renewed.
fn renewed_by(fault: StoreFault) {
    let title = format!("{fault:?}: keep_alive");
    let clock = TestClock::running();
    let store = FaultyStore::new(fault, clock.clone());
    let lock = LockFactory::new(&store, clock)
        .create_lock("lock", "1s")
        .unwrap();
    let held = lock.guard().unwrap();
    store.calls.store(0, Ordering::Relaxed);
    let began = Instant::now();
    // With `FencesDecrease`, a renewal contains a fencing token that is not that of the grant.
    let (renewals, is_kept) = match fault {
        StoreFault::ExtendsNothing | StoreFault::FencesDecrease => (1, Ok(false)),
        StoreFault::ErrsAtExtensions => (2, Ok(false)),
        StoreFault::ExtendsAndPanics => (1, Err(PANIC.to_owned())),
        StoreFault::ReportsLossesAndPanics => (2, Err(PANIC.to_owned())),
        _ => (2, Ok(true)),
    };
    let work = |held: &Guard<_, _>| {
        eventually("the lease is renewed", || {
            store.renewed.load(Ordering::Relaxed) >= renewals
                && (fault != StoreFault::ErrsAtExtensions || held.is_expired())
        });
    };
    let end = catch_panic(|| keep_alive(&held, || work(&held)).is_ok());
    assert_eq!(end, is_kept, "{title}");
    assert_few_calls(&store, began.elapsed(), &title);
    let released = catch_panic(|| held.release());
    assert!(released.is_ok(), "{title}: {released:?}");
    assert_eq!(store.unreleased(), 0, "{title}: a grant without a release");
}

#[test]
fn renewal_in_a_faulty_store_reports_the_loss_of_the_lock() {
    let grants = StoreFault::ALL.into_iter();
    let grants = grants.filter(|fault| !fault.grants_nothing());
    thread::scope(|scope| {
        for fault in grants {
            scope.spawn(move || renewed_by(fault));
        }
    });
}
