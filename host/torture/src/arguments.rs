//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// Puts locks in files through what they have to survive, and looks for what must not happen.
#[derive(Debug, Parser)]
#[command(name = "torture")]
pub(crate) struct Arguments {
    /// How long all of it is to take, about
    ///
    /// What has an end of its own takes what it takes; the storms share the rest.
    #[arg(long = "for", value_name = "DURATION", default_value = "4m", value_parser = humantime::parse_duration)]
    pub(crate) length: Duration,

    /// The number that all that is random follows from; one that is drawn, unless given
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,

    /// Do this part alone; can be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) only: Vec<String>,

    /// Where the report goes
    #[arg(
        long,
        value_name = "FILE",
        default_value = "target/torture/report.json"
    )]
    pub(crate) report: PathBuf,

    /// Build the programs that the parts start, and do nothing else
    #[arg(long)]
    pub(crate) build: bool,

    /// Name the parts, and do nothing
    #[arg(long)]
    pub(crate) list: bool,
}
