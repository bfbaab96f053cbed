//! The rules of `healthCheck`.

use super::{Check, MILLISECOND, MINUTE, SECOND};
use crate::effective;
use crate::spec;

impl Check {
    pub(super) fn health_check(
        &mut self,
        at: &str,
        section: &spec::ActiveHealthCheckSpec,
    ) -> effective::HealthCheck {
        let path = section.path.clone().unwrap_or_else(|| "/healthz".to_owned());
        self.path(&format!("{at}.path"), &path);
        let expected_statuses = section.expected_statuses.clone().unwrap_or_default();
        self.at_most(&format!("{at}.expectedStatuses"), expected_statuses.len(), 16);
        for (i, status) in expected_statuses.iter().enumerate() {
            self.number(&format!("{at}.expectedStatuses[{i}]"), *status, 100..=599);
        }
        let thresholds = [
            ("unhealthyThreshold", section.unhealthy_threshold.unwrap_or(3)),
            ("healthyThreshold", section.healthy_threshold.unwrap_or(1)),
        ]
        .map(|(field, threshold)| self.number(&format!("{at}.{field}"), threshold, 1..=100));
        effective::HealthCheck {
            path,
            interval: self.duration(
                &format!("{at}.interval"),
                section.interval.as_ref(),
                3 * SECOND,
                [100 * MILLISECOND, 10 * MINUTE],
            ),
            timeout: self.duration(
                &format!("{at}.timeout"),
                section.timeout.as_ref(),
                SECOND,
                [10 * MILLISECOND, MINUTE],
            ),
            unhealthy_threshold: thresholds[0],
            healthy_threshold: thresholds[1],
            expected_statuses,
        }
    }
}
