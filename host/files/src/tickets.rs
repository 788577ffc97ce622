//! The tickets of the waiters for a lock: locked bytes of the lock's file, in the order in which the
//! waiters joined the queue. See `FORMAT.md`.

use std::io;
use std::ops::Range;

use crate::error::FileError;
use crate::open_files::OpenFile;
use crate::wake_pipe::WAKE_PIPES;
use crate::{ofd_lock, record_file};

/// The offset of the byte of ticket 0, after the bytes of all grants.
const FIRST_TICKET: u64 = (1 << 62) + (1 << 61);

/// The greatest ticket.
const LAST_TICKET: u64 = 1 << 60;

/// Locks a ticket for a process with the wake pipe `pipe`, and records it as the queue's mark. The ticket is
/// greater than all others, and than `here`, the last ticket of this process.
pub(crate) fn append(file: &OpenFile, pipe: u32, here: u64) -> Result<u64, FileError> {
    let mut last = here.max(record_file::last_ticket(file)?);
    loop {
        let failed = || FileError::io("lock a byte of this file", file.path());
        // This is the result of a corrupt mark, or of locks of other software.
        let ticket = ticket_after(last, pipe)
            .filter(|&ticket| ticket <= LAST_TICKET)
            .ok_or_else(|| failed()(io::ErrorKind::QuotaExceeded.into()))?;
        if !ofd_lock::try_lock(file.file(), byte_of(ticket).start).map_err(failed())? {
            let locked = any(file, ticket, None)?;
            last = locked.map_or(ticket, |locked| locked.end - 1);
            continue;
        }
        match mark(file, ticket) {
            Ok(None) => return Ok(ticket),
            // Other waiters have joined the queue meanwhile.
            Ok(Some(later)) => {
                unlock(file, ticket);
                last = later;
            }
            Err(err) => {
                unlock(file, ticket);
                return Err(err);
            }
        }
    }
}

/// Sets the queue's mark to `ticket`, or to a later ticket that is locked by then. Returns a later
/// ticket that was there before instead, if there is one.
fn mark(file: &OpenFile, ticket: u64) -> Result<Option<u64>, FileError> {
    let last = record_file::last_ticket(file)?;
    if ticket <= last {
        return Ok(Some(last));
    }
    if let Some(later) = any(file, ticket + 1, None)? {
        return Ok(Some(later.end - 1));
    }
    let mut last = ticket;
    loop {
        record_file::mark_queue(file, last)?;
        match any(file, last + 1, None)? {
            // The mark of the later ticket may have been overwritten.
            Some(later) => last = LAST_TICKET.min(later.end - 1),
            None => return Ok(None),
        }
    }
}

/// Returns the next ticket after `last` of a process with the wake pipe `pipe`, if there is one.
fn ticket_after(last: u64, pipe: u32) -> Option<u64> {
    let pipes = u64::from(WAKE_PIPES);
    let start = (last / pipes + 1).checked_mul(pipes)?;
    start.checked_add(pipe.into())
}

/// The ticket of processes that do not wait for the lock, but must be notified of its release. All of
/// them lock its byte together.
pub(crate) const WATCHER: u64 = 0;

/// Takes a shared lock on the [`WATCHER`]'s ticket.
pub(crate) fn watch(file: &OpenFile) -> Result<(), FileError> {
    // If another process has locked the byte exclusively, a release notifies that process and this one,
    // too.
    ofd_lock::try_lock_shared(file.file(), byte_of(WATCHER).start)
        .map(drop)
        .map_err(FileError::io("lock a byte of this file", file.path()))
}

/// Unlocks a ticket.
pub(crate) fn unlock(file: &OpenFile, ticket: u64) {
    // After an error it stays locked until the file is closed; the waiters behind it check from time to time.
    let _ = ofd_lock::unlock(file.file(), byte_of(ticket));
}

/// Returns the number of the wake pipe of the process that owns `ticket`.
pub(crate) fn pipe_of(ticket: u64) -> u32 {
    u32::try_from(ticket % u64::from(WAKE_PIPES)).unwrap_or_default()
}

/// Returns the largest possible number of tickets after `served` and before `ticket`, and at least one.
pub(crate) fn most_between(served: u64, ticket: u64) -> u64 {
    let sequence = |ticket| ticket / u64::from(WAKE_PIPES);
    sequence(ticket)
        .saturating_sub(sequence(served))
        .saturating_sub(1)
        .max(1)
}

/// Returns the nearest ticket before `ticket`, and after `served`, of an open file description other than
/// `file`'s.
pub(crate) fn nearest_before(
    file: &OpenFile,
    ticket: u64,
    served: u64,
) -> Result<Option<u64>, FileError> {
    let Some(mut ahead) = any(file, served + 1, Some(ticket))? else {
        return Ok(None);
    };
    // The nearest ticket is usually not far before.
    let mut reach = u64::from(WAKE_PIPES);
    while let Some(start) = ticket.checked_sub(reach).filter(|&start| ahead.end < start) {
        if let Some(nearer) = any(file, start, Some(ticket))? {
            ahead = nearer;
            break;
        }
        reach *= 2;
    }
    while let Some(nearer) = any(file, ahead.end, Some(ticket))? {
        ahead = nearer;
    }
    Ok(Some(ahead.end - 1))
}

/// Returns contiguous tickets of an open file description other than `file`'s, from `from` on and before
/// `end`.
pub(crate) fn any(
    file: &OpenFile,
    from: u64,
    end: Option<u64>,
) -> Result<Option<Range<u64>>, FileError> {
    // Bytes after the last ticket can only be locked by other software.
    if from > LAST_TICKET || end.is_some_and(|end| end <= from) {
        return Ok(None);
    }
    let length = end.map(|end| end - from);
    let found = ofd_lock::find(file.file(), FIRST_TICKET + from, length)
        .map_err(FileError::io("look for waiters of this file", file.path()))?;
    let ticket = |byte: u64| byte.saturating_sub(FIRST_TICKET);
    Ok(found.map(|bytes| ticket(bytes.start)..ticket(bytes.end)))
}

/// Returns the smallest ticket of an open file description other than `file`'s, from `from` on.
pub(crate) fn first_from(file: &OpenFile, from: u64) -> Result<Option<u64>, FileError> {
    let mut first = None;
    while let Some(tickets) = any(file, from, first)? {
        first = Some(tickets.start);
    }
    Ok(first)
}

/// Returns the range with the byte of `ticket`.
fn byte_of(ticket: u64) -> Range<u64> {
    FIRST_TICKET + ticket..FIRST_TICKET + ticket + 1
}
