//! Puts the locks in files through what they have to survive.

use anyhow::Result;
use xshell::{Shell, cmd};

/// What `cargo` does to build the torture and the command, as released.
pub(crate) const BUILD: &str = "build --release --package verrou-host \
    --package verrou-torture --bin verrou --bin verrou-torture --locked";

/// Builds the torture and the command, and runs it.
pub(crate) fn torture(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let build = BUILD.split_whitespace();
    cmd!(shell, "cargo {build...}").run()?;
    Ok(cmd!(shell, "target/release/verrou-torture {arguments...}").run()?)
}
