//! What a part did, and what it found.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::{Serialize, Serializer};

/// One thing that locks are put through.
pub(crate) struct Part {
    /// What `--only` calls it.
    pub(crate) name: &'static str,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// Its share of the time that is left for parts without an end of their own; zero for those that
    /// have one.
    pub(crate) share: u32,
    /// Does it. An error is one of the part's own: it could not be done, and nothing is known.
    pub(crate) run: fn(&Setting, &mut Findings) -> anyhow::Result<()>,
}

/// What a part is given.
pub(crate) struct Setting {
    /// All that is random follows from this.
    pub(crate) seed: u64,
    /// How long a part without an end of its own is to take.
    pub(crate) length: Duration,
    /// Whether everything is to be tried, and not only some of it.
    pub(crate) is_long: bool,
    /// Whether the part ends as soon as the programs that it starts are built.
    pub(crate) only_build: bool,
    /// An empty folder of its own, on the disk that temporary files are on.
    pub(crate) folder: PathBuf,
    /// How far it is; a part that knows how much there is to do sets the length.
    pub(crate) progress: ProgressBar,
}

/// What a part did, and what it found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// How often it did what.
    pub(crate) done: BTreeMap<String, u64>,
    /// The longest that was measured of times, in seconds as JSON has them.
    #[serde(serialize_with = "seconds")]
    pub(crate) times: BTreeMap<String, Duration>,
    /// Whatever else is to be known, with its unit.
    pub(crate) figures: BTreeMap<String, String>,
    /// How long it took to build what it runs, which is not counted.
    #[serde(serialize_with = "in_seconds")]
    pub(crate) building: Duration,
    /// What must not happen, and did.
    pub(crate) violations: Vec<String>,
    /// What could not be done here, and why.
    pub(crate) not_done: Vec<String>,
}

impl Findings {
    /// Adds `times` to how often `what` was done.
    pub(crate) fn count(&mut self, what: impl Into<String>, times: u64) {
        *self.done.entry(what.into()).or_default() += times;
    }

    /// Notes a figure, in words, with its unit.
    pub(crate) fn figure(&mut self, what: impl Into<String>, value: impl Display) {
        self.figures.insert(what.into(), value.to_string());
    }

    /// Notes the longest time of several.
    pub(crate) fn worst(&mut self, what: impl Into<String>, time: Duration) {
        let worst = self.times.entry(what.into()).or_default();
        *worst = time.max(*worst);
    }

    /// The longest times, in words.
    pub(crate) fn longest(&self) -> Vec<String> {
        let times = self.times.iter();
        times
            .map(|(what, time)| format!("{what}: {time:.1?}"))
            .collect()
    }

    /// Notes that something happened that must not.
    pub(crate) fn violation(&mut self, what: impl Display) {
        self.violations.push(what.to_string());
    }

    /// Notes a violation unless `holds`.
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.violation(otherwise());
        }
    }

    /// Notes what could not be done on this machine, and why.
    pub(crate) fn not_done(&mut self, what: impl Display) {
        self.not_done.push(what.to_string());
    }
}

fn in_seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

fn seconds<S: Serializer>(times: &BTreeMap<String, Duration>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(times.iter().map(|(what, time)| (what, time.as_secs_f64())))
}
