//! A deadline that neither a clock step nor a suspended machine can delay.
//!
//! There are two kernel timers. One uses the wall clock, since tokens expire by it; it fires at once when the clock is set
//! (`TFD_TIMER_CANCEL_ON_SET`). The other uses the time since boot, which cannot be set and includes suspend: it fires in time
//! even if the wall clock was set back a day.

use jiff::{SignedDuration, Timestamp};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// A moment, on both clocks. It is past when either clock has reached it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline {
    /// On the wall clock.
    pub wall: Timestamp,
    /// In time since boot.
    pub boot: Duration,
}

impl Deadline {
    /// The earlier of two, on each clock.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self { wall: self.wall.min(other.wall), boot: self.boot.min(other.boot) }
    }

    /// The later of two, on each clock.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self { wall: self.wall.max(other.wall), boot: self.boot.max(other.boot) }
    }
}

/// Both clocks now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// The wall clock.
    pub wall: Timestamp,
    /// Time since boot, suspend included.
    pub boot: Duration,
}

impl Now {
    /// The moment `delay` from now.
    #[must_use]
    pub fn after(&self, delay: Duration) -> Deadline {
        let wall = SignedDuration::try_from(delay).ok().and_then(|delay| self.wall.checked_add(delay).ok());
        Deadline { wall: wall.unwrap_or(Timestamp::MAX), boot: self.boot.saturating_add(delay) }
    }

    /// The moment at which the wall clock shows `wall`, unless it is set.
    #[must_use]
    pub fn until(&self, wall: Timestamp) -> Deadline {
        let delay = Duration::try_from(wall.duration_since(self.wall)).unwrap_or(Duration::ZERO);
        Deadline { wall, boot: self.boot.saturating_add(delay) }
    }

    /// How far the wall clock was set since `earlier`; negative if it was set back.
    #[must_use]
    pub fn step_since(&self, earlier: Self) -> SignedDuration {
        let boot = SignedDuration::try_from(self.boot.saturating_sub(earlier.boot));
        self.wall.duration_since(earlier.wall).saturating_sub(boot.unwrap_or(SignedDuration::MAX))
    }

    /// Whether `deadline` is past.
    #[must_use]
    pub fn is_past(&self, deadline: Deadline) -> bool {
        deadline.wall <= self.wall || deadline.boot <= self.boot
    }
}

/// The two timers.
#[derive(Debug)]
pub struct Timer {
    wall: TimerFd,
    boot: TimerFd,
    // Duplicates of the same file descriptors, to wait on.
    wall_ready: AsyncFd<OwnedFd>,
    boot_ready: AsyncFd<OwnedFd>,
}

impl Timer {
    /// Makes the timers, for the runtime that runs now.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        let wall = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        let boot = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags)?;
        #[expect(
            deprecated,
            reason = "its replacement is unsafe because of types that are not I/O safe; `OwnedFd` is"
        )]
        let ready = |timer: &TimerFd| AsyncFd::new(timer.as_fd().try_clone_to_owned()?);
        Ok(Self { wall_ready: ready(&wall)?, boot_ready: ready(&boot)?, wall, boot })
    }

    /// Waits until `deadline` is past on either clock, or until the wall clock is set. May be dropped while it waits. The caller
    /// reads the clocks again.
    ///
    /// # Errors
    /// When the timers cannot be set, or waited for.
    pub async fn wait(&self, deadline: Deadline) -> io::Result<()> {
        let absolute = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
        let wall = Duration::new(
            u64::try_from(deadline.wall.as_second()).unwrap_or(0),
            u32::try_from(deadline.wall.subsec_nanosecond()).unwrap_or(0),
        );
        match self.wall.set(at(wall), absolute | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET) {
            // The clock was set since the last wait. The timer is armed all the same (timerfd_create(2), NOTES).
            Err(Errno::ECANCELED) => return Ok(()),
            set => set?,
        }
        self.boot.set(at(deadline.boot), absolute)?;
        tokio::select! {
            ended = ready(&self.wall_ready, &self.wall) => ended,
            ended = ready(&self.boot_ready, &self.boot) => ended,
        }
    }
}

/// An absolute time for a timer. Zero would switch it off.
fn at(time: Duration) -> Expiration {
    Expiration::OneShot(TimeSpec::from_duration(time.max(Duration::from_nanos(1))))
}

async fn ready(handle: &AsyncFd<OwnedFd>, timer: &TimerFd) -> io::Result<()> {
    loop {
        let mut guard = handle.readable().await?;
        match timer.wait() {
            // Also when the clock was set: `nix` reports that as an expiry.
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN) => guard.clear_ready(),
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(wall: &str, boot_s: u64) -> Now {
        Now { wall: wall.parse().unwrap(), boot: Duration::from_secs(boot_s) }
    }

    #[test]
    fn a_moment_is_past_when_either_clock_has_reached_it() {
        let start = now("2026-11-23T10:00:00Z", 1000);
        for deadline in
            [start.after(Duration::from_hours(1)), start.until("2026-11-23T11:00:00Z".parse().unwrap())]
        {
            let cases = [
                ("2026-11-23T10:59:59Z", 4599, false),
                ("2026-11-23T11:00:00Z", 1000, true),  // set forward
                ("2026-11-22T11:00:00Z", 4599, false), // set back
                ("2026-11-22T11:00:01Z", 4600, true),  // set back, and an hour has passed
            ];
            for (wall, boot_s, past) in cases {
                assert_eq!(now(wall, boot_s).is_past(deadline), past, "{wall}, {boot_s} s after boot");
            }
        }
        let past = start.until("2026-11-23T09:00:00Z".parse().unwrap());
        assert!(start.is_past(past));
        assert_eq!(start.after(Duration::MAX).wall, Timestamp::MAX);
    }

    #[test]
    fn a_clock_step_is_what_the_time_since_boot_does_not_explain() {
        let start = now("2026-11-23T10:00:00Z", 1000);
        let cases = [
            ("2026-11-23T10:00:00Z", 1000, 0),
            ("2026-11-23T11:00:00Z", 4600, 0), // an hour, awake or suspended
            ("2026-11-24T11:00:00Z", 4600, 86_400),
            ("2026-11-22T11:00:00Z", 4600, -86_400),
        ];
        for (wall, boot_s, step_s) in cases {
            let step = now(wall, boot_s).step_since(start);
            assert_eq!(step, SignedDuration::from_secs(step_s), "{wall}, {boot_s} s after boot");
        }
    }

    #[tokio::test]
    async fn a_timer_fires_on_either_clock() {
        let timer = Timer::new().unwrap();
        let now = crate::time::clock::both();
        let soon = now.after(Duration::from_millis(20));
        let far = now.after(Duration::from_hours(1));
        timer.wait(Deadline { wall: far.wall, ..soon }).await.unwrap();
        timer.wait(Deadline { boot: far.boot, ..soon }).await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(50), timer.wait(far)).await;
        assert!(waits.is_err(), "it fired an hour early");
    }
}
