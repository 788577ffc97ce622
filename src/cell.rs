//! A value that several handles share.

/// A value with exclusive access: a mutex with the feature `std`, where there may be threads, and a
/// `RefCell` without it.
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

    /// Returns the result of `look`, called with the value. `look` must not call this again.
    #[cfg(feature = "std")]
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(
            &mut self
                .0
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// Returns the result of `look`, called with the value. `look` must not call this again.
    #[cfg(not(feature = "std"))]
    pub(crate) fn with<R>(&self, look: impl FnOnce(&mut T) -> R) -> R {
        look(&mut self.0.borrow_mut())
    }
}
