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

/// A lock component: its file and its interfaces.
struct LockComponent {
    file: &'static str,
    /// The interface that a store exports and the lock component imports.
    store: &'static str,
    /// The interface that the lock component exports and an application imports.
    locks: &'static str,
}

const POLLED: LockComponent = LockComponent {
    file: "verrou.wasm",
    store: "verrou:lock/store",
    locks: "verrou:lock/locks",
};
const ASYNC: LockComponent = LockComponent {
    file: "verrou-async.wasm",
    store: "verrou:async-lock/store",
    locks: "verrou:async-lock/locks",
};

/// Composes the components that `arguments` name, and prints the result's size, imports and exports.
pub(crate) fn compose(shell: &Shell, arguments: &[&str]) -> Result<()> {
    let Arguments {
        store,
        into,
        output,
    } = Arguments::parse(arguments)?;
    if store.is_none() && into.is_none() {
        bail!("nothing to compose: give a --store, an application (--into), or both");
    }
    let read = |path: &str| Component::read(Path::new(path));
    let (store, application) = (store.map(read).transpose()?, into.map(read).transpose()?);
    let locks = LockComponent::of(store.as_ref(), application.as_ref());
    let file = component::directory().join(locks.file);
    if !file.exists() {
        component::build(shell)?;
    }
    let mut composed = Component::read(&file)?;
    if let Some(store) = store {
        composed = store.plug(locks.store, &composed)?;
    }
    if let Some(application) = application {
        composed = composed.plug(locks.locks, &application)?;
    }
    let output = Path::new(output);
    fs::write(output, composed.bytes)
        .with_context(|| format!("cannot write {}", output.display()))?;
    println!("{}", component::describe(output)?);
    Ok(())
}

impl LockComponent {
    /// Returns the lock component that fits: that of WASI 0.3 for a store or an application of WASI 0.3.
    fn of(store: Option<&Component>, application: Option<&Component>) -> &'static Self {
        let has = |component: Option<&Component>, interface: &str| {
            // If it is no component, the composition reports why.
            let known = component.and_then(|it| component::interfaces(&it.bytes).ok());
            known.is_some_and(|(imports, exports)| {
                let mut names = imports.iter().chain(&exports);
                names.any(|name| name.split('@').next() == Some(interface))
            })
        };
        if has(store, ASYNC.store) || has(application, ASYNC.locks) {
            &ASYNC
        } else {
            &POLLED
        }
    }
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
                _ => bail!("unknown option `{option}`: {USAGE}"),
            };
            if before.is_some() {
                bail!("`{option}` is given twice: {USAGE}");
            }
        }
        Ok(Self {
            store,
            into,
            output: output.with_context(|| format!("--output is missing: {USAGE}"))?,
        })
    }
}

/// A component and its name in errors.
struct Component {
    name: String,
    bytes: Vec<u8>,
}

impl Component {
    fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bytes = fs::read(path).with_context(|| {
            format!(
                "cannot read {name}: `cargo xtask component DIRECTORY` builds target/component/*.wasm"
            )
        })?;
        Ok(Self { name, bytes })
    }

    /// Returns `socket` with this component plugged into its import of `interface`.
    fn plug(&self, interface: &str, socket: &Self) -> Result<Self> {
        let mut graph = CompositionGraph::new();
        let inner = self.register(&mut graph, "plug")?;
        let outer = socket.register(&mut graph, "socket")?;
        self.check(interface, socket, &graph, inner, outer)?;
        let failed = || format!("cannot plug {} into {}", self.name, socket.name);
        wac_graph::plug(&mut graph, vec![inner], outer).with_context(failed)?;
        let bytes = graph
            .encode(EncodeOptions::default())
            .with_context(failed)?;
        Ok(Self {
            name: format!("{} with {}", socket.name, self.name),
            bytes,
        })
    }

    /// Adds the component to `graph` under the name `part`, because one file can be added twice.
    fn register(&self, graph: &mut CompositionGraph, part: &str) -> Result<PackageId> {
        let wrong = || format!("{} is not a component that can be composed", self.name);
        let bytes = self.bytes.clone();
        let package = Package::from_bytes(part, None, bytes, graph.types_mut());
        Ok(graph.register_package(package.with_context(wrong)?)?)
    }

    /// Checks that the component fits into `socket`: `wac_graph::plug` ignores interfaces that do not fit.
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
        let Some((exported, offered)) = exported else {
            bail!(
                "{} does not export {interface}, which {} needs",
                self.name,
                socket.name
            );
        };
        let Some((imported, required)) = imported else {
            bail!(
                "{} does not import {interface}, which {} exports",
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
            .is_subtype(offered, types, required, types)
            .with_context(|| {
                format!(
                    "the {exported} of {} is not the {imported} that {} imports: build both from \
                     one version of `wit/`",
                    self.name, socket.name
                )
            })
    }
}

/// Returns the interface `interface` of any version among `items`, with its whole name.
fn find<'a>(
    interface: &str,
    items: impl Iterator<Item = (&'a String, &'a ItemKind)>,
) -> Option<(&'a str, ItemKind)> {
    items
        .filter(|(name, _)| name.split('@').next() == Some(interface))
        .map(|(name, kind)| (name.as_str(), *kind))
        .next()
}

#[cfg(test)]
mod tests {
    use wit_component::{ComponentEncoder, StringEncoding, dummy_module, embed_component_metadata};
    use wit_parser::{LiftLowerAbi, ManglingAndAbi, Resolve};

    use super::*;

    /// Returns an empty component called `name` of a world with `item`. Its interfaces have the version
    /// `version`, and names of the type `kind`.
    fn component(name: &str, item: &str, version: &str, kind: &str) -> Component {
        let wit = format!(
            "package verrou:lock@{version};
             interface store {{ acquire: func(name: {kind}); }}
             interface locks {{ name: func() -> {kind}; }}
             world w {{ {item} }}"
        );
        let mut resolve = Resolve::default();
        let package = resolve.push_str("lock.wit", &wit).unwrap();
        let world = resolve.select_world(&[package], None).unwrap();
        let mangling = ManglingAndAbi::Legacy(LiftLowerAbi::Sync);
        let mut module = dummy_module(&resolve, world, mangling);
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false)
            .unwrap();
        let mut encoder = ComponentEncoder::default();
        let bytes = encoder.module(&module).unwrap().encode();
        Component {
            name: name.to_owned(),
            bytes: bytes.unwrap(),
        }
    }

    fn locks() -> Component {
        component(
            "locks.wasm",
            "import store; export locks;",
            "0.1.0",
            "string",
        )
    }

    fn refusal(composed: Result<Component>) -> String {
        format!("{:#}", composed.err().expect("components that do not fit"))
    }

    #[test]
    fn plugged_component_is_no_longer_an_import() {
        let store = component("store.wasm", "export store;", "0.1.0", "string");
        let composed = store.plug(POLLED.store, &locks()).unwrap();
        let (imports, exports) = component::interfaces(&composed.bytes).unwrap();
        assert!(imports.is_empty(), "{imports:?}");
        assert_eq!(exports, ["verrou:lock/locks@0.1.0"]);

        let application = component("job.wasm", "import locks;", "0.1.0", "string");
        let composed = composed.plug(POLLED.locks, &application).unwrap();
        let (imports, exports) = component::interfaces(&composed.bytes).unwrap();
        assert!(imports.is_empty() && exports.is_empty());
    }

    #[test]
    fn later_compatible_version_fits() {
        let store = component("store.wasm", "export store;", "0.1.7", "string");
        store.plug(POLLED.store, &locks()).unwrap();
    }

    #[test]
    fn incompatible_version_is_reported() {
        let store = component("store.wasm", "export store;", "0.2.0", "string");
        assert_eq!(
            refusal(store.plug(POLLED.store, &locks())),
            "locks.wasm imports verrou:lock/store@0.1.0, but store.wasm exports \
             verrou:lock/store@0.2.0: build both from one version of `wit/`"
        );
    }

    #[test]
    fn incompatible_type_is_reported() {
        let store = component("store.wasm", "export store;", "0.1.0", "u64");
        let why = refusal(store.plug(POLLED.store, &locks()));
        let start = "the verrou:lock/store@0.1.0 of store.wasm is not the \
                     verrou:lock/store@0.1.0 that locks.wasm imports";
        assert!(why.starts_with(start), "{why}");
        assert!(why.contains("acquire"), "{why}");
    }

    #[test]
    fn missing_interface_is_reported() {
        let (application, locks) = (component("job.wasm", "", "0.1.0", "string"), locks());
        assert_eq!(
            refusal(application.plug(POLLED.store, &locks)),
            "job.wasm does not export verrou:lock/store, which locks.wasm needs"
        );
        assert_eq!(
            refusal(locks.plug(POLLED.locks, &application)),
            "job.wasm does not import verrou:lock/locks, which locks.wasm exports"
        );
        let text = Component {
            name: "notes.txt".to_owned(),
            bytes: b"text".to_vec(),
        };
        let why = refusal(text.plug(POLLED.store, &locks));
        assert!(why.starts_with("notes.txt is not a component"), "{why}");
    }

    #[test]
    fn invalid_arguments_are_reported() {
        for (arguments, words) in [
            (&["--output"][..], "`--output` lacks its value"),
            (&["--stor", "a"], "unknown option `--stor`"),
            (
                &["--store", "a", "--store", "b"],
                "`--store` is given twice",
            ),
            (&["--store", "a"], "--output is missing"),
        ] {
            let why = Arguments::parse(arguments).err().unwrap().to_string();
            assert!(why.starts_with(words), "{why}");
        }
    }
}
