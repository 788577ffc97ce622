//! Async implementations of the stores of this machine. An operation takes microseconds and runs in the
//! polling thread; waiting for a lock, or for a file that another process keeps locked, is
//! asynchronous.

use std::time::Duration;

use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError,
};

use crate::any_store::FileStore;
use crate::store::{FileLockStore, LeaseFileStore, at_once, patiently};

/// A release in progress, completed on drop.
struct Dropped<'a, S: Store> {
    store: &'a S,
    claim: Option<&'a Claim>,
}

impl<S: Store> Drop for Dropped<'_, S> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim {
            // A failure cannot be reported from here.
            let _ = at_once(|| self.store.release(claim));
        }
    }
}

macro_rules! awaited {
    ($store:ty) => {
        /// Operations run in the polling thread: each takes microseconds. Waiting occupies no thread
        /// per task: one thread serves all waiting tasks of the process. A release that is dropped
        /// while it waits still ends an ephemeral lease.
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
            async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
                patiently(|| Store::holds(self, claim, fence)).await
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
