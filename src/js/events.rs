//! The events of locks, for one function in JavaScript.

use alloc::rc::Rc;
use alloc::string::String;

use js_sys::{Array, BigInt, Function};
use wasm_bindgen::JsValue;
use wasm_bindgen::prelude::wasm_bindgen;

use crate::event::{Event, FieldValue, set_listener};

/// Calls `listener` with each event from now on, as an array of pairs of a member and its value; with `undefined`,
/// events are not recorded any more.
///
/// `listener` is called inside an operation of a lock, so it must not use this module.
#[wasm_bindgen(js_name = setEventListener)]
#[expect(unreachable_pub, reason = "JavaScript reaches it")]
pub fn set_event_listener(listener: Option<Function>) {
    set_listener(listener.map(|listener| {
        let called = move |event: &Event| {
            // The package's listener throws nothing.
            let _ = listener.call1(&JsValue::UNDEFINED, &members(event));
        };
        Rc::new(called) as Rc<dyn Fn(&Event)>
    }));
}

/// Returns the members of `event`: arrays of a name and a value.
fn members(event: &Event) -> Array {
    let level = event.level.to_ascii_lowercase();
    let members = Array::of3(
        &pair("level", level),
        &pair("message", event.message),
        &pair("name", &event.name),
    );
    for (name, value) in &event.fields {
        let member = match value {
            // Fencing tokens are `bigint` in all of the package.
            FieldValue::Number(fence) if *name == "fence" => pair(name, BigInt::from(*fence)),
            #[expect(
                clippy::cast_precision_loss,
                reason = "milliseconds and counts of attempts are less than 2⁵³"
            )]
            FieldValue::Number(number) => pair(&camel_case(name), *number as f64),
            FieldValue::Text(text) => pair(&camel_case(name), text),
        };
        members.push(&member);
    }
    members
}

fn pair(name: &str, value: impl Into<JsValue>) -> Array {
    Array::of2(&name.into(), &value.into())
}

/// Returns `waitedMs` for `waited_ms`.
fn camel_case(name: &str) -> String {
    let mut parts = name.split('_');
    let mut camel = String::from(parts.next().unwrap_or_default());
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(1));
        camel.push_str(&first.to_ascii_uppercase());
        camel.push_str(rest);
    }
    camel
}
