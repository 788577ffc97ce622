//! Generates the pages `wit/README.md` and `wit/async/README.md` from the comments in the `.wit` files beside them.
//!
//! `wit-bindgen-markdown` 0.63.0, tried on these interfaces, is no replacement. It writes one page for each
//! world and none for the package. It omits the documentation of an exported interface, and `locks` is only
//! exported. The functions of `lock` are not below the resource, and have names such as
//! `[method]lock.acquire` and no declaration in WIT. Five anchors, such as `#holder`, occur twice on the page
//! of `lock-manager`, because `store` and `locks` have types of the same names. The last paragraph about
//! `lock` becomes a heading: the next line is `----`.

use std::collections::HashMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use wit_component::WitPrinter;
use wit_parser::{
    Docs, Function, FunctionKind, Interface, PackageId, Resolve, Stability, Type, TypeDef,
    TypeDefKind, TypeId, TypeOwner, World, WorldItem, WorldKey,
};

use crate::project;

/// A page: its directory, the directories of the packages that it needs, its own last, and its introduction.
struct Source {
    directory: &'static str,
    packages: &'static [&'static str],
    introduction: &'static str,
}

const PAGES: [Source; 2] = [
    Source {
        directory: "wit",
        packages: &["wit"],
        introduction: POLLED,
    },
    Source {
        directory: "wit/async",
        packages: &["wit", "wit/async"],
        introduction: ASYNC,
    },
];

const POLLED: &str = "\
The interfaces of the WebAssembly component `verrou.wasm`, and of what is plugged into it, for WASI 0.2.
[`verrou:async-lock`](async/README.md) has the same for WASI 0.3, where functions wait; both have one `types`.

| | `verrou:lock` | `verrou:async-lock` |
|---|---|---|
| WASI | 0.2 | 0.3 |
| component | `verrou.wasm` | `verrou-async.wasm` |
| waiting | its user polls an `attempt` and a `renewal` | `acquire` and `keep` are `async` functions |
| store | answers at once, or blocks | may await |
| Rust host | `Runner`, `AsyncRunner` | `ConcurrentRunner` |
| guests of a Rust host | `locks::add_to_linker` | `async_locks::add_to_linker` |
| core | `polled` locks | `nonblocking` locks |

The two are packages of their own, because one version of a package is one interface, and because tools for WASI 0.2
do not read a package with `async` functions.

- An **application** imports [`locks`](#interface-locks), and takes locks by it:
  [an example](../examples/cron-job/README.md).
- The **lock component** exports `locks`, and imports a store, a clock and randomness. It opens no file
  and no connection, and it never waits: of `wasi:io/poll` it imports only the type `pollable`, and
  passes the store's pollables to its user.
- A **store** exports [`store`](#interface-store): where leases are recorded. The host may be the
  store, or another component: [in memory](../examples/provider-rust/README.md),
  [over `wasi:keyvalue`](../examples/provider-keyvalue/README.md).
- [`types`](#interface-types) has the types that both interfaces use, and no functions: no host has to
  supply it.

`cargo xtask component` builds the lock component, `cargo xtask compose` plugs components together.

Lengths of time are nanoseconds. The interfaces are in the style of WASI 0.2: no function is `async`, and
a host may block in each of its functions. Every item exists since the version in the package's name.
The packages of WASI are in [`deps`](deps/README.md).

This page is written by `cargo xtask wit-docs`. To change it, change the comments in the `.wit` files.
";

const ASYNC: &str = "\
The interfaces of the WebAssembly component `verrou-async.wasm`, and of what is plugged into it, for WASI 0.3. Their types
are those of [`verrou:lock`](../README.md#interface-types), which has the same interfaces for WASI 0.2.

- An **application** imports [`locks`](#interface-locks), and awaits locks by it: [an
  example](../../examples/async-job/README.md).
- The **lock component** exports `locks`, and imports a store, a clock and randomness. It opens no file and no
  connection. It waits in the store's wait queue, and by the clock.
- A **store** exports [`store`](#interface-store): where leases are recorded. The host may be the store, or another
  component.

`cargo xtask component` builds the lock component.

**Ending a wait.** A task that is cancelled by `subtask.cancel`, as a dropped future of a guest in Rust is, leaves the
wait queue, and releases a lock that it was granted meanwhile. A host in Rust cannot cancel a task of wasmtime 48: after
the future of `call_acquire` has been dropped, the task continues, and would be granted the lock later. Such a host calls
`lock.stop`, as `ConcurrentInstance` in `verrou-wasmtime` does when one of its futures is dropped. An instance that is
dropped ends all its tasks, and the host releases its locks.

**A host in Rust** needs `Config::wasm_component_model_async`, implements the `async` functions of `store` in the trait
`HostWithStore` that `bindgen!` generates, and calls the component by `Store::run_concurrent`.
[`concurrent_imports.rs`](../../host/wasmtime/src/concurrent_imports.rs) does the first two for any `AsyncStore`, and
[`concurrent_instance.rs`](../../host/wasmtime/src/concurrent_instance.rs) the third; [an
example](../../examples/embed_async.rs) uses both on tokio.

**Bindings.** `wit_bindgen::generate!` and `wasmtime::component::bindgen!` take
`path: [\"wit\", \"wit/async\"]` and `world: \"verrou:async-lock/lock-manager\"`. As two versions of `wasi:clocks` are in
these directories, their modules are called `clocks0_3_0` and `random0_3_0`.

Lengths of time are nanoseconds. The packages of WASI are in [`deps`](deps/README.md).

This page is written by `cargo xtask wit-docs`. To change it, change the comments in the `.wit` files.
";

/// Writes the pages.
pub(crate) fn write() -> Result<()> {
    for source in &PAGES {
        let path = source.path();
        let text = render(source)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Fails if a page differs from the one that [`write()`] would write.
pub(crate) fn check() -> Result<()> {
    for source in &PAGES {
        let path = source.path();
        let text = render(source)?;
        if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
            bail!(
                "{} differs from the `.wit` files beside it: run `cargo xtask wit-docs`",
                path.display()
            );
        }
    }
    Ok(())
}

impl Source {
    fn path(&self) -> PathBuf {
        project().join(self.directory).join("README.md")
    }
}

fn render(source: &Source) -> Result<String> {
    let mut resolve = Resolve::default();
    let mut package = None;
    for directory in source.packages {
        let (pushed, _) = resolve.push_dir(project().join(directory))?;
        package = Some(pushed);
    }
    let package = package.context("a page without a package")?;
    // Every item has the same version: the introduction states it.
    for (_, kind) in &mut resolve.types {
        kind.stability = Stability::Unknown;
    }
    let mut page = Page {
        resolve: &resolve,
        text: String::new(),
    };
    page.package(package, source.introduction)?;
    Ok(page.text.trim_end().to_owned() + "\n")
}

struct Page<'a> {
    resolve: &'a Resolve,
    text: String,
}

impl Page<'_> {
    fn package(&mut self, id: PackageId, introduction: &str) -> Result<()> {
        let package = &self.resolve.packages[id];
        self.heading(1, &package.name.to_string());
        self.paragraph(introduction);
        for world in package.worlds.values() {
            self.world(&self.resolve.worlds[*world])?;
        }
        for (name, interface) in &package.interfaces {
            self.heading(2, &format!("Interface `{name}`"));
            self.interface(&self.resolve.interfaces[*interface])?;
        }
        Ok(())
    }

    fn world(&mut self, world: &World) -> Result<()> {
        self.heading(2, &format!("World `{}`", world.name));
        self.documentation(&world.docs);
        let mut code = format!("world {} {{\n", world.name);
        let items = (world.imports.iter().map(|item| ("import", item)))
            .chain(world.exports.iter().map(|item| ("export", item)));
        for (direction, (key, item)) in items {
            let (WorldKey::Interface(_), WorldItem::Interface { .. }) = (key, item) else {
                bail!(
                    "cannot render a world with items other than interfaces: extend `Page::world`"
                );
            };
            let name = self.resolve.name_world_key(key);
            writeln!(code, "  {direction} {name};")?;
        }
        self.code(&(code + "}"));
        Ok(())
    }

    fn interface(&mut self, interface: &Interface) -> Result<()> {
        self.documentation(&interface.docs);
        let (used, own): (Vec<_>, Vec<_>) = (interface.types.iter())
            .map(|(name, id)| (name.as_str(), *id))
            .partition(|(_, id)| self.is_used(*id));
        if !used.is_empty() {
            self.heading(3, "Types of other interfaces");
            self.code(&self.declarations(&used)?);
        }
        for (name, id) in own {
            let kind = &self.resolve.types[id];
            self.heading(3, &format!("{} `{name}`", capitalized(kind.kind.as_str())));
            self.code(&self.declarations(&[(name, id)])?);
            self.documentation(&kind.docs);
            self.parts(kind)?;
            for function in interface.functions.values() {
                if function.kind.resource() == Some(id) {
                    self.function(4, &format!("{name}."), function)?;
                }
            }
        }
        for function in interface.functions.values() {
            if function.kind.resource().is_none() {
                self.function(3, "", function)?;
            }
        }
        Ok(())
    }

    /// Writes the list of the parts of a record, a variant or an enumeration, with their documentation.
    fn parts(&mut self, kind: &TypeDef) -> Result<()> {
        let parts: Vec<(&str, &Docs)> = match &kind.kind {
            TypeDefKind::Record(record) => {
                let fields = record.fields.iter();
                fields.map(|field| (&*field.name, &field.docs)).collect()
            }
            TypeDefKind::Variant(variant) => {
                let cases = variant.cases.iter();
                cases.map(|case| (&*case.name, &case.docs)).collect()
            }
            TypeDefKind::Enum(cases) => {
                let cases = cases.cases.iter();
                cases.map(|case| (&*case.name, &case.docs)).collect()
            }
            TypeDefKind::Flags(flags) => {
                let flags = flags.flags.iter();
                flags.map(|flag| (&*flag.name, &flag.docs)).collect()
            }
            _ => return Ok(()),
        };
        for (name, docs) in parts {
            let docs = docs.contents.as_deref().unwrap_or_default().trim();
            writeln!(self.text, "- `{name}`: {}", docs.replace('\n', "\n  "))?;
        }
        self.text.push('\n');
        Ok(())
    }

    fn function(&mut self, level: usize, prefix: &str, function: &Function) -> Result<()> {
        let name = match function.kind {
            FunctionKind::Constructor(_) => "constructor",
            _ => function.item_name(),
        };
        self.heading(level, &format!("`{prefix}{name}`"));
        self.code(&self.signature(function)?);
        self.documentation(&function.docs);
        Ok(())
    }

    /// Returns whether the type is one of another interface, which this one uses.
    fn is_used(&self, id: TypeId) -> bool {
        let kind = &self.resolve.types[id];
        matches!(kind.kind, TypeDefKind::Type(Type::Id(original))
            if self.resolve.types[original].owner != kind.owner)
    }

    /// Returns the declarations of types of one interface in `wit/`, without their comments and functions.
    fn declarations(&self, types: &[(&str, TypeId)]) -> Result<String> {
        let owner = self.resolve.types[types[0].1].owner;
        let TypeOwner::Interface(_) = owner else {
            bail!("cannot render a type outside an interface: extend `Page::declarations`");
        };
        let mut printer = WitPrinter::default();
        printer.emit_docs(false).print_types(
            self.resolve,
            owner,
            types.iter().copied(),
            &HashMap::new(),
        )?;
        Ok(printer.output.to_string())
    }

    fn signature(&self, function: &Function) -> Result<String> {
        let (start, receivers) = match function.kind {
            FunctionKind::Freestanding => (format!("{}: func", function.name), 0),
            FunctionKind::AsyncFreestanding => (format!("{}: async func", function.name), 0),
            FunctionKind::Method(_) => (format!("{}: func", function.item_name()), 1),
            FunctionKind::AsyncMethod(_) => (format!("{}: async func", function.item_name()), 1),
            FunctionKind::Static(_) => (format!("{}: static func", function.item_name()), 0),
            FunctionKind::Constructor(_) => ("constructor".to_owned(), 0),
            ref kind => bail!("cannot render {kind:?}: extend `Page::signature`"),
        };
        let parameters = function.params.iter().skip(receivers);
        let parameters = parameters
            .map(|parameter| {
                Ok(format!(
                    "{}: {}",
                    parameter.name,
                    self.shown(&parameter.ty)?
                ))
            })
            .collect::<Result<Vec<_>>>()?;
        let result = match &function.result {
            Some(result) if !function.is_constructor_shorthand(self.resolve) => {
                format!(" -> {}", self.shown(result)?)
            }
            _ => String::new(),
        };
        Ok(format!("{start}({}){result};", parameters.join(", ")))
    }

    fn shown(&self, kind: &Type) -> Result<String> {
        let mut printer = WitPrinter::default();
        printer.print_type_name(self.resolve, kind)?;
        Ok(printer.output.to_string())
    }

    fn heading(&mut self, level: usize, heading: &str) {
        self.paragraph(&format!("{} {heading}", "#".repeat(level)));
    }

    fn documentation(&mut self, docs: &Docs) {
        if let Some(text) = &docs.contents {
            self.paragraph(text);
        }
    }

    fn code(&mut self, code: &str) {
        self.paragraph(&format!("```wit\n{}\n```", code.trim_end()));
    }

    fn paragraph(&mut self, text: &str) {
        self.text.push_str(text.trim_end());
        self.text.push_str("\n\n");
    }
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    let first = letters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(letters).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn page_matches_the_interfaces() {
        super::check().unwrap();
    }
}
