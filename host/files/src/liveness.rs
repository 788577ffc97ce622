//! The liveness of a grant's processes: one byte of the lock's file, far past its end, which the kernel
//! keeps locked as long as one of these processes has the descriptor open.
//!
//! The lock belongs to an open file description: children inherit it, it ends with the last process that
//! has the description, and it is visible from every namespace. Each grant has its own byte, so that the
//! processes of an expired lease do not block the byte of the next grant.

use std::fs::File;
use std::io;
use std::ops::Range;

pub(crate) use ofd_lock::AVAILABLE;

use crate::ofd_lock;
use crate::open_files::OpenFile;

/// The offset of the byte of grant 0. Files of this size do not exist.
const FIRST_BYTE: u64 = 1 << 40;

/// Locks the byte of the grant `fence` for `file`'s open file description, next to the bytes of earlier
/// grants that may still be [locked](OpenFile::lived).
pub(crate) fn hold(file: &mut OpenFile, fence: u64) -> io::Result<()> {
    let earlier = file.lived();
    if earlier.end != fence {
        unlock_all(file)?;
    }
    if !ofd_lock::try_lock(file.file(), byte_of(fence))? {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let first = if earlier.end == fence {
        earlier.start
    } else {
        fence
    };
    file.set_lived(first..fence + 1);
    Ok(())
}

/// Lets a program that inherits the [read-only](OpenFile::read_only) description of `file` keep the
/// grant `fence` alive, too. Both descriptions take a shared lock on its byte, which [`is_held`] does
/// not distinguish from an exclusive one. The inherited description cannot unlock the other's lock.
pub(crate) fn share(file: &OpenFile, fence: u64) -> io::Result<()> {
    for description in [Some(file.file()), file.read_only()].into_iter().flatten() {
        if !ofd_lock::try_lock_shared(description, byte_of(fence))? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
    }
    Ok(())
}

/// Unlocks the bytes of all grants that `file` has locked, for all processes that share its open file
/// descriptions.
///
/// The byte of a grant that is recorded as released may stay locked: the next grant locks the adjacent
/// byte, and the kernel merges both into one lock.
pub(crate) fn unlock_all(file: &mut OpenFile) -> io::Result<()> {
    let Range { start, end } = file.lived();
    if start < end {
        let bytes = byte_of(start)..byte_of(start) + (end - start);
        for description in [Some(file.file()), file.read_only()].into_iter().flatten() {
            ofd_lock::unlock(description, bytes.clone())?;
        }
        file.set_lived(0..0);
    }
    Ok(())
}

/// Returns whether an open file description other than `file`'s has locked the byte of the grant `fence`.
pub(crate) fn is_held(file: &File, fence: u64) -> io::Result<bool> {
    Ok(ofd_lock::find(file, byte_of(fence), Some(1))?.is_some())
}

fn byte_of(fence: u64) -> u64 {
    // Fences are far below this limit; the remainder keeps a corrupt fence from reaching other bytes.
    FIRST_BYTE + fence % (1 << 62)
}
