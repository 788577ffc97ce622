//! The wait queue of systems without notifications of changed files: waiters poll, in no order.

use std::convert::Infallible;
use std::marker::PhantomData;
#[cfg(unix)]
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{future, io, thread};

use verrou::{AsyncLossWatch, AsyncWaiter, Claim, LossWatch, Name, Waiter, async_trait};
use verrou_machine::LossSignal;

use crate::directory::Directory;
use crate::error::FileError;
use crate::jitter::jitter;
use crate::open_files::OpenFile;
use crate::record_file::View;

/// A queue that keeps no waiters.
#[derive(Debug)]
pub(crate) struct Queue;

/// The position of the owner of an acquire request in the wait queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(dead_code, reason = "systems with a queue use all variants")]
pub(crate) enum Position {
    NoWaiters,
    Head(u64),
    Second(u64),
    Behind(Option<u64>),
}

impl Position {
    pub(crate) fn served(self, before: &View) -> u64 {
        before.served()
    }

    pub(crate) fn has_ticket(self) -> bool {
        false
    }

    pub(crate) fn reservation(self) -> Duration {
        Duration::ZERO
    }
}

impl Queue {
    pub(crate) fn new(_foreign: Option<PathBuf>, _reports_all_changes: bool) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) fn position(
        &self,
        _claim: &Claim,
        _file: &OpenFile,
        _view: &View,
    ) -> Result<Position, FileError> {
        Ok(Position::NoWaiters)
    }

    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) fn is_known_head(&self, _claim: &Claim) -> Option<bool> {
        None
    }

    pub(crate) fn wake(_file: &OpenFile) -> Result<(), FileError> {
        Ok(())
    }

    pub(crate) fn watch(_file: &OpenFile) -> Result<(), FileError> {
        Ok(())
    }

    pub(crate) fn ignore(_file: &OpenFile) {}

    #[expect(clippy::unused_self, reason = "systems with a queue change it")]
    pub(crate) fn granted(&self, _directory: &Directory, _claim: &Claim, _is_next_notified: bool) {}

    #[expect(clippy::unused_self, reason = "systems with a queue change it")]
    pub(crate) fn released(&self, _directory: &Directory, _claim: &Claim) {}

    #[expect(clippy::unused_self, reason = "systems with a queue change it")]
    pub(crate) fn tidy(&self) {}

    /// Returns the waiter of a claim.
    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) fn waiter<'a>(
        &'a self,
        _directory: &'a Directory,
        _claim: &Claim,
    ) -> QueueWaiter<'a> {
        QueueWaiter(PhantomData)
    }

    /// Returns an error: this system does not report losses.
    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) fn loss_watch<'a>(
        &self,
        _directory: &Directory,
        _name: &Name,
        _is_lost: impl Fn() -> bool + Send + Sync + 'a,
    ) -> io::Result<QueueLossWatch<'a>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) fn watch_changes(
        &self,
        _directory: &Directory,
        _name: &Name,
        at_most: Duration,
        is_over: impl Fn() -> bool,
    ) {
        let began = Instant::now();
        while !is_over() && began.elapsed() < at_most {
            let left = at_most.saturating_sub(began.elapsed());
            thread::sleep(jitter(Duration::from_millis(10)).min(left));
        }
    }
}

/// The waiter of a claim, which polls.
pub(crate) struct QueueWaiter<'a>(PhantomData<&'a Queue>);

impl Waiter for QueueWaiter<'_> {
    /// Waits for some milliseconds; then the next attempt is due.
    fn wait(&mut self, at_most: Duration) {
        thread::sleep(jitter(Duration::from_millis(10)).min(at_most));
    }
}

#[async_trait]
impl AsyncWaiter for QueueWaiter<'_> {
    /// Never ends: the caller has a timer.
    async fn wait(&mut self, _at_most: Duration) {
        future::pending().await
    }
}

/// A watch for the loss of a lock, which this system does not have.
pub(crate) struct QueueLossWatch<'a>(Infallible, PhantomData<&'a Queue>);

impl LossWatch for QueueLossWatch<'_> {
    fn wait(&self, _at_most: Duration) {
        match self.0 {}
    }

    fn cancel(&self) {
        match self.0 {}
    }
}

#[async_trait]
impl AsyncLossWatch for QueueLossWatch<'_> {
    async fn wait(&mut self) {
        match self.0 {}
    }
}

impl LossSignal for QueueLossWatch<'_> {
    fn is_lost(&self) -> bool {
        match self.0 {}
    }

    #[cfg(unix)]
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self.0 {}
    }
}
