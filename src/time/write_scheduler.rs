//! When a target is written next: at once, after a pause, or later because another program keeps changing it (no I/O).
//!
//! The caller passes `now` and a random number, and does the writing. There is one [`WriteScheduler`] for each auth file, and
//! for each pull secret that is watched: a target that cannot be written delays no other.

use super::retry::{Backoff, Retry};
use super::timer::{Deadline, Now};
use std::collections::VecDeque;
use std::time::Duration;

/// More repairs than this within [`FIGHT_TIME`] are a fight with another program. During a fight the target is repaired once
/// in that time.
const FIGHT: usize = 10;
const FIGHT_TIME: Duration = Duration::from_mins(1);
/// A target that changes without drift is not looked at more often than this.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// A target that is not at rest, and that is changed once more, is looked at after this time.
const REST_PAUSE: Duration = Duration::from_millis(200);
/// A target whose last write failed, and that other programs keep changing, is not written more often than this.
const TRY_PAUSE: Duration = Duration::from_millis(500);

/// Why a target is to be written. If there are two reasons, the last one of these counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum PendingWrite {
    /// Another program may have changed it.
    Drift,
    /// There is something new to write, or an entry to remove.
    New,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteResult {
    /// It failed.
    Failed,
    /// The target was as it should be.
    Unchanged,
    /// The target was changed.
    Changed,
    /// Another program was still changing the target, so nothing was written.
    NotAtRest {
        /// How long to wait before the next attempt.
        retry_in: Duration,
    },
}

/// What a write means for the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriftEvent {
    /// Nothing besides the write itself.
    Nothing,
    /// Another program had changed the target, and it was repaired.
    Repaired,
    /// The same, and a fight begins: from now on repairs are rare.
    Fight,
    /// The other program has stopped: the fight is over.
    Peace,
    /// The other program has been changing the target for some time, and the write has to wait.
    LongWait,
}

/// Decides when one target is written.
#[derive(Debug, Default)]
pub struct WriteScheduler {
    /// The write that is due, at once or later. `None` if none is.
    pending: Option<PendingWrite>,
    /// The write that is under way. `None` if none is.
    running: Option<PendingWrite>,
    /// When the pending write may start. `None` means at once.
    not_before: Option<Deadline>,
    /// Whether the pending write waits for another program to finish.
    awaits_rest: bool,
    /// The delays after failed writes.
    backoff: Backoff,
    /// When the target was repaired within the last [`FIGHT_TIME`], as times since boot.
    repairs: VecDeque<Duration>,
    /// Whether there is a fight.
    fighting: bool,
}

impl WriteScheduler {
    /// There is something new to write. It is written at once.
    pub fn renew(&mut self) {
        self.pending = Some(PendingWrite::New);
        self.not_before = None;
        self.awaits_rest = false;
    }

    /// Another program may have changed the target. If the last write failed, the reason may be gone with that change. If the
    /// target was not at rest, the change may have been the last one.
    pub fn look(&mut self, now: Now) {
        self.pending = self.pending.max(Some(PendingWrite::Drift));
        if self.awaits_rest {
            self.not_before = self.not_before.map(|not_before| not_before.earlier(now.after(REST_PAUSE)));
        } else if !self.fighting {
            // Without a failure, the pause is shorter than this.
            self.not_before = self.not_before.map(|not_before| not_before.earlier(now.after(TRY_PAUSE)));
        }
    }

    /// When the next write may start. `None` if no write is pending.
    #[must_use]
    pub fn next(&self, now: Now) -> Option<Deadline> {
        self.pending.map(|_| self.not_before.unwrap_or_else(|| now.after(Duration::ZERO)))
    }

    /// Starts the pending write if its time has come. If this returns `true`, the caller writes, and then calls
    /// [`Self::end`].
    pub fn start(&mut self, now: Now) -> bool {
        if self.next(now).is_none_or(|next| !now.is_past(next)) {
            return false;
        }
        self.not_before = None;
        self.awaits_rest = false;
        self.running = self.pending.take();
        true
    }

    /// The write has ended. `random` is uniform in `0.0..1.0`.
    pub fn end(&mut self, result: WriteResult, now: Now, random: f64) -> DriftEvent {
        let running = self.running.take();
        let is_drift = running == Some(PendingWrite::Drift);
        let new_meanwhile = self.pending == Some(PendingWrite::New);
        if matches!(result, WriteResult::Changed | WriteResult::Unchanged) {
            self.backoff.reset();
        }
        let event = match result {
            WriteResult::Failed => {
                self.pending = Some(PendingWrite::New);
                let delay = self.backoff.failed(Retry::Later, now.boot, Duration::ZERO, random);
                self.not_before = Some(now.after(delay));
                DriftEvent::Nothing
            }
            WriteResult::NotAtRest { retry_in } => {
                // The reason stays: what was drift before the wait is drift after it.
                self.pending = self.pending.max(running);
                self.awaits_rest = true;
                self.not_before = Some(now.after(retry_in));
                return DriftEvent::Nothing;
            }
            WriteResult::Changed if is_drift => self.repaired(now),
            WriteResult::Unchanged if is_drift => {
                self.not_before = Some(now.after(LOOK_PAUSE));
                if std::mem::take(&mut self.fighting) { DriftEvent::Peace } else { DriftEvent::Nothing }
            }
            WriteResult::Changed | WriteResult::Unchanged => DriftEvent::Nothing,
        };
        if new_meanwhile {
            self.not_before = None;
        }
        event
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

    /// Whether another program keeps changing the target.
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
    fn write(scheduler: &mut WriteScheduler, seconds: f64, result: WriteResult) -> DriftEvent {
        assert!(scheduler.start(at(seconds)), "it is held back at {seconds} s");
        assert!(!scheduler.start(at(seconds)), "one pending write is written once");
        scheduler.end(result, at(seconds), 1.0)
    }

    fn waits_until(scheduler: &WriteScheduler, seconds: f64) -> bool {
        scheduler.next(at(0.0)).is_some_and(|next| next.boot == Duration::from_secs_f64(seconds))
    }

    #[test]
    fn without_a_pending_write_nothing_is_written() {
        let mut scheduler = WriteScheduler::default();
        assert_eq!(scheduler.next(at(0.0)), None);
        assert!(!scheduler.start(at(0.0)));
        scheduler.renew();
        assert_eq!(
            write(&mut scheduler, 0.0, WriteResult::Changed),
            DriftEvent::Nothing,
            "a new token is no drift"
        );
        assert_eq!(scheduler.next(at(0.0)), None);
    }

    #[test]
    fn the_eleventh_repair_in_a_minute_begins_a_fight_and_quiet_ends_it() {
        let mut scheduler = WriteScheduler::default();
        for second in 0..10 {
            scheduler.look(at(f64::from(second)));
            assert_eq!(write(&mut scheduler, f64::from(second), WriteResult::Changed), DriftEvent::Repaired);
        }
        scheduler.look(at(10.0));
        assert_eq!(write(&mut scheduler, 10.0, WriteResult::Changed), DriftEvent::Fight);
        assert!(scheduler.is_fighting());
        scheduler.look(at(11.0));
        assert!(waits_until(&scheduler, 70.0), "once a minute from now on");
        assert_eq!(write(&mut scheduler, 70.0, WriteResult::Changed), DriftEvent::Repaired);
        // A new token does not wait for the other program.
        scheduler.look(at(71.0));
        scheduler.renew();
        assert_eq!(write(&mut scheduler, 72.0, WriteResult::Changed), DriftEvent::Nothing);
        // Nor does it end the fight if it is in the target already.
        scheduler.renew();
        assert_eq!(write(&mut scheduler, 72.5, WriteResult::Unchanged), DriftEvent::Nothing);
        assert!(scheduler.is_fighting());
        scheduler.look(at(73.0));
        assert_eq!(write(&mut scheduler, 73.0, WriteResult::Unchanged), DriftEvent::Peace);
        assert!(!scheduler.is_fighting());
        // During a fight, a failed write is not repeated sooner because the target has changed.
        let mut scheduler = WriteScheduler { fighting: true, ..WriteScheduler::default() };
        scheduler.look(at(1.0));
        assert_eq!(write(&mut scheduler, 1.0, WriteResult::Failed), DriftEvent::Nothing);
        scheduler.look(at(1.1));
        assert!(waits_until(&scheduler, 2.0));
        // A minute after a repair, it still counts.
        let mut scheduler = WriteScheduler::default();
        let events = [0, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60].map(|second| {
            scheduler.look(at(f64::from(second)));
            write(&mut scheduler, f64::from(second), WriteResult::Changed)
        });
        assert_eq!(events[9..], [DriftEvent::Repaired, DriftEvent::Fight]);
        // Repairs that are spread over more than a minute are no fight.
        let mut scheduler = WriteScheduler::default();
        for round in 0..30 {
            scheduler.look(at(f64::from(round) * 7.0));
            assert_eq!(
                write(&mut scheduler, f64::from(round) * 7.0, WriteResult::Changed),
                DriftEvent::Repaired
            );
        }
    }

    #[test]
    fn a_failed_write_is_retried_later_or_sooner_if_the_target_changes() {
        let mut scheduler = WriteScheduler::default();
        scheduler.renew();
        for (second, next) in [(0.0, 1.0), (1.0, 3.0), (3.0, 7.0)] {
            assert_eq!(write(&mut scheduler, second, WriteResult::Failed), DriftEvent::Nothing);
            assert!(scheduler.has_failed() && waits_until(&scheduler, next), "after {second} s");
        }
        scheduler.look(at(4.0));
        assert!(waits_until(&scheduler, 4.5));
        assert_eq!(
            write(&mut scheduler, 4.5, WriteResult::Changed),
            DriftEvent::Nothing,
            "this is the write that had failed, and no repair"
        );
        assert!(!scheduler.has_failed());
        assert_eq!(scheduler.next(at(5.0)), None);
    }

    #[test]
    fn a_target_that_changes_without_drift_is_not_looked_at_all_the_time() {
        let mut scheduler = WriteScheduler::default();
        scheduler.look(at(1.0));
        assert_eq!(write(&mut scheduler, 1.0, WriteResult::Unchanged), DriftEvent::Nothing);
        scheduler.look(at(1.01));
        assert!(waits_until(&scheduler, 1.05));
    }

    #[test]
    fn what_is_new_during_a_write_is_written_next() {
        for result in [WriteResult::Failed, WriteResult::Unchanged, WriteResult::Changed] {
            let mut scheduler = WriteScheduler::default();
            scheduler.look(at(1.0));
            assert!(scheduler.start(at(1.0)));
            scheduler.renew();
            scheduler.end(result, at(2.0), 1.0);
            assert!(waits_until(&scheduler, 0.0), "{result:?}");
        }
    }

    #[test]
    fn a_target_that_is_not_at_rest_is_looked_at_again_for_the_same_reason() {
        let not_at_rest = WriteResult::NotAtRest { retry_in: Duration::from_millis(200) };
        let mut scheduler = WriteScheduler::default();
        scheduler.look(at(1.0));
        assert_eq!(write(&mut scheduler, 1.0, not_at_rest), DriftEvent::Nothing);
        assert!(waits_until(&scheduler, 1.2) && !scheduler.has_failed());
        // The other program has written once more.
        scheduler.look(at(1.1));
        assert!(waits_until(&scheduler, 1.2));
        assert_eq!(write(&mut scheduler, 1.2, not_at_rest), DriftEvent::Nothing);
        assert_eq!(write(&mut scheduler, 1.4, WriteResult::Changed), DriftEvent::Repaired);
        assert_eq!(scheduler.next(at(2.0)), None);
        // A long wait ends early if the file is changed once more.
        let pausing = WriteResult::NotAtRest { retry_in: Duration::from_secs(9) };
        scheduler.look(at(2.0));
        assert_eq!(write(&mut scheduler, 2.0, pausing), DriftEvent::Nothing);
        assert!(waits_until(&scheduler, 11.0));
        scheduler.look(at(2.5));
        assert!(waits_until(&scheduler, 2.7));
        assert_eq!(write(&mut scheduler, 2.7, WriteResult::Changed), DriftEvent::Repaired);
        // A new token has to wait as well, and is no repair.
        scheduler.renew();
        assert_eq!(write(&mut scheduler, 3.0, not_at_rest), DriftEvent::Nothing);
        scheduler.look(at(3.1));
        assert_eq!(write(&mut scheduler, 3.2, WriteResult::Changed), DriftEvent::Nothing);
    }
}
