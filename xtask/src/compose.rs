//! Plugs components together: a store into the lock component, and that into an application.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use wac_graph::types::{ItemKind, Package, SubtypeChecker};
use wac_graph::{CompositionGraph, EncodeOptions, PackageId};
use xshell::Shell;

use crate::component;

const USAGE: &str =
    "cargo xtask compose [--store STORE.wasm] [--into APPLICATION.wasm] --output COMPOSED.wasm";

/// The interface that a store exports and the lock component imports.
const STORE: &str = "verrou:lock/store";
/// The interface that the lock component exports and an application imports.
const LOCKS: &str = "verrou:lock/locks";

/// Composes what `arguments` name, and says what came out.
pub(crate) fn compose(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let Arguments {
        store,
        into,
        output,
    } = Arguments::parse(arguments)?;
    if store.is_none() && into.is_none() {
        bail!("there is nothing to compose: give a --store, an application (--into), or both");
    }
    let locks = component::folder().join("verrou.wasm");
    if !locks.exists() {
        component::build(shell)?;
    }
    let mut composed = Component::read(&locks)?;
    if let Some(store) = store {
        composed = Component::read(Path::new(store))?.plug(STORE, &composed)?;
    }
    if let Some(application) = into {
        composed = composed.plug(LOCKS, &Component::read(Path::new(application))?)?;
    }
    let output = Path::new(output);
    fs::write(output, composed.bytes)
        .with_context(|| format!("{} cannot be written", output.display()))?;
    println!("{}", component::describe(output)?);
    Ok(())
}

struct Arguments<'a> {
    store: Option<&'a str>,
    into: Option<&'a str>,
    output: &'a str,
}

impl<'a> Arguments<'a> {
    fn parse(arguments: &[&'a str]) -> Result<Self> {
        let (mut store, mut into, mut output) = (None, None, None);
        for pair in arguments.chunks(2) {
            let [option, value] = *pair else {
                bail!("`{}` lacks its value: {USAGE}", pair[0]);
            };
            let before = match option {
                "--store" => store.replace(value),
                "--into" => into.replace(value),
                "--output" => output.replace(value),
                _ => bail!("`{option}` is no option: {USAGE}"),
            };
            if before.is_some() {
                bail!("`{option}` is there twice: {USAGE}");
            }
        }
        Ok(Self {
            store,
            into,
            output: output.with_context(|| format!("--output is missing: {USAGE}"))?,
        })
    }
}

/// A component and what to call it in an error.
struct Component {
    name: String,
    bytes: Vec<u8>,
}

impl Component {
    fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = fs::read(path).with_context(|| {
            format!(
                "{name} cannot be read: `cargo xtask component FOLDER` builds target/component/*.wasm"
            )
        })?;
        Ok(Self { name, bytes })
    }

    /// What `socket` becomes when it has this component inside for its import of `interface`.
    fn plug(&self, interface: &str, socket: &Self) -> Result<Self> {
        let mut graph = CompositionGraph::new();
        let inner = self.register(&mut graph, "plug")?;
        let outer = socket.register(&mut graph, "socket")?;
        self.check(interface, socket, &graph, inner, outer)?;
        let failed = || format!("{} does not go into {}", self.name, socket.name);
        wac_graph::plug(&mut graph, vec![inner], outer).with_context(failed)?;
        let bytes = graph
            .encode(EncodeOptions::default())
            .with_context(failed)?;
        Ok(Self {
            name: format!("{} with {}", socket.name, self.name),
            bytes,
        })
    }

    /// Gives it to `graph` as its `part`: of one file there can be two.
    fn register(&self, graph: &mut CompositionGraph, part: &str) -> Result<PackageId> {
        let wrong = || format!("{} is no component that can be composed", self.name);
        let bytes = self.bytes.clone();
        let package = Package::from_bytes(part, None, bytes, graph.types_mut());
        Ok(graph.register_package(package.with_context(wrong)?)?)
    }

    /// Plugging passes over in silence what does not fit. Here is said what it is.
    fn check(
        &self,
        interface: &str,
        socket: &Self,
        graph: &CompositionGraph,
        inner: PackageId,
        outer: PackageId,
    ) -> Result<()> {
        let types = graph.types();
        let exported = find(interface, types[graph[inner].ty()].exports.iter());
        let imported = find(interface, types[graph[outer].ty()].imports.iter());
        let Some((exported, offer)) = exported else {
            bail!(
                "{} does not export {interface}, which {} is to get from it",
                self.name,
                socket.name
            );
        };
        let Some((imported, wish)) = imported else {
            bail!(
                "{} does not import {interface}, which {} is there to give it",
                socket.name,
                self.name
            );
        };
        if exported != imported && !wac_graph::types::are_semver_compatible(exported, imported) {
            bail!(
                "{} imports {imported}, but {} exports {exported}: build both from one version of \
                 `wit/`",
                socket.name,
                self.name
            );
        }
        let mut cache = HashSet::new();
        SubtypeChecker::new(&mut cache)
            .is_subtype(offer, types, wish, types)
            .with_context(|| {
                format!(
                    "the {exported} of {} is not the {imported} that {} imports: build both from \
                     one version of `wit/`",
                    self.name, socket.name
                )
            })
    }
}

/// The interface of any version among `items`, with its whole name.
fn find<'a>(
    interface: &str,
    items: impl Iterator<Item = (&'a String, &'a ItemKind)>,
) -> Option<(&'a str, ItemKind)> {
    items
        .filter(|(name, _)| name.split('@').next() == Some(interface))
        .map(|(name, kind)| (name.as_str(), *kind))
        .next()
}
