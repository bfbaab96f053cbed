//! Whether the proxy can take traffic, and why not.

use std::time::Instant;

use super::Admin;
use crate::drain::Phase;
use crate::drain::worker::Serves;
use crate::snapshot::Source;
use crate::worker::Worker;

/// Why the proxy cannot take traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotReady {
    #[error("stopping")]
    Stopping,
    #[error("no policy has come yet")]
    NoPolicy,
    #[error("there is no worker")]
    NoWorkers,
    #[error("every worker has the weight 0")]
    NoWeight,
    #[error("no worker is usable: of {all}, {why}")]
    NoneUsable { all: usize, why: Why },
    #[error("too few workers are usable: {usable} of {all}, and {percent} % must be; {why}")]
    TooFew { usable: usize, all: usize, percent: u32, why: Why },
}

/// Why workers are not usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{draining} are stopping, {unhealthy} unhealthy, {open} refused by their breakers")]
pub(super) struct Why {
    draining: usize,
    unhealthy: usize,
    open: usize,
}

impl Admin {
    pub(super) fn ready(&self, now: Instant) -> Result<(), NotReady> {
        let (phase, snapshot) = (self.lifecycle.phase(), self.control.snapshot());
        if Phase::Serving < phase {
            return Err(NotReady::Stopping);
        }
        if phase == Phase::Starting || snapshot.source == Source::Awaited {
            return Err(NotReady::NoPolicy);
        }
        if snapshot.workers.is_empty() {
            return Err(NotReady::NoWorkers);
        }
        // A worker of weight 0 takes nothing, however well it is.
        let weighted = snapshot.workers.iter().zip(&snapshot.weights).filter(|(_, weight)| **weight != 0);
        let workers: Vec<_> = weighted.map(|(worker, _)| worker.as_ref()).collect();
        if workers.is_empty() {
            return Err(NotReady::NoWeight);
        }
        let usable = workers.iter().filter(|worker| worker.usable(now)).count();
        let all = workers.len();
        let percent = snapshot.policy.ready_threshold_percent;
        if 0 < usable && all * percent as usize <= usable * 100 {
            return Ok(());
        }
        let stopping = |worker: &Worker| worker.draining() || worker.drain.serves() != Serves::All;
        let draining = workers.iter().filter(|worker| stopping(worker)).count();
        let unhealthy = workers.iter().filter(|worker| !stopping(worker) && !worker.healthy()).count();
        let open = all - draining - unhealthy - usable;
        let why = Why { draining, unhealthy, open };
        Err(match usable {
            0 => NotReady::NoneUsable { all, why },
            _ => NotReady::TooFew { usable, all, percent, why },
        })
    }
}
