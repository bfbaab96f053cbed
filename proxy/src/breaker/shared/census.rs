//! How many breakers of the process are in states that make requests look closer. Mostly none is, and then nobody need
//! ask each of hundreds.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::word::{ASK, OPEN, RAMP};

static TAKING_SHARES: AtomicUsize = AtomicUsize::new(0);
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Whether any breaker takes a share only.
pub fn any_takes_a_share() -> bool {
    TAKING_SHARES.load(Relaxed) != 0
}

/// Whether there is any breaker for which time alone changes whether it admits a request.
pub fn any_waits() -> bool {
    WAITING.load(Relaxed) != 0
}

/// The word of a breaker goes from this tag to that one: to be called before it does.
pub(super) fn changed(before: u64, after: u64) {
    count(&TAKING_SHARES, |tag| tag == RAMP, before, after);
    count(&WAITING, |tag| matches!(tag, OPEN | ASK), before, after);
}

fn count(counter: &AtomicUsize, is_of_it: fn(u64) -> bool, before: u64, after: u64) {
    match (is_of_it(before), is_of_it(after)) {
        (false, true) => _ = counter.fetch_add(1, Relaxed),
        (true, false) => _ = counter.fetch_sub(1, Relaxed),
        _ => {}
    }
}
