//! The stores of a program, by name.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};

use crate::error::Error;

/// The locks of a program: lock factories by name, one of them the default.
///
/// `F` is a [`blocking::LockFactory`](crate::blocking::LockFactory) or a
/// [`nonblocking::LockFactory`](crate::nonblocking::LockFactory).
///
/// ```
/// use std::sync::Arc;
/// use verrou::blocking::LockFactory;
/// use verrou::{Locks, MemoryStore, Store};
/// use verrou_host::System;
///
/// type SharedStore = Arc<dyn Store>;
/// let factory = || LockFactory::new(Arc::new(MemoryStore::new(System)) as SharedStore, System);
/// let locks = Locks::new("memory", [("memory", factory()), ("other", factory())])?;
///
/// locks.create_lock("my-resource", "1s")?.acquire()?;
/// assert!(locks.create_lock("my-resource", "1s")?.is_locked()?);
/// assert!(!locks.using("other")?.create_lock("my-resource", "1s")?.is_locked()?);
/// # Ok::<(), verrou::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Locks<F> {
    factories: BTreeMap<String, F>,
    default: F,
}

impl<F: Clone> Locks<F> {
    /// Returns the locks of these factories, each with the name of its store; `default` names the
    /// default store.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStore`] when no factory has the name `default`.
    pub fn new<'a>(
        default: &str,
        factories: impl IntoIterator<Item = (&'a str, F)>,
    ) -> Result<Self, Error> {
        let named = |(name, factory): (&str, F)| (name.to_string(), factory);
        let factories: BTreeMap<_, _> = factories.into_iter().map(named).collect();
        let default = find(&factories, default)?.clone();
        Ok(Self { factories, default })
    }
}

impl<F> Locks<F> {
    /// Returns the factory of the store named `store`. (It is called `use` in other languages; that is a
    /// keyword of Rust.)
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStore`] when there is none.
    pub fn using(&self, store: &str) -> Result<&F, Error> {
        find(&self.factories, store)
    }

    /// Returns the factory of the default store.
    pub fn default_factory(&self) -> &F {
        &self.default
    }
}

fn find<'a, F>(factories: &'a BTreeMap<String, F>, store: &str) -> Result<&'a F, Error> {
    let unknown = || Error::UnknownStore {
        store: store.to_string(),
    };
    factories.get(store).ok_or_else(unknown)
}
