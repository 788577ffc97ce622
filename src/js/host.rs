//! The host in JavaScript: its clocks, timers and randomness.

use alloc::boxed::Box;
use core::future::Future;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};
use core::time::Duration;

use js_sys::{Function, Promise};
use send_wrapper::SendWrapper;
use wasm_bindgen::prelude::wasm_bindgen;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use crate::nonblocking::AsyncHost;
use crate::time::{Clock, Timestamp};

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = performance, js_name = now)]
    fn performance_now() -> f64;
    #[wasm_bindgen(js_namespace = Date, js_name = now)]
    fn date_now() -> f64;
    #[wasm_bindgen(js_name = setTimeout)]
    fn set_timeout(callback: &Function, millis: f64) -> JsValue;
    #[wasm_bindgen(js_name = clearTimeout)]
    fn clear_timeout(timer: &JsValue);
}

/// The JavaScript runtime that runs this module.
#[derive(Clone, Copy, Debug)]
pub(super) struct JavaScript;

impl Clock for JavaScript {
    fn now(&self) -> Timestamp {
        Timestamp::new(duration(performance_now()))
    }
}

impl AsyncHost for JavaScript {
    async fn sleep(&self, pause: Duration) {
        let end = self.now().saturating_add(pause);
        loop {
            let left = end.saturating_since(self.now());
            if left.is_zero() {
                return;
            }
            Timer::new(left).await;
        }
    }

    fn random(&self) -> [u8; 16] {
        // No bits are drawn in advance: a copy of the memory, such as a snapshot, would use the same ones.
        let mut bits = [0; 16];
        getrandom::fill(&mut bits).expect("the runtime has randomness");
        bits
    }

    fn wall_clock(&self) -> Duration {
        duration(date_now())
    }
}

/// A timer that is cleared when it is dropped.
struct Timer {
    id: JsValue,
    elapsed: SendWrapper<JsFuture>,
}

impl Timer {
    /// The longest time of a timer, in milliseconds.
    const MAX_MILLIS: f64 = 2_147_483_647.0;

    fn new(length: Duration) -> Self {
        // Rounded up: a timer that fires early would have to be set again.
        let millis = (length.as_secs_f64() * 1_000.0)
            .ceil()
            .min(Self::MAX_MILLIS);
        let mut id = JsValue::UNDEFINED;
        let elapsed = Promise::new(&mut |resolve, _| id = set_timeout(&resolve, millis));
        Self {
            id,
            elapsed: SendWrapper::new(JsFuture::from(elapsed)),
        }
    }
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        pin!(&mut self.elapsed).poll(context).map(drop)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        clear_timeout(&self.id);
    }
}

/// Converts the milliseconds of a clock, which are not negative.
fn duration(millis: f64) -> Duration {
    Duration::try_from_secs_f64(millis / 1_000.0).unwrap_or_default()
}

/// Converts a length of time to milliseconds. Whole milliseconds become whole numbers.
#[expect(
    clippy::cast_precision_loss,
    reason = "JavaScript has no more precise numbers"
)]
pub(super) fn millis(length: Duration) -> f64 {
    length.as_nanos() as f64 / 1e6
}

/// Returns `value`, or the value of the promise that it is.
pub(super) async fn awaited(value: Result<JsValue, JsValue>) -> Result<JsValue, JsValue> {
    let value = value?;
    if !value.is_object() {
        return Ok(value);
    }
    // An object with a method `then` is awaited, as by `await`.
    SendWrapper::new(JsFuture::from(Promise::resolve(&value))).await
}

/// Polls `future` once, and makes a promise of it if it is not ready. An operation in memory is ready after
/// one poll, and a promise would cost more than the operation.
pub(super) fn settle(
    future: impl Future<Output = Result<JsValue, JsValue>> + 'static,
) -> Result<JsValue, JsValue> {
    let mut future = Box::pin(future);
    let mut context = Context::from_waker(core::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        Poll::Ready(end) => end,
        Poll::Pending => Ok(wasm_bindgen_futures::future_to_promise(future).unchecked_into()),
    }
}
