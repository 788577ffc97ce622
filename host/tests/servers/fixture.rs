//! A place for the cases of the conformance suite on a server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use verrou::conformance::Fixture;
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System};

/// A place of its own on a server.
pub(crate) struct Namespace {
    url: StoreUrl,
    ttl: Duration,
    /// How much longer than its ttl a record is there at most, in hundredths of the time, and besides.
    late: (u32, Duration),
}

impl Namespace {
    /// The store at `url`, to which an option is added that makes it one of its own.
    pub(crate) fn new(url: &str, option: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = format!("{url}?{option}=case{number}");
        Self {
            url: url.parse().expect("a URL"),
            ttl: Duration::from_secs(2),
            // As much later than its holder's end its server's is.
            late: (1, Duration::from_millis(20)),
        }
    }

    /// Of a server that counts in other steps.
    #[cfg(feature = "etcd")]
    pub(crate) fn counting(self, ttl: Duration, late: (u32, Duration)) -> Self {
        Self { ttl, late, ..self }
    }
}

impl Fixture for Namespace {
    type Store = AnyStore;
    type Host = System;

    fn client(&self) -> AnyStore {
        AnyStore::open(&self.url, &StoreOptions::default()).expect("the server is there")
    }

    fn host(&self) -> System {
        System
    }

    fn pass(&self, time: Duration) {
        let (hundredths, besides) = self.late;
        thread::sleep(time + time * hundredths / 100 + besides);
    }

    fn ttl(&self) -> Duration {
        self.ttl
    }
}
