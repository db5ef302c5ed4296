//! Writes the manual pages and the shell completions into a `share` directory, such as `hostpath-layout/usr/local/share` in
//! a release's archive: `cargo run --example pack -- DIR`.

use clap_complete::Shell;
use ecr_node_agent::cli::manual::{NAME, completion, page, subcommands};
use std::fs::{File, create_dir_all};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Where each shell looks, below `share`.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/ecr-node-agent"),
    (Shell::Zsh, "zsh/site-functions/_ecr-node-agent"),
    (Shell::Fish, "fish/vendor_completions.d/ecr-node-agent.fish"),
];

fn main() -> ExitCode {
    let directory = std::env::args_os().nth(1);
    match directory
        .map(PathBuf::from)
        .ok_or_else(|| io::Error::other("give the directory"))
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
        write(&share.join(path), &completion(shell))?;
    }
    write(&share.join(format!("man/man1/{NAME}.1")), &page(None))?;
    for name in subcommands() {
        write(&share.join(format!("man/man1/{NAME}-{name}.1")), &page(Some(&name)))?;
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    create_dir_all(path.parent().unwrap_or(path))?;
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use ecr_node_agent::cli::Cli;

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
                let has_a_log = !["completion", "credential-provider", "man"].contains(&subcommand);
                assert_eq!(own.contains("--log-level"), has_a_log, "{subcommand}");
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
