//! The parts of the torture, and their results.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use serde::{Serialize, Serializer};

/// One part of the torture.
pub(crate) struct Part {
    /// Its name for `--only`.
    pub(crate) name: &'static str,
    /// Its description, in one line.
    pub(crate) about: &'static str,
    /// Its share of the time that is left for parts without a fixed size; zero for parts of a fixed
    /// size.
    pub(crate) share: u32,
    /// Runs it. An error means that the part could not be run, and says nothing about the locks.
    pub(crate) run: fn(&Setting, &mut Findings) -> anyhow::Result<()>,
}

/// The configuration of a part's run.
pub(crate) struct Setting {
    /// The seed of all random choices.
    pub(crate) seed: u64,
    /// The duration of a part without a fixed size.
    pub(crate) length: Duration,
    /// Whether the part tries all cases instead of a selection.
    pub(crate) is_long: bool,
    /// Whether the part ends as soon as the programs that it starts are built.
    pub(crate) only_build: bool,
    /// An empty directory for the part, on the disk of the temporary files.
    pub(crate) directory: PathBuf,
    /// The progress bar; a part of a fixed size sets its length.
    pub(crate) progress: ProgressBar,
}

/// The results of a part.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    /// How often each thing was done.
    pub(crate) done: BTreeMap<String, u64>,
    /// The longest of each kind of measured time; in seconds in JSON.
    #[serde(serialize_with = "seconds")]
    pub(crate) times: BTreeMap<String, Duration>,
    /// Other figures, with their units.
    pub(crate) figures: BTreeMap<String, String>,
    /// The time to build the programs that it runs, which is not part of its duration.
    #[serde(serialize_with = "in_seconds")]
    pub(crate) building: Duration,
    /// The violations that were found.
    pub(crate) violations: Vec<String>,
    /// The tests that this machine does not support, with the reasons.
    pub(crate) not_done: Vec<String>,
}

impl Findings {
    /// Adds `times` to the number of times that `what` was done.
    pub(crate) fn count(&mut self, what: impl Into<String>, times: u64) {
        *self.done.entry(what.into()).or_default() += times;
    }

    /// Records a figure, with its unit.
    pub(crate) fn figure(&mut self, what: impl Into<String>, value: impl Display) {
        self.figures.insert(what.into(), value.to_string());
    }

    /// Records a time if it is the longest of its kind.
    pub(crate) fn worst(&mut self, what: impl Into<String>, time: Duration) {
        let worst = self.times.entry(what.into()).or_default();
        *worst = time.max(*worst);
    }

    /// Returns the longest times as text.
    pub(crate) fn longest(&self) -> Vec<String> {
        let times = self.times.iter();
        times
            .map(|(what, time)| format!("{what}: {time:.1?}"))
            .collect()
    }

    /// Records a violation.
    pub(crate) fn violation(&mut self, what: impl Display) {
        self.violations.push(what.to_string());
    }

    /// Records a violation unless `holds`.
    pub(crate) fn check(&mut self, holds: bool, otherwise: impl FnOnce() -> String) {
        if !holds {
            self.violation(otherwise());
        }
    }

    /// Records what could not be tested on this machine, with the reason.
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
