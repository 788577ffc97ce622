//! Components that go around the lock component: the examples that are stores and applications.

use std::path::{self, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use crate::component;
use crate::wasm::Toolchain;

/// Builds the package in `directory`, which is called like its directory, as `target/component/NAME.wasm`,
/// and says what it is.
pub(crate) fn build(shell: &Shell, directory: &str) -> Result<PathBuf> {
    let directory = path::absolute(directory)?;
    let manifest = directory.join("Cargo.toml");
    ensure!(
        manifest.exists(),
        "there is no package in {}: name its directory, such as examples/cron-job",
        directory.display()
    );
    let package = directory.file_name().and_then(|name| name.to_str());
    let package = package.context("no package is called like its directory")?;

    let toolchain = Toolchain::find(shell)?;
    println!("building with {} compiler", toolchain.name());
    let manifest = manifest.display().to_string();
    let module = toolchain.build(shell, package, &["--manifest-path", &manifest])?;
    let component = component::directory().join(format!("{package}.wasm"));
    component::componentize(shell, &module, &component)?;
    println!("{}", component::describe(&component)?);
    Ok(component)
}
