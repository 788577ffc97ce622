//! What time does to a record.
//!
//! A holder's own time ends with the ttl in every store: it can neither extend nor release any
//! more. Whether the name is free to others then is what `expires` says.

use super::{
    Fixture, assert_grows, assert_held, claim, claim_for, granted, holder, is_granted, refused, ttl,
};
use crate::store::Store;
use crate::ttl::Ttl;

/// At the instant the ttl has passed the name is free to all, in a store whose records end.
pub fn a_record_ends_with_its_ttl(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let expires = store.abilities().expires;
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    assert_eq!(holder(&elsewhere, &one).is_none(), expires);
    assert_eq!(is_granted(elsewhere.acquire(&two)), expires);
    let now = if expires { &two } else { &one };
    assert_held(&store, now);
}

/// Until then it is not.
pub fn a_record_stands_until_its_ttl_has_passed(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    assert_held(&elsewhere, &one);
    refused(elsewhere.acquire(&claim(fixture, "lock", 2)));
    granted(store.extend(&one));
    granted(store.release(&one));
}

/// The same owner asking again gets the whole ttl again.
pub fn asking_again_restarts_the_ttl(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let fence = granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    assert_eq!(granted(store.acquire(&one)), fence);
    fixture.pass(fixture.ttl() / 2);
    assert_held(&elsewhere, &one);
    granted(store.extend(&one));
    fixture.pass(fixture.ttl());
    refused(store.extend(&one));
}

/// An extension counts from itself, not from the grant.
pub fn an_extension_prolongs(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    for _ in 0..3 {
        fixture.pass(fixture.ttl() / 2);
        granted(store.extend(&one));
    }
    fixture.pass(fixture.ttl() / 2);
    assert_held(&elsewhere, &one);
    refused(elsewhere.acquire(&claim(fixture, "lock", 2)));
    granted(store.release(&one));
}

/// An extension may be shorter than what was left.
pub fn an_extension_can_shorten(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let long = claim_for(ttl(10 * fixture.ttl()), "lock", 1);
    let short = claim(fixture, "lock", 1);
    granted(store.acquire(&long));
    granted(store.extend(&short));
    fixture.pass(fixture.ttl());
    let freed = is_granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_eq!(freed, store.abilities().expires);
    refused(store.extend(&long));
}

/// Two extensions at once are one.
pub fn an_extension_sets_and_never_adds(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    granted(store.extend(&one));
    granted(store.extend(&one));
    fixture.pass(fixture.ttl());
    let freed = is_granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_eq!(freed, store.abilities().expires);
    refused(store.extend(&one));
}

/// Once its time has passed a record cannot be extended, in any store.
pub fn a_late_extension_is_refused(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    refused(store.extend(&one));
    refused(store.extend(&claim_for(Ttl::NEVER, "lock", 1)));
}

/// Once its time has passed a record cannot be released; but nothing of it is left then, in any
/// store.
pub fn a_late_release_is_refused_and_frees(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    refused(store.release(&one));
    assert_eq!(holder(&elsewhere, &one), None);
    granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
}

/// Whoever comes too late does nothing to whoever holds it by then.
pub fn latecomers_leave_the_next_holder_alone(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let two = claim_for(Ttl::NEVER, "lock", 2);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    if !store.abilities().expires {
        refused(elsewhere.acquire(&two));
        refused(store.release(&one));
    }
    granted(elsewhere.acquire(&two));
    let before = holder(&elsewhere, &two);
    refused(store.release(&one));
    refused(store.extend(&one));
    refused(store.acquire(&one));
    assert_eq!(holder(&elsewhere, &two), before);
    granted(elsewhere.release(&two));
}

/// An owner whose time has passed may ask again; where the name was free that is a new grant.
pub fn the_same_owner_can_come_back(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    let before = granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    let after = granted(store.acquire(&one));
    if store.abilities().expires {
        assert_grows(&store, before, after);
    } else {
        assert!(before <= after, "the fence went back");
    }
    granted(store.extend(&one));
    granted(store.release(&one));
}

/// A fence is greater than that of a holder whose time has passed.
pub fn fences_grow_over_an_expiry(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let before = granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    if !store.abilities().expires {
        refused(store.release(&one));
    }
    let after = granted(elsewhere.acquire(&two));
    assert_grows(&store, before, after);
}

/// What has no ttl stays until it is released.
pub fn a_record_without_ttl_does_not_end(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim_for(Ttl::NEVER, "lock", 1);
    granted(store.acquire(&one));
    assert_eq!(
        refused(elsewhere.acquire(&claim(fixture, "lock", 2))),
        None,
        "nobody knows for how long it stays taken"
    );
    fixture.pass(2 * fixture.ttl());
    let holder = holder(&elsewhere, &one).expect("a holder");
    assert_eq!((holder.owner, holder.remaining), (Some(one.owner), None));
    refused(elsewhere.acquire(&claim(fixture, "lock", 2)));
    granted(store.extend(&one));
    granted(store.release(&one));
}

/// An extension can take a record's end away, and give it one again.
pub fn an_end_can_be_taken_away_and_given_back(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (some, never) = (claim(fixture, "lock", 1), claim_for(Ttl::NEVER, "lock", 1));
    granted(store.acquire(&some));
    granted(store.extend(&never));
    fixture.pass(fixture.ttl());
    assert_held(&elsewhere, &some);
    granted(store.extend(&some));
    fixture.pass(fixture.ttl());
    refused(store.extend(&some));
    let freed = is_granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_eq!(freed, store.abilities().expires);
}

/// What is left of a record is told, and gets less.
pub fn inspecting_tells_what_is_left(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let expires = store.abilities().expires;
    granted(store.acquire(&one));
    for left in [fixture.ttl(), fixture.ttl() / 2] {
        match holder(&elsewhere, &one).expect("a holder").remaining {
            Some(remaining) => assert!(remaining <= left && !remaining.is_zero(), "{remaining:?}"),
            None => assert!(!expires, "the store knows when the record ends"),
        }
        fixture.pass(fixture.ttl() / 2);
    }
    assert_eq!(holder(&elsewhere, &one).is_none(), expires);
}

/// Who is refused is told how long the name stays taken at most, or nothing: never more than is
/// left, and nothing by a store whose records do not end.
pub fn a_refusal_tells_no_more_than_is_left(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    if let Some(remaining) = refused(elsewhere.acquire(&two)) {
        assert!(store.abilities().expires, "nobody knows that");
        assert!(remaining <= fixture.ttl() / 2, "{remaining:?}");
    }
}
