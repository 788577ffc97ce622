//! Stores that pass their operations on to another one.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use crate::claim::{Claim, Fence};
use crate::name::Name;
use crate::store::{Acquired, Capabilities, Holder, LossWatch, Renewed, Store, StoreError, Waiter};

/// A store that passes its operations on to another one, except for the methods that it overrides.
///
/// It implements [`Store`]. Pointers to stores are wrappers, too. Import this trait only to implement it: a
/// wrapper has the methods of both traits.
///
/// ```
/// use verrou::{Claim, Clock, MemoryStore, Store, StoreError, StoreWrapper};
///
/// /// A store that counts releases.
/// #[derive(Debug)]
/// struct Counting<S> {
///     store: S,
///     releases: std::sync::atomic::AtomicU32,
/// }
///
/// impl<S: Store> StoreWrapper for Counting<S> {
///     type Inner = S;
///     fn inner(&self) -> &S {
///         &self.store
///     }
///     fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
///         self.releases.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
///         self.store.release(claim)
///     }
/// }
/// ```
#[expect(
    clippy::missing_errors_doc,
    reason = "the errors are those of the methods of `Store`"
)]
pub trait StoreWrapper: fmt::Debug + Send + Sync {
    /// The other store.
    type Inner: Store + ?Sized;

    /// Returns the other store.
    fn inner(&self) -> &Self::Inner;

    /// The wrapper's [`Store::acquire`]; passed on by default.
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        self.inner().acquire(claim)
    }
    /// The wrapper's [`Store::extend`]; passed on by default.
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.inner().extend(claim)
    }
    /// The wrapper's [`Store::release`]; passed on by default.
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.inner().release(claim)
    }
    /// The wrapper's [`Store::force_release`]; passed on by default.
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        self.inner().force_release(name, only)
    }
    /// The wrapper's [`Store::holders`]; passed on by default.
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        self.inner().holders(name)
    }
    /// The wrapper's [`Store::capabilities`]; passed on by default.
    fn capabilities(&self) -> Capabilities {
        self.inner().capabilities()
    }
    /// The wrapper's [`Store::renew`]; passed on by default.
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        self.inner().renew(claim, fence)
    }
    /// The wrapper's [`Store::holds`]; passed on by default.
    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        self.inner().holds(claim, fence)
    }
    /// The wrapper's [`Store::detach`]; passed on by default.
    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        self.inner().detach(claim)
    }
    /// The wrapper's [`Store::waiter`]; passed on by default.
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        self.inner().waiter(claim)
    }
    /// The wrapper's [`Store::watch`]; passed on by default.
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        self.inner().watch(claim)
    }
}

#[deny(
    clippy::missing_trait_methods,
    reason = "a wrapper passes every method on"
)]
impl<W: StoreWrapper> Store for W {
    fn acquire(&self, claim: &Claim) -> Result<Acquired, StoreError> {
        StoreWrapper::acquire(self, claim)
    }
    fn extend(&self, claim: &Claim) -> Result<bool, StoreError> {
        StoreWrapper::extend(self, claim)
    }
    fn release(&self, claim: &Claim) -> Result<bool, StoreError> {
        StoreWrapper::release(self, claim)
    }
    fn force_release(&self, name: &Name, only: Option<Fence>) -> Result<bool, StoreError> {
        StoreWrapper::force_release(self, name, only)
    }
    fn holders(&self, name: &Name) -> Result<Vec<Holder>, StoreError> {
        StoreWrapper::holders(self, name)
    }
    fn capabilities(&self) -> Capabilities {
        StoreWrapper::capabilities(self)
    }
    fn renew(&self, claim: &Claim, fence: Option<Fence>) -> Result<Renewed, StoreError> {
        StoreWrapper::renew(self, claim, fence)
    }
    fn holds(&self, claim: &Claim, fence: Option<Fence>) -> Result<bool, StoreError> {
        StoreWrapper::holds(self, claim, fence)
    }
    fn detach(&self, claim: &Claim) -> Result<bool, StoreError> {
        StoreWrapper::detach(self, claim)
    }
    fn waiter<'s>(&'s self, claim: &Claim) -> Option<Box<dyn Waiter + 's>> {
        StoreWrapper::waiter(self, claim)
    }
    fn watch<'s>(&'s self, claim: &Claim) -> Option<Box<dyn LossWatch + 's>> {
        StoreWrapper::watch(self, claim)
    }
}

impl<S: Store + ?Sized> StoreWrapper for &S {
    type Inner = S;
    fn inner(&self) -> &S {
        self
    }
}

impl<S: Store + ?Sized> StoreWrapper for Box<S> {
    type Inner = S;
    fn inner(&self) -> &S {
        self
    }
}

impl<S: Store + ?Sized> StoreWrapper for Arc<S> {
    type Inner = S;
    fn inner(&self) -> &S {
        self
    }
}
