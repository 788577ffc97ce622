//! Python with the package `wasmtime`, and the tests that need it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::NotHere;
use crate::programs::succeeds;
use crate::{component, project};

/// The version that the examples' README names.
const WASMTIME: &str = "50.0.1";

/// Runs the tests of `examples/python`, which start the command that is built with the tests.
///
/// Afterwards `VERROU_PYTHON` is set for the shell's commands, as `host/tests/component_python.rs`
/// needs it: so `cargo test` comes after this. It is set as soon as there is an interpreter, even
/// if tests fail.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    let python = interpreter(shell, "python", &[format!("wasmtime=={WASMTIME}")])?;
    shell.set_var("VERROU_PYTHON", &python);
    if !component::folder().join("verrou.wasm").exists() {
        component::build(shell)?;
    }
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

/// An interpreter that has `packages`, each `name==version`, in `target/tools` and the folder `name`.
pub(crate) fn interpreter(shell: &Shell, name: &str, packages: &[String]) -> Result<PathBuf> {
    let folder = project().join("target/tools").join(name);
    let python = folder.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let (list, has) = (folder.join("packages.txt"), packages.join("\n"));
    if shell.read_file(&list).is_ok_and(|list| list == has)
        && succeeds(cmd!(shell, "{python} --version"))
    {
        return Ok(python);
    }
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
    cmd!(
        shell,
        "{python} -m pip install --quiet --disable-pip-version-check {packages...}"
    )
    .run()
    .with_context(|| format!("pip could not install {}", packages.join(", ")))?;
    shell.write_file(list, has)?;
    Ok(python)
}
