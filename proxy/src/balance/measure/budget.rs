//! How many requests a worker can take within the latency objective: additive increase, multiplicative decrease.

use super::{Stamped, Tick};

/// Before anything is known.
const FIRST: f32 = 8.0;
const LEAST: f32 = 0.05;
const MOST: f32 = 10_000.0;
/// What is left of the limit after a late answer, and after a failure.
const LATE: f32 = 0.9;
const FAILED: f32 = 0.5;
/// How long it takes until one request may be tried of a limit that is near 0, in seconds.
const PATIENCE: f32 = 10.0;

/// The limit of requests in flight, and when it last fell.
#[derive(Default)]
pub struct Budget(Stamped);

/// What an answer says of the limit.
#[derive(Clone, Copy, Debug)]
pub struct Verdict {
    /// It took longer than the objective.
    pub late: bool,
    /// It was a failure.
    pub failed: bool,
    /// Requests that were in flight, with this one.
    pub in_flight: u32,
}

impl Budget {
    /// Learns from an answer. Late ones within one objective of each other count once: they were sent together.
    pub fn observe(&self, verdict: Verdict, now: Tick, objective: f32) {
        self.0.update(|before| {
            let (limit, fell) = before.unwrap_or((FIRST, now));
            let recently = before.is_some() && now.since(fell) < objective;
            if verdict.failed {
                ((limit * FAILED).max(LEAST), now)
            } else if verdict.late {
                if recently { (limit, fell) } else { ((limit * LATE).max(LEAST), now) }
            } else if limit < 2.0 * verdict.in_flight as f32 {
                ((limit + 1.0 / limit.max(1.0)).min(MOST), fell)
            } else {
                (limit, fell) // it was not near its limit: that says nothing
            }
        });
    }

    /// How many requests it can take now.
    pub fn at(&self, now: Tick) -> f32 {
        match self.0.get() {
            None => FIRST,
            Some((limit, _)) if 1.0 <= limit => limit,
            Some((limit, fell)) => (limit + now.since(fell) / PATIENCE).min(1.0),
        }
    }
}
