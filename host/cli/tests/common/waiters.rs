//! The waiters for a lock in a file.

use std::fs::File;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::lock_files;

/// Returns the number of waiters for all locks in `directory`, which is the number of locked ticket bytes.
pub(crate) fn waiting(directory: &Path) -> u64 {
    const FIRST_TICKET: i64 = (1 << 62) + (1 << 61);

    let files = lock_files(directory).into_iter().map(|path| {
        let mut options = File::options();
        options.read(true).write(true).open(path).unwrap()
    });
    files
        .map(|file| locked_bytes(&file, FIRST_TICKET, i64::MAX))
        .sum()
}

/// Returns how many bytes of `file` from `start` on and before `end` are locked.
///
/// Queries the file itself: `/proc/locks` can omit locks while other processes lock and unlock.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the C header has as `int` what its `struct flock` has as `short`"
)]
fn locked_bytes(file: &File, start: i64, end: i64) -> u64 {
    if start >= end {
        return 0;
    }
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: end - start,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).unwrap();
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return 0;
    }
    let (from, to) = (lock.l_start.max(start), lock.l_start + lock.l_len);
    (to - from).unsigned_abs() + locked_bytes(file, start, from) + locked_bytes(file, to, end)
}
