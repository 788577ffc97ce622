//! The component in wasmtime, with this program's stores behind it.
//!
//! `cargo xtask component` builds the component, which these tests need.

mod awaited;
mod concurrent;
#[cfg(all(target_os = "linux", feature = "redis"))]
#[path = "../common/mod.rs"]
mod common;
#[cfg(all(target_os = "linux", feature = "redis"))]
#[cfg_attr(
    feature = "etcd",
    expect(dead_code, reason = "no server here counts in other increments")
)]
#[path = "../servers/fixture.rs"]
mod fixture;
mod hostile;
#[path = "../places/mod.rs"]
mod places;
#[cfg(all(target_os = "linux", feature = "redis"))]
#[expect(dead_code, reason = "nothing happens to the server here")]
#[path = "../servers/running.rs"]
mod running;
#[cfg(all(target_os = "linux", feature = "redis"))]
mod server;
#[path = "../common/sleepless.rs"]
mod sleepless;
mod through;
mod uses;
mod world;

use places::{Directory, Memory, file_lock, lease_file};
use through::{Awaited, Component, Concurrent};
use verrou::conformance;

conformance!(memory, Component(Memory::new()));
conformance!(memory_awaited, Awaited(Memory::new()));
conformance!(lease_files, Component(Directory::new(lease_file)));
conformance!(file_locks, Component(Directory::new(file_lock)));
conformance!(memory_concurrent, Concurrent(Memory::new()));
conformance!(
    lease_files_concurrent,
    Concurrent(Directory::new(lease_file))
);
conformance!(file_locks_concurrent, Concurrent(Directory::new(file_lock)));
