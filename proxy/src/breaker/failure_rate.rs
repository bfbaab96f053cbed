//! Opens when too large a part of the window's calls failed (resilience4j's failure rate).

use std::time::Instant;

use outrigger_policy::effective;

use super::rules::{Cause, Seen, Trip};
use super::window::Counts;

pub(super) struct FailureRate {
    /// In percent. `None`: never opens.
    threshold: Option<u32>,
    minimum_calls: u64,
}

impl FailureRate {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        Self {
            threshold: settings.failure_rate_threshold,
            minimum_calls: u64::from(settings.minimum_number_of_calls),
        }
    }
}

impl Trip for FailureRate {
    fn reconfigure(&mut self, settings: &effective::Breaker) {
        *self = Self::new(settings);
    }

    fn observe(&mut self, _seen: &Seen, window: &Counts, _now: Instant) -> Option<Cause> {
        let (threshold, Counts { calls, failures, .. }) = (self.threshold?, *window);
        if calls < self.minimum_calls || 100 * failures < u64::from(threshold) * calls {
            return None;
        }
        let rate = window.failure_rate();
        Some(format!("{failures} of {calls} calls failed: {rate:.1} %, threshold {threshold} %"))
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::tests::settings;

    #[test]
    fn opens_at_the_threshold_once_there_are_enough_calls() {
        let settings =
            effective::Breaker { failure_rate_threshold: Some(50), minimum_number_of_calls: 4, ..settings() };
        let mut rule = FailureRate::new(&settings);
        let mut after = |calls, failures| {
            let window = Counts { calls, failures, ..Counts::default() };
            rule.observe(&Seen::default(), &window, Instant::now())
        };
        assert_eq!(after(3, 3), None, "3 calls are too few");
        assert_eq!(after(4, 2), Some(String::from("2 of 4 calls failed: 50.0 %, threshold 50 %")));
        assert_eq!(after(5, 2), None);
    }
}
