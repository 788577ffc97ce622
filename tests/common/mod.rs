//! Helpers of several test files.

#![allow(dead_code, reason = "no test file uses all of it")]

pub(crate) mod script;
pub(crate) mod world;

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use verrou::nonblocking::AsyncHost;
use verrou::{
    Abilities, AsyncStore, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError, Waited,
};

/// A store that cannot wait, so that its callers sleep by their own clock.
#[derive(Clone, Debug)]
pub(crate) struct Polled<S>(pub(crate) S);

impl<S: Store> Store for Polled<S> {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.0.acquire(claim)
    }
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.0.extend(claim)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.0.renew(claim, fence)
    }
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.0.release(claim)
    }
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        self.0.evict(name, only)
    }
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        self.0.inspect(name)
    }
    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.0.detach(claim)
    }
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }
}

/// An async store for blocking callers.
#[derive(Clone, Debug)]
pub(crate) struct BlockOn<S, H> {
    pub(crate) store: S,
    pub(crate) host: H,
}

impl<S: AsyncStore, H: AsyncHost> Store for BlockOn<S, H> {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        pollster::block_on(self.store.acquire(claim))
    }
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        pollster::block_on(self.store.extend(claim))
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        pollster::block_on(self.store.renew(claim, fence))
    }
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        pollster::block_on(self.store.release(claim))
    }
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        pollster::block_on(self.store.evict(name, only))
    }
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        pollster::block_on(self.store.inspect(name))
    }
    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        pollster::block_on(self.store.detach(claim))
    }
    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        pollster::block_on(first(
            self.store.wait(claim, at_most),
            self.host.sleep(at_most),
        ));
        Waited::Done
    }
    fn give_up(&self, claim: &Claim) {
        self.store.give_up(claim);
    }
    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
}

/// Waits until either future ends.
pub(crate) async fn first(one: impl Future<Output = ()>, two: impl Future<Output = ()>) {
    let (mut one, mut two) = (pin!(one), pin!(two));
    poll_fn(|context| {
        if one.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        two.as_mut().poll(context)
    })
    .await;
}

/// Yields to other tasks once.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
