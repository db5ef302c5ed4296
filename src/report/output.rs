//! How commands print what they found.

use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use std::io::{self, Write};

/// The format of what a command prints on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    Text,
    /// JSON for programs.
    Json,
}

/// Prints a value as JSON, with a line end.
///
/// # Errors
/// When the output cannot be written.
pub fn print_json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Prints rows with aligned columns.
///
/// # Errors
/// When the output cannot be written.
pub fn print_table<const N: usize>(
    out: &mut impl Write,
    indent: &str,
    rows: &[[String; N]],
) -> io::Result<()> {
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    for row in rows {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{indent}{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// A moment as people say it: `in 11h 3m`, `5m ago`.
#[must_use]
pub fn relative(at: Timestamp, now: Timestamp) -> String {
    let span = at.duration_since(now);
    let whole = SignedDuration::from_secs(span.as_secs().abs() / 60 * 60);
    if span.is_negative() { format!("{whole:#} ago") } else { format!("in {whole:#}") }
}
