//! `ClusterPolicy` at a real API server: what the definition and the webhook take and refuse, what `kubectl` shows,
//! and what the status says of a policy that nobody could refuse in time.

use std::time::Duration;

use serde_json::Value;
use system_tests::cluster::{apply, install_chart, kubectl, kubectl_json, root, run, run_with_input, wait};

const SOON: Duration = Duration::from_secs(30);

/// A policy that selects no pod of anybody.
fn policy(name: &str, labels: &str, spec: &str) -> String {
    let head = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\n";
    let subject = "  subject: {podSelector: {matchLabels: {app: of-no-pod}}}\n";
    format!("{head}metadata: {{name: {name}, labels: {{{labels}}}}}\nspec:\n{subject}{spec}")
}

fn try_it(yaml: &str) -> Result<String, String> {
    run_with_input("kubectl", &["apply", "--dry-run=server", "-f", "-"], yaml)
}

/// A policy that is removed with the test.
struct Temporary(&'static str);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = run("kubectl", &["delete", "orp", self.0, "--ignore-not-found"]);
    }
}

#[test]
fn every_example_is_accepted() {
    install_chart();
    let mut count = 0;
    for entry in std::fs::read_dir(root().join("deploy/policies")).expect("the examples") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).expect("text");
        try_it(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        count += 1;
    }
    assert!(5 < count);
}

#[test]
fn the_definition_refuses_what_has_not_the_shape() {
    install_chart();
    for (spec, told) in [
        ("  warpDrive: {factor: 9}\n", "warpDrive"),
        ("  retry: {numRetrys: 1}\n", "numRetrys"),
        ("  retry: {numRetries: often}\n", "numRetries"),
        ("  loadBalancer: {type: Best}\n", "spec.loadBalancer.type"),
        ("  loadBalancer: RoundRobin\n", "spec.loadBalancer"),
        ("  workers: {name: a}\n", "spec.workers"),
        ("  workers: [{weight: 1}]\n", "name"),
        ("  routes: [{name: a, match: {path: {type: Regex, value: /}}}]\n", "spec.routes[0].match.path.type"),
        ("  priority: high\n", "spec.priority"),
    ] {
        let refusal = try_it(&policy("api-shape", "", spec)).expect_err(spec);
        assert!(refusal.contains(told), "{spec} is refused for another reason: {refusal}");
    }
}

#[test]
fn the_webhook_names_every_violation_at_once() {
    install_chart();
    let spec = "  retry: {numRetries: 99}\n  timeout: {connect: soon, request: 48h}\n  workers: [{name: a, weight: 101}]\n  \
                routes: [{name: default, match: {}}]\n  drain: {delay: 1d}\n";
    let refusal = apply(&policy("api-bounds", "", spec)).expect_err("it is invalid");
    for path in [
        "spec.retry.numRetries",
        "spec.timeout.connect",
        "spec.timeout.request",
        "spec.workers[0].weight",
        "spec.routes[0].name",
        "spec.routes[0].match",
        "spec.drain.delay",
    ] {
        assert!(refusal.contains(path), "{path} is not named: {refusal}");
    }
    assert!(run("kubectl", &["get", "orp", "api-bounds"]).is_err(), "nothing was stored");
}

#[test]
fn an_invalid_policy_that_got_past_the_webhook_is_told_in_its_status() {
    install_chart();
    let _policies = [Temporary("api-bypass"), Temporary("api-beside")];
    apply(&policy("api-beside", "", "  retry: {numRetries: 1}\n")).expect("it is valid");
    let invalid =
        policy("api-bypass", "api-test: bypass", "  retry: {numRetries: 99}\n  timeout: {connect: soon}\n");
    let bypass = Bypass::start();
    wait("the webhook is not asked", SOON, || apply(&invalid).ok());
    drop(bypass);

    let condition = |name: &str, kind: &str, status: &str| {
        let policy = kubectl_json(&["get", "orp", name]);
        let generation = policy["metadata"]["generation"].clone();
        let conditions = policy["status"]["conditions"].as_array()?;
        let found = conditions.iter().find(|condition| condition["type"] == kind)?;
        let is = found["status"] == status && found["observedGeneration"] == generation;
        is.then(|| found.clone())
    };
    let (accepted, _) = wait("it is not accepted", SOON, || condition("api-bypass", "Accepted", "False"));
    assert_eq!(accepted["reason"], "Invalid");
    let message = accepted["message"].as_str().expect("a message");
    for path in ["spec.retry.numRetries", "spec.timeout.connect"] {
        assert!(message.contains(path), "{path} is not named: {message}");
    }
    for kind in ["Programmed", "Ready"] {
        assert!(condition("api-bypass", kind, "False").is_some(), "{kind} is not false");
    }
    let (events, _) = wait("an Event tells it", SOON, || {
        let events = kubectl(&["get", "events", "-A", "--field-selector", "involvedObject.name=api-bypass"]);
        events.contains("PolicyInvalid").then_some(events)
    });
    assert!(events.contains("Warning"), "{events}");
    wait("the other policy is not touched", SOON, || condition("api-beside", "Ready", "True"));

    // Another one: of what is stored already, kubectl sends nothing.
    let again = invalid.replace("numRetries: 99", "numRetries: 98");
    wait("the webhook is asked again", SOON, || {
        run_with_input("kubectl", &["apply", "--dry-run=server", "-f", "-"], &again).is_err().then_some(())
    });
    apply(&policy("api-bypass", "api-test: bypass", "  retry: {numRetries: 2}\n")).expect("it is mended");
    wait("it is accepted", SOON, || condition("api-bypass", "Accepted", "True"));
    let (ready, _) = wait("it is ready", SOON, || condition("api-bypass", "Ready", "True"));
    assert!(ready["message"].as_str().is_some_and(|message| message.contains("no live pod")), "{ready}");
}

/// While it lives, the validating webhook is not asked about objects with the label `api-test`.
struct Bypass;

impl Bypass {
    fn start() -> Self {
        Self::select(r#"{"matchExpressions": [{"key": "api-test", "operator": "DoesNotExist"}]}"#);
        Self
    }

    fn select(objects: &str) {
        let patch = format!(r#"[{{"op": "add", "path": "/webhooks/0/objectSelector", "value": {objects}}}]"#);
        kubectl(&["patch", "validatingwebhookconfiguration", "outrigger", "--type=json", "-p", &patch]);
    }
}

impl Drop for Bypass {
    fn drop(&mut self) {
        Self::select("{}");
    }
}

#[test]
fn kubectl_shows_what_matters() {
    install_chart();
    let _policy = Temporary("api-columns");
    apply(&policy("api-columns", "", "  priority: 7\n  loadBalancer: {type: LeastRequest}\n"))
        .expect("valid");
    kubectl(&["wait", "orp/api-columns", "--for=condition=Ready", "--timeout=30s"]);
    let columns = |flags: &[&str]| {
        let table = kubectl(&[&["get", "orp", "api-columns"], flags].concat());
        let mut lines =
            table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        (lines.next().expect("a head"), lines.next().expect("a row"))
    };
    let (head, row) = columns(&[]);
    let columns_shown =
        ["NAME", "ACCEPTED", "PROGRAMMED", "WORKERS", "BREAKERS", "STRATEGY", "PRIORITY", "AGE"];
    assert_eq!(head, columns_shown);
    assert_eq!(row[..3], ["api-columns", "True", "0/0"]);
    assert_eq!(row[row.len() - 3..row.len() - 1], ["LeastRequest", "7"], "{row:?}");
    let (wide, row) = columns(&["-o", "wide"]);
    assert_eq!(wide.last().map(String::as_str), Some("MESSAGE"));
    assert!(row.join(" ").ends_with("no live pod with a proxy is selected"), "{row:?}");

    let category = kubectl(&["get", "outrigger"]);
    assert!(category.contains("api-columns"), "{category}");
    let explained = kubectl(&["explain", "clusterpolicies.spec.retry.numRetries"]);
    assert!(explained.contains("Default"), "bounds and default are told: {explained}");
    let resources: Value =
        serde_json::from_str(&kubectl(&["get", "--raw", "/apis/outrigger.dev/v1alpha1"])).expect("JSON");
    let names: Vec<_> =
        resources["resources"].as_array().expect("a list").iter().map(|r| &r["name"]).collect();
    assert_eq!(names, ["clusterpolicies", "clusterpolicies/status"]);
}
