//! Locks on single bytes of a file, `F_OFD_SETLK` of fcntl(2). A lock ends with the last process that has
//! its open file description. The bytes need not exist.

use std::fs::File;
use std::io;
use std::ops::Range;

/// Whether this system supports such locks.
pub(crate) const AVAILABLE: bool = cfg!(target_os = "linux");

/// Locks the byte `at` for `file`'s open file description, if no other description has locked it.
pub(crate) fn try_lock(file: &File, at: u64) -> io::Result<bool> {
    imp::try_lock(file, at)
}

/// Takes a shared lock on the byte `at` for `file`'s open file description. Atomically replaces [its
/// exclusive lock](try_lock) if it has one.
pub(crate) fn try_lock_shared(file: &File, at: u64) -> io::Result<bool> {
    imp::try_lock_shared(file, at)
}

/// Unlocks `bytes`, a non-empty range, for all processes that share `file`'s open file description.
pub(crate) fn unlock(file: &File, bytes: Range<u64>) -> io::Result<()> {
    imp::unlock(file, bytes)
}

/// Finds contiguous bytes that an open file description other than `file`'s has locked. Searches `length`
/// bytes from `at` on, or all bytes from `at` on.
pub(crate) fn find(file: &File, at: u64, length: Option<u64>) -> io::Result<Option<Range<u64>>> {
    imp::find(file, at, length)
}

#[cfg(target_os = "linux")]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the C header declares these constants as `int`, and the fields of `struct flock` as `short`"
)]
mod imp {
    use std::fs::File;
    use std::io;
    use std::ops::Range;

    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc::{self, c_short};

    const FROM_START: c_short = libc::SEEK_SET as c_short;
    const UNLOCK: c_short = libc::F_UNLCK as c_short;
    const WRITE: c_short = libc::F_WRLCK as c_short;
    const READ: c_short = libc::F_RDLCK as c_short;

    pub(crate) fn try_lock(file: &File, at: u64) -> io::Result<bool> {
        try_lock_as(WRITE, file, at)
    }

    pub(crate) fn try_lock_shared(file: &File, at: u64) -> io::Result<bool> {
        try_lock_as(READ, file, at)
    }

    fn try_lock_as(kind: c_short, file: &File, at: u64) -> io::Result<bool> {
        match set(file, &bytes(at, Some(1), kind)) {
            Ok(()) => Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) fn unlock(file: &File, range: Range<u64>) -> io::Result<()> {
        let length = range.end - range.start;
        Ok(set(file, &bytes(range.start, Some(length), UNLOCK))?)
    }

    pub(crate) fn find(
        file: &File,
        at: u64,
        length: Option<u64>,
    ) -> io::Result<Option<Range<u64>>> {
        let mut lock = bytes(at, length, WRITE);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        if lock.l_type == UNLOCK {
            return Ok(None);
        }
        // Adjacent locked bytes are one lock, which may begin before the searched bytes, and end after them.
        let [start, locked] = [lock.l_start, lock.l_len].map(i64::cast_unsigned);
        let end = match locked {
            0 => u64::MAX,
            locked => start.saturating_add(locked),
        };
        let asked = length.map_or(u64::MAX, |length| at.saturating_add(length));
        Ok(Some(start.max(at)..end.min(asked)))
    }

    fn set(file: &File, lock: &libc::flock) -> Result<(), Errno> {
        loop {
            let request = mutant!(
                PosixLocks,
                FcntlArg::F_SETLK(lock),
                FcntlArg::F_OFD_SETLK(lock)
            );
            match fcntl(file, request) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn bytes(at: u64, length: Option<u64>, kind: c_short) -> libc::flock {
        libc::flock {
            l_type: kind,
            l_whence: FROM_START,
            l_start: at.cast_signed(),
            // Zero stands for all bytes from `at` on.
            l_len: length.unwrap_or_default().cast_signed(),
            l_pid: 0,
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod imp {
    use std::fs::File;
    use std::io;
    use std::ops::Range;

    pub(crate) fn try_lock(_file: &File, _at: u64) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn try_lock_shared(_file: &File, _at: u64) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn unlock(_file: &File, _bytes: Range<u64>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn find(
        _file: &File,
        _at: u64,
        _length: Option<u64>,
    ) -> io::Result<Option<Range<u64>>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
