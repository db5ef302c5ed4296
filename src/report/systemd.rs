//! What systemd is told, where it asks (`Type=notify`, `WatchdogSec=`). Elsewhere nothing happens.

use sd_notify::{NotifyState, notify, watchdog_enabled};
use std::time::Duration;
use tracing::debug;

/// The agent runs. Not "a token is there": a node that boots without a network must not be restarted for it.
///
/// Returns how often systemd wants to hear of us, halved, if it does.
#[must_use]
pub fn ready() -> Option<Duration> {
    send(&[NotifyState::Ready]);
    watchdog_enabled().map(|every| every / 2)
}

/// How things stand.
pub fn tell(status: &str) {
    send(&[NotifyState::Status(status)]);
}

/// The loop has come round.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// The agent was asked to stop.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        debug!(%error, "systemd could not be told");
    }
}
