//! A store that is a component made of JavaScript passes the core's suite, through the lock component,
//! in Node.js. See `examples/provider-javascript`, whose README describes the build; `cargo xtask test`
//! builds it.

mod foreign;

use std::process::Command;

use foreign::{Foreign, built};
use verrou::conformance;

conformance!(provider, provider());

fn provider() -> Foreign {
    let script = built("javascript", "verrou.js").join("conformance.mjs");
    let store = built("provider-javascript", "provider.js").join("in-node.mjs");
    Foreign::new(Command::new("node").arg(script).arg(store))
}
