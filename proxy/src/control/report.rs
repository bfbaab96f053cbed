//! What the operator is told of the workers. Pure: the snapshot and the time in, a report out.
//!
//! A report holds points in time and no spans, so that it changes only when there is news. Since when a breaker has
//! been in its state is what was seen here, not what the breaker says: it is asked several times a second.

use std::collections::HashMap;
use std::time::Instant;

use outrigger_policy::effective::{BreakerMode, BreakerName};
use outrigger_policy::report::{BreakerReport, Level, MAX_BREAKERS, MAX_WORKERS, Report, WorkerReport};

use crate::breaker::View;
use crate::snapshot::Snapshot;

/// Looks at the workers again and again.
#[derive(Default)]
pub struct Observer {
    seen: HashMap<(Level, String), Seen>,
}

/// A breaker as it was when it came into its state.
struct Seen {
    state: &'static str,
    times_opened: u64,
    since: i64,
    next_probe: Option<i64>,
    cause: String,
}

/// One moment, on the two clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For what the proxy measures.
    pub now: Instant,
    /// The same in milliseconds since 1970.
    pub unix_millis: i64,
}

impl Observer {
    /// How the workers are at this moment.
    pub fn report(&mut self, snapshot: &Snapshot, at: Moment) -> Report {
        let workers = &snapshot.workers[..snapshot.workers.len().min(MAX_WORKERS)];
        let canary = snapshot.canary.as_ref().and_then(|canary| canary.report());
        let mut report = Report { version: snapshot.version.clone(), canary, ..Report::default() };
        let mut not_closed = HashMap::new();
        for worker in workers {
            let name = worker.name.clone();
            let (healthy, usable) = (worker.healthy(), worker.usable(at.now));
            report.workers.push(WorkerReport { name, healthy, usable });
        }
        let of_workers = workers.iter().map(|worker| (worker.breaker.name(), worker.breaker.view(at.now)));
        let of_gates = snapshot.gates().map(|gate| (gate.name(), gate.view(at.now)));
        for (name, view) in of_workers.chain(of_gates) {
            if view.state != "closed" && view.mode != BreakerMode::MetricsOnly {
                let key = (level(name), name.name().to_owned());
                let seen = self.seen.remove(&key).filter(|seen| seen.is(&view));
                not_closed.insert(key, seen.unwrap_or_else(|| Seen::new(&view, at)));
            }
        }
        self.seen = not_closed;
        report.breakers = self.seen.iter().map(|((level, name), seen)| seen.report(*level, name)).collect();
        report.breakers.sort_by(|a, b| (a.level, a.since, &a.name).cmp(&(b.level, b.since, &b.name)));
        report.breakers.truncate(MAX_BREAKERS);
        report.bounded()
    }
}

impl Seen {
    fn new(view: &View, at: Moment) -> Self {
        let remaining = view.open_remaining.map(|left| i64::try_from(left.as_millis()).unwrap_or(i64::MAX));
        Self {
            state: view.state,
            times_opened: view.times_opened,
            since: at.unix_millis,
            next_probe: remaining.map(|left| at.unix_millis.saturating_add(left)),
            cause: view.cause.clone().unwrap_or_else(|| String::from("told by the API")),
        }
    }

    /// Whether this is still the same stretch of the same state.
    fn is(&self, view: &View) -> bool {
        self.state == view.state && self.times_opened == view.times_opened
    }

    fn report(&self, level: Level, name: &str) -> BreakerReport {
        BreakerReport {
            level,
            name: name.to_owned(),
            state: self.state.to_owned(),
            cause: self.cause.clone(),
            since: self.since,
            next_probe: self.next_probe,
        }
    }
}

fn level(name: &BreakerName) -> Level {
    match name {
        BreakerName::Worker(_) => Level::Worker,
        BreakerName::Route(_) => Level::Route,
        BreakerName::Service => Level::Service,
    }
}

#[cfg(test)]
mod tests;
