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

fn paths(yaml: &str) -> Vec<String> {
    let path = |violation: String| violation.split(':').next().expect("a path").to_owned();
    violations(yaml).into_iter().map(path).collect()
}

#[test]
fn settings_of_another_strategy_are_refused() {
    let at = "spec.loadBalancer";
    assert_eq!(
        paths("loadBalancer: {type: Random, leastRequest: {}, peakEwma: {}, consistentHash: {type: Path}}"),
        [format!("{at}.leastRequest"), format!("{at}.peakEwma"), format!("{at}.consistentHash")]
    );
    assert_eq!(
        paths("loadBalancer: {peakEwma: {}, backendUtilization: {}, predictive: {}, costAware: {}}"),
        ["peakEwma", "backendUtilization", "predictive", "costAware"].map(|field| format!("{at}.{field}"))
    );
    let own = [
        "LeastRequest, leastRequest: {choiceCount: 3}",
        "PeakEwma, peakEwma: {decayTime: 5s}",
        "ConsistentHash, consistentHash: {type: Path}",
        "BackendUtilization, backendUtilization: {blackoutPeriod: 0s}",
        "Predictive, predictive: {horizon: 2s}",
        "CostAware, costAware: {latencyObjective: 50ms}",
    ];
    for own in own {
        compile(&spec(&format!("loadBalancer: {{type: {own}, slowStart: {{window: 30s}}}}"))).expect("valid");
    }
}

#[test]
fn every_setting_of_a_strategy_has_bounds() {
    for (settings, field) in [
        ("LeastRequest, leastRequest: {choiceCount: 1}", "leastRequest.choiceCount"),
        (
            "LeastRequest, leastRequest: {selectionMethod: FullScan, choiceCount: 4}",
            "leastRequest.choiceCount",
        ),
        ("PeakEwma, peakEwma: {decayTime: 1ms}", "peakEwma.decayTime"),
        ("PeakEwma, peakEwma: {defaultResponseTime: 0s}", "peakEwma.defaultResponseTime"),
        ("PeakEwma, peakEwma: {penalty: 6m}", "peakEwma.penalty"),
        ("PeakEwma, peakEwma: {maxRetryAfter: 2h}", "peakEwma.maxRetryAfter"),
        ("ConsistentHash", "consistentHash"),
        ("ConsistentHash, consistentHash: {type: Header}", "consistentHash.header"),
        ("ConsistentHash, consistentHash: {type: Header, header: 'a b'}", "consistentHash.header"),
        ("ConsistentHash, consistentHash: {type: Path, cookie: a}", "consistentHash.cookie"),
        ("ConsistentHash, consistentHash: {type: QueryParam, queryParam: ''}", "consistentHash.queryParam"),
        ("ConsistentHash, consistentHash: {type: Path, virtualNodes: 5000}", "consistentHash.virtualNodes"),
        ("ConsistentHash, consistentHash: {type: Path, tableSize: 251}", "consistentHash.tableSize"),
        (
            "ConsistentHash, consistentHash: {type: Path, algorithm: Maglev, tableSize: 65536}",
            "consistentHash.tableSize",
        ),
        (
            "ConsistentHash, consistentHash: {type: Path, algorithm: Maglev, virtualNodes: 64}",
            "consistentHash.virtualNodes",
        ),
        (
            "ConsistentHash, consistentHash: {type: Path, hashBalanceFactor: 100}",
            "consistentHash.hashBalanceFactor",
        ),
        (
            "BackendUtilization, backendUtilization: {metricNamesForComputingUtilization: [cpu]}",
            "backendUtilization.metricNamesForComputingUtilization[0]",
        ),
        ("BackendUtilization, backendUtilization: {blackoutPeriod: 1h}", "backendUtilization.blackoutPeriod"),
        (
            "BackendUtilization, backendUtilization: {weightExpirationPeriod: 0s}",
            "backendUtilization.weightExpirationPeriod",
        ),
        (
            "BackendUtilization, backendUtilization: {weightUpdatePeriod: 1ms}",
            "backendUtilization.weightUpdatePeriod",
        ),
        (
            "BackendUtilization, backendUtilization: {errorUtilizationPenaltyPercent: 1001}",
            "backendUtilization.errorUtilizationPenaltyPercent",
        ),
        ("Predictive, predictive: {horizon: 1ms}", "predictive.horizon"),
        ("Predictive, predictive: {interval: 1m}", "predictive.interval"),
        ("Predictive, predictive: {levelSmoothingPercent: 0}", "predictive.levelSmoothingPercent"),
        ("Predictive, predictive: {trendSmoothingPercent: 101}", "predictive.trendSmoothingPercent"),
        ("Predictive, predictive: {penalty: soon}", "predictive.penalty"),
        ("CostAware, costAware: {latencyObjective: 2m}", "costAware.latencyObjective"),
        ("Random, slowStart: {window: 0s}", "slowStart.window"),
        ("Random, slowStart: {window: 1m, minWeightPercent: 0}", "slowStart.minWeightPercent"),
        ("Random, slowStart: {window: 1m, aggression: 11}", "slowStart.aggression"),
    ] {
        let found = paths(&format!("loadBalancer: {{type: {settings}}}"));
        assert_eq!(found, [format!("spec.loadBalancer.{field}")], "{settings}");
    }
    assert_eq!(paths("workers: [{name: a, cost: 1000001}]"), ["spec.workers[0].cost"]);
}

#[test]
fn a_ring_larger_than_its_bound_is_refused() {
    let workers: String = (0..30).map(|i| format!("{{name: w{i}, weight: 100}},")).collect();
    let hashed = "{type: ConsistentHash, consistentHash: {type: Path";
    let found = violations(&format!("workers: [{workers}]\nloadBalancer: {hashed}}}}}"));
    assert_eq!(
        found,
        [
            "spec.loadBalancer.consistentHash.virtualNodes: must make a ring of at most 1048576 points: with the \
          weights of spec.workers it would have 1536000; lower `virtualNodes` or the weights"
        ]
    );
    compile(&spec(&format!("workers: [{workers}]\nloadBalancer: {hashed}, virtualNodes: 64}}}}")))
        .expect("valid");
}

#[test]
fn the_tables_of_all_routes_are_bounded_together_and_those_alike_count_once() {
    let workers: String = (0..10).map(|i| format!("{{name: w{i}, weight: 100}},")).collect();
    let spec_of = |size: &dyn Fn(u32) -> String, more: &str| {
        let route = |i| {
            format!(
                "{{name: r{i}, match: {{path: {{value: /{i}}}}}, loadBalancer: {{type: ConsistentHash,
                  consistentHash: {{type: Header, header: x-{i}, {}}}}}}},",
                size(i)
            )
        };
        format!("workers: [{workers}]\nroutes: [{}]\n{more}", (0..64).map(route).collect::<String>())
    };
    let alike = |_| String::from("virtualNodes: 1024");
    compile(&spec(&spec_of(&alike, ""))).expect("one ring for all");
    let canary = "canary: {version: v2, steps: [{weight: 5}]}";
    compile(&spec(&spec_of(&alike, canary))).expect("one for each version, too");
    let found = violations(&spec_of(&|i| format!("virtualNodes: {}", 1024 - i), ""));
    assert_eq!(
        found,
        [
            "spec.routes[2].loadBalancer.consistentHash.virtualNodes: must leave the tables of all routes within \
          16777216 bytes: with this one they would take 19119870; give routes the same `virtualNodes`, for they share \
          a table then, or lower it or the weights of spec.workers"
        ]
    );
    let primes =
        (0..1_048_573u32).rev().filter(|n| (2..1024).all(|d| n % d != 0)).take(64).collect::<Vec<_>>();
    let found =
        violations(&spec_of(&|i| format!("algorithm: Maglev, tableSize: {}", primes[i as usize]), ""));
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(
        found[0].starts_with("spec.routes[16].loadBalancer.consistentHash.tableSize: must"),
        "{found:#?}"
    );
    // Workers that are not listed count too: nobody knows how many a pod has.
    let many = "virtualNodes: 1024".to_owned();
    let unlisted = spec_of(&|i| many.replace("1024", &(1024 - i).to_string()), "").replace(&workers, "");
    assert_eq!(violations(&unlisted).len(), 1);
}

#[test]
fn a_route_has_the_strategy_of_its_own_whole() {
    let policy = compile(&spec(
        "
        loadBalancer: {type: PeakEwma, slowStart: {window: 30s}}
        routes: [{name: api, match: {method: GET}, loadBalancer: {type: Random}}, {name: b, match: {method: PUT}}]
        ",
    ))
    .expect("valid");
    assert_eq!(policy.routes[0].load_balancer.slow_start, None, "a section is taken whole");
    assert_eq!(policy.routes[1].load_balancer, policy.routes[2].load_balancer);
}

#[test]
fn requests_leave_the_pod_only_where_the_scope_says_so() {
    let policy = compile(&spec(
        "
        loadBalancer: {scope: Workload, spillover: {maxParallelRequests: 20}}
        routes:
        - {name: api, match: {path: {value: /api}}}
        - {name: admin, match: {path: {value: /admin}}, loadBalancer: {type: Random}}
        ",
    ))
    .expect("valid");
    let spillover =
        |i: usize| policy.routes[i].spillover.map(|s| (s.overprovisioning_factor, s.max_parallel_requests));
    assert_eq!(spillover(0), Some((140, Some(20))), "the policy's own");
    assert_eq!(spillover(1), None, "a section comes whole");
    assert_eq!(spillover(2), Some((140, Some(20))));
    assert!(spec("{loadBalancer: {scope: Workload}}").reaches_siblings());
    assert!(
        spec("routes: [{name: a, match: {method: GET}, loadBalancer: {scope: Workload}}]").reaches_siblings()
    );
    assert!(!spec("{loadBalancer: {scope: Pod}}").reaches_siblings());
    assert_eq!(
        violations(
            "
            loadBalancer: {spillover: {}}
            routes:
            - name: a
              match: {method: GET}
              loadBalancer: {scope: Workload, spillover: {overprovisioningFactor: 99, maxParallelRequests: 0}}
            "
        ),
        [
            "spec.loadBalancer.spillover: must be absent unless `scope` is 'Workload': no request leaves the pod",
            "spec.routes[0].loadBalancer.spillover.overprovisioningFactor: must be 100 to 1000, not 99",
            "spec.routes[0].loadBalancer.spillover.maxParallelRequests: must be 1 to 100000, not 0",
        ]
    );
}

#[test]
fn retries_are_of_what_never_left_and_of_what_broke_off_by_default() {
    let retry = compile(&Spec::default()).expect("valid").routes[0].retry.clone();
    assert!(retry.connect_failure && retry.reset && retry.repeats_sent());
    assert_eq!((retry.num_retries, retry.body_buffer, retry.statuses), (2, 0, vec![]));
    assert_eq!([retry.base_interval, retry.max_interval].map(|wait| wait.as_millis()), [25, 250]);
    let none = compile(&spec("retry: {retryOn: {triggers: []}}")).expect("valid").routes[0].retry.clone();
    assert!(!none.connect_failure && !none.repeats_sent());
}

#[test]
fn triggers_name_statuses() {
    let on = |on: &str| {
        compile(&spec(&format!("retry: {{retryOn: {on}}}"))).expect("valid").routes[0].retry.clone()
    };
    assert_eq!(on("{triggers: [GatewayError], httpStatusCodes: [503, 429]}").statuses, [429, 502, 503, 504]);
    assert_eq!(on("{triggers: [5xx]}").statuses.len(), 100);
    assert!(!on("{triggers: [GatewayError]}").connect_failure, "the list replaces the default");
}

#[test]
fn retries_that_could_not_be_made_are_refused() {
    let found = violations(
        "
        retry:
          retryOn: {grpcCodes: [UNAVAILABLE], httpStatusCodes: [200]}
          perRetry: {timeout: 0s, backOff: {baseInterval: 1s, maxInterval: 10ms}}
          budget: {percent: 101}
          bodyBuffer: 0
        hedge: {delay: 10ms, afterPercentile: 95}
        timeout: {requestHeader: 'a b'}
        ",
    );
    let paths: Vec<_> = found.iter().map(|violation| violation.split(':').next().expect("a path")).collect();
    assert_eq!(
        paths,
        [
            "spec.retry.retryOn.httpStatusCodes[0]",
            "spec.retry.perRetry.timeout",
            "spec.retry.perRetry.backOff.maxInterval",
            "spec.retry.budget.percent",
            "spec.retry.bodyBuffer",
            "spec.hedge",
            "spec.timeout.requestHeader",
        ],
        "{found:#?}"
    );
}

#[test]
fn the_jitter_of_checks_is_bounded() {
    let active = |active: &str| compile(&spec(&format!("healthCheck: {{active: {{{active}}}}}")));
    let check = |text: &str| active(text).expect("valid").health_check.expect("there is one");
    assert_eq!((check("").interval_jitter_percent, check("").initial_jitter), (10, None));
    let set = check("intervalJitterPercent: 0, initialJitter: 0s");
    assert_eq!((set.interval_jitter_percent, set.initial_jitter), (0, Some(std::time::Duration::ZERO)));
    let violations = active("intervalJitterPercent: 51, initialJitter: 11m").expect_err("out of bounds");
    let paths: Vec<_> = violations.iter().map(|violation| violation.path.as_str()).collect();
    let at = "spec.healthCheck.active";
    assert_eq!(paths, [format!("{at}.initialJitter"), format!("{at}.intervalJitterPercent")]);
}

#[test]
fn health_checks_have_the_fields_of_their_type() {
    use crate::effective::Probe;
    let probe = |active: &str| {
        let compiled = compile(&spec(&format!("healthCheck: {{active: {active}}}")));
        compiled.map(|policy| policy.health_check.expect("there is one").probe)
    };
    assert!(matches!(probe("{}"), Ok(Probe::Http(http)) if http.path == "/healthz" && http.method == "GET"));
    assert!(matches!(probe("{type: TCP}"), Ok(Probe::Tcp)));
    assert!(
        matches!(probe("{type: GRPC, service: web.Shop}"), Ok(Probe::Grpc { service }) if service == "web.Shop")
    );
    for (wrong, field) in [
        ("{type: TCP, path: /x}", "path"),
        ("{type: GRPC, expectedStatuses: [200]}", "expectedStatuses"),
        ("{service: x}", "service"),
        ("{method: DELETE}", "method"),
        ("{hostname: 'a b'}", "hostname"),
        ("{type: GRPC, service: 'a b'}", "service"),
    ] {
        let found = probe(wrong).expect_err(wrong);
        assert_eq!(found[0].path, format!("spec.healthCheck.active.{field}"), "{wrong}");
    }
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

#[test]
fn a_canary_by_pods_needs_siblings_and_no_versions_of_workers() {
    let canary = |label: &str, version: &str| {
        format!("canary: {{podLabel: '{label}', version: '{version}', steps: [{{weight: 5}}]}}")
    };
    let workload = "loadBalancer: {scope: Workload}";
    let route = "routes: [{name: a, match: {method: GET}, loadBalancer: {scope: Workload}}]";
    for reaching in [workload, route] {
        for label in ["version", "app.kubernetes.io/version", "a-b.c/D_e.f"] {
            let spec = spec(&format!("{}\n{reaching}", canary(label, "1.2.3_x")));
            let canary = compile(&spec).expect("valid").canary.expect("there");
            assert_eq!((canary.pod_label.as_deref(), canary.run().as_str()), (Some(label), "1.2.3_x.1"));
        }
    }
    let found =
        violations(&format!("{}\nworkers: [{{name: a}}, {{name: b, version: v2}}]", canary("v", "v2")));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("spec.canary.podLabel: needs `loadBalancer.scope: Workload`"), "{found:#?}");
    assert!(found[1].starts_with("spec.workers[1].version: must be absent"), "{found:#?}");
    for label in ["", "/v", "a/", "a/b/c", "A.b/v", "a..b/v", "-a/v", "v-", "v v", &"v".repeat(64)] {
        let found = violations(&format!("{}\n{workload}", canary(label, "v2")));
        assert_eq!(found.len(), 1, "'{label}': {found:#?}");
        assert!(found[0].starts_with("spec.canary.podLabel: must be a label's key"), "'{label}': {found:#?}");
    }
    for version in ["", "-v", "v.", "v 2", &"v".repeat(64)] {
        let found = violations(&format!("{}\n{workload}", canary("v", version)));
        assert_eq!(found.len(), 1, "'{version}': {found:#?}");
        assert!(
            found[0].starts_with("spec.canary.version: must be a label's value"),
            "'{version}': {found:#?}"
        );
    }
}
