//! The interface of the stores that a URL can name.

use std::fs::File;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};
use std::{io, thread};

use verrou::{AsyncWaiter, Claim, Holder, Name, Store, StoreError};

/// A held name and its holder, or the error for one lock whose state cannot be determined.
pub type Listed = Result<(Name, Holder), StoreError>;

/// A store that a URL can name: what programs such as the command `verrou` need besides [`Store`].
pub trait HostStore: Store {
    /// Returns the locks that are held now, with their holders, and an error for each lock whose state
    /// cannot be determined.
    ///
    /// # Errors
    ///
    /// Returns a [`StoreError`] when the store cannot list its locks.
    fn list(&self) -> Result<Vec<Listed>, StoreError>;

    /// Waits until `name` is free, or its state cannot be determined, but at most for `at_most`. Unlike a
    /// [waiter](Store::waiter), this does not join the wait queue: it is for programs that observe a lock
    /// without acquiring it. The default polls.
    fn wait_until_free(&self, name: &Name, at_most: Duration) {
        const INTERVAL: Duration = Duration::from_millis(100);

        let began = Instant::now();
        while let Some(holder) = self
            .holders(name)
            .ok()
            .and_then(|mut holders| holders.pop())
        {
            let left = at_most.saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            let pause = INTERVAL.min(left).min(holder.remaining.unwrap_or(INTERVAL));
            thread::sleep(pause.max(Duration::from_millis(1)));
        }
    }

    /// Returns a waiter of `claim` for a program that waits for several claims in one thread; see
    /// [`Store::waiter`]. Its wait ends when the claim may be granted, or after the time limit, and needs no executor of a
    /// particular library. Returns `None` when the store has no wait queue, which is the default.
    fn async_waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
        let _ = claim;
        None
    }

    /// Records `label` as the label of this process in grants from now on; `None` restores the label with
    /// which the store was opened. The default does nothing, for stores that keep that label.
    fn set_label(&self, label: Option<&str>) {
        let _ = label;
    }

    /// Returns a duplicate of the descriptor that keeps the kernel's lock for the grant of `claim`, if
    /// this process has one. The default returns `None`, for stores whose locks no descriptor keeps.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when the descriptor cannot be duplicated.
    fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let _ = claim;
        Ok(None)
    }

    /// Returns the previous holder from which the lease of `claim` was taken over although processes
    /// of that holder were still alive. The default returns `None`, for stores that do not track processes.
    fn taken_over(&self, claim: &Claim) -> Option<Holder> {
        let _ = claim;
        None
    }

    /// Returns a signal of the loss of the lease of `claim` before its expiry, for programs that poll
    /// descriptors.
    ///
    /// # Errors
    ///
    /// Returns the operating system's error when its resources are exhausted, or when the store cannot
    /// notify of losses, which is the default.
    fn loss_signal<'s>(&'s self, claim: &Claim) -> io::Result<Box<dyn LossSignal + 's>> {
        let _ = claim;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A notification that a lease may be lost before its expiry: it was force-released or taken over, or
/// its file was replaced.
pub trait LossSignal {
    /// Returns whether the lease is lost. Consumes pending notifications: the descriptor is not
    /// readable again before the next one.
    fn is_lost(&self) -> bool;

    /// Returns a descriptor that is readable when a notification is pending for any lock that this
    /// process watches: only for this one if no other thread of the program waits for locks.
    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
}
