//! How the process stops: not ready, then no new connections, then the end.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::control::Control;

/// Where the process stands between start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// New connections are served, and the proxy reports ready if its workers are.
    Serving,
    /// New connections are served still, but the proxy reports that it is not ready: whoever routes to it
    /// needs time to learn of it.
    NotReady,
    /// No new connections; requests in flight finish, and every answer closes its connection.
    Closing,
    /// What is still open is cut.
    Ended,
}

/// The process's phase, seen by every part.
#[derive(Clone)]
pub struct Lifecycle(watch::Sender<Phase>);

impl Default for Lifecycle {
    fn default() -> Self {
        Self(watch::Sender::new(Phase::Serving))
    }
}

impl Lifecycle {
    /// The phase now.
    pub fn phase(&self) -> Phase {
        *self.0.borrow()
    }

    /// Wakes at each change.
    pub fn watch(&self) -> watch::Receiver<Phase> {
        self.0.subscribe()
    }

    fn enter(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            phase > *now && {
                *now = phase;
                true
            }
        });
    }

    /// Waits until the process is at least in this phase.
    pub async fn reached(&self, phase: Phase) {
        let _ = self.watch().wait_for(|now| phase <= *now).await; // the sender lives as long as self
    }

    /// Stops the process gracefully: as long as the policy in force says. `idle` ends when the last connection has.
    pub async fn drain(&self, control: &Control, idle: impl Future<Output = ()>) {
        let drain = control.snapshot().policy.drain.clone();
        tracing::info!(delay_seconds = drain.delay.as_secs_f64(), "draining: not ready, still serving");
        self.enter(Phase::NotReady);
        tokio::time::sleep(drain.delay).await;
        self.enter(Phase::Closing);
        tracing::info!(timeout_seconds = drain.timeout.as_secs_f64(), "draining: no new connections");
        let in_time = timeout(drain.timeout.max(Duration::from_millis(1)), idle).await.is_ok();
        self.enter(Phase::Ended);
        if in_time {
            tracing::info!("drained");
        } else {
            tracing::warn!("the drain timeout has passed: what is still open is cut");
        }
    }
}
