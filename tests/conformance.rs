//! The conformance suite on the memory store: its blocking and its async interface, with a store that
//! waits and with one that cannot.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{BlockOn, Polled};
use verrou::conformance::{Fixture, TestClock};
use verrou::{Acquired, Claim, MemoryStore, Name, Owner, Renewed, Store, Ttl, conformance};

type Memory = Arc<MemoryStore<TestClock>>;
type SharedStore = Arc<dyn Store>;

/// A memory store, and the constructor of its clients.
struct MemoryFixture<S> {
    clock: TestClock,
    memory: Memory,
    client: fn(&Memory, &TestClock) -> S,
}

impl<S> MemoryFixture<S> {
    fn new(clock: TestClock, client: fn(&Memory, &TestClock) -> S) -> Self {
        let memory = Arc::new(MemoryStore::new(clock.clone()));
        Self {
            clock,
            memory,
            client,
        }
    }
}

impl<S: Store + Send + Sync + 'static> Fixture for MemoryFixture<S> {
    type Store = S;
    type Host = TestClock;

    fn client(&self) -> S {
        (self.client)(&self.memory, &self.clock)
    }

    fn host(&self) -> TestClock {
        self.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }

    /// A long ttl costs nothing: the time passes only by `pass`.
    fn ttl(&self) -> Duration {
        Duration::from_secs(60)
    }
}

fn waiting() -> MemoryFixture<Memory> {
    MemoryFixture::new(TestClock::running(), |memory, _| Arc::clone(memory))
}

fn polled() -> MemoryFixture<Polled<Memory>> {
    MemoryFixture::new(TestClock::still(), |memory, _| Polled(Arc::clone(memory)))
}

fn awaited() -> MemoryFixture<BlockOn<Memory, TestClock>> {
    MemoryFixture::new(TestClock::still(), |memory, clock| BlockOn {
        store: Arc::clone(memory),
        host: clock.clone(),
    })
}

fn unnamed() -> MemoryFixture<SharedStore> {
    MemoryFixture::new(TestClock::running(), |memory, _| {
        Arc::clone(memory) as SharedStore
    })
}

conformance!(memory, waiting());
conformance!(memory_polled, polled());
conformance!(memory_awaited, awaited());
conformance!(memory_as_any_store, unnamed());

/// A case that is written but not listed would never run.
#[test]
fn every_case_is_listed() {
    let suite = include_str!("../src/conformance.rs");
    let topics = [
        ("steps", include_str!("../src/conformance/steps.rs")),
        ("time", include_str!("../src/conformance/time.rs")),
        ("clients", include_str!("../src/conformance/clients.rs")),
        ("locks", include_str!("../src/conformance/locks.rs")),
    ];
    for (topic, text) in topics {
        let cases: Vec<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("pub fn ")?.split_once('('))
            .map(|(case, _)| case)
            .collect();
        assert!(cases.len() > 9, "{topic}: {cases:?}");
        let (_, listed) = suite
            .split_once(&format!("{topic}:\n"))
            .expect("a list of cases");
        let (listed, _) = listed.split_once(';').expect("an end of the list");
        let listed: Vec<_> = listed.split(',').map(str::trim).collect();
        assert_eq!(listed, cases, "{topic}");
    }
}

/// The record expires at neither a nanosecond sooner nor a nanosecond later.
#[test]
fn record_expires_at_the_exact_instant() {
    let (clock, ttl) = (TestClock::still(), Duration::from_micros(1));
    let store = MemoryStore::new(clock.clone());
    let claim = |number| {
        Claim::new(
            Name::new("lock").expect("a name"),
            Owner::from_bytes([number; 16]),
            Ttl::new(ttl).expect("a ttl"),
        )
    };
    let acquire = |number| Store::acquire(&store, &claim(number)).expect("an answer");
    assert!(acquire(1).is_granted());
    clock.advance(Duration::from_nanos(999));
    let remaining = Some(Duration::from_nanos(1));
    assert_eq!(acquire(2), Acquired::Busy { remaining });
    clock.advance(Duration::from_nanos(1));
    assert!(acquire(2).is_granted());
}

/// The release wakes the waiter long before its wait would end.
#[test]
fn release_wakes_the_waiter() {
    let fixture = waiting();
    let claim = |number| {
        Claim::new(
            Name::new("lock").expect("a name"),
            Owner::from_bytes([number; 16]),
            Ttl::NEVER,
        )
    };
    let store = fixture.client();
    assert!(Store::acquire(&store, &claim(1)).is_ok_and(Acquired::is_granted));
    let began = Instant::now();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let client = fixture.client();
            let mut waiter = Store::waiter(&client, &claim(2)).expect("a waiter");
            while !Store::acquire(&client, &claim(2)).is_ok_and(Acquired::is_granted) {
                waiter.wait(Duration::from_mins(1));
            }
        });
        thread::yield_now();
        assert!(Store::release(&store, &claim(1)).unwrap());
        waiter.join().expect("a waiter");
    });
    assert!(began.elapsed() < Duration::from_secs(30));
}

mod mutants {
    //! Stores with one fault each, which the suite has to detect.

    use std::panic::{AssertUnwindSafe, catch_unwind};

    use verrou::conformance::{clients, steps, time};
    use verrou::{Capabilities, Fence, Holder, StoreError};

    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fault {
        CountsNothing,
        DeclaresTooLittle,
        DeclaresTooMuch,
        ForceReleasesAnyGrant,
        ExtendsExpired,
        FoldsCase,
        IgnoresOwnerOnExtend,
        IgnoresOwnerOnRelease,
        InspectingExtends,
        Nothing,
        RefusesRetry,
        RenewsAsItExtends,
        RenewsForAnyone,
        OverstatesRemaining,
    }

    #[derive(Debug)]
    struct Faulty(Memory, Fault);

    impl Faulty {
        fn claim(&self, claim: &Claim) -> Claim {
            claim.clone().with_name(self.name(&claim.name))
        }

        fn name(&self, name: &Name) -> Name {
            match self.1 {
                Fault::FoldsCase => Name::new(&name.as_str().to_lowercase()).expect("a name"),
                _ => name.clone(),
            }
        }

        fn as_holder(&self, claim: &Claim) -> Claim {
            let holder = (0..=u8::MAX)
                .map(|number| claim.clone().with_owner(Owner::from_bytes([number; 16])));
            let mut holder = holder.filter(|it| self.0.holds(it, None).is_ok_and(|held| held));
            holder.next().unwrap_or_else(|| claim.clone())
        }
    }

    impl Store for Faulty {
        fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
            let claim = self.claim(claim);
            let mine = Store::holds(&self.0, &claim, None)?;
            let reply = match Store::acquire(&self.0, &claim)? {
                Acquired::Granted { .. } if self.1 == Fault::CountsNothing => Acquired::Granted {
                    fence: Some(Fence::FIRST),
                },
                Acquired::Granted { .. } if mine && self.1 == Fault::RefusesRetry => Acquired::BUSY,
                Acquired::Busy { .. } if self.1 == Fault::OverstatesRemaining => Acquired::Busy {
                    remaining: Some(Duration::from_secs(3600)),
                },
                reply => reply,
            };
            Ok(reply)
        }
        fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
            let claim = self.claim(claim);
            match self.1 {
                Fault::ExtendsExpired => Ok(Store::acquire(&self.0, &claim)?.is_granted()),
                Fault::IgnoresOwnerOnExtend => Store::extend(&self.0, &self.as_holder(&claim)),
                _ => Store::extend(&self.0, &claim),
            }
        }
        fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
            let claim = self.claim(claim);
            match self.1 {
                Fault::RenewsAsItExtends => {
                    Store::extend(&self.0, &claim).map(Renewed::by_extension)
                }
                Fault::RenewsForAnyone => {
                    let reply = Store::acquire(&self.0, &claim)?;
                    Ok(Renewed::by_extension(reply.is_granted()))
                }
                _ => Store::renew(&self.0, &claim, fence),
            }
        }
        fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
            let claim = self.claim(claim);
            match self.1 {
                Fault::IgnoresOwnerOnRelease => Store::release(&self.0, &self.as_holder(&claim)),
                _ => Store::release(&self.0, &claim),
            }
        }
        fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
            let only = only.filter(|_| self.1 != Fault::ForceReleasesAnyGrant);
            Store::force_release(&self.0, &self.name(name), only)
        }
        fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
            let holders = Store::holders(&self.0, &self.name(name))?;
            if self.1 == Fault::InspectingExtends && !holders.is_empty() {
                let claim = self.as_holder(&Claim::new(
                    name.clone(),
                    Owner::from_bytes([0; 16]),
                    Ttl::DEFAULT,
                ));
                Store::extend(&self.0, &claim)?;
            }
            Ok(holders)
        }
        fn capabilities(&self) -> Capabilities {
            let mut capabilities = Store::capabilities(&self.0);
            match self.1 {
                Fault::DeclaresTooLittle => capabilities.force_releases = false,
                Fault::DeclaresTooMuch => capabilities.ephemeral = true,
                _ => {}
            }
            capabilities
        }
    }

    struct FaultyFixture(MemoryFixture<Memory>, Fault);

    impl Fixture for FaultyFixture {
        type Store = Faulty;
        type Host = TestClock;

        fn client(&self) -> Faulty {
            Faulty(self.0.client(), self.1)
        }
        fn host(&self) -> TestClock {
            self.0.host()
        }
        fn pass(&self, time: Duration) {
            self.0.pass(time);
        }
    }

    type Case = fn(&FaultyFixture);

    #[test]
    fn every_fault_is_found() {
        use Fault::*;
        let cases: &[(Fault, Case)] = &[
            (CountsNothing, steps::fences_grow_with_every_grant),
            (DeclaresTooLittle, steps::a_force_release_frees_the_name),
            (
                DeclaresTooMuch,
                clients::an_ephemeral_record_ends_with_its_client,
            ),
            (
                ForceReleasesAnyGrant,
                steps::a_force_release_can_require_a_fence,
            ),
            (ExtendsExpired, time::a_late_extension_is_refused),
            (FoldsCase, steps::spellings_are_different_names),
            (IgnoresOwnerOnExtend, steps::another_owner_cannot_extend),
            (IgnoresOwnerOnRelease, steps::another_owner_cannot_release),
            (
                InspectingExtends,
                steps::a_request_for_the_holders_changes_nothing,
            ),
            (
                RenewsAsItExtends,
                time::a_renewal_prolongs_and_never_shortens,
            ),
            (RenewsAsItExtends, time::a_late_renewal_revives_the_lease),
            (
                RenewsForAnyone,
                time::a_late_renewal_fails_after_another_grant,
            ),
            (
                RenewsForAnyone,
                time::a_late_renewal_fails_after_a_force_release,
            ),
            (
                RenewsForAnyone,
                clients::a_renewal_reports_a_release_by_the_owner,
            ),
            (RefusesRetry, steps::repeated_acquire_is_idempotent),
            (
                OverstatesRemaining,
                time::a_refusal_never_overstates_the_remaining_time,
            ),
        ];
        for (fault, case) in cases {
            let found = |fault| {
                let fixture = FaultyFixture(waiting(), fault);
                catch_unwind(AssertUnwindSafe(|| case(&fixture))).is_err()
            };
            assert!(found(*fault), "{fault:?} was not found");
            assert!(
                !found(Nothing),
                "the case for {fault:?} fails without a fault"
            );
        }
    }
}
