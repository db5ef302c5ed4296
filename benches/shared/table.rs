//! Tables with targets.
#![expect(unreachable_pub, reason = "a module of several programs")]

/// A target, and whether the figure reaches it.
pub fn verdict(target: &str, is_reached: bool) -> String {
    format!("{target}: {}", if is_reached { "reached" } else { "missed" })
}

/// A Markdown table; the first row is its head.
pub fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..COLUMNS).map(width).collect();
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let padded = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        line(cells.collect())
    };
    let rule = line(widths.iter().map(|width| "-".repeat(*width)).collect());
    let mut lines = rows.iter().map(padded);
    [lines.next().unwrap_or_default(), rule].into_iter().chain(lines).collect()
}
