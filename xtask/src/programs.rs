//! Finds, and unpacks, the programs that the checks and the benchmarks start.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Cmd, Shell, cmd};

use crate::project;

/// Runs `command` without its output. Returns whether it succeeded.
pub(crate) fn succeeds(command: Cmd<'_>) -> bool {
    let command = command.quiet().ignore_stdout().ignore_stderr();
    command.run().is_ok()
}

/// Returns `apt-get` with `arguments`. It refuses packages without a repository's signature, even if the
/// machine's settings allow them; a source that is marked `trusted=yes` remains an exception.
pub(crate) fn apt<'a>(shell: &'a Shell, arguments: &[&str]) -> Cmd<'a> {
    const SIGNED: [&str; 4] = [
        "--option=APT::Get::AllowUnauthenticated=false",
        "--option=Acquire::AllowInsecureRepositories=false",
        "--option=Acquire::AllowWeakRepositories=false",
        "--option=Acquire::AllowDowngradeToInsecureRepositories=false",
    ];
    cmd!(shell, "apt-get {arguments...} {SIGNED...}")
}

/// Returns the path of the first program in `PATH` with one of these `names`.
pub(crate) fn find(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .flat_map(|directory| names.iter().map(move |name| directory.join(name)))
        .find(|program| program.exists())
}

/// Returns the path of the program `name`: in `PATH`, or else unpacked from Debian's `package`. Unpacking
/// needs no root, and starts no server, unlike an installation.
pub(crate) fn find_or_unpack(shell: &Shell, name: &str, package: &str) -> Result<PathBuf> {
    let installed = || in_package(shell, Path::new("/"), name).ok();
    if let Some(found) = find(&[name]).or_else(installed) {
        return Ok(found);
    }
    let tools = project().join("target/tools/debian");
    let (program, directory) = (tools.join("bin").join(name), tools.join(package));
    if !program.exists() {
        unpack(shell, package, &directory).with_context(|| {
            format!("no `{name}` in PATH, and cannot unpack Debian's `{package}`")
        })?;
        let unpacked = in_package(shell, &directory, name)?;
        shell.create_dir(tools.join("bin"))?;
        let libraries = libraries(shell, &directory)?;
        if libraries.is_empty() {
            cmd!(shell, "ln --symbolic {unpacked} {program}").run()?;
        } else {
            let script = format!(
                "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
                libraries.join(":"),
                unpacked.display()
            );
            shell.write_file(&program, script)?;
            cmd!(shell, "chmod +x {program}").run()?;
        }
    }
    Ok(program)
}

/// Returns the path of the program `name` of a package that was unpacked into `directory`. `PostgreSQL` has a
/// directory for each of its versions.
fn in_package(shell: &Shell, directory: &Path, name: &str) -> Result<PathBuf> {
    let mut directories = Vec::new();
    let versions = directory.join("usr/lib/postgresql");
    if versions.exists() {
        let versions = shell.read_dir(versions)?;
        directories.extend(versions.into_iter().map(|version| version.join("bin")));
    }
    directories.extend(["usr/bin", "usr/sbin"].map(|bin| directory.join(bin)));
    let mut programs = directories.iter().map(|directory| directory.join(name));
    programs
        .find(|program| program.exists())
        .with_context(|| format!("Debian's package contains no `{name}`"))
}

/// Unpacks `package`, and its dependencies that are not installed, into `directory`.
fn unpack(shell: &Shell, package: &str, directory: &Path) -> Result<()> {
    let wanted = || {
        let options = [
            "--print-uris",
            "--quiet=2",
            "--yes",
            "--no-install-recommends",
        ];
        let list = apt(shell, &["install"]).args(options).arg(package);
        list.quiet().ignore_stderr().read()
    };
    let list = wanted().or_else(|_| {
        // apt may have no list of packages yet.
        apt(shell, &["update", "--quiet=2"]).run()?;
        wanted()
    })?;
    // Each line has an address, and a name of the form `package_version_machine.deb`.
    let packages = list.lines().filter_map(|line| {
        let archive = line.split_whitespace().nth(1)?;
        archive.split_once('_').map(|(package, _)| package)
    });
    // An interrupted run may have left archives that apt has not checked.
    shell.remove_path(directory)?;
    let archives = directory.join("archives");
    shell.create_dir(&archives)?;
    let _there = shell.push_dir(&archives);
    apt(shell, &["download", "--quiet=2"])
        .args(packages)
        .run()?;
    for archive in shell.read_dir(&archives)? {
        cmd!(shell, "dpkg-deb --extract {archive} {directory}").run()?;
    }
    Ok(())
}

/// Returns the directories of libraries of the packages that were unpacked into `directory`.
fn libraries(shell: &Shell, directory: &Path) -> Result<Vec<String>> {
    let all = directory.join("usr/lib");
    if !all.exists() {
        return Ok(Vec::new());
    }
    let directories = shell.read_dir(all)?;
    let names = directories
        .iter()
        .map(|directory| directory.display().to_string());
    Ok(names.filter(|name| name.ends_with("-linux-gnu")).collect())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// Creates a repository with one package and no signature.
    fn unsigned_repository(shell: &Shell) -> TempDir {
        let directory = TempDir::new().unwrap();
        let root = directory.path().display();
        shell.change_dir(directory.path());
        for place in ["state/lists/partial", "cache/archives/partial", "here"] {
            shell.create_dir(place).unwrap();
        }
        shell.write_file("status", "").unwrap();
        shell
            .write_file("repository/sample_1_all.deb", "sample\n")
            .unwrap();
        let hash = cmd!(shell, "sha256sum repository/sample_1_all.deb")
            .read()
            .unwrap();
        let hash = hash.split(' ').next().unwrap();
        shell
            .write_file(
                "repository/Packages",
                format!(
                    "Package: sample\nVersion: 1\nArchitecture: all\nMaintainer: x\n\
                     Filename: ./sample_1_all.deb\nSize: 7\nSHA256: {hash}\nDescription: x\n"
                ),
            )
            .unwrap();
        let source = format!("deb file:{root}/repository ./\n");
        shell.write_file("sources.list", source).unwrap();
        shell
            .write_file(
                "apt.conf",
                format!(
                    "Dir::Etc::SourceList \"{root}/sources.list\";\n\
                     Dir::Etc::SourceParts \"/dev/null\";\n\
                     Dir::State \"{root}/state\";\n\
                     Dir::State::status \"{root}/status\";\n\
                     Dir::Cache \"{root}/cache\";\n\
                     APT::Sandbox::User \"root\";\n\
                     APT::Get::AllowUnauthenticated \"true\";\n\
                     Acquire::AllowInsecureRepositories \"true\";\n"
                ),
            )
            .unwrap();
        shell.set_var("APT_CONFIG", directory.path().join("apt.conf"));
        directory
    }

    #[test]
    fn unsigned_debian_packages_are_refused() {
        let shell = Shell::new().unwrap();
        if !succeeds(cmd!(shell, "apt-get --version")) {
            eprintln!("NOT RUN: `apt-get` is not installed");
            return;
        }
        let directory = unsigned_repository(&shell);
        shell.change_dir(directory.path().join("here"));
        let archive = directory.path().join("here/sample_1_all.deb");

        assert!(!succeeds(apt(&shell, &["update"])));
        // This machine's settings would allow it.
        assert!(succeeds(cmd!(shell, "apt-get update")));
        assert!(!succeeds(apt(&shell, &["download", "sample"])));
        assert!(!archive.exists());
        assert!(succeeds(cmd!(shell, "apt-get download sample")));
        assert!(archive.exists());
    }
}
