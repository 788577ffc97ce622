//! The expiry of records.
//!
//! In every store, a lease expires when its ttl has passed: its owner can neither extend nor release it
//! any more. The capability `expires` says whether the name is then free to others.

use super::{
    Fixture, assert_done, assert_grows, assert_held, assert_not_done, claim, claim_for, granted,
    holder, is_done, is_granted, refused, renewed, ttl,
};
use crate::store::{Capabilities, Renewed, Store};
use crate::ttl::Ttl;

/// Checks that a name is free at the instant when the ttl has passed, if the store's records expire.
pub fn a_record_ends_with_its_ttl(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let expires = store.capabilities().expires;
    let first = granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    assert_eq!(holder(&elsewhere, &one).is_none(), expires);
    if expires {
        let second = granted(elsewhere.acquire(&two));
        assert_held(&store, &two, second);
    } else {
        refused(elsewhere.acquire(&two));
        assert_held(&store, &one, first);
    }
}

/// Checks that a name is held until its ttl has passed.
pub fn a_record_lasts_until_its_ttl_has_passed(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let fence = granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    assert_held(&elsewhere, &one, fence);
    refused(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_done(store.extend(&one));
    assert_done(store.release(&one));
}

/// Checks that the ttl counts from the latest acquire request of the same owner.
pub fn a_repeated_acquire_restarts_the_ttl(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let fence = granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    assert_eq!(granted(store.acquire(&one)), fence);
    fixture.pass(fixture.ttl() / 2);
    assert_held(&elsewhere, &one, fence);
    assert_done(store.extend(&one));
    fixture.pass(fixture.ttl());
    assert_not_done(store.extend(&one));
}

/// Checks that the ttl counts from the extension, not from the grant.
pub fn an_extension_restarts_the_ttl(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let fence = granted(store.acquire(&one));
    for _ in 0..3 {
        fixture.pass(fixture.ttl() / 2);
        assert_done(store.extend(&one));
    }
    fixture.pass(fixture.ttl() / 2);
    assert_held(&elsewhere, &one, fence);
    refused(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_done(store.release(&one));
}

/// Checks that an extension can shorten the remaining time.
pub fn an_extension_can_shorten(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let long = claim_for(ttl(10 * fixture.ttl()), "lock", 1);
    let short = claim(fixture, "lock", 1);
    granted(store.acquire(&long));
    assert_done(store.extend(&short));
    fixture.pass(fixture.ttl());
    let freed = is_granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_eq!(freed, store.capabilities().expires);
    assert_not_done(store.extend(&long));
}

/// Checks that two extensions at the same time have the effect of one.
pub fn extensions_do_not_add_up(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    assert_done(store.extend(&one));
    assert_done(store.extend(&one));
    fixture.pass(fixture.ttl());
    let freed = is_granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_eq!(freed, store.capabilities().expires);
    assert_not_done(store.extend(&one));
}

/// Checks that an expired record cannot be extended, in any store.
pub fn a_late_extension_is_refused(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    assert_not_done(store.extend(&one));
    assert_not_done(store.extend(&claim_for(Ttl::NEVER, "lock", 1)));
}

/// Checks that the ttl of a renewal counts from the renewal, and never shortens the lease, in a store
/// that supports this.
pub fn a_renewal_prolongs_and_never_shortens(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let fence = granted(store.acquire(&one));
    for _ in 0..3 {
        fixture.pass(fixture.ttl() / 2);
        assert_eq!(renewed(store.renew(&one, fence)), Renewed::Granted);
    }
    assert_done(store.extend(&claim_for(ttl(10 * fixture.ttl()), "lock", 1)));
    assert_eq!(renewed(store.renew(&one, fence)), Renewed::Granted);
    fixture.pass(fixture.ttl());
    let is_held = holder(&elsewhere, &one).is_some();
    let Capabilities {
        expires, revives, ..
    } = store.capabilities();
    assert_eq!(is_held, revives || !expires);
    assert_eq!(is_done(store.extend(&one)), revives);
    // A lease without an expiry does not get one by a renewal either.
    let other = claim_for(Ttl::NEVER, "other", 1);
    let fence = granted(store.acquire(&other));
    let short = claim(fixture, "other", 1);
    assert_eq!(renewed(store.renew(&short, fence)), Renewed::Granted);
    fixture.pass(fixture.ttl());
    assert_eq!(is_done(store.extend(&other)), revives);
}

/// Checks that a renewal revives an expired lease under the same fence, in a store that supports this, and
/// that no other operation does.
pub fn a_late_renewal_revives_the_lease(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let Capabilities {
        expires, revives, ..
    } = store.capabilities();
    let fence = granted(store.acquire(&one));
    fixture.pass(3 * fixture.ttl());
    assert_not_done(store.extend(&one));
    let taken_back = renewed(store.renew(&one, fence)) == Renewed::Granted;
    assert_eq!(taken_back, revives);
    if revives {
        assert_held(&elsewhere, &one, fence);
        assert_held(&store, &one, fence);
        refused(elsewhere.acquire(&two));
        assert_done(store.extend(&one));
        assert_done(store.release(&one));
        assert_grows(&store, fence, granted(elsewhere.acquire(&two)));
    } else {
        assert_eq!(is_granted(elsewhere.acquire(&two)), expires);
    }
}

/// Checks that a late renewal fails after another owner was granted the lock, even if that owner has
/// released it since, and under any fence but its own.
pub fn a_late_renewal_fails_after_another_grant(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let fence = granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    if !store.capabilities().expires {
        // No other owner can have held the lock.
        return;
    }
    let later = granted(elsewhere.acquire(&two));
    assert_eq!(renewed(store.renew(&one, fence)), Renewed::Lost);
    assert_held(&store, &two, later);
    assert_done(elsewhere.release(&two));
    assert_eq!(renewed(store.renew(&one, fence)), Renewed::Lost);
    assert_eq!(holder(&elsewhere, &one), None);
    // A later grant of the same owner is a different grant.
    let again = granted(store.acquire(&one));
    assert_grows(&store, later, again);
    fixture.pass(fixture.ttl());
    if store.capabilities().revives && fence.is_some() {
        assert_eq!(renewed(store.renew(&one, fence)), Renewed::Lost);
        assert_eq!(renewed(store.renew(&one, again)), Renewed::Granted);
    }
}

/// Checks that a late renewal fails after a force-release, before the expiry or after it.
pub fn a_late_renewal_fails_after_a_force_release(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    if !store.capabilities().force_releases {
        return;
    }
    for (name, is_late) in [("in time", false), ("late", true)] {
        let one = claim(fixture, name, 1);
        let fence = granted(store.acquire(&one));
        if is_late {
            fixture.pass(fixture.ttl());
        }
        let is_force_released = is_done(elsewhere.force_release(&one.name, None));
        assert_eq!(
            is_force_released,
            !(is_late && store.capabilities().expires)
        );
        assert_eq!(renewed(store.renew(&one, fence)), Renewed::Lost, "{name}");
        assert_eq!(holder(&elsewhere, &one), None);
        fixture.pass(fixture.ttl());
        assert_eq!(renewed(store.renew(&one, fence)), Renewed::Lost, "{name}");
    }
}

/// Checks that a renewal fails after a release by the owner, before the expiry or after it.
pub fn a_late_renewal_fails_after_a_release(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    for (name, is_late) in [("in time", false), ("late", true)] {
        let one = claim(fixture, name, 1);
        let fence = granted(store.acquire(&one));
        if is_late {
            fixture.pass(fixture.ttl());
        }
        assert_eq!(is_done(store.release(&one)), !is_late);
        assert_ne!(
            renewed(store.renew(&one, fence)),
            Renewed::Granted,
            "{name}"
        );
        assert_eq!(holder(&elsewhere, &one), None);
    }
}

/// Checks that the release of an expired record is refused and nevertheless frees the name, in any store.
pub fn a_late_release_is_refused_and_frees_the_name(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    assert_not_done(store.release(&one));
    assert_eq!(holder(&elsewhere, &one), None);
    granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
}

/// Checks that the owner of an expired lease can neither release, extend nor acquire while another owner
/// holds the lock.
pub fn an_expired_owner_cannot_affect_the_next_holder(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let two = claim_for(Ttl::NEVER, "lock", 2);
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    if !store.capabilities().expires {
        refused(elsewhere.acquire(&two));
        assert_not_done(store.release(&one));
    }
    granted(elsewhere.acquire(&two));
    let before = holder(&elsewhere, &two);
    assert_not_done(store.release(&one));
    assert_not_done(store.extend(&one));
    refused(store.acquire(&one));
    assert_eq!(holder(&elsewhere, &two), before);
    assert_done(elsewhere.release(&two));
}

/// Checks that the owner of an expired lease can acquire again. If the name was free, that is a new grant.
pub fn an_expired_owner_can_acquire_again(fixture: &impl Fixture) {
    let store = fixture.client();
    let one = claim(fixture, "lock", 1);
    let before = granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    let after = granted(store.acquire(&one));
    if store.capabilities().expires {
        assert_grows(&store, before, after);
    } else {
        assert!(before <= after, "the fence decreased");
    }
    assert_done(store.extend(&one));
    assert_done(store.release(&one));
}

/// Checks that a fence is greater than that of an expired holder.
pub fn fences_grow_after_an_expiry(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    let before = granted(store.acquire(&one));
    fixture.pass(fixture.ttl());
    if !store.capabilities().expires {
        assert_not_done(store.release(&one));
    }
    let after = granted(elsewhere.acquire(&two));
    assert_grows(&store, before, after);
}

/// Checks that a record without ttl lasts until it is released.
pub fn a_record_without_ttl_does_not_end(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim_for(Ttl::NEVER, "lock", 1);
    let fence = granted(store.acquire(&one));
    assert_eq!(
        refused(elsewhere.acquire(&claim(fixture, "lock", 2))),
        None,
        "the remaining time of a lease without ttl is unknown"
    );
    fixture.pass(2 * fixture.ttl());
    let holder = holder(&elsewhere, &one).expect("a holder");
    assert_eq!((holder.fence, holder.remaining), (fence, None));
    refused(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_done(store.extend(&one));
    assert_done(store.release(&one));
}

/// Checks that an extension can remove the expiry of a record, and set one again.
pub fn an_extension_can_remove_and_restore_the_expiry(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (some, never) = (claim(fixture, "lock", 1), claim_for(Ttl::NEVER, "lock", 1));
    let fence = granted(store.acquire(&some));
    assert_done(store.extend(&never));
    fixture.pass(fixture.ttl());
    assert_held(&elsewhere, &some, fence);
    assert_done(store.extend(&some));
    fixture.pass(fixture.ttl());
    assert_not_done(store.extend(&some));
    let freed = is_granted(elsewhere.acquire(&claim(fixture, "lock", 2)));
    assert_eq!(freed, store.capabilities().expires);
}

/// Checks that the remaining time of a holder decreases.
pub fn holders_have_their_remaining_time(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let one = claim(fixture, "lock", 1);
    let expires = store.capabilities().expires;
    granted(store.acquire(&one));
    for left in [fixture.ttl(), fixture.ttl() / 2] {
        match holder(&elsewhere, &one).expect("a holder").remaining {
            Some(remaining) => assert!(remaining <= left && !remaining.is_zero(), "{remaining:?}"),
            None => assert!(
                !expires,
                "a store with `expires` returns the remaining time"
            ),
        }
        fixture.pass(fixture.ttl() / 2);
    }
    assert_eq!(holder(&elsewhere, &one).is_none(), expires);
}

/// Checks that a refusal reports at most the time that is left, or none, and that a store whose records do
/// not expire reports none.
pub fn a_refusal_never_overstates_the_remaining_time(fixture: &impl Fixture) {
    let (store, elsewhere) = (fixture.client(), fixture.client());
    let (one, two) = (claim(fixture, "lock", 1), claim(fixture, "lock", 2));
    granted(store.acquire(&one));
    fixture.pass(fixture.ttl() / 2);
    if let Some(remaining) = refused(elsewhere.acquire(&two)) {
        assert!(store.capabilities().expires, "a lease that does not expire");
        assert!(remaining <= fixture.ttl() / 2, "{remaining:?}");
    }
}
