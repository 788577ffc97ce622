//! Fixtures of the conformance suite on this machine: directories, and memory.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use verrou::conformance::{Fixture, TestClock};
use verrou::{MemoryStore, Store};
use verrou_host::{
    AnyStore, FileLockStore, HardLinkStore, LeaseFileStore, StoreOptions, StoreUrl, System,
};

pub(crate) type SharedStore = Arc<dyn Store>;

/// A directory with a store, and a clock that only the test advances.
pub(crate) struct Directory<S> {
    path: TempDir,
    clock: TestClock,
    open: fn(&Path, TestClock) -> S,
}

impl<S> Directory<S> {
    pub(crate) fn new(open: fn(&Path, TestClock) -> S) -> Self {
        let path = tempfile::tempdir().expect("there is room for a directory");
        Self {
            path,
            clock: TestClock::running(),
            open,
        }
    }
}

impl<S: Store + Send + Sync + 'static> Fixture for Directory<S> {
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

/// A directory with a store of one scheme, opened by its URL, in real time.
pub(crate) struct ByUrl {
    url: StoreUrl,
    _directory: TempDir,
}

impl ByUrl {
    pub(crate) fn new(scheme: &str) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a directory");
        let url = format!("{scheme}:{}", directory.path().join("store").display());
        Self {
            url: url.parse().expect("a scheme of this crate"),
            _directory: directory,
        }
    }
}

impl Fixture for ByUrl {
    type Store = AnyStore;
    type Host = System;

    fn client(&self) -> AnyStore {
        AnyStore::open(&self.url, &StoreOptions::default()).expect("the store can be opened")
    }

    fn host(&self) -> System {
        System
    }

    fn pass(&self, time: Duration) {
        thread::sleep(time);
    }
}

pub(crate) fn lease_file(directory: &Path, clock: TestClock) -> LeaseFileStore {
    let opened = LeaseFileStore::open(directory, &StoreOptions::default());
    opened
        .expect("the directory can be opened")
        .with_clock(clock)
}

pub(crate) fn file_lock(directory: &Path, clock: TestClock) -> FileLockStore {
    let opened = FileLockStore::open(directory, &StoreOptions::default());
    opened
        .expect("the directory can be opened")
        .with_clock(clock)
}

pub(crate) fn hard_links(directory: &Path, clock: TestClock) -> HardLinkStore {
    let opened = HardLinkStore::open(directory, &StoreOptions::default());
    opened
        .expect("the directory can be opened")
        .with_clock(clock)
}

/// A memory store that all clients share.
pub(crate) struct Memory {
    clock: TestClock,
    store: Arc<MemoryStore<TestClock>>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let clock = TestClock::running();
        let store = Arc::new(MemoryStore::new(clock.clone()));
        Self { clock, store }
    }
}

impl Fixture for Memory {
    type Store = Arc<MemoryStore<TestClock>>;
    type Host = TestClock;

    fn client(&self) -> Self::Store {
        Arc::clone(&self.store)
    }

    fn host(&self) -> TestClock {
        self.clock.clone()
    }

    fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}
