//! Several clients of one store, and the record of a client that is dropped.

use core::time::Duration;
use std::sync::Barrier;
use std::thread;
use std::vec::Vec;

use super::{
    Fixture, assert_done, assert_grows, assert_held, assert_not_done, claim, claim_for, granted,
    holder, is_done, is_granted, refused, renewed,
};
use crate::claim::{Claim, Fence};
use crate::store::{Acquired, Capabilities, Renewed, Store};
use crate::ttl::Ttl;

/// Checks that all clients see the record that one of them made.
pub fn clients_see_the_same_records(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let fence = granted(store.acquire(&one));
    assert_held(&elsewhere, &one, fence);
    refused(elsewhere.acquire(&two));
    assert_done(store.release(&one));
    assert_eq!(holder(&elsewhere, &one), None);
    let fence = granted(elsewhere.acquire(&two));
    assert_held(&store, &two, fence);
    refused(store.acquire(&one));
    // A client that is made later sees the record, too.
    assert_held(&fixture.client(), &two, fence);
}

/// Checks that all clients have the same capabilities, and that a store without transfers has
/// ephemeral records.
pub fn clients_declare_the_same_abilities(fixture: &impl Fixture) {
    let capabilities = fixture.client().capabilities();
    assert_eq!(fixture.client().capabilities(), capabilities);
    let Capabilities {
        ephemeral,
        transfers,
        ..
    } = capabilities;
    assert!(
        transfers || ephemeral,
        "a lease that is tied to its client ends with it"
    );
}

/// Checks that another client with the owner token can extend, if the store transfers leases.
pub fn another_client_can_extend_a_transferable_lease(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let transfers = store.capabilities().transfers;
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    assert_eq!(is_done(elsewhere.extend(&one)), transfers);
    fixture.pass(fixture.ttl() / 2);
    assert_eq!(is_done(store.extend(&one)), transfers);
}

/// Checks that another client with the owner token can release, if the store transfers leases.
pub fn another_client_can_release_a_transferable_lease(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim_for(Ttl::NEVER, "lock", 1);
    let transfers = store.capabilities().transfers;
    granted(store.acquire(&one));
    assert_eq!(is_done(elsewhere.release(&one)), transfers);
    assert_eq!(holder(&store, &one).is_none(), transfers);
    assert_eq!(is_done(store.release(&one)), !transfers);
}

/// Checks that a release by the owner through another client is not reported as a loss to the client
/// that renews the lease, even if other owners have held the lock since. A store that cannot determine
/// this reports a loss.
pub fn a_renewal_reports_a_release_by_the_owner(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let ephemeral = true;
    let one = claim_for(Ttl::NEVER, "lock", 1).ephemeral(ephemeral);
    let Capabilities {
        transfers, revives, ..
    } = store.capabilities();
    let fence = granted(store.acquire(&one));
    assert_eq!(is_done(elsewhere.release(&one)), transfers);
    if !transfers {
        assert_eq!(renewed(store.renew(&one, fence)), Renewed::Granted);
        return;
    }
    let expected = if revives {
        Renewed::Released
    } else {
        Renewed::Lost
    };
    assert_eq!(renewed(store.renew(&one, fence)), expected);
    for number in 2..5 {
        let other = claim_for(Ttl::NEVER, "lock", number);
        granted(elsewhere.acquire(&other));
        assert_eq!(renewed(store.renew(&one, fence)), expected);
        assert_done(elsewhere.release(&other));
        assert_eq!(renewed(store.renew(&one, fence)), expected);
    }
    // Here no other owner was involved.
    let two = claim_for(Ttl::NEVER, "lock", 6);
    let fence = granted(store.acquire(&two));
    if store.capabilities().force_releases {
        assert_done(elsewhere.force_release(&two.name, None));
        assert_not_done(elsewhere.release(&two));
        assert_eq!(renewed(store.renew(&two, fence)), Renewed::Lost);
    }
}

/// Checks that an ephemeral record ends with its client, if the store has this capability.
pub fn an_ephemeral_record_ends_with_its_client(fixture: &impl Fixture) {
    let ephemeral = true;
    let one = claim_of_dropped_client(fixture, ephemeral, |_, _| {});
    assert_freed(fixture, &one, fixture.client().capabilities().ephemeral);
}

/// Checks that a record that is not ephemeral outlives its client, unless the store ties leases to
/// clients.
pub fn a_lasting_record_outlives_its_client(fixture: &impl Fixture) {
    let ephemeral = false;
    let one = claim_of_dropped_client(fixture, ephemeral, |_, _| {});
    assert_freed(fixture, &one, !fixture.client().capabilities().transfers);
}

/// Checks that an ephemeral record outlives its client after `detach`, unless the store ties leases to
/// clients.
pub fn a_detached_record_outlives_its_client(fixture: &impl Fixture) {
    let ephemeral = true;
    let one = claim_of_dropped_client(fixture, ephemeral, |store, one| {
        let detached = is_done(store.detach(one));
        assert!(detached || !store.capabilities().transfers);
    });
    assert_freed(fixture, &one, !fixture.client().capabilities().transfers);
}

/// Checks that a `detach` by another owner does not make a record outlive its client.
pub fn only_the_holder_can_detach(fixture: &impl Fixture) {
    let ephemeral = true;
    let one = claim_of_dropped_client(fixture, ephemeral, |store, _| {
        let reply = store.detach(&claim_for(Ttl::NEVER, "lock", 2));
        if store.capabilities().ephemeral {
            assert_not_done(reply);
        } else {
            // Every record outlives its client here, so either reply is correct.
            reply.expect("the store answers");
        }
    });
    assert_freed(fixture, &one, fixture.client().capabilities().ephemeral);
}

/// Checks that a fence is greater than that of a holder whose client was dropped.
pub fn fences_grow_after_a_client_is_dropped(fixture: &impl Fixture) {
    let before = fence_of_dropped_client(fixture, 1);
    let after = fence_of_dropped_client(fixture, 2);
    assert_grows(&fixture.client(), before, after);
}

/// Returns the fence of a new grant. Its client is dropped, which frees the name.
fn fence_of_dropped_client(fixture: &impl Fixture, number: u8) -> Option<Fence> {
    let store = fixture.client();
    let claim = claim_for(Ttl::NEVER, "lock", number).ephemeral(true);
    let reply = (0..MAX_CHECKS).find_map(|_| {
        let reply = store.acquire(&claim).expect("the store answers");
        if !reply.is_granted() {
            fixture.pass(CHECK_PAUSE);
        }
        reply.is_granted().then_some(reply)
    });
    let fence = granted(Ok(reply.expect("a free name")));
    if !store.capabilities().ephemeral {
        assert_done(store.release(&claim));
    }
    fence
}

/// Checks that exactly one of eight clients that acquire at the same time is granted the lock.
pub fn one_of_many_concurrent_clients_is_granted(fixture: &impl Fixture) {
    const CLIENTS: u8 = 8;
    let clients: Vec<_> = (1..=CLIENTS).map(|_| fixture.client()).collect();
    for round in 0..10 {
        let start = Barrier::new(usize::from(CLIENTS));
        let claims: Vec<_> = (1..=CLIENTS)
            .map(|number| claim_for(Ttl::NEVER, "lock", round * CLIENTS + number))
            .collect();
        let replies: Vec<Acquired> = thread::scope(|scope| {
            let askers: Vec<_> = clients
                .iter()
                .zip(&claims)
                .map(|(client, claim)| {
                    let start = &start;
                    scope.spawn(move || {
                        start.wait();
                        client.acquire(claim).expect("the store answers")
                    })
                })
                .collect();
            askers
                .into_iter()
                .map(|asker| asker.join().expect("an asker"))
                .collect()
        });
        assert_eq!(replies.iter().filter(|it| it.is_granted()).count(), 1);
        for ((client, claim), reply) in clients.iter().zip(&claims).zip(replies) {
            if let Acquired::Granted { fence } = reply {
                assert_held(client, claim, fence);
            }
            assert_eq!(is_done(client.release(claim)), reply.is_granted());
        }
    }
}

/// How often, and with which pause, a case checks whether the store has noticed a client's end.
const MAX_CHECKS: u32 = 100;
const CHECK_PAUSE: Duration = Duration::from_millis(20);

/// Returns a claim that a client recorded, which was dropped after it did `last`. The record has no ttl.
fn claim_of_dropped_client<F: Fixture>(
    fixture: &F,
    ephemeral: bool,
    last: impl FnOnce(&F::Store, &Claim),
) -> Claim {
    let store = fixture.client();
    let claim = claim_for(Ttl::NEVER, "lock", 1).ephemeral(ephemeral);
    granted(store.acquire(&claim));
    last(&store, &claim);
    claim
}

/// Asserts that the record of `claim` has ended, or ends soon, if `expected`; that it stays, otherwise.
#[track_caller]
fn assert_freed(fixture: &impl Fixture, claim: &Claim, expected: bool) {
    let store = fixture.client();
    let other = claim_for(Ttl::NEVER, claim.name.as_str(), 255);
    // Waits long only for a change that has to happen.
    let checks = if expected { MAX_CHECKS } else { 5 };
    let freed = (0..checks).any(|_| {
        fixture.pass(CHECK_PAUSE);
        is_granted(store.acquire(&other))
    });
    assert_eq!(freed, expected, "whether the record ended with its client");
}
