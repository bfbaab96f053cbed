//! The rules that open a closed breaker: the only list of them.

use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::adaptive::{Adaptive, Learned};
use super::consecutive_failures::ConsecutiveFailures;
use super::failure_rate::FailureRate;
use super::local_origin::LocalOrigin;
use super::slow_call_rate::SlowCallRate;
use super::window::Counts;

/// Why a breaker opened, in words.
pub(super) type Cause = String;

/// A call, by the settings of a breaker.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Seen {
    pub(super) failed: bool,
    pub(super) slow: bool,
    /// It failed on this side of the connection.
    pub(super) local_origin: bool,
    pub(super) latency: Duration,
}

/// A rule that opens a closed breaker.
pub(super) trait Trip: Send {
    /// Puts other settings in force and keeps what was counted.
    fn reconfigure(&mut self, settings: &effective::Breaker);
    /// Takes note of a call, which is in the window already; why the breaker must open, if it must.
    fn observe(&mut self, seen: &Seen, window: &Counts, now: Instant) -> Option<Cause>;
    /// Forgets what it saw: the breaker closed.
    fn reset(&mut self);
}

/// Every rule of a breaker.
pub(super) struct Rules {
    consecutive_failures: ConsecutiveFailures,
    local_origin: LocalOrigin,
    failure_rate: FailureRate,
    slow_call_rate: SlowCallRate,
    adaptive: Adaptive,
}

impl Rules {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        Self {
            consecutive_failures: ConsecutiveFailures::new(settings),
            local_origin: LocalOrigin::new(settings),
            failure_rate: FailureRate::new(settings),
            slow_call_rate: SlowCallRate::new(settings),
            adaptive: Adaptive::new(settings),
        }
    }

    /// In the order in which their causes are named: the plainest first.
    fn each(&mut self) -> [&mut dyn Trip; 5] {
        [
            &mut self.local_origin,
            &mut self.consecutive_failures,
            &mut self.failure_rate,
            &mut self.slow_call_rate,
            &mut self.adaptive,
        ]
    }

    pub(super) fn reconfigure(&mut self, settings: &effective::Breaker) {
        self.each().into_iter().for_each(|rule| rule.reconfigure(settings));
    }

    /// Every rule sees every call, whatever another says of it.
    pub(super) fn observe(&mut self, seen: &Seen, window: &Counts, now: Instant) -> Option<Cause> {
        let causes = self.each().map(|rule| rule.observe(seen, window, now));
        causes.into_iter().flatten().next()
    }

    pub(super) fn reset(&mut self) {
        self.each().into_iter().for_each(|rule| rule.reset());
    }

    pub(super) fn failures_in_a_row(&self) -> u32 {
        self.consecutive_failures.seen()
    }

    pub(super) fn learned(&self, calls: u64) -> Option<Learned> {
        self.adaptive.learned(calls)
    }
}
