//! Synchronization primitives of threads: those of the standard library, or under
//! `cfg(verrou_shuttle)` those of shuttle, which runs one interleaving of the threads after the other.
//! `tests/interleavings.rs` of the core describes how.

#[cfg(not(verrou_shuttle))]
pub use std::{
    sync::{Mutex, MutexGuard, atomic, mpsc},
    thread,
};

#[cfg(verrou_shuttle)]
pub use shuttle::sync::{Mutex, MutexGuard, atomic};

/// Starts a thread in `scope`, if the system can create one.
#[cfg(not(verrou_shuttle))]
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<thread::ScopedJoinHandle<'scope, T>> {
    #[cfg(test)]
    if !spawns::take() {
        return Err(std::io::ErrorKind::WouldBlock.into());
    }
    thread::Builder::new().spawn_scoped(scope, work)
}

/// Starts a thread in `scope`.
#[cfg(verrou_shuttle)]
pub fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<thread::ScopedJoinHandle<'scope, T>> {
    Ok(scope.spawn(work))
}

/// Simulated failures to create a thread.
#[cfg(all(test, not(verrou_shuttle)))]
pub mod spawns {
    use std::cell::RefCell;

    thread_local! {
        static NEXT: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) };
    }

    /// Makes the next starts of scoped threads by this thread succeed or fail, in the order of `next`.
    pub fn plan(next: &[bool]) {
        NEXT.set(next.iter().rev().copied().collect());
    }

    pub(super) fn take() -> bool {
        NEXT.with_borrow_mut(|next| next.pop().unwrap_or(true))
    }
}

/// Threads whose sleep yields to other threads.
#[cfg(verrou_shuttle)]
pub mod thread {
    use std::time::Duration;

    pub use shuttle::thread::{Scope, ScopedJoinHandle, scope, yield_now};

    /// Yields to other threads: a thread that retries would otherwise never let them run.
    pub fn sleep(_pause: Duration) {
        yield_now();
    }
}

/// Channels with receive timeouts, which shuttle's channels do not have.
#[cfg(verrou_shuttle)]
pub mod mpsc {
    use std::time::Duration;

    use shuttle::rand::{Rng, thread_rng};
    use shuttle::sync::mpsc::{self, TryRecvError};
    pub use shuttle::sync::mpsc::{RecvTimeoutError, Sender};
    use shuttle::thread;

    pub struct Receiver<T>(mpsc::Receiver<T>);

    pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = mpsc::channel();
        (sender, Receiver(receiver))
    }

    impl<T> Receiver<T> {
        /// Receives a value, or times out, at random.
        pub fn recv_timeout(&self, at_most: Duration) -> Result<T, RecvTimeoutError> {
            // A short pause ends whether or not other threads send.
            if Duration::from_millis(1) < at_most && thread_rng().r#gen() {
                return self.0.recv_timeout(at_most);
            }
            thread::yield_now();
            self.0.try_recv().map_err(|err| match err {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        }
    }
}
