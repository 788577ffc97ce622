//! Builds for `wasm32-unknown-unknown`, with the first toolchain of this machine that supports it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::programs::{apt, succeeds};
use crate::project;

const TARGET: &str = "wasm32-unknown-unknown";

/// A compiler that builds for WebAssembly.
pub(crate) enum Toolchain {
    /// The compiler in use, with the target's libraries from rustup.
    Rustup,
    /// Debian's compiler, with the sources of those libraries, and a linker.
    Debian { linker: PathBuf },
}

impl Toolchain {
    /// Returns the first toolchain that works, and installs missing parts if this user may do so.
    /// `VERROU_TOOLCHAIN=debian` skips rustup's.
    pub(crate) fn find(shell: &Shell) -> Result<Self> {
        let wanted = env::var("VERROU_TOOLCHAIN").ok();
        if wanted.as_deref() != Some("debian") && (has_target(shell) || add_target(shell)) {
            return Ok(Self::Rustup);
        }
        if !has_debian(shell) {
            install_debian(shell).with_context(|| {
                format!(
                    "Rust for {TARGET} is not installed: run `rustup target add {TARGET}` or, on Debian 12, \
                     `apt-get install rustc-web cargo-web rust-web-src`"
                )
            })?;
        }
        Ok(Self::Debian {
            linker: linker(shell)?,
        })
    }

    /// Returns the toolchain's name for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rustup => "rustup's",
            Self::Debian { .. } => "Debian's",
        }
    }

    /// Returns the toolchain's name and the version of its compiler.
    pub(crate) fn compiler(&self, shell: &Shell) -> Result<String> {
        let compiler = match self {
            Self::Rustup => "rustc",
            Self::Debian { .. } => "/usr/bin/rustc",
        };
        let version = cmd!(shell, "{compiler} --version").quiet().read()?;
        Ok(format!("{} {version}", self.name()))
    }

    /// Returns the directory of the toolchain's builds: two compilers must not share one.
    fn directory(&self) -> PathBuf {
        let compiler = match self {
            Self::Rustup => "rustup",
            Self::Debian { .. } => "debian",
        };
        project().join("target/wasm").join(compiler)
    }

    /// Builds `package`'s library by `cargo rustc` with `arguments`, as a module for a component. Returns
    /// the module's path.
    pub(crate) fn build(
        &self,
        shell: &Shell,
        package: &str,
        arguments: &[&str],
    ) -> Result<PathBuf> {
        let flags = [
            // The default, a megabyte of stack, would take sixteen more pages of each instance.
            "-Clink-arg=-zstack-size=65536",
            // The bytes must not depend on the directory of the build.
            &format!("--remap-path-prefix={}=.", project().display()),
            &format!("--remap-path-prefix={}=cargo", cargo_home()?.display()),
        ]
        .join("\x1f");
        let fixed = [
            "--package",
            package,
            "--lib",
            "--crate-type",
            "cdylib",
            "--profile",
            "component",
            "--target",
            TARGET,
            "--locked",
        ];
        let arguments = fixed.iter().chain(arguments);
        let command = match self {
            Self::Rustup => cmd!(shell, "cargo rustc {arguments...}"),
            Self::Debian { linker } => cmd!(
                shell,
                "/usr/bin/cargo rustc -Zbuild-std=std,panic_abort {arguments...}"
            )
            .env("RUSTC", "/usr/bin/rustc")
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker)
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("RUSTC_WRAPPER"),
        };
        command
            .env("CARGO_TARGET_DIR", self.directory())
            .env("CARGO_ENCODED_RUSTFLAGS", flags)
            .run()?;
        let module = format!("{}.wasm", package.replace('-', "_"));
        Ok(self.directory().join(TARGET).join("component").join(module))
    }

    /// Removes the build of `package`, but not of its dependencies, by `cargo clean` with `arguments`.
    pub(crate) fn clean(&self, shell: &Shell, package: &str, arguments: &[&str]) -> Result<()> {
        let fixed = [
            "--package",
            package,
            "--target",
            TARGET,
            "--profile",
            "component",
        ];
        let arguments = fixed.iter().chain(arguments);
        cmd!(shell, "cargo clean {arguments...}")
            .env("CARGO_TARGET_DIR", self.directory())
            .run()?;
        Ok(())
    }
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home =
        env::home_dir().context("cannot find cargo's home: neither CARGO_HOME nor HOME is set")?;
    Ok(home.join(".cargo"))
}

/// Returns whether the compiler in use has the target's libraries.
fn has_target(shell: &Shell) -> bool {
    let libraries = cmd!(shell, "rustc --print target-libdir --target {TARGET}");
    let libraries = libraries.quiet().ignore_stderr().read();
    libraries.is_ok_and(|directory| Path::new(&directory).exists())
}

fn add_target(shell: &Shell) -> bool {
    succeeds(cmd!(shell, "rustup --version"))
        && cmd!(shell, "rustup target add {TARGET}").run().is_ok()
        && has_target(shell)
}

fn has_debian(shell: &Shell) -> bool {
    let sources = cmd!(shell, "/usr/bin/rustc --print sysroot");
    let sources = sources.quiet().ignore_stderr().read();
    sources.is_ok_and(|root| {
        let std = "lib/rustlib/src/rust/library/std/Cargo.toml";
        Path::new(&root).join(std).exists()
    }) && succeeds(cmd!(shell, "/usr/bin/cargo --version"))
}

fn install_debian(shell: &Shell) -> Result<()> {
    if !succeeds(cmd!(shell, "apt-get --version")) {
        bail!("this is not Debian");
    }
    apt(shell, &["update", "--quiet"]).run()?;
    let install = apt(shell, &["install", "--quiet", "--yes"]);
    install
        .args(["rustc-web", "cargo-web", "rust-web-src"])
        .run()?;
    if has_debian(shell) {
        Ok(())
    } else {
        bail!("Debian's packages contain no compiler with sources")
    }
}

/// Returns the linker of rustup's compiler, or else Debian's `wasm-ld-22`, which is installed if needed.
fn linker(shell: &Shell) -> Result<PathBuf> {
    if let Ok(directory) = cmd!(shell, "rustc --print target-libdir").quiet().read() {
        let linker = Path::new(&directory).with_file_name("bin").join("rust-lld");
        if linker.exists() {
            return Ok(linker);
        }
    }
    let linker = PathBuf::from("/usr/bin/wasm-ld-22");
    if !linker.exists() {
        apt(shell, &["install", "--quiet", "--yes", "lld-22"]).run()?;
    }
    Ok(linker)
}
