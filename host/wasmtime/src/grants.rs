//! The leases that an instance holds, which its host releases when the instance ends.

use std::collections::HashMap;

use verrou::{Acquired, Claim, Owner, StoreError};

/// The claims of an instance that its store has granted, or may have granted, and that end with the instance.
#[derive(Debug, Default)]
pub(crate) struct Grants(HashMap<Owner, Claim>);

impl Grants {
    /// Records the reply to an acquire request. After an error, the claim may have been granted.
    pub(crate) fn acquired(&mut self, claim: &Claim, reply: &Result<Acquired, StoreError>) {
        let is_busy = matches!(reply, Ok(Acquired::Busy { .. }));
        if claim.ephemeral && !is_busy {
            self.0.insert(claim.owner, claim.clone());
        }
    }

    /// Records the reply to a release, or to a request after which the lease outlives the instance.
    pub(crate) fn ended(&mut self, claim: &Claim, reply: &Result<bool, StoreError>) {
        if reply.is_ok() {
            self.0.remove(&claim.owner);
        }
    }

    /// Removes all claims.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Claim> {
        self.0.drain().map(|(_, claim)| claim)
    }
}
