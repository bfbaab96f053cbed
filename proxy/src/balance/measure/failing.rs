//! How a worker's last requests failed, whatever else is known of it.
//!
//! A worker that fails at once has nothing to do: by its load alone it looks like the best of all. So each failure is
//! remembered, each answer that is none takes one back, and by and by they are forgotten. The first few change
//! nothing: a request fails now and then. From there on each makes the worker count as twice as busy. However busy the others
//! are, few failures are then enough, and however long it failed, it is tried again within a minute.

use std::time::Instant;

use super::{Stamped, Tick};

/// So many failures, more than there were good answers, change nothing.
const NOW_AND_THEN: f32 = 2.0;
/// More are not remembered: 2^16 times as busy is busier than any other.
const MOST: f32 = NOW_AND_THEN + 16.0;
/// After so many seconds what is remembered has become 1/e of what it was.
const FADING: f32 = 20.0;

/// The failures that count, and as of when. None before the first.
#[derive(Default)]
pub struct Failing(Stamped);

impl Failing {
    /// A request failed. `answered`: its answer had begun well, and was taken for a good one.
    pub fn failed(&self, answered: bool, now: Tick) {
        let more = if answered { 2.0 } else { 1.0 };
        self.0.update(|before| ((remembered(before, now) + more).min(MOST), now));
    }

    /// The head of an answer came that is no failure.
    pub fn answered(&self, now: Instant) {
        if self.is_over() {
            return;
        }
        let now = Tick::of(now);
        self.0.update(|before| ((remembered(before, now) - 1.0).max(0.0), now));
    }

    /// Whether there is nothing to remember: the usual case, in which the time need not be known.
    pub fn is_over(&self) -> bool {
        self.0.get().is_none_or(|(failures, _)| failures == 0.0)
    }

    /// How often the worker counts as twice as busy.
    pub fn doublings(&self, now: Tick) -> u32 {
        (remembered(self.0.get(), now) - NOW_AND_THEN).max(0.0).ceil() as u32
    }
}

fn remembered(before: Option<(f32, Tick)>, now: Tick) -> f32 {
    before.map_or(0.0, |(failures, at)| failures * (-now.since(at) / FADING).exp())
}
