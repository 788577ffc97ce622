//! The contents of a lock's file, and how they are written.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use verrou::Clock;
use verrou::blocking::Host;
use verrou_machine::System;

use crate::error::FileError;
use crate::host_identity::Machine;
use crate::open_files::OpenFile;
use crate::os;
use crate::record::{self, CHANGING_BYTES, COUNTED, MARK_AT, Record, TOUCH_AT, Version};

/// The contents of a lock's file.
#[derive(Debug)]
pub(crate) struct View {
    /// The current record; `None` if the lock was never granted.
    pub(crate) record: Option<Arc<Record>>,
    /// The queue's mark.
    pub(crate) mark: u64,
    /// A number that distinguishes the file from its copies; zero if there is none.
    pub(crate) file: u64,
    /// The greatest fence that this process has read from the file or written to it; greater than the
    /// record's if an older copy was written into it.
    pub(crate) greatest: u64,
}

impl View {
    /// Returns the greatest ticket that does not wait any more.
    pub(crate) fn served(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.served)
    }

    /// Returns the same view for a file with an older copy: a greater fence than the recorded one was
    /// granted.
    pub(crate) fn of_older_copy(&self) -> Self {
        Self {
            record: self.record.clone(),
            greatest: u64::MAX,
            ..*self
        }
    }
}

/// Writes `record`, the successor of the record that was read, to `file`.
pub(crate) fn write(file: &OpenFile, record: &Arc<Record>) -> Result<(), FileError> {
    if record.sequence >= COUNTED {
        // Only a forged record has such a predecessor.
        let nothing_left = io::ErrorKind::QuotaExceeded.into();
        return Err(FileError::io(
            "increase the sequence number of this file",
            file.path(),
        )(nothing_left));
    }
    let (offset, slot) = record::write(record);
    let mut remembered = file.remembered();
    let written = os::write_at(file.file(), &slot, offset as u64);
    if written.is_ok() {
        file.note_fence(record.fence);
    }
    match (&written, &mut *remembered) {
        (Ok(()), Some(remembered)) => {
            remembered.bytes[offset..offset + slot.len()].copy_from_slice(&slot);
            remembered.record = Some(Arc::clone(record));
        }
        _ => *remembered = None,
    }
    written.map_err(FileError::io("write this file", file.path()))
}

/// Writes `record`, that of a grant, to `file`, whose contents were `before`; returns the written record.
///
/// The record is written to both slots, unless the other slot was written in the current boot. Otherwise
/// corruption of the only slot of this boot could not be distinguished from a loss of power, nor corruption
/// of the only written slot from a file that was never written.
pub(crate) fn write_grant(
    file: &OpenFile,
    record: Record,
    before: &View,
) -> Result<Arc<Record>, FileError> {
    if !(before.record.as_ref()).is_some_and(|before| Machine::this().runs_since(before.boot)) {
        return write_both(file, record);
    }
    let record = Arc::new(record);
    write(file, &record)?;
    Ok(record)
}

/// Writes `record` to both slots of `file`, whatever their contents, and returns the later record.
pub(crate) fn write_both(file: &OpenFile, record: Record) -> Result<Arc<Record>, FileError> {
    let again = Arc::new(Record {
        sequence: record.sequence + 1,
        ..record.clone()
    });
    write(file, &Arc::new(record))?;
    write(file, &again)?;
    Ok(again)
}

/// Reads the part of `file` that changes with its lock.
pub(crate) fn version(file: &OpenFile) -> Result<Version, FileError> {
    let mut buffer = [0; CHANGING_BYTES];
    Ok(Version::of(changing_bytes(file, &mut buffer)?))
}

/// Returns the greatest ticket that was given to a waiter, according to `file`.
pub(crate) fn last_ticket(file: &OpenFile) -> Result<u64, FileError> {
    let mut buffer = [0; CHANGING_BYTES];
    let bytes = changing_bytes(file, &mut buffer)?;
    Ok(record::mark_of(bytes).max(Version::of(bytes).served()))
}

/// Records that `ticket` was given to a waiter.
pub(crate) fn mark_queue(file: &OpenFile, ticket: u64) -> Result<(), FileError> {
    put_number(file, ticket, MARK_AT)
}

/// Changes `file`, to notify the waiters that watch it.
pub(crate) fn touch(file: &OpenFile) -> Result<(), FileError> {
    let now = System.now().since_start().as_nanos();
    put_number(file, u64::try_from(now).unwrap_or(u64::MAX), TOUCH_AT)
}

fn put_number(file: &OpenFile, number: u64, at: usize) -> Result<(), FileError> {
    os::write_at(file.file(), &number.to_le_bytes(), at as u64)
        .map_err(FileError::io("write this file", file.path()))
}

fn changing_bytes<'a>(
    file: &OpenFile,
    buffer: &'a mut [u8; CHANGING_BYTES],
) -> Result<&'a [u8], FileError> {
    let failed = || FileError::io("read this file", file.path());
    let bytes = os::read_at(file.file(), buffer, 0).map_err(failed())?;
    if bytes.len() < CHANGING_BYTES {
        return Err(failed()(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok(bytes)
}

/// Returns the time of the wall clock since the start of 1970, with the precision of a record: milliseconds.
pub(crate) fn wall_clock() -> Duration {
    let now = System.wall_clock().as_millis();
    Duration::from_millis(now.try_into().unwrap_or(u64::MAX))
}
