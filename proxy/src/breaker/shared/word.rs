//! The word that requests read instead of taking the lock: the era, and what a request may do without asking further.

use crate::breaker::Era;

/// There is no breaker: pass.
pub(super) const OFF: u64 = 0;
/// Closed: pass, and be counted.
pub(super) const PASS: u64 = 1;
/// Closed not long ago: as `PASS`, but the share of requests grows.
pub(super) const RAMP: u64 = 2;
/// Half-open: ask under the lock.
pub(super) const ASK: u64 = 3;
/// Open until `time`: refused before, and `ASK` afterwards.
pub(super) const OPEN: u64 = 4;
/// Half-open, and every probe is taken: refused.
pub(super) const FULL: u64 = 5;
/// Forced open until `time`.
pub(super) const FORCED: u64 = 6;
/// Not closed, but not enforced: pass, and decide nothing.
pub(super) const BYPASS: u64 = 7;
const TAG_BITS: u32 = 3;

/// What the word says.
#[derive(Clone, Copy)]
pub(super) struct Word(pub(super) u64);

impl Word {
    pub(super) fn new(era: Era, tag: u64) -> Self {
        Self(era.0 << TAG_BITS | tag)
    }

    pub(super) fn tag(self) -> u64 {
        self.0 & ((1 << TAG_BITS) - 1)
    }

    pub(super) fn era(self) -> Era {
        Era(self.0 >> TAG_BITS)
    }
}
