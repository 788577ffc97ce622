//! The stores of this machine for tasks: a step takes microseconds, and is taken at once; waiting is
//! awaited, for a lock and for a file that another process keeps locked.

use std::time::Duration;

use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError,
};

use crate::open::FileStore;
use crate::store::{FileLockStore, LeaseFileStore, at_once, patiently};

/// A release that has not come to its end.
struct Dropped<'a, S: Store> {
    store: &'a S,
    claim: Option<&'a Claim>,
}

impl<S: Store> Drop for Dropped<'_, S> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim {
            // There is nobody to tell of a failure.
            let _ = at_once(|| self.store.release(claim));
        }
    }
}

macro_rules! awaited {
    ($store:ty) => {
        /// Steps are taken at once, in the thread that polls: each takes microseconds. Waiting
        /// keeps no thread: one serves all tasks of the process that wait. A release that is dropped
        /// while it waits ends an ephemeral lease all the same.
        impl AsyncStore for $store {
            async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
                patiently(|| Store::acquire(self, claim)).await
            }
            async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
                patiently(|| Store::extend(self, claim)).await
            }
            async fn renew(
                &self,
                claim: &Claim,
                fence: Option<Fence>,
            ) -> Result<Renewed, StoreError> {
                patiently(|| Store::renew(self, claim, fence)).await
            }
            async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
                let mut dropped = Dropped {
                    store: self,
                    claim: Some(claim),
                };
                let released = patiently(|| Store::release(self, claim)).await;
                dropped.claim = None;
                released
            }
            async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
                patiently(|| Store::evict(self, name, only)).await
            }
            async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
                patiently(|| Store::inspect(self, name)).await
            }
            async fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
                patiently(|| Store::detach(self, claim)).await
            }
            async fn wait(&self, claim: &Claim, _at_most: Duration) {
                self.waited(claim).await;
            }
            fn notifies(&self) -> bool {
                Store::notifies(self)
            }
            async fn lost(&self, claim: &Claim) {
                self.awaited_loss(claim).await;
            }
            fn give_up(&self, claim: &Claim) {
                Store::give_up(self, claim);
            }
            fn abilities(&self) -> Abilities {
                Store::abilities(self)
            }
        }
    };
}

awaited!(LeaseFileStore);
awaited!(FileLockStore);
awaited!(FileStore);
