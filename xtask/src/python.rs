//! Installs Python packages, and runs the tests in Python that need them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use xshell::{Shell, cmd};

use crate::NotHere;
use crate::programs::succeeds;
use crate::{component, compose, guest, project};

/// Runs the tests of `examples/python`, which start the command that is built with the tests.
///
/// Sets `VERROU_PYTHON` for the shell's commands, which `host/tests/component_python.rs` needs: so
/// `cargo test` comes after this step. The variable is set as soon as there is an interpreter, even
/// if tests fail.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    let requirements = project().join("examples/python/requirements.txt");
    let python = interpreter(shell, "python", &requirements)?;
    shell.set_var("VERROU_PYTHON", &python);
    if !component::directory().join("verrou.wasm").exists() {
        component::build(shell)?;
    }
    compose_locks_in_directories(shell)?;
    let verrou = project().join("target/debug/verrou");
    let example = project().join("examples/python/example.py");
    cmd!(shell, "{python} {example}").run()?;
    let tests = project().join("examples/python");
    // A resource that is not closed is an error, and no byte code is written into the examples.
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

/// Composes the component that `examples/python/directory_locks.py` runs.
fn compose_locks_in_directories(shell: &Shell) -> Result<()> {
    let composed = |name| component::directory().join(name).display().to_string();
    let (provider, output) = (
        composed("provider-filesystem.wasm"),
        composed("locks-over-filesystem.wasm"),
    );
    if !Path::new(&provider).exists() {
        guest::build(shell, guest::PROVIDER)?;
    }
    compose::compose(shell, &["--store", &provider, "--output", &output])
}

/// Returns an interpreter in `target/tools/NAME` with the packages that the file `requirements` lists.
pub(crate) fn interpreter(shell: &Shell, name: &str, requirements: &Path) -> Result<PathBuf> {
    let directory = project().join("target/tools").join(name);
    let python = directory.join(if cfg!(windows) {
        "Scripts/python.exe"
    } else {
        "bin/python"
    });
    let (installed, wanted) = (
        directory.join("requirements.txt"),
        shell.read_file(requirements)?,
    );
    if shell
        .read_file(&installed)
        .is_ok_and(|installed| installed == wanted)
        && succeeds(cmd!(shell, "{python} --version"))
    {
        return Ok(python);
    }
    let system = "python3";
    let recent = "import sys; sys.exit(sys.version_info < (3, 11))";
    ensure!(
        succeeds(cmd!(shell, "{system} -c {recent}")),
        NotHere(
            "`python3`, version 3.11 or newer, is not installed; on Debian: `apt-get install python3 \
             python3-venv`"
                .into()
        )
    );
    cmd!(shell, "{system} -m venv --clear {directory}")
        .run()
        .context("Python cannot create a virtual environment; on Debian, install `python3-venv`")?;
    install(shell, &python, requirements)?;
    shell.write_file(installed, wanted)?;
    Ok(python)
}

/// Installs the packages that the file `requirements` lists, each with its version and hashes.
///
/// pip refuses a file with another hash, and a package that the list lacks. Only wheels are installed:
/// building a package would run its code.
fn install(shell: &Shell, python: &Path, requirements: &Path) -> Result<()> {
    let checked = ["--require-hashes", "--only-binary=:all:"];
    let quietly = ["--quiet", "--disable-pip-version-check"];
    cmd!(
        shell,
        "{python} -m pip install {checked...} {quietly...} --requirement {requirements}"
    )
    .run()
    .with_context(|| {
        format!(
            "pip cannot install the packages of {}",
            requirements.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Creates the wheels `sample` and `needy`, which needs `sample`, and the source package `scripted`, whose
    /// `setup.py` writes a file. Prints their hashes.
    const PACKAGES: &str = r#"
import hashlib, io, tarfile, zipfile

def wheel(name, needs):
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{needs}"
    with zipfile.ZipFile(f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{name}.py", "")
        file.writestr(f"{info}/METADATA", metadata)
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return file.filename

def source(name):
    script = f"open({(name + '-ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name={name!r}, version='1.0')\n"
    with tarfile.open(f"{name}-1.0.tar.gz", "w:gz") as file:
        entry = tarfile.TarInfo(f"{name}-1.0/setup.py")
        entry.size = len(script)
        file.addfile(entry, io.BytesIO(script.encode()))
    return f"{name}-1.0.tar.gz"

for file in wheel("sample", ""), wheel("needy", "Requires-Dist: sample\n"), source("scripted"):
    print(hashlib.sha256(open(file, "rb").read()).hexdigest())
"#;

    #[test]
    fn only_wheels_with_the_listed_hashes_are_installed() {
        let shell = Shell::new().unwrap();
        if !succeeds(cmd!(shell, "python3 --version")) {
            eprintln!("NOT RUN: `python3` is not installed");
            return;
        }
        let directory = TempDir::new().unwrap();
        shell.change_dir(directory.path());
        let hashes = cmd!(shell, "python3 -c {PACKAGES}").read().unwrap();
        let [sample, needy, scripted] = hashes.lines().collect::<Vec<_>>()[..] else {
            panic!("{hashes}");
        };
        cmd!(shell, "python3 -m venv venv").run().unwrap();
        let python = directory.path().join("venv/bin/python");
        shell.set_var("PIP_NO_INDEX", "1");
        shell.set_var("PIP_FIND_LINKS", directory.path());
        let requirements = directory.path().join("requirements.txt");
        let installed = |list: &str| {
            shell.write_file(&requirements, list).unwrap();
            install(&shell, &python, &requirements).is_ok()
        };
        let has = |package: &str| succeeds(cmd!(shell, "{python} -c {package}"));

        let other = "0".repeat(64);
        assert!(!installed(&format!("sample==1.0 --hash=sha256:{other}")));
        assert!(!installed("sample==1.0"));
        assert!(!installed(&format!("needy==1.0 --hash=sha256:{needy}")));
        assert!(!has("import sample") && !has("import needy"));
        assert!(!installed(&format!(
            "scripted==1.0 --hash=sha256:{scripted}"
        )));
        assert!(!directory.path().join("scripted-ran").exists());

        assert!(installed(&format!(
            "needy==1.0 --hash=sha256:{needy}\nsample==1.0 --hash=sha256:{sample}"
        )));
        assert!(has("import sample, needy"));
    }
}
