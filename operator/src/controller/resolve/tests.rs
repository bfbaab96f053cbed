use outrigger_policy::Violation;
use proptest::prelude::*;

use super::*;

fn policy(name: &str, yaml: &str) -> Arc<PolicyFacts> {
    let spec: Spec = serde_yaml::from_str(yaml).expect("the test's YAML is a spec");
    let spec = outrigger_policy::compile(&spec).map(|_| spec);
    let (name, uid) = (name.to_owned(), name.to_owned());
    Arc::new(PolicyFacts { name, uid, generation: 1, created: 0, spec, status: None })
}

fn pod(namespace: &str, name: &str, labels: &[(&str, &str)]) -> Arc<PodFacts> {
    Arc::new(PodFacts {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        uid: format!("{namespace}-{name}").into(),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        phase: Phase::Running,
        terminating: false,
        service_account: "default".to_owned(),
        place: None,
        drain: None,
    })
}

fn drained(pod: &Arc<PodFacts>, drain: Option<PodDrain>) -> Arc<PodFacts> {
    Arc::new(PodFacts { drain: drain.map(Box::new), ..(**pod).clone() })
}

fn update(target: &Target) -> Update {
    match serde_json::from_slice(&target.line).expect("a line of JSON") {
        FromOperator::Update(update) => *update,
        other => panic!("not an update: {other:?}"),
    }
}

#[test]
fn pods_that_the_same_policies_select_share_one_update() {
    let world = World {
        policies: vec![
            policy("all", "retry: {numRetries: 1}"),
            policy(
                "web",
                "{subject: {podSelector: {matchLabels: {app: web}}}, priority: 9, retry: {numRetries: 3}}",
            ),
        ],
        pods: vec![
            pod("shop", "a", &[("app", "web")]),
            pod("shop", "b", &[("app", "web")]),
            pod("shop", "c", &[]),
        ],
        ..World::default()
    };
    let resolved = resolve(&world, &Master::default());
    assert_eq!(resolved.groups.len(), 2);
    let of = |name: &str| {
        resolved
            .groups
            .iter()
            .find(|group| group.pods.iter().any(|pod| pod.name == name))
            .expect("in a group")
    };
    assert!(std::ptr::eq(of("a"), of("b")));
    assert_eq!(update(&of("a").target).policy.origins["retry"].policy, "web");
    assert_eq!(update(&of("c").target).policy.origins["retry"].policy, "all");
    assert_eq!(&*of("a").target.version, update(&of("a").target).version);
}

#[test]
fn a_drain_is_told_to_its_pod_alone() {
    let resolved = |drain: Option<&str>| {
        let pods = ["a", "b"].map(|name| pod("shop", name, &[])).to_vec();
        let first = drained(&pods[0], drain.and_then(PodDrain::parse));
        let pods = vec![first, pods[1].clone()];
        let world = World { policies: vec![policy("all", "retry: {}")], pods, ..World::default() };
        resolve(&world, &Master::default())
    };
    let (none, some) = (resolved(None), resolved(Some("worker-a")));
    assert_eq!((none.groups.len(), some.groups.len()), (1, 2));
    let group = |name: &str| {
        let has = |group: &&Group| group.pods.iter().any(|pod| pod.name == name);
        some.groups.iter().find(has).expect("in a group")
    };
    assert_eq!(update(&group("a").target).drain, PodDrain::parse("worker-a"));
    assert_ne!(group("a").target.version, none.groups[0].target.version, "so that it is acknowledged");
    assert_eq!(group("b").target, none.groups[0].target, "nothing changes for the other");
    assert_eq!(group("a").policies, group("b").policies);
}

#[test]
fn a_namespace_is_selected_by_its_labels() {
    let world = World {
        policies: vec![policy(
            "prod",
            "{subject: {namespaceSelector: {matchLabels: {tier: prod}}}, drain: {}}",
        )],
        pods: vec![pod("shop", "a", &[]), pod("test", "a", &[]), pod("unseen", "a", &[])],
        namespaces: [("shop", "prod"), ("test", "dev")]
            .map(|(name, tier)| (name.to_owned(), Arc::new([("tier".to_owned(), tier.to_owned())].into())))
            .into(),
        ..World::default()
    };
    let resolved = resolve(&world, &Master::default());
    let selected = |group: &&Group| !group.policies.is_empty();
    let namespaces: Vec<_> =
        resolved.groups.iter().filter(selected).map(|group| &group.pods[0].namespace).collect();
    assert_eq!(namespaces, ["shop"]);
}

#[test]
fn an_invalid_policy_selects_nothing_and_harms_no_other() {
    let world = World {
        policies: vec![
            policy("bad", "{priority: 5, timeout: {connect: soon}}"),
            policy("good", "timeout: {connect: 2s}"),
        ],
        pods: vec![pod("shop", "a", &[])],
        ..World::default()
    };
    let resolved = resolve(&world, &Master::default());
    assert_eq!(resolved.groups[0].policies, [1]);
    assert_eq!(update(&resolved.groups[0].target).policy.origins["timeout"].policy, "good");
    let violations: &Vec<Violation> = resolved.policies[0].spec.as_ref().expect_err("invalid");
    assert_eq!(violations[0].path, "spec.timeout.connect");
}

#[test]
fn pods_without_a_policy_get_the_defaults_and_finished_ones_nothing() {
    let mut finished = (*pod("shop", "done", &[])).clone();
    finished.phase = Phase::Finished;
    let world = World { pods: vec![pod("shop", "a", &[]), Arc::new(finished)], ..World::default() };
    let resolved = resolve(&world, &Master::default());
    assert_eq!(resolved.groups.len(), 1);
    assert_eq!(resolved.groups[0].pods.len(), 1);
    assert_eq!(update(&resolved.groups[0].target).policy, Merged::default());
}

#[test]
fn a_new_generation_of_a_section_in_force_is_a_new_version() {
    let old = policy("p", "retry: {}");
    let mut new = (*old).clone();
    new.generation = 2;
    let version = |policy| {
        let world = World { policies: vec![policy], pods: vec![pod("n", "a", &[])], ..World::default() };
        resolve(&world, &Master::default()).groups[0].target.version.clone()
    };
    assert_ne!(version(old), version(Arc::new(new)));
}

/// Small worlds in which selectors often overlap.
fn worlds() -> impl Strategy<Value = World> {
    let apps = prop_oneof![Just("web"), Just("api"), Just("job")];
    let spaces = prop_oneof![Just("shop"), Just("test")];
    let policies = prop::collection::vec((apps.clone(), 0..4_i32, 0..4_u32, any::<bool>()), 0..6);
    let drains =
        prop_oneof![3 => Just(None), 1 => Just(PodDrain::parse("a")), 1 => Just(PodDrain::parse("a,b"))];
    let pods = prop::collection::vec((spaces, apps, drains), 0..12);
    (policies, pods).prop_map(|(policies, pods)| World {
        policies: policies
            .into_iter()
            .enumerate()
            .map(|(i, (app, priority, retries, all))| {
                let subject = if all {
                    "{}".into()
                } else {
                    format!("{{podSelector: {{matchLabels: {{app: {app}}}}}}}")
                };
                policy(
                    &format!("p{i}"),
                    &format!(
                        "{{priority: {priority}, subject: {subject}, retry: {{numRetries: {retries}}}}}"
                    ),
                )
            })
            .collect(),
        pods: pods
            .into_iter()
            .enumerate()
            .map(|(i, (namespace, app, drain))| {
                drained(&pod(namespace, &format!("pod{i}"), &[("app", app)]), drain)
            })
            .collect(),
        ..World::default()
    })
}

#[test]
fn siblings_are_those_whose_policy_reaches_them() {
    let placed = |name: &str, labels: &[(&str, &str)]| {
        let mut pod = (*pod("shop", name, labels)).clone();
        pod.place = Some(workload::Place {
            workload: "w".to_owned(),
            ip: Some([10, 0, 0, 1].into()),
            port: 8001,
            node: "node-1".to_owned(),
            ready: true,
            workers: vec![],
        });
        Arc::new(pod)
    };
    let spec = "{subject: {podSelector: {matchLabels: {app: web}}}, loadBalancer: {scope: Workload}}";
    let world = World {
        policies: vec![policy("web", spec)],
        pods: vec![placed("a", &[("app", "web")]), placed("b", &[("app", "web")]), placed("c", &[])],
        zones: [("node-1".to_owned(), "west".to_owned())].into(),
        ..World::default()
    };
    let resolved = resolve(&world, &Master::default());
    let mut pods: Vec<_> = resolved.siblings.keys().map(ToString::to_string).collect();
    pods.sort();
    assert_eq!(pods, ["shop-a", "shop-b"]);
    let seen: Vec<_> = resolved.siblings["shop-a"].siblings.members().collect();
    assert_eq!(seen.iter().map(|sibling| sibling.pod.as_str()).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(seen[0].zone, "west");
}

#[test]
fn a_canary_by_pods_joins_the_pods_of_one_policy_that_says_which() {
    let placed = |name: &str, workload: &str, version: &str| {
        let labels = [("app", "web"), ("v", version)];
        let mut pod = (*pod("shop", name, &labels)).clone();
        pod.place = Some(workload::Place {
            workload: workload.to_owned(),
            ip: Some([10, 0, 0, 1].into()),
            port: 8001,
            node: String::new(),
            ready: true,
            workers: vec![],
        });
        Arc::new(pod)
    };
    let canary = "canary: {podLabel: v, version: v2, steps: [{weight: 5}]}, loadBalancer: {scope: Workload}";
    let seen = |policies: &[(&str, &str)]| {
        let world = World {
            policies: policies.iter().map(|(name, spec)| policy(name, spec)).collect(),
            pods: vec![placed("a", "stable", "v1"), placed("b", "canary", "v2")],
            ..World::default()
        };
        let resolved = resolve(&world, &Master::default());
        let members: Vec<_> = resolved.siblings["shop-a"].siblings.members().cloned().collect();
        members.into_iter().map(|member| (member.pod, member.version)).collect::<Vec<_>>()
    };
    let member = |pod: &str, version: Option<&str>| (pod.to_owned(), version.map(str::to_owned));
    let both = [member("a", Some("v1")), member("b", Some("v2"))];
    let subject = "subject: {podSelector: {matchLabels: {app: web}}}";
    assert_eq!(seen(&[("web", &format!("{{{subject}, {canary}}}"))]), both);
    assert_eq!(
        seen(&[("all", &format!("{{{canary}}}"))]),
        both[..1],
        "it does not say that they belong together"
    );
    let all_of_them = format!("{{subject: {{podSelector: {{}}}}, {canary}}}");
    assert_eq!(seen(&[("all", &all_of_them)]), both[..1]);
    let without = [
        ("web", format!("{{{subject}, {canary}}}")),
        ("first", String::from("{priority: 1, canary: {version: v2, steps: [{weight: 5}]}}")),
    ];
    let without = without.each_ref().map(|(name, spec)| (*name, spec.as_str()));
    assert_eq!(seen(&without), [member("a", None)], "another policy's canary is in force, of workers");
}

proptest! {
    #[test]
    fn grouping_gives_each_pod_what_merging_for_it_alone_would(world in worlds()) {
        let resolved = resolve(&world, &Master::default());
        let mut seen = 0;
        for group in &resolved.groups {
            for pod in &group.pods {
                seen += 1;
                let selecting: Vec<_> =
                    (0..world.policies.len()).filter(|i| selects_pod(&world.policies[*i], pod)).collect();
                prop_assert_eq!(&group.policies, &selecting);
                prop_assert_eq!(update(&group.target).policy, merge_these(&world, &selecting));
                prop_assert_eq!(update(&group.target).drain, pod.drain.as_deref().cloned());
            }
        }
        prop_assert_eq!(seen, world.pods.len());
    }

    #[test]
    fn the_order_of_what_is_observed_changes_nothing(world in worlds()) {
        let mut reversed = world.clone();
        reversed.pods.reverse();
        let versions = |world| {
            let resolved = resolve(world, &Master::default());
            let pairs = resolved.groups.iter().flat_map(|group| {
                group.pods.iter().map(|pod| (pod.uid.clone(), group.target.version.clone()))
            });
            pairs.collect::<BTreeMap<_, _>>()
        };
        prop_assert_eq!(versions(&world), versions(&reversed));
    }
}

#[test]
fn a_canarys_share_comes_from_the_status_of_its_policy() {
    let canary = "canary: {version: v2, steps: [{weight: 10}]}";
    let with = |run: &str, weight: u32| {
        let state = serde_json::json!({
            "run": run, "phase": "Progressing", "message": "", "step": 1, "steps": 1, "weight": weight,
            "since": "2026-01-02T03:04:05Z", "analyzed": "2026-01-02T03:04:05Z",
        });
        let status = serde_json::from_value(serde_json::json!({"canary": state})).expect("a status");
        let led = policy("web", canary);
        Arc::new(PolicyFacts { status: Some(status), ..(*led).clone() })
    };
    let given = |led: &Arc<PolicyFacts>| {
        let other = policy("other", "{priority: -5, canary: {version: v9, steps: [{weight: 90}]}}");
        let policies = vec![other, led.clone()];
        let world = World {
            policies,
            pods: vec![pod("shop", "a", &[])],
            namespaces: HashMap::new(),
            zones: HashMap::new(),
        };
        let resolved = resolve(&world, &Master::default());
        update(&resolved.groups[0].target)
    };
    assert_eq!(given(&policy("web", canary)).canary, None, "nobody began it");
    assert_eq!(given(&with("v1.1", 50)).canary, None, "the status tells of another canary");
    let share = given(&with("v2.1", 10));
    assert_eq!(share.canary, Some(CanaryShare { weight: 10, epoch: "v2.1/1".to_owned() }));
    assert_eq!(given(&with("v2.1", 10)).version, share.version, "whoever resolves it");
    assert_ne!(given(&with("v2.1", 25)).version, share.version);
}
