//! Synchronization primitives: the standard library's, or under `cfg(verrou_shuttle)` shuttle's, which
//! run the threads in one interleaving after another. `tests/interleavings.rs` explains how.

#[cfg(verrou_shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(verrou_shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
