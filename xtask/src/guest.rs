//! Builds components to compose with the lock component: the examples of stores and applications.

use std::path::{self, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use crate::component;
use crate::wasm::Toolchain;

/// The store for the directories of WASI, which is built with the lock component.
pub(crate) const PROVIDER: &str = "examples/provider-filesystem";

/// Builds the package in `directory`, which must have the name of its directory, as
/// `target/component/NAME.wasm`. Prints the component's size, imports and exports.
pub(crate) fn build(shell: &Shell, directory: &str) -> Result<PathBuf> {
    let (package, manifest) = package(directory)?;
    let toolchain = Toolchain::find(shell)?;
    println!("building with {} compiler", toolchain.name());
    let module = toolchain.build(shell, &package, &["--manifest-path", &manifest])?;
    let component = component::directory().join(format!("{package}.wasm"));
    component::componentize(shell, &module, &component)?;
    println!("{}", component::describe(&component)?);
    Ok(component)
}

/// Removes what [`build`] built of the package in `directory`, but not the libraries.
pub(crate) fn clean(shell: &Shell, directory: &str) -> Result<()> {
    let (package, manifest) = package(directory)?;
    let arguments = ["--manifest-path", &manifest];
    Toolchain::find(shell)?.clean(shell, &package, &arguments)
}

/// Returns the name of the package in `directory`, and the path of its manifest.
fn package(directory: &str) -> Result<(String, String)> {
    let directory = path::absolute(directory)?;
    let manifest = directory.join("Cargo.toml");
    ensure!(
        manifest.exists(),
        "no package in {}: give a package's directory, such as examples/cron-job",
        directory.display()
    );
    let package = directory.file_name().and_then(|name| name.to_str());
    let package = package.context("the directory has no name that a package can have")?;
    Ok((package.to_owned(), manifest.display().to_string()))
}
