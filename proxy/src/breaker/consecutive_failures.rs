//! Opens after so many failures in a row. It notices a worker that is down at once, whatever the traffic was before.

use std::time::Instant;

use super::Trip;

pub(super) struct ConsecutiveFailures {
    /// `None`: never opens, and counts all the same, so that the count is right when a limit is set.
    limit: Option<u32>,
    seen: u32,
}

impl ConsecutiveFailures {
    pub(super) fn new(limit: Option<u32>) -> Self {
        Self { limit, seen: 0 }
    }

    pub(super) fn reconfigure(&mut self, limit: Option<u32>) {
        self.limit = limit;
    }

    /// Failures since the last success.
    pub(super) fn seen(&self) -> u32 {
        self.seen
    }
}

impl Trip for ConsecutiveFailures {
    fn observe(&mut self, failed: bool, _now: Instant) -> bool {
        self.seen = if failed { self.seen.saturating_add(1) } else { 0 };
        self.limit.is_some_and(|limit| limit <= self.seen)
    }

    fn reset(&mut self) {
        self.seen = 0;
    }
}
