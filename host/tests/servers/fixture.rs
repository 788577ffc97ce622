//! The fixture of the conformance suite for a server.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use verrou::conformance::Fixture;
use verrou_host::{AnyStore, StoreOptions, StoreUrl, System};

/// A separate namespace on a server.
pub(crate) struct Namespace {
    url: StoreUrl,
    ttl: Duration,
    /// How much longer than its ttl a record exists, at most: hundredths of the ttl, and a constant.
    late: (u32, Duration),
}

impl Namespace {
    /// Returns a namespace of the store at `url`, by a unique value of `option`.
    pub(crate) fn new(url: &str, option: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);

        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let url = format!("{url}?{option}=case{number}");
        Self {
            url: url.parse().expect("a URL"),
            ttl: Duration::from_secs(2),
            // The lease ends at the server by as much later than at its holder.
            late: (1, Duration::from_millis(20)),
        }
    }

    /// Sets the times for a server with a coarser clock.
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
