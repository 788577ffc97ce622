//! Builds the npm package in `target/js` from the core and `src/js/package/`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use wasm_bindgen_cli_support::Bindgen;
use xshell::{Shell, cmd};

use crate::wasm::Toolchain;
use crate::{component, javascript, project};

/// Returns the directory of the built package.
pub(crate) fn directory() -> PathBuf {
    project().join("target/js")
}

/// Builds the package, and prints the core's size.
pub(crate) fn build(shell: &Shell) -> Result<PathBuf> {
    let toolchain = Toolchain::find(shell)?;
    println!("building with {} compiler", toolchain.name());
    let features = ["--no-default-features", "--features", "js"];
    let module = toolchain.build(shell, "verrou", &features)?;

    let package = directory();
    shell.remove_path(&package)?;
    let core = package.join("core");
    shell.create_dir(&core)?;
    // The bindings for browsers; in Node.js the package passes them the module's bytes.
    Bindgen::new()
        .input_path(&module)
        .out_name("verrou")
        .web(true)?
        .typescript(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(&core)?;
    use_own_microtasks(&core.join("verrou.js"))?;
    let bound = core.join("verrou_bg.wasm");
    let optimize = component::optimizer(shell)?;
    cmd!(
        shell,
        "{optimize} --gufa -Oz --converge --strip-debug --strip-producers --strip-target-features {bound} --output {bound}"
    )
    .quiet()
    .run()?;
    copy(&project().join("src/js/package"), &package)?;
    for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
        shell.copy_file(project().join(licence), &package)?;
    }

    let bytes = fs::read(&bound)?;
    // Inline, because a bundler for Node.js moves the modules, but not the file beside them.
    let text = BASE64_STANDARD.encode(&bytes);
    fs::write(
        core.join("bytes.js"),
        format!("export const base64 = '{text}';\n"),
    )?;
    convert_to_commonjs(shell, &package)?;
    println!(
        "{}: core {} bytes, {} gzipped",
        package.display(),
        bytes.len(),
        component::gzipped(&bytes)?
    );
    Ok(package)
}

/// Makes the bindings in the file `bindings` call the `queueMicrotask` of the package: fake timers replace the
/// runtime's.
fn use_own_microtasks(bindings: &Path) -> Result<()> {
    let text = fs::read_to_string(bindings)?;
    ensure!(
        text.contains(" queueMicrotask("),
        "the core's bindings do not call `queueMicrotask` any more; see `microtask.js` of the package"
    );
    let import = "import { queueMicrotask } from '../microtask.js';\n";
    fs::write(bindings, format!("{import}{text}"))?;
    Ok(())
}

/// Writes the modules of `package` as `CommonJS` to its directory `cjs`, with their types.
fn convert_to_commonjs(shell: &Shell, package: &Path) -> Result<()> {
    let tool = javascript::tool(shell, "esbuild", "the converter `esbuild`")?;
    let esbuild = tool.join("esbuild/bin/esbuild");
    let _directory = shell.push_dir(package);
    let mut modules = Vec::new();
    let mut types = Vec::new();
    for path in files_in(package)? {
        let relative = path.strip_prefix(package)?.to_owned();
        match path.to_string_lossy() {
            // Loads the core asynchronously, which CommonJS cannot do.
            name if name.ends_with("browser.js") => {}
            name if name.ends_with(".js") => modules.push(relative),
            name if name.ends_with(".d.ts") => types.push(relative),
            _ => {}
        }
    }
    cmd!(
        shell,
        "node {esbuild} {modules...} --format=cjs --platform=node --target=node20 --outdir=cjs --outbase=. --log-level=warning"
    )
    .quiet()
    .run()?;
    // In CommonJS the package's own name may be the other form of its modules.
    let stores = package.join("cjs/compat/stores.js");
    let text = fs::read_to_string(&stores)?;
    let own = "require(\"verrou-wasm\")";
    ensure!(
        text.contains(own),
        "`compat/stores.js` does not load the core"
    );
    fs::write(&stores, text.replace(own, "require(\"../node.js\")"))?;
    for path in types {
        shell.copy_file(&path, Path::new("cjs").join(&path))?;
    }
    shell.write_file("cjs/package.json", "{ \"type\": \"commonjs\" }\n")?;
    Ok(())
}

/// Returns the files in `directory` and in its subdirectories, in order.
fn files_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_in(&path)?);
        } else {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Builds the package and runs its tests: in Node.js, packed and installed, together with the locks of
/// this machine, whose programs must have been built, and in a browser if there is one.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    javascript::ensure_recent(shell)?;
    build(shell)?;
    let tests = javascript::install(shell, &project().join("tests/js"))?;
    shell.remove_path(report())?;
    let command = project().join("target/debug/verrou");
    let _command = shell.push_env("VERROU_COMMAND", command);
    javascript::run(shell, &tests, "test")
        .and_then(|()| javascript::run_in_browser(shell, &tests))
        .map_err(|err| match failing() {
            Some(failing) => err.context(failing),
            None => err,
        })
}

/// Returns the path of the last tests' report, which `tests/js/package.json` names, too.
fn report() -> PathBuf {
    project().join("target/js-tests.txt")
}

/// Returns the list of failed tests at the end of the last report.
fn failing() -> Option<String> {
    let report = fs::read_to_string(report()).ok()?;
    let (_, failing) = report.split_once("failing tests:")?;
    Some(failing.trim().to_owned())
}

/// Measures the package beside its peers.
pub(crate) fn bench(shell: &Shell) -> Result<()> {
    javascript::ensure_recent(shell)?;
    build(shell)?;
    let tests = javascript::install(shell, &project().join("tests/js"))?;
    let chromium = javascript::chromium(shell).ok();
    let _chromium = chromium.map(|path| shell.push_env("CHROMIUM", path));
    javascript::run(shell, &tests, "bench")
}

/// Copies the contents of `from`, with its subdirectories, to `to`.
fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}
