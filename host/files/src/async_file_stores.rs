//! Async implementations of the stores of this machine. An operation takes microseconds and runs in the
//! polling thread; waiting for a lock, or for a file that another process keeps locked, is
//! asynchronous.

use std::future;
use std::task::Poll;
use std::time::{Duration, Instant};

use scopeguard::ScopeGuard;
use verrou::{
    Acquired, AsyncLossWatch, AsyncStore, AsyncWaiter, Capabilities, Claim, Fence, Holder, Name,
    Renewed, Store, StoreError, async_trait,
};

use crate::error::FileError;
use crate::file_lock::FileLockStore;
use crate::file_store::FileStore;
use crate::flock::{BUSY_TIMEOUT, LockAttempt};
#[cfg(target_os = "linux")]
use crate::inotify::Listener;
use crate::lease_file::LeaseFileStore;

macro_rules! awaited {
    ($store:ty) => {
        /// Operations run in the polling thread: each takes microseconds. Waiting occupies no thread
        /// per task: one thread serves all waiting tasks of the process. A release that is dropped
        /// while it waits still ends an ephemeral lease.
        #[deny(
            clippy::missing_trait_methods,
            reason = "a wrapper passes every method on"
        )]
        #[async_trait]
        impl AsyncStore for $store {
            async fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
                patiently(|| Store::acquire(self, claim)).await
            }
            async fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
                patiently(|| Store::extend(self, claim)).await
            }
            async fn renew(
                &self,
                claim: &Claim,
                fence: Option<Fence>,
            ) -> Result<Renewed, StoreError> {
                patiently(|| Store::renew(self, claim, fence)).await
            }
            async fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
                // If this future is dropped, the failure of the release cannot be reported.
                let dropped =
                    scopeguard::guard((), |()| drop(at_once(|| Store::release(self, claim))));
                let released = patiently(|| Store::release(self, claim)).await;
                ScopeGuard::into_inner(dropped);
                released
            }
            async fn force_release(
                &self,
                name: &Name,
                only: Option<Fence>,
            ) -> Result<bool, StoreError> {
                patiently(|| Store::force_release(self, name, only)).await
            }
            async fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
                patiently(|| Store::holders(self, name)).await
            }
            async fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
                patiently(|| Store::holds(self, claim, fence)).await
            }
            async fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
                patiently(|| Store::detach(self, claim)).await
            }
            fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncWaiter + 's>> {
                Some(Box::new(self.queue_waiter(claim)))
            }
            fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn AsyncLossWatch + 's>> {
                Some(Box::new(self.loss_watch(claim).ok()?))
            }
            fn capabilities(&self) -> Capabilities {
                Store::capabilities(self)
            }
        }
    };
}

awaited!(LeaseFileStore);
awaited!(FileLockStore);

/// Waits for `pause`, in a task.
#[cfg(target_os = "linux")]
async fn sleep_in_task(pause: Duration) {
    let until = Instant::now() + pause;
    match Listener::new() {
        Ok(listener) => {
            future::poll_fn(|context| listener.poll(context, until)).await;
        }
        Err(_) => yield_once().await,
    }
}

#[cfg(not(target_os = "linux"))]
async fn sleep_in_task(_pause: Duration) {
    yield_once().await;
}

/// Yields to the other tasks of this thread once.
async fn yield_once() {
    let mut had_theirs = false;
    future::poll_fn(|context| {
        if std::mem::replace(&mut had_theirs, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Runs `operation`, and repeats it after pauses while a file is busy, for as long as a thread would wait for
/// that file. So a process that keeps the file locked does not block the other tasks of this thread.
async fn patiently<T>(operation: impl Fn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(5);

    let began = Instant::now();
    let mut pause = Duration::from_micros(50);
    loop {
        let waited = began.elapsed();
        let attempt = LockAttempt {
            waited,
            is_last: BUSY_TIMEOUT <= waited,
        };
        match attempt.make(&operation) {
            Err(err) if is_busy(&err) && !attempt.is_last => sleep_in_task(pause).await,
            done => return done,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Runs `operation` without waiting for a file.
fn at_once<T>(operation: impl FnOnce() -> T) -> T {
    let only = LockAttempt {
        waited: Duration::ZERO,
        is_last: true,
    };
    only.make(operation)
}

fn is_busy(err: &StoreError) -> bool {
    let err = err.get_ref().downcast_ref();
    matches!(err, Some(FileError::Busy { .. }))
}
