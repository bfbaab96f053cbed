//! The rules of each section, in the order of `spec`.

use std::time::Duration;

use super::Check;
use crate::effective;
use crate::spec;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

impl Check {
    pub(super) fn session(&mut self, at: &str, section: &spec::SessionPersistenceSpec) -> effective::Session {
        let cookie = section.cookie.clone().unwrap_or_default();
        let session = effective::Session {
            cookie: cookie.name.unwrap_or_else(|| "outrigger-session".to_owned()),
            path: cookie.path.unwrap_or_else(|| "/".to_owned()),
            absolute_timeout: self.duration(
                &format!("{at}.absoluteTimeout"),
                section.absolute_timeout.as_ref(),
                DAY,
                [SECOND, 400 * DAY], // browsers cap Max-Age at 400 days (RFC 6265bis)
            ),
            lifetime: cookie.lifetime_type.unwrap_or_default(),
            secure: cookie.secure.unwrap_or_default(),
            same_site: cookie.same_site.unwrap_or_default(),
        };
        self.cookie_rules(&format!("{at}.cookie"), &session);
        session
    }

    fn cookie_rules(&mut self, at: &str, session: &effective::Session) {
        use effective::{CookieSecure, SameSite};
        self.token(&format!("{at}.name"), &session.cookie, 64);
        let always_secure = session.secure == CookieSecure::Always;
        if session.cookie.starts_with("__Host-") && (!always_secure || session.path != "/") {
            self.violation(
                &format!("{at}.name"),
                "with the prefix '__Host-' needs `secure: Always` and `path: /`",
            );
        }
        if session.cookie.starts_with("__Secure-") && !always_secure {
            self.violation(&format!("{at}.name"), "with the prefix '__Secure-' needs `secure: Always`");
        }
        if session.same_site == SameSite::None && !always_secure {
            self.violation(
                &format!("{at}.sameSite"),
                "'None' needs `secure: Always`, or browsers drop the cookie",
            );
        }
        self.path(&format!("{at}.path"), &session.path);
        if session.path.contains([';', ',', ' ']) {
            self.violation(&format!("{at}.path"), "must not contain ';', ',' or a space");
        }
    }

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

    pub(super) fn limits(
        &mut self,
        at: &str,
        section: Option<&spec::RateLimitSpec>,
    ) -> Vec<effective::Limit> {
        let Some(section) = section else { return Vec::new() };
        self.at_most(&format!("{at}.rules"), section.rules.len(), 16);
        self.unique(&format!("{at}.rules"), section.rules.iter().map(|rule| rule.name.as_str()));
        let rules = section.rules.iter().enumerate();
        rules.map(|(i, rule)| self.limit(&format!("{at}.rules[{i}]"), rule)).collect()
    }

    fn limit(&mut self, at: &str, rule: &spec::RateLimitRuleSpec) -> effective::Limit {
        self.name(&format!("{at}.name"), &rule.name);
        let selector = rule.client_selector.clone().unwrap_or_default();
        let key = match (selector.kind.unwrap_or_default(), selector.header) {
            (spec::ClientSelectorType::SourceAddress, None) => effective::LimitKey::SourceAddress,
            (spec::ClientSelectorType::Header, Some(header)) => {
                self.token(&format!("{at}.clientSelector.header"), &header, 128);
                effective::LimitKey::Header(header.to_ascii_lowercase())
            }
            (spec::ClientSelectorType::Header, None) => {
                self.violation(&format!("{at}.clientSelector.header"), "must be set for the type 'Header'");
                effective::LimitKey::SourceAddress
            }
            (spec::ClientSelectorType::SourceAddress, Some(_)) => {
                self.violation(
                    &format!("{at}.clientSelector.header"),
                    "must not be set for the type 'SourceAddress'",
                );
                effective::LimitKey::SourceAddress
            }
        };
        let requests = self.number(&format!("{at}.limit.requests"), rule.limit.requests, 1..=10_000_000);
        let burst = match rule.limit.burst {
            Some(burst) => self.number(&format!("{at}.limit.burst"), burst, 1..=10_000_000),
            None => requests,
        };
        let period = match rule.limit.unit.unwrap_or_default() {
            spec::LimitUnit::Second => SECOND,
            spec::LimitUnit::Minute => MINUTE,
            spec::LimitUnit::Hour => HOUR,
        };
        effective::Limit { name: rule.name.clone(), key, requests, period, burst }
    }

    pub(super) fn retries(&mut self, at: &str, section: Option<&spec::RetrySpec>) -> u32 {
        let retries = section.and_then(|section| section.num_retries).unwrap_or(2);
        self.number(&format!("{at}.numRetries"), retries, 0..=10)
    }

    pub(super) fn timeout(&mut self, at: &str, section: &spec::TimeoutSpec) -> effective::Timeout {
        let no_limit = section.request.as_ref().is_some_and(|text| text.parse() == Ok(Duration::ZERO));
        effective::Timeout {
            connect: self.duration(
                &format!("{at}.connect"),
                section.connect.as_ref(),
                SECOND,
                [MILLISECOND, MINUTE],
            ),
            request: (!no_limit).then(|| {
                self.duration(&format!("{at}.request"), section.request.as_ref(), MINUTE, [MILLISECOND, DAY])
            }),
            idle: self.duration(&format!("{at}.idle"), section.idle.as_ref(), 5 * MINUTE, [SECOND, DAY]),
        }
    }

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

    pub(super) fn drain(&mut self, at: &str, section: &spec::DrainSpec) -> effective::Drain {
        let zero = Duration::ZERO;
        effective::Drain {
            delay: self.duration(
                &format!("{at}.delay"),
                section.delay.as_ref(),
                5 * SECOND,
                [zero, 5 * MINUTE],
            ),
            timeout: self.duration(
                &format!("{at}.timeout"),
                section.timeout.as_ref(),
                20 * SECOND,
                [zero, HOUR],
            ),
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
}
