//! The machine under [`verrou`]: its clock, and stores made of its files.

mod system;

pub use system::System;
