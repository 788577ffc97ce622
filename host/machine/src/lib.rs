//! This machine, for Verrou's stores and their users: clocks, sleep, randomness, the process, and what a store offers
//! to programs on it. Programs use it through `verrou-host`.
//!
//! [`System`] implements a lock's host with this machine's clock, sleep and randomness. [`HostStore`] is the interface of
//! the stores that a URL can name.

#[cfg(target_os = "linux")]
#[macro_use(mutant)]
extern crate verrou;

// The order of dependence: a module may use modules above it in this list, never modules below it.
// The core's `tests/layers.rs` checks that.
#[doc(hidden)]
pub mod sync;
#[doc(hidden)]
pub mod process;
mod system;
#[doc(hidden)]
pub mod alarm;
mod keep_alive;
#[cfg(feature = "tokio")]
mod tokio;
mod store_options;
mod host_store;

pub use host_store::{HostStore, Listed, LossSignal};
pub use keep_alive::keep_alive;
pub use store_options::{StoreOptions, Zombies};
pub use system::System;
#[cfg(feature = "tokio")]
pub use tokio::Tokio;
