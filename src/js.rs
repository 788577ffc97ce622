//! The core in JavaScript: [`nonblocking`](crate::nonblocking) locks, awaited as promises, in
//! memory or in a store that is an object. Nothing but conversions; the words that people use are
//! in `js/package/`.

mod error;
mod host;
mod lock;
mod retry;
mod store;

/// A quarter of the standard library's.
#[cfg(all(target_family = "wasm", not(feature = "component")))]
#[global_allocator]
static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();
