//! Helpers of several test files.

#![allow(dead_code, reason = "no test file uses all of it")]

pub(crate) mod script;
pub(crate) mod world;

use std::fmt::Debug;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use verrou::nonblocking::AsyncHost;
use verrou::{
    Acquired, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name, Renewed, Store,
    StoreError, StoreWrapper, Waiter,
};

/// A store that cannot wait, so that its callers sleep by their own clock.
#[derive(Clone, Debug)]
pub(crate) struct Polled<S>(pub(crate) S);

impl<S: Store> StoreWrapper for Polled<S> {
    type Inner = S;
    fn inner(&self) -> &S {
        &self.0
    }
    fn waiter<'s>(&'s self, _: &Claim) -> Option<Box<dyn Waiter + 's>> {
        None
    }
}

/// An async store for blocking callers.
#[derive(Clone, Debug)]
pub(crate) struct BlockOn<S, H> {
    pub(crate) store: S,
    pub(crate) host: H,
}

impl<S: AsyncStore, H: AsyncHost + Debug> Store for BlockOn<S, H> {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        pollster::block_on(self.store.acquire(claim))
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        pollster::block_on(self.store.extend(claim))
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        pollster::block_on(self.store.release(claim))
    }
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        pollster::block_on(self.store.force_release(name, only))
    }
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        pollster::block_on(self.store.holders(name))
    }
    fn capabilities(&self) -> Capabilities {
        self.store.capabilities()
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        pollster::block_on(self.store.renew(claim, fence))
    }
    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        pollster::block_on(self.store.detach(claim))
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        let waiter = self.store.waiter(claim)?;
        Some(Box::new(BlockOnWaiter(waiter, &self.host)))
    }
}

struct BlockOnWaiter<'a, H>(Box<dyn AsyncWaiter + 'a>, &'a H);

impl<H: AsyncHost> Waiter for BlockOnWaiter<'_, H> {
    fn wait(&mut self, at_most: Duration) {
        pollster::block_on(first(self.0.wait(at_most), self.1.sleep(at_most)));
    }
    fn notifies(&self) -> bool {
        self.0.notifies()
    }
    fn granted(self: Box<Self>) {
        self.0.granted();
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
