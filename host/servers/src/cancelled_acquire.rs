//! Cancelled requests: releases the locks that they may have acquired.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::sleep;
use verrou::Owner;

/// The owners whose requests were dropped before their answer, and whose locks are being released.
#[derive(Debug)]
pub(crate) struct CancelledRequests {
    runtime: Handle,
    /// Whether each owner's lock is still to be released; locked while the release is in flight.
    owners: Arc<Mutex<Owners>>,
}

type Owners = HashMap<Owner, Arc<tokio::sync::Mutex<bool>>>;

impl CancelledRequests {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            owners: Arc::default(),
        }
    }

    /// Stops the releases for `owner`, which sends a new request; waits until one in flight has ended.
    pub(crate) async fn stop(&self, owner: &Owner) {
        let given_back = lock(&self.owners).remove(owner);
        if let Some(given_back) = given_back {
            *given_back.lock().await = false;
        }
    }

    /// Calls `release` for the lock that `owner` may hold, now and again after `late`: over several connections,
    /// the server may execute the dropped request after the first release.
    pub(crate) fn release_later<Released>(
        &self,
        owner: Owner,
        late: Duration,
        release: impl Fn() -> Released + Send + 'static,
    ) where
        Released: Future<Output = ()> + Send,
    {
        let wanted = Arc::new(tokio::sync::Mutex::new(true));
        let owners = Arc::clone(&self.owners);
        lock(&owners).insert(owner, Arc::clone(&wanted));
        self.runtime.spawn(async move {
            for pause in [Duration::ZERO, late] {
                sleep(pause).await;
                let wanted = wanted.lock().await;
                if !*wanted {
                    return;
                }
                release().await;
            }
            let mut owners = lock(&owners);
            if owners
                .get(&owner)
                .is_some_and(|of| Arc::ptr_eq(of, &wanted))
            {
                owners.remove(&owner);
            }
        });
    }
}

fn lock(owners: &Mutex<Owners>) -> MutexGuard<'_, Owners> {
    owners.lock().unwrap_or_else(PoisonError::into_inner)
}
