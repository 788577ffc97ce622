//! Puts the locks in files through what they have to survive.

use anyhow::Result;
use xshell::{Shell, cmd};

/// Builds the torture and the command, as released, and runs it.
pub(crate) fn torture(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let packages = ["--package", "verrou-host", "--package", "verrou-torture"];
    let programs = ["--bin", "verrou", "--bin", "verrou-torture"];
    cmd!(
        shell,
        "cargo build --release {packages...} {programs...} --locked"
    )
    .run()?;
    Ok(cmd!(shell, "target/release/verrou-torture {arguments...}").run()?)
}
