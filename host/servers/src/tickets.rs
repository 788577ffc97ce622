//! The tickets that the waiters of this process have on a server.

use std::sync::{Arc, Weak};

/// Tickets, each of which lasts until its waiter drops it.
#[derive(Debug)]
pub(crate) struct Tickets<T>(Vec<Weak<T>>);

impl<T> Tickets<T> {
    /// Adds a ticket, which lasts until the result is dropped.
    pub(crate) fn add(&mut self, ticket: T) -> Arc<T> {
        if self.0.len() == self.0.capacity() {
            // Before the list grows, so that it is at most twice as long as the most tickets at once.
            self.0.retain(|ticket| ticket.strong_count() > 0);
        }
        let ticket = Arc::new(ticket);
        self.0.push(Arc::downgrade(&ticket));
        ticket
    }

    /// Returns all tickets that last.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<T>> {
        self.0.iter().filter_map(Weak::upgrade)
    }
}

impl<T> Default for Tickets<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_tickets_are_not_kept() {
        let mut tickets = Tickets::default();
        let first = tickets.add(0);
        for number in 1..1000 {
            drop(tickets.add(number));
        }
        let last = tickets.add(1000);
        assert!(tickets.all().eq([Arc::clone(&first), last]));
        assert!(tickets.0.capacity() <= 8, "{}", tickets.0.capacity());
        drop(first);
        assert_eq!(tickets.all().count(), 0);
    }
}
