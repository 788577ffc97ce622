//! JavaScript with npm's packages, and the tests that need them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use xshell::{Shell, cmd};

use crate::NotHere;
use crate::programs::{find, succeeds};
use crate::{component, project};

/// Runs the tests of `examples/javascript`: those of Node.js, and those of the page if there is a
/// Chromium, which is installed if this user may.
///
/// Afterwards there is, in that folder and in `examples/provider-javascript`, what the tests
/// `host/tests/component_javascript*.rs` need: so `cargo test` comes after this.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    ensure_recent(shell)?;
    if !component::folder().join("verrou.wasm").exists() {
        component::build(shell)?;
    }
    let examples = project().join("examples");
    let program = install(shell, &examples.join("javascript"))?;
    run(shell, &program, "build")?;
    run(shell, &program, "start")?;
    run(shell, &program, "test")?;
    run_in_browser(shell, &program)?;

    let provider = install(shell, &examples.join("provider-javascript"))?;
    run(shell, &provider, "build")?;
    exports_a_store(&component::folder().join("provider-javascript.wasm"))?;
    run(shell, &provider, "transpile")
}

/// Installs what the lock file in `folder` names, and says where that is.
pub(crate) fn install(shell: &Shell, folder: &Path) -> Result<PathBuf> {
    let quietly = ["--no-audit", "--no-fund", "--loglevel=error"];
    cmd!(
        shell,
        "npm ci --prefer-offline {quietly...} --prefix {folder}"
    )
    .run()
    .with_context(|| format!("npm could not install the packages of {}", folder.display()))?;
    Ok(folder.to_owned())
}

pub(crate) fn run(shell: &Shell, folder: &Path, script: &str) -> Result<()> {
    cmd!(shell, "npm run {script} --silent --prefix {folder}")
        .run()
        .with_context(|| format!("`npm run {script}` failed in {}", folder.display()))
}

fn exports_a_store(provider: &Path) -> Result<()> {
    let (_, exports) = component::interfaces(&fs::read(provider)?)?;
    ensure!(
        exports == ["verrou:lock/store@0.1.0"],
        "{} exports {exports:?}, and not a store",
        provider.display()
    );
    println!("{}", component::describe(provider)?);
    Ok(())
}

pub(crate) fn ensure_recent(shell: &Shell) -> Result<()> {
    ensure!(
        is_recent(shell),
        NotHere(
            "there is no Node.js of version 20 or newer here, with npm: install it, on Debian 13 by \
             `apt-get install nodejs npm`"
                .into()
        )
    );
    Ok(())
}

fn is_recent(shell: &Shell) -> bool {
    let recent = "process.exit(Number(parseInt(process.versions.node) < 20))";
    succeeds(cmd!(shell, "node --eval {recent}")) && succeeds(cmd!(shell, "npm --version"))
}

/// Runs what a folder's `package.json` calls `test:browser`, if there is a browser.
pub(crate) fn run_in_browser(shell: &Shell, folder: &Path) -> Result<()> {
    match chromium(shell) {
        Ok(chromium) => {
            let _chromium = shell.push_env("CHROMIUM", chromium);
            run(shell, folder, "test:browser")
        }
        Err(why) => {
            println!("NOT RUN  {} in a browser: {why:#}", folder.display());
            Ok(())
        }
    }
}

/// Where Chromium is.
pub(crate) fn chromium(shell: &Shell) -> Result<PathBuf> {
    if let Some(named) = env::var_os("CHROMIUM") {
        return Ok(named.into());
    }
    if let Some(found) = find_chromium() {
        return Ok(found);
    }
    if !succeeds(cmd!(shell, "apt-get --version")) {
        bail!("there is no Chromium in PATH; `CHROMIUM` may name one");
    }
    let installed = cmd!(shell, "apt-get update --quiet")
        .run()
        .and_then(|()| cmd!(shell, "apt-get install --quiet --yes chromium").run());
    installed
        .context("there is no Chromium; `apt-get install chromium`, as root, would bring it")?;
    find_chromium().context("the package `chromium` brought no Chromium")
}

fn find_chromium() -> Option<PathBuf> {
    find(&["chromium", "chromium-browser", "google-chrome"])
}
