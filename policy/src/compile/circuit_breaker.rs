//! The rules of `circuitBreaker`.

use std::time::Duration;

use super::{Check, DAY, HOUR, MILLISECOND, MINUTE, SECOND};
use crate::effective::{self, FailureStatuses, Wait, Window};
use crate::spec::{self, SlidingWindowType, WindowSize};
use crate::units::DurationText;

/// What differs between the levels when a field is absent.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    consecutive_failures: u32,
    recovery_ramp: Duration,
}

impl Defaults {
    /// Of a worker's breaker: one request after the other says much of one process.
    pub(super) const WORKER: Self = Self { consecutive_failures: 5, recovery_ramp: Duration::from_secs(10) };
    /// Of what is in front of several workers: one client that meets one bug says little of it.
    pub(super) const SHARED: Self = Self { consecutive_failures: 0, recovery_ramp: Duration::ZERO };
}

impl Check {
    /// A number in percent; 0 means never.
    fn threshold(&mut self, path: &str, percent: u32) -> Option<u32> {
        self.number(path, percent, 0..=100);
        (percent != 0).then_some(percent)
    }

    pub(super) fn breaker(
        &mut self,
        at: &str,
        section: &spec::BreakerSpec,
        defaults: Defaults,
    ) -> effective::Breaker {
        let field = |name: &str| format!("{at}.{name}");
        let breaker = effective::Breaker {
            mode: section.mode.unwrap_or_default(),
            window: self.window(at, section),
            minimum_number_of_calls: self.number(
                &field("minimumNumberOfCalls"),
                section.minimum_number_of_calls.unwrap_or(20),
                1..=1_000_000,
            ),
            failure_rate_threshold: self
                .threshold(&field("failureRateThreshold"), section.failure_rate_threshold.unwrap_or(50)),
            slow_call_rate_threshold: self
                .threshold(&field("slowCallRateThreshold"), section.slow_call_rate_threshold.unwrap_or(0)),
            slow_call_duration_threshold: self.duration(
                &field("slowCallDurationThreshold"),
                section.slow_call_duration_threshold.as_ref(),
                10 * SECOND,
                [MILLISECOND, HOUR],
            ),
            consecutive_failures: self.in_a_row(
                &field("consecutiveFailures"),
                section.consecutive_failures.unwrap_or(defaults.consecutive_failures),
            ),
            consecutive_local_origin_failures: self.in_a_row(
                &field("consecutiveLocalOriginFailures"),
                section.consecutive_local_origin_failures.unwrap_or(0),
            ),
            failures: self.failures(at, section),
            wait: self.wait(at, section),
            permitted_calls_in_half_open: self.number(
                &field("permittedNumberOfCallsInHalfOpenState"),
                section.permitted_number_of_calls_in_half_open_state.unwrap_or(3),
                1..=1000,
            ),
            max_wait_in_half_open: self.zero_for_ever(
                &field("maxWaitDurationInHalfOpenState"),
                section.max_wait_duration_in_half_open_state.as_ref(),
                30 * SECOND,
            ),
            recovery_ramp: self.duration(
                &field("recoveryRamp"),
                section.recovery_ramp.as_ref(),
                defaults.recovery_ramp,
                [Duration::ZERO, HOUR],
            ),
            adaptive: section.adaptive.as_ref().map(|section| self.adaptive(&field("adaptive"), section)),
        };
        self.has_a_rule(at, section, &breaker);
        breaker
    }

    fn has_a_rule(&mut self, at: &str, section: &spec::BreakerSpec, breaker: &effective::Breaker) {
        let rules = [
            breaker.failure_rate_threshold,
            breaker.slow_call_rate_threshold,
            breaker.consecutive_failures,
            breaker.consecutive_local_origin_failures,
        ];
        let forced = matches!(breaker.mode, spec::BreakerMode::ForcedOpen | spec::BreakerMode::ForcedClosed);
        if rules.iter().all(Option::is_none) && breaker.adaptive.is_none() && !forced {
            self.violation(
                at,
                "must have a rule: `failureRateThreshold`, `slowCallRateThreshold`, `consecutiveFailures` and \
                 `consecutiveLocalOriginFailures` are all 0, and `adaptive` is absent",
            );
        }
        if section.slow_call_duration_threshold.is_some() && breaker.slow_call_rate_threshold.is_none() {
            self.violation(
                &format!("{at}.slowCallDurationThreshold"),
                "must not be set without `slowCallRateThreshold`",
            );
        }
    }

    fn in_a_row(&mut self, path: &str, number: u32) -> Option<u32> {
        self.number(path, number, 0..=10_000);
        (number != 0).then_some(number)
    }

    fn zero_for_ever(
        &mut self,
        path: &str,
        text: Option<&DurationText>,
        default: Duration,
    ) -> Option<Duration> {
        if text.is_some_and(|text| text.parse() == Ok(Duration::ZERO)) {
            return None;
        }
        Some(self.duration(path, text, default, [SECOND, HOUR]))
    }

    fn window(&mut self, at: &str, section: &spec::BreakerSpec) -> Window {
        let path = format!("{at}.slidingWindowSize");
        match (section.sliding_window_type.unwrap_or_default(), &section.sliding_window_size) {
            (SlidingWindowType::CountBased, None) => Window::Calls(100),
            (SlidingWindowType::CountBased, Some(WindowSize::Calls(calls))) => {
                Window::Calls(self.number(&path, *calls, 1..=10_000))
            }
            (SlidingWindowType::CountBased, Some(WindowSize::Time(text))) => {
                self.violation(
                    &path,
                    format!("must be a number of calls for the type 'CountBased', not '{text}'"),
                );
                Window::Calls(100)
            }
            (SlidingWindowType::TimeBased, Some(WindowSize::Calls(calls))) => {
                self.violation(&path, format!("must be a duration for the type 'TimeBased', not {calls}"));
                Window::Time(10 * SECOND)
            }
            (SlidingWindowType::TimeBased, None) => Window::Time(10 * SECOND),
            (SlidingWindowType::TimeBased, Some(WindowSize::Time(text))) => {
                Window::Time(self.duration(&path, Some(text), 10 * SECOND, [SECOND, 10 * MINUTE]))
            }
        }
    }

    fn failures(&mut self, at: &str, section: &spec::BreakerSpec) -> FailureStatuses {
        let mut failures = FailureStatuses::NONE;
        let default = FailureStatuses::default();
        match &section.failure_statuses {
            None => (100..=599).filter(|s| default.has_http(*s)).for_each(|s| failures.add_http(s)),
            Some(statuses) => {
                self.at_most(&format!("{at}.failureStatuses"), statuses.len(), 32);
                for (i, text) in statuses.iter().enumerate() {
                    match statuses_of(text) {
                        Some(range) => range.for_each(|status| failures.add_http(status)),
                        None => self.violation(
                            &format!("{at}.failureStatuses[{i}]"),
                            format!(
                                "must be a status, 100 to 599, or a range such as '500-599', not '{text}'"
                            ),
                        ),
                    }
                }
            }
        }
        match &section.failure_grpc_statuses {
            None => (0..=16).filter(|code| default.has_grpc(*code)).for_each(|code| failures.add_grpc(code)),
            Some(statuses) => {
                self.at_most(&format!("{at}.failureGrpcStatuses"), statuses.len(), 16);
                statuses.iter().for_each(|status| failures.add_grpc(status.number()));
            }
        }
        failures
    }

    fn wait(&mut self, at: &str, section: &spec::BreakerSpec) -> Wait {
        let initial = self.duration(
            &format!("{at}.waitDurationInOpenState"),
            section.wait_duration_in_open_state.as_ref(),
            5 * SECOND,
            [100 * MILLISECOND, HOUR],
        );
        let max = self.duration(
            &format!("{at}.maxWaitDurationInOpenState"),
            section.max_wait_duration_in_open_state.as_ref(),
            MINUTE.max(initial),
            [initial, DAY],
        );
        let multiplier = section.wait_duration_multiplier.unwrap_or(2);
        let jitter_percent = section.wait_duration_jitter.unwrap_or(10);
        Wait {
            initial,
            max,
            multiplier: self.number(&format!("{at}.waitDurationMultiplier"), multiplier, 1..=10),
            jitter_percent: self.number(&format!("{at}.waitDurationJitter"), jitter_percent, 0..=100),
        }
    }

    fn adaptive(&mut self, at: &str, section: &spec::AdaptiveSpec) -> effective::Adaptive {
        let learning_window = self.duration(
            &format!("{at}.learningWindow"),
            section.learning_window.as_ref(),
            10 * MINUTE,
            [MINUTE, DAY],
        );
        let deviations = self.number(&format!("{at}.deviations"), section.deviations.unwrap_or(4), 1..=20);
        let floor = section.failure_rate_floor.unwrap_or(5);
        self.number(&format!("{at}.failureRateFloor"), floor, 1..=100);
        let ceiling = section.failure_rate_ceiling.unwrap_or(floor.max(50));
        self.number(&format!("{at}.failureRateCeiling"), ceiling, floor..=100);
        let fastest = self.duration(
            &format!("{at}.latencyFloor"),
            section.latency_floor.as_ref(),
            100 * MILLISECOND,
            [MILLISECOND, HOUR],
        );
        let slowest = self.duration(
            &format!("{at}.latencyCeiling"),
            section.latency_ceiling.as_ref(),
            fastest.max(10 * SECOND),
            [fastest, HOUR],
        );
        effective::Adaptive {
            learning_window,
            deviations,
            failure_rate: [floor, ceiling],
            latency: [fastest, slowest],
        }
    }
}

/// `503` or `500-599`.
fn statuses_of(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let status = |text: &str| (text.len() == 3).then(|| text.parse::<u16>().ok()).flatten();
    let (first, last) = (status(first)?, status(last)?);
    (100 <= first && first <= last && last <= 599).then_some(first..=last)
}

#[cfg(test)]
mod tests;
