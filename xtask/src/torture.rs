//! Puts the locks in files through what they have to survive.

use anyhow::Result;
use xshell::{Shell, cmd};

/// The arguments of `cargo` that build the torture program and the command, as released.
pub(crate) const BUILD: &str = "build --release --package verrou-host \
    --package verrou-torture --bin verrou --bin verrou-torture --locked";

/// Builds the torture program and the command, and runs the torture.
pub(crate) fn torture(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let build = BUILD.split_whitespace();
    cmd!(shell, "cargo {build...}").run()?;
    Ok(cmd!(shell, "target/release/verrou-torture {arguments...}").run()?)
}
