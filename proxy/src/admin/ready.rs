//! Whether the proxy can take traffic, and why not.

use std::time::Instant;

use super::Admin;
use crate::drain::Phase;

/// Why the proxy cannot take traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotReady {
    #[error("stopping")]
    Stopping,
    #[error("there is no worker")]
    NoWorkers,
    #[error("every worker has the weight 0")]
    NoWeight,
    #[error(
        "no worker is usable: of {all}, {draining} are stopping, {unhealthy} unhealthy, {open} refused by their breakers"
    )]
    NoneUsable { all: usize, draining: usize, unhealthy: usize, open: usize },
}

impl Admin {
    pub(super) fn ready(&self, now: Instant) -> Result<(), NotReady> {
        if self.lifecycle.phase() != Phase::Serving {
            return Err(NotReady::Stopping);
        }
        let snapshot = self.control.snapshot();
        let workers = &snapshot.workers;
        if workers.is_empty() {
            return Err(NotReady::NoWorkers);
        }
        if snapshot.weights.iter().all(|weight| *weight == 0) {
            return Err(NotReady::NoWeight);
        }
        let mut weighted = workers.iter().zip(&snapshot.weights).filter(|(_, weight)| **weight != 0);
        if weighted.any(|(worker, _)| worker.usable(now)) {
            return Ok(());
        }
        let draining = workers.iter().filter(|worker| worker.draining()).count();
        let unhealthy = workers.iter().filter(|worker| !worker.draining() && !worker.healthy()).count();
        let all = workers.len();
        Err(NotReady::NoneUsable { all, draining, unhealthy, open: all - draining - unhealthy })
    }
}
