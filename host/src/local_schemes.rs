//! The kinds of stores on this machine, by the schemes of their URLs.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use verrou::AsyncStore;
use verrou_files::{FileLockStore, LeaseFileStore, OpenError};
use verrou_machine::{HostStore, StoreOptions};

/// Opens a store at a path.
type Open<S> = fn(&Path, &StoreOptions) -> Result<S, OpenError>;

/// A kind of store on this machine, by the scheme of its URLs.
pub(crate) struct LocalScheme {
    /// The scheme, without the colon.
    pub(crate) name: &'static str,
    pub(crate) open: Open<Box<dyn HostStore>>,
    pub(crate) open_async: Open<Arc<dyn AsyncStore>>,
}

/// The kinds of stores on this machine. A store whose operations block opens as an
/// [`Inline`](verrou::nonblocking::Inline) store for tasks.
pub(crate) static LOCAL_SCHEMES: [LocalScheme; 2] = [
    LocalScheme {
        name: "lease",
        open: |path, options| Ok(Box::new(LeaseFileStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(LeaseFileStore::open(path, options)?)),
    },
    LocalScheme {
        name: "file",
        open: |path, options| Ok(Box::new(FileLockStore::open(path, options)?)),
        open_async: |path, options| Ok(Arc::new(FileLockStore::open(path, options)?)),
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
