//! The events of locks for one listener, without `tracing`: that makes the JavaScript core 31 KB larger, this 5 KB, of
//! 154 KB without either.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::cell::RefCell;
use std::thread_local;

use crate::printable::Printable;

type Listener = Rc<dyn Fn(&Event)>;

thread_local! {
    static LISTENER: RefCell<Option<Listener>> = const { RefCell::new(None) };
}

/// Calls `listener` with each event of this thread from now on; with `None`, events are not recorded.
pub(crate) fn set_listener(listener: Option<Listener>) {
    LISTENER.set(listener);
}

/// Something that happened to a lock.
pub(crate) struct Event {
    pub(crate) level: &'static str,
    pub(crate) message: &'static str,
    pub(crate) name: String,
    pub(crate) fields: Vec<(&'static str, FieldValue)>,
    listener: Listener,
}

/// The value of a field.
pub(crate) enum FieldValue {
    Number(u128),
    Text(String),
}

impl Event {
    /// Returns an event of the lock `name`; `None` if there is no listener.
    pub(crate) fn start(level: &'static str, name: &str) -> Option<Self> {
        let listener = LISTENER.with_borrow(Clone::clone)?;
        Some(Self {
            level,
            message: "",
            name: Printable(name).to_string(),
            fields: Vec::new(),
            listener,
        })
    }

    pub(crate) fn text(&mut self, field: &'static str, text: String) {
        self.fields.push((field, FieldValue::Text(text)));
    }

    /// Adds a number, if there is one.
    pub(crate) fn number(&mut self, field: &'static str, value: impl Number) {
        let number = value
            .number()
            .map(|number| (field, FieldValue::Number(number)));
        self.fields.extend(number);
    }

    /// Calls the listener.
    pub(crate) fn end(self) {
        (self.listener)(&self);
    }
}

/// A number, or none.
pub(crate) trait Number {
    fn number(self) -> Option<u128>;
}

impl Number for u32 {
    fn number(self) -> Option<u128> {
        Some(self.into())
    }
}

impl Number for u128 {
    fn number(self) -> Option<u128> {
        Some(self)
    }
}

impl<N: Into<u128>> Number for Option<N> {
    fn number(self) -> Option<u128> {
        self.map(Into::into)
    }
}
