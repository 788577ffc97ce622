//! The wait queue of systems without notifications of changed files: waiters poll, in no order.

use std::future;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Claim, Name};

use super::directory::{Directory, View};
use super::error::FileError;
use super::jitter;
use super::open_files::OpenFile;

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
    pub(crate) const NOTIFIES: bool = false;

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
    pub(crate) fn leave(&self, _directory: &Directory, _claim: &Claim) {}

    #[expect(clippy::unused_self, reason = "systems with a queue change it")]
    pub(crate) fn tidy(&self) {}

    /// Never ends: the caller has a timer.
    #[expect(clippy::unused_self, reason = "systems with a queue change it")]
    pub(crate) async fn waited(&self, _directory: &Directory, _claim: &Claim) {
        future::pending().await
    }

    /// Returns `false`: this system does not report losses.
    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) fn lost(
        &self,
        _directory: &Directory,
        _claim: &Claim,
        _at_most: Duration,
        _holds: impl Fn() -> bool,
    ) -> bool {
        false
    }

    /// Never ends: the caller has a timer.
    #[expect(clippy::unused_self, reason = "systems with a queue read it")]
    pub(crate) async fn awaited_loss(
        &self,
        _directory: &Directory,
        _claim: &Claim,
        _holds: impl Fn() -> bool,
    ) {
        future::pending().await
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

    /// Waits for some milliseconds, but at most for `at_most`; then the next attempt is due.
    #[expect(clippy::unused_self, reason = "systems with a queue change it")]
    pub(crate) fn wait(&self, _directory: &Directory, _claim: &Claim, at_most: Duration) {
        thread::sleep(jitter(Duration::from_millis(10)).min(at_most));
    }
}
