//! Looks at the breakers now and then, on the thread beside the data path: overrides end in their time, waiting ends,
//! probes that never come back are given up, and each such change has its log line even when no request comes.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::At;
use crate::control::Control;

/// How often.
const TICK: Duration = Duration::from_millis(250);

/// Looks for as long as the process lives. A policy that changes is looked at at once.
pub async fn run(control: Arc<Control>) {
    let mut changes = control.changes();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        let (now, unix_millis) = (Instant::now(), unix_millis());
        let snapshot = control.snapshot();
        let at = || At { now, random: fastrand::u64(..) };
        for worker in &snapshot.workers {
            worker.breaker.tick(at(), unix_millis);
        }
        for gate in snapshot.gates() {
            gate.tick(at(), unix_millis);
        }
    }
}

/// The wall clock, in milliseconds since 1970.
pub fn unix_millis() -> i64 {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge that reads the wall clock, for overrides and the API"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH).ok().and_then(|since| i64::try_from(since.as_millis()).ok()).unwrap_or(0)
}
