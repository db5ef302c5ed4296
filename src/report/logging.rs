//! Log lines, on standard error.

use clap::ValueEnum;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write, stderr};
use std::os::fd::AsFd as _;
use std::sync::Mutex;
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{FilterExt as _, Targets, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How many bytes a pipe that is ready accepts at once (pipe(7), `PIPE_BUF`).
const PIECE: usize = 4096;
/// How long the log's reader may accept nothing, in milliseconds.
const LIMIT_MS: u16 = 1000;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Standard error, which may be a pipe whose reader hangs.
///
/// A write to such a pipe would wait for ever, and delay the refresh of the node's credentials. So a line for which there is no
/// room within a second is lost. The lines after it are lost without another wait, until there is room again; then the log says
/// how many were lost. If the reader has ended, all lines are lost.
#[derive(Debug)]
struct Lines {
    format: LogFormat,
    /// How many lines were lost since the last one that was written.
    lost: u64,
    /// Whether the reader accepted nothing at the last attempt.
    stuck: bool,
    /// Whether the last line was written in part.
    torn: bool,
}

impl Lines {
    fn new(format: LogFormat) -> Self {
        Self { format, lost: 0, stuck: false, torn: false }
    }

    /// Logs how many lines were lost, if any were.
    fn report_lost(&mut self) -> io::Result<()> {
        if self.lost == 0 {
            return Ok(());
        }
        let mut time = String::new();
        // A line without the time is better than none.
        SystemTime.format_time(&mut Writer::new(&mut time)).ok();
        let message = format!("{} log lines were lost: the log was not read", self.lost);
        let mut line = String::new();
        if self.torn {
            line.push('\n');
        }
        let target = module_path!();
        let _infallible = match self.format {
            LogFormat::Text => writeln!(line, "{time}  WARN {message}"),
            LogFormat::Json => writeln!(
                line,
                r#"{{"timestamp":"{time}","level":"WARN","message":"{message}","target":"{target}"}}"#
            ),
        };
        self.put(line.as_bytes())?;
        (self.lost, self.torn) = (0, false);
        Ok(())
    }

    fn put(&mut self, line: &[u8]) -> io::Result<()> {
        for (number, piece) in line.chunks(PIECE).enumerate() {
            self.wait_for_room().and_then(|()| stderr().write_all(piece)).inspect_err(|_| {
                self.torn |= number > 0;
            })?;
        }
        Ok(())
    }

    fn wait_for_room(&mut self) -> io::Result<()> {
        let stderr = stderr();
        let mut polled = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let limit = if self.stuck { PollTimeout::ZERO } else { PollTimeout::from(LIMIT_MS) };
        let ready = loop {
            match poll(&mut polled, limit) {
                Err(Errno::EINTR) => {}
                ready => break ready?,
            }
        };
        self.stuck = ready == 0;
        if self.stuck { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Write for Lines {
    /// Writes one line. It never fails: the caller could do nothing about it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.report_lost().and_then(|()| self.put(line)).is_err() {
            self.lost = self.lost.saturating_add(1);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts logging.
pub fn init(filter: &Targets, format: Option<LogFormat>) {
    let terminal = stderr().is_terminal();
    let has_colors = terminal && colors(variable("NO_COLOR"), variable("TERM"));
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // Joined with `and`, so that no directive can show lines of other crates.
    let filter = filter.clone().and(filter_fn(is_ours));
    let layer = tracing_subscriber::fmt::layer().with_writer(Mutex::new(Lines::new(format)));
    let layer = match format {
        LogFormat::Text => layer.with_ansi(has_colors).with_target(false).boxed(),
        LogFormat::Json => {
            layer.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
        }
    };
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

/// Whether the terminal gets colours: not if `NO_COLOR` is set to anything, or if `TERM` is `dumb`.
fn colors(no_color: Option<OsString>, term: Option<OsString>) -> bool {
    no_color.is_none_or(|value| value.is_empty()) && term.is_none_or(|term| term != "dumb")
}

#[expect(
    clippy::disallowed_methods,
    reason = "variables of every terminal program, which are no settings of this one"
)]
fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// Other crates log what they send and receive, tokens included, and `Debug` forms of errors that hold whole answers. None of
/// their lines is shown, at any level.
fn is_ours(event: &tracing::Metadata<'_>) -> bool {
    event.target() == env!("CARGO_CRATE_NAME")
        || event.target().starts_with(concat!(env!("CARGO_CRATE_NAME"), "::"))
}

/// The filter that shows errors only.
#[must_use]
pub fn errors_only() -> Targets {
    Targets::new().with_default(tracing::Level::ERROR)
}

/// Reads a filter: a level, or `target=level` pairs with commas between them.
///
/// # Errors
/// When the text is no filter. A bare word that is no level is refused too: as a target, it would silence everything else.
pub fn filter(text: &str) -> Result<Targets, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    if let Some(word) = text.split(',').find(|part| !part.contains('=') && !is_level(part)) {
        return Err(format!("`{}` is no level: expected one of {}", word.escape_debug(), LEVELS.join(", ")));
    }
    // Without a level of its own, a filter for one module would silence all others, errors too.
    let has_level = text.split(',').any(is_level);
    let text = if has_level { text.to_owned() } else { format!("info,{text}") };
    text.parse().map_err(|_| "expected a level, or TARGET=LEVEL pairs with commas between them".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_that_wants_no_colours_gets_none() {
        let set = |text: &str| Some(OsString::from(text));
        for (no_color, term, expected) in [
            (None, None, true),
            (None, set("xterm"), true),
            (set(""), set("xterm"), true),
            (set("1"), set("xterm"), false),
            (None, set("dumb"), false),
        ] {
            assert_eq!(colors(no_color.clone(), term.clone()), expected, "{no_color:?} {term:?}");
        }
    }
}
