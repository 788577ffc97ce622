//! The place of a guest's attempt in the wait queue of a store, as a pollable.

use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use verrou::{AsyncStore, Claim, async_trait};
use wasmtime_wasi_io::poll::Pollable;

/// A store with wait queues.
pub(crate) trait Queues: Send + Sync {
    /// Returns a place in the queue for `claim`; `None` if the store cannot wait.
    fn join(&self, claim: &Claim) -> Option<Place>;
}

impl<S: AsyncStore + 'static> Queues for Arc<S> {
    fn join(&self, claim: &Claim) -> Option<Place> {
        self.waiter(claim)?;
        Some(Place::new(Arc::clone(self), claim.clone()))
    }
}

/// Waits for one notification after the other; never ends.
type Waits = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A place in the queue. [`leave`](Self::leave) ends it, also for copies that the guest still has as pollables.
#[derive(Clone)]
pub(crate) struct Place {
    /// `None` after the place has ended.
    waits: Arc<Mutex<Option<Waits>>>,
    is_notified: Arc<AtomicBool>,
}

impl Place {
    /// The longest wait without a notification.
    const LONGEST: Duration = Duration::from_hours(1);

    fn new(store: Arc<impl AsyncStore + 'static>, claim: Claim) -> Self {
        let is_notified = Arc::new(AtomicBool::new(false));
        let notified = Arc::clone(&is_notified);
        let waits = async move {
            let Some(mut waiter) = store.waiter(&claim) else {
                return pending().await;
            };
            loop {
                waiter.wait(Self::LONGEST).await;
                notified.store(true, Ordering::SeqCst);
                poll_fn(|_| {
                    if notified.load(Ordering::SeqCst) {
                        Poll::Pending
                    } else {
                        Poll::Ready(())
                    }
                })
                .await;
            }
        };
        Self {
            waits: Arc::new(Mutex::new(Some(Box::pin(waits)))),
            is_notified,
        }
    }

    /// Leaves the queue. From now on, pollables of this place are ready.
    pub(crate) fn leave(&self) {
        self.waits().take();
    }

    fn waits(&self) -> MutexGuard<'_, Option<Waits>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a new wait.
    pub(crate) fn wait_again(&self) -> Self {
        self.is_notified.store(false, Ordering::SeqCst);
        self.clone()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").finish_non_exhaustive()
    }
}

#[async_trait]
impl Pollable for Place {
    async fn ready(&mut self) {
        poll_fn(|context| {
            let mut waits = self.waits();
            let Some(waits) = &mut *waits else {
                return Poll::Ready(());
            };
            let _ = waits.as_mut().poll(context);
            if self.is_notified.load(Ordering::SeqCst) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}
