//! The rules of `retry` and `hedge`.

use super::{Check, HOUR, MILLISECOND, MINUTE, SECOND};
use crate::effective::{self, RetryBudget};
use crate::spec::{self, RetryTrigger};

impl Check {
    pub(super) fn retry(&mut self, at: &str, section: Option<&spec::RetrySpec>) -> effective::Retry {
        let section = section.cloned().unwrap_or_default();
        let per_retry = section.per_retry.unwrap_or_default();
        let on = section.retry_on.unwrap_or_default();
        let num_retries = self.number(&format!("{at}.numRetries"), section.num_retries.unwrap_or(2), 0..=10);
        let triggers = on.triggers.clone().unwrap_or(vec![RetryTrigger::ConnectFailure, RetryTrigger::Reset]);
        self.at_most(&format!("{at}.retryOn.triggers"), triggers.len(), 8);
        let statuses = self.statuses(&format!("{at}.retryOn"), &on, &triggers);
        let mut grpc_codes: Vec<_> =
            on.grpc_codes.unwrap_or_default().into_iter().map(spec::GrpcCode::number).collect();
        self.at_most(&format!("{at}.retryOn.grpcCodes"), grpc_codes.len(), 16);
        grpc_codes.sort_unstable();
        let per_try_timeout = per_retry.timeout.map(|text| {
            self.duration(&format!("{at}.perRetry.timeout"), Some(&text), SECOND, [MILLISECOND, HOUR])
        });
        let back_off = per_retry.back_off.unwrap_or_default();
        let back_off = self.back_off(&format!("{at}.perRetry.backOff"), &back_off);
        let default = RetryBudget { percent: 20, interval: 10 * SECOND, min_retry_rate: 10 };
        let budget = self.budget(&format!("{at}.budget"), section.budget.as_ref(), default);
        let body_buffer =
            self.number(&format!("{at}.bodyBuffer"), section.body_buffer.unwrap_or(0), 0..=1 << 20);
        if !grpc_codes.is_empty() && body_buffer == 0 {
            self.violation(
                &format!("{at}.bodyBuffer"),
                "must not be 0 with `retryOn.grpcCodes`: a call is a body, and could not be sent once more",
            );
        }
        effective::Retry {
            num_retries,
            connect_failure: triggers.contains(&RetryTrigger::ConnectFailure),
            reset: triggers.contains(&RetryTrigger::Reset),
            statuses,
            grpc_codes,
            per_try_timeout,
            base_interval: back_off[0],
            max_interval: back_off[1],
            budget,
            body_buffer: body_buffer as usize,
        }
    }

    fn statuses(&mut self, at: &str, on: &spec::RetryOnSpec, triggers: &[RetryTrigger]) -> Vec<u16> {
        let mut statuses = on.http_status_codes.clone().unwrap_or_default();
        self.at_most(&format!("{at}.httpStatusCodes"), statuses.len(), 16);
        for (i, status) in statuses.iter().enumerate() {
            self.number(&format!("{at}.httpStatusCodes[{i}]"), *status, 400..=599);
        }
        if triggers.contains(&RetryTrigger::GatewayError) {
            statuses.extend([502, 503, 504]);
        }
        if triggers.contains(&RetryTrigger::ServerError) {
            statuses.extend(500..=599);
        }
        statuses.sort_unstable();
        statuses.dedup();
        statuses
    }

    fn back_off(&mut self, at: &str, section: &spec::BackOffSpec) -> [std::time::Duration; 2] {
        let base = self.duration(
            &format!("{at}.baseInterval"),
            section.base_interval.as_ref(),
            25 * MILLISECOND,
            [MILLISECOND, MINUTE],
        );
        let max = self.duration(
            &format!("{at}.maxInterval"),
            section.max_interval.as_ref(),
            10 * base,
            [base, 10 * MINUTE],
        );
        [base, max]
    }

    fn budget(
        &mut self,
        at: &str,
        section: Option<&spec::RetryBudgetSpec>,
        default: RetryBudget,
    ) -> RetryBudget {
        let Some(section) = section else { return default };
        RetryBudget {
            percent: self.number(
                &format!("{at}.percent"),
                section.percent.unwrap_or(default.percent),
                0..=100,
            ),
            interval: self.duration(
                &format!("{at}.interval"),
                section.interval.as_ref(),
                default.interval,
                [SECOND, MINUTE],
            ),
            min_retry_rate: self.number(
                &format!("{at}.minRetryRate"),
                section.min_retry_rate.unwrap_or(default.min_retry_rate),
                0..=10_000,
            ),
        }
    }

    pub(super) fn hedge(&mut self, at: &str, section: &spec::HedgeSpec) -> Option<effective::Hedge> {
        let after = match (&section.delay, section.after_percentile) {
            (Some(delay), None) => effective::HedgeAfter::Delay(self.duration(
                &format!("{at}.delay"),
                Some(delay),
                SECOND,
                [MILLISECOND, MINUTE],
            )),
            (None, Some(percentile)) => effective::HedgeAfter::Percentile(self.number(
                &format!("{at}.afterPercentile"),
                percentile,
                50..=99,
            )),
            _ => {
                self.violation(at, "must have exactly one of `delay` and `afterPercentile`");
                return None;
            }
        };
        let default = RetryBudget { percent: 10, interval: 10 * SECOND, min_retry_rate: 1 };
        let budget = self.budget(&format!("{at}.budget"), section.budget.as_ref(), default);
        Some(effective::Hedge { after, budget })
    }
}
