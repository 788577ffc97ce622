//! The kernel's word that a grant's processes are alive: one byte of the lock's file, far past
//! its end, locked for as long as one of them has the descriptor open.
//!
//! The lock is an open file description's: it is inherited by children, ends with the last process
//! that has it, and is the same from every namespace. Each grant has a byte of its own, so that one
//! that has outlived its lease does not stand in its successor's way.

use std::fs::File;
use std::io;

use super::byte_lock;

pub(crate) use byte_lock::AVAILABLE;

/// The byte of the grant 0. Files of this size do not exist.
const FIRST_BYTE: u64 = 1 << 40;

/// Locks the byte of the grant `fence` through `file`'s open file description.
pub(crate) fn hold(file: &File, fence: u64) -> io::Result<()> {
    if byte_lock::try_lock(file, byte_of(fence))? {
        Ok(())
    } else {
        Err(io::ErrorKind::ResourceBusy.into())
    }
}

/// Unlocks the byte of the grant `fence`, for all who share `file`'s open file description.
pub(crate) fn let_go(file: &File, fence: u64) -> io::Result<()> {
    byte_lock::unlock(file, byte_of(fence))
}

/// Whether another open file description than `file`'s has the byte of the grant `fence` locked.
pub(crate) fn is_held(file: &File, fence: u64) -> io::Result<bool> {
    Ok(byte_lock::find(file, byte_of(fence), Some(1))?.is_some())
}

fn byte_of(fence: u64) -> u64 {
    // Fences are far below this; the remainder keeps a damaged one from other bytes.
    FIRST_BYTE + fence % (1 << 62)
}
