//! The report: a table on the terminal, and JSON.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use crate::results::Findings;

/// The results of all parts, as in the JSON report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    seed: u64,
    asked_for_seconds: f64,
    pub(crate) parts: Vec<PartReport>,
}

/// The results of one part, with its name and duration.
#[derive(Debug, Serialize)]
pub(crate) struct PartReport {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) seconds: f64,
    #[serde(flatten)]
    pub(crate) findings: Findings,
}

impl Report {
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        Self {
            seed,
            asked_for_seconds: length.as_secs_f64(),
            parts: Vec::new(),
        }
    }

    pub(crate) fn violations(&self) -> usize {
        let each = self.parts.iter().map(|part| part.findings.violations.len());
        each.sum()
    }

    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        table.set_header(["part", "done", "worst", "violations", "seconds"]);
        for part in &self.parts {
            let Findings {
                done, violations, ..
            } = &part.findings;
            let done: Vec<_> = done
                .iter()
                .map(|(what, times)| format!("{times} {what}"))
                .collect();
            let times = part.findings.longest();
            table.add_row([
                part.name.to_owned(),
                done.join("\n"),
                times.join("\n"),
                violations.len().to_string(),
                format!("{:.1}", part.seconds),
            ]);
        }
        table
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("{}", path.display()))
    }
}

impl PartReport {
    /// Prints the results of the part as soon as it has ended.
    pub(crate) fn print(&self, name: &str) {
        let Findings {
            done,
            violations,
            not_done,
            ..
        } = &self.findings;
        let done: Vec<_> = done
            .iter()
            .map(|(what, times)| format!("{times} {what}"))
            .collect();
        println!("\n{name} ({:.1} s): {}", self.seconds, done.join(", "));
        if !self.findings.building.is_zero() {
            println!("  building took {:.0?} more", self.findings.building);
        }
        for time in self.findings.longest() {
            println!("  {time}");
        }
        for (what, figure) in &self.findings.figures {
            println!("  {what}: {figure}");
        }
        for what in not_done {
            println!("  NOT DONE  {what}");
        }
        for violation in violations {
            println!("  VIOLATION {violation}");
        }
    }
}
