//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Stress-tests locks in files, and reports each violation of what a lock promises.
#[derive(Debug, Parser)]
#[command(name = "torture")]
pub(crate) struct Arguments {
    /// Approximate duration of the whole run
    ///
    /// Parts of a fixed size take as long as they need; the other parts share the rest.
    #[arg(long = "for", value_name = "DURATION", default_value = "4m", value_parser = humantime::parse_duration)]
    pub(crate) length: Duration,

    /// Seed of all random choices; a random one by default
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Run only this part; can be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,

    /// Path of the JSON report
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/torture/report.json"
    )]
    pub(crate) report: PathBuf,

    /// Build the programs that the parts start, and exit
    #[arg(long)]
    pub(crate) build: bool,

    /// List the parts, and exit
    #[arg(long)]
    pub(crate) list: bool,
}
