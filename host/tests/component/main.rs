//! The component in wasmtime, with this program's stores behind it.
//!
//! It has to be there: `cargo xtask component` builds it.

#[path = "../places/mod.rs"]
mod places;
mod hostile;
mod through;
mod uses;
mod world;

use places::{Folder, Memory, file_lock, lease_file};
use through::Component;
use verrou::conformance;

conformance!(memory, Component(Memory::new()));
conformance!(lease_files, Component(Folder::new(lease_file)));
conformance!(file_locks, Component(Folder::new(file_lock)));
