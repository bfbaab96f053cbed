//! The rules of `healthCheck`.

use std::time::Duration;

use super::{Check, MILLISECOND, MINUTE, SECOND};
use crate::effective;
use crate::spec::{self, HealthCheckType};

impl Check {
    pub(super) fn health_check(
        &mut self,
        at: &str,
        section: &spec::ActiveHealthCheckSpec,
    ) -> effective::HealthCheck {
        let probe = self.probe(at, section);
        let thresholds = [
            ("unhealthyThreshold", section.unhealthy_threshold.unwrap_or(3)),
            ("healthyThreshold", section.healthy_threshold.unwrap_or(1)),
        ]
        .map(|(field, threshold)| self.number(&format!("{at}.{field}"), threshold, 1..=100));
        let initial_jitter = section.initial_jitter.as_ref().map(|jitter| {
            let zero = Duration::ZERO;
            self.duration(&format!("{at}.initialJitter"), Some(jitter), zero, [zero, 10 * MINUTE])
        });
        effective::HealthCheck {
            probe,
            initial_jitter,
            interval_jitter_percent: self.number(
                &format!("{at}.intervalJitterPercent"),
                section.interval_jitter_percent.unwrap_or(10),
                0..=50,
            ),
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
        }
    }

    fn probe(&mut self, at: &str, section: &spec::ActiveHealthCheckSpec) -> effective::Probe {
        let kind = section.kind.unwrap_or_default();
        let of_http = [
            ("method", section.method.is_some()),
            ("hostname", section.hostname.is_some()),
            ("path", section.path.is_some()),
            ("expectedStatuses", section.expected_statuses.is_some()),
        ];
        for (field, set) in of_http {
            if set && kind != HealthCheckType::Http {
                self.violation(&format!("{at}.{field}"), "must be absent: it is for type 'HTTP'");
            }
        }
        if section.service.is_some() && kind != HealthCheckType::Grpc {
            self.violation(&format!("{at}.service"), "must be absent: it is for type 'GRPC'");
        }
        match kind {
            HealthCheckType::Http => effective::Probe::Http(self.http_probe(at, section)),
            HealthCheckType::Grpc => {
                let service = section.service.clone().unwrap_or_default();
                let fits = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
                if 127 < service.len() || !service.bytes().all(fits) {
                    let most =
                        "must have at most 127 characters, and only letters, digits, '.', '_', '-' and '/'";
                    self.violation(&format!("{at}.service"), most);
                }
                effective::Probe::Grpc { service }
            }
            HealthCheckType::Tcp => effective::Probe::Tcp,
        }
    }

    fn http_probe(&mut self, at: &str, section: &spec::ActiveHealthCheckSpec) -> effective::HttpProbe {
        let method = section.method.clone().unwrap_or_else(|| "GET".to_owned());
        if !["GET", "HEAD", "OPTIONS", "POST"].contains(&method.as_str()) {
            self.violation(
                &format!("{at}.method"),
                format!("must be GET, HEAD, OPTIONS or POST, not '{method}'"),
            );
        }
        if let Some(hostname) = &section.hostname {
            self.text(&format!("{at}.hostname"), hostname, 253);
            if !hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b)) {
                self.violation(&format!("{at}.hostname"), "must be a host name, with a port at most");
            }
        }
        let path = section.path.clone().unwrap_or_else(|| "/healthz".to_owned());
        self.path(&format!("{at}.path"), &path);
        let expected_statuses = section.expected_statuses.clone().unwrap_or_default();
        self.at_most(&format!("{at}.expectedStatuses"), expected_statuses.len(), 16);
        for (i, status) in expected_statuses.iter().enumerate() {
            self.number(&format!("{at}.expectedStatuses[{i}]"), *status, 100..=599);
        }
        effective::HttpProbe { method, path, hostname: section.hostname.clone(), expected_statuses }
    }
}
