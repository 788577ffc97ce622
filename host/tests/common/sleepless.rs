//! A host for tasks.

use std::future::{self, Future};
use std::time::Duration;

use verrou::blocking::Host;
use verrou::nonblocking::AsyncHost;
use verrou::{Clock, Timestamp};
use verrou_host::System;

/// A host whose sleeps never end, so that only a notification can wake a waiting task.
#[derive(Clone, Copy)]
pub(crate) struct Sleepless;

impl Clock for Sleepless {
    fn now(&self) -> Timestamp {
        System.now()
    }
}

impl AsyncHost for Sleepless {
    fn sleep(&self, _: Duration) -> impl Future<Output = ()> {
        future::pending()
    }
    fn random(&self) -> [u8; 16] {
        Host::random(&System)
    }
    fn wall_clock(&self) -> Duration {
        Host::wall_clock(&System)
    }
}
