//! Puts the locks in files through what they have to survive.

use anyhow::Result;
use xshell::{Shell, cmd};

/// Builds the torture and the command, as released, and runs it.
pub(crate) fn torture(shell: &Shell, arguments: &[&str]) -> Result<()> {
    cmd!(
        shell,
        "cargo build --release --package verrou-host --bin verrou --package verrou-torture --locked"
    )
    .run()?;
    Ok(cmd!(shell, "target/release/verrou-torture {arguments...}").run()?)
}
