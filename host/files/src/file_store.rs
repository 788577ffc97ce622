//! The common part of both stores in files.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use verrou::{Claim, Clock, Holder, Name, StoreError};
use verrou_machine::{Listed, System, process};

use crate::directory::Directory;
use crate::queue::{Queue, QueueLossWatch, QueueWaiter};

/// The fields of a store in files.
pub(crate) struct Base {
    /// The directory of the records.
    pub(crate) directory: Directory,
    pub(crate) queue: Queue,
    /// The clock by which leases expire.
    pub(crate) clock: Arc<dyn Clock + Send + Sync>,
    /// The number of the process that opened the store.
    process: u32,
}

impl Base {
    /// Returns the fields of a store that this process opens.
    pub(crate) fn new(directory: Directory, queue: Queue) -> Self {
        Self {
            directory,
            queue,
            clock: Arc::new(System),
            process: process::this(),
        }
    }

    /// Returns the time by the store's clock.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now().since_start()
    }

    /// Returns whether this process opened the store; a forked child did not.
    pub(crate) fn is_of_this_process(&self) -> bool {
        self.process == process::this()
    }
}

/// A store in files: the methods in which the two differ, and those that follow from them.
pub(crate) trait FileStore: Sync {
    fn base(&self) -> &Base;

    /// Returns the holder of `name`.
    fn holder(&self, name: &Name) -> Result<Option<Holder>, StoreError>;

    /// Returns whether this process may hold the lock of `claim`: `false` only if it does not.
    fn may_hold(&self, claim: &Claim) -> bool;

    /// Returns the locks of the directory that are held now.
    fn held(&self) -> Result<Vec<Listed>, StoreError> {
        self.base().directory.held(|name| self.holder(name))
    }

    /// Returns the waiter of `claim`, for a thread or a task.
    fn queue_waiter(&self, claim: &Claim) -> QueueWaiter<'_> {
        let base = self.base();
        base.queue.waiter(&base.directory, claim)
    }

    /// Returns a watch for the loss of the lease of `claim`, for a thread or a task.
    fn loss_watch(&self, claim: &Claim) -> io::Result<QueueLossWatch<'_>> {
        let base = self.base();
        let name = claim.name.clone();
        let claim = claim.clone();
        let is_lost = move || !self.may_hold(&claim);
        base.queue.loss_watch(&base.directory, &name, is_lost)
    }
}
