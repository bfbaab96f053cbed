//! Opens after so many failures of the connection in a row: refused, reset, or no answer in time. A worker that is
//! dead or hung shows so; an answer of any status, good or bad, says that it lives.

use std::time::Instant;

use outrigger_policy::effective;

use super::rules::{Cause, Seen, Trip};
use super::window::Counts;

pub(super) struct LocalOrigin {
    /// `None`: never opens, and counts all the same.
    limit: Option<u32>,
    seen: u32,
}

impl LocalOrigin {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        Self { limit: settings.consecutive_local_origin_failures, seen: 0 }
    }
}

impl Trip for LocalOrigin {
    fn reconfigure(&mut self, settings: &effective::Breaker) {
        self.limit = settings.consecutive_local_origin_failures;
    }

    fn observe(&mut self, seen: &Seen, _window: &Counts, _now: Instant) -> Option<Cause> {
        self.seen = if seen.local_origin { self.seen.saturating_add(1) } else { 0 };
        self.limit.filter(|limit| *limit <= self.seen)?;
        Some(format!("{} failed connections in a row", self.seen))
    }

    fn reset(&mut self) {
        self.seen = 0;
    }
}
