//! Log lines, on standard error.

use clap::ValueEnum;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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

/// What a pipe takes at once if it takes anything (pipe(7), `PIPE_BUF`).
const PIECE: usize = 4096;
/// How long a reader may take nothing.
const PATIENCE_MS: u16 = 1000;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Standard error, for as long as somebody reads it.
///
/// Where the log goes through a pipe whose reader hangs, a write would wait for ever, and the refresh of the node's
/// credentials with it. So a line for which there is no room within a second is lost, and so are all after it, without
/// another wait, until there is room. Then their number is told. A reader that is gone loses them all.
#[derive(Debug)]
struct Lines {
    format: LogFormat,
    lost: u64,
    /// The reader took nothing when we last asked.
    stuck: bool,
    /// The last line is not whole.
    torn: bool,
}

impl Lines {
    fn new(format: LogFormat) -> Self {
        Self { format, lost: 0, stuck: false, torn: false }
    }

    /// Says how many lines were lost, if any were.
    fn tell_lost(&mut self) -> io::Result<()> {
        if self.lost == 0 {
            return Ok(());
        }
        let mut time = String::new();
        // Without it the line is as good.
        SystemTime.format_time(&mut Writer::new(&mut time)).ok();
        let message = format!("{} log lines were lost: nobody read them", self.lost);
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
        let mut asked = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        let patience = if self.stuck { PollTimeout::ZERO } else { PollTimeout::from(PATIENCE_MS) };
        let ready = loop {
            match poll(&mut asked, patience) {
                Err(Errno::EINTR) => {}
                ready => break ready?,
            }
        };
        self.stuck = ready == 0;
        if self.stuck { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Write for Lines {
    /// Takes one line. It never fails: whoever logs could do nothing about it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.tell_lost().and_then(|()| self.put(line)).is_err() {
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
    let format = format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    // Joined with `and`, so that no directive can bring back what must not be shown.
    let filter = filter.clone().and(filter_fn(is_ours));
    let layer = tracing_subscriber::fmt::layer().with_writer(Mutex::new(Lines::new(format)));
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

/// The filter that shows errors only.
#[must_use]
pub fn errors_only() -> Targets {
    Targets::new().with_default(tracing::Level::ERROR)
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
