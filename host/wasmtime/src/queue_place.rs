//! The place of a guest's attempt in the wait queue of a store, and its watch for a loss.

use std::fmt;
use std::future::{pending, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
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
        let notifies = self.waiter(claim)?.notifies();
        let (store, claim) = (Arc::clone(self), claim.clone());
        Some(Place::new(notifies, |notified| {
            Box::pin(async move {
                let Some(mut waiter) = store.waiter(&claim) else {
                    return pending().await;
                };
                loop {
                    waiter.wait(Place::LONGEST).await;
                    notified.record().await;
                }
            })
        }))
    }
}

/// Returns a watch for the loss of the lease of `claim`; `None` if the store does not notify of losses.
pub(crate) fn watch(store: &Arc<impl AsyncStore + 'static>, claim: &Claim) -> Option<Place> {
    store.watch(claim)?;
    let (store, claim) = (Arc::clone(store), claim.clone());
    let place = Place::new(true, |notified| {
        Box::pin(async move {
            let Some(mut watch) = store.watch(&claim) else {
                return pending().await;
            };
            loop {
                watch.wait().await;
                notified.record().await;
            }
        })
    });
    // From now on no loss is missed.
    place.begin();
    Some(place)
}

/// Waits for one notification after the other; never ends.
type Waits = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Whether there was a notification since the latest wait began.
#[derive(Clone, Default)]
struct Notified(Arc<AtomicBool>);

impl Notified {
    /// Records a notification, and waits until the next wait begins.
    async fn record(&self) {
        self.0.store(true, Ordering::SeqCst);
        poll_fn(|_| {
            if self.0.load(Ordering::SeqCst) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
    }
}

/// A place in the queue. [`leave`](Self::leave) ends it, also for copies that the guest still has as pollables.
#[derive(Clone)]
pub(crate) struct Place {
    /// `None` after the place has ended.
    waits: Arc<Mutex<Option<Waits>>>,
    notified: Notified,
    /// Whether the store notifies the waiter of this place.
    pub(crate) notifies: bool,
}

impl Place {
    /// The longest wait without a notification.
    const LONGEST: Duration = Duration::from_hours(1);

    fn new(notifies: bool, waits: impl FnOnce(Notified) -> Waits) -> Self {
        let state = Notified::default();
        let waits = waits(state.clone());
        Self {
            waits: Arc::new(Mutex::new(Some(waits))),
            notified: state,
            notifies,
        }
    }

    /// Begins the first wait.
    fn begin(&self) {
        if let Some(waits) = &mut *self.waits() {
            let _ = waits.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }
    }

    /// Leaves the queue. From now on, pollables of this place are ready.
    pub(crate) fn leave(&self) {
        self.waits().take();
    }

    fn waits(&self) -> MutexGuard<'_, Option<Waits>> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a notification, which may have come before; ends at once after the place has ended.
    pub(crate) async fn notification(self) {
        poll_fn(|context| match &mut *self.waits() {
            None => Poll::Ready(()),
            Some(waits) => {
                let _ = waits.as_mut().poll(context);
                if self.notified.0.swap(false, Ordering::SeqCst) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            }
        })
        .await;
    }

    /// Begins a new wait.
    pub(crate) fn wait_again(&self) -> Self {
        self.notified.0.store(false, Ordering::SeqCst);
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
            if self.notified.0.load(Ordering::SeqCst) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}
