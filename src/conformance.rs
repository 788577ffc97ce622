//! The conformance suite: tests that every store must pass.
//!
//! Write a [`Fixture`] for your store and pass it to the macro:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use verrou::MemoryStore;
//! use verrou::conformance::{Fixture, TestClock};
//!
//! struct Memory {
//!     clock: TestClock,
//!     store: Arc<MemoryStore<TestClock>>,
//! }
//!
//! impl Memory {
//!     fn new() -> Self {
//!         let clock = TestClock::running();
//!         let store = Arc::new(MemoryStore::new(clock.clone()));
//!         Self { clock, store }
//!     }
//! }
//!
//! impl Fixture for Memory {
//!     type Store = Arc<MemoryStore<TestClock>>;
//!     type Host = TestClock;
//!
//!     fn client(&self) -> Self::Store {
//!         Arc::clone(&self.store)
//!     }
//!     fn host(&self) -> TestClock {
//!         self.clock.clone()
//!     }
//!     fn pass(&self, time: Duration) {
//!         self.clock.advance(time);
//!     }
//! }
//!
//! verrou::conformance!(memory, Memory::new());
//! # fn main() {}
//! ```
//!
//! This makes a `#[test]` of every case. A capability that a store lacks by its
//! [`Capabilities`](crate::Capabilities) is not skipped: the case asserts that the store lacks it.
//!
//! The suite requires what the documentation of [`Store`] states, and one consequence of it: a store
//! without `transfers` ties a lease to the client that acquired it, so the lease ends with that client,
//! even if the claim is not ephemeral.
//!
//! The suite may grow with any version of this crate.

#![expect(
    clippy::missing_panics_doc,
    reason = "a case panics if a store fails it"
)]

use core::time::Duration;
use std::boxed::Box;

use crate::blocking::Host;
use crate::claim::{Claim, Fence, Owner};
use crate::name::Name;
use crate::store::{Acquired, Holder, Renewed, Store, StoreError, Waiter};
use crate::ttl::Ttl;

pub mod clients;
mod clock;
pub mod locks;
pub mod steps;
pub mod time;

pub use clock::TestClock;

/// One backend under test, and its time.
///
/// Each case creates its own fixture: two fixtures share no record.
pub trait Fixture {
    /// The store under test.
    type Store: Store + Send + Sync + 'static;
    /// The host by which its callers wait.
    type Host: Host + Clone + Send + Sync + 'static;

    /// Returns a new client of the same backend: all clients see the same records.
    fn client(&self) -> Self::Store;

    /// Returns the host of the store's callers; all hosts of a fixture have the same time.
    fn host(&self) -> Self::Host;

    /// Advances the store and the host by `time`: moves a test clock, or sleeps for a real server.
    fn pass(&self, time: Duration);

    /// Returns the ttl of most claims: so long that a handful of operations takes less than a quarter of
    /// it, even on a busy machine.
    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }
}

/// Generates a module of tests: every case of the [conformance suite](mod@crate::conformance), on the
/// [`Fixture`](crate::conformance::Fixture) that the expression creates for each of them.
#[macro_export]
macro_rules! conformance {
    ($module:ident, $fixture:expr $(,)?) => {
        mod $module {
            #[allow(unused_imports, reason = "the expression may use nothing from its parent module")]
            use super::*;

            $crate::conformance! { @tests $fixture;
                steps:
                    a_free_name_is_granted,
                    another_owner_is_refused_and_changes_nothing,
                    names_are_independent,
                    spellings_are_different_names,
                    unusual_names_are_accepted,
                    repeated_acquire_is_idempotent,
                    a_release_frees_the_name,
                    a_second_release_is_refused,
                    another_owner_cannot_release,
                    another_owner_cannot_extend,
                    a_free_name_refuses_extend_release_and_force_release,
                    fences_grow_with_every_grant,
                    an_extension_keeps_the_fence,
                    holders_have_their_fences,
                    a_request_for_the_holders_changes_nothing,
                    a_force_release_frees_the_name,
                    a_force_release_can_require_a_fence,
                    a_force_released_owner_cannot_affect_the_next_holder,
                    a_wait_for_a_free_name_ends_at_once,
                    a_wait_for_a_held_name_ends_and_changes_nothing;
                time:
                    a_record_ends_with_its_ttl,
                    a_record_lasts_until_its_ttl_has_passed,
                    a_repeated_acquire_restarts_the_ttl,
                    an_extension_restarts_the_ttl,
                    an_extension_can_shorten,
                    extensions_do_not_add_up,
                    a_late_extension_is_refused,
                    a_renewal_prolongs_and_never_shortens,
                    a_late_renewal_revives_the_lease,
                    a_late_renewal_fails_after_another_grant,
                    a_late_renewal_fails_after_a_force_release,
                    a_late_renewal_fails_after_a_release,
                    a_late_release_is_refused_and_frees_the_name,
                    an_expired_owner_cannot_affect_the_next_holder,
                    an_expired_owner_can_acquire_again,
                    fences_grow_after_an_expiry,
                    a_record_without_ttl_does_not_end,
                    an_extension_can_remove_and_restore_the_expiry,
                    holders_have_their_remaining_time,
                    a_refusal_never_overstates_the_remaining_time;
                clients:
                    clients_see_the_same_records,
                    clients_declare_the_same_abilities,
                    another_client_can_extend_a_transferable_lease,
                    another_client_can_release_a_transferable_lease,
                    a_renewal_reports_a_release_by_the_owner,
                    an_ephemeral_record_ends_with_its_client,
                    a_lasting_record_outlives_its_client,
                    a_detached_record_outlives_its_client,
                    only_the_holder_can_detach,
                    fences_grow_after_a_client_is_dropped,
                    one_of_many_concurrent_clients_is_granted;
                locks:
                    acquiring_is_exclusive,
                    a_new_lock_is_not_locked,
                    a_lock_is_locked_from_acquire_to_release,
                    two_locks_of_one_name_are_one_lock,
                    only_the_holder_can_release,
                    a_second_release_fails,
                    a_held_lock_times_out,
                    trying_does_not_wait_for_a_held_lock,
                    run_returns_what_the_body_returns,
                    run_returns_the_bodys_error,
                    run_holds_and_releases_the_lock,
                    run_releases_when_the_body_panics,
                    runs_of_one_lock_exclude_each_other,
                    runs_of_two_locks_exclude_each_other,
                    run_reports_an_expired_lease,
                    run_reports_a_revoked_lease,
                    an_expired_run_does_not_release_the_next_hold,
                    many_threads_can_share_one_lock,
                    a_hundred_acquisitions_count_to_a_hundred,
                    every_acquisition_has_its_own_owner,
                    a_lock_can_be_restored_elsewhere,
                    an_expired_lock_is_not_locked,
                    an_expired_lock_can_be_acquired_by_the_same_lock,
                    an_expired_lock_can_be_acquired_by_another_lock,
                    each_lock_has_its_own_ttl,
                    a_lock_without_ttl_does_not_expire,
                    any_client_can_force_release,
                    extend_restarts_the_ttl,
                    only_a_holder_can_extend,
                    an_expired_lock_cannot_be_extended,
                    a_dropped_guard_frees_the_lock,
                    a_leaked_guard_blocks_the_lock_until_its_ttl_has_passed;
            }
        }
    };
    (@tests $fixture:expr; $($topic:ident: $($case:ident),+;)+) => {
        $(
            mod $topic {
                #[allow(unused_imports, reason = "the expression may use nothing from its parent module")]
                use super::*;

                $(
                    #[test]
                    fn $case() {
                        $crate::conformance::$topic::$case(&$fixture);
                    }
                )+
            }
        )+
    };
}

/// Returns a waiter of `claim` that has waited for at most `at_most`: with [`Duration::ZERO`], it only has its
/// ticket in the wait queue. Dropping it leaves the queue.
pub fn waited<'s>(
    store: &'s (impl Store + ?Sized),
    claim: &Claim,
    at_most: Duration,
) -> Box<dyn Waiter + 's> {
    let mut waiter = store.waiter(claim).expect("a store that can wait");
    waiter.wait(at_most);
    waiter
}

/// Returns a claim on `name` by the `number`th owner, for the fixture's ttl.
fn claim(fixture: &impl Fixture, name: &str, number: u8) -> Claim {
    claim_for(ttl(fixture.ttl()), name, number)
}

/// Returns a claim on `name` by the `number`th owner, for `ttl`.
fn claim_for(ttl: Ttl, name: &str, number: u8) -> Claim {
    Claim::new(self::name(name), Owner::from_bytes([number; 16]), ttl)
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn ttl(length: Duration) -> Ttl {
    Ttl::new(length).expect("a ttl")
}

/// Returns the fencing token of a reply, which must be a grant.
#[track_caller]
fn granted(reply: Result<Acquired, StoreError>) -> Option<Fence> {
    match reply.expect("the store answers") {
        Acquired::Granted { fence } => fence,
        Acquired::Busy { .. } => panic!("the store refused a request that it must grant"),
    }
}

/// Returns the remaining time of a reply, which must be a refusal.
#[track_caller]
fn refused(reply: Result<Acquired, StoreError>) -> Option<Duration> {
    match reply.expect("the store answers") {
        Acquired::Busy { remaining } => remaining,
        Acquired::Granted { .. } => panic!("the store granted a request that it must refuse"),
    }
}

#[track_caller]
fn renewed(reply: Result<Renewed, StoreError>) -> Renewed {
    reply.expect("the store answers")
}

#[track_caller]
fn is_granted(reply: Result<Acquired, StoreError>) -> bool {
    reply.expect("the store answers").is_granted()
}

/// Asserts that an operation other than an acquire request was done.
#[track_caller]
fn assert_done(reply: Result<bool, StoreError>) {
    assert!(is_done(reply), "the store did not do what it must do");
}

/// Asserts that an operation other than an acquire request was not done.
#[track_caller]
fn assert_not_done(reply: Result<bool, StoreError>) {
    assert!(!is_done(reply), "the store did what it must not do");
}

#[track_caller]
fn is_done(reply: Result<bool, StoreError>) -> bool {
    reply.expect("the store answers")
}

/// Returns the holder of the name of `claim`, which has at most one, because claims are exclusive.
#[track_caller]
fn holder(store: &impl Store, claim: &Claim) -> Option<Holder> {
    let mut holders = store.holders(&claim.name).expect("the store answers");
    let holder = holders.pop();
    assert_eq!(holders, [], "more than one holder of {:?}", claim.name);
    holder
}

/// Asserts that the grant of `claim` with `fence` is recorded. In a store without fencing tokens, any
/// grant passes.
#[track_caller]
fn assert_held(store: &impl Store, claim: &Claim, fence: Option<Fence>) {
    let found = holder(store, claim).map(|holder| holder.fence);
    assert_eq!(found, Some(fence), "holder of {:?}", claim.name);
}

/// Asserts that the second grant's fencing token is greater, in a store that counts grants.
#[track_caller]
fn assert_grows(store: &impl Store, before: Option<Fence>, after: Option<Fence>) {
    if store.capabilities().fences {
        let (before, after) = (before.expect("a fence"), after.expect("a fence"));
        assert!(
            before < after,
            "fencing token {after} does not follow {before}"
        );
    } else {
        assert_eq!((before, after), (None, None), "fencing tokens");
    }
}
