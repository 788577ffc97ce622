//! The kernel's word that a grant's processes are alive: one byte of the lock's file, far past
//! its end, locked for as long as one of them has the descriptor open.
//!
//! The lock is an open file description's (`F_OFD_SETLK`, fcntl(2)): it is inherited by children,
//! ends with the last process that has it, and is the same from every namespace. Each grant has a
//! byte of its own, so that one that has outlived its lease does not stand in its successor's way.

use std::fs::File;
use std::io;

/// Whether this system has such locks.
pub(crate) const AVAILABLE: bool = cfg!(target_os = "linux");

/// Locks the byte of the grant `fence` through `file`'s open file description.
pub(crate) fn hold(file: &File, fence: u64) -> io::Result<()> {
    imp::set(file, fence, true)
}

/// Unlocks the byte of the grant `fence`, for all who share `file`'s open file description.
pub(crate) fn let_go(file: &File, fence: u64) -> io::Result<()> {
    imp::set(file, fence, false)
}

/// Whether another open file description than `file`'s has the byte of the grant `fence` locked.
pub(crate) fn is_held(file: &File, fence: u64) -> io::Result<bool> {
    imp::is_held(file, fence)
}

#[cfg(target_os = "linux")]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the C header has as `int` what its `struct flock` has as `short`"
)]
mod imp {
    use std::fs::File;
    use std::io;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc::{self, c_short};

    /// The byte of the grant 0. Files of this size do not exist.
    const FIRST_BYTE: i64 = 1 << 40;

    const FROM_START: c_short = libc::SEEK_SET as c_short;
    const UNLOCK: c_short = libc::F_UNLCK as c_short;
    const WRITE: c_short = libc::F_WRLCK as c_short;

    pub(super) fn set(file: &File, fence: u64, hold: bool) -> io::Result<()> {
        let lock = byte(fence, if hold { WRITE } else { UNLOCK });
        loop {
            match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    pub(super) fn is_held(file: &File, fence: u64) -> io::Result<bool> {
        let mut lock = byte(fence, WRITE);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        Ok(lock.l_type != UNLOCK)
    }

    fn byte(fence: u64, kind: c_short) -> libc::flock {
        // Fences are far below the 2⁶³ bytes a file could have; the remainder keeps it so.
        let offset = i64::try_from(fence % (1 << 62)).unwrap_or_default();
        libc::flock {
            l_type: kind,
            l_whence: FROM_START,
            l_start: FIRST_BYTE + offset,
            l_len: 1,
            l_pid: 0,
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::fs::File;
    use std::io;

    pub(super) fn set(_file: &File, _fence: u64, _hold: bool) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn is_held(_file: &File, _fence: u64) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
