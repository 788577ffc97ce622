//! A value that several handles share.

/// A value that is looked at and changed by one at a time: a mutex where there is `std`, and so
/// may be threads.
#[derive(Debug, Default)]
pub(crate) struct Shared<T>(Inner<T>);

#[cfg(feature = "std")]
type Inner<T> = crate::sync::Mutex<T>;
#[cfg(not(feature = "std"))]
type Inner<T> = core::cell::RefCell<T>;

impl<T> Shared<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(Inner::new(value))
    }

    /// What `look` makes of the value; it must not come back here.
    #[cfg(feature = "std")]
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(
            &mut self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// What `look` makes of the value; it must not come back here.
    #[cfg(not(feature = "std"))]
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.0.borrow_mut())
    }
}
