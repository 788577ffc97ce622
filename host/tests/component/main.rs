//! The component in wasmtime, with this program's stores behind it.
//!
//! It has to be there: `cargo xtask component` builds it.

mod awaited;
mod hostile;
#[path = "../places/mod.rs"]
mod places;
mod through;
mod uses;
mod world;

use places::{Folder, Memory, file_lock, lease_file};
use through::{Awaited, Component};
use verrou::conformance;

conformance!(memory, Component(Memory::new()));
conformance!(memory_awaited, Awaited(Memory::new()));
conformance!(lease_files, Component(Folder::new(lease_file)));
conformance!(file_locks, Component(Folder::new(file_lock)));
