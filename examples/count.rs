//! Adds to a number in a file, which takes a lock: many such programs lose nothing.
//!
//! `cargo run --package verrou-host --example count -- FOLDER NAME FILE TIMES`

use std::env;
use std::fs;

use verrou::blocking::LockFactory;
use verrou_host::{LeaseFileStore, StoreOptions, System};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [folder, name, file, times] = arguments.as_slice() else {
        return Err("four arguments, please: FOLDER NAME FILE TIMES".into());
    };
    let store = LeaseFileStore::open(folder, &StoreOptions::default())?;
    let lock = LockFactory::new(&store, System).create_lock(name, "1m")?;
    for _ in 0..times.parse()? {
        lock.run(|_| {
            let number: u64 = fs::read_to_string(file)?.trim().parse()?;
            fs::write(file, (number + 1).to_string())?;
            Ok::<_, Box<dyn std::error::Error>>(())
        })??;
    }
    Ok(())
}
