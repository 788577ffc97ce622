//! Increments a number in a file under a lock. Many such programs at once lose no increment.
//!
//! `cargo run --package verrou-host --example count -- DIRECTORY NAME FILE TIMES`

use std::env;
use std::fs;

use verrou::blocking::LockFactory;
use verrou_host::{LeaseFileStore, StoreOptions, System};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [directory, name, file, times] = arguments.as_slice() else {
        return Err("expected four arguments: DIRECTORY NAME FILE TIMES".into());
    };
    let store = LeaseFileStore::open(directory, &StoreOptions::default())?;
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
