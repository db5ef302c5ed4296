//! How commands print what they found.

use clap::ValueEnum;

/// The format of what a command prints on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// A table for people.
    Text,
    /// JSON for programs.
    Json,
}
