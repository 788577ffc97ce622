//! Conversions between the core's errors and the classes of `js/package/errors.js`.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;

use send_wrapper::SendWrapper;
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::error::Error;
use crate::store::StoreError;

#[wasm_bindgen(raw_module = "../errors.js")]
extern "C" {
    /// Makes an error of the class with this `code`.
    #[wasm_bindgen(js_name = lockError)]
    pub(super) fn lock_error(code: &str, message: &str, cause: &JsValue) -> JsValue;

    /// Records that this module must not be used any more.
    #[wasm_bindgen(js_name = corePanicked)]
    fn core_panicked(message: &str);
}

#[wasm_bindgen(raw_module = "../options.js")]
extern "C" {
    #[wasm_bindgen(catch)]
    fn member(value: &JsValue, name: &str) -> Result<JsValue, JsValue>;
}

/// Makes every later call report a panic, instead of the trap that the panic ends in.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(std::boxed::Box::new(|panic| {
        core_panicked(&panic.to_string());
    }));
}

/// Converts `error` to a JavaScript error to throw.
pub(super) fn thrown(error: &Error) -> JsValue {
    let mut cause = JsValue::UNDEFINED;
    let message = match error {
        Error::Storage(why) => {
            if let Some(Thrown(value)) = why.get_ref().downcast_ref() {
                cause = (**value).clone();
            }
            format!("{error}: {why}")
        }
        Error::Lost {
            source: Some(why), ..
        } => {
            let why = Error::Storage(why.clone());
            cause = thrown(&why);
            format!("{error}: {why}")
        }
        Error::InvalidName(why) => format!("{error}: {why}"),
        Error::InvalidRetry(why) => format!("{error}: {why}"),
        Error::InvalidSerializedLock(why) => format!("{error}: {why}"),
        Error::InvalidTtl(why) => format!("{error}: {why}"),
        _ => error.to_string(),
    };
    lock_error(error.code(), &message, &cause)
}

/// A value that a store in JavaScript threw.
struct Thrown(SendWrapper<JsValue>);

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&message(&self.0))
    }
}

impl fmt::Debug for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl core::error::Error for Thrown {}

/// Converts a thrown value to a store error, which is temporary if the value's `temporary` is true.
pub(super) fn store_error(thrown: JsValue) -> StoreError {
    let temporary = property(&thrown, "temporary").as_bool() == Some(true);
    let thrown = Thrown(SendWrapper::new(thrown));
    if temporary {
        StoreError::temporary(thrown)
    } else {
        StoreError::permanent(thrown)
    }
}

/// Returns whether the code of `thrown` says that this owner does not hold the lease: this package's code, or
/// that of `@verrou/core`.
pub(super) fn is_not_owner(thrown: &JsValue) -> bool {
    let code = property(thrown, "code").as_string();
    matches!(
        code.as_deref(),
        Some("E_LOCK_NOT_OWNER" | "E_LOCK_NOT_OWNED")
    )
}

fn message(thrown: &JsValue) -> String {
    let message = property(thrown, "message").as_string();
    message
        .or_else(|| thrown.as_string())
        .unwrap_or_else(|| "the store threw a value that is not an error".into())
}

/// Returns the member `name` of `value`; `undefined` if it cannot be read, or if only
/// `Object.prototype` has it.
pub(super) fn property(value: &JsValue, name: &str) -> JsValue {
    member(value, name).unwrap_or_default()
}
