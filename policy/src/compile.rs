//! The one validator: from what a user wrote to what a proxy enforces, or every reason why not.
//!
//! Used by the admission webhook, the reconciler, the proxy's file mode, its push client, and the CLI.

mod sections;

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::effective::{self, DEFAULT_ROUTE, Policy};
use crate::selector::{LabelSelector, Operator};
use crate::spec::{self, Spec};
use crate::units::DurationText;

/// One thing that is wrong with a spec, where, and what it must be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// The field, as `kubectl explain` would name it: `spec.routes[0].name`.
    pub path: String,
    /// What must hold: lower case, no full stop.
    pub reason: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
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

/// Collects violations while a spec is walked; every method returns a usable value whatever it found.
#[derive(Default)]
struct Check {
    violations: Vec<Violation>,
}

impl Check {
    fn policy(&mut self, spec: &Spec) -> Policy {
        self.number("spec.priority", spec.priority.unwrap_or(0), -1_000_000..=1_000_000);
        if let Some(subject) = &spec.subject {
            self.selector("spec.subject.namespaceSelector", subject.namespace_selector.as_ref());
            self.selector("spec.subject.podSelector", subject.pod_selector.as_ref());
        }
        let workers = self.workers(spec.workers.as_deref().unwrap_or_default());
        let worker_breaker = spec
            .circuit_breaker
            .as_ref()
            .and_then(|section| section.worker.as_ref())
            .map(|breaker| self.breaker("spec.circuitBreaker.worker", breaker));
        let health_check = spec
            .health_check
            .as_ref()
            .and_then(|section| section.active.as_ref())
            .map(|active| self.health_check("spec.healthCheck.active", active));
        let drain = self.drain("spec.drain", &spec.drain.clone().unwrap_or_default());
        let default = self.default_route(spec);
        let mut routes = self.routes(spec.routes.as_deref().unwrap_or_default(), &default);
        routes.push(default);
        Policy { workers, worker_breaker, health_check, drain, routes }
    }

    fn workers(&mut self, workers: &[spec::WorkerSpec]) -> Vec<effective::WorkerRule> {
        self.at_most("spec.workers", workers.len(), 256);
        self.unique("spec.workers", workers.iter().map(|worker| worker.name.as_str()));
        let rules: Vec<_> = workers
            .iter()
            .enumerate()
            .map(|(i, worker)| {
                self.name(&format!("spec.workers[{i}].name"), &worker.name);
                effective::WorkerRule {
                    name: worker.name.clone(),
                    weight: self.number(
                        &format!("spec.workers[{i}].weight"),
                        worker.weight.unwrap_or(1),
                        0..=100,
                    ),
                    protocol: worker.protocol.unwrap_or_default(),
                }
            })
            .collect();
        rules
    }

    fn default_route(&mut self, spec: &Spec) -> effective::Route {
        effective::Route {
            name: DEFAULT_ROUTE.to_owned(),
            matches: effective::RouteMatch {
                path: effective::PathMatch::Any,
                method: None,
                headers: Vec::new(),
            },
            load_balancer: spec.load_balancer.as_ref().and_then(|section| section.kind).unwrap_or_default(),
            session: spec
                .session_persistence
                .as_ref()
                .map(|section| self.session("spec.sessionPersistence", section)),
            limits: self.limits("spec.rateLimit", spec.rate_limit.as_ref()),
            retries: self.retries("spec.retry", spec.retry.as_ref()),
            timeout: self.timeout("spec.timeout", &spec.timeout.clone().unwrap_or_default()),
        }
    }

    fn routes(&mut self, routes: &[spec::RouteSpec], default: &effective::Route) -> Vec<effective::Route> {
        self.at_most("spec.routes", routes.len(), 64);
        self.unique("spec.routes", routes.iter().map(|route| route.name.as_str()));
        routes
            .iter()
            .enumerate()
            .map(|(i, route)| self.route(&format!("spec.routes[{i}]"), route, default))
            .collect()
    }

    /// A section that the route does not set is the policy's own.
    fn route(&mut self, at: &str, route: &spec::RouteSpec, default: &effective::Route) -> effective::Route {
        self.name(&format!("{at}.name"), &route.name);
        if route.name == DEFAULT_ROUTE {
            self.violation(
                &format!("{at}.name"),
                "must not be 'default': that is the route of what no other matches",
            );
        }
        effective::Route {
            name: route.name.clone(),
            matches: self.route_match(&format!("{at}.match"), &route.matches),
            load_balancer: match &route.load_balancer {
                Some(section) => section.kind.unwrap_or_default(),
                None => default.load_balancer,
            },
            session: match &route.session_persistence {
                Some(section) => Some(self.session(&format!("{at}.sessionPersistence"), section)),
                None => default.session.clone(),
            },
            limits: match &route.rate_limit {
                Some(section) => self.limits(&format!("{at}.rateLimit"), Some(section)),
                None => default.limits.clone(),
            },
            retries: match &route.retry {
                Some(section) => self.retries(&format!("{at}.retry"), Some(section)),
                None => default.retries,
            },
            timeout: match &route.timeout {
                Some(section) => self.timeout(&format!("{at}.timeout"), section),
                None => default.timeout.clone(),
            },
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
