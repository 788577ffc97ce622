//! Every store of this crate passes the core's suite.

use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use verrou::conformance::{Fixture, TestClock};
use verrou::{Store, conformance};
use verrou_host::{FileLockStore, LeaseFileStore, StoreOptions};

/// A folder of its own, and a clock that only the test moves.
struct Folder<S> {
    path: TempDir,
    clock: TestClock,
    open: fn(&Path, TestClock) -> S,
}

impl<S> Folder<S> {
    fn new(open: fn(&Path, TestClock) -> S) -> Self {
        let path = tempfile::tempdir().expect("there is room for a folder");
        Self {
            path,
            clock: TestClock::running(),
            open,
        }
    }
}

impl<S: Store + Send + Sync + 'static> Fixture for Folder<S> {
    type Store = S;
    type Host = TestClock;

    fn client(&self) -> S {
        (self.open)(self.path.path(), self.clock.clone())
    }

    fn host(&self) -> TestClock {
        self.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

fn lease_file(folder: &Path, clock: TestClock) -> LeaseFileStore {
    let opened = LeaseFileStore::open(folder, &StoreOptions::default());
    opened.expect("the folder can be opened").with_clock(clock)
}

fn file_lock(folder: &Path, clock: TestClock) -> FileLockStore {
    let opened = FileLockStore::open(folder, &StoreOptions::default());
    opened.expect("the folder can be opened").with_clock(clock)
}

conformance!(lease_files, Folder::new(lease_file));
conformance!(file_locks, Folder::new(file_lock));
