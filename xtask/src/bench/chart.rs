//! Draws the figures as a chart: a bar for each subject, with the logarithm of its median as length.

use std::fs::File;
use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::{
    BLACK, Color, DrawingArea, IntoDrawingArea, IntoFont, RGBColor, Rectangle, SVGBackend, Text,
    TextStyle, WHITE,
};
use serde::Deserialize;

/// The part of the figures that is drawn: `host/benches/locks/report.rs` writes them.
#[derive(Deserialize)]
struct Figures {
    machine: Machine,
    tables: Vec<Table>,
}

#[derive(Deserialize)]
struct Machine {
    processor: String,
    cores: usize,
    kernel: String,
    file_system: String,
}

#[derive(Deserialize)]
struct Table {
    title: String,
    unit: String,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    name: String,
    median: f64,
    ratio: Option<f64>,
}

const WIDTH: u32 = 860;
const LINE: i32 = 20;
const LABELS: i32 = 290;
/// The length of the longest bar.
const BARS: f64 = 380.0;

const OURS: RGBColor = RGBColor(0xc2, 0x41, 0x0c);
const OTHERS: RGBColor = RGBColor(0x94, 0xa3, 0xb8);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the tables of the file `figures` into the file `picture`.
pub(crate) fn draw(figures: &Path, picture: &Path) -> Result<()> {
    let Figures { machine, tables } = serde_json::from_reader(File::open(figures)?)?;
    // Only the tables that compare with other locks.
    let tables: Vec<_> = tables
        .iter()
        .filter(|table| table.rows.len() > 2 && table.unit != "pairs")
        .collect();
    let lines: usize = tables.iter().map(|table| table.rows.len() + 2).sum();
    let height = LINE * (i32::try_from(lines)? + 2);
    let area = SVGBackend::new(picture, (WIDTH, u32::try_from(height)?)).into_drawing_area();
    area.fill(&WHITE)?;
    let plain = ("sans-serif", 13).into_font().color(&BLACK);
    let title = ("sans-serif", 15).into_font().color(&OURS);
    let where_ = format!(
        "Medians of one run, and ratios to the first: {}, {} cores, Linux {}, {}",
        machine.processor, machine.cores, machine.kernel, machine.file_system
    );
    let mut at = 10;
    write(&area, &where_, 12, at, &plain)?;
    for table in tables {
        at += 2 * LINE;
        let better = if table.unit == "grants per second" {
            "longer"
        } else {
            "shorter"
        };
        let text = format!("{} ({better} is better, logarithmic)", table.title);
        write(&area, &text, 12, at, &title)?;
        let medians = || table.rows.iter().map(|row| row.median);
        let least = medians().fold(f64::INFINITY, f64::min);
        let most = medians().fold(0.0, f64::max);
        for row in &table.rows {
            at += LINE;
            write(&area, &row.name, 24, at, &plain)?;
            // Twice the median, so that the shortest bar has a length, too.
            let share = (2.0 * row.median / least).ln() / (2.0 * most / least).ln();
            let end = LABELS + pixels(BARS * share);
            let color = if row.name.to_lowercase().starts_with("verrou") {
                OURS
            } else {
                OTHERS
            };
            let corners = [(LABELS, at), (end, at + LINE - 6)];
            area.draw(&Rectangle::new(corners, color.filled()))
                .map_err(broken)?;
            let ratio = row.ratio.unwrap_or(1.0);
            let text = format!("{}   {ratio:.2} ×", show(row.median, &table.unit));
            write(&area, &text, end + 8, at, &plain)?;
        }
    }
    area.present().map_err(broken)
}

fn write(area: &Area<'_>, text: &str, left: i32, top: i32, style: &TextStyle<'_>) -> Result<()> {
    area.draw(&Text::new(text, (left, top), style.clone()))
        .map_err(broken)
}

/// Converts an error of plotters, which borrows the picture.
fn broken(err: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("the chart was not drawn: {err}")
}

#[expect(clippy::cast_possible_truncation, reason = "no wider than the picture")]
fn pixels(length: f64) -> i32 {
    length.round() as i32
}

fn show(value: f64, unit: &str) -> String {
    match unit {
        "nanoseconds" if value < 1e6 => format!("{:.1} µs", value / 1e3),
        "nanoseconds" if value < 1e9 => format!("{:.1} ms", value / 1e6),
        "nanoseconds" => format!("{:.1} s", value / 1e9),
        _ => format!("{value:.0} {unit}"),
    }
}
