//! The stores of this machine for tasks: a step takes microseconds, and is taken at once; only
//! waiting is awaited.

use std::time::Duration;

use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError,
};

use crate::open::FileStore;
use crate::store::{FileLockStore, LeaseFileStore};

macro_rules! awaited {
    ($store:ty) => {
        /// Steps are taken at once, in the thread that polls: each takes microseconds. Waiting
        /// keeps no thread: one serves all tasks of the process that wait.
        impl AsyncStore for $store {
            async fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
                Store::acquire(self, claim)
            }
            async fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
                Store::extend(self, claim)
            }
            async fn renew(
                &self,
                claim: &Claim,
                fence: Option<Fence>,
            ) -> Result<Renewed, StoreError> {
                Store::renew(self, claim, fence)
            }
            async fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
                Store::release(self, claim)
            }
            async fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
                Store::evict(self, name, only)
            }
            async fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
                Store::inspect(self, name)
            }
            async fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
                Store::detach(self, claim)
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
