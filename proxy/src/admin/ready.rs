//! Whether the proxy can take traffic, and why not.

use std::time::{Duration, Instant};

use super::Admin;
use crate::drain::Phase;
use crate::drain::worker::Serves;
use crate::health::acceptance::{Acceptance, GRACE};
use crate::snapshot::Source;
use crate::worker::Worker;

/// Why the proxy cannot take traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotReady {
    #[error("stopping")]
    Stopping,
    #[error("no policy has come yet")]
    NoPolicy,
    #[error("the workers start: {up} of {all} are up, and for {seconds} s all must be")]
    Starting { up: usize, all: usize, seconds: u64 },
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
#[error(
    "{draining} are stopping, {refusing} accept no connection, {unhealthy} unhealthy, {open} refused by their breakers"
)]
pub(super) struct Why {
    draining: usize,
    refusing: usize,
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
        // A worker of weight 0 takes nothing, however well it is.
        let weighted = snapshot.workers.iter().zip(&snapshot.weights).filter(|(_, weight)| **weight != 0);
        let workers: Vec<_> = weighted.map(|(worker, _)| worker.as_ref()).collect();
        self.started(snapshot.workers.len(), &workers, now)?;
        if snapshot.workers.is_empty() {
            return Err(NotReady::NoWorkers);
        }
        if workers.is_empty() {
            return Err(NotReady::NoWeight);
        }
        let usable = workers.iter().filter(|worker| worker.usable(now)).count();
        let all = workers.len();
        let percent = snapshot.policy.ready_threshold_percent;
        if 0 < usable && all * percent as usize <= usable * 100 {
            return Ok(());
        }
        Err(match (usable, Why::of(&workers, usable)) {
            (0, why) => NotReady::NoneUsable { all, why },
            (_, why) => NotReady::TooFew { usable, all, percent, why },
        })
    }

    /// Whether every worker was well once. One that is broken keeps the others from serving for a while, and not for ever;
    /// one that is drained keeps nobody.
    fn started(&self, there: usize, workers: &[&Worker], now: Instant) -> Result<(), NotReady> {
        let left = GRACE.saturating_sub(now.saturating_duration_since(self.started));
        let missing = self.configured_workers.saturating_sub(there);
        let starting =
            workers.iter().filter(|worker| worker.starting() && !stopping(worker)).count() + missing;
        if starting == 0 || left == Duration::ZERO {
            return Ok(());
        }
        let all = workers.len() + missing;
        Err(NotReady::Starting { up: all - starting, all, seconds: left.as_secs() + 1 })
    }
}

impl Why {
    fn of(workers: &[&Worker], usable: usize) -> Self {
        let rest = workers.iter().filter(|worker| !stopping(worker));
        let (refusing, rest): (Vec<&&Worker>, Vec<&&Worker>) =
            rest.partition(|worker| worker.acceptance() != Acceptance::Accepting);
        let draining = workers.len() - refusing.len() - rest.len();
        let (refusing, unhealthy) = (refusing.len(), rest.iter().filter(|worker| !worker.healthy()).count());
        Self { draining, refusing, unhealthy, open: rest.len() - unhealthy - usable }
    }
}

fn stopping(worker: &Worker) -> bool {
    worker.draining() || worker.drain.serves() != Serves::All
}
