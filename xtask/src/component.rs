//! Builds `target/component/verrou.wasm` and `verrou-async.wasm` from the core.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use wasm_encoder::RawSection;
use wasmparser::{Parser, Payload, Validator, WasmFeatures};
use wit_component::{ComponentEncoder, DecodedWasm};
use wit_parser::WorldKey;
use xshell::{Shell, cmd};

use crate::wasm::Toolchain;
use crate::{NotHere, javascript, project};

/// Returns the directory of the built components.
pub(crate) fn directory() -> PathBuf {
    project().join("target/component")
}

/// The lock components: the file of each, and the feature of the core that has its world.
const COMPONENTS: [(&str, &str); 2] = [
    ("verrou.wasm", "component"),
    ("verrou-async.wasm", "component-async"),
];

/// Builds the lock components, and prints the size, the imports and the exports of each. Returns their paths.
pub(crate) fn build(shell: &Shell) -> Result<Vec<PathBuf>> {
    let toolchain = Toolchain::find(shell)?;
    println!("building with {} compiler", toolchain.name());
    let build = |(file, feature): (&str, &str)| {
        let features = ["--no-default-features", "--features", feature];
        let module = toolchain.build(shell, "verrou", &features)?;
        let component = directory().join(file);
        componentize(shell, &module, &component)?;
        println!("{}", describe(&component)?);
        Ok(component)
    };
    COMPONENTS.into_iter().map(build).collect()
}

/// The sources of the crate that embedders get the components from.
const BUNDLE: &str = "host/component/src";

/// The file there that names the compiler.
const COMPILER: &str = "compiler.txt";

/// Builds the lock components, and writes them into the crate `verrou-component`.
pub(crate) fn bundle(shell: &Shell) -> Result<()> {
    let bundle = project().join(BUNDLE);
    for component in build(shell)? {
        shell.copy_file(component, &bundle)?;
    }
    let compiler = Toolchain::find(shell)?.compiler(shell)?;
    shell.write_file(bundle.join(COMPILER), format!("{compiler}\n"))?;
    Ok(())
}

/// Checks that the components in the crate `verrou-component` are those that [`build`] has built.
pub(crate) fn check_bundle(shell: &Shell) -> Result<()> {
    let bundle = project().join(BUNDLE);
    let compiler = Toolchain::find(shell)?.compiler(shell)?;
    let bundled_by = shell.read_file(bundle.join(COMPILER))?;
    if compiler != bundled_by.trim() {
        let why = format!(
            "built by {}; this machine has {compiler}",
            bundled_by.trim()
        );
        return Err(NotHere(why).into());
    }
    for (file, _) in COMPONENTS {
        ensure!(
            fs::read(bundle.join(file))? == fs::read(directory().join(file))?,
            "{BUNDLE}/{file} is not the component of these sources: run `cargo xtask component --bundle`"
        );
    }
    Ok(())
}

/// Removes the core that [`build`] built, but not the libraries.
pub(crate) fn clean(shell: &Shell) -> Result<()> {
    Toolchain::find(shell)?.clean(shell, "verrou", &[])
}

/// Writes the component of the core module `module` to `component`.
pub(crate) fn componentize(shell: &Shell, module: &Path, component: &Path) -> Result<()> {
    shell.create_dir(directory())?;
    let optimized = component.with_extension("core.wasm");
    let optimize = optimizer(shell)?;
    // The module lists the features that may be used. With `--all-features`, wasm-opt would write instructions
    // that the runtimes reject.
    cmd!(
        shell,
        "{optimize} -Oz --converge --strip-debug --strip-producers {module} --output {optimized}"
    )
    .quiet()
    .run()?;
    let module = fs::read(&optimized)?;
    let bytes = ComponentEncoder::default()
        .validate(true)
        .module(&module)?
        .encode()?;
    fs::write(component, without_names(&bytes)?)?;
    fs::remove_file(optimized)?;
    Ok(())
}

/// Returns the component without the names that only debuggers read: a tenth of its size.
fn without_names(component: &[u8]) -> Result<Vec<u8>> {
    let mut named = wasm_encoder::Component::new();
    let mut end = 0;
    for payload in Parser::new(0).parse_all(component) {
        let payload = payload?;
        if let Payload::CustomSection(section) = &payload
            && section.name() == "component-name"
        {
            continue;
        }
        // The sections inside a module have been copied with the module.
        if let Some((id, range)) = payload.as_section()
            && range.start >= end
        {
            end = range.end;
            let data = &component[usize::try_from(range.start)?..usize::try_from(range.end)?];
            named.section(&RawSection { id, data });
        }
    }
    let bytes = named.finish();
    Validator::new_with_features(WasmFeatures::default()).validate_all(&bytes)?;
    Ok(bytes)
}

/// Returns the path of `wasm-opt`, and installs its npm package first if needed.
pub(crate) fn optimizer(shell: &Shell) -> Result<PathBuf> {
    let packages = javascript::tool(shell, "binaryen", "the optimizer `wasm-opt`")?;
    Ok(packages.join("binaryen/bin/wasm-opt"))
}

/// Returns a text with the component's size, imports and exports.
pub(crate) fn describe(component: &Path) -> Result<String> {
    let bytes = fs::read(component)?;
    let compressed = gzipped(&bytes)?;
    let (imports, exports) = interfaces(&bytes)?;
    Ok(format!(
        "{}: {} bytes, {compressed} gzipped\n  imports {}\n  exports {}",
        component.display(),
        bytes.len(),
        imports.join(", "),
        exports.join(", ")
    ))
}

/// Returns the compressed size of `bytes`.
pub(crate) fn gzipped(bytes: &[u8]) -> Result<usize> {
    let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
    compressed.write_all(bytes)?;
    Ok(compressed.finish()?.len())
}

/// Returns the names of the interfaces that a component imports and exports, in order.
pub(crate) fn interfaces(component: &[u8]) -> Result<(Vec<String>, Vec<String>)> {
    let DecodedWasm::Component(resolve, world) = wit_component::decode(component)? else {
        anyhow::bail!("not a WebAssembly component, but a package of WIT");
    };
    let world = &resolve.worlds[world];
    let names = |keys: &mut dyn Iterator<Item = &WorldKey>| {
        keys.map(|key| resolve.name_world_key(key)).collect()
    };
    Ok((
        names(&mut world.imports.keys()),
        names(&mut world.exports.keys()),
    ))
}
