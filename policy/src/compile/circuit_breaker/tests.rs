use std::time::Duration;

use crate::compile;
use crate::effective::{BreakerMode, BreakerName, Policy, Window};
use crate::spec::Spec;

fn spec(yaml: &str) -> Spec {
    serde_yaml::from_str(yaml).expect("the test's YAML is a spec")
}

fn policy(yaml: &str) -> Policy {
    compile(&spec(yaml)).expect("valid")
}

fn paths(yaml: &str) -> Vec<String> {
    compile(&spec(yaml)).expect_err("invalid").into_iter().map(|violation| violation.path).collect()
}

#[test]
fn the_levels_have_the_defaults_that_fit_them() {
    let policy = policy("circuitBreaker: {worker: {}, route: {}, service: {}}");
    let worker = policy.worker_breaker.as_ref().expect("one");
    let service = policy.service_breaker.as_ref().expect("one");
    assert_eq!((worker.consecutive_failures, service.consecutive_failures), (Some(5), None));
    assert_eq!((worker.recovery_ramp, service.recovery_ramp), (Duration::from_secs(10), Duration::ZERO));
    assert_eq!(policy.routes[0].breaker.as_ref(), Some(service));
    assert_eq!((policy.max_open_percent, policy.panic_threshold), (100, 0));
    assert_eq!(worker.window, Window::Time(Duration::from_secs(10)));
    assert_eq!((worker.wait.multiplier, worker.wait.max), (2, Duration::from_secs(60)));
    assert_eq!(worker.mode, BreakerMode::Enforced);
    let failures = &worker.failures;
    assert!([500, 502, 503, 504, 599].iter().all(|status| failures.has_http(*status)));
    assert!(![499, 501, 505, 200, 404].iter().any(|status| failures.has_http(*status)));
    assert!([2, 13, 14, 15].iter().all(|code| failures.has_grpc(*code)) && !failures.has_grpc(4));
}

#[test]
fn a_window_is_a_number_of_calls_or_a_duration() {
    let window = |yaml: &str| {
        policy(&format!("circuitBreaker: {{worker: {{{yaml}}}}}")).worker_breaker.expect("one").window
    };
    assert_eq!(window("slidingWindowType: CountBased"), Window::Calls(100));
    assert_eq!(window("slidingWindowType: CountBased, slidingWindowSize: 7"), Window::Calls(7));
    assert_eq!(window("slidingWindowSize: 1m"), Window::Time(Duration::from_secs(60)));
    for wrong in [
        "slidingWindowSize: 7",
        "slidingWindowType: CountBased, slidingWindowSize: 7s",
        "slidingWindowSize: 1h",
    ] {
        assert_eq!(
            paths(&format!("circuitBreaker: {{worker: {{{wrong}}}}}")),
            ["spec.circuitBreaker.worker.slidingWindowSize"],
            "{wrong}"
        );
    }
}

#[test]
fn statuses_are_numbers_and_ranges() {
    let policy = policy(
        "circuitBreaker: {worker: {failureStatuses: ['429', '500-502'], failureGrpcStatuses: [ABORTED, DATA_LOSS]}}",
    );
    let failures = policy.worker_breaker.expect("one").failures;
    let http: Vec<u16> = (100..600).filter(|status| failures.has_http(*status)).collect();
    let grpc: Vec<u8> = (0..17).filter(|code| failures.has_grpc(*code)).collect();
    assert_eq!((http, grpc), (vec![429, 500, 501, 502], vec![10, 15]));
    for wrong in ["99", "600", "502-500", "5xx", "500-", ""] {
        assert_eq!(
            paths(&format!("circuitBreaker: {{worker: {{failureStatuses: ['{wrong}']}}}}")),
            ["spec.circuitBreaker.worker.failureStatuses[0]"],
            "{wrong}"
        );
    }
}

#[test]
fn what_contradicts_itself_is_refused() {
    let never = "failureRateThreshold: 0, consecutiveFailures: 0";
    assert_eq!(paths(&format!("circuitBreaker: {{route: {{{never}}}}}")), ["spec.circuitBreaker.route"]);
    for rule in
        ["slowCallRateThreshold: 50", "consecutiveLocalOriginFailures: 3", "adaptive: {}", "mode: ForcedOpen"]
    {
        policy(&format!("circuitBreaker: {{service: {{{never}, {rule}}}}}"));
    }
    let found = paths(
        "circuitBreaker:
           maxOpenPercent: 0
           panicThreshold: 101
           worker:
             slowCallDurationThreshold: 1s
             waitDurationInOpenState: 2m
             maxWaitDurationInOpenState: 1m
             waitDurationMultiplier: 0
             adaptive: {failureRateFloor: 60, failureRateCeiling: 50, latencyFloor: 1s, latencyCeiling: 10ms}",
    );
    let at = "spec.circuitBreaker";
    let expected = [
        "worker.maxWaitDurationInOpenState",
        "worker.waitDurationMultiplier",
        "worker.adaptive.failureRateCeiling",
        "worker.adaptive.latencyCeiling",
        "worker.slowCallDurationThreshold",
        "maxOpenPercent",
        "panicThreshold",
    ];
    assert_eq!(found, expected.map(|path| format!("{at}.{path}")));
}

#[test]
fn a_route_may_have_a_breaker_of_its_own() {
    let policy = policy(
        "
        circuitBreaker: {route: {minimumNumberOfCalls: 7}}
        routes:
        - {name: a, match: {method: GET}, circuitBreaker: {minimumNumberOfCalls: 9}}
        - {name: b, match: {method: PUT}}",
    );
    let calls: Vec<_> =
        policy.routes.iter().map(|route| route.breaker.as_ref().map(|b| b.minimum_number_of_calls)).collect();
    assert_eq!(calls, [Some(9), Some(7), Some(7)]);
}

#[test]
fn an_override_has_a_name_a_time_and_a_reason() {
    let policy = policy(
        "
        breakerOverrides:
        - {breaker: worker/a, state: Open, until: '2030-01-31T18:00:00Z', reason: a leak}
        - {breaker: service, state: Closed, until: '2030-01-31T19:00:00+01:00', reason: a test}",
    );
    let [worker, service] = &policy.breaker_overrides[..] else { panic!("two") };
    assert_eq!(worker.breaker, BreakerName::Worker("a".to_owned()));
    assert_eq!(worker.until_unix_millis, 1_896_112_800_000);
    assert_eq!(service.until_unix_millis, worker.until_unix_millis, "an offset is an offset");
    assert!(worker.holds(1_896_112_799_999) && !worker.holds(1_896_112_800_000));
    let found = paths(
        "
        breakerOverrides:
        - {breaker: worker, state: Open, until: '2030-01-31T18:00:00Z', reason: x}
        - {breaker: route/a, state: Open, until: tomorrow, reason: ''}
        - {breaker: route/a, state: Open, until: '2030-01-31T18:00:00Z', reason: x}",
    );
    let expected = ["[0].breaker", "[1].until", "[1].reason", "[2].breaker"];
    assert_eq!(found, expected.map(|path| format!("spec.breakerOverrides{path}")));
}

#[test]
fn a_name_reads_back() {
    for text in ["service", "worker/a-1", "route/default"] {
        assert_eq!(BreakerName::parse(text).expect("a name").to_string(), text);
    }
    for text in ["", "worker", "worker/", "worker/a/b", "Service", "pod/a", "route/ä", "service/x"] {
        assert_eq!(BreakerName::parse(text), None, "{text}");
    }
}
