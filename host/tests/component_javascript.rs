//! A store in JavaScript passes the core's suite *through the component*: its locks, in Node.js by
//! jco, with a `Map` behind them. See `examples/javascript/conformance.mjs`.
//!
//! `npm install` and `npm run build` in that directory build the package; `cargo xtask test` runs both.

mod foreign;

use std::process::Command;

use foreign::{Foreign, built};
use verrou::conformance;

conformance!(map, javascript());

fn javascript() -> Foreign {
    let script = built("javascript", "verrou.js").join("conformance.mjs");
    Foreign::new(Command::new("node").arg(script))
}
