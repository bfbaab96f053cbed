//! The rules of `routes`.

use super::Check;
use super::circuit_breaker::Defaults;
use crate::effective::{self, DEFAULT_ROUTE, MAX_ROUTES};
use crate::spec::{self, Spec};

impl Check {
    pub(super) fn default_route(&mut self, spec: &Spec) -> effective::Route {
        effective::Route {
            name: DEFAULT_ROUTE.to_owned(),
            matches: effective::RouteMatch {
                path: effective::PathMatch::Any,
                method: None,
                headers: Vec::new(),
            },
            load_balancer: spec
                .load_balancer
                .as_ref()
                .map(|section| self.load_balancer("spec.loadBalancer", section))
                .unwrap_or_default(),
            spillover: spec
                .load_balancer
                .as_ref()
                .and_then(|section| self.spillover("spec.loadBalancer", section)),
            session: spec
                .session_persistence
                .as_ref()
                .map(|section| self.session("spec.sessionPersistence", section)),
            breaker: spec
                .circuit_breaker
                .as_ref()
                .and_then(|section| section.route.as_ref())
                .map(|section| self.breaker("spec.circuitBreaker.route", section, Defaults::SHARED)),
            limits: self.limits("spec.rateLimit", spec.rate_limit.as_ref()),
            retry: self.retry("spec.retry", spec.retry.as_ref()),
            hedge: spec.hedge.as_ref().and_then(|section| self.hedge("spec.hedge", section)),
            timeout: self.timeout("spec.timeout", &spec.timeout.clone().unwrap_or_default()),
            own: effective::Own::default(),
        }
    }

    pub(super) fn routes(
        &mut self,
        routes: &[spec::RouteSpec],
        default: &effective::Route,
    ) -> Vec<effective::Route> {
        self.at_most("spec.routes", routes.len(), MAX_ROUTES);
        self.unique("spec.routes", routes.iter().map(|route| route.name.as_str()));
        routes
            .iter()
            .enumerate()
            .map(|(i, route)| self.route(&format!("spec.routes[{i}]"), route, default))
            .collect()
    }

    /// A section that the route does not set is the policy's own.
    pub(super) fn route(
        &mut self,
        at: &str,
        route: &spec::RouteSpec,
        default: &effective::Route,
    ) -> effective::Route {
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
                Some(section) => self.load_balancer(&format!("{at}.loadBalancer"), section),
                None => default.load_balancer.clone(),
            },
            spillover: match &route.load_balancer {
                Some(section) => self.spillover(&format!("{at}.loadBalancer"), section),
                None => default.spillover,
            },
            session: match &route.session_persistence {
                Some(section) => Some(self.session(&format!("{at}.sessionPersistence"), section)),
                None => default.session.clone(),
            },
            breaker: match &route.circuit_breaker {
                Some(section) => {
                    Some(self.breaker(&format!("{at}.circuitBreaker"), section, Defaults::SHARED))
                }
                None => default.breaker.clone(),
            },
            limits: match &route.rate_limit {
                Some(section) => self.limits(&format!("{at}.rateLimit"), Some(section)),
                None => default.limits.clone(),
            },
            retry: match &route.retry {
                Some(section) => self.retry(&format!("{at}.retry"), Some(section)),
                None => default.retry.clone(),
            },
            hedge: match &route.hedge {
                Some(section) => self.hedge(&format!("{at}.hedge"), section),
                None => default.hedge.clone(),
            },
            timeout: match &route.timeout {
                Some(section) => self.timeout(&format!("{at}.timeout"), section),
                None => default.timeout.clone(),
            },
            own: effective::Own {
                limits: route.rate_limit.is_some(),
                retry: route.retry.is_some(),
                hedge: route.hedge.is_some(),
            },
        }
    }

    pub(super) fn route_match(&mut self, at: &str, matches: &spec::RouteMatchSpec) -> effective::RouteMatch {
        if matches.path.is_none() && matches.method.is_none() && matches.headers.is_empty() {
            self.violation(at, "must have a condition: `path`, `method` or `headers`");
        }
        if let Some(method) = &matches.method {
            self.token(&format!("{at}.method"), method, 32);
            if method.bytes().any(|b| b.is_ascii_lowercase()) {
                self.violation(&format!("{at}.method"), "must be in capitals: methods are case-sensitive");
            }
        }
        self.at_most(&format!("{at}.headers"), matches.headers.len(), 16);
        let headers = matches.headers.iter().enumerate().map(|(i, header)| {
            self.token(&format!("{at}.headers[{i}].name"), &header.name, 128);
            self.text(&format!("{at}.headers[{i}].value"), &header.value, 1024);
            (header.name.to_ascii_lowercase(), header.value.clone())
        });
        let headers = headers.collect();
        let path = match &matches.path {
            None => effective::PathMatch::Any,
            Some(path) => {
                self.path(&format!("{at}.path.value"), &path.value);
                match path.kind.unwrap_or_default() {
                    spec::PathMatchType::Exact => effective::PathMatch::Exact(path.value.clone()),
                    spec::PathMatchType::PathPrefix => match path.value.trim_end_matches('/') {
                        "" => effective::PathMatch::Any,
                        prefix => effective::PathMatch::Prefix(prefix.to_owned()),
                    },
                }
            }
        };
        effective::RouteMatch { path, method: matches.method.clone(), headers }
    }
}
