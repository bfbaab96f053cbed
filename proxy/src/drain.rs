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
    /// Nobody waits any more: what would still have time to end is killed.
    Cut,
}

/// How long new connections are served once the process is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// As long as the policy says: others route to it, and need time to learn that it stops.
    Whole,
    /// Not longer than somebody is connected: it was stopped from a terminal, and nobody routes to it.
    WhileConnected,
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

    /// Stops the process gracefully: as long as the policy in force says. `idle` ends when nobody is connected.
    /// It ends at once when it is cut.
    pub async fn drain<F: Future<Output = ()>>(&self, control: &Control, delay: Delay, idle: impl Fn() -> F) {
        tokio::select! {
            biased;
            () = self.reached(Phase::Cut) => tracing::warn!("the drain is cut, and with it what is still open"),
            () = self.drain_in_time(control, delay, idle) => {}
        }
    }

    /// Ends the process's drain, or what it would have been, at once.
    pub fn cut(&self) {
        self.enter(Phase::Cut);
    }

    async fn drain_in_time<F: Future<Output = ()>>(
        &self,
        control: &Control,
        delay: Delay,
        idle: impl Fn() -> F,
    ) {
        let drain = control.snapshot().policy.drain.clone();
        tracing::info!(delay_seconds = drain.delay.as_secs_f64(), "draining: not ready, still serving");
        self.enter(Phase::NotReady);
        match delay {
            Delay::Whole => tokio::time::sleep(drain.delay).await,
            Delay::WhileConnected => drop(timeout(drain.delay, idle()).await),
        }
        self.enter(Phase::Closing);
        tracing::info!(timeout_seconds = drain.timeout.as_secs_f64(), "draining: no new connections");
        let goodbye = GOODBYE.min(drain.timeout / 4);
        let mut idle = pin!(idle());
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
        tokio::join!(lifecycle.drain(&control, Delay::Whole, std::future::pending::<()>), cut);
        assert_eq!(lifecycle.phase(), Phase::Cut);
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
    }

    /// How long the default policy's drain takes when the last client goes after so many seconds.
    async fn drained_after(delay: Delay, last_goes: u64) -> Duration {
        let (lifecycle, control) = (Lifecycle::default(), Control::new(Vec::new()));
        let began = tokio::time::Instant::now();
        let gone = began + Duration::from_secs(last_goes);
        lifecycle.drain(&control, delay, || tokio::time::sleep_until(gone)).await;
        assert_eq!(lifecycle.phase(), Phase::Ended);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn from_a_terminal_the_delay_is_no_longer_than_somebody_is_connected() {
        for (last_goes, whole, while_connected) in [(0, 5, 0), (2, 5, 2), (7, 7, 7)] {
            let took = drained_after(Delay::Whole, last_goes).await;
            assert_eq!(took.as_secs(), whole, "{last_goes}");
            let took = drained_after(Delay::WhileConnected, last_goes).await;
            assert_eq!(took.as_secs(), while_connected, "{last_goes}");
        }
        let lifecycle = Lifecycle::default();
        let phases = lifecycle.watch();
        let control = Control::new(Vec::new());
        let drain = lifecycle.drain(&control, Delay::WhileConnected, std::future::pending::<()>);
        let _ = timeout(Duration::from_millis(5_100), drain).await;
        assert_eq!(
            *phases.borrow(),
            Phase::Closing,
            "a client that stays is not waited for beyond the delay"
        );
    }
}
