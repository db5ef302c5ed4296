//! The command line: arguments and environment become a checked command.
//!
//! Two stages: [`args`] is what clap reads, [`check`] decides what it means together. Every usage error is one of clap's, so
//! that all of them look the same and go to standard error as text.

mod args;
mod aws;
mod check;
mod error;
pub mod manual;
mod value;

use crate::report::logging::{self, LogFormat};
use crate::settings::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};
use std::ffi::OsString;
use tracing_subscriber::filter::Targets;

pub use args::Cli;
pub use error::UsageError;

/// What the user asked for.
#[derive(Debug)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// What to log.
    pub log_filter: Targets,
    /// How to log; `None` if that depends on standard error.
    pub log_format: Option<LogFormat>,
}

/// Reads the arguments, program name first, and the environment.
///
/// # Errors
/// When they cannot be used. Also when the user asked for help or the version: clap prints these as errors.
pub fn parse(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> Result<Invocation, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let mut command = Cli::command();
    let arguments = subcommand_first(&command, arguments);
    let matches = command
        .try_get_matches_from_mut(&arguments)
        .map_err(|error| name_the_variable(error, &command, &arguments))?;
    let cli = Cli::from_arg_matches(&matches)?;
    let (checked, log) =
        check::check(cli, &matches).map_err(|error| usage(&error, &mut command, &matches))?;
    let (log_filter, log_format) = match log {
        Some(log) => (log.log_level, log.log_format),
        None => (logging::errors_only(), None),
    };
    Ok(Invocation { command: checked, log_filter, log_format })
}

/// Moves a subcommand before the options that precede it: `--interval 6h status` is `status --interval 6h`. So each
/// subcommand knows only its own options, wherever they stand.
fn subcommand_first(command: &clap::Command, mut arguments: Vec<OsString>) -> Vec<OsString> {
    let is_subcommand =
        |argument: &OsString| argument.to_str().is_some_and(|it| command.find_subcommand(it).is_some());
    if !arguments.iter().skip(2).any(is_subcommand) {
        return arguments;
    }
    // The options of all subcommands, which are built only for this.
    let mut complete = command.clone();
    complete.build();
    let takes_value = |long: &str| {
        let option =
            complete.get_arguments().chain(complete.get_subcommands().flat_map(clap::Command::get_arguments));
        let mut same = option.filter(|option| option.get_long() == Some(long));
        same.any(|option| option.get_action().takes_values())
    };
    let mut at = 1;
    while let Some(argument) = arguments.get(at).and_then(|argument| argument.to_str()) {
        match argument.strip_prefix("--") {
            Some("") => break,
            Some(long) if !long.contains('=') && takes_value(long) => at += 2,
            Some(_) => at += 1,
            None if argument.starts_with('-') => at += 1,
            None => {
                if command.find_subcommand(argument).is_some() {
                    arguments[1..=at].rotate_right(1);
                }
                break;
            }
        }
    }
    arguments
}

/// Names the variable in an error about a value that is not on the command line.
fn name_the_variable(mut error: clap::Error, command: &clap::Command, arguments: &[OsString]) -> clap::Error {
    let Some(ContextValue::String(argument)) = error.get(ContextKind::InvalidArg) else { return error };
    let Some(long) = argument.strip_prefix("--").and_then(|long| long.split([' ', '=']).next()) else {
        return error;
    };
    let is_given = arguments.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        argument.strip_prefix("--").is_some_and(|argument| argument.split('=').next() == Some(long))
    });
    let options =
        command.get_arguments().chain(command.get_subcommands().flat_map(clap::Command::get_arguments));
    let variable = options
        .filter(|option| option.get_long() == Some(long) && !is_given)
        .find_map(|option| option.get_env()?.to_str().map(str::to_owned));
    if let Some(variable) = variable {
        error.insert(ContextKind::InvalidArg, ContextValue::String(variable));
    }
    error
}

/// A usage error as clap prints it. An option whose value came from its variable is called by the variable's name.
fn usage(error: &UsageError, command: &mut clap::Command, matches: &ArgMatches) -> clap::Error {
    let (command, matches) = match matches.subcommand() {
        Some((name, matches)) => match command.find_subcommand_mut(name) {
            Some(subcommand) => (subcommand, matches),
            None => return command.error(ErrorKind::ValueValidation, error),
        },
        None => (command, matches),
    };
    let mut message = format!("{error} ");
    for option in command.get_arguments() {
        let is_variable = matches.value_source(option.get_id().as_str()) == Some(ValueSource::EnvVariable);
        if let (true, Some(long), Some(variable)) = (is_variable, option.get_long(), option.get_env()) {
            for end in [" ", ":", ","] {
                let named = format!("{}{end}", variable.to_string_lossy());
                message = message.replace(&format!("--{long}{end}"), &named);
            }
        }
    }
    command.error(ErrorKind::ValueValidation, message.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_subcommand_keeps_its_description_when_its_options_are_built() {
        let listed = Cli::command();
        let mut complete = Cli::command();
        complete.build();
        for subcommand in listed.get_subcommands() {
            let built = complete.find_subcommand(subcommand.get_name()).unwrap();
            let description = |it: &clap::Command| it.get_about().map(ToString::to_string);
            assert!(description(subcommand).is_some());
            assert_eq!(description(built), description(subcommand));
        }
    }

    #[test]
    fn a_subcommand_comes_before_its_options() {
        let cases = [
            ("p --interval 6h status --output json", "p status --interval 6h --output json"),
            ("p --auth-file=/a --dry-run remove", "p remove --auth-file=/a --dry-run"),
            ("p status", "p status"),
            ("p --auth-file status --once", "p --auth-file status --once"),
            ("p -h explain", "p explain -h"),
            ("p --once", "p --once"),
            ("p nothing --once", "p nothing --once"),
            ("p -- status", "p -- status"),
        ];
        for (given, expected) in cases {
            let words = given.split(' ').map(OsString::from).collect();
            let words: Vec<_> = subcommand_first(&Cli::command(), words)
                .into_iter()
                .map(|word| word.into_string().unwrap())
                .collect();
            assert_eq!(words.join(" "), expected);
        }
    }
}
