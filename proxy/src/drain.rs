//! Where the process stands between start and end. How it stops: not ready, then no new connections, then the end. How one worker is drained is in `worker`.

pub mod worker;

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::control::Control;
use crate::thread::TICK;
use crate::upgrade::GOODBYE;

/// Where the process stands between start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections wait until a policy is in force, or until it is settled that there is none.
    Starting,
    /// New connections are served, and the proxy reports ready if its workers are.
    Serving,
    /// New connections are served still, but the proxy reports that it is not ready: whoever routes to it
    /// needs time to learn of it.
    NotReady,
    /// No new connections; requests in flight finish, and every answer closes its connection.
    Closing,
    /// Tunnels are told to close.
    Goodbye,
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

    /// A process that is not to serve yet.
    pub fn starting() -> Self {
        Self(watch::Sender::new(Phase::Starting))
    }

    /// Serves from now on, unless the process is about to stop already.
    pub fn serve(&self) {
        self.enter(Phase::Serving);
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
    /// It ends at once when it is cut.
    pub async fn drain(&self, control: &Control, idle: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = self.reached(Phase::Ended) => tracing::warn!("the drain is cut, and with it what is still open"),
            () = self.drain_in_time(control, idle) => {}
        }
    }

    /// Ends the process's drain, or what it would have been, at once.
    pub fn cut(&self) {
        self.enter(Phase::Ended);
    }

    async fn drain_in_time(&self, control: &Control, idle: impl Future<Output = ()>) {
        let drain = control.snapshot().policy.drain.clone();
        tracing::info!(delay_seconds = drain.delay.as_secs_f64(), "draining: not ready, still serving");
        self.enter(Phase::NotReady);
        tokio::time::sleep(drain.delay).await;
        self.enter(Phase::Closing);
        tracing::info!(timeout_seconds = drain.timeout.as_secs_f64(), "draining: no new connections");
        let goodbye = GOODBYE.min(drain.timeout / 4);
        let mut idle = pin!(idle);
        let mut in_time =
            timeout((drain.timeout - goodbye).max(Duration::from_millis(1)), &mut idle).await.is_ok();
        if !in_time {
            self.enter(Phase::Goodbye);
            in_time = timeout(goodbye, idle).await.is_ok();
        }
        self.enter(Phase::Ended);
        if in_time {
            tracing::info!("drained");
        } else {
            tracing::warn!("the drain timeout has passed: what is still open is cut");
        }
    }
}

/// Keeps every worker's drain in step with the policy, the orders and the time. Never ends.
pub async fn follow_workers(control: Arc<Control>) {
    let mut changes = control.changes();
    loop {
        follow(&control, Instant::now());
        let _ = timeout(TICK, changes.changed()).await; // the sender lives as long as `control`
    }
}

/// Brings every worker's drain up to date.
pub fn follow(control: &Control, now: Instant) {
    let snapshot = control.snapshot();
    let timeout = snapshot.policy.drain.worker_timeout;
    for worker in &snapshot.workers {
        let [by_policy, by_pod] = snapshot.drains(&worker.name);
        if let Some(serves) = worker.drain.follow(by_policy || by_pod, timeout, now) {
            let in_flight = worker.in_flight();
            tracing::info!(worker = worker.name, ?serves, in_flight, by_policy, by_pod, "worker's drain");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_is_cut_ends_at_once() {
        let (lifecycle, control) = (Lifecycle::default(), Control::new(Vec::new()));
        let began = tokio::time::Instant::now();
        let cut = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            lifecycle.cut();
        };
        tokio::join!(lifecycle.drain(&control, std::future::pending()), cut);
        assert_eq!(lifecycle.phase(), Phase::Ended);
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }
}
