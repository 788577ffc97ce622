//! The components' imports and exports.

use verrou_host::component::wasmtime::Engine;
use verrou_host::component::wasmtime::component::Component;

use crate::through::{async_component, component};

/// Returns the imports and exports of a component.
fn interfaces(component: &[u8]) -> (Vec<String>, Vec<String>) {
    let engine = Engine::default();
    let component = Component::new(&engine, component).expect("a component");
    let world = component.component_type();
    let imports = world.imports(&engine).map(|(name, _)| name.to_owned());
    let exports = world.exports(&engine).map(|(name, _)| name.to_owned());
    (imports.collect(), exports.collect())
}

#[test]
fn component_imports_a_store_a_clock_and_randomness_and_nothing_else() {
    let (imports, exports) = interfaces(&component());
    assert_eq!(
        imports,
        [
            // Only types.
            "verrou:lock/types@0.1.0",
            "wasi:io/poll@0.2.0",
            "verrou:lock/store@0.1.0",
            "wasi:clocks/monotonic-clock@0.2.0",
            "wasi:random/random@0.2.0",
        ]
    );
    assert_eq!(exports, ["verrou:lock/locks@0.1.0"]);
}

#[test]
fn async_component_imports_a_store_a_clock_and_randomness_and_nothing_else() {
    let (imports, exports) = interfaces(&async_component());
    assert_eq!(
        imports,
        [
            // Only types.
            "verrou:lock/types@0.1.0",
            "verrou:async-lock/store@0.1.0",
            // Only types.
            "wasi:clocks/types@0.3.0",
            "wasi:clocks/monotonic-clock@0.3.0",
            "wasi:random/random@0.3.0",
        ]
    );
    assert_eq!(exports, ["verrou:async-lock/locks@0.1.0"]);
}
