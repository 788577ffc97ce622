//! What threads share and wait by: the standard library's, or under `cfg(verrou_shuttle)` that of
//! shuttle, which tries one interleaving of them after the other. `tests/interleavings.rs` says how.

#[cfg(verrou_shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(verrou_shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};
