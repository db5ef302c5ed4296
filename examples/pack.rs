//! Writes the man page and the shell completions, made from the command line itself: `cargo run --example pack -- DIR`.
//!
//! `DIR` is a `share` directory, such as `hostpath-layout/usr/local/share` in a release's archive. An example, so that the
//! program on each node need not carry what makes them.

use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use ecr_node_agent::cli::Cli;
use std::fs::{File, create_dir_all};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const NAME: &str = "ecr-node-agent";

/// Where each shell looks, below `share`.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/ecr-node-agent"),
    (Shell::Zsh, "zsh/site-functions/_ecr-node-agent"),
    (Shell::Fish, "fish/vendor_completions.d/ecr-node-agent.fish"),
];

/// The files that it is about, and what each is.
const FILES: [(&str, &str); 4] = [
    ("/var/lib/kubelet/config.json", "The auth file, unless --auth-file names another."),
    ("/var/lib/kubelet/config.json.invalid-TIME", "What the kubelet could not read, kept beside it."),
    ("/var/lib/kubelet/ecr-node-agent/", "Where the auth file is in the linked layout."),
    ("/etc/default/ecr-node-agent", "What the systemd units run with."),
];

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1);
    match directory
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other("say where"))
        .and_then(|share| pack(&share))
    {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            writeln!(io::stderr(), "pack: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

fn pack(share: &Path) -> io::Result<()> {
    for (shell, path) in SHELLS {
        let mut out = create(&share.join(path))?;
        clap_complete::generate(shell, &mut Cli::command(), NAME, &mut out);
        out.sync_all()?;
    }
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    page(share, NAME, &command)?;
    for subcommand in command.get_subcommands() {
        page(share, &format!("{NAME}-{}", subcommand.get_name()), subcommand)?;
    }
    Ok(())
}

/// Writes the page of the program, or of one subcommand.
fn page(share: &Path, name: &str, command: &clap::Command) -> io::Result<()> {
    let mut out = create(&share.join(format!("man/man1/{name}.1")))?;
    let is_whole = name == NAME;
    let command = command.clone().display_name(name).version(env!("CARGO_PKG_VERSION"));
    // Without a date, the same sources make the same page.
    let page = Man::new(command.clone()).source(format!("{NAME} {}", env!("CARGO_PKG_VERSION")));
    page.render_title(&mut out)?;
    page.render_name_section(&mut out)?;
    page.render_synopsis_section(&mut out)?;
    page.render_description_section(&mut out)?;
    page.render_options_section(&mut out)?;
    let mut more = Roff::new();
    if is_whole {
        page.render_subcommands_section(&mut out)?;
        more.control("SH", ["ENVIRONMENT"]);
        more.text([roman("Each option has a variable. Where both are given, the option counts.")]);
        for option in command.get_arguments() {
            if let (Some(variable), Some(long)) = (option.get_env(), option.get_long()) {
                let option = bold(format!("--{long}"));
                more.control("TP", []).text([italic(variable.to_string_lossy())]).text([option]);
            }
        }
        // What --help says at its end, with a heading for each part.
        let last_words = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for (heading, text) in ["CREDENTIALS", "EXIT STATUS"].into_iter().zip(last_words.split("\n\n")) {
            more.control("SH", [heading]).text([roman(text)]);
        }
        more.control("SH", ["FILES"]);
        for (path, what) in FILES {
            more.control("TP", []).text([italic(path)]).text([roman(what)]);
        }
    }
    more.control("SH", ["SEE ALSO"]);
    let whole = Cli::command();
    let subcommands = whole.get_subcommands().map(|subcommand| format!("{NAME}-{}", subcommand.get_name()));
    let pages = std::iter::once(NAME.to_owned()).chain(subcommands);
    let others: Vec<_> = pages.filter(|page| page != name).collect();
    for (number, other) in others.iter().enumerate() {
        let end = if number + 1 < others.len() { "(1)," } else { "(1)" };
        more.text([bold(other.as_str()), roman(end)]);
    }
    more.to_writer(&mut out)?;
    out.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    create_dir_all(path.parent().unwrap_or(path))?;
    File::create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_and_subcommand_is_in_the_page_and_in_each_completion() {
        let share = tempfile::tempdir().unwrap();
        pack(share.path()).unwrap();
        let read = |path: &str| std::fs::read_to_string(share.path().join(path)).unwrap();
        let page = read("man/man1/ecr-node-agent.1").replace("\\-", "-");
        let mut command = Cli::command();
        command.build();
        let mut options = 0;
        for option in command.get_arguments() {
            let long = option.get_long().unwrap();
            options += 1;
            assert!(page.contains(&format!("--{long}")), "--{long} is not in the page");
            if let Some(variable) = option.get_env() {
                assert!(
                    page.contains(variable.to_str().unwrap()),
                    "{} is not in the page",
                    variable.display()
                );
            }
            for (shell, path) in SHELLS {
                let word = if shell == Shell::Fish { format!("-l {long} ") } else { format!("--{long}") };
                assert!(read(path).contains(&word), "--{long} is not in {shell}'s completions");
            }
        }
        assert!(options > 10);
        for subcommand in command.get_subcommands().map(clap::Command::get_name) {
            for (shell, path) in SHELLS {
                assert!(read(path).contains(subcommand), "{subcommand} is not in {shell}'s completions");
            }
            if subcommand != "help" {
                assert!(page.contains(&format!("{NAME}-{subcommand}")), "{subcommand} is not in the page");
                let own = read(&format!("man/man1/{NAME}-{subcommand}.1")).replace("\\-", "-");
                assert!(own.contains("--auth-file"), "{subcommand}'s page lacks options");
            }
        }
        for part in ["EXIT STATUS", "CREDENTIALS", "FILES", "SEE ALSO"] {
            assert!(page.contains(part), "{part}");
        }
    }

    #[test]
    fn a_place_is_needed() {
        assert!(pack(Path::new("/proc/nowhere")).is_err());
    }
}
