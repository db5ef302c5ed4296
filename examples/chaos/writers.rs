//! How other programs write a file: in place, by a rename, by way of a backup, slowly, in pieces.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// A way of writing a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Style {
    /// `cat new > file`: truncate, then write.
    Redirection,
    /// The same, with a pause before the first byte.
    SlowProducer,
    /// In fifty pieces.
    Pieces,
    /// `cp new file`.
    Copy,
    /// `tee file`.
    Tee,
    /// `install -m 600 new file`.
    Install,
    /// A new file and a rename.
    Rename,
    /// Rename the original, create and write a new file, delete the original: some editors.
    Backup,
    /// `rm file`, then a write.
    RemoveThenWrite,
    /// `sed -i`.
    Sed,
    /// `dd of=file`, without truncating first.
    Dd,
}

const ALL: [Style; 11] = [
    Style::Redirection,
    Style::SlowProducer,
    Style::Pieces,
    Style::Copy,
    Style::Tee,
    Style::Install,
    Style::Rename,
    Style::Backup,
    Style::RemoveThenWrite,
    Style::Sed,
    Style::Dd,
];

impl Style {
    /// Any of them.
    pub fn any(rng: &mut fastrand::Rng) -> Self {
        ALL[rng.usize(0..ALL.len())]
    }

    /// Puts `content` into the file.
    pub fn write(self, file: &Path, content: &str, rng: &mut fastrand::Rng) -> io::Result<()> {
        let new = file.with_file_name("other-program.new");
        fs::write(&new, content)?;
        let done = self.put(file, &new, content, rng);
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        done
    }

    fn put(self, file: &Path, new: &Path, content: &str, rng: &mut fastrand::Rng) -> io::Result<()> {
        match self {
            Self::Redirection => shell("cat \"$1\" > \"$2\"", &[new, file]),
            Self::SlowProducer => {
                let seconds = if rng.u8(0..4) == 0 { rng.u8(1..6) } else { 0 };
                let delay = format!("{{ sleep {seconds}.{:02}; cat \"$1\"; }} > \"$2\"", rng.u8(1..99));
                shell(&delay, &[new, file])
            }
            Self::Pieces => {
                let mut open = OpenOptions::new().write(true).create(true).truncate(true).open(file)?;
                let pause = Duration::from_millis(rng.u64(1..40));
                for piece in content.as_bytes().chunks(content.len() / 50 + 1) {
                    open.write_all(piece)?;
                    sleep(pause);
                }
                Ok(())
            }
            Self::Copy => shell("cp \"$1\" \"$2\"", &[new, file]),
            Self::Tee => shell("tee \"$2\" < \"$1\" > /dev/null", &[new, file]),
            Self::Install => shell("install -m 600 \"$1\" \"$2\"", &[new, file]),
            Self::Rename => fs::rename(new, file),
            Self::Backup => {
                let backup = file.with_file_name("config.json~");
                match fs::rename(file, &backup) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                let mut open = OpenOptions::new().write(true).create(true).truncate(true).open(file)?;
                sleep(Duration::from_millis(rng.u64(0..30)));
                open.write_all(content.as_bytes())?;
                drop(open);
                fs::remove_file(backup).or(Ok(()))
            }
            Self::RemoveThenWrite => {
                fs::remove_file(file).or_else(|error| match error.kind() {
                    io::ErrorKind::NotFound => Ok(()),
                    _ => Err(error),
                })?;
                sleep(Duration::from_millis(rng.u64(0..100)));
                fs::write(file, content)
            }
            // `sed -i` writes a new file and renames it. The new content comes from the other file.
            Self::Sed => shell(
                "if [ -s \"$2\" ]; then sed -i -e '1r '\"$1\" -e d \"$2\"; else cat \"$1\" > \"$2\"; fi",
                &[new, file],
            ),
            Self::Dd => {
                // Padded, so that no end of a longer document stays, also if the agent writes a longer one meanwhile.
                let size = fs::metadata(file).map_or(0, |found| found.len());
                let padding = (usize::try_from(size).unwrap_or(0) + 4096).saturating_sub(content.len());
                fs::write(new, format!("{content}{}", " ".repeat(padding)))?;
                shell("dd if=\"$1\" of=\"$2\" conv=notrunc status=none bs=64", &[new, file])
            }
        }
    }
}

fn shell(script: &str, arguments: &[&Path]) -> io::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).args(arguments).stdin(Stdio::null()).stderr(Stdio::null());
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(io::Error::other(format!("`{script}` failed: {status}"))) }
}
