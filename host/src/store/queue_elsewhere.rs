//! Who waits for a lock, where the kernel tells of no changes: in no order, each looking by itself.

use std::future;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use verrou::{Claim, Name};

use super::directory::{Directory, View};
use super::error::FileError;
use super::jitter;
use super::open_files::OpenFile;

/// Those who wait, of whom nothing is known.
#[derive(Debug)]
pub(crate) struct Queue;

/// How somebody who asks for a lock stands to those who wait for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(dead_code, reason = "where there is a queue, all of them are so")]
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

    pub(crate) fn new(_foreign: Option<PathBuf>, _tells_all: bool) -> Self {
        Self
    }

    #[expect(clippy::unused_self, reason = "where there is a queue, it is asked")]
    pub(crate) fn position(
        &self,
        _claim: &Claim,
        _file: &OpenFile,
        _view: &View,
    ) -> Result<Position, FileError> {
        Ok(Position::NoWaiters)
    }

    #[expect(clippy::unused_self, reason = "where there is a queue, it is asked")]
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

    #[expect(clippy::unused_self, reason = "where there is a queue, it is left")]
    pub(crate) fn granted(&self, _directory: &Directory, _claim: &Claim, _is_next_told: bool) {}

    #[expect(clippy::unused_self, reason = "where there is a queue, it is left")]
    pub(crate) fn released(&self, _directory: &Directory, _claim: &Claim) {}

    #[expect(clippy::unused_self, reason = "where there is a queue, it is left")]
    pub(crate) fn leave(&self, _directory: &Directory, _claim: &Claim) {}

    #[expect(clippy::unused_self, reason = "where there is a queue, it is tidied")]
    pub(crate) fn tidy(&self) {}

    /// Lets time pass for those who have a timer.
    #[expect(clippy::unused_self, reason = "where there is a queue, it is joined")]
    pub(crate) async fn waited(&self, _directory: &Directory, _claim: &Claim) {
        future::pending().await
    }

    /// Nobody can tell.
    #[expect(clippy::unused_self, reason = "where there is a queue, it is asked")]
    pub(crate) fn lost(
        &self,
        _directory: &Directory,
        _claim: &Claim,
        _at_most: Duration,
        _holds: impl Fn() -> bool,
    ) -> bool {
        false
    }

    /// Lets time pass for those who have a timer.
    #[expect(clippy::unused_self, reason = "where there is a queue, it is asked")]
    pub(crate) async fn awaited_loss(
        &self,
        _directory: &Directory,
        _claim: &Claim,
        _holds: impl Fn() -> bool,
    ) {
        future::pending().await
    }

    #[expect(clippy::unused_self, reason = "where there is a queue, it is asked")]
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

    /// Lets the next attempt look again, every few milliseconds.
    #[expect(clippy::unused_self, reason = "where there is a queue, it is joined")]
    pub(crate) fn wait(&self, _directory: &Directory, _claim: &Claim, at_most: Duration) {
        thread::sleep(jitter(Duration::from_millis(10)).min(at_most));
    }
}
