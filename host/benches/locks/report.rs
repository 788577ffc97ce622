//! The report of the measurements: printed during the run, and written as JSON at the end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::available_parallelism;

use serde::Serialize;

use crate::Result;

/// All measurements of one run.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    tables: Vec<Table>,
    /// The subjects that were not measured, and the reasons.
    not_measured: Vec<String>,
}

/// The machine of the measurements.
#[derive(Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    file_system: String,
}

/// The results of subjects that took turns.
#[derive(Serialize)]
pub(crate) struct Table {
    title: String,
    unit: Unit,
    /// The ratios are to the first row.
    rows: Vec<Row>,
}

#[derive(Clone, Copy, Serialize)]
pub(crate) enum Unit {
    #[serde(rename = "nanoseconds")]
    Nanoseconds,
    #[serde(rename = "grants per second")]
    GrantsPerSecond,
    #[serde(rename = "times per second")]
    PerSecond,
    #[serde(rename = "KiB")]
    Kibibytes,
    #[serde(rename = "pairs")]
    Pairs,
}

/// The results of one subject.
#[derive(Serialize)]
struct Row {
    name: String,
    /// The number of samples.
    samples: usize,
    median: f64,
    /// The tenth and the ninetieth percentile.
    p10: f64,
    p90: f64,
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

impl Report {
    pub(crate) fn new(directory: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let processor = read("/proc/cpuinfo");
        let model = processor
            .lines()
            .find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split_once(": "));
        let mut file_system = Command::new("stat");
        file_system
            .args(["--file-system", "--format=%T"])
            .arg(directory);
        let file_system = file_system.output().map(|output| output.stdout);
        let machine = Machine {
            processor: model.map_or("unknown", |(_, model)| model).to_owned(),
            cores: available_parallelism().map_or(0, Into::into),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            file_system: file_system
                .map(|name| String::from_utf8_lossy(&name).trim().to_owned())
                .unwrap_or_default(),
        };
        println!(
            "{}, {} cores, Linux {}, {}",
            machine.processor, machine.cores, machine.kernel, machine.file_system
        );
        Self {
            machine,
            tables: Vec::new(),
            not_measured: Vec::new(),
        }
    }

    /// Begins a table. Subjects are added to it until the next table begins.
    pub(crate) fn begin(&mut self, title: &str, unit: Unit) {
        println!("\n{title}");
        self.tables.push(Table {
            title: title.to_owned(),
            unit,
            rows: Vec::new(),
        });
    }

    /// Adds `samples` of the subject `name`.
    pub(crate) fn add(&mut self, name: &str, mut samples: Vec<f64>, note: String) {
        let Some(table) = self.tables.last_mut() else {
            return;
        };
        samples.sort_unstable_by(f64::total_cmp);
        let at = |percent: usize| samples.get(samples.len() * percent / 100).copied();
        let [p10, median, p90] = [10, 50, 90].map(|percent| at(percent).unwrap_or_default());
        let first = table.rows.first().map_or(median, |first| first.median);
        let ratio = (first > 0.0).then_some(median / first);
        let (samples, unit) = (samples.len(), table.unit);
        println!(
            "  {name:<38} {:>14} {:>9}   ({} to {}, of {samples}) {note}",
            show(median, unit),
            ratio.map_or(String::new(), |ratio| format!("{ratio:.2} ×")),
            show(p10, unit),
            show(p90, unit),
        );
        table.rows.push(Row {
            name: name.to_owned(),
            samples,
            median,
            p10,
            p90,
            ratio,
            note,
        });
    }

    /// Adds the samples of the subject `name`, or the reason why there are none.
    pub(crate) fn add_result(&mut self, name: &str, samples: Result<Vec<f64>>) {
        match samples {
            Ok(samples) => self.add(name, samples, String::new()),
            Err(err) => self.miss(name, &err),
        }
    }

    /// Records that the subject `name` could not be measured.
    pub(crate) fn miss(&mut self, name: &str, why: &dyn std::fmt::Display) {
        println!("  {name:<38} not measured: {why}");
        let table = self.tables.last().map_or("", |table| &table.title);
        self.not_measured.push(format!("{table}: {name}: {why}"));
    }

    /// Writes the report to `path`.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_string_pretty(self)?;
        json.push('\n');
        Ok(fs::write(path, json)?)
    }
}

fn show(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Nanoseconds if value < 1e6 => format!("{:.2} µs", value / 1e3),
        Unit::Nanoseconds if value < 1e9 => format!("{:.2} ms", value / 1e6),
        Unit::Nanoseconds => format!("{:.2} s", value / 1e9),
        Unit::GrantsPerSecond | Unit::PerSecond => format!("{value:.0} /s"),
        Unit::Kibibytes => format!("{value:.0} KiB"),
        Unit::Pairs => format!("{value:.0} pairs"),
    }
}
