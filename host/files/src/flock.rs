//! The kernel's lock on a file, `flock(2)`: the only module that acquires and releases it.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, mem};

use fs4::FileExt;
use scopeguard::defer;
use verrou_machine::sync::thread;

use crate::error::FileError;

/// Takes the kernel's lock on `file` if it is free.
pub(crate) fn try_lock(file: &File) -> io::Result<bool> {
    taken(|| FileExt::try_lock(file))
}

/// Takes the lock as [`try_lock`] does, and does not fail because another process [tests](is_locked) it.
pub(crate) fn try_lock_despite_lookers(file: &File) -> io::Result<bool> {
    // A process that tests the lock shares it for a microsecond, or for a time slice if it is preempted
    // meanwhile. Other programs may share it for longer.
    const TIMEOUT: Duration = Duration::from_millis(20);
    const SPINS: Duration = Duration::from_micros(100);

    if try_lock(file)? {
        return Ok(true);
    }
    let began = Instant::now();
    while !is_locked(file)? && began.elapsed() < TIMEOUT {
        if try_lock(file)? {
            return Ok(true);
        }
        if began.elapsed() < SPINS {
            thread::yield_now();
        } else {
            thread::sleep(SPINS);
        }
    }
    Ok(false)
}

/// Returns whether a process holds the kernel's lock on `file` exclusively.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    if try_lock_shared(file)? {
        unlock(file)?;
        return Ok(false);
    }
    Ok(true)
}

/// Takes the kernel's lock on `file` in shared mode, if no process holds it exclusively.
fn try_lock_shared(file: &File) -> io::Result<bool> {
    taken(|| FileExt::try_lock_shared(file))
}

fn taken(attempt: impl Fn() -> Result<(), fs4::TryLockError>) -> io::Result<bool> {
    loop {
        match attempt() {
            Ok(()) => return Ok(true),
            Err(fs4::TryLockError::WouldBlock) => return Ok(false),
            Err(fs4::TryLockError::Error(err))
                if err.kind() == io::ErrorKind::Interrupted
                    && !mutant!(InterruptedTakenForFailure) => {}
            Err(fs4::TryLockError::Error(err)) => return Err(err),
        }
    }
}

/// How long an operation spins on a busy file. Falling asleep takes longer than an operation.
const AWAKE: Duration = Duration::from_micros(20);

/// Takes the kernel's lock on `file` when it becomes free, unless that takes longer than `timeout`.
pub(crate) fn try_lock_within(file: &File, timeout: Duration) -> io::Result<bool> {
    const LONGEST_PAUSE: Duration = Duration::from_millis(2);

    if try_lock(file)? {
        return Ok(true);
    }
    let began = Instant::now();
    let mut pause = Duration::from_micros(10);
    loop {
        let left = timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Ok(false);
        }
        if began.elapsed() < AWAKE {
            thread::yield_now();
        } else {
            thread::sleep(pause.min(left));
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if try_lock(file)? {
            return Ok(true);
        }
    }
}

/// Takes the kernel's lock on `file`; waits without a limit while another process holds it.
pub(crate) fn lock(file: &File) -> io::Result<()> {
    loop {
        match FileExt::lock(file) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            locked => return locked,
        }
    }
}

/// Releases the kernel's lock on `file`, for all processes that share its open file description.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    FileExt::unlock(file)
}

/// How long an operation waits for a file that another process keeps locked.
///
/// The limit bounds the delay by a process that is stopped in the middle of an operation, as waiters
/// have deadlines to meet and leases to renew. Waiters then repeat the operation.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_millis(200);

/// One of the attempts of a task, which must not block its thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockAttempt {
    /// How long the task has waited so far.
    pub(crate) waited: Duration,
    /// Whether this is the last attempt.
    pub(crate) is_last: bool,
}

thread_local! {
    static ATTEMPT: Cell<Option<LockAttempt>> = const { Cell::new(None) };
}

impl LockAttempt {
    /// Runs `operation`, which fails with [`FileError::Busy`] at once if another process keeps a file
    /// locked.
    pub(crate) fn make<T>(self, operation: impl FnOnce() -> T) -> T {
        let before = ATTEMPT.replace(Some(self));
        defer! { ATTEMPT.set(before) }
        operation()
    }

    /// Returns whether the current operation of this thread is repeated if a file is busy.
    pub(crate) fn is_to_be_repeated() -> bool {
        ATTEMPT.get().is_some_and(|attempt| !attempt.is_last)
    }
}

/// A file that no other process of this software reads or writes while this value exists.
#[derive(Debug)]
pub(crate) struct Guarded<'a>(&'a File);

impl<'a> Guarded<'a> {
    /// Waits for the kernel's lock on `file`, which other processes keep only for microseconds.
    pub(crate) fn new(file: &'a File, path: &Path) -> Result<Self, FileError> {
        let attempt = ATTEMPT.get();
        let timeout = attempt.map_or(BUSY_TIMEOUT, |_| AWAKE);
        let locked = mutant!(NoGuard, Ok(true), try_lock_within(file, timeout));
        if locked.map_err(FileError::io("lock this file", path))? {
            return Ok(Self(file));
        }
        Err(FileError::Busy {
            path: path.to_owned(),
            waited: attempt.map_or(BUSY_TIMEOUT, |attempt| attempt.waited),
        })
    }

    /// Takes the kernel's lock on `file` if it is free.
    pub(crate) fn try_new(file: &'a File) -> io::Result<Option<Self>> {
        Ok(try_lock(file)?.then_some(Self(file)))
    }

    /// Unlocks the file. After an error the file stays locked until it is closed.
    pub(crate) fn end(self) -> io::Result<()> {
        let file = self.0;
        mem::forget(self);
        unlock(file)
    }
}

impl Drop for Guarded<'_> {
    fn drop(&mut self) {
        // Unlock explicitly, not by closing: a child that another thread has just forked may have the
        // descriptor open for a moment longer.
        let _ = unlock(self.0);
    }
}
