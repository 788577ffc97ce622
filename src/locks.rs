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
/// type AnyStore = Arc<dyn Store + Send + Sync>;
/// let factory = || LockFactory::new(Arc::new(MemoryStore::new(System)) as AnyStore, System);
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
    /// The factories by name, and the name of the one that is meant when none is named.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStore`] when none is called `default`.
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
    /// The factory called `store`. (`use`, elsewhere: a word Rust keeps for itself.)
    ///
    /// # Errors
    ///
    /// [`Error::UnknownStore`] when there is none.
    pub fn using(&self, store: &str) -> Result<&F, Error> {
        find(&self.factories, store)
    }

    /// The factory that is meant when none is named.
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
