//! Notifications from a server, and the owners in this process that wait for them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::sleep;
use verrou::Owner;

use crate::store::RESERVATION;

/// The subscriptions, by owner. A notification is kept until its subscription is polled.
#[derive(Debug, Default)]
pub(crate) struct Notifications(Mutex<HashMap<Owner, (usize, Arc<Signal>)>>);

#[derive(Debug, Default)]
struct Signal {
    notify: Notify,
    /// Whether a notification was for this owner alone.
    is_targeted: AtomicBool,
}

impl Notifications {
    /// Subscribes to the notifications for `owner`, until the result is dropped.
    pub(crate) fn subscribe(self: &Arc<Self>, owner: Owner) -> Subscription {
        let mut subscribers = self.subscribers();
        let (count, signal) = subscribers.entry(owner).or_default();
        *count += 1;
        Subscription {
            notifications: Arc::clone(self),
            owner,
            signal: Arc::clone(signal),
        }
    }

    /// Passes on a server's notification: an owner, or an owner with `later`, which is notified when the
    /// reservation for the head waiter has ended.
    pub(crate) fn dispatch(self: &Arc<Self>, payload: &str) {
        let (owner, is_later) = match payload.split_once(' ') {
            Some((owner, "later")) => (owner, true),
            _ => (payload, false),
        };
        let Ok(owner) = owner.parse() else {
            return;
        };
        if !is_later {
            return self.notify(&owner);
        }
        let notifications = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(RESERVATION).await;
            if let Some(notifications) = notifications.upgrade() {
                notifications.notify(&owner);
            }
        });
    }

    /// Notifies all subscriptions for `owner`.
    pub(crate) fn notify(&self, owner: &Owner) {
        if let Some((_, signal)) = self.subscribers().get(owner) {
            signal.is_targeted.store(true, Ordering::Release);
            signal.notify.notify_one();
        }
    }

    /// Notifies all subscriptions, because notifications may have been lost.
    pub(crate) fn notify_all(&self) {
        for (_, signal) in self.subscribers().values() {
            signal.notify.notify_one();
        }
    }

    fn subscribers(&self) -> MutexGuard<'_, HashMap<Owner, (usize, Arc<Signal>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A subscription to the notifications for one owner. Dropping it ends the subscription.
#[derive(Debug)]
pub(crate) struct Subscription {
    notifications: Arc<Notifications>,
    owner: Owner,
    signal: Arc<Signal>,
}

impl Subscription {
    /// Waits for a notification, unless there was one since the last call.
    pub(crate) async fn notified(&self) {
        self.signal.notify.notified().await;
    }
}

#[cfg(feature = "postgres")]
impl Subscription {
    /// Returns whether a notification was for this owner alone. All subscriptions of the owner share this.
    pub(crate) fn is_targeted(&self) -> bool {
        self.signal.is_targeted.load(Ordering::Acquire)
    }

    /// Records whether a notification was for this owner alone.
    pub(crate) fn set_targeted(&self, is_targeted: bool) {
        self.signal
            .is_targeted
            .store(is_targeted, Ordering::Release);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut subscribers = self.notifications.subscribers();
        if let Some((count, _)) = subscribers.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                subscribers.remove(&self.owner);
            }
        }
    }
}
