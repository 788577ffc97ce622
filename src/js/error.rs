//! Errors, as `js/package/errors.js` has classes for them.

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
    /// An error of the class that goes by `code`.
    #[wasm_bindgen(js_name = lockError)]
    pub(super) fn lock_error(code: &str, message: &str, cause: &JsValue) -> JsValue;

    /// Says that this module is not to be used any more.
    #[wasm_bindgen(js_name = corePanicked)]
    fn core_panicked(message: &str);
}

#[wasm_bindgen(raw_module = "../options.js")]
extern "C" {
    #[wasm_bindgen(catch)]
    fn member(value: &JsValue, name: &str) -> Result<JsValue, JsValue>;
}

/// Lets a panic be told by whatever is asked next, instead of the trap that it ends in.
#[wasm_bindgen(start)]
fn start() {
    std::panic::set_hook(std::boxed::Box::new(|panic| {
        core_panicked(&panic.to_string());
    }));
}

/// `error`, to be thrown.
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

/// What a store in JavaScript threw.
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

/// What was thrown, as the failure of a store; it says itself whether it is temporary.
pub(super) fn store_error(thrown: JsValue) -> StoreError {
    let temporary = property(&thrown, "temporary").as_bool() == Some(true);
    let thrown = Thrown(SendWrapper::new(thrown));
    if temporary {
        StoreError::temporary(thrown)
    } else {
        StoreError::permanent(thrown)
    }
}

/// Whether `thrown` says that the lease is somebody else's, in these words or in those of others.
pub(super) fn is_not_owner(thrown: &JsValue) -> bool {
    let code = property(thrown, "code").as_string();
    matches!(
        code.as_deref(),
        Some("E_LOCK_NOT_OWNER" | "E_LOCK_NOT_OWNED")
    )
}

fn message(thrown: &JsValue) -> String {
    let said = property(thrown, "message").as_string();
    said.or_else(|| thrown.as_string())
        .unwrap_or_else(|| "what was thrown is no error".into())
}

/// Returns what is called `name` in `value`; `undefined` where that cannot be read, or where only
/// `Object.prototype` has it.
pub(super) fn property(value: &JsValue, name: &str) -> JsValue {
    member(value, name).unwrap_or_default()
}
