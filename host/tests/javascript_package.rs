//! The core's memory passes the suite in Node.js, *through the locks of the JavaScript package*. See
//! `tests/js/conformance.mjs`.
//!
//! `cargo xtask js` builds the package.

mod foreign;

use std::path::Path;
use std::process::Command;

use foreign::{Foreign, not_run};
use verrou::conformance;

conformance!(memory, javascript());

fn javascript() -> Foreign {
    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if !project.join("target/js/node.js").exists() {
        not_run(
            "the suite in JavaScript, because there is no target/js; `cargo xtask js` builds it",
        );
    }
    Foreign::new(Command::new("node").arg(project.join("tests/js/conformance.mjs")))
}
