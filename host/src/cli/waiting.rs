//! Saying, once, what is waited for.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use verrou::{Abilities, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError, Waited};

use super::report::{holder, say};

/// A store that tells the person at the terminal who holds the lock, if it takes long enough
/// for a person to notice.
#[derive(Debug)]
pub(crate) struct Announced<'a, S> {
    store: &'a S,
    said: Cell<Said>,
}

#[derive(Clone, Copy, Debug)]
enum Said {
    Nothing,
    /// Since when is waited.
    Waiting(Instant),
    All,
}

impl<'a, S: Store> Announced<'a, S> {
    /// No shorter wait is worth a word.
    const NOTICED: Duration = Duration::from_millis(200);

    /// `store`, telling only a terminal.
    pub(crate) fn new(store: &'a S) -> Self {
        Self {
            store,
            said: Cell::new(Said::Nothing),
        }
    }

    /// How long to wait at most before the next word is due, having said what was due.
    fn announce(&self, name: &Name) -> Duration {
        let since = match self.said.get() {
            Said::All => return Duration::MAX,
            Said::Nothing if !io::stderr().is_terminal() => {
                self.said.set(Said::All);
                return Duration::MAX;
            }
            Said::Nothing => Instant::now(),
            Said::Waiting(since) => since,
        };
        let left = Self::NOTICED.saturating_sub(since.elapsed());
        if left.is_zero() {
            self.said.set(Said::All);
            if let Ok(Some(found)) = self.store.inspect(name) {
                say(&format!(
                    "waiting for the lock `{name}`: {}",
                    holder(&found)
                ));
            }
            return Duration::MAX;
        }
        self.said.set(Said::Waiting(since));
        left
    }
}

impl<S: Store> Store for Announced<'_, S> {
    fn acquire(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.store.acquire(claim)
    }
    fn extend(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.store.extend(claim)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.store.renew(claim, fence)
    }
    fn release(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.store.release(claim)
    }
    fn evict(&self, name: &Name, only: Option<Fence>) -> Result<Reply, StoreError> {
        self.store.evict(name, only)
    }
    fn inspect(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        self.store.inspect(name)
    }
    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        self.store.holds(claim, fence)
    }
    fn detach(&self, claim: &Claim) -> Result<Reply, StoreError> {
        self.store.detach(claim)
    }
    fn wait(&self, claim: &Claim, at_most: Duration) -> Waited {
        let at_most = self.announce(&claim.name).min(at_most);
        self.store.wait(claim, at_most)
    }
    fn notifies(&self) -> bool {
        self.store.notifies()
    }
    fn lost(&self, claim: &Claim, at_most: Duration) -> Waited {
        self.store.lost(claim, at_most)
    }
    fn give_up(&self, claim: &Claim) {
        self.store.give_up(claim);
    }
    fn abilities(&self) -> Abilities {
        self.store.abilities()
    }
}
