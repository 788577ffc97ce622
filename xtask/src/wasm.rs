//! Rust for `wasm32-unknown-unknown`, by whichever toolchain of this machine can.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use xshell::{Shell, cmd};

use crate::programs::{apt, succeeds};
use crate::project;

const TARGET: &str = "wasm32-unknown-unknown";

/// A compiler that builds for WebAssembly.
pub(crate) enum Toolchain {
    /// The one in use, with the target's libraries by rustup.
    Rustup,
    /// Debian's, which has the sources of those libraries, and a linker for it.
    Debian { linker: PathBuf },
}

impl Toolchain {
    /// The first that works here; what is missing is installed if this user may.
    /// `VERROU_TOOLCHAIN=debian` leaves rustup's out.
    pub(crate) fn find(shell: &Shell) -> Result<Self> {
        let wanted = env::var("VERROU_TOOLCHAIN").ok();
        if wanted.as_deref() != Some("debian") && (has_target(shell) || add_target(shell)) {
            return Ok(Self::Rustup);
        }
        if !has_debian(shell) {
            install_debian(shell).with_context(|| {
                format!(
                    "there is no Rust for {TARGET} here: `rustup target add {TARGET}` would bring \
                     it; so would, on Debian 12, `apt-get install rustc-web cargo-web rust-web-src`"
                )
            })?;
        }
        Ok(Self::Debian {
            linker: linker(shell)?,
        })
    }

    /// What it is, for people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Rustup => "rustup's",
            Self::Debian { .. } => "Debian's",
        }
    }

    /// The directory for what it builds: two compilers must not share one.
    fn directory(&self) -> PathBuf {
        let compiler = match self {
            Self::Rustup => "rustup",
            Self::Debian { .. } => "debian",
        };
        project().join("target/wasm").join(compiler)
    }

    /// Builds `package`'s library by `cargo rustc` with `arguments` as a module of a component, and
    /// says where it is.
    pub(crate) fn build(
        &self,
        shell: &Shell,
        package: &str,
        arguments: &[&str],
    ) -> Result<PathBuf> {
        let flags = [
            // A megabyte of stack, the default, would be sixteen more pages for each instance.
            "-Clink-arg=-zstack-size=65536",
            // The bytes must not tell where they were made.
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

    /// Forgets what was built of `package`, but not of what it uses.
    pub(crate) fn clean(&self, shell: &Shell, package: &str) -> Result<()> {
        let arguments = [
            "--package",
            package,
            "--target",
            TARGET,
            "--profile",
            "component",
        ];
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
    let home = env::home_dir().context("there is no home directory, nor CARGO_HOME")?;
    Ok(home.join(".cargo"))
}

/// Whether the compiler in use has the target's libraries.
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
        bail!("its packages brought no compiler with sources")
    }
}

/// The linker that comes with rustup's compilers, or Debian's newest.
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
