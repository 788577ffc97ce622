//! A clock with an offset, and stores that use it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use verrou::blocking::Host;
use verrou::{Clock, Timestamp};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions, System};

use crate::store_call::{BoxedStore, Kind};

/// The machine's clock plus an offset.
#[derive(Clone, Default)]
pub(super) struct ShiftedClock(Arc<AtomicU64>);

impl ShiftedClock {
    pub(super) fn advance(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ShiftedClock {
    fn now(&self) -> Timestamp {
        let moved = Duration::from_nanos(self.0.load(Ordering::SeqCst));
        System.now().saturating_add(moved)
    }
}

impl Host for ShiftedClock {
    fn sleep(&self, pause: Duration) {
        self.advance(pause);
        thread::yield_now();
    }

    fn random(&self) -> [u8; 16] {
        System.random()
    }

    fn wall_clock(&self) -> Duration {
        System.wall_clock()
    }
}

/// Opens a store that uses `clock`.
pub(super) fn open_with(kind: Kind, directory: &Path, clock: &ShiftedClock) -> Result<BoxedStore> {
    let options = StoreOptions::default();
    Ok(match kind {
        Kind::Lease => {
            Box::new(LeaseFileStore::open(directory, &options)?.with_clock(clock.clone()))
        }
        Kind::File => Box::new(FileLockStore::open(directory, &options)?.with_clock(clock.clone())),
    })
}
