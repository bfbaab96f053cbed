//! Opens when too large a part of the window's calls was slow (resilience4j's slow call rate).

use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::rules::{Cause, Seen, Trip};
use super::window::Counts;

pub(super) struct SlowCallRate {
    /// In percent. `None`: never opens.
    threshold: Option<u32>,
    minimum_calls: u64,
    /// What a slow call took longer than, for the cause.
    duration: Duration,
}

impl SlowCallRate {
    pub(super) fn new(settings: &effective::Breaker) -> Self {
        Self {
            threshold: settings.slow_call_rate_threshold,
            minimum_calls: u64::from(settings.minimum_number_of_calls),
            duration: settings.slow_call_duration_threshold,
        }
    }
}

impl Trip for SlowCallRate {
    fn reconfigure(&mut self, settings: &effective::Breaker) {
        *self = Self::new(settings);
    }

    fn observe(&mut self, _seen: &Seen, window: &Counts, _now: Instant) -> Option<Cause> {
        let (threshold, Counts { calls, slow, .. }) = (self.threshold?, *window);
        if calls < self.minimum_calls || 100 * slow < u64::from(threshold) * calls {
            return None;
        }
        let duration = self.duration;
        Some(format!("{slow} of {calls} calls took longer than {duration:?}, threshold {threshold} %"))
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::breaker::tests::settings;

    #[test]
    fn opens_at_the_threshold_once_there_are_enough_calls() {
        let settings = effective::Breaker {
            slow_call_rate_threshold: Some(80),
            slow_call_duration_threshold: Duration::from_millis(1500),
            minimum_number_of_calls: 5,
            ..settings()
        };
        let mut rule = SlowCallRate::new(&settings);
        let mut after = |calls, slow| {
            let window = Counts { calls, slow, ..Counts::default() };
            rule.observe(&Seen::default(), &window, Instant::now())
        };
        assert_eq!(after(4, 4), None, "4 calls are too few");
        assert_eq!(after(5, 3), None);
        assert_eq!(after(5, 4), Some(String::from("4 of 5 calls took longer than 1.5s, threshold 80 %")));
    }
}
