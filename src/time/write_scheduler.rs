//! When a target is written next: at once, after a pause, or later because another program fights for it.
//!
//! Pure: the caller passes `now` and what chance drew, and does the writing. One [`WriteScheduler`] for each auth file, and for each
//! pull secret that is watched, so that a fight over one, or one that cannot be written, holds up no other.

use super::retry::{Backoff, Retry};
use super::timer::{Deadline, Now};
use std::collections::VecDeque;
use std::time::Duration;

/// So many repairs within [`FIGHT_TIME`] are a fight with another writer, and from then on there is one in that time.
const FIGHT: usize = 10;
const FIGHT_TIME: Duration = Duration::from_mins(1);
/// A file that changes without drift is not looked at more often than this.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// A file that could not be written, and that others keep changing, is tried no more often than this.
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// Why a file is to be written. The last one says most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PendingWrite {
    /// Somebody may have changed it.
    Drift,
    /// There is something new to write, or an entry has to go.
    New,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteResult {
    /// It failed.
    Failed,
    /// The file was as it should be.
    Unchanged,
    /// The file is another one now.
    Changed,
}

/// What an operator should hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftEvent {
    /// Nothing more than the write itself told.
    Nothing,
    /// Another program had changed the file, and it was repaired.
    Repaired,
    /// As above, and for the last time in a while: neither side would win.
    Fight,
    /// The other program has stopped.
    Peace,
}

/// What one file waits for.
#[derive(Debug, Default)]
pub struct WriteScheduler {
    wish: Option<PendingWrite>,
    /// The wish that is being fulfilled.
    carried: Option<PendingWrite>,
    not_before: Option<Deadline>,
    backoff: Backoff,
    /// When, by the time since boot, it was repaired lately.
    repairs: VecDeque<Duration>,
    fighting: bool,
}

impl WriteScheduler {
    /// There is something new to write, which nothing holds up.
    pub fn renew(&mut self) {
        self.wish = Some(PendingWrite::New);
        self.not_before = None;
    }

    /// Somebody may have changed the file. What held up a write may be gone with it.
    pub fn look(&mut self, now: Now) {
        self.wish = self.wish.max(Some(PendingWrite::Drift));
        if self.backoff.failures() > 0 && !self.fighting {
            self.not_before = self.not_before.map(|not_before| not_before.earlier(now.after(TRY_PAUSE)));
        }
    }

    /// When it is to be written, if at all.
    #[must_use]
    pub fn next(&self, now: Now) -> Option<Deadline> {
        self.wish.map(|_| self.not_before.unwrap_or_else(|| now.after(Duration::ZERO)))
    }

    /// Takes the wish, if its time has come: whoever asks writes the file now.
    pub fn start(&mut self, now: Now) -> bool {
        if self.next(now).is_none_or(|next| !now.is_past(next)) {
            return false;
        }
        self.not_before = None;
        self.carried = self.wish.take();
        true
    }

    /// The write has ended. `random` is uniform in `0.0..1.0`.
    pub fn end(&mut self, came: WriteResult, now: Now, random: f64) -> DriftEvent {
        let drift = self.carried.take() == Some(PendingWrite::Drift);
        let new_meanwhile = self.wish == Some(PendingWrite::New);
        if came != WriteResult::Failed {
            self.backoff.reset();
        }
        let tell = match came {
            WriteResult::Failed => {
                self.wish = Some(PendingWrite::New);
                let delay = self.backoff.failed(Retry::Later, now.boot, Duration::ZERO, random);
                self.not_before = Some(now.after(delay));
                DriftEvent::Nothing
            }
            WriteResult::Changed if drift => self.repaired(now),
            WriteResult::Unchanged if drift => {
                self.not_before = Some(now.after(LOOK_PAUSE));
                if std::mem::take(&mut self.fighting) { DriftEvent::Peace } else { DriftEvent::Nothing }
            }
            WriteResult::Changed | WriteResult::Unchanged => DriftEvent::Nothing,
        };
        if new_meanwhile {
            self.not_before = None;
        }
        tell
    }

    fn repaired(&mut self, now: Now) -> DriftEvent {
        self.repairs.push_back(now.boot);
        while self.repairs.front().is_some_and(|first| *first + FIGHT_TIME < now.boot) {
            self.repairs.pop_front();
        }
        let begins = self.repairs.len() > FIGHT && !self.fighting;
        self.fighting |= begins;
        if self.fighting {
            self.not_before = Some(now.after(FIGHT_TIME));
        }
        if begins { DriftEvent::Fight } else { DriftEvent::Repaired }
    }

    /// Whether another program keeps changing the file.
    #[must_use]
    pub fn is_fighting(&self) -> bool {
        self.fighting
    }

    /// Whether the last write failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.backoff.failures() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{SignedDuration, Timestamp};

    fn at(seconds: f64) -> Now {
        let wall = Timestamp::UNIX_EPOCH + SignedDuration::from_secs_f64(seconds);
        Now { wall, boot: Duration::from_secs_f64(seconds) }
    }

    /// One write, as soon as it may be.
    fn write(upkeep: &mut WriteScheduler, seconds: f64, came: WriteResult) -> DriftEvent {
        assert!(upkeep.start(at(seconds)), "it is held back at {seconds} s");
        assert!(!upkeep.start(at(seconds)), "one wish is fulfilled once");
        upkeep.end(came, at(seconds), 1.0)
    }

    fn waits_until(upkeep: &WriteScheduler, seconds: f64) -> bool {
        upkeep.next(at(0.0)).is_some_and(|next| next.boot == Duration::from_secs_f64(seconds))
    }

    #[test]
    fn what_nobody_wants_is_not_done() {
        let mut upkeep = WriteScheduler::default();
        assert_eq!(upkeep.next(at(0.0)), None);
        assert!(!upkeep.start(at(0.0)));
        upkeep.renew();
        assert_eq!(
            write(&mut upkeep, 0.0, WriteResult::Changed),
            DriftEvent::Nothing,
            "what is new is no drift"
        );
        assert_eq!(upkeep.next(at(0.0)), None);
    }

    #[test]
    fn the_eleventh_repair_in_a_minute_begins_a_fight_and_quiet_ends_it() {
        let mut upkeep = WriteScheduler::default();
        for second in 0..10 {
            upkeep.look(at(f64::from(second)));
            assert_eq!(write(&mut upkeep, f64::from(second), WriteResult::Changed), DriftEvent::Repaired);
        }
        upkeep.look(at(10.0));
        assert_eq!(write(&mut upkeep, 10.0, WriteResult::Changed), DriftEvent::Fight);
        assert!(upkeep.is_fighting());
        upkeep.look(at(11.0));
        assert!(waits_until(&upkeep, 70.0), "once a minute from now on");
        assert_eq!(write(&mut upkeep, 70.0, WriteResult::Changed), DriftEvent::Repaired);
        // A new token does not wait for the other program.
        upkeep.look(at(71.0));
        upkeep.renew();
        assert_eq!(write(&mut upkeep, 72.0, WriteResult::Changed), DriftEvent::Nothing);
        upkeep.look(at(73.0));
        assert_eq!(write(&mut upkeep, 73.0, WriteResult::Unchanged), DriftEvent::Peace);
        assert!(!upkeep.is_fighting());
        // Spread over more than a minute, they are none.
        let mut upkeep = WriteScheduler::default();
        for round in 0..30 {
            upkeep.look(at(f64::from(round) * 7.0));
            assert_eq!(
                write(&mut upkeep, f64::from(round) * 7.0, WriteResult::Changed),
                DriftEvent::Repaired
            );
        }
    }

    #[test]
    fn a_failure_is_tried_again_later_and_sooner_where_something_changes() {
        let mut upkeep = WriteScheduler::default();
        upkeep.renew();
        for (second, next) in [(0.0, 1.0), (1.0, 3.0), (3.0, 7.0)] {
            assert_eq!(write(&mut upkeep, second, WriteResult::Failed), DriftEvent::Nothing);
            assert!(upkeep.has_failed() && waits_until(&upkeep, next), "after {second} s");
        }
        upkeep.look(at(4.0));
        assert!(waits_until(&upkeep, 4.5));
        assert_eq!(
            write(&mut upkeep, 4.5, WriteResult::Changed),
            DriftEvent::Nothing,
            "it is the write that had failed"
        );
        assert!(!upkeep.has_failed());
        assert_eq!(upkeep.next(at(5.0)), None);
    }

    #[test]
    fn a_file_that_changes_without_drift_is_not_looked_at_all_the_time() {
        let mut upkeep = WriteScheduler::default();
        upkeep.look(at(1.0));
        assert_eq!(write(&mut upkeep, 1.0, WriteResult::Unchanged), DriftEvent::Nothing);
        upkeep.look(at(1.01));
        assert!(waits_until(&upkeep, 1.05));
    }

    #[test]
    fn what_is_new_while_a_write_goes_on_is_written_next() {
        for came in [WriteResult::Failed, WriteResult::Unchanged, WriteResult::Changed] {
            let mut upkeep = WriteScheduler::default();
            upkeep.look(at(1.0));
            assert!(upkeep.start(at(1.0)));
            upkeep.renew();
            upkeep.end(came, at(2.0), 1.0);
            assert!(waits_until(&upkeep, 0.0), "{came:?}");
        }
    }
}
