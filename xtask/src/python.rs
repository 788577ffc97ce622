//! Python with the package `wasmtime`, and the tests that need it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use xshell::{Cmd, Shell, cmd};

use crate::NotHere;
use crate::{component, project};

/// The version that the examples' README names.
const WASMTIME: &str = "50.0.1";

/// Runs the tests of `examples/python`.
///
/// Afterwards `VERROU_PYTHON` is set for the shell's commands, as `host/tests/component_python.rs`
/// needs it: so `cargo test` comes after this. It is set as soon as there is an interpreter, even
/// if tests fail.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    let python = interpreter(shell)?;
    shell.set_var("VERROU_PYTHON", &python);
    if !component::folder().join("verrou.wasm").exists() {
        component::build(shell)?;
    }
    cmd!(
        shell,
        "cargo build --package verrou-host --bin verrou --locked"
    )
    .run()?;
    let verrou = project().join("target/debug/verrou");
    let example = project().join("examples/python/example.py");
    cmd!(shell, "{python} {example}").run()?;
    let tests = project().join("examples/python");
    // What is not closed is a mistake, and folders of examples stay as they are.
    let options = [
        "-B",
        "-W",
        "error::ResourceWarning",
        "-m",
        "unittest",
        "discover",
    ];
    cmd!(shell, "{python} {options...} --start-directory {tests}")
        .env("VERROU", verrou)
        .run()
        .context("the tests of examples/python failed")
}

/// An interpreter that has the package, in `target/tools/python`.
fn interpreter(shell: &Shell) -> Result<PathBuf> {
    let folder = project().join("target/tools/python");
    let python = folder.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    if !has_package(shell, &python) {
        let system = "python3";
        let recent = "import sys; sys.exit(sys.version_info < (3, 11))";
        ensure!(
            succeeds(cmd!(shell, "{system} -c {recent}")),
            NotHere(
                "there is no `python3` of version 3.11 or newer here: install it, on Debian by \
                 `apt-get install python3 python3-venv`"
                    .into()
            )
        );
        cmd!(shell, "{system} -m venv --clear {folder}")
            .run()
            .context("Python makes no virtual environment: on Debian, install `python3-venv`")?;
        let package = format!("wasmtime=={WASMTIME}");
        cmd!(
            shell,
            "{python} -m pip install --quiet --disable-pip-version-check {package}"
        )
        .run()
        .context("pip could not install the package `wasmtime`")?;
    }
    Ok(python)
}

fn has_package(shell: &Shell, python: &PathBuf) -> bool {
    let check = format!(
        "import sys, wasmtime.component, importlib.metadata as packages; \
         sys.exit(packages.version('wasmtime') != '{WASMTIME}')"
    );
    python.exists() && succeeds(cmd!(shell, "{python} -c {check}"))
}

fn succeeds(command: Cmd<'_>) -> bool {
    let command = command.quiet().ignore_stdout().ignore_stderr();
    command.run().is_ok()
}
