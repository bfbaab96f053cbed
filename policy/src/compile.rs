//! The one validator: from what a user wrote to what a proxy enforces, or every reason why not.
//!
//! Used by the admission webhook, the reconciler, the proxy's file mode, its push client, and the CLI.

mod breaker_overrides;
mod canary;
mod circuit_breaker;
mod drain;
mod health_check;
mod load_balancer;
mod rate_limit;
mod retry;
mod route;
mod session_persistence;
mod spillover;
mod tables;
mod timeout;
mod workers;

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::circuit_breaker::Defaults;
use crate::effective::{LoadBalancer, Policy, WorkerRule};
use crate::selector::{LabelSelector, Operator};
use crate::spec::{LoadBalancerSpec, Spec};
use crate::units::DurationText;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// One thing that is wrong with a spec, where, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The field, as `kubectl explain` would name it: `spec.routes[0].name`. Empty: the whole.
    pub path: String,
    /// What must hold: lower case, no full stop.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

/// Turns a spec into the policy a proxy enforces. Defaults and bounds are applied here and nowhere else.
///
/// # Errors
/// Every violation, in the order of the fields.
pub fn compile(spec: &Spec) -> Result<Policy, Vec<Violation>> {
    let mut check = Check::default();
    let policy = check.policy(spec);
    if check.violations.is_empty() { Ok(policy) } else { Err(check.violations) }
}

/// As `compile`, of a `loadBalancer` section alone, which stands at `at` and beside these workers.
///
/// # Errors
/// Every violation, in the order of the fields.
pub fn compile_load_balancer(
    at: &str,
    section: &LoadBalancerSpec,
    workers: &[WorkerRule],
) -> Result<LoadBalancer, Vec<Violation>> {
    let mut check = Check { total_weight: total_weight(workers), ..Check::default() };
    let load_balancer = check.load_balancer(at, section);
    if check.violations.is_empty() { Ok(load_balancer) } else { Err(check.violations) }
}

/// Collects violations while a spec is walked; every method returns a usable value whatever it found.
#[derive(Default)]
struct Check {
    violations: Vec<Violation>,
    /// The weights that the policy gives, together.
    total_weight: u64,
}

fn total_weight(workers: &[WorkerRule]) -> u64 {
    workers.iter().map(|worker| u64::from(worker.weight)).sum()
}

impl Check {
    fn policy(&mut self, spec: &Spec) -> Policy {
        self.number("spec.priority", spec.priority.unwrap_or(0), -1_000_000..=1_000_000);
        if let Some(subject) = &spec.subject {
            self.selector("spec.subject.namespaceSelector", subject.namespace_selector.as_ref());
            self.selector("spec.subject.podSelector", subject.pod_selector.as_ref());
        }
        let workers = self.workers(spec.workers.as_deref().unwrap_or_default());
        self.total_weight = total_weight(&workers);
        let canary = spec.canary.as_ref().map(|section| self.canary("spec.canary", section, spec));
        let breakers = spec.circuit_breaker.clone().unwrap_or_default();
        let worker_breaker = breakers
            .worker
            .map(|section| self.breaker("spec.circuitBreaker.worker", &section, Defaults::WORKER));
        let service_breaker = breakers
            .service
            .map(|section| self.breaker("spec.circuitBreaker.service", &section, Defaults::SHARED));
        let [max_open, panic] =
            [breakers.max_open_percent.unwrap_or(100), breakers.panic_threshold.unwrap_or(0)];
        let max_open_percent = self.number("spec.circuitBreaker.maxOpenPercent", max_open, 1..=100);
        let panic_threshold = self.number("spec.circuitBreaker.panicThreshold", panic, 0..=100);
        let breaker_overrides = self.breaker_overrides(spec.breaker_overrides.as_deref().unwrap_or_default());
        let health_check = spec
            .health_check
            .as_ref()
            .and_then(|section| section.active.as_ref())
            .map(|active| self.health_check("spec.healthCheck.active", active));
        let ready = spec.health_check.as_ref().and_then(|section| section.ready_threshold_percent);
        let ready_threshold_percent =
            self.number("spec.healthCheck.readyThresholdPercent", ready.unwrap_or(0), 0..=100);
        let drain = self.drain("spec.drain", &spec.drain.clone().unwrap_or_default());
        let default = self.default_route(spec);
        let mut routes = self.routes(spec.routes.as_deref().unwrap_or_default(), &default);
        self.tables(spec, &default, &routes);
        routes.push(default);
        Policy {
            workers,
            canary,
            worker_breaker,
            service_breaker,
            max_open_percent,
            panic_threshold,
            breaker_overrides,
            health_check,
            ready_threshold_percent,
            drain,
            routes,
        }
    }

    fn selector(&mut self, at: &str, selector: Option<&LabelSelector>) {
        let Some(selector) = selector else { return };
        self.at_most(&format!("{at}.matchLabels"), selector.match_labels.len(), 32);
        self.at_most(&format!("{at}.matchExpressions"), selector.match_expressions.len(), 32);
        for (i, requirement) in selector.match_expressions.iter().enumerate() {
            let at = format!("{at}.matchExpressions[{i}].values");
            self.at_most(&at, requirement.values.len(), 64);
            match requirement.operator {
                Operator::In | Operator::NotIn if requirement.values.is_empty() => {
                    self.violation(&at, "must not be empty for the operators 'In' and 'NotIn'");
                }
                Operator::Exists | Operator::DoesNotExist if !requirement.values.is_empty() => {
                    self.violation(&at, "must be empty for the operators 'Exists' and 'DoesNotExist'");
                }
                _ => {}
            }
        }
    }

    // === the small checks ===

    fn violation(&mut self, path: &str, reason: impl Into<String>) {
        self.violations.push(Violation { path: path.to_owned(), reason: reason.into() });
    }

    fn number<N: PartialOrd + Copy + fmt::Display>(
        &mut self,
        path: &str,
        number: N,
        range: std::ops::RangeInclusive<N>,
    ) -> N {
        if !range.contains(&number) {
            self.violation(path, format!("must be {} to {}, not {number}", range.start(), range.end()));
        }
        number
    }

    fn at_most(&mut self, path: &str, length: usize, most: usize) {
        if most < length {
            self.violation(path, format!("must have at most {most} entries, not {length}"));
        }
    }

    fn text(&mut self, path: &str, text: &str, most: usize) {
        if text.is_empty() || most < text.len() {
            self.violation(path, format!("must have 1 to {most} characters, not {}", text.len()));
        }
    }

    fn name(&mut self, path: &str, name: &str) {
        self.text(path, name, 63);
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            self.violation(path, "must consist of letters, digits, '-' and '_'");
        }
    }

    fn unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = HashSet::new();
        for (i, name) in names.enumerate() {
            if !seen.insert(name) {
                self.violation(&format!("{path}[{i}].name"), format!("must be unique, '{name}' is taken"));
            }
        }
    }

    /// A path as it may stand in a request: from `/`, no control characters, no query.
    fn path(&mut self, at: &str, path: &str) {
        self.text(at, path, 1024);
        if !path.starts_with('/') {
            self.violation(at, format!("must start with '/', not '{path}'"));
        }
        if path.bytes().any(|b| b <= b' ' || 0x7f <= b || matches!(b, b'?' | b'#' | b'\\')) {
            self.violation(at, "must consist of visible ASCII characters other than '?', '#' and '\\'");
        }
    }

    /// A token of RFC 9110 §5.6.2: what a header, a cookie or a method may be named.
    fn token(&mut self, at: &str, token: &str, most: usize) {
        self.text(at, token, most);
        if !token.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)) {
            self.violation(at, "must be a token: letters, digits and any of !#$%&'*+-.^_`|~");
        }
    }

    /// The duration written, or the default; must lie between the two bounds.
    fn duration(
        &mut self,
        path: &str,
        text: Option<&DurationText>,
        default: Duration,
        bounds: [Duration; 2],
    ) -> Duration {
        let Some(text) = text else { return default };
        match text.parse() {
            Ok(duration) if bounds[0] <= duration && duration <= bounds[1] => duration,
            Ok(_) => {
                let [least, most] = bounds.map(DurationText::from);
                self.violation(path, format!("must be {least} to {most}, not '{text}'"));
                default
            }
            Err(error) => {
                self.violation(path, format!("{error}, not '{text}'"));
                default
            }
        }
    }
}

#[cfg(test)]
mod tests;
