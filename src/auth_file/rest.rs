//! Whether another program is still writing the file (no I/O).
//!
//! Most programs write in steps: a shell truncates the file and starts a program that writes it; an editor renames the
//! original away, creates a new file and writes it. A file between two such steps must not be judged: an empty file would
//! look like no file, and half a file like a damaged one.

use super::judge::Content;
use super::memory::Quiet;
use std::time::Duration;

/// How often to look at a file that a program has open for writing.
const OPEN: Duration = Duration::from_millis(500);
/// How long a whole document must stay unchanged, if no program has it open for writing.
const WHOLE: Duration = Duration::from_millis(200);
/// The same, if it is not known whether a program has it open for writing.
const WHOLE_UNCERTAIN: Duration = Duration::from_millis(500);
/// How long a file must stay missing, empty or damaged, if no program has it open for writing: the time that a program may
/// take between two steps.
const BROKEN: Duration = Duration::from_millis(700);
/// The same, if it is not known whether a program has it open for writing.
const BROKEN_UNCERTAIN: Duration = Duration::from_secs(10);
/// How many of the longest pauses so far to wait for the next step.
const PAUSES: u32 = 4;
/// How long to wait for rest if the document is whole: a program that replaces it again and again loses nothing then.
const LONGEST_WHOLE: Duration = Duration::from_secs(5);
/// How long to wait for rest otherwise. A program that keeps the file open must not keep the credentials away for ever. Shorter
/// than the default of `--timeout`, so that `--once` writes in the end.
const LONGEST: Duration = Duration::from_secs(50);

/// The kubelet goes on using what it has read for so long.
pub(super) const KUBELET_CACHE: Duration = Duration::from_mins(5);

/// What is known about writers of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    /// How complete the file looks.
    pub(super) completeness: Completeness,
    /// Whether it is just as the agent has left it.
    pub(super) left_by_agent: bool,
    /// How long it has been as it is.
    pub(super) quiet: Quiet,
}

/// How complete a file looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completeness {
    /// A whole document.
    Whole,
    /// Missing: no program can have it open.
    Missing,
    /// Empty or damaged: it may be half written.
    Partial,
}

/// What the signs mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    /// No program is writing the file: it can be judged.
    Judge,
    /// A program may still be writing the file: look again after this time.
    Wait(Duration),
    /// The file is not at rest, but the agent has waited long enough.
    GivenUp,
}

impl Completeness {
    pub(super) fn of(content: &Content<'_>) -> Self {
        match content {
            Content::Missing => Self::Missing,
            Content::Empty | Content::Defective { .. } | Content::Broken { .. } => Self::Partial,
            Content::Whole(_) | Content::CannotPreserve(_) | Content::OtherProgram(_) => Self::Whole,
        }
    }
}

/// Whether the file can be judged. `open_for_writing` says whether a program has the file open for writing, `None` if that is
/// not known. It is asked only where it can matter, since the answer takes time: if the file may be judged otherwise, and is
/// not a whole document that no program had changed for 50 seconds when the agent came.
pub(super) fn rest(signs: &Signs, open_for_writing: impl FnOnce() -> Option<bool>) -> Rest {
    let completeness = signs.completeness;
    // A program that has paused between two steps may pause again, and longer on a busy machine.
    let pause = (signs.quiet.longest_pause * PAUSES).min(BROKEN_UNCERTAIN);
    let quiet = |open| match (completeness, open) {
        (Completeness::Whole, Some(_)) => WHOLE,
        (Completeness::Whole, None) => WHOLE_UNCERTAIN,
        (Completeness::Missing, _) | (Completeness::Partial, Some(_)) => BROKEN.max(pause),
        (Completeness::Partial, None) => BROKEN_UNCERTAIN,
    };
    let wait = |open| match open {
        Some(true) => OPEN,
        _ if signs.left_by_agent => Duration::ZERO,
        open => quiet(open).saturating_sub(signs.quiet.unchanged_for),
    };
    let longest = |open| match (completeness, open) {
        (Completeness::Whole, None | Some(false)) => LONGEST_WHOLE,
        _ => LONGEST,
    };
    let is_over = |open| signs.quiet.waiting_for >= longest(open);
    // No program can have a missing file open.
    let closed = Some(false);
    let can_matter = match completeness {
        Completeness::Whole => signs.quiet.unchanged_for < LONGEST + signs.quiet.waiting_for,
        Completeness::Missing => false,
        Completeness::Partial => true,
    };
    let is_to_ask = can_matter && (wait(closed).is_zero() || is_over(closed));
    let open = if is_to_ask { open_for_writing() } else { closed };
    match wait(open) {
        // A program that opens the file again and again may have hindered the agent for so long.
        Duration::ZERO if signs.quiet.waiting_for < LONGEST => Rest::Judge,
        _ if is_over(open) => Rest::GivenUp,
        wait => Rest::Wait(wait),
    }
}

/// Whether the kubelet has been reading another file because of the state of this one, so that its entries may be copied
/// into this one.
///
/// `has_seen_good` says whether the agent has seen a good version of this file: then the kubelet has read this one. A file
/// that is empty or damaged may have been good a moment ago, and the kubelet goes on with what it has cached. Root's own
/// credentials must not become every pod's because a program has truncated the file.
pub(super) fn reads_another(
    completeness: Completeness,
    unchanged_for: Duration,
    has_seen_good: bool,
) -> Result<(), &'static str> {
    match completeness {
        _ if has_seen_good => Err("the kubelet was reading this file, and not that one"),
        Completeness::Whole => Err("this file is a docker config already"),
        Completeness::Missing => Ok(()),
        Completeness::Partial if unchanged_for >= KUBELET_CACHE => Ok(()),
        Completeness::Partial => {
            Err("this file was changed less than five minutes ago, and the kubelet may have read it before")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_judged_only_at_rest() {
        use Completeness::{Missing, Partial, Whole};

        let ms = Duration::from_millis;
        let cases = [
            // what it is, open for writing, unchanged for, waiting for, longest pause, what to do
            (Whole, Some(false), 200, 0, 0, Rest::Judge),
            (Whole, Some(false), 50, 0, 0, Rest::Wait(ms(150))),
            (Whole, Some(false), 50, 5_000, 0, Rest::GivenUp),
            (Whole, Some(true), 49_999, 0, 0, Rest::Wait(OPEN)),
            (Whole, Some(true), 49_999, 49_999, 0, Rest::Wait(OPEN)),
            (Whole, Some(true), 49_999, 50_000, 0, Rest::GivenUp),
            (Whole, Some(true), 50_000, 50_000, 0, Rest::GivenUp),
            (Whole, Some(true), 50_000, 0, 0, Rest::Judge),
            (Whole, None, 200, 0, 0, Rest::Wait(ms(300))),
            (Whole, None, 500, 0, 0, Rest::Judge),
            (Whole, Some(true), 50, 0, 0, Rest::Wait(ms(150))),
            (Whole, Some(true), 50, 5_000, 0, Rest::Wait(OPEN)),
            (Whole, None, 50, 5_000, 0, Rest::GivenUp),
            (Whole, None, 500, 49_999, 0, Rest::Judge),
            (Whole, None, 500, 50_000, 0, Rest::GivenUp),
            (Missing, None, 0, 0, 0, Rest::Wait(BROKEN)),
            (Missing, None, 700, 0, 0, Rest::Judge),
            (Partial, Some(false), 500, 0, 0, Rest::Wait(ms(200))),
            (Partial, Some(false), 700, 0, 0, Rest::Judge),
            (Partial, Some(true), 49_000, 49_000, 0, Rest::Wait(OPEN)),
            (Partial, Some(true), 49_000, 50_000, 0, Rest::GivenUp),
            (Partial, Some(false), 700, 1_500, 600, Rest::Wait(ms(1_700))),
            (Partial, Some(false), 2_400, 1_500, 600, Rest::Judge),
            (Missing, None, 9_000, 9_000, 9_000, Rest::Wait(ms(1_000))),
            (Whole, Some(false), 200, 1_500, 600, Rest::Judge),
            (Partial, None, 9_000, 0, 0, Rest::Wait(ms(1_000))),
            (Partial, None, 10_000, 0, 0, Rest::Judge),
        ];
        for (completeness, open_for_writing, unchanged, waiting, pause, expected) in cases {
            let signs = Signs {
                completeness,
                left_by_agent: false,
                quiet: Quiet {
                    unchanged_for: ms(unchanged),
                    waiting_for: ms(waiting),
                    longest_pause: ms(pause),
                },
            };
            assert_eq!(rest(&signs, || open_for_writing), expected, "{signs:?}, {open_for_writing:?}");
        }
        let left = Signs {
            completeness: Whole,
            left_by_agent: true,
            quiet: Quiet { unchanged_for: ms(0), waiting_for: ms(0), longest_pause: ms(0) },
        };
        assert_eq!(rest(&left, || None), Rest::Judge, "no other program has written it");
        assert_eq!(rest(&left, || Some(true)), Rest::Wait(OPEN));
    }

    #[test]
    fn nothing_is_asked_of_a_file_that_is_not_quiet() {
        for completeness in [Completeness::Whole, Completeness::Missing, Completeness::Partial] {
            let quiet = |unchanged_for| Quiet {
                unchanged_for,
                waiting_for: Duration::ZERO,
                longest_pause: Duration::ZERO,
            };
            let signs = Signs { completeness, left_by_agent: false, quiet: quiet(Duration::ZERO) };
            let found = rest(&signs, || panic!("asked too early"));
            assert!(matches!(found, Rest::Wait(_)), "{found:?}");
        }
    }

    #[test]
    fn a_hidden_file_counts_only_if_the_kubelet_has_been_reading_it() {
        let long = KUBELET_CACHE;
        let short = Duration::from_secs(299);
        let cases = [
            (Completeness::Missing, Duration::ZERO, false, true),
            (Completeness::Missing, long, true, false),
            (Completeness::Partial, short, false, false),
            (Completeness::Partial, long, false, true),
            (Completeness::Partial, long, true, false),
            (Completeness::Whole, long, false, false),
        ];
        for (completeness, unchanged_for, has_seen_good, expected) in cases {
            let found = reads_another(completeness, unchanged_for, has_seen_good).is_ok();
            assert_eq!(found, expected, "{completeness:?}, {unchanged_for:?}, {has_seen_good}");
        }
    }
}
