//! Async implementations of the stores of this machine. An operation takes microseconds and runs in the
//! polling thread; waiting for a lock, or for a file that another process keeps locked, is
//! asynchronous.

use scopeguard::ScopeGuard;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Renewed, Store, StoreError, async_trait,
};

use crate::store::{FileLockStore, LeaseFileStore, at_once, patiently};

macro_rules! awaited {
    ($store:ty) => {
        /// Operations run in the polling thread: each takes microseconds. Waiting occupies no thread
        /// per task: one thread serves all waiting tasks of the process. A release that is dropped
        /// while it waits still ends an ephemeral lease.
        #[deny(
            clippy::missing_trait_methods,
            reason = "a wrapper passes every method on"
        )]
        #[async_trait]
        impl AsyncStore for $store {
            async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
                patiently(|| Store::acquire(self, claim)).await
            }
            async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
                patiently(|| Store::extend(self, claim)).await
            }
            async fn renew(
                &self,
                claim: &Claim,
                fence: Option<Fence>,
            ) -> Result<Renewed, StoreError> {
                patiently(|| Store::renew(self, claim, fence)).await
            }
            async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
                // If this future is dropped, the failure of the release cannot be reported.
                let dropped =
                    scopeguard::guard((), |()| drop(at_once(|| Store::release(self, claim))));
                let released = patiently(|| Store::release(self, claim)).await;
                ScopeGuard::into_inner(dropped);
                released
            }
            async fn force_release(
                &self,
                name: &Name,
                only: Option<Fence>,
            ) -> Result<bool, StoreError> {
                patiently(|| Store::force_release(self, name, only)).await
            }
            async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
                patiently(|| Store::holders(self, name)).await
            }
            async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
                patiently(|| Store::holds(self, claim, fence)).await
            }
            async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
                patiently(|| Store::detach(self, claim)).await
            }
            fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
                Some(Box::new(self.queue_waiter(claim)))
            }
            fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
                Some(Box::new(self.loss_watch(claim).ok()?))
            }
            fn capabilities(&self) -> Capabilities {
                Store::capabilities(self)
            }
        }
    };
}

awaited!(LeaseFileStore);
awaited!(FileLockStore);
