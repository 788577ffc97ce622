//! The worst days of a lock, one after the other: `cargo xtask torture`.
//!
//! Each part does something that locks in files have to survive, and looks for what must not
//! happen. `parts.rs` is the list of them.

#[cfg(target_os = "linux")]
mod arguments;
#[cfg(target_os = "linux")]
mod attempts;
#[cfg(target_os = "linux")]
mod contender;
#[cfg(target_os = "linux")]
mod corruption;
#[cfg(target_os = "linux")]
mod faults;
#[cfg(target_os = "linux")]
mod findings;
#[cfg(target_os = "linux")]
mod full_disks;
#[cfg(target_os = "linux")]
mod fuzz;
#[cfg(target_os = "linux")]
mod hostile;
#[cfg(target_os = "linux")]
mod interleavings;
#[cfg(target_os = "linux")]
mod linearizability;
#[cfg(target_os = "linux")]
mod mutants;
#[cfg(target_os = "linux")]
mod parts;
#[cfg(target_os = "linux")]
mod programs;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod resource;
#[cfg(target_os = "linux")]
mod steps;
#[cfg(target_os = "linux")]
mod storms;
#[cfg(target_os = "linux")]
mod time;
#[cfg(target_os = "linux")]
mod tracer;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    parts::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    eprintln!("torture: what this does to processes and file systems needs Linux");
    std::process::exit(69);
}
