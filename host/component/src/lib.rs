//! The bytes of Verrou's lock component, for hosts that embed it.
//!
//! `verrou_wasmtime::Runner::bundled` runs it in wasmtime. Another host writes the bytes to where its runtime reads
//! components:
//!
//! ```
//! # let directory = std::env::temp_dir();
//! std::fs::write(directory.join("verrou.wasm"), verrou_component::POLLED)?;
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! `cargo xtask component --bundle` writes them. `cargo xtask test` builds the components again, and compares the bytes if
//! it has the compiler that `src/compiler.txt` names.
#![no_std]

/// The component for WASI 0.2: the world `verrou:lock/lock-manager`.
pub const POLLED: &[u8] = include_bytes!("verrou.wasm");

/// The component for WASI 0.3: the world `verrou:async-lock/lock-manager`.
pub const ASYNC: &[u8] = include_bytes!("verrou-async.wasm");

/// The compiler that built both.
pub const COMPILER: &str = include_str!("compiler.txt");
