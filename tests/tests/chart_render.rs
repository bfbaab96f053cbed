//! What the chart renders, with many sets of values. Needs helm: `HELM`, the one that `tests/cluster/build`
//! makes, or one on the `PATH`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const NAMESPACE: &str = "outrigger-system";

/// Sets of values, by name, that must render: what `--set` gets, and whether the Prometheus operator is there.
const MATRIX: [(&str, &str); 14] = [
    ("defaults", ""),
    ("high availability", "@ha"),
    ("one replica", "replicaCount=1"),
    ("no CRD", "crds.enabled=false"),
    ("CRD goes with the release", "crds.keep=false"),
    (
        "own registry and digest",
        "imageRegistry=registry.example:5000/mirror,image.digest=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa,imagePullSecrets[0].name=pull",
    ),
    ("no validation", "webhook.validation.enabled=false"),
    ("fail closed", "webhook.failurePolicy=Fail,webhook.timeoutSeconds=3"),
    (
        "monitors forced",
        "metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true,metrics.podMonitor.labels.release=kps",
    ),
    ("monitors by capability", "@monitoring"),
    ("foreign service account", "serviceAccount.create=false,serviceAccount.name=mine,rbac.create=false"),
    (
        "no extras",
        "podDisruptionBudget.enabled=false,networkPolicy.enabled=false,rbac.aggregateClusterRoles=false",
    ),
    (
        "proxy settings",
        "proxy.ports.data=8080,proxy.resources.limits.cpu=,proxy.trustedHops=2,proxy.trustedNetworks={10.0.0.0/8,fd00::/8},proxy.log=debug,proxy.image.repository=mine",
    ),
    (
        "labels and placement",
        "commonLabels.team=edge,podLabels.tier=a,podAnnotations.prometheus\\.io/path=/other,nodeSelector.pool=system,tolerations[0].operator=Exists,priorityClassName=high,extraArgs={--a},extraEnv[0].name=B,extraEnv[0].value=c,fullnameOverride=a-very-long-name-that-does-not-fit-anywhere-at-all",
    ),
];

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/outrigger")
}

fn helm(arguments: &[&str]) -> Output {
    let home = std::env::var("HOME").unwrap_or_default();
    let built = PathBuf::from(home).join(".cache/outrigger-kube/bin/helm");
    let program = match std::env::var_os("HELM") {
        Some(program) => program,
        None if built.exists() => built.into(),
        None => "helm".into(),
    };
    Command::new(program).args(arguments).output().expect("helm: set HELM, or run tests/cluster/build")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn render(values: &str) -> Vec<Value> {
    let chart = chart();
    let chart = chart.to_str().expect("UTF-8");
    let high = format!("{chart}/values-ha.yaml");
    let mut arguments = vec!["template", "outrigger", chart, "-n", NAMESPACE, "--kube-version", "1.34.0"];
    match values {
        "@ha" => arguments.extend(["--values", &high]),
        "@monitoring" => arguments.extend(["--api-versions", "monitoring.coreos.com/v1"]),
        values => arguments.extend(["--set", values]),
    }
    let output = helm(&arguments);
    assert!(output.status.success(), "{values}: {}", text(&output));
    let documents = serde_yaml::Deserializer::from_str(std::str::from_utf8(&output.stdout).expect("UTF-8"))
        .map(|document| serde::Deserialize::deserialize(document).expect("YAML without repeated keys"));
    documents.filter(|document: &Value| !document.is_null()).collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn environment(objects: &[Value]) -> BTreeMap<String, String> {
    let container = &one(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let pair = |variable: &Value| {
        Some((variable["name"].as_str()?.to_owned(), variable["value"].as_str()?.to_owned()))
    };
    list(&container["env"]).filter_map(pair).collect()
}

#[test]
fn lint_is_strict_and_silent() {
    let output = helm(&["lint", "--strict", chart().to_str().expect("UTF-8")]);
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn every_set_of_values_renders_sound_objects() {
    for (name, values) in MATRIX {
        let objects = render(values);
        for object in &objects {
            let (kind, metadata) = (&object["kind"], &object["metadata"]);
            let identity = format!("{name}: {kind} {}", metadata["name"]);
            assert!(object["apiVersion"].is_string() && metadata["name"].is_string(), "{identity}");
            assert!(metadata["name"].as_str().expect("text").len() <= 63, "{identity}");
            assert_eq!(metadata["labels"]["app.kubernetes.io/part-of"], "outrigger", "{identity}");
            let cluster = ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"];
            let kind = kind.as_str().expect("text");
            let cluster = cluster.contains(&kind) || kind.ends_with("WebhookConfiguration");
            assert_eq!(metadata["namespace"].is_null(), cluster, "{identity}");
        }
        assert_restricted(&one(&objects, "Deployment")["spec"]["template"]["spec"], name);
        assert_services_reach_the_operator(&objects, name);
        let size: usize = objects.iter().map(|object| object.to_string().len()).sum();
        assert!(size < 512 << 10, "{name}: a release must fit into a Secret");
    }
}

/// The Pod Security Standard `restricted`.
fn assert_restricted(pod: &Value, name: &str) {
    let context = &pod["securityContext"];
    assert_eq!(context["runAsNonRoot"], true, "{name}");
    assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault", "{name}");
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(pod[field].is_null(), "{name}: {field}");
    }
    for container in list(&pod["containers"]) {
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
        assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
        assert_eq!(context["capabilities"], serde_json::json!({"drop": ["ALL"]}), "{name}");
        assert!(list(&container["ports"]).all(|port| port["hostPort"].is_null()), "{name}");
        assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            assert!(container[probe]["httpGet"].is_object(), "{name}: {probe}");
        }
    }
    let allowed = ["projected", "emptyDir", "configMap", "secret"];
    for volume in list(&pod["volumes"]) {
        assert!(allowed.iter().any(|kind| volume[*kind].is_object()), "{name}: {volume}");
    }
}

fn assert_services_reach_the_operator(objects: &[Value], name: &str) {
    let template = &one(objects, "Deployment")["spec"]["template"];
    let ports: Vec<_> =
        list(&template["spec"]["containers"][0]["ports"]).map(|port| port["name"].clone()).collect();
    let selector = &one(objects, "Deployment")["spec"]["selector"]["matchLabels"];
    for service in of_kind(objects, "Service") {
        assert_eq!(&service["spec"]["selector"], selector, "{name}");
        assert!(list(&service["spec"]["ports"]).all(|port| ports.contains(&port["targetPort"])), "{name}");
    }
    for (key, value) in selector.as_object().expect("labels") {
        assert_eq!(&template["metadata"]["labels"][key], value, "{name}");
    }
    let services: Vec<_> =
        of_kind(objects, "Service").iter().map(|service| service["metadata"]["name"].clone()).collect();
    let environment = environment(objects);
    for service in environment["OUTRIGGER_TLS_SERVICES"].split(',') {
        assert!(services.contains(&service.into()), "{name}: {service}");
    }
    assert!(services.contains(&environment["OUTRIGGER_OWNER_SERVICE"].as_str().into()), "{name}");
    let push = environment["OUTRIGGER_PUSH_ADDRESS"].split('.').next().expect("a name").to_owned();
    assert!(services.contains(&push.into()), "{name}");
    for kind in ["MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"] {
        for webhook in of_kind(objects, kind).into_iter().flat_map(|object| list(&object["webhooks"])) {
            assert!(services.contains(&webhook["clientConfig"]["service"]["name"]), "{name}");
            assert!(webhook["clientConfig"]["caBundle"].is_null(), "{name}: the operator writes it");
        }
    }
}

#[test]
fn unknown_and_impossible_values_are_refused() {
    for values in [
        "replicas=2",
        "image.name=a",
        "proxy.image.repo=a",
        "webhook.failurePolicy=Maybe",
        "webhook.timeoutSeconds=31",
        "replicaCount=0",
        "crds.install=true",
        "certificates.lifetime=a year",
        "image.digest=latest",
        "proxy.ports.data=80",
        "proxy.ports.sibling=80",
        "proxy.resources.limits.gpu=1",
        "metrics.podMonitor.enabled=maybe",
        "proxy.trustedNetworks={everyone}",
        "networkPolicy.ingress=false",
    ] {
        let chart = chart();
        let chart = chart.to_str().expect("UTF-8");
        let output = helm(&["template", "a", chart, "--kube-version", "1.34.0", "--set", values]);
        let text = text(&output);
        assert!(!output.status.success() && text.contains("values don't meet the spec"), "{values}: {text}");
    }
}

#[test]
fn kubernetes_without_native_sidecars_is_refused() {
    let output = helm(&["template", "a", chart().to_str().expect("UTF-8"), "--kube-version", "1.28.0"]);
    assert!(text(&output).contains("1.29"), "{}", text(&output));
}

#[test]
fn the_crd_is_what_the_code_defines() {
    let defined = outrigger_operator::crd::definition().expect("defined");
    let shipped = std::fs::read_to_string(chart().join("files/clusterpolicies.yaml")).expect("readable");
    assert_eq!(shipped.trim_end(), defined.trim_end(), "run charts/outrigger/generate");
    let defined: Value = serde_yaml::from_str(&defined).expect("YAML");
    let objects = render("");
    let rendered = one(&objects, "CustomResourceDefinition");
    assert_eq!(rendered["spec"], defined["spec"]);
    assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    let objects = render("crds.keep=false");
    assert!(one(&objects, "CustomResourceDefinition")["metadata"]["annotations"].is_null());
    assert!(of_kind(&render("crds.enabled=false"), "CustomResourceDefinition").is_empty());
}

#[test]
fn injection_reaches_only_who_asked() {
    let objects = render("");
    let configuration = one(&objects, "MutatingWebhookConfiguration");
    let webhooks: Vec<_> = list(&configuration["webhooks"]).collect();
    assert_eq!(webhooks.len(), 2);
    for webhook in &webhooks {
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(webhook["sideEffects"], "None");
        assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
        assert!(webhook["timeoutSeconds"].as_u64().expect("a number") <= 5);
        assert_eq!(webhook["rules"][0]["operations"], serde_json::json!(["CREATE"]));
        let excluded = list(&webhook["namespaceSelector"]["matchExpressions"])
            .find(|one| one["key"] == "kubernetes.io/metadata.name")
            .expect("excluded");
        assert_eq!(excluded["operator"], "NotIn");
        for namespace in ["kube-system", "kube-node-lease", NAMESPACE] {
            assert!(list(&excluded["values"]).any(|value| value == namespace), "{namespace}");
        }
    }
    let asked = serde_json::json!({"outrigger.dev/inject": "enabled"});
    assert_eq!(webhooks[0]["namespaceSelector"]["matchLabels"], asked);
    assert_eq!(webhooks[1]["objectSelector"]["matchLabels"], asked);
    let labels = &one(&objects, "Deployment")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["outrigger.dev/inject"], "disabled", "the operator must start without itself");
}

#[test]
fn policies_can_always_be_removed() {
    let objects = render("");
    let webhook = &one(&objects, "ValidatingWebhookConfiguration")["webhooks"][0];
    assert_eq!(webhook["failurePolicy"], "Fail");
    assert_eq!(webhook["rules"][0]["operations"], serde_json::json!(["CREATE", "UPDATE"]));
    assert_eq!(webhook["rules"][0]["resources"], serde_json::json!(["clusterpolicies"]), "not their status");
}

#[test]
fn rights_are_the_least() {
    let objects = render("");
    for role in of_kind(&objects, "ClusterRole").into_iter().chain(of_kind(&objects, "Role")) {
        for rule in list(&role["rules"]) {
            let names = |field: &str| list(&rule[field]).filter_map(Value::as_str).collect::<Vec<_>>();
            let (verbs, resources) = (names("verbs"), names("resources"));
            assert!(!verbs.contains(&"*") && !resources.contains(&"*"), "{rule}");
            assert!(!verbs.iter().any(|verb| ["escalate", "bind", "impersonate", "delete"].contains(verb)));
            let writes = verbs.iter().any(|verb| ["update", "patch"].contains(verb));
            let own = ["clusterpolicies/status", "events"].contains(&resources[0]);
            assert!(!writes || own || !rule["resourceNames"].is_null(), "{rule}");
            if resources == ["nodes"] {
                assert_eq!(verbs, ["get", "list", "watch"], "their labels are read, and nothing is written");
            }
            if resources == ["secrets"] {
                assert_eq!(role["kind"], "Role", "no Secrets of other namespaces");
                assert!(verbs == ["create"] || !rule["resourceNames"].is_null(), "{rule}");
            }
        }
    }
}

#[test]
fn monitors_come_where_the_prometheus_operator_is() {
    assert!(of_kind(&render(""), "PodMonitor").is_empty());
    for values in ["@monitoring", "metrics.podMonitor.enabled=true,metrics.serviceMonitor.enabled=true"] {
        let objects = render(values);
        let monitor = one(&objects, "PodMonitor");
        assert_eq!(monitor["spec"]["namespaceSelector"]["any"], true);
        assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "outrigger-admin");
        let labels = &one(&objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"];
        let matching = of_kind(&objects, "Service").into_iter().filter(|service| {
            labels
                .as_object()
                .expect("labels")
                .iter()
                .all(|(key, value)| &service["metadata"]["labels"][key] == value)
        });
        assert_eq!(matching.count(), 1);
    }
}

#[test]
fn values_reach_the_operator() {
    let given = "proxy.ports.data=8080,proxy.ports.sibling=8181,proxy.resources.limits.cpu=,proxy.trustedHops=2,proxy.trustedNetworks={10.0.0.0/8,fd00::/8},imageRegistry=registry.example,proxy.image.tag=v7";
    let environment = environment(&render(given));
    for (name, value) in [
        ("OUTRIGGER_PROXY_IMAGE", "registry.example/outrigger-proxy:v7"),
        ("OUTRIGGER_PROXY_PORT", "8080"),
        ("OUTRIGGER_PROXY_SIBLING_PORT", "8181"),
        ("OUTRIGGER_PROXY_CPU_LIMIT", ""),
        ("OUTRIGGER_PROXY_MEMORY_LIMIT", "256Mi"),
        ("OUTRIGGER_PROXY_TRUSTED_HOPS", "2"),
        ("OUTRIGGER_PROXY_TRUSTED_NETWORKS", "10.0.0.0/8,fd00::/8"),
        ("OUTRIGGER_PUSH_ADDRESS", "outrigger-push.outrigger-system.svc:8443"),
    ] {
        assert_eq!(environment.get(name).map(String::as_str), Some(value), "{name}");
    }
}
