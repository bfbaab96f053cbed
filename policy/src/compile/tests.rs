use std::time::Duration;

use crate::compile;
use crate::effective::{LimitKey, PathMatch};
use crate::spec::Spec;

fn spec(yaml: &str) -> Spec {
    serde_yaml::from_str(yaml).expect("the test's YAML is a spec")
}

fn violations(yaml: &str) -> Vec<String> {
    compile(&spec(yaml)).expect_err("invalid").iter().map(ToString::to_string).collect()
}

#[test]
fn an_empty_spec_is_valid_and_has_one_route() {
    let policy = compile(&Spec::default()).expect("valid");
    assert_eq!(policy.routes.len(), 1);
    assert_eq!(policy.routes[0].name, "default");
    assert_eq!(policy.routes[0].matches.path, PathMatch::Any);
}

#[test]
fn every_violation_is_named_with_its_path() {
    let found = violations(
        "
        workers: [{name: a, weight: 101}, {name: a}]
        circuitBreaker: {worker: {consecutiveFailures: 0, failureRateThreshold: 0}}
        rateLimit: {rules: [{name: x, clientSelector: {type: Header}, limit: {requests: 0}}]}
        timeout: {connect: soon, request: 48h}
        routes: [{name: default, match: {}}]
        ",
    );
    let paths: Vec<_> = found.iter().map(|violation| violation.split(':').next().expect("a path")).collect();
    assert_eq!(
        paths,
        [
            "spec.workers[1].name",
            "spec.workers[0].weight",
            "spec.circuitBreaker.worker",
            "spec.rateLimit.rules[0].clientSelector.header",
            "spec.rateLimit.rules[0].limit.requests",
            "spec.timeout.connect",
            "spec.timeout.request",
            "spec.routes[0].name",
            "spec.routes[0].match",
        ],
        "{found:#?}"
    );
}

#[test]
fn a_route_takes_the_policys_sections_unless_it_has_its_own() {
    let policy = compile(&spec(
        "
        loadBalancer: {type: LeastRequest}
        timeout: {request: 5s}
        rateLimit: {rules: [{name: all, limit: {requests: 10}}]}
        routes:
        - name: api
          match: {path: {value: /api/}}
          timeout: {request: 0s}
          rateLimit: {rules: [{name: user, clientSelector: {type: Header, header: X-User}, limit: {requests: 1, unit: Minute}}]}
        ",
    ))
    .expect("valid");
    let [api, default] = &policy.routes[..] else { panic!("two routes") };
    assert_eq!(api.load_balancer, default.load_balancer);
    assert_eq!(api.matches.path, PathMatch::Prefix("/api".to_owned()));
    assert_eq!(api.timeout.request, None);
    assert_eq!(default.timeout.request, Some(Duration::from_secs(5)));
    assert_eq!(api.limits[0].key, LimitKey::Header("x-user".to_owned()));
    assert_eq!(api.limits[0].burst, 1);
}

#[test]
fn cookies_that_browsers_would_drop_are_refused() {
    assert_eq!(violations("sessionPersistence: {cookie: {name: __Host-s}}").len(), 1);
    assert_eq!(violations("sessionPersistence: {cookie: {sameSite: None}}").len(), 1);
    assert_eq!(violations("sessionPersistence: {cookie: {name: 'a;b'}}").len(), 1);
}

#[test]
fn an_unknown_field_is_no_spec() {
    assert!(serde_yaml::from_str::<Spec>("loadbalancer: {}").is_err());
}

#[test]
fn a_canary_has_defaults_and_bounds() {
    let canary = compile(&spec("canary: {version: v2, steps: [{weight: 5}]}")).expect("valid").canary;
    let canary = canary.expect("there");
    assert_eq!((canary.run().as_str(), canary.steps[0].pause), ("v2.1", Duration::from_secs(60)));
    assert_eq!((canary.analysis.minimum_requests, canary.analysis.max_error_rate_margin), (100, 1));
    let found = violations(
        "
        workers: [{name: a, version: 'v 2'}]
        canary:
          version: ''
          attempt: 0
          steps: [{weight: 50}, {weight: 5, pause: 10ms}, {weight: 101}]
          clientHeader: x-user
          preview: {name: 'x y', value: ''}
          analysis: {minimumRequests: 1, latencyPercentile: 100, interval: 0s}
        ",
    );
    let paths: Vec<_> = found.iter().map(|violation| violation.split(':').next().expect("a path")).collect();
    assert_eq!(
        paths,
        [
            "spec.workers[0].version",
            "spec.canary.version",
            "spec.canary.clientHeader",
            "spec.canary.preview.name",
            "spec.canary.preview.value",
            "spec.canary.attempt",
            "spec.canary.steps[1].weight",
            "spec.canary.steps[1].pause",
            "spec.canary.steps[2].weight",
            "spec.canary.analysis.latencyPercentile",
            "spec.canary.analysis.minimumRequests",
            "spec.canary.analysis.interval",
        ],
        "{found:#?}"
    );
    assert_eq!(violations("canary: {version: v2, steps: []}"), ["spec.canary.steps: must have a step"]);
}
