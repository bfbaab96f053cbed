//! The whole path, once, on a real cluster: helm install, inject, kubectl apply under load, failures, scrape,
//! uninstall. One test, because each step stands on the one before.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use system_tests::client::{self, get};
use system_tests::cluster::{
    SYSTEM, apply, install_chart, kill_container, kubectl, kubectl_json, pod_page, root, run, wait,
};
use system_tests::load::{Load, Outcome, Shape};

const DEMO: &str = "demo";
const MINUTE: Duration = Duration::from_secs(60);
/// How soon a policy must be in force on every proxy after `kubectl apply` returned.
const IN_FORCE: Duration = Duration::from_secs(2);
const STEADY: Shape = Shape { kept: 24, anew: 8, every: Duration::from_millis(40) };

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_path() {
    step("install the chart");
    install();
    step("apply the example: two pods of three workers");
    let service = deploy_example();
    the_service_answers(service).await;
    policies_change_live_under_load(service).await;
    invalid_policies_are_refused();
    a_rolling_restart_costs_nothing(service).await;
    a_killed_worker_costs_what_it_held(service).await;
    the_operator_may_go_and_come_back(service).await;
    prometheus_scrapes_both();
    uninstall_leaves_the_definition_and_nothing_else();
}

fn step(what: &str) {
    println!("--- {what}");
}

fn install() {
    let _ = run("helm", &["uninstall", "outrigger", "--namespace", SYSTEM, "--ignore-not-found", "--wait"]);
    kubectl(&["delete", "namespace", DEMO, SYSTEM, "--ignore-not-found", "--wait"]);
    install_chart();
}

/// The address of the example's Service, on a port of the node.
fn deploy_example() -> SocketAddr {
    kubectl(&["apply", "-f", "deploy/workers/deployment.yaml"]);
    let port = r#"{"spec": {"type": "NodePort"}}"#;
    kubectl(&["patch", "service", "web", "-n", DEMO, "-p", port]);
    kubectl(&["rollout", "status", "deployment/web", "-n", DEMO, "--timeout=180s"]);
    for pod in pods() {
        let spec = &pod["spec"];
        assert_eq!(spec["initContainers"][0]["name"], "outrigger-proxy", "the sidecar comes first");
        assert_eq!(spec["initContainers"][0]["restartPolicy"], "Always", "and is a native one");
        assert_eq!(spec["containers"].as_array().map(Vec::len), Some(3));
    }
    assert_eq!(pods().len(), 2);
    let service = kubectl_json(&["get", "service", "web", "-n", DEMO]);
    let port = service["spec"]["ports"][0]["nodePort"].as_u64().expect("a port");
    let nodes = kubectl_json(&["get", "nodes"]);
    let addresses = nodes["items"][0]["status"]["addresses"].as_array().expect("addresses").clone();
    let node = addresses.iter().find(|address| address["type"] == "InternalIP").expect("an internal address");
    format!("{}:{port}", node["address"].as_str().expect("text")).parse().expect("an address")
}

/// Waits until the node has the Service's rules: they come a moment after the pods are ready.
async fn the_service_answers(service: SocketAddr) {
    let deadline = Instant::now() + MINUTE;
    let mut in_a_row = 0;
    while in_a_row < 20 {
        let answered = client::send(service, get("/", &[])).await.is_ok_and(|answer| answer.status == 200);
        in_a_row = if answered { in_a_row + 1 } else { 0 };
        assert!(Instant::now() < deadline, "the Service does not answer");
        if !answered {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The example's pods that are not on their way out.
fn pods() -> Vec<Value> {
    let pods = kubectl_json(&["get", "pods", "-n", DEMO, "-l", "app=web"]);
    let items = pods["items"].as_array().expect("a list").clone();
    items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().expect("a name")
}

fn policy(spec: &str) -> String {
    let head = "apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {name: web}\nspec:\n";
    format!("{head}  subject: {{podSelector: {{matchLabels: {{app: web}}}}}}\n{spec}")
}

async fn policies_change_live_under_load(service: SocketAddr) {
    step("change the policy under load");
    let load = Load::start(service, STEADY);
    let steps = [
        ("RoundRobin", "  loadBalancer: {type: RoundRobin}\n"),
        ("LeastRequest", "  loadBalancer: {type: LeastRequest}\n"),
        ("new weights", "  loadBalancer: {type: RoundRobin}\n  workers: [{name: worker-a, weight: 3}]\n"),
        ("sticky on", "  sessionPersistence: {cookie: {name: pinned}}\n"),
        (
            "a limit on one header",
            "  rateLimit: {rules: [{name: user, clientSelector: {type: Header, header: x-user}, limit: {requests: 1, unit: Hour}}]}\n",
        ),
        (
            "breaker thresholds",
            "  circuitBreaker: {worker: {consecutiveFailures: 3, waitDurationInOpenState: 2s}}\n",
        ),
    ];
    for (what, spec) in steps {
        let seconds = put_in_force(&policy(spec));
        println!("    {what}: in force on 2/2 after {seconds:.2} s");
        match what {
            "sticky on" => a_session_stays(service).await,
            "a limit on one header" => the_limit_refuses(service).await,
            _ => tokio::time::sleep(Duration::from_secs(2)).await, // load under each treatment
        }
    }
    let outcome = load.stop().await;
    nothing_failed(&outcome);
    let expected = ["worker-a", "worker-b", "worker-c"];
    assert!(outcome.workers.iter().map(String::as_str).eq(expected), "{:?}", outcome.workers);
    let shown = kubectl(&["get", "orp"]);
    assert!(shown.contains("2/2"), "{shown}");
}

/// Applies and waits until the status says that every proxy has it, in seconds.
fn put_in_force(yaml: &str) -> f64 {
    apply(yaml).unwrap_or_else(|error| panic!("kubectl apply: {error}"));
    let (_, took) =
        wait("the policy is in force on every proxy", IN_FORCE.max(Duration::from_secs(10)), || {
            let policy = kubectl_json(&["get", "clusterpolicies.outrigger.dev", "web"]);
            let status = &policy["status"];
            let current = status["observedGeneration"] == policy["metadata"]["generation"];
            (current && status["proxies"]["matched"] == 2 && status["proxies"]["programmed"] == 2)
                .then_some(())
        });
    assert!(took <= IN_FORCE, "in force only after {took:?}");
    took.as_secs_f64()
}

fn nothing_failed(outcome: &Outcome) {
    println!(
        "    {} requests at {:.0} a second, {} failed",
        outcome.requests,
        outcome.rate(),
        outcome.failures.len()
    );
    let first: Vec<_> = outcome.failures.iter().take(10).collect();
    assert!(
        outcome.failures.is_empty(),
        "{} of {} failed: {first:#?}",
        outcome.failures.len(),
        outcome.requests
    );
    assert!(500.0 <= outcome.rate(), "the load was too low to show anything: {:.0} a second", outcome.rate());
}

async fn a_session_stays(service: SocketAddr) {
    let who = |answer: &client::Answer| {
        let said: Value = serde_json::from_slice(&answer.body).expect("JSON");
        said["worker"].as_str().expect("a name").to_owned()
    };
    let first = client::send(service, get("/", &[])).await.expect("an answer");
    let cookie = first.cookie().expect("a session cookie");
    for _ in 0..10 {
        let answer = client::send(service, get("/", &[("cookie", &cookie)])).await.expect("an answer");
        assert_eq!(who(&answer), who(&first), "a session stays with its worker");
    }
}

async fn the_limit_refuses(service: SocketAddr) {
    let mut refused = 0;
    for _ in 0..10 {
        let answer = client::send(service, get("/", &[("x-user", "greedy")])).await.expect("an answer");
        refused += usize::from(answer.status == 429);
    }
    assert_eq!(refused, 8, "one request an hour in each of two proxies");
}

fn invalid_policies_are_refused() {
    step("an invalid policy is refused with every violation");
    let spec =
        "  retry: {numRetries: 99}\n  timeout: {connect: soon}\n  routes: [{name: default, match: {}}]\n";
    let refusal = apply(&policy(spec)).expect_err("an invalid policy is refused");
    for path in
        ["spec.retry.numRetries", "spec.timeout.connect", "spec.routes[0].name", "spec.routes[0].match"]
    {
        assert!(refusal.contains(path), "{path} is not named: {refusal}");
    }
    let refusal =
        apply(&policy("  loadBalancer: {type: Best}\n")).expect_err("an unknown strategy is refused");
    assert!(refusal.contains("spec.loadBalancer.type"), "{refusal}");
    let kept = kubectl_json(&["get", "orp", "web"]);
    assert_eq!(
        kept["spec"]["circuitBreaker"]["worker"]["consecutiveFailures"], 3,
        "the last valid one stays"
    );
}

async fn a_rolling_restart_costs_nothing(service: SocketAddr) {
    step("restart the Deployment under load");
    let load = Load::start(service, STEADY);
    kubectl(&["rollout", "restart", "deployment/web", "-n", DEMO]);
    kubectl(&["rollout", "status", "deployment/web", "-n", DEMO, "--timeout=180s"]);
    wait("the old pods are gone", MINUTE, || {
        let all = kubectl_json(&["get", "pods", "-n", DEMO, "-l", "app=web"]);
        (all["items"].as_array().map(Vec::len) == Some(2)).then_some(())
    });
    nothing_failed(&load.stop().await);
}

async fn a_killed_worker_costs_what_it_held(service: SocketAddr) {
    step("kill -9 one worker container under load");
    let pod = name(&pods()[0]).to_owned();
    let load = Load::start(service, STEADY);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = Instant::now();
    kill_container(DEMO, &pod, "a");
    wait("the worker's container runs again", MINUTE, || {
        let pod = kubectl_json(&["get", "pod", "-n", DEMO, &pod]);
        let statuses = pod["status"]["containerStatuses"].as_array()?.clone();
        statuses
            .iter()
            .any(|s| s["name"] == "a" && s["restartCount"] == 1 && s["ready"] == true)
            .then_some(())
    });
    println!("    the worker was back after {:.1} s", before.elapsed().as_secs_f64());
    let outcome = load.stop().await;
    println!(
        "    {} requests at {:.0} a second, {} failed",
        outcome.requests,
        outcome.rate(),
        outcome.failures.len()
    );
    // One worker of six holds at most what the 32 clients have in flight there at that moment.
    let all_reset = outcome.failures.iter().all(|(_, why)| why.starts_with("502"));
    assert!(
        all_reset && outcome.failures.len() <= 4,
        "more than what was in flight: {:#?}",
        outcome.failures
    );
}

async fn the_operator_may_go_and_come_back(service: SocketAddr) {
    step("the operator goes, a sidecar restarts, the operator comes back");
    let load = Load::start(service, STEADY);
    kubectl(&["scale", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/name=outrigger", "--replicas=0"]);
    wait("the operator is gone", MINUTE, || {
        let pods = kubectl_json(&["get", "pods", "-n", SYSTEM]);
        pods["items"].as_array().is_some_and(Vec::is_empty).then_some(())
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    nothing_failed(&load.stop().await);

    let pod = name(&pods()[0]).to_owned();
    kill_container(DEMO, &pod, "outrigger-proxy");
    let generation =
        |page: &str| page.lines().any(|line| line.starts_with("outrigger_policy_generation{policy=\"web\"}"));
    let (_, took) = wait("the sidecar has its last good policy", MINUTE, || {
        let status = kubectl_json(&["get", "pod", "-n", DEMO, &pod]);
        let restarted = status["status"]["initContainerStatuses"][0]["restartCount"] == 1;
        (restarted && pod_page(DEMO, &pod, "9900/metrics").is_ok_and(|page| generation(&page))).then_some(())
    });
    println!("    a restarted sidecar had its last good policy after {:.1} s", took.as_secs_f64());

    kubectl(&["scale", "deployment", "-n", SYSTEM, "-l", "app.kubernetes.io/name=outrigger", "--replicas=2"]);
    wait("the operator is back", 2 * MINUTE, || {
        let pods = kubectl_json(&["get", "deployment", "-n", SYSTEM]);
        (pods["items"][0]["status"]["readyReplicas"] == 2).then_some(())
    });
    wait("every proxy is connected again", MINUTE, || {
        let connected = |pod: &Value| {
            pod_page(DEMO, name(pod), "9900/metrics")
                .is_ok_and(|page| page.contains("outrigger_push_connected 1"))
        };
        pods().iter().all(connected).then_some(())
    });
    let seconds = put_in_force(&policy("  loadBalancer: {type: LeastRequest}\n  retry: {numRetries: 1}\n"));
    println!("    in sync again: a new policy was in force after {seconds:.2} s");
}

fn prometheus_scrapes_both() {
    step("Prometheus scrapes proxies and operator");
    let prometheus = root().join("tests/cluster/prometheus").display().to_string();
    let targets = run(&prometheus, &["up"]).unwrap_or_else(|error| panic!("Prometheus: {error}"));
    let up: Value = serde_json::from_str(&targets).expect("JSON");
    let series = up["data"]["result"].as_array().expect("series").clone();
    let healthy =
        |job: &str| series.iter().filter(|s| s["metric"]["job"] == job && s["value"][1] == "1").count();
    assert_eq!((healthy("outrigger-proxy"), healthy("outrigger-operator")), (2, 2), "{series:#?}");
    let generations = run(&prometheus, &["outrigger_policy_generation"]).expect("Prometheus answers");
    assert!(generations.contains(r#""policy":"web""#), "{generations}");
    run(&prometheus, &["--stop"]).expect("Prometheus ends");
}

fn uninstall_leaves_the_definition_and_nothing_else() {
    step("uninstall");
    kubectl(&["delete", "namespace", DEMO, "--wait"]);
    run("helm", &["uninstall", "outrigger", "--namespace", SYSTEM, "--wait"]).expect("helm uninstalls");
    let kinds = "deployments,pods,services,secrets,leases,serviceaccounts,roles,rolebindings,poddisruptionbudgets,networkpolicies";
    let (_, took) = wait("nothing is left in the namespace", MINUTE, || {
        let left = kubectl_json(&["get", kinds, "-n", SYSTEM]);
        let ours = |object: &&Value| name(object) != "default"; // every namespace has that account
        (left["items"].as_array().expect("a list").iter().filter(ours).count() == 0).then_some(())
    });
    println!("    nothing was left after {:.1} s", took.as_secs_f64());
    let cluster =
        "clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingwebhookconfigurations";
    let left = kubectl(&["get", cluster, "-o", "name"]);
    assert!(!left.contains("outrigger"), "{left}");
    let definitions = kubectl(&["get", "customresourcedefinitions", "-o", "name"]);
    assert_eq!(definitions.matches("clusterpolicies.outrigger.dev").count(), 1, "{definitions}");
    kubectl(&["delete", "orp", "--all"]);
    kubectl(&["delete", "namespace", SYSTEM, "--wait"]);
}
