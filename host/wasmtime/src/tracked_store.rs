//! An async store that records which of its leases end with an instance, or with a guest.

use std::pin::pin;
use std::task::{Context, Waker};

use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Renewed, StoreError, async_trait,
};

use crate::grants::Grants;

/// A store, and the leases of it that end with an instance.
#[derive(Debug)]
pub(crate) struct Tracked<S> {
    pub(crate) store: S,
    grants: Grants,
}

impl<S: AsyncStore> Tracked<S> {
    pub(crate) fn new(store: S) -> Self {
        Self {
            store,
            grants: Grants::default(),
        }
    }

    /// Releases all leases: starts each release, but cannot await it.
    pub(crate) fn release_all(&self) {
        for claim in self.grants.take() {
            self.begin_release(&claim);
        }
    }

    fn begin_release(&self, claim: &Claim) {
        // A drop cannot await the release, or report an error.
        let _ = pin!(self.store.release(claim)).poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// A request to acquire a lock without a reply, which may have been granted. Dropping it starts a release.
struct Unanswered<'a, S: AsyncStore> {
    tracked: &'a Tracked<S>,
    /// `None` after the reply.
    claim: Option<&'a Claim>,
}

impl<S: AsyncStore> Drop for Unanswered<'_, S> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim {
            self.tracked.begin_release(claim);
        }
    }
}

#[deny(
    clippy::missing_trait_methods,
    reason = "a wrapper passes every method on"
)]
#[async_trait]
impl<S: AsyncStore> AsyncStore for Tracked<S> {
    async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.grants.asked(claim);
        let mut unanswered = Unanswered {
            tracked: self,
            claim: Some(claim),
        };
        let reply = self.store.acquire(claim).await;
        unanswered.claim = None;
        self.grants.acquired(claim, &reply);
        reply
    }
    async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.store.extend(claim).await
    }
    async fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.store.renew(claim, fence).await
    }
    async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let reply = self.store.release(claim).await;
        self.grants.ended(claim, &reply);
        reply
    }
    async fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.store.force_release(name, only).await
    }
    async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.store.holders(name).await
    }
    async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        self.store.holds(claim, fence).await
    }
    async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        let reply = self.store.detach(claim).await;
        self.grants.ended(claim, &reply);
        reply
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        self.store.waiter(claim)
    }
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
        self.store.watch(claim)
    }
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use verrou::{MemoryStore, Owner, Store, Ttl};
    use verrou_host::System;

    use super::*;

    /// A store that grants, and withholds its reply.
    #[derive(Debug)]
    struct Withheld(Arc<MemoryStore<System>>);

    #[async_trait]
    impl AsyncStore for Withheld {
        async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
            AsyncStore::acquire(&self.0, claim).await?;
            pending().await
        }
        async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
            AsyncStore::extend(&self.0, claim).await
        }
        async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
            AsyncStore::release(&self.0, claim).await
        }
        async fn force_release(&self, name: &Name, _: Option<Fence>) -> Result<bool, StoreError> {
            AsyncStore::force_release(&self.0, name, None).await
        }
        async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
            AsyncStore::holders(&self.0, name).await
        }
        fn capabilities(&self) -> Capabilities {
            AsyncStore::capabilities(&self.0)
        }
    }

    #[test]
    fn dropped_request_that_was_granted_is_released() {
        let memory = Arc::new(MemoryStore::new(System));
        let tracked = Tracked::new(Withheld(Arc::clone(&memory)));
        let name = Name::new("lock").expect("a name");
        let claim = Claim::new(name.clone(), Owner::from_bytes([1; 16]), Ttl::NEVER);
        let held = || {
            !Store::holders(&memory, &name)
                .expect("an answer")
                .is_empty()
        };
        {
            let mut request = pin!(tracked.acquire(&claim));
            let mut context = Context::from_waker(Waker::noop());
            assert!(request.as_mut().poll(&mut context).is_pending());
            assert!(held());
        }
        assert!(!held(), "the lock of a dropped request");
    }
}
