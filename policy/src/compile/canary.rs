//! The rules of `canary`.

use super::{Check, DAY, HOUR, MINUTE, SECOND};
use crate::effective;
use crate::spec::{self, Spec};

impl Check {
    pub(super) fn canary(&mut self, at: &str, section: &spec::CanarySpec, all: &Spec) -> effective::Canary {
        match &section.pod_label {
            None => self.name(&format!("{at}.version"), &section.version),
            Some(label) => self.canary_by_pods(at, (&section.version, label), all),
        }
        let stickiness = section.stickiness.unwrap_or_default();
        if let Some(header) = &section.client_header {
            self.token(&format!("{at}.clientHeader"), header, 128);
            if stickiness != spec::CanaryStickiness::Client {
                self.violation(&format!("{at}.clientHeader"), "needs `stickiness: Client`");
            }
        }
        if let Some(preview) = &section.preview {
            self.token(&format!("{at}.preview.name"), &preview.name, 128);
            self.text(&format!("{at}.preview.value"), &preview.value, 1024);
        }
        effective::Canary {
            version: section.version.clone(),
            pod_label: section.pod_label.clone(),
            attempt: self.number(&format!("{at}.attempt"), section.attempt.unwrap_or(1), 1..=1_000_000),
            steps: self.canary_steps(&format!("{at}.steps"), &section.steps),
            stickiness,
            client_header: section.client_header.as_ref().map(|header| header.to_ascii_lowercase()),
            preview: section
                .preview
                .as_ref()
                .map(|preview| (preview.name.to_ascii_lowercase(), preview.value.clone())),
            analysis: self
                .canary_analysis(&format!("{at}.analysis"), &section.analysis.clone().unwrap_or_default()),
        }
    }

    fn canary_by_pods(&mut self, at: &str, (version, label): (&str, &str), all: &Spec) {
        if !is_label_name(version) {
            self.violation(
                &format!("{at}.version"),
                "must be a label's value: 1 to 63 letters, digits, '-', '_' and '.', a letter or digit at both ends",
            );
        }
        let at = format!("{at}.podLabel");
        if !is_label_key(label) {
            self.violation(&at, "must be a label's key, such as 'app.kubernetes.io/version'");
        }
        if !all.reaches_siblings() {
            self.violation(
                &at,
                "needs `loadBalancer.scope: Workload` in this policy, for all requests or for a route: no request \
                 leaves its pod",
            );
        }
        for (i, worker) in all.workers.iter().flatten().enumerate() {
            if worker.version.is_some() {
                self.violation(
                    &format!("spec.workers[{i}].version"),
                    "must be absent beside `canary.podLabel`: all workers of a pod are of the pod's version",
                );
            }
        }
    }

    fn canary_steps(&mut self, at: &str, steps: &[spec::CanaryStepSpec]) -> Vec<effective::CanaryStep> {
        self.at_most(at, steps.len(), 32);
        if steps.is_empty() {
            self.violation(at, "must have a step");
        }
        let mut least = 0;
        let mut checked = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            let weight = self.number(&format!("{at}[{i}].weight"), step.weight, 0..=100);
            if weight < least {
                self.violation(
                    &format!("{at}[{i}].weight"),
                    format!("must not be less than the {least} before"),
                );
            }
            least = least.max(weight);
            let pause =
                self.duration(&format!("{at}[{i}].pause"), step.pause.as_ref(), MINUTE, [SECOND, 30 * DAY]);
            checked.push(effective::CanaryStep { weight, pause });
        }
        checked
    }

    fn canary_analysis(&mut self, at: &str, section: &spec::CanaryAnalysisSpec) -> effective::CanaryAnalysis {
        let mut number = |field: &str, number: Option<u32>, default: u32, range| {
            self.number(&format!("{at}.{field}"), number.unwrap_or(default), range)
        };
        let max_error_rate_margin = number("maxErrorRateMargin", section.max_error_rate_margin, 1, 0..=100);
        let max_latency_margin = number("maxLatencyMargin", section.max_latency_margin, 25, 0..=10_000);
        let latency_percentile = number("latencyPercentile", section.latency_percentile, 95, 50..=99);
        let minimum_requests = number("minimumRequests", section.minimum_requests, 100, 20..=1_000_000);
        effective::CanaryAnalysis {
            max_error_rate_margin,
            max_latency_margin,
            latency_percentile,
            minimum_requests: minimum_requests.into(),
            interval: self.duration(
                &format!("{at}.interval"),
                section.interval.as_ref(),
                10 * SECOND,
                [SECOND, HOUR],
            ),
        }
    }
}

/// An optional DNS name and `/`, and a name, as Kubernetes has it.
fn is_label_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    let is_part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        part.bytes().all(inner) && !part.is_empty() && !part.starts_with('-') && !part.ends_with('-')
    };
    is_label_name(name) && prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_part))
}

/// The name in a label's key, and a label's value where it is not empty.
fn is_label_name(name: &str) -> bool {
    let ends = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let bytes = name.as_bytes();
    bytes.len() <= 63 && ends(bytes.first()) && ends(bytes.last()) && name.bytes().all(inner)
}
