//! Exclusive access to the file of a name, for one operation.

use verrou::{Claim, Name};

use super::LeaseFileStore;
use super::locked_file::LeaseFile;
use crate::error::FileError;
use crate::flock::Guarded;
use crate::open_files::OpenFile;
use crate::record_file::View;

/// The file that an operation uses.
#[derive(Clone, Copy)]
pub(super) enum Which<'a> {
    /// The file at its path, which is created if necessary, unless the lease is held by, or reserved for,
    /// another owner.
    Wanted(&'a Claim),
    /// The file at its path, if there is one.
    There,
    /// The file of a lease that is to end, wherever the file is now.
    Held,
}

/// The result of an attempt to run an operation with a file.
enum AttemptResult<T> {
    /// The operation was done, or did not apply to this claim.
    Done(Result<Option<T>, FileError>),
    /// As `Done`, and the file must be closed.
    Closing(Result<Option<T>, FileError>),
    /// The file was replaced: the operation must be repeated.
    Again,
}

impl LeaseFileStore {
    /// Runs `operation` with the file of `name` and its contents, while no other process reads or writes it.
    ///
    /// Returns `Ok(None)` if there is no such file and `which` does not create one, or if the lease is
    /// held by, or reserved for, another owner.
    pub(super) fn with_record<T>(
        &self,
        name: &Name,
        which: Which<'_>,
        operation: impl FnOnce(&LeaseFile<'_>, View) -> Result<T, FileError>,
    ) -> Result<Option<T>, FileError> {
        let mut operation = Some(operation);
        loop {
            let file = match which {
                Which::Wanted(_) => self.base.directory.take_or_create(name).map(Some),
                Which::There | Which::Held => self.base.directory.take(name),
            };
            let file = match file {
                Err(err) if err.is_for_want_of_descriptors() => {
                    let Some(lent) = self.lend(name) else {
                        return Err(err);
                    };
                    let attempt = self.attempt(&lent, name, which, &mut operation);
                    self.take_back(name, lent);
                    return match attempt? {
                        AttemptResult::Done(done) | AttemptResult::Closing(done) => done,
                        AttemptResult::Again => Err(err),
                    };
                }
                file => file?,
            };
            let Some(file) = file else {
                return Ok(None);
            };
            match self.attempt(&file, name, which, &mut operation)? {
                AttemptResult::Done(done) => {
                    self.base.directory.put(name, file);
                    return done;
                }
                AttemptResult::Closing(done) => return done,
                AttemptResult::Again => {}
            }
        }
    }

    /// Runs `operation`, which is `Some` until then, on `file`.
    fn attempt<T, S>(
        &self,
        file: &OpenFile,
        name: &Name,
        which: Which<'_>,
        operation: &mut Option<S>,
    ) -> Result<AttemptResult<T>, FileError>
    where
        S: FnOnce(&LeaseFile<'_>, View) -> Result<T, FileError>,
    {
        let lease = LeaseFile {
            store: self,
            file,
            name,
        };
        // A waiter that is not at the head must not contend for the file lock.
        if let Which::Wanted(claim) = which
            && lease.is_held_or_reserved_for_other(claim)?
        {
            return Ok(AttemptResult::Done(Ok(None)));
        }
        let guarded = Guarded::new(file.file(), file.path())?;
        let mut counts = match which {
            Which::Wanted(_) | Which::There => file.is_current()?,
            Which::Held => true,
        };
        let view = self.base.directory.read(file, name);
        if matches!(which, Which::Held) && view.is_err() {
            // Reading a corrupt file moves it away.
            counts = file.is_current()?;
        }
        let Some(operation) = operation.take_if(|_| counts) else {
            return Ok(AttemptResult::Again);
        };
        let done = view.and_then(|view| operation(&lease, view)).map(Some);
        Ok(match guarded.end() {
            Ok(()) => AttemptResult::Done(done),
            // Closing the file unlocks it, too.
            Err(_) => AttemptResult::Closing(done),
        })
    }
}
