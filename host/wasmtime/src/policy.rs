//! The permissions and limits of a guest that uses the locks of its host.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use verrou::{Error, InvalidName, Name, SerializedLock, Ttl};

use crate::bindings::blocking::verrou::lock::types;

/// The permissions and limits of a guest that uses the locks of its host.
///
/// The default separates nothing but the guest's resources: a guest may use any name, and do all that a lock can do. For
/// guests that must not disturb each other, give each a [`prefix`](Self::prefix) and forbid what it does not need.
///
/// ```
/// use std::time::Duration;
/// use verrou_wasmtime::locks::GuestPolicy;
///
/// let mut policy = GuestPolicy::default();
/// policy.prefix = "tenant-7/".to_owned();
/// policy.force_release = false;
/// policy.longest_ttl = Some(Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a permission of its own"
)]
pub struct GuestPolicy {
    /// Stands before each name in the store. The guest sees its names without it, and can restore no lock with another
    /// one.
    pub prefix: String,
    /// Whether the guest may force-release locks of its names, also those of other holders.
    pub force_release: bool,
    /// Whether the guest may ask for the holders of its names, and whether they are held.
    pub inspect: bool,
    /// Whether the guest may detach and serialize locks, which then outlive it, and restore them.
    pub transfer: bool,
    /// The longest ttl; with `Some`, a lease must expire.
    pub longest_ttl: Option<Duration>,
    /// How many locks the guest may hold, or be acquiring, at a time.
    pub grants: usize,
    /// How many handles of locks, attempts and renewals the guest may have at a time.
    pub handles: usize,
    /// How many places in wait queues the guest may have at a time; in WASI 0.3, how many of its calls may wait.
    pub waits: usize,
    /// Whether the guest sees the messages of the store's errors, which may contain paths, addresses and names of other
    /// guests. Otherwise the message says only that the store has failed.
    pub store_errors: bool,
}

impl Default for GuestPolicy {
    fn default() -> Self {
        Self {
            prefix: String::new(),
            force_release: true,
            inspect: true,
            transfer: true,
            longest_ttl: None,
            grants: 1 << 10,
            handles: 1 << 15,
            waits: 1 << 10,
            store_errors: false,
        }
    }
}

impl GuestPolicy {
    /// Returns whether a lease of `ttl` is permitted.
    pub(crate) fn permits(&self, ttl: Ttl) -> bool {
        let Some(longest) = self.longest_ttl else {
            return true;
        };
        ttl.duration().is_some_and(|ttl| ttl <= longest)
    }

    /// Returns the name in the store of the guest's lock `name`.
    pub(crate) fn full_name(&self, name: &str) -> Result<Name, InvalidName> {
        Name::new(name)?;
        Name::new(&format!("{}{name}", self.prefix))
    }

    /// Returns the guest's name of the lock `name` of the store.
    pub(crate) fn own_name(&self, name: &Name) -> String {
        let name = name.as_str();
        name.strip_prefix(&self.prefix).unwrap_or(name).to_owned()
    }

    /// Returns the serialized lock of `text`, which the guest may restore.
    pub(crate) fn restorable(&self, text: &str) -> Result<SerializedLock, types::LockError> {
        let serialized: SerializedLock = text.parse().map_err(Error::from)?;
        if !self.transfer || !serialized.name().as_str().starts_with(&self.prefix) {
            return Err(denied("this serialized lock"));
        }
        self.check_ttl(serialized.ttl())?;
        Ok(serialized)
    }

    /// Fails if a lease of `ttl` is not permitted.
    pub(crate) fn check_ttl(&self, ttl: Ttl) -> Result<(), types::LockError> {
        if self.permits(ttl) {
            return Ok(());
        }
        Err(denied("a lease of this length"))
    }

    /// Fails if the guest may not ask for holders.
    pub(crate) fn check_inspect(&self) -> Result<(), types::LockError> {
        if self.inspect {
            return Ok(());
        }
        Err(denied("to ask for holders"))
    }

    /// Converts an error of an operation for the guest.
    pub(crate) fn error(&self, err: Error) -> types::LockError {
        let is_of_store = matches!(err, Error::Storage(_));
        let mut error = types::LockError::from(err);
        if is_of_store && !self.store_errors {
            "the store has failed".clone_into(&mut error.message);
        }
        error
    }

    /// Returns one more of the guest's grants, of which there are `count`.
    pub(crate) fn one_more_grant(
        &self,
        count: &Arc<AtomicUsize>,
    ) -> Result<Counted, types::LockError> {
        Counted::new(count, self.grants)
            .ok_or_else(|| denied(&format!("more than {} locks", self.grants)))
    }

    /// Returns the error for a guest with too many handles.
    pub(crate) fn too_many_handles(&self) -> types::LockError {
        types::LockError {
            code: types::ErrorCode::TooManyHandles,
            message: format!(
                "{} locks, attempts and renewals are alive: drop some",
                self.handles
            ),
            temporary: true,
        }
    }
}

/// Returns the error for what a policy does not permit.
pub(crate) fn denied(what: &str) -> types::LockError {
    types::LockError {
        code: types::ErrorCode::Denied,
        message: format!("the host does not permit this guest {what}"),
        temporary: false,
    }
}

/// One of a limited number of things, until it is dropped.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    /// Returns one more; `None` if there are `most` already.
    pub(crate) fn new(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let more = |count: usize| (count < most).then_some(count + 1);
        let counted = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| Self(Arc::clone(count)))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
