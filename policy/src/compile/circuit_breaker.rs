//! The rules of `circuitBreaker`.

use super::{Check, HOUR, MILLISECOND, MINUTE, SECOND};
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn breaker(&mut self, at: &str, section: &spec::BreakerSpec) -> effective::Breaker {
        let consecutive = section.consecutive_failures.unwrap_or(5);
        let rate = section.failure_rate_threshold.unwrap_or(50);
        self.number(&format!("{at}.consecutiveFailures"), consecutive, 0..=10_000);
        self.number(&format!("{at}.failureRateThreshold"), rate, 0..=100);
        if consecutive == 0 && rate == 0 {
            self.violation(
                at,
                "must have a rule: `consecutiveFailures` and `failureRateThreshold` are both 0",
            );
        }
        let half_open = section.permitted_number_of_calls_in_half_open_state.unwrap_or(3);
        effective::Breaker {
            consecutive_failures: (consecutive != 0).then_some(consecutive),
            failure_rate_threshold: (rate != 0).then_some(rate),
            sliding_window: self.duration(
                &format!("{at}.slidingWindow"),
                section.sliding_window.as_ref(),
                10 * SECOND,
                [SECOND, 10 * MINUTE],
            ),
            minimum_number_of_calls: self.number(
                &format!("{at}.minimumNumberOfCalls"),
                section.minimum_number_of_calls.unwrap_or(20),
                1..=1_000_000,
            ),
            wait_duration_in_open_state: self.duration(
                &format!("{at}.waitDurationInOpenState"),
                section.wait_duration_in_open_state.as_ref(),
                5 * SECOND,
                [100 * MILLISECOND, HOUR],
            ),
            permitted_calls_in_half_open: self.number(
                &format!("{at}.permittedNumberOfCallsInHalfOpenState"),
                half_open,
                1..=1000,
            ),
        }
    }
}
