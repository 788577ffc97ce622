//! Who in this process waits for news of its lock.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::sleep;
use verrou::Owner;

use super::store::KEPT_FOR_THE_FIRST;

/// Those who listen, by owner. News that come while one listens are kept until it looks.
#[derive(Debug, Default)]
pub(crate) struct News(Mutex<HashMap<Owner, (usize, Arc<Notify>)>>);

impl News {
    /// Listens for `owner`, until it is dropped.
    pub(crate) fn listen(&self, owner: Owner) -> Listening<'_> {
        let mut listeners = self.listeners();
        let (count, notify) = listeners.entry(owner).or_default();
        *count += 1;
        Listening {
            news: self,
            owner,
            notify: Arc::clone(notify),
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
        if let Some((_, notify)) = self.listeners().get(owner) {
            notify.notify_one();
        }
    }

    /// Tells all: news may have been missed.
    pub(crate) fn tell_all(&self) {
        for (_, notify) in self.listeners().values() {
            notify.notify_one();
        }
    }

    fn listeners(&self) -> MutexGuard<'_, HashMap<Owner, (usize, Arc<Notify>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who listens.
#[derive(Debug)]
pub(crate) struct Listening<'a> {
    news: &'a News,
    owner: Owner,
    notify: Arc<Notify>,
}

impl Listening<'_> {
    /// Ends when there are news, or were since the last time.
    pub(crate) async fn heard(&self) {
        self.notify.notified().await;
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
