//! What it takes to check and build the project.

fn main() {}
