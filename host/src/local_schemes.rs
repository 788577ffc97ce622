//! The kinds of stores on this machine, by the schemes of their URLs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use verrou::AsyncStore;
use verrou::nonblocking::Inline;
use verrou_files::{FileLockStore, HardLinkStore, LeaseFileStore, OpenError};
use verrou_machine::{HostStore, StoreOptions};

/// Opens a store at a path.
type Open<S> = fn(&Path, &StoreOptions) -> Result<S, OpenError>;

/// A kind of store on this machine, by the scheme of its URLs.
pub(crate) struct LocalScheme {
    /// The scheme, without the colon.
    pub(crate) name: &'static str,
    /// Whether the path is a directory, in which the records of other locks can be kept, too.
    pub(crate) is_directory: bool,
    pub(crate) open: Open<Box<dyn HostStore>>,
    pub(crate) open_async: Open<Arc<dyn AsyncStore>>,
}

/// The kinds of stores on this machine. A store whose operations block opens as an
/// [`Inline`](verrou::nonblocking::Inline) store for tasks.
pub(crate) static LOCAL_SCHEMES: &[LocalScheme] = &[
    LocalScheme {
        name: "lease",
        is_directory: true,
        open: |path, options| Ok(Box::new(LeaseFileStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(LeaseFileStore::open(path, options)?)),
    },
    LocalScheme {
        name: "file",
        is_directory: true,
        open: |path, options| Ok(Box::new(FileLockStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(FileLockStore::open(path, options)?)),
    },
    LocalScheme {
        name: "wasi",
        is_directory: true,
        open: |path, options| Ok(Box::new(HardLinkStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(Inline(HardLinkStore::open(path, options)?))),
    },
];

impl LocalScheme {
    /// Returns the scheme called `name`.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        LOCAL_SCHEMES.iter().find(|scheme| scheme.name == name)
    }
}

impl PartialEq for LocalScheme {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for LocalScheme {}

impl fmt::Debug for LocalScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalScheme").field(&self.name).finish()
    }
}

#[cfg(test)]
mod tests {
    use pollster::block_on;
    use verrou::{AsyncStore as _, Claim, Owner, Store as _, Ttl};

    use super::*;

    /// Otherwise the blocking and the async programs of a store would not exclude each other.
    #[test]
    fn scheme_opens_the_same_store_for_threads_and_tasks() {
        for scheme in LOCAL_SCHEMES {
            let directory = tempfile::tempdir().unwrap();
            let (path, options) = (directory.path().join("locks"), StoreOptions::default());
            let blocking = (scheme.open)(&path, &options).unwrap();
            let asynchronous = (scheme.open_async)(&path, &options).unwrap();
            let claim = |owner| {
                let owner = Owner::from_bytes([owner; 16]);
                Claim::new("lock".parse().unwrap(), owner, Ttl::NEVER).ephemeral(true)
            };
            assert!(blocking.acquire(&claim(1)).unwrap().is_granted());
            let refused = block_on(asynchronous.acquire(&claim(2))).unwrap();
            assert!(!refused.is_granted(), "{scheme:?}");
            assert!(blocking.release(&claim(1)).unwrap());
            let granted = block_on(asynchronous.acquire(&claim(2))).unwrap();
            assert!(granted.is_granted(), "{scheme:?}");
            assert_eq!(path.is_dir(), scheme.is_directory, "{scheme:?}");
        }
    }
}
