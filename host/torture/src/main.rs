//! Stress and fault-injection tests of locks in files: `cargo xtask torture`.
//!
//! Each part exposes locks in files to one kind of load or fault, and reports violations of what
//! they promise. `registry.rs` lists the parts.

#[cfg(target_os = "linux")]
mod arguments;
#[cfg(target_os = "linux")]
mod cfg_build;
#[cfg(target_os = "linux")]
mod store_call;
#[cfg(target_os = "linux")]
mod contender;
#[cfg(target_os = "linux")]
mod corruption;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod results;
#[cfg(target_os = "linux")]
#[cfg(target_os = "linux")]
mod fuzz;
#[cfg(target_os = "linux")]
#[cfg(target_os = "linux")]
mod interleavings;
#[cfg(target_os = "linux")]
mod linearizability;
#[cfg(target_os = "linux")]
mod mutants;
#[cfg(target_os = "linux")]
mod registry;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod checked_log;
#[cfg(target_os = "linux")]
mod steps;
#[cfg(target_os = "linux")]
mod stress;
#[cfg(target_os = "linux")]
mod tracer;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    registry::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("torture: not supported on this system: it needs Linux");
    std::process::exit(69);
}
