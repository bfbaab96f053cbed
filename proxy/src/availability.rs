//! How often what decides whether a worker may be sent requests has changed, over all workers of the process: health
//! checks, draining, breakers. Who knows the answer for all of them need not ask each for as long as this stays.

use std::sync::atomic::{AtomicU64, Ordering::*};

static CHANGES: AtomicU64 = AtomicU64::new(0);

/// How often it has changed. To be read before the workers are asked.
pub fn changes() -> u64 {
    CHANGES.load(Acquire)
}

/// It has changed: to be called when those who ask get the new answer.
pub fn changed() {
    CHANGES.fetch_add(1, Release);
}
