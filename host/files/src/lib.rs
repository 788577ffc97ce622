//! Lock stores in files, for the processes of one machine. Programs use them through `verrou-host`.
//!
//! [`LeaseFileStore`] keeps leases in files, [`FileLockStore`] takes the kernel's locks on files, and [`BareLockStore`]
//! takes one without a record. [`HardLinkStore`] shares its directory with WebAssembly programs. [`FenceGate`] protects the resource that a lock guards. `FORMAT.md`
//! specifies the files byte by byte.

#[macro_use(mutant)]
extern crate verrou;

// The order of dependence: a module may use modules above it in this list, never modules below it.
// The core's `tests/layers.rs` checks that.
mod ofd_lock;
mod jitter;
mod os;
mod host_identity;
mod durable_u64;
mod record;
mod error;
mod flock;
mod store_directory;
mod trusted_file;
mod fence_gate;
mod open_files;
mod exact_file;
mod bare_lock;
mod liveness;
mod record_file;
mod fence_counter;
mod directory;
#[cfg(target_os = "linux")]
mod wake_pipe;
#[cfg(target_os = "linux")]
mod inotify;
mod reply;
#[cfg(target_os = "linux")]
mod tickets;
#[cfg_attr(not(target_os = "linux"), path = "queue/polling.rs")]
mod queue;
mod file_store;
mod file_lock;
mod lease_file;
mod async_file_stores;
mod hard_link_store;
#[cfg(all(target_os = "linux", any(fuzzing, test)))]
#[doc(hidden)]
pub mod fuzzing;

pub use bare_lock::BareLockStore;
pub use error::{FileError, OpenError};
pub use fence_gate::{Checked, FenceError, FenceGate};
pub use file_lock::FileLockStore;
pub use hard_link_store::HardLinkStore;
pub use lease_file::LeaseFileStore;
pub use record::Corruption;
