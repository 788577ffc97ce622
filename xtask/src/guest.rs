//! Components that go around the lock component: the examples that are stores and applications.

use std::path::{self, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use crate::component;
use crate::wasm::Toolchain;

/// Builds the package in `folder`, which is called like its folder, as `target/component/NAME.wasm`,
/// and says what it is.
pub(crate) fn build(shell: &Shell, folder: &str) -> Result<PathBuf> {
    let folder = path::absolute(folder)?;
    let manifest = folder.join("Cargo.toml");
    ensure!(
        manifest.exists(),
        "there is no package in {}: name its folder, such as examples/cron-job",
        folder.display()
    );
    let package = folder.file_name().and_then(|name| name.to_str());
    let package = package.context("no package is called like its folder")?;

    let toolchain = Toolchain::find(shell)?;
    println!("building with {} compiler", toolchain.name());
    let manifest = manifest.display().to_string();
    let module = toolchain.build(shell, package, &["--manifest-path", &manifest])?;
    let component = component::folder().join(format!("{package}.wasm"));
    component::componentize(shell, &module, &component)?;
    println!("{}", component::describe(&component)?);
    Ok(component)
}
