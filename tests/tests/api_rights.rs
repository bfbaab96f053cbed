//! What the operator's ServiceAccount may do, as the API server sees it: what is written here, and nothing else.

use std::collections::BTreeSet;
use std::time::Duration;

use system_tests::cluster::{SYSTEM, apply, install_chart, kubectl, kubectl_json, run, wait};

/// A resource, the name it is bound to, if any, and verbs.
type Row = (&'static str, &'static str, &'static str);

/// In its own namespace, and what for.
const OWN: &[Row] = &[
    ("leases.coordination.k8s.io", "", "create"), // who writes
    ("leases.coordination.k8s.io", "outrigger-operator", "get update"),
    ("secrets", "", "create"), // the CA and the session keys: a new object has no name to be bound to
    ("secrets", "outrigger-ca", "get update"),
    ("secrets", "outrigger-session-keys", "get update"),
    ("services", "outrigger-push", "get"), // the owner of the Secrets and the Lease
];
/// Everywhere.
const ALL: &[Row] = &[
    ("clusterpolicies.outrigger.dev", "", "get list watch"),
    ("clusterpolicies.outrigger.dev/status", "", "patch"),
    ("events.events.k8s.io", "", "create patch"),
    ("mutatingwebhookconfigurations.admissionregistration.k8s.io", "outrigger", "get patch"), // caBundle
    ("namespaces", "", "get list watch"),
    ("nodes", "", "get list watch"), // their zones
    ("pods", "", "get list watch"),  // whom a policy selects, and whose a token is
    ("tokenreviews.authentication.k8s.io", "", "create"),
    ("validatingwebhookconfigurations.admissionregistration.k8s.io", "outrigger", "get patch"),
];

type Right = (String, String, BTreeSet<String>);

/// What a ServiceAccount may do in a namespace, one resource and name each.
fn rights(account: &str, namespace: &str) -> BTreeSet<Right> {
    let who = format!("system:serviceaccount:{SYSTEM}:{account}");
    let table = kubectl(&["auth", "can-i", "--list", "--no-headers", "--as", &who, "-n", namespace]);
    let mut rights = BTreeSet::new();
    for line in table.lines() {
        // Resources   [non-resource URLs]   [names]   [verbs]
        let mut columns = line.split(['[', ']']);
        let resources = columns.next().expect("a column").trim();
        let inside: Vec<_> = columns.step_by(2).collect();
        let [_, names, verbs] = inside[..] else { panic!("not four columns: {line}") };
        if resources.is_empty() {
            continue; // URLs of the API server itself
        }
        let verbs: BTreeSet<_> = verbs.split_whitespace().map(str::to_owned).collect();
        let names: Vec<_> = if names.is_empty() { vec![""] } else { names.split_whitespace().collect() };
        for name in names {
            for resource in resources.split(',') {
                rights.insert((resource.to_owned(), name.to_owned(), verbs.clone()));
            }
        }
    }
    rights
}

fn written(rights: &[&[Row]]) -> BTreeSet<Right> {
    let right = |(resource, name, verbs): &Row| {
        let verbs = verbs.split(' ').map(str::to_owned).collect();
        ((*resource).to_owned(), (*name).to_owned(), verbs)
    };
    rights.iter().flat_map(|rights| rights.iter().map(right)).collect()
}

#[test]
fn the_operator_may_do_what_is_written_here_and_nothing_else() {
    install_chart();
    let everybody = |namespace| rights("an-account-without-any-role", namespace);
    let own: BTreeSet<_> = &rights("outrigger-operator", SYSTEM) - &everybody(SYSTEM);
    assert_eq!(own, written(&[OWN, ALL]), "in its own namespace");
    let other: BTreeSet<_> = &rights("outrigger-operator", "default") - &everybody("default");
    assert_eq!(other, written(&[ALL]), "in any other namespace");
}

#[test]
fn what_would_be_dangerous_is_refused() {
    install_chart();
    let who = format!("system:serviceaccount:{SYSTEM}:outrigger-operator");
    for what in [
        &["list", "secrets", "-A"][..],
        &["get", "secrets", "-n", "kube-system"],
        &["get", "secret/another", "-n", SYSTEM],
        &["delete", "pods", "-A"],
        &["create", "pods/exec", "-n", "default"],
        &["update", "clusterpolicies.outrigger.dev"],
        &["delete", "clusterpolicies.outrigger.dev"],
        &["patch", "mutatingwebhookconfiguration/another"],
        &["create", "serviceaccounts/token", "-n", SYSTEM],
        &["impersonate", "users"],
        &["escalate", "clusterroles"],
        &["bind", "clusterroles"],
    ] {
        let asked = run("kubectl", &[&["auth", "can-i"], what, &["--as", &who]].concat());
        assert!(asked.is_err(), "{what:?}: {asked:?}"); // `can-i` ends with an error for "no"
    }
}

#[test]
fn no_right_is_missing_for_what_the_operator_does() {
    install_chart();
    let policy = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {name: api-rights}\nspec: {subject: {podSelector: {matchLabels: {app: of-no-pod}}}}\n";
    apply(policy).expect("valid");
    kubectl(&["wait", "orp/api-rights", "--for=condition=Ready", "--timeout=60s"]);
    kubectl(&["delete", "orp", "api-rights"]);
    for (kind, name) in
        [("secret", "outrigger-ca"), ("secret", "outrigger-session-keys"), ("lease", "outrigger-operator")]
    {
        let owned = kubectl_json(&["get", kind, name, "-n", SYSTEM]);
        assert_eq!(owned["metadata"]["ownerReferences"][0]["name"], "outrigger-push", "{kind}/{name}");
    }
    wait("both webhook configurations have the CA", Duration::from_secs(60), || {
        let has = |kind: &str| {
            let object = kubectl_json(&["get", kind, "outrigger"]);
            let webhooks = object["webhooks"].as_array().cloned().unwrap_or_default();
            webhooks.iter().all(|webhook| webhook["clientConfig"]["caBundle"].is_string())
        };
        (has("mutatingwebhookconfiguration") && has("validatingwebhookconfiguration")).then_some(())
    });
    let pods = kubectl_json(&["get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=outrigger"]);
    let names = pods["items"].as_array().expect("a list").iter().map(|pod| &pod["metadata"]["name"]);
    for name in names.filter_map(|name| name.as_str()) {
        let log = kubectl(&["logs", "-n", SYSTEM, name]);
        let refused: Vec<_> = log.lines().filter(|line| line.to_lowercase().contains("forbidden")).collect();
        assert!(refused.is_empty(), "{name}: {refused:#?}");
    }
}
