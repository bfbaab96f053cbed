//! How many breakers of the process take a share of their requests that grows. Mostly none does, and then nobody need
//! ask each of hundreds.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::word::RAMP;

static TAKING: AtomicUsize = AtomicUsize::new(0);

/// Whether any breaker takes a share only.
pub fn any_takes_a_share() -> bool {
    TAKING.load(Relaxed) != 0
}

/// The word of a breaker goes from this tag to that one: to be called before it does.
pub(super) fn changed(before: u64, after: u64) {
    match (before == RAMP, after == RAMP) {
        (false, true) => _ = TAKING.fetch_add(1, Relaxed),
        (true, false) => _ = TAKING.fetch_sub(1, Relaxed),
        _ => {}
    }
}
