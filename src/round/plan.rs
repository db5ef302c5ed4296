//! What `--dry-run` prints, on standard output: the changes that the round would make.

use super::Round;
use crate::auth_file::{DIRECTORY, Effect, Link, Note};
use crate::docker_config::key::shown;
use crate::pull_secret::Done;
use crate::pull_secret::names::Name;
use crate::pull_secret::publish as secret;
use crate::pull_secret::reconcile::WriteReason;
use std::io::{self, Write as _};
use std::path::Path;

/// Prints what the round would change.
///
/// # Errors
/// When standard output cannot be written.
pub fn print_plan(round: &Round) -> io::Result<()> {
    let out = &mut io::stdout().lock();
    for published in &round.published {
        let path = published.path.display();
        let link = published.result.as_ref().ok().and_then(|outcome| outcome.link.as_ref());
        match published.result.as_ref().map(|outcome| &outcome.effect) {
            Err(_) | Ok(Effect::NotAtRest { .. }) => writeln!(out, "{path}: cannot be changed")?,
            Ok(Effect::Unchanged | Effect::ModeRestored) if link.is_some() => {}
            Ok(Effect::Unchanged | Effect::ModeRestored) => writeln!(out, "{path}: would stay as it is")?,
            Ok(Effect::Deleted(_)) => writeln!(out, "{path}: would be deleted: nothing would be left in it")?,
            Ok(Effect::Replaced(changes)) => {
                writeln!(out, "{path}: would be replaced")?;
                for (key, expires_at) in &changes.written {
                    writeln!(out, "  write   {key} (token redacted, valid until {expires_at})")?;
                }
                for key in changes.taken_over.iter().map(|key| shown(key)) {
                    writeln!(out, "  take    {key} (an entry that another program wrote)")?;
                }
                for key in changes.removed.iter().map(|key| shown(key)) {
                    writeln!(out, "  remove  {key}")?;
                }
                let notes = published.result.iter().flat_map(|outcome| &outcome.notes);
                for note in notes.clone() {
                    writeln!(out, "  note    {note}")?;
                }
                if !notes.clone().any(|note| matches!(note, Note::WouldSetAside { .. })) {
                    writeln!(out, "  everything else stays")?;
                }
            }
        }
        match link {
            None => {}
            Some(Link::Made) => {
                writeln!(out, "{path}: would become a link to the same file in {DIRECTORY}/")?;
            }
            Some(Link::Undone { left }) => {
                writeln!(out, "{path}: would no longer be a link")?;
                for name in left {
                    writeln!(out, "  keep    {DIRECTORY}/{}", Path::new(name).display())?;
                }
            }
        }
    }
    for done in &round.secrets {
        let what = match &done.result {
            Err(_) => "cannot be changed".to_owned(),
            Ok(Done::Secret(published)) => secret_plan(published),
            Ok(Done::Patched(names)) if names.is_empty() => "would stay as it is".to_owned(),
            Ok(Done::Patched(names)) => {
                let names: Vec<&str> = names.iter().map(Name::as_str).collect();
                format!("would get the pull secret {}", names.join(", "))
            }
        };
        writeln!(out, "{}: {what}", done.target)?;
    }
    Ok(())
}

fn secret_plan(published: &secret::Published) -> String {
    let until = published.ends.values().min().map(|end| format!(" (token redacted, valid until {end})"));
    let until = until.unwrap_or_default();
    match &published.effect {
        secret::Effect::Unchanged | secret::Effect::PutOff | secret::Effect::Overtaken => {
            "would stay as it is".to_owned()
        }
        secret::Effect::NotOurs => "would stay: another field manager has set its content".to_owned(),
        secret::Effect::Deleted => "would be deleted".to_owned(),
        secret::Effect::Written(WriteReason::Missing) => format!("would be created{until}"),
        secret::Effect::Written(WriteReason::New | WriteReason::Changed) => {
            format!("would be updated{until}")
        }
        secret::Effect::Written(WriteReason::TakenOver(keys)) => {
            let keys: Vec<String> = keys.iter().map(|key| shown(key)).collect();
            let lost =
                if keys.is_empty() { String::new() } else { format!(", and lose {}", keys.join(", ")) };
            format!("would be taken over{until}{lost}")
        }
    }
}
