//! A store in JavaScript passes the core's suite *through the component*: its locks, in Node.js by
//! jco, with a `Map` behind them. See `examples/javascript/conformance.mjs`.
//!
//! `npm install && npm run build` in that folder makes what is needed; `cargo xtask test` does it.

mod foreign;

use std::path::Path;
use std::process::Command;

use foreign::{Foreign, not_run};
use verrou::conformance;

conformance!(map, javascript());

fn javascript() -> Foreign {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = package.with_file_name("examples/javascript");
    if !folder.join("component/verrou.js").exists() {
        not_run(
            "the tests of the store in JavaScript, for the component was not built for it; \
             `cargo xtask test` does that, and runs them",
        );
    }
    Foreign::new(Command::new("node").arg(folder.join("conformance.mjs")))
}
