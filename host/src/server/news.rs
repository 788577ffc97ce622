//! Who in this process waits for news of its lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::sleep;
use verrou::Owner;

use super::store::KEPT_FOR_THE_FIRST;

/// Those who listen, by owner. News that come while one listens are kept until it looks.
#[derive(Debug, Default)]
pub(crate) struct News(Mutex<HashMap<Owner, (usize, Arc<Ear>)>>);

#[derive(Debug, Default)]
struct Ear {
    notify: Notify,
    /// Whether it was for this owner.
    is_meant: AtomicBool,
}

impl News {
    /// Listens for `owner`, until it is dropped.
    pub(crate) fn listen(&self, owner: Owner) -> Listening<'_> {
        let mut listeners = self.listeners();
        let (count, ear) = listeners.entry(owner).or_default();
        *count += 1;
        Listening {
            news: self,
            owner,
            ear: Arc::clone(ear),
        }
    }

    /// Hands on what the server says: an owner, or one that is to look later, when the lock is kept no
    /// more for who is before it.
    pub(crate) fn hear(self: &Arc<Self>, said: &str) {
        let (owner, is_later) = match said.split_once(' ') {
            Some((owner, "later")) => (owner, true),
            _ => (said, false),
        };
        let Ok(owner) = owner.parse() else {
            return;
        };
        if !is_later {
            return self.tell(&owner);
        }
        let news = Arc::downgrade(self);
        tokio::spawn(async move {
            sleep(KEPT_FOR_THE_FIRST).await;
            if let Some(news) = news.upgrade() {
                news.tell(&owner);
            }
        });
    }

    /// Tells whoever listens for `owner`.
    pub(crate) fn tell(&self, owner: &Owner) {
        if let Some((_, ear)) = self.listeners().get(owner) {
            ear.is_meant.store(true, Ordering::Release);
            ear.notify.notify_one();
        }
    }

    /// Tells all: news may have been missed.
    pub(crate) fn tell_all(&self) {
        for (_, ear) in self.listeners().values() {
            ear.notify.notify_one();
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Owner, (usize, Arc<Ear>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who listens.
#[derive(Debug)]
pub(crate) struct Listening<'a> {
    news: &'a News,
    owner: Owner,
    ear: Arc<Ear>,
}

impl Listening<'_> {
    /// Ends when there are news, or were since the last time: whether they were for this owner.
    pub(crate) async fn heard(&self) -> bool {
        self.ear.notify.notified().await;
        self.ear.is_meant.swap(false, Ordering::Acquire)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut listeners = self.news.listeners();
        if let Some((count, _)) = listeners.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                listeners.remove(&self.owner);
            }
        }
    }
}
