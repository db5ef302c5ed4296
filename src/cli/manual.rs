//! The manual pages and the completion scripts, made from the command line itself.

use super::args::Cli;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use std::io;

/// The program's name.
pub const NAME: &str = "ecr-node-agent";

/// The files that the program works with, and what each is.
const FILES: [(&str, &str); 6] = [
    ("/var/lib/kubelet/config.json", "The auth file, unless --auth-file names another."),
    ("/var/lib/kubelet/config.json.invalid-TIME", "A copy of a file that the kubelet could not read."),
    ("/var/lib/kubelet/ecr-node-agent/", "The directory of the auth file in the linked layout."),
    (
        "/run/ecr-node-agent/config.json",
        "An auth file on a tmpfs, in which credential-provider looks for tokens.",
    ),
    ("/run/ecr-node-agent/state.json", "The daemon's state, which status prints."),
    ("/etc/default/ecr-node-agent", "The settings of the systemd units."),
];

/// The completion script for a shell.
#[must_use]
pub fn completion(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), NAME, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The subcommands that have a page of their own.
#[must_use]
pub fn subcommands() -> Vec<String> {
    let command = Cli::command();
    command.get_subcommands().map(|subcommand| subcommand.get_name().to_owned()).collect()
}

/// The manual page of the program, or of one subcommand, in roff.
#[must_use]
pub fn page(subcommand: Option<&str>) -> String {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    let written = match subcommand {
        None => write(&mut page, NAME, &command, true),
        Some(name) => match command.find_subcommand(name) {
            Some(subcommand) => write(&mut page, &format!("{NAME}-{name}"), subcommand, false),
            None => Ok(()),
        },
    };
    // A vector takes everything.
    written.unwrap_or_default();
    String::from_utf8_lossy(&page).into_owned()
}

fn write(out: &mut Vec<u8>, name: &str, command: &clap::Command, is_program: bool) -> io::Result<()> {
    let command = command.clone().display_name(name).version(env!("CARGO_PKG_VERSION"));
    // Without a date, the same sources make the same page.
    let page = Man::new(command.clone()).source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")));
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    let mut more = Roff::new();
    if is_program {
        page.render_subcommands_section(out)?;
        more.control("SH", ["ENVIRONMENT"]);
        more.text([roman("Each option has a variable. If both are given, the option is used.")]);
        for option in command.get_arguments() {
            if let (Some(variable), Some(long)) = (option.get_env(), option.get_long()) {
                let option = bold(format!("--{long}"));
                more.control("TP", []).text([italic(variable.to_string_lossy())]).text([option]);
            }
        }
        // The end of --help, with a heading for each part.
        let end_of_help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let headings = ["CREDENTIALS", "API SERVER", "EXIT STATUS"];
        for (heading, text) in headings.into_iter().zip(end_of_help.split("\n\n")) {
            more.control("SH", [heading]).text([roman(text)]);
        }
        more.control("SH", ["FILES"]);
        for (path, what) in FILES {
            more.control("TP", []).text([italic(path)]).text([roman(what)]);
        }
    }
    more.control("SH", ["SEE ALSO"]);
    let pages = std::iter::once(NAME.to_owned())
        .chain(subcommands().into_iter().map(|subcommand| format!("{NAME}-{subcommand}")));
    let others: Vec<_> = pages.filter(|page| page != name).collect();
    for (number, other) in others.iter().enumerate() {
        let end = if number + 1 < others.len() { "(1)," } else { "(1)" };
        more.text([bold(other.as_str()), roman(end)]);
    }
    more.to_writer(out)
}
