//! The operations of a store, one after the other.

use core::time::Duration;
use std::format;
use std::string::{String, ToString};
use std::time::Instant;
use std::vec::Vec;

use super::{
    Fixture, assert_done, assert_grows, assert_held, assert_not_done, claim, claim_for, granted,
    holder, refused,
};
use crate::claim::Fence;
use crate::name::Name;
use crate::store::Store;
use crate::ttl::Ttl;

/// Checks that a free name is granted, with a fence if the store has fences.
pub fn a_free_name_is_granted(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    assert_eq!(holder(&store, &one), None);
    let fence = granted(store.acquire(&one));
    assert_eq!(fence.is_some(), store.capabilities().fences);
    assert_held(&store, &one, fence);
}

/// Checks that an acquire request of another owner is refused, and does not change the record.
pub fn another_owner_is_refused_and_changes_nothing(fixture: &impl Fixture) {
    let store = fixture.client();
    let (one, two) = (
        claim_for(Ttl::NEVER, "lock", 1),
        claim_for(Ttl::NEVER, "lock", 2),
    );
    granted(store.acquire(&one));
    let before = holder(&store, &one);
    refused(store.acquire(&two));
    refused(fixture.client().acquire(&two));
    assert_eq!(holder(&store, &one), before);
    assert_done(store.extend(&one));
    assert_done(store.release(&one));
}

/// Checks that an operation on one name does not change another.
pub fn names_are_independent(fixture: &impl Fixture) {
    let store = fixture.client();
    let (here, there) = (claim(fixture, "here", 1), claim(fixture, "there", 2));
    granted(store.acquire(&here));
    assert_eq!(holder(&store, &there), None);
    let fence = granted(store.acquire(&there));
    assert_done(store.release(&here));
    assert_held(&store, &there, fence);
    // One owner may hold several names, too.
    let elsewhere = granted(store.acquire(&claim(fixture, "elsewhere", 2)));
    assert_held(&store, &there, fence);
    assert_done(store.release(&there));
    assert_held(&store, &claim(fixture, "elsewhere", 2), elsewhere);
}

/// Checks that names that differ only in case, or in Unicode form, are different names.
pub fn spellings_are_different_names(fixture: &impl Fixture) {
    assert_all_distinct(
        fixture,
        &[
            "strasse",
            "Strasse",
            "STRASSE",
            "straße",
            "caf\u{e9}",
            "cafe\u{301}",
            "CAFE\u{301}",
            "\u{fb01}n",
            "fin",
        ],
    );
}

/// Checks that a name may be any text, and that similar names are different names.
pub fn unusual_names_are_accepted(fixture: &impl Fixture) {
    let full = "x".repeat(Name::MAX_BYTES);
    let mut full_too = String::from(&full[1..]);
    full_too.push('y');
    let emoji = "🔒".repeat(Name::MAX_BYTES / 4);
    assert_all_distinct(
        fixture,
        &[
            ".",
            "..",
            "../lock",
            "/",
            "//",
            "a/b",
            "a\\b",
            "a:b",
            "a%2Fb",
            "a b",
            "a b ",
            "a\0b",
            "a\nb",
            "-x",
            "--help",
            "*",
            "con",
            "lock.",
            "~",
            "$HOME",
            "' or 1=1",
            "\u{202e}kcol",
            "🔒",
            &full,
            &full_too,
            &emoji,
        ],
    );
}

fn assert_all_distinct(fixture: &impl Fixture, names: &[&str]) {
    let (store, other) = (fixture.client(), fixture.client());
    let claims: Vec<_> = (1..)
        .zip(names)
        .map(|(number, name)| claim_for(Ttl::NEVER, name, number))
        .collect();
    let fences: Vec<_> = claims
        .iter()
        .map(|claim| granted(store.acquire(claim)))
        .collect();
    for (claim, fence) in claims.iter().zip(fences) {
        assert_held(&other, claim, fence);
        refused(other.acquire(&claim_for(Ttl::NEVER, claim.name.as_str(), 255)));
    }
    for claim in &claims {
        assert_done(store.release(claim));
        assert_eq!(holder(&other, claim), None, "{:?}", claim.name);
    }
}

/// Checks that a repeated acquire request of the same owner is granted under the same fence, as the retry
/// after a lost reply.
pub fn repeated_acquire_is_idempotent(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    let first = granted(store.acquire(&one));
    assert_eq!(granted(store.acquire(&one)), first);
    assert_eq!(granted(store.acquire(&one)), first);
    // It is held once, not three times.
    assert_done(store.release(&one));
    assert_eq!(holder(&store, &one), None);
}

/// Checks that a released name is free, and granted to another owner.
pub fn a_release_frees_the_name(fixture: &impl Fixture) {
    let store = fixture.client();
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    granted(store.acquire(&one));
    assert_done(store.release(&one));
    assert_eq!(holder(&store, &one), None);
    let fence = granted(store.acquire(&two));
    assert_held(&store, &two, fence);
}

/// Checks that a second release is refused, even if another owner holds the lock.
pub fn a_second_release_is_refused(fixture: &impl Fixture) {
    let store = fixture.client();
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    granted(store.acquire(&one));
    assert_done(store.release(&one));
    assert_not_done(store.release(&one));
    let fence = granted(store.acquire(&two));
    assert_not_done(store.release(&one));
    assert_held(&store, &two, fence);
}

/// Checks that a release by another owner is refused, and does not change the record.
pub fn another_owner_cannot_release(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (
        claim_for(Ttl::NEVER, "lock", 1),
        claim_for(Ttl::NEVER, "lock", 2),
    );
    granted(store.acquire(&one));
    let before = holder(&store, &one);
    assert_not_done(store.release(&two));
    assert_not_done(elsewhere.release(&two));
    assert_eq!(holder(&store, &one), before);
    refused(elsewhere.acquire(&two));
    assert_done(store.release(&one));
}

/// Checks that an extension by another owner is refused, and does not change the record.
pub fn another_owner_cannot_extend(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim_for(Ttl::NEVER, "lock", 1);
    let two = claim(fixture, "lock", 2);
    let fence = granted(store.acquire(&one));
    assert_not_done(store.extend(&two));
    assert_not_done(elsewhere.extend(&two));
    // If the refused extension had set the ttl, the lease would be expired now.
    fixture.pass(fixture.ttl());
    assert_held(&store, &one, fence);
    assert_done(store.release(&one));
}

/// Checks that a free name cannot be extended, released or force-released.
pub fn a_free_name_refuses_extend_release_and_force_release(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    for used in [false, true] {
        if used {
            granted(store.acquire(&one));
            assert_done(store.release(&one));
        }
        assert_not_done(store.extend(&one));
        assert_not_done(store.release(&one));
        if store.capabilities().force_releases {
            assert_not_done(store.force_release(&one.name, None));
            assert_not_done(store.force_release(&one.name, Some(Fence::FIRST)));
        }
        assert_eq!(holder(&store, &one), None);
    }
    granted(fixture.client().acquire(&claim(fixture, "lock", 2)));
}

/// Checks that each grant has a greater fence than the one before, for any client and owner.
pub fn fences_grow_with_every_grant(fixture: &impl Fixture) {
    let clients = [fixture.client(), fixture.client()];
    let mut last = None;
    for round in 1..=6 {
        let store = &clients[usize::from(round % 2)];
        // A later acquisition of the same owner is a new grant.
        let claim = claim(fixture, "lock", 1 + round % 3);
        let fence = granted(store.acquire(&claim));
        if round > 1 {
            assert_grows(store, last, fence);
        }
        last = fence;
        assert_done(store.release(&claim));
        // Other names may share the counter of fences, but never set it back.
        let other = claim_for(claim.ttl, "other", round);
        granted(store.acquire(&other));
        assert_done(store.release(&other));
    }
}

/// Checks that neither an extension nor a repeated acquire request is a new grant.
pub fn an_extension_keeps_the_fence(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    let fence = granted(store.acquire(&one));
    assert_done(store.extend(&one));
    assert_eq!(holder(&store, &one).and_then(|holder| holder.fence), fence);
    assert_eq!(granted(store.acquire(&one)), fence);
    assert_done(store.release(&one));
}

/// Checks that every client reads the holder's fence, but not its owner token, and that a client can ask by
/// its claim whether the grant is its own.
pub fn holders_have_their_fences(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    assert_eq!(holder(&elsewhere, &one), None);
    let fence = granted(store.acquire(&one));
    for client in [&store, &elsewhere] {
        let holder = holder(client, &one).expect("a holder");
        assert_eq!(holder.fence, fence);
        let text = format!("{holder:?}");
        assert!(!text.contains(&one.owner.to_string()), "{text}");
    }
    let next = fence.and_then(|fence| Fence::new(fence.get() + 1));
    let two = claim(fixture, "lock", 2);
    for (claim, fence, held) in [(&one, fence, true), (&two, next, false)] {
        match store.holds(claim, fence) {
            // Without fencing tokens the answer may be unknown. It is never wrong.
            Err(err) if fence.is_none() => assert!(!err.is_temporary(), "{err}"),
            answer => assert_eq!(answer.expect("the store answers"), held),
        }
    }
    assert_done(store.release(&one));
    assert_eq!(holder(&elsewhere, &one), None);
    assert!(!store.holds(&one, fence).expect("the store answers"));
}

/// Checks that `holders` neither acquires nor frees a name.
pub fn a_request_for_the_holders_changes_nothing(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (
        claim_for(Ttl::NEVER, "lock", 1),
        claim_for(Ttl::NEVER, "lock", 2),
    );
    for _ in 0..3 {
        assert_eq!(holder(&elsewhere, &one), None);
    }
    granted(store.acquire(&one));
    let before = holder(&store, &one);
    for _ in 0..3 {
        assert_eq!(holder(&elsewhere, &one), before);
    }
    refused(elsewhere.acquire(&two));
    assert_done(store.release(&one));
    for _ in 0..3 {
        assert_eq!(holder(&elsewhere, &one), None);
    }
    granted(store.acquire(&two));
}

/// Checks that a force-release frees the name. A store without this capability must return a permanent
/// error, and change nothing.
pub fn a_force_release_frees_the_name(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (
        claim_for(Ttl::NEVER, "lock", 1),
        claim_for(Ttl::NEVER, "lock", 2),
    );
    let before = granted(store.acquire(&one));
    if !store.capabilities().force_releases {
        for client in [&store, &elsewhere] {
            for only in [None, before, Some(Fence::FIRST)] {
                let err = client
                    .force_release(&one.name, only)
                    .expect_err("no such capability");
                assert!(!err.is_temporary(), "{err}");
            }
        }
        assert_held(&store, &one, before);
        refused(elsewhere.acquire(&two));
        assert_done(store.release(&one));
        return;
    }
    assert_done(elsewhere.force_release(&one.name, None));
    assert_eq!(holder(&store, &one), None);
    assert_not_done(elsewhere.force_release(&one.name, None));
    let after = granted(elsewhere.acquire(&two));
    assert_grows(&store, before, after);
}

/// Checks that a force-release of the grant with one fence does not end a grant with another.
pub fn a_force_release_can_require_a_fence(fixture: &impl Fixture) {
    let store = fixture.client();
    let (one, two) = (
        claim_for(Ttl::NEVER, "lock", 1),
        claim_for(Ttl::NEVER, "lock", 2),
    );
    let first = granted(store.acquire(&one));
    assert_done(store.release(&one));
    let second = granted(store.acquire(&two));
    let force_release = |only| store.force_release(&two.name, only);
    match (store.capabilities().force_releases, first, second) {
        (true, Some(first), Some(second)) => {
            let next = Fence::new(second.get() + 1);
            assert_not_done(force_release(Some(first)));
            assert_not_done(force_release(next));
            assert_held(&store, &two, Some(second));
            assert_done(force_release(Some(second)));
            assert_eq!(holder(&store, &two), None);
            assert_not_done(force_release(Some(second)));
        }
        (true, _, _) => {
            assert_not_done(force_release(Some(Fence::FIRST)));
            assert_held(&store, &two, second);
        }
        (false, _, _) => {
            force_release(second.or(Some(Fence::FIRST))).expect_err("no such capability");
            assert_held(&store, &two, second);
        }
    }
}

/// Checks that a force-released owner can neither extend, release nor acquire while another owner holds the
/// lock. In a store that cannot force-release, the owner releases instead.
pub fn a_force_released_owner_cannot_affect_the_next_holder(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (
        claim_for(Ttl::NEVER, "lock", 1),
        claim_for(Ttl::NEVER, "lock", 2),
    );
    granted(store.acquire(&one));
    let is_force_released = elsewhere.force_release(&one.name, None).is_ok();
    assert_eq!(is_force_released, store.capabilities().force_releases);
    if !is_force_released {
        assert_done(store.release(&one));
    }
    assert_not_done(store.extend(&one));
    let fence = granted(elsewhere.acquire(&two));
    assert_not_done(store.extend(&one));
    assert_not_done(store.release(&one));
    refused(store.acquire(&one));
    assert_held(&elsewhere, &two, fence);
    assert_done(elsewhere.extend(&two));
    assert_done(elsewhere.release(&two));
}

/// The longest time for an operation that must not wait: far more than any machine needs, and less than
/// the waits that the cases request.
const PROMPT: Duration = Duration::from_secs(20);

/// Checks that a wait for a free name ends at once, or that the store cannot wait.
pub fn a_wait_for_a_free_name_ends_at_once(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    let began = Instant::now();
    if let Some(mut waiter) = store.waiter(&one) {
        for _ in 0..3 {
            waiter.wait(2 * PROMPT);
        }
    }
    assert!(began.elapsed() < PROMPT);
    granted(store.acquire(&one));
}

/// Checks that a wait for a name that stays held ends after its time limit, and does not change the record.
pub fn a_wait_for_a_held_name_ends_and_changes_nothing(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim_for(Ttl::NEVER, "lock", 1);
    granted(store.acquire(&one));
    let two = claim(fixture, "lock", 2);
    let before = holder(&store, &one);
    let began = Instant::now();
    if let Some(mut waiter) = elsewhere.waiter(&two) {
        for at_most in [0, 1, 20] {
            waiter.wait(Duration::from_millis(at_most));
        }
    }
    assert!(began.elapsed() < PROMPT);
    assert_eq!(holder(&store, &one), before);
    assert_done(store.extend(&one));
    assert_done(store.release(&one));
    granted(elsewhere.acquire(&two));
}
