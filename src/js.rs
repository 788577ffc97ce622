//! The core in JavaScript: [`nonblocking`](crate::nonblocking) locks, awaited as promises, in
//! memory or in a store that is a JavaScript object. This module only converts types; the package's
//! public API is in `js/package/`.

mod error;
mod events;
mod host;
mod lock;
mod retry;
mod store;

/// An allocator with a quarter of the code size of the standard library's.
#[cfg(all(target_family = "wasm", not(feature = "component")))]
#[global_allocator]
static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();
