//! Opens after so many failures in a row. It notices a worker that is down at once, whatever the traffic was before.

use std::time::Instant;

use outrigger_policy::effective;

use super::rules::{Cause, Seen, Trip};
use super::window::Counts;

pub(super) struct ConsecutiveFailures {
    /// `None`: never opens, and counts all the same, so that the count is right when a limit is set.
    limit: Option<u32>,
    seen: u32,
}

impl ConsecutiveFailures {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        Self { limit: settings.consecutive_failures, seen: 0 }
    }

    /// Failures since the last success.
    pub(super) fn seen(&self) -> u32 {
        self.seen
    }
}

impl Trip for ConsecutiveFailures {
    fn reconfigure(&mut self, settings: &effective::Breaker) {
        self.limit = settings.consecutive_failures;
    }

    fn observe(&mut self, seen: &Seen, _window: &Counts, _now: Instant) -> Option<Cause> {
        self.seen = if seen.failed { self.seen.saturating_add(1) } else { 0 };
        self.limit.filter(|limit| *limit <= self.seen)?;
        Some(format!("{} failures in a row", self.seen))
    }

    fn reset(&mut self) {
        self.seen = 0;
    }
}
