//! Who in this process has a place among those who wait on the server.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::sleep;
use verrou::{Claim, Name, Owner};

use super::store::BELIEVED;

/// The places of those who wait here, which are kept as long as they do.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    places: HashMap<Owner, Name>,
    /// Whether [`Places::kept`] sees to it.
    are_kept: bool,
}

impl Places {
    /// Adds that of `claim`'s owner: whether [`kept`](Self::kept) is to be started.
    #[must_use]
    pub(crate) fn add(&self, claim: &Claim) -> bool {
        let mut kept = self.lock();
        kept.places.insert(claim.owner, claim.name.clone());
        !mem::replace(&mut kept.are_kept, true)
    }

    /// Removes that of `owner`, if it has one.
    pub(crate) fn remove(&self, owner: &Owner) -> bool {
        self.lock().places.remove(owner).is_some()
    }

    /// Says to the server of each of them that its owner is there, before it believes that no more, until
    /// there is none.
    pub(crate) fn kept<Say, Said>(
        self: &Arc<Self>,
        say: Say,
    ) -> impl Future<Output = ()> + Send + use<Say, Said>
    where
        Say: Fn(Owner, Name) -> Said + Send,
        Said: Future<Output = ()> + Send,
    {
        let places = Arc::downgrade(self);
        async move {
            loop {
                sleep(BELIEVED / 3).await;
                let Some(there) = places.upgrade().and_then(|places| places.all()) else {
                    return;
                };
                for (owner, name) in there {
                    say(owner, name).await;
                }
            }
        }
    }

    /// All of them; without any, nobody keeps them any more.
    fn all(&self) -> Option<HashMap<Owner, Name>> {
        let mut kept = self.lock();
        kept.are_kept = !kept.places.is_empty();
        kept.are_kept.then(|| kept.places.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
