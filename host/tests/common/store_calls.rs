//! Claims, and the expected replies of a store.
#![allow(dead_code, reason = "every program of tests uses its own part of this")]

use verrou::{Acquired, Claim, Fence, Name, Owner, StoreError, Ttl};

/// Returns a claim of a lock that ends with its process alone.
pub(crate) fn claim(name: &str, owner: u8) -> Claim {
    let owner = Owner::from_bytes([owner; 16]);
    Claim::new(Name::new(name).unwrap(), owner, Ttl::NEVER).ephemeral(true)
}

/// Asserts a grant, and returns its fencing token, or 0 if it has none.
#[track_caller]
pub(crate) fn granted(reply: Result<Acquired, StoreError>) -> u64 {
    match reply {
        Ok(Acquired::Granted { fence }) => fence.map_or(0, Fence::get),
        other => panic!("expected a grant, got {other:?}"),
    }
}

#[track_caller]
pub(crate) fn refused(reply: &Result<Acquired, StoreError>) {
    assert!(
        matches!(reply, Ok(Acquired::Busy { .. })),
        "expected a refusal, got {reply:?}"
    );
}

#[track_caller]
pub(crate) fn done(reply: Result<bool, StoreError>) {
    assert!(reply.expect("an answer"), "the operation is done");
}

#[track_caller]
pub(crate) fn not_done(reply: &Result<bool, StoreError>) {
    assert!(
        matches!(reply, Ok(false)),
        "expected `false`, got {reply:?}"
    );
}
