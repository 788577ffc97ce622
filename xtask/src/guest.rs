//! Components that go around the lock component: the examples that are stores and applications.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::Shell;

use crate::component;
use crate::wasm::Toolchain;

/// Builds the package in `folder`, which is called like its folder, as `target/component/NAME.wasm`,
/// and says what it is.
pub(crate) fn build(shell: &Shell, folder: &str) -> Result<PathBuf> {
    let manifest = shell.current_dir().join(folder).join("Cargo.toml");
    ensure!(
        manifest.exists(),
        "there is no package in {folder}: name its folder, such as examples/cron-job"
    );
    let package = Path::new(folder).file_name().and_then(|name| name.to_str());
    let package = package.with_context(|| format!("{folder} is no name of a package"))?;

    let toolchain = Toolchain::find(shell)?;
    println!("building with {} compiler", toolchain.name());
    let manifest = manifest.display().to_string();
    let module = toolchain.build(shell, package, &["--manifest-path", &manifest])?;
    let component = component::folder().join(format!("{package}.wasm"));
    component::componentize(shell, &module, &component)?;
    println!("{}", component::describe(&component)?);
    Ok(component)
}
