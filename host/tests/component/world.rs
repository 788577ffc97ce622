//! The component's imports and exports.

use verrou_host::component::wasmtime::Engine;
use verrou_host::component::wasmtime::component::Component;

use crate::through::component;

#[test]
fn component_imports_a_store_a_clock_and_randomness_and_nothing_else() {
    let engine = Engine::default();
    let component = Component::new(&engine, component()).expect("a component");
    let world = component.component_type();
    let imports: Vec<_> = world.imports(&engine).map(|(name, _)| name).collect();
    let exports: Vec<_> = world.exports(&engine).map(|(name, _)| name).collect();
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
