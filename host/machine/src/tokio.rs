//! This machine, for programs on tokio.

use std::time::Duration;

use verrou::blocking::Host;
use verrou::nonblocking::AsyncHost;
use verrou::{Clock, Timestamp};

use crate::system::System;

/// This machine, as the [`AsyncHost`] of locks in a tokio runtime with its time driver enabled.
///
/// ```
/// use std::sync::Arc;
/// use verrou::nonblocking::LockFactory;
/// use verrou_host::{LeaseFileStore, StoreOptions, Tokio};
///
/// # let directory = tempfile::tempdir()?;
/// # let directory = directory.path();
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let store = LeaseFileStore::open(directory, &StoreOptions::default())?;
/// let locks = LockFactory::new(Arc::new(store), Tokio);
/// let lock = locks.create_lock("my-resource", "2s")?;
/// let answer = lock.run(async |held| {
///     // Renews the lease for as long as the work takes.
///     held.keep(async { 6 * 7 }).await
/// });
/// assert_eq!(answer.await.ok().and_then(Result::ok), Some(42));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Tokio;

impl Clock for Tokio {
    fn now(&self) -> Timestamp {
        System.now()
    }
}

impl AsyncHost for Tokio {
    /// Sleeps, on Linux by the clock that leases use, which advances while the machine is suspended.
    async fn sleep(&self, pause: Duration) {
        #[cfg(target_os = "linux")]
        if crate::alarm::tasks::sleep(pause).await.is_ok() {
            return;
        }
        ::tokio::time::sleep(pause).await;
    }

    fn random(&self) -> [u8; 16] {
        System.random()
    }

    fn wall_clock(&self) -> Duration {
        System.wall_clock()
    }
}
