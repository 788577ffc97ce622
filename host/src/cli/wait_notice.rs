//! A notice on the terminal that the command waits for a lock.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use verrou::{Abilities, Claim, Fence, Holder, Name, Renewed, Reply, Store, StoreError, Waited};

use super::output::{holder, say};

/// A store that prints the holder of the lock to the terminal, once, if the wait takes long enough for
/// a user to notice.
#[derive(Debug)]
pub(crate) struct Announced<'a, S> {
    store: &'a S,
    notice: Cell<Notice>,
}

/// The state of the notice.
#[derive(Clone, Copy, Debug)]
enum Notice {
    /// The wait has not begun.
    Initial,
    /// The wait began at this time, and the notice is not printed yet.
    Pending(Instant),
    /// The notice is printed, or will never be.
    Done,
}

impl<'a, S: Store> Announced<'a, S> {
    /// The time after which the notice is printed.
    const NOTICED: Duration = Duration::from_millis(200);

    /// Returns `store` with a notice, which is printed only to a terminal.
    pub(crate) fn new(store: &'a S) -> Self {
        Self {
            store,
            notice: Cell::new(Notice::Initial),
        }
    }

    /// Prints the notice if it is due. Returns how long to wait at most until it is due.
    fn announce(&self, name: &Name) -> Duration {
        let since = match self.notice.get() {
            Notice::Done => return Duration::MAX,
            Notice::Initial if !io::stderr().is_terminal() => {
                self.notice.set(Notice::Done);
                return Duration::MAX;
            }
            Notice::Initial => Instant::now(),
            Notice::Pending(since) => since,
        };
        let left = Self::NOTICED.saturating_sub(since.elapsed());
        if left.is_zero() {
            self.notice.set(Notice::Done);
            if let Ok(Some(found)) = self.store.inspect(name) {
                say(&format!(
                    "waiting for the lock `{name}`: {}",
                    holder(&found)
                ));
            }
            return Duration::MAX;
        }
        self.notice.set(Notice::Pending(since));
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
