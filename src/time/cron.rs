//! `--schedule`: a cron expression instead of an interval.
//!
//! Pure: the caller passes the time. The scheduler of `tokio-cron-scheduler` is asked whether it takes the expression, and
//! never started, since it would wake twice a second; the times come from `croner`, which it reads expressions with. Zones
//! are `jiff`'s: those of `chrono` are tables of pointers, which cost every agent 2 MB of memory to load.

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::civil;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp};
use std::str::FromStr;
use tokio_cron_scheduler::Job;

/// ECR's tokens live for 12 hours: a schedule must come round within that.
const LIFE: SignedDuration = SignedDuration::from_hours(12);
/// How far ahead a schedule is looked at, in occurrences and in time: a leap year, and a change of clocks each way.
const MOST: usize = 20_000;
const AHEAD: SignedDuration = SignedDuration::from_hours(24 * 400);

/// Times at which to refresh, written `[TZ=ZONE ]EXPRESSION`, with five or six fields; UTC where no zone is named.
#[derive(Debug, Clone)]
pub struct Schedule {
    // Boxed: half a kilobyte of tables.
    cron: Box<Cron>,
    zone: TimeZone,
}

/// Why a text is no [`Schedule`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseScheduleError {
    /// Not five or six fields, or not what can stand in them.
    #[error("`{}` is no cron expression: expected five fields, such as `0 */6 * * *`, or six with seconds first", .0.escape_debug())]
    Expression(String),
    /// No zone of the IANA database.
    #[error("`{}` is no time zone: expected one such as `Europe/Berlin`", .0.escape_debug())]
    Zone(String),
    /// It comes round too seldom.
    #[error("nothing comes between {from} and {to}, which is {:#}: a token lives for 12 hours", to.duration_since(*from))]
    Gap {
        /// The last time before the gap.
        from: Timestamp,
        /// The first one after it.
        to: Timestamp,
    },
    /// It comes round no more.
    #[error("nothing comes after {from}")]
    Expirations {
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
    /// The first time after `at`. A time that the clocks leave out comes as much later as they go forward, one that they
    /// show twice comes once.
    #[must_use]
    pub fn next(&self, at: Timestamp) -> Option<Timestamp> {
        let mut wall = self.zone.to_datetime(at);
        loop {
            wall = self.next_on_the_wall(wall)?;
            let next = self.zone.to_ambiguous_timestamp(wall).compatible().ok()?;
            // Not so in the hour that comes a second time.
            if next > at {
                return Some(next);
            }
        }
    }

    /// The first time after `wall`, by a clock that nobody sets: `croner` takes it for UTC.
    fn next_on_the_wall(&self, wall: civil::DateTime) -> Option<civil::DateTime> {
        let at = TimeZone::UTC.to_timestamp(wall).ok()?;
        let at = DateTime::<Utc>::from_timestamp(at.as_second(), 0)?;
        let next = self.cron.find_next_occurrence(&at, false).ok()?;
        Some(TimeZone::UTC.to_datetime(Timestamp::from_second(next.timestamp()).ok()?))
    }

    /// Checks that no token could end between two of its times, from `now` on and for more than a year.
    ///
    /// # Errors
    /// When one could; it names the times.
    pub fn check(&self, now: Timestamp) -> Result<(), ParseScheduleError> {
        let end = now.checked_add(AHEAD).unwrap_or(Timestamp::MAX);
        let mut from = now;
        for _ in 0..MOST {
            let to = self.next(from).ok_or(ParseScheduleError::Expirations { from })?;
            if to.duration_since(from) > LIFE {
                return Err(ParseScheduleError::Gap { from, to });
            }
            if to > end {
                break;
            }
            from = to;
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
    fn the_next_time_is_found_in_its_zone() {
        let cases = [
            ("0 */6 * * *", "2026-11-23T10:00:00Z", "2026-11-23T12:00:00Z"),
            ("30 0 */6 * * *", "2026-11-23T12:00:00Z", "2026-11-23T12:00:30Z"),
            ("0 */6 * * *", "2026-11-23T12:00:00Z", "2026-11-23T18:00:00Z"),
            ("TZ=Europe/Berlin 0 6,18 * * *", "2026-11-23T00:00:00Z", "2026-11-23T05:00:00Z"),
            ("TZ=Europe/Berlin 0 6,18 * * *", "2026-07-01T00:00:00Z", "2026-07-01T04:00:00Z"),
            // On this day 02:30 does not come …
            ("TZ=Europe/Berlin 30 2,12 * * *", "2026-03-29T00:00:00Z", "2026-03-29T01:30:00Z"),
            ("TZ=Europe/Berlin 30 2,12 * * *", "2026-03-29T01:30:00Z", "2026-03-29T10:30:00Z"),
            // … and on this one twice.
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
    fn it_is_the_schedulers_own_next_time() {
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
    fn what_is_no_schedule_is_refused() {
        for text in ["", "hourly", "* * * *", "61 * * * *", "* * * * * * *", "0 0 30 2 * x"] {
            assert!(matches!(text.parse::<Schedule>(), Err(ParseScheduleError::Expression(_))), "{text}");
        }
        assert!(matches!("TZ=Mars 0 * * * *".parse::<Schedule>(), Err(ParseScheduleError::Zone(_))));
    }

    #[test]
    fn a_schedule_that_comes_too_seldom_is_refused_with_the_gap() {
        let now = at("2026-11-23T10:00:00Z");
        let check = |text: &str| text.parse::<Schedule>().unwrap().check(now);
        for text in ["0 */6 * * *", "0 */11 * * *", "0 0,12 * * *", "* * * * * *", "*/5 * * * *"] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
        let error = check("0 6 * * *").unwrap_err().to_string();
        assert!(error.contains("2026-11-23T10:00:00Z") && error.contains("2026-11-24T06:00:00Z"), "{error}");
        assert!(check("0 */6 * * 1-5").unwrap_err().to_string().contains("a token lives for 12 hours"));
        // Twelve hours by the wall, and thirteen on the day that the clocks go back.
        let error = check("TZ=Europe/Berlin 0 0,12 * * *").unwrap_err();
        let ParseScheduleError::Gap { from, to } = error else { panic!("{error}") };
        assert_eq!(to.duration_since(from), SignedDuration::from_hours(13));
    }
}
