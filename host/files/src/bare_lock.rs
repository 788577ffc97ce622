//! The kernel's lock on exactly one file, without a directory for records of its grants.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{io, thread};

use verrou::{Acquired, Capabilities, Claim, Fence, Holder, Name, Owner, Store, StoreError};
use verrou_machine::process::{self, PerProcess};
use verrou_machine::sync::Mutex;
use verrou_machine::{HostStore, Listed, StoreOptions};

use crate::error::{FileError, OpenError};
use crate::exact_file::exact;
use crate::host_identity::Machine;
use crate::{flock, os};

/// The kernel's lock (`flock(2)`) on one file: mutual exclusion only. Grants have no fencing token, and
/// waiters poll, in no order.
#[derive(Debug)]
pub struct BareLockStore {
    name: Name,
    path: PathBuf,
    grant: PerProcess<Mutex<Option<BareGrant>>>,
}

#[derive(Debug)]
struct BareGrant {
    owner: Owner,
    file: File,
    /// The number of the holding process. A forked child has a copy of this value, but is not the
    /// holder.
    process: u32,
}

impl BareLockStore {
    /// Opens the lock on exactly the file or directory `path`, and returns it with its name. Creates an
    /// empty file if nothing exists at `path`.
    ///
    /// # Errors
    ///
    /// Returns an [`OpenError`] that names the problem with the path, and what to do about it.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<(Self, Name), OpenError> {
        let (path, name) = exact(path, options)?;
        let store = Self {
            name: name.clone(),
            path,
            grant: PerProcess::new(),
        };
        Ok((store, name))
    }

    fn open_file(&self) -> Result<File, FileError> {
        os::open_to_lock(&self.path).map_err(FileError::io("open this to lock it", &self.path))
    }

    fn is_current(&self, file: &File) -> Result<bool, FileError> {
        let failed = || FileError::io("inspect this file", &self.path);
        let at_path = os::id_at(&self.path).map_err(failed())?;
        Ok(at_path == Some(os::id(file).map_err(failed())?))
    }

    fn take(&self) -> Result<Option<File>, FileError> {
        loop {
            let file = self.open_file()?;
            if !flock::try_lock_despite_lookers(&file)
                .map_err(FileError::io("lock this file", &self.path))?
            {
                return Ok(None);
            }
            if self.is_current(&file)? {
                return Ok(Some(file));
            }
        }
    }

    /// Returns the holder of `name`.
    fn holder(&self, name: &Name) -> Result<Option<Holder>, StoreError> {
        if *name != self.name {
            return Ok(None);
        }
        let failed = |action| FileError::io(action, &self.path);
        let Some(file) = os::open_to_look(&self.path).map_err(failed("open this file"))? else {
            return Ok(None);
        };
        if !flock::is_locked(&file).map_err(failed("try this file's lock"))? {
            return Ok(None);
        }
        let process =
            os::locker(&file).map_err(failed("determine which process locked this file"))?;
        let mut holder = Holder::default();
        holder.process = process.map(|id| Machine::this().other_process(id));
        Ok(Some(holder))
    }
}

impl BareGrant {
    fn is_of(&self, owner: Owner) -> bool {
        self.owner == owner && self.process == process::this()
    }
}

impl HostStore for BareLockStore {
    fn list(&self) -> Result<Vec<Listed>, StoreError> {
        Ok(Vec::new())
    }

    /// The caller does not join the wait queue.
    fn wait_until_free(&self, name: &Name, at_most: Duration) {
        const PAUSE: Duration = Duration::from_millis(50);

        let began = Instant::now();
        while matches!(self.holder(name), Ok(Some(_))) {
            let left = at_most.saturating_sub(began.elapsed());
            if left.is_zero() {
                return;
            }
            thread::sleep(left.min(PAUSE));
        }
    }

    fn lifeline(&self, claim: &Claim) -> io::Result<Option<File>> {
        let grant = self.grant.lock();
        let mine = grant.as_ref().filter(|grant| grant.is_of(claim.owner));
        mine.map(|grant| os::duplicate_to_inherit(&grant.file))
            .transpose()
    }
}

impl Store for BareLockStore {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        let mut grant = self.grant.lock();
        if claim.name != self.name {
            return Ok(Acquired::BUSY);
        }
        if let Some(grant) = &*grant
            && grant.process == process::this()
        {
            return Ok(if grant.is_of(claim.owner) {
                Acquired::Granted { fence: None }
            } else {
                Acquired::BUSY
            });
        }
        Ok(match self.take()? {
            Some(file) => {
                *grant = Some(BareGrant {
                    owner: claim.owner,
                    file,
                    process: process::this(),
                });
                Acquired::Granted { fence: None }
            }
            None => Acquired::BUSY,
        })
    }

    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        let grant = self.grant.lock();
        Ok(match &*grant {
            Some(grant) if grant.is_of(claim.owner) => self.is_current(&grant.file)?,
            _ => false,
        })
    }

    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        let mut grant = self.grant.lock();
        let Some(ended) = grant.take_if(|grant| grant.is_of(claim.owner)) else {
            return Ok(false);
        };
        let is_current = self.is_current(&ended.file);
        // Unlock explicitly, as children may have the description open. This fails only for a bad
        // descriptor.
        flock::unlock(&ended.file).map_err(FileError::io("unlock this file", &self.path))?;
        is_current.map_err(Into::into)
    }

    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        match self.holder(name)? {
            Some(_) => Err(FileError::NotEvictable {
                name: name.clone(),
                fence: only,
            }
            .into()),
            None => Ok(false),
        }
    }

    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        Ok(self.holder(name)?.into_iter().collect())
    }

    fn holds(&self, claim: &Claim, _fence: Option<Fence>) -> Result<bool, StoreError> {
        let grant = self.grant.lock();
        let mine = grant.as_ref().filter(|grant| grant.is_of(claim.owner));
        Ok(claim.name == self.name && mine.is_some())
    }

    /// Returns `false`: a lock of the kernel cannot outlive the processes that hold it.
    fn detach(&self, _claim: &Claim) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::NONE;
        capabilities.ephemeral = true;
        capabilities.revives = true;
        capabilities
    }
}
