//! Installs npm's packages, and runs the tests in JavaScript that need them.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use xshell::{Shell, cmd};

use crate::NotHere;
use crate::programs::{apt, find, succeeds};
use crate::{component, project};

/// Runs the tests of `examples/javascript`: in Node.js, and in Chromium if it is there or this user can
/// install it.
///
/// Builds the files in that directory and in `examples/provider-javascript` that the tests
/// `host/tests/component_javascript*.rs` need: so `cargo test` comes after this step.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    ensure_recent(shell)?;
    if !component::directory().join("verrou.wasm").exists() {
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
    exports_a_store(&component::directory().join("provider-javascript.wasm"))?;
    run(shell, &provider, "transpile")
}

/// Installs the packages of the lock file in `directory`, without running their code, and returns `directory`.
pub(crate) fn install(shell: &Shell, directory: &Path) -> Result<PathBuf> {
    let lock_file = directory.join("package-lock.json");
    check_lock_file(&shell.read_file(&lock_file)?)
        .with_context(|| format!("refused the lock file {}", lock_file.display()))?;
    install_locked(shell, directory)?;
    Ok(directory.to_owned())
}

/// Returns the directory of the npm packages that `xtask/tools/{name}` lists, for the program `what`. Installs them
/// in `target/tools` first if needed.
pub(crate) fn tool(shell: &Shell, name: &str, what: &str) -> Result<PathBuf> {
    let packages = project().join("xtask/tools").join(name);
    let directory = project().join("target/tools").join(name);
    let (installed, wanted) = (
        directory.join("installed.json"),
        shell.read_file(packages.join("package-lock.json"))?,
    );
    if !shell
        .read_file(&installed)
        .is_ok_and(|installed| installed == wanted)
    {
        let npm = cmd!(shell, "npm --version").quiet().ignore_stdout();
        ensure!(
            npm.ignore_stderr().run().is_ok(),
            NotHere(format!("`npm` is not installed, which fetches {what}"))
        );
        shell.create_dir(&directory)?;
        for file in ["package.json", "package-lock.json"] {
            shell.copy_file(packages.join(file), directory.join(file))?;
        }
        install(shell, &directory)?;
        shell.write_file(installed, wanted)?;
    }
    Ok(directory.join("node_modules"))
}

fn install_locked(shell: &Shell, directory: &Path) -> Result<()> {
    let quietly = ["--no-audit", "--no-fund", "--loglevel=error"];
    cmd!(
        shell,
        "npm ci --ignore-scripts --prefer-offline {quietly...} --prefix {directory}"
    )
    .run()
    .with_context(|| format!("npm cannot install the packages of {}", directory.display()))
}

/// Checks that every package has a hash and comes from npm's registry: npm would also accept others.
fn check_lock_file(text: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct LockFile {
        packages: BTreeMap<String, Package>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Package {
        #[serde(default)]
        link: bool,
        integrity: Option<String>,
        resolved: Option<String>,
    }

    let LockFile { packages } = serde_json::from_str(text)?;
    for (path, package) in packages {
        // Links, and paths outside `node_modules`, are of this repository.
        if package.link || !path.contains("node_modules/") {
            continue;
        }
        ensure!(
            package
                .integrity
                .is_some_and(|hashes| hashes.split(' ').all(|hash| hash.starts_with("sha512-"))),
            "`{path}` has no SHA-512 hash"
        );
        if let Some(source) = package.resolved {
            ensure!(
                source.starts_with("https://registry.npmjs.org/"),
                "`{path}` comes from {source}, and not from npm's registry"
            );
        }
    }
    Ok(())
}

pub(crate) fn run(shell: &Shell, directory: &Path, script: &str) -> Result<()> {
    cmd!(shell, "npm run {script} --silent --prefix {directory}")
        .run()
        .with_context(|| format!("`npm run {script}` failed in {}", directory.display()))
}

fn exports_a_store(provider: &Path) -> Result<()> {
    let (_, exports) = component::interfaces(&fs::read(provider)?)?;
    ensure!(
        exports == ["verrou:lock/store@0.1.0"],
        "{} exports {exports:?}, but must export a store",
        provider.display()
    );
    println!("{}", component::describe(provider)?);
    Ok(())
}

pub(crate) fn ensure_recent(shell: &Shell) -> Result<()> {
    ensure!(
        is_recent(shell),
        NotHere(
            "Node.js 20 or newer, with npm, is not installed; on Debian 13: `apt-get install nodejs npm`"
                .into()
        )
    );
    Ok(())
}

fn is_recent(shell: &Shell) -> bool {
    let recent = "process.exit(Number(parseInt(process.versions.node) < 20))";
    succeeds(cmd!(shell, "node --eval {recent}")) && succeeds(cmd!(shell, "npm --version"))
}

/// Runs the script `test:browser` of `package.json` in `directory`, if there is a browser.
pub(crate) fn run_in_browser(shell: &Shell, directory: &Path) -> Result<()> {
    match chromium(shell) {
        Ok(chromium) => {
            let _chromium = shell.push_env("CHROMIUM", chromium);
            run(shell, directory, "test:browser")
        }
        Err(why) => {
            println!("NOT RUN  {} in a browser: {why:#}", directory.display());
            Ok(())
        }
    }
}

/// Finds the browser, which two steps need, or installs it.
pub(crate) fn find_browser(shell: &Shell) -> Result<()> {
    ensure_recent(shell)?;
    let found = chromium(shell).map_err(|why| NotHere(format!("{why:#}")))?;
    println!("{}", found.display());
    Ok(())
}

/// Returns the path of Chromium, and installs it first if needed.
pub(crate) fn chromium(shell: &Shell) -> Result<PathBuf> {
    if let Some(named) = env::var_os("CHROMIUM") {
        return Ok(named.into());
    }
    if let Some(found) = find_chromium() {
        return Ok(found);
    }
    if !succeeds(cmd!(shell, "apt-get --version")) {
        bail!("no Chromium in PATH; set `CHROMIUM` to its path");
    }
    let installed = apt(shell, &["update", "--quiet"])
        .run()
        .and_then(|()| apt(shell, &["install", "--quiet", "--yes", "chromium"]).run());
    installed.context("no Chromium in PATH; as root, run `apt-get install chromium`")?;
    find_chromium().context("the package `chromium` contains no Chromium")
}

fn find_chromium() -> Option<PathBuf> {
    find(&["chromium", "chromium-browser", "google-chrome"])
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn packages_without_hashes_and_from_elsewhere_are_refused() {
        let checked = |path: &str, package: &str| {
            check_lock_file(&format!(r#"{{"packages":{{"":{{}},"{path}":{package}}}}}"#))
                .map_err(|error| error.to_string())
        };
        let accepted = r#"{"integrity":"sha512-eA=="}"#;
        checked("node_modules/a", accepted).unwrap();
        checked("node_modules/a", r#"{"resolved":"../ours","link":true}"#).unwrap();
        checked("../ours", "{}").unwrap();

        for package in ["{}", r#"{"integrity":"sha1-eA=="}"#] {
            let error = checked("node_modules/a/node_modules/b", package).unwrap_err();
            assert!(error.contains("has no SHA-512 hash"), "{error}");
        }
        let git = r#"{"resolved":"git+ssh://git@example.org/a.git","integrity":"sha512-eA=="}"#;
        let error = checked("node_modules/a", git).unwrap_err();
        assert!(error.contains("not from npm's registry"), "{error}");
    }

    #[test]
    fn lock_files_are_accepted() {
        for directory in [
            "examples/javascript",
            "examples/node",
            "examples/provider-javascript",
            "host/benches/locks",
            "tests/js",
            "xtask/tools/binaryen",
            "xtask/tools/esbuild",
        ] {
            let lock_file = project().join(directory).join("package-lock.json");
            check_lock_file(&fs::read_to_string(lock_file).unwrap()).unwrap();
        }
    }

    #[test]
    fn changed_packages_are_refused_and_install_scripts_are_not_run() {
        let shell = Shell::new().unwrap();
        if !is_recent(&shell) {
            eprintln!("NOT RUN: Node.js 20 or newer is not installed");
            return;
        }
        let directory = TempDir::new().unwrap();
        shell.change_dir(directory.path());
        shell.set_var("npm_config_offline", "true");
        shell.set_var("npm_config_cache", directory.path().join("cache"));
        let script = directory.path().join("script-ran");
        shell
            .write_file(
                "package/package.json",
                format!(
                    r#"{{"name":"sample","version":"1.0.0","scripts":{{"install":"touch {}"}}}}"#,
                    script.display()
                ),
            )
            .unwrap();
        cmd!(shell, "npm pack ./package")
            .quiet()
            .ignore_stderr()
            .run()
            .unwrap();
        let manifest = r#"{"dependencies":{"sample":"file:../sample-1.0.0.tgz"}}"#;
        shell.write_file("user/package.json", manifest).unwrap();
        let user = directory.path().join("user");
        cmd!(shell, "npm install --package-lock-only --prefix {user}")
            .run()
            .unwrap();
        let installed = user.join("node_modules/sample/package.json");

        install_locked(&shell, &user).unwrap();
        assert!(installed.exists());
        assert!(!script.exists(), "the package's script has run");

        let lock_file = user.join("package-lock.json");
        let text = shell.read_file(&lock_file).unwrap();
        let (_, hash) = text.split_once("sha512-").unwrap();
        let (hash, _) = hash.split_once("==").unwrap();
        let other = text.replace(hash, &"A".repeat(hash.len()));
        shell.write_file(&lock_file, other).unwrap();
        shell.remove_path(user.join("node_modules")).unwrap();
        install_locked(&shell, &user).unwrap_err();
        assert!(!installed.exists());
    }
}
