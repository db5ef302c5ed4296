//! `--schedule`: a cron expression instead of an interval.
//!
//! Pure: the caller passes the time. `tokio-cron-scheduler` checks the expression; its scheduler is never started, since it
//! would wake twice a second. The times come from `croner`, the parser that it uses. Time zones come from `jiff`: those of
//! `chrono` are tables of pointers, which cost every agent 2 MB of memory.

use super::schedule::TOKEN_LIFE;
use chrono::{DateTime, Utc};
use croner::Cron;
use croner::errors::CronError;
use croner::parser::{CronParser, Seconds};
use jiff::civil;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};
use std::str::FromStr;
use tokio_cron_scheduler::Job;

/// How far ahead a schedule is checked: more than a year, with a change to and from daylight saving time.
const AHEAD: SignedDuration = SignedDuration::from_hours(24 * 400);
/// How far a check jumps at a time: less than a token's life, by more than clocks are ever moved.
const JUMP: SignedDuration = SignedDuration::from_hours(10);

/// Times at which to refresh, written `[TZ=ZONE ]EXPRESSION`, with five or six fields; UTC if no zone is named.
#[derive(Debug, Clone)]
pub struct Schedule {
    // Boxed, since it is half a kilobyte large.
    cron: Box<Cron>,
    zone: TimeZone,
}

/// Why a text is not a [`Schedule`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseScheduleError {
    /// Not five or six fields, or a field with a wrong value.
    #[error("`{}` is not a cron expression: expected five fields, such as `0 */6 * * *`, or six with seconds first", .0.escape_debug())]
    Expression(String),
    /// Not in the IANA time zone database.
    #[error("`{}` is not a time zone: expected one such as `Europe/Berlin`", .0.escape_debug())]
    Zone(String),
    /// Two times in a row are too far apart.
    #[error("there is no refresh between {from} and {to}, which is {:#}, and a token expires after 12 hours", to.duration_since(*from))]
    Gap {
        /// The last time before the gap.
        from: Timestamp,
        /// The first time after it.
        to: Timestamp,
    },
    /// There are no more times.
    #[error("there is no refresh after {from}")]
    Over {
        /// The last time.
        from: Timestamp,
    },
}

impl FromStr for Schedule {
    type Err = ParseScheduleError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (zone, expression) = match text.trim().strip_prefix("TZ=").and_then(|rest| rest.split_once(' ')) {
            Some((zone, rest)) => {
                let known = TimeZoneDatabase::bundled().get(zone);
                (known.map_err(|_| ParseScheduleError::Zone(zone.to_owned()))?, rest.trim())
            }
            None => (TimeZone::UTC, text.trim()),
        };
        let wrong = || ParseScheduleError::Expression(expression.to_owned());
        let six = match expression.split_whitespace().count() {
            5 => format!("0 {expression}"),
            6 => expression.to_owned(),
            _ => return Err(wrong()),
        };
        Job::new_tz(six.as_str(), Utc, |_, _| {}).map_err(|_| wrong())?;
        let cron = CronParser::builder().seconds(Seconds::Required).dom_and_dow(true).build().parse(&six);
        Ok(Self { cron: Box::new(cron.map_err(|_| wrong())?), zone })
    }
}

impl Schedule {
    /// The first time after `at`. A time that daylight saving time skips comes later by what the clocks are moved; one that it
    /// repeats comes once.
    #[must_use]
    pub fn next(&self, at: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(at);
        loop {
            wall = self.on_the_wall(wall, |cron, at| cron.find_next_occurrence(at, false))?;
            let next = self.timestamp(wall)?;
            // A repeated hour names times that have passed.
            if next > at {
                return Some(next);
            }
        }
    }

    /// A late time between `from` and `from + JUMP`; `None` if there is none.
    fn late(&self, from: Timestamp) -> Option<Timestamp> {
        let wall = self.zone.to_datetime(from.checked_add(JUMP).ok()?);
        let late = self.on_the_wall(wall, |cron, at| cron.find_previous_occurrence(at, true))?;
        self.timestamp(late).filter(|late| *late > from)
    }

    fn timestamp(&self, wall: civil::DateTime) -> Option<Timestamp> {
        self.zone.to_ambiguous_timestamp(wall).compatible().ok()
    }

    /// Asks `croner` for a time on a clock that is never moved: it takes the wall clock's time for UTC.
    fn on_the_wall(
        &self,
        wall: civil::DateTime,
        find: impl Fn(&Cron, &DateTime<Utc>) -> Result<DateTime<Utc>, CronError>,
    ) -> Option<civil::DateTime> {
        let at = TimeZone::UTC.to_timestamp(wall).ok()?;
        let at = DateTime::<Utc>::from_timestamp(at.as_second(), 0)?;
        let found = find(&self.cron, &at).ok()?;
        Some(TimeZone::UTC.to_datetime(Timestamp::from_second(found.timestamp()).ok()?))
    }

    /// Checks that no token expires between two times in a row, from `now` on for more than a year.
    ///
    /// # Errors
    /// When one would; the error names the two times.
    pub fn check(&self, now: Timestamp) -> Result<(), ParseScheduleError> {
        let end = now.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
        let mut from = now;
        while from <= end {
            let to = self.next(from).ok_or(ParseScheduleError::Over { from })?;
            if to.duration_since(from) > TOKEN_LIFE {
                return Err(ParseScheduleError::Gap { from, to });
            }
            // What lies between is closer together than the jump, and need not be looked at.
            from = self.late(from).map_or(to, |late| late.max(to));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn the_next_time_is_found_in_its_time_zone() {
        let cases = [
            ("0 */6 * * *", "2026-11-23T10:00:00Z", "2026-11-23T12:00:00Z"),
            ("30 0 */6 * * *", "2026-11-23T12:00:00Z", "2026-11-23T12:00:30Z"),
            ("0 */6 * * *", "2026-11-23T12:00:00Z", "2026-11-23T18:00:00Z"),
            ("TZ=Europe/Berlin 0 6,18 * * *", "2026-11-23T00:00:00Z", "2026-11-23T05:00:00Z"),
            ("TZ=Europe/Berlin 0 6,18 * * *", "2026-07-01T00:00:00Z", "2026-07-01T04:00:00Z"),
            // Daylight saving time skips 02:30 on this day …
            ("TZ=Europe/Berlin 30 2,12 * * *", "2026-03-29T00:00:00Z", "2026-03-29T01:30:00Z"),
            ("TZ=Europe/Berlin 30 2,12 * * *", "2026-03-29T01:30:00Z", "2026-03-29T10:30:00Z"),
            // … and repeats it on this one.
            ("TZ=Europe/Berlin 30 2,12 * * *", "2026-10-24T23:00:00Z", "2026-10-25T00:30:00Z"),
            ("TZ=Europe/Berlin 30 2,12 * * *", "2026-10-25T00:30:00Z", "2026-10-25T11:30:00Z"),
            ("TZ=Europe/Berlin */10 * * * *", "2026-10-25T01:05:00Z", "2026-10-25T02:00:00Z"),
        ];
        for (text, now, next) in cases {
            let schedule: Schedule = text.parse().unwrap();
            assert_eq!(schedule.next(at(now)), Some(at(next)), "{text}");
        }
    }

    #[test]
    fn the_times_are_those_of_the_scheduler() {
        for text in ["0 */6 * * *", "15 3,9,15,21 * * *", "*/7 * * * *"] {
            let mut job = Job::new_tz(format!("0 {text}").as_str(), Utc, |_, _| {}).unwrap();
            let theirs = i64::try_from(job.job_data().unwrap().next_tick).unwrap();
            let ours = text.parse::<Schedule>().unwrap().next(crate::time::clock::now()).unwrap();
            // The clock may have passed one of them in between.
            let later = text.parse::<Schedule>().unwrap().next(ours).unwrap();
            assert!(
                [ours.as_second(), later.as_second()].contains(&theirs) || theirs <= ours.as_second(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_wrong_expression_or_time_zone_is_refused() {
        for text in ["", "hourly", "* * * *", "61 * * * *", "* * * * * * *", "0 0 30 2 * x"] {
            assert!(matches!(text.parse::<Schedule>(), Err(ParseScheduleError::Expression(_))), "{text}");
        }
        assert!(matches!("TZ=Mars 0 * * * *".parse::<Schedule>(), Err(ParseScheduleError::Zone(_))));
    }

    #[test]
    fn a_schedule_with_a_gap_longer_than_a_tokens_life_is_refused() {
        let now = at("2026-11-23T10:00:00Z");
        let check = |text: &str| text.parse::<Schedule>().unwrap().check(now);
        for text in ["0 */6 * * *", "0 */11 * * *", "0 0,12 * * *", "* * * * * *", "*/5 * * * *"] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        let error = check("0 6 * * *").unwrap_err().to_string();
        assert!(error.contains("2026-11-23T10:00:00Z") && error.contains("2026-11-24T06:00:00Z"), "{error}");
        assert!(check("0 */6 * * 1-5").unwrap_err().to_string().contains("a token expires after 12 hours"));
        // Many times a day, and a gap that comes after more than 20,000 of them.
        for text in ["* * 1-18,22-31 * *", "* * * 1-6,8-12 *"] {
            assert!(matches!(check(text), Err(ParseScheduleError::Gap { .. })), "{text}");
        }
        // Twelve hours on the wall clock are thirteen on the day when it is moved back.
        let error = check("TZ=Europe/Berlin 0 0,12 * * *").unwrap_err();
        let ParseScheduleError::Gap { from, to } = error else { panic!("{error}") };
        assert_eq!(to.duration_since(from), SignedDuration::from_hours(13));
    }
}
