//! Log lines, on standard error.

use clap::ValueEnum;
use std::io::{IsTerminal as _, stderr};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Starts logging.
pub fn init(filter: &Targets, format: Option<LogFormat>) {
    let terminal = stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // Joined with `and`, so that no directive can bring back what must not be shown.
    let filter = filter.clone().and(filter_fn(is_ours));
    let layer = tracing_subscriber::fmt::layer().with_writer(stderr);
    let layer = match format {
        LogFormat::Text => layer.with_ansi(terminal).with_target(false).boxed(),
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

/// Other crates log what they send and receive, our token among it, and `Debug` forms of errors that carry whole
/// answers: nothing of theirs is shown, at any level.
fn is_ours(event: &tracing::Metadata<'_>) -> bool {
    event.target() == env!("CARGO_CRATE_NAME")
        || event.target().starts_with(concat!(env!("CARGO_CRATE_NAME"), "::"))
}

/// Reads a filter: a level, or `target=level` pairs with commas between them.
///
/// # Errors
/// When it is none. A bare word that is no level is refused too: taken as a target, it would silence everything else.
pub fn filter(text: &str) -> Result<Targets, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    if let Some(word) = text.split(',').find(|part| !part.contains('=') && !is_level(part)) {
        return Err(format!("`{}` is no level: expected one of {}", word.escape_debug(), LEVELS.join(", ")));
    }
    // Without a level of its own, a filter for one room would silence all the others, errors too.
    let has_level = text.split(',').any(is_level);
    let text = if has_level { text.to_owned() } else { format!("info,{text}") };
    text.parse().map_err(|_| "expected a level, or TARGET=LEVEL pairs with commas between them".to_owned())
}
