//! The files of the stores, and how the stores handle changes that other programs make to them.
#![cfg(unix)]

mod corrupt_files;
mod exact_file;
mod fence_counter;
#[cfg(target_os = "linux")]
mod hand_off;
mod lease_end;
#[path = "../common/lock_files.rs"]
mod lock_files;
mod moved_files;
mod operations;
mod permissions;
#[path = "../common/store_calls.rs"]
mod store_calls;
mod zombies;

use std::time::Duration;

use tempfile::TempDir;
use verrou::{Claim, StoreError};
use verrou_host::FileError;

const SECOND: Duration = Duration::from_secs(1);

fn directory() -> TempDir {
    tempfile::tempdir().expect("there is room for a directory")
}

fn claim(owner: u8) -> Claim {
    store_calls::claim("lock", owner)
}

fn detached(owner: u8) -> Claim {
    claim(owner).ephemeral(false)
}

/// Returns the store's own error.
fn file_error(err: &StoreError) -> &FileError {
    err.get_ref()
        .downcast_ref()
        .expect("these stores' errors are about files")
}
