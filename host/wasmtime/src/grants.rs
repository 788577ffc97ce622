//! The leases that an instance holds, which its host releases when the instance ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use verrou::{Acquired, Claim, Name, StoreError};

/// The claims of an instance that its store has granted, or may have granted, and that end with the instance. A clone is the
/// same list: the host has it also while a call of the component is in progress.
#[derive(Clone, Debug, Default)]
pub(crate) struct Grants(Arc<Mutex<HashMap<Name, Vec<Claim>>>>);

impl Grants {
    /// Records that the store is asked for `claim`: until its reply is recorded, the claim may have been granted.
    pub(crate) fn asked(&self, claim: &Claim) {
        if claim.ephemeral {
            let mut claims = self.claims();
            let of_name = claims.entry(claim.name.clone()).or_default();
            of_name.retain(|other| other.owner != claim.owner);
            of_name.push(claim.clone());
        }
    }

    /// Records the reply to an acquire request. After an error, the claim may have been granted.
    pub(crate) fn acquired(&self, claim: &Claim, reply: &Result<Acquired, StoreError>) {
        match reply {
            // No other claim of the name can be held any more.
            Ok(Acquired::Granted { .. }) => {
                if let Some(of_name) = self.claims().get_mut(&claim.name) {
                    of_name.retain(|other| other.owner == claim.owner);
                }
            }
            Ok(Acquired::Busy { .. }) => self.remove(claim),
            Err(_) => {}
        }
    }

    /// Records the reply to a release, or to a request after which the lease outlives the instance.
    pub(crate) fn ended(&self, claim: &Claim, reply: &Result<bool, StoreError>) {
        if reply.is_ok() {
            self.remove(claim);
        }
    }

    /// Removes and returns all claims.
    pub(crate) fn take(&self) -> impl Iterator<Item = Claim> + use<> {
        std::mem::take(&mut *self.claims()).into_values().flatten()
    }

    fn remove(&self, claim: &Claim) {
        let mut claims = self.claims();
        if let Some(of_name) = claims.get_mut(&claim.name) {
            of_name.retain(|other| other.owner != claim.owner);
            if of_name.is_empty() {
                claims.remove(&claim.name);
            }
        }
    }

    fn claims(&self) -> MutexGuard<'_, HashMap<Name, Vec<Claim>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use verrou::{Owner, Ttl};

    use super::*;

    fn claim(owner: u8) -> Claim {
        let name = Name::new("lock").expect("a name");
        Claim::new(name, Owner::from_bytes([owner; 16]), Ttl::NEVER).ephemeral(true)
    }

    const GRANTED: Result<Acquired, StoreError> = Ok(Acquired::Granted { fence: None });

    #[test]
    fn claims_are_kept_while_they_may_be_held() {
        let grants = Grants::default();
        let owners = || {
            let claims = grants.claims();
            let claims = claims.values().flatten();
            claims.map(|claim| claim.owner).collect::<Vec<_>>()
        };
        let [one, two, three] = [1, 2, 3].map(claim);
        grants.asked(&one);
        assert_eq!(owners(), [one.owner], "its reply may never arrive");
        grants.acquired(&one, &Err(StoreError::temporary("no answer")));
        assert_eq!(owners(), [one.owner]);
        grants.asked(&two);
        grants.acquired(&two, &Ok(Acquired::BUSY));
        assert_eq!(owners(), [one.owner]);
        grants.asked(&three);
        grants.acquired(&three, &GRANTED);
        assert_eq!(owners(), [three.owner], "an earlier lease was lost");
        grants.ended(&three, &Err(StoreError::temporary("no answer")));
        assert_eq!(owners(), [three.owner]);
        grants.ended(&three, &Ok(false));
        assert_eq!(owners(), []);
        grants.asked(&claim(4).ephemeral(false));
        assert_eq!(owners(), [], "it outlives the instance");
    }
}
