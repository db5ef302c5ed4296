//! Readiness, status and watchdog messages for systemd, where it asks for them (`Type=notify`, `WatchdogSec=`).
//!
//! systemd may be busy and its socket full: messages are sent from a thread, one at a time, and the newest status wins.

use sd_notify::{NotifyState, notify, watchdog_enabled};
use std::time::Duration;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::debug;

/// How long a stop waits for its message to be taken.
const STOPPING: Duration = Duration::from_secs(1);

/// The connection to systemd.
#[derive(Debug, Default)]
pub struct Systemd {
    /// The status that was given last.
    status: String,
    /// What has to be sent next.
    pending: Pending,
    sending: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Pending {
    ready: bool,
    status: bool,
    alive: bool,
}

impl Systemd {
    /// The agent runs. It need not have a token: a node that boots without a network must not be restarted for it.
    ///
    /// Returns half the watchdog's interval, if systemd set one.
    pub fn ready(&mut self) -> Option<Duration> {
        self.pending.ready = true;
        self.send();
        watchdog_enabled().map(|interval| interval / 2)
    }

    /// Sets the status line. Sends nothing if it is the same as before.
    pub fn status(&mut self, status: String) {
        if self.status != status {
            self.status = status;
            self.pending.status = true;
            self.send();
        }
    }

    /// The loop has come round.
    pub fn alive(&mut self) {
        self.pending.alive = true;
        self.send();
    }

    /// Waits until messages that had to wait can be sent. May be dropped while it waits.
    pub async fn sendable(&mut self) {
        match &mut self.sending {
            Some(sending) if self.pending.any() => drop(sending.await),
            _ => std::future::pending().await,
        }
        self.sending = None;
        self.send();
    }

    /// The agent was asked to stop.
    pub async fn stopping(self) {
        let sent = spawn_blocking(|| send(&[NotifyState::Stopping]));
        // One that is not taken in time does not hold up the stop.
        drop(timeout(STOPPING, sent).await);
    }

    fn send(&mut self) {
        if self.sending.as_ref().is_some_and(|sending| !sending.is_finished()) {
            return;
        }
        let pending = std::mem::take(&mut self.pending);
        let status = self.status.clone();
        self.sending = Some(spawn_blocking(move || {
            let messages = [
                pending.ready.then_some(NotifyState::Ready),
                pending.status.then_some(NotifyState::Status(&status)),
                pending.alive.then_some(NotifyState::Watchdog),
            ];
            let messages: Vec<NotifyState<'_>> = messages.into_iter().flatten().collect();
            send(&messages);
        }));
    }
}

impl Pending {
    fn any(&self) -> bool {
        self.ready || self.status || self.alive
    }
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = notify(states) {
        debug!(%error, "cannot send a message to systemd");
    }
}
