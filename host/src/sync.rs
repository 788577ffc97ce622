//! What threads share and wait by: the standard library's, or under `cfg(verrou_shuttle)` that of
//! shuttle, which tries one interleaving of them after the other. `tests/interleavings.rs` of the core
//! says how.

#[cfg(verrou_shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(verrou_shuttle))]
pub(crate) use std::{
    sync::{Mutex, MutexGuard, atomic, mpsc},
    thread,
};

/// Starts a thread in `scope`, if the system has one to give.
#[cfg(not(verrou_shuttle))]
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
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
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> std::io::Result<thread::ScopedJoinHandle<'scope, T>> {
    Ok(scope.spawn(work))
}

/// Which of the threads that a test starts the system has none to give for.
#[cfg(all(test, not(verrou_shuttle)))]
pub(crate) mod spawns {
    use std::cell::RefCell;

    thread_local! {
        static NEXT: RefCell<Vec<bool>> = const { RefCell::new(Vec::new()) };
    }

    /// Lets the next threads that this one starts in a scope start or fail to, in this order.
    pub(crate) fn plan(next: &[bool]) {
        NEXT.set(next.iter().rev().copied().collect());
    }

    pub(super) fn take() -> bool {
        NEXT.with_borrow_mut(|next| next.pop().unwrap_or(true))
    }
}

/// Threads that sleep as long as others have something to do.
#[cfg(verrou_shuttle)]
pub(crate) mod thread {
    use std::time::Duration;

    pub(crate) use shuttle::thread::{Scope, ScopedJoinHandle, scope, yield_now};

    /// Those who try again and again would otherwise try for ever where others are thought slower.
    pub(crate) fn sleep(_pause: Duration) {
        yield_now();
    }
}

/// Channels whose time may be over, which shuttle's never is.
#[cfg(verrou_shuttle)]
pub(crate) mod mpsc {
    use std::time::Duration;

    use shuttle::rand::{Rng, thread_rng};
    use shuttle::sync::mpsc::{self, TryRecvError};
    pub(crate) use shuttle::sync::mpsc::{RecvTimeoutError, Sender};
    use shuttle::thread;

    pub(crate) struct Receiver<T>(mpsc::Receiver<T>);

    pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = mpsc::channel();
        (sender, Receiver(receiver))
    }

    impl<T> Receiver<T> {
        /// Whether the time is over before something comes is a matter of chance.
        pub(crate) fn recv_timeout(&self, at_most: Duration) -> Result<T, RecvTimeoutError> {
            // A pause for breath ends whatever others do.
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
