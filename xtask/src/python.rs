//! Builds the Python package, installs packages, and runs the tests in Python.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use xshell::{Shell, cmd};

use crate::NotHere;
use crate::programs::succeeds;
use crate::{component, compose, guest, project};

/// The components that the package contains: the one with the store as an import, and the one with the store of
/// `examples/provider-filesystem` inside.
const COMPONENTS: [&str; 2] = ["verrou.wasm", "locks-over-filesystem.wasm"];

/// Returns the directory of the package's source.
fn source() -> PathBuf {
    project().join("host/python")
}

/// Returns the directory of the built package.
fn directory() -> PathBuf {
    project().join("target/python")
}

fn requirements() -> PathBuf {
    source().join("requirements.txt")
}

/// Builds the components and, with their bytes, the package in `target/python`.
pub(crate) fn build(shell: &Shell) -> Result<()> {
    component::build(shell)?;
    guest::build(shell, guest::PROVIDER)?;
    compose_components(shell)?;
    build_wheel(shell)?;
    Ok(())
}

/// Builds the wheel from the components that are built already, and returns its path.
fn build_wheel(shell: &Shell) -> Result<PathBuf> {
    let python = interpreter(shell, "python", &requirements())?;
    let package = directory().join("package");
    shell.remove_path(&package)?;
    shell.create_dir(&package)?;
    let files = |tree: PathBuf, names: &[&str]| -> Result<()> {
        for name in names {
            shell.copy_file(tree.join(name), &package)?;
        }
        Ok(())
    };
    files(source(), &["pyproject.toml", "README.md"])?;
    files(project(), &["LICENSE-APACHE", "LICENSE-MIT"])?;
    let module = package.join("src/verrou");
    shell.create_dir(&module)?;
    for path in shell.read_dir(source().join("src/verrou"))? {
        if path.is_file() {
            shell.copy_file(path, &module)?;
        }
    }
    for name in COMPONENTS {
        shell.copy_file(component::directory().join(name), &module)?;
    }
    let wheel = directory().join(format!("verrou-{VERSION}-py3-none-any.whl"));
    shell.remove_path(&wheel)?;
    let output = directory();
    // Without the time of its files, the wheel is the same at every build.
    cmd!(
        shell,
        "{python} -m flit_core.wheel {package} --outdir {output}"
    )
    .env("SOURCE_DATE_EPOCH", "315532800")
    .quiet()
    .ignore_stdout()
    .run()
    .context("the wheel cannot be built")?;
    let size = fs::metadata(&wheel).with_context(|| {
        format!("host/python/pyproject.toml has another version than Cargo.toml, {VERSION}")
    })?;
    println!("{}: {} bytes", wheel.display(), size.len());
    Ok(wheel)
}

/// The version of the workspace.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Composes the second of [`COMPONENTS`]; builds its parts if they are missing.
fn compose_components(shell: &Shell) -> Result<()> {
    let built = |name| component::directory().join(name).display().to_string();
    let (provider, output) = (
        built("provider-filesystem.wasm"),
        built("locks-over-filesystem.wasm"),
    );
    if !Path::new(&provider).exists() {
        guest::build(shell, guest::PROVIDER)?;
    }
    compose::compose(shell, &["--store", &provider, "--output", &output])
}

/// Builds the package twice, and runs its tests and its example with the command that is built with the tests.
///
/// Sets `VERROU_PYTHON` for the shell's commands, which `host/tests/component_python.rs` needs: so
/// `cargo test` comes after this step. The variable is set as soon as the package is installed, even
/// if tests fail.
pub(crate) fn test(shell: &Shell) -> Result<()> {
    compose_components(shell)?;
    let wheel = build_wheel(shell)?;
    let bytes = fs::read(&wheel)?;
    build_wheel(shell)?;
    ensure!(
        fs::read(&wheel)? == bytes,
        "two builds of {} differ: the build is not reproducible",
        wheel.display()
    );
    let python = interpreter(shell, "python", &requirements())?;
    let again = ["--force-reinstall", "--no-deps", "--no-index"];
    cmd!(
        shell,
        "{python} -m pip install {QUIETLY...} {again...} {wheel}"
    )
    .run()?;
    shell.set_var("VERROU_PYTHON", &python);
    test_installation(shell, &python, &wheel)?;
    let verrou = project().join("target/debug/verrou");
    let example = project().join("examples/python/example.py");
    cmd!(shell, "{python} {example}").run()?;
    let tests = source().join("tests");
    // A resource that is not closed is an error, and no byte code is written into the sources.
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
        .context("the tests of host/python failed")
}

/// Installs the wheel with the packages that it names into an empty environment, and uses it in an empty directory.
fn test_installation(shell: &Shell, python: &Path, wheel: &Path) -> Result<()> {
    let directory = TempDir::new()?;
    let (packages, environment, empty) = (
        directory.path().join("packages"),
        directory.path().join("environment"),
        directory.path().join("empty"),
    );
    let requirements = requirements();
    cmd!(
        shell,
        "{python} -m pip download {CHECKED...} {QUIETLY...} --requirement {requirements} --dest {packages}"
    )
    .run()?;
    cmd!(shell, "{python} -m venv {environment}").run()?;
    let python = environment.join(EXECUTABLE);
    // pip installs the packages that the wheel needs, and no others: of those above, whose hashes have been checked.
    let sources = ["--no-index", "--find-links"];
    cmd!(
        shell,
        "{python} -m pip install {QUIETLY...} {sources...} {packages} {wheel}"
    )
    .run()?;
    let script = source().join("tests/installed.py");
    shell.create_dir(&empty)?;
    let _directory = shell.push_dir(&empty);
    // Isolated: no variable and no directory adds a module.
    cmd!(shell, "{python} -I {script} {VERSION}")
        .run()
        .context("the installed package does not work")
}

/// The path of the interpreter in a virtual environment.
const EXECUTABLE: &str = if cfg!(windows) {
    "Scripts/python.exe"
} else {
    "bin/python"
};

/// The options with which pip refuses a file without a listed hash, and a package that it would have to build.
const CHECKED: [&str; 2] = ["--require-hashes", "--only-binary=:all:"];
const QUIETLY: [&str; 2] = ["--quiet", "--disable-pip-version-check"];

/// Returns an interpreter in `target/tools/NAME` with the packages that the file `requirements` lists.
pub(crate) fn interpreter(shell: &Shell, name: &str, requirements: &Path) -> Result<PathBuf> {
    let directory = project().join("target/tools").join(name);
    let python = directory.join(EXECUTABLE);
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
    cmd!(
        shell,
        "{python} -m pip install {CHECKED...} {QUIETLY...} --requirement {requirements}"
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
