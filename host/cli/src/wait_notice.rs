//! A notice on the terminal that the command waits for a lock.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Claim, Store, StoreWrapper, Waiter};

use crate::output::{holder, say};

/// The time after which the notice is printed: long enough for a user to notice.
const NOTICED: Duration = Duration::from_millis(200);

/// A store whose waiters print the holder of the lock to the terminal, once.
#[derive(Debug)]
pub(crate) struct Announced<'a, S>(pub(crate) &'a S);

impl<S: Store> StoreWrapper for Announced<'_, S> {
    type Inner = S;

    fn inner(&self) -> &S {
        self.0
    }

    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        let waiter = self.0.waiter(claim);
        if !io::stderr().is_terminal() {
            return waiter;
        }
        Some(Box::new(AnnouncedWaiter {
            waiter,
            store: self.0,
            claim: claim.clone(),
            due: Some(Instant::now() + NOTICED),
        }))
    }
}

struct AnnouncedWaiter<'a, S> {
    /// The store's waiter, if the store can wait.
    waiter: Option<Box<dyn Waiter + 'a>>,
    store: &'a S,
    claim: Claim,
    /// The time at which the notice is to be printed, until it is.
    due: Option<Instant>,
}

impl<S: Store> Waiter for AnnouncedWaiter<'_, S> {
    fn wait(&mut self, at_most: Duration) {
        let left = self
            .due
            .map(|due| due.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            self.due = None;
            let name = &self.claim.name;
            for found in self.store.holders(name).unwrap_or_default() {
                say(&format!(
                    "waiting for the lock `{name}`: {}",
                    holder(&found)
                ));
            }
        }
        let left = left.filter(|left| !left.is_zero());
        let at_most = left.map_or(at_most, |left| left.min(at_most));
        match &mut self.waiter {
            Some(waiter) => waiter.wait(at_most),
            None => thread::sleep(at_most),
        }
    }

    fn notifies(&self) -> bool {
        self.waiter.as_ref().is_some_and(|waiter| waiter.notifies())
    }

    fn granted(self: Box<Self>) {
        if let Some(waiter) = self.waiter {
            waiter.granted();
        }
    }
}
