//! The way of a policy from the operator's push server to real proxies and back, and who may not walk it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use outrigger_operator::certs::rotation::Step;
use outrigger_operator::certs::{Certificates, InMemory};
use outrigger_operator::controller::observe::PodFacts;
use outrigger_policy::drain::PodDrain;
use outrigger_proxy::drain;
use outrigger_proxy::snapshot::Source;
use serde_json::Value;
use system_tests::client::{self, get};
use system_tests::operator::{NAME, Replica, Service, certificates, pod, policy, token};
use system_tests::proxy::{RunningProxy, start_without_policy};
use system_tests::workers::{self, Manner, Worker};
use tempfile::TempDir;

/// A CA, a Service and a worker; replicas and proxies come and go.
struct World {
    certificates: Certificates,
    authority: InMemory,
    /// What was in the proxies' settings when their pods were made.
    ca: String,
    service: Service,
    worker: Worker,
    folder: TempDir,
}

impl World {
    async fn new() -> Self {
        let (certificates, authority) = certificates();
        let ca = certificates.trust_bundle();
        Self {
            certificates,
            authority,
            ca,
            service: Service::start().await,
            worker: workers::start("a", Manner::default()).await,
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Starts a replica and leads the Service to it.
    async fn replica(&self, name: &str) -> Replica {
        let replica = Replica::start(name, &self.certificates).await;
        self.service.lead_to(Some(&replica));
        replica
    }

    /// The folder that a pod's proxy keeps over its restarts.
    fn state(&self, pod: &PodFacts) -> PathBuf {
        let state = self.folder.path().join(&pod.name);
        std::fs::create_dir_all(&state).expect("writable");
        state
    }

    /// Starts the proxy of a pod, with its token.
    fn proxy(&self, pod: &PodFacts) -> RunningProxy {
        self.proxy_with_token(pod, Some(&token(pod)))
    }

    fn proxy_with_token(&self, pod: &PodFacts, token: Option<&str>) -> RunningProxy {
        self.proxy_with(pod, token, &[])
    }

    fn proxy_with(&self, pod: &PodFacts, token: Option<&str>, more: &[&str]) -> RunningProxy {
        let state = self.state(pod);
        let token_file = state.join("token");
        if let Some(token) = token {
            std::fs::write(&token_file, token).expect("writable");
        }
        let operator = format!("{NAME}:{}", self.service.address.port());
        let paths = [token_file, state].map(|path| path.display().to_string());
        let [token_file, state] = &paths;
        let flags = [
            "--operator",
            &operator,
            "--operator-ca",
            &self.ca,
            "--token-file",
            token_file,
            "--state-dir",
            state,
            "--policy-timeout",
            "2s",
        ];
        start_without_policy(&[self.worker.address], &[&flags, more].concat())
    }
}

/// How many retries the policy in force allows: what the tests tell policies apart by.
fn retries(proxy: &RunningProxy) -> u32 {
    proxy
        .control
        .snapshot()
        .update()
        .policy
        .spec
        .retry
        .and_then(|retry| retry.num_retries)
        .unwrap_or(u32::MAX)
}

fn retry(times: u32) -> String {
    format!("retry: {{numRetries: {times}}}\ndrain: {{delay: 0s}}")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not within thirty seconds: {what}"));
}

/// Waits until the replica knows that the pod's proxy has this version in force.
async fn acknowledged(replica: &Replica, pod: &PodFacts, version: &str) {
    until("the version is acknowledged", || {
        replica.answer(pod).is_some_and(|answer| {
            answer.connected && answer.version.as_deref() == Some(version) && answer.rejection.is_none()
        })
    })
    .await;
}

async fn serves(proxy: &RunningProxy) {
    let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
}

async fn refuses(proxy: &RunningProxy) {
    let answer = client::send(proxy.data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.headers["proxy-status"], "outrigger; error=proxy_configuration_error");
    assert_eq!(answer.headers["retry-after"], "1");
}

/// How the proxy says its stream stands.
async fn push(proxy: &RunningProxy) -> Value {
    let request = client::get("/api/snapshot", &[]);
    let (mut head, body) = request.into_parts();
    head.headers.insert("host", "127.0.0.1".parse().expect("a host"));
    let answer = client::send(proxy.admin, http::Request::from_parts(head, body)).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let view: Value = serde_json::from_slice(&answer.body).expect("JSON");
    view["push"].clone()
}

/// Waits until the proxy has heard the welcome of this replica.
async fn connected_to(proxy: &RunningProxy, replica: &str) {
    for _ in 0..1000 {
        let push = push(proxy).await;
        if push["connected"] == true && push["replica"] == replica {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not connected to {replica} in ten seconds: {}", push(proxy).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_is_in_force_and_acknowledged_and_the_latest_wins() {
    let (world, a) = (World::new().await, pod("a"));
    let replica = world.replica("one").await;
    let resolved = replica.publish(&[policy("web", 1, &retry(1))], std::slice::from_ref(&a));
    let proxy = world.proxy(&a);
    acknowledged(&replica, &a, &resolved.groups[0].target.version).await;
    assert_eq!(retries(&proxy), 1);

    let mut last = resolved;
    for generation in 2..=200 {
        last = replica.publish(
            &[policy("web", generation, &retry(2 + generation as u32 % 3))],
            std::slice::from_ref(&a),
        );
    }
    acknowledged(&replica, &a, &last.groups[0].target.version).await;
    assert_eq!(retries(&proxy), 2 + 200 % 3, "what was published last is in force");
    let sent = replica.metrics.push_updates.get();
    assert!((2..=200).contains(&sent), "{sent} updates for 200 versions: none is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_proxy_cannot_read_is_refused_and_the_last_good_one_stays() {
    let (world, a) = (World::new().await, pod("a"));
    let replica = world.replica("one").await;
    let good = replica.publish(&[policy("web", 1, &retry(1))], std::slice::from_ref(&a));
    let proxy = world.proxy(&a);
    acknowledged(&replica, &a, &good.groups[0].target.version).await;

    for (version, update, path) in [
        (
            "newer",
            r#"{"spec":{"warpDrive":{"factor":9}},"origins":{}}"#,
            "spec: this release of the proxy cannot read it",
        ),
        ("wrong", r#"{"spec":{"retry":{"numRetries":99}},"origins":{}}"#, "spec.retry.numRetries: "),
    ] {
        let line = format!(r#"{{"type":"update","version":"{version}","policy":{update}}}"#);
        replica.publish_lines(version, &format!("{line}\n"), std::slice::from_ref(&a));
        let rejected = || replica.answer(&a).filter(|answer| answer.version.as_deref() == Some(version));
        until("the update is refused", || rejected().is_some()).await;
        let reason = rejected().and_then(|answer| answer.rejection).expect("refused");
        assert!(reason.starts_with(path), "{reason}");
        assert_eq!(retries(&proxy), 1, "the last good policy stays");
        serves(&proxy).await;
    }
    assert_eq!(push(&proxy).await["rejected"], 2);
    assert_eq!(proxy.control.refusals().count, 2);

    let line = |kind: &str| format!(r#"{{"type":"{kind}","version":"x","soon":true}}"#);
    let next = replica.publish(&[policy("web", 2, &retry(2))], std::slice::from_ref(&a));
    acknowledged(&replica, &a, &next.groups[0].target.version).await;
    assert!(proxy.control.refusals().last.is_empty(), "nothing is wrong any more");

    let update = String::from_utf8(next.groups[0].target.line.to_vec()).expect("text");
    let update = update.replace(r#""numRetries":2"#, r#""numRetries":3"#);
    let version = "after-unknown";
    let update = update.replace(&*next.groups[0].target.version, version);
    replica.publish_lines(
        version,
        &format!("{}\n\n{update}", line("somethingNew")),
        std::slice::from_ref(&a),
    );
    acknowledged(&replica, &a, version).await;
    assert_eq!(retries(&proxy), 3, "a message of an unknown type is passed over");
    assert_eq!(proxy.control.refusals().count, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_with_the_same_policy_sends_nothing() {
    let (world, a) = (World::new().await, pod("a"));
    let policies = [policy("web", 1, &retry(1))];
    let one = world.replica("one").await;
    let version = one.publish(&policies, std::slice::from_ref(&a)).groups[0].target.version.clone();
    let proxy = world.proxy(&a);
    acknowledged(&one, &a, &version).await;
    let in_force = proxy.control.snapshot();

    let two = world.replica("two").await;
    two.publish(&policies, std::slice::from_ref(&a));
    one.stop().await;
    acknowledged(&two, &a, &version).await;
    connected_to(&proxy, "two").await;
    assert_eq!(two.metrics.push_updates.get(), 0, "what the proxy holds is not sent");
    assert!(Arc::ptr_eq(&in_force, &proxy.control.snapshot()), "and nothing is built anew");
    let next = two.publish(&[policy("web", 2, &retry(2))], std::slice::from_ref(&a));
    acknowledged(&two, &a, &next.groups[0].target.version).await;
    assert_eq!((retries(&proxy), two.metrics.push_updates.get()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_operator_serving_goes_on_and_a_restart_takes_the_last_good_policy() {
    let (world, a) = (World::new().await, pod("a"));
    let policies = [policy("web", 1, &retry(4))];
    let one = world.replica("one").await;
    let version = one.publish(&policies, std::slice::from_ref(&a)).groups[0].target.version.clone();
    let proxy = world.proxy(&a);
    acknowledged(&one, &a, &version).await;
    until("the policy is on disk", || world.state(&a).join("last-good.json").exists()).await;

    one.stop().await;
    world.service.lead_to(None);
    for _ in 0..100 {
        serves(&proxy).await;
    }
    assert_eq!(retries(&proxy), 4);
    proxy.drain().await;

    let again = world.proxy(&a);
    until("the last good policy is in force", || again.control.snapshot().source == Source::Disk).await;
    assert_eq!((retries(&again), again.control.snapshot().version.as_str()), (4, &*version));
    serves(&again).await;

    let two = world.replica("two").await;
    two.publish(&policies, std::slice::from_ref(&a));
    acknowledged(&two, &a, &version).await;
    assert_eq!(two.metrics.push_updates.get(), 0, "it has what it should");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_a_policy_refuses_unless_it_may_do_without() {
    let (world, a) = (World::new().await, pod("a"));
    let proxy = world.proxy(&a);
    refuses(&proxy).await;
    let readyz = client::send(proxy.admin, get("/readyz", &[])).await.expect("an answer");
    assert_eq!(readyz.status, 503);
    assert_eq!(readyz.body, "not ready: no policy has come yet\n");

    let lenient = world.proxy_with(&pod("b"), None, &["--require-policy", "false"]);
    serves(&lenient).await;
    assert_eq!(lenient.control.snapshot().source, Source::Default);

    let replica = world.replica("late").await;
    let resolved = replica.publish(&[policy("web", 1, &retry(1))], std::slice::from_ref(&a));
    acknowledged(&replica, &a, &resolved.groups[0].target.version).await;
    serves(&proxy).await;
}

/// A limit of one per hour, and proxies that are asked from their first moment on.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_served_before_the_policy_is_in_force() {
    let world = World::new().await;
    let replica = world.replica("one").await;
    let pods: Vec<_> = (0..20).map(|i| pod(&format!("pod-{i}"))).collect();
    let limit = "rateLimit: {rules: [{name: one, limit: {requests: 1, unit: Hour}}]}\ndrain: {delay: 0s}";
    replica.publish(&[policy("web", 1, limit)], &pods);
    for pod in &pods {
        let proxy = world.proxy(pod);
        let asked: Vec<_> = (0..4).map(|_| tokio::spawn(client::send(proxy.data, get("/", &[])))).collect();
        let mut statuses = Vec::new();
        for answer in asked {
            let answer = answer.await.expect("no panic").expect("an answer");
            let refused = answer.headers.get("proxy-status").is_some_and(|value| {
                value.to_str().is_ok_and(|text| text.contains("proxy_configuration_error"))
            });
            if !refused {
                assert!(answer.headers.contains_key("ratelimit-policy"), "{answer:?}");
                statuses.push(answer.status);
            }
        }
        assert!(statuses.iter().filter(|status| **status == 200).count() <= 1, "{statuses:?}");
        proxy.drain().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ca_is_rotated_under_connected_proxies_and_those_that_restart() {
    let (mut world, a) = (World::new().await, pod("a"));
    let policies = [policy("web", 1, &retry(1))];
    let mut replica = world.replica("0").await;
    let version = replica.publish(&policies, std::slice::from_ref(&a)).groups[0].target.version.clone();
    let proxy = world.proxy(&a);
    acknowledged(&replica, &a, &version).await;
    for step in [Step::Prepare, Step::Promote, Step::Retire] {
        world.authority.advance(step).expect("a step of a rotation");
        let bundle = world.certificates.trust_bundle();
        let kept = world.state(&a).join("trust-bundle.pem");
        until("the proxy was told what to trust", || {
            std::fs::read_to_string(&kept).is_ok_and(|text| text == bundle)
        })
        .await;
        let next = world.replica(&format!("after {step:?}")).await;
        next.publish(&policies, std::slice::from_ref(&a));
        std::mem::replace(&mut replica, next).stop().await;
        acknowledged(&replica, &a, &version).await;
        connected_to(&proxy, &format!("after {step:?}")).await;
    }
    assert!(!world.certificates.trust_bundle().contains(world.ca.trim()), "the first CA is gone");
    proxy.drain().await;
    let before = replica.answer(&a).expect("known").since;
    let proxy = world.proxy(&a); // its settings still name the first CA
    until("it connects by what it kept", || {
        replica.answer(&a).is_some_and(|answer| answer.connected && before < answer.since)
    })
    .await;
    serves(&proxy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_with_another_ca_is_not_believed() {
    let (world, a) = (World::new().await, pod("a"));
    let (impostor, _authority) = certificates();
    let replica = Replica::start("impostor", &impostor).await;
    world.service.lead_to(Some(&replica));
    replica.publish(&[policy("web", 1, &retry(1))], std::slice::from_ref(&a));
    let proxy = world.proxy(&a);
    let error = refusal(&proxy).await;
    assert!(error.contains("UnknownIssuer") || error.contains("BadSignature"), "{error}");
    assert!(replica.answer(&a).is_none(), "it never learns of the proxy");
    assert_eq!(proxy.control.snapshot().source, Source::Awaited);
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused_and_learn_nothing() {
    let world = World::new().await;
    let (a, gone) = (pod("a"), pod("gone"));
    let replica = world.replica("one").await;
    replica.publish(&[policy("web", 1, &retry(1))], std::slice::from_ref(&a));
    let other_uid = "shop/a/uid-of-an-earlier-pod".to_owned();
    for (what, token, reason) in [
        ("no token", None, "cannot read the token"),
        ("not a token", Some("guess".to_owned()), "the token is not valid"),
        ("wrong audience", Some(format!("other-audience/{}", token(&a))), "the token is not valid"),
        ("no such pod", Some(token(&gone)), "there is no pod 'shop/gone'"),
        ("an earlier pod of that name", Some(other_uid), "there is no pod 'shop/a'"),
    ] {
        let stranger = pod(what);
        let proxy = world.proxy_with_token(&stranger, token.as_deref());
        let error = refusal(&proxy).await;
        assert!(error.contains(reason), "{what}: {error}");
        assert_eq!(proxy.control.snapshot().source, Source::Awaited, "{what}: it learned nothing");
        assert!(replica.hub.answers().is_empty(), "{what}: it is nobody");
        refuses(&proxy).await;
    }
}

/// Why the proxy's stream could not be opened.
async fn refusal(proxy: &RunningProxy) -> String {
    for _ in 0..1000 {
        let push = push(proxy).await;
        assert_eq!(push["connected"], false);
        if let Some(error) = push["lastError"].as_str() {
            return error.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no error was noted in ten seconds");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_gets_its_own_policy_and_no_other() {
    let world = World::new().await;
    let (a, b) = (pod("a"), pod("b"));
    let of = |name: &str, n: u32| {
        format!("subject: {{podSelector: {{matchLabels: {{app: {name}}}}}}}\n{}", retry(n))
    };
    let policies = [policy("for-a", 1, &of("a", 1)), policy("for-b", 1, &of("b", 2))];
    let replica = world.replica("one").await;
    let resolved = replica.publish(&policies, &[a.clone(), b.clone()]);
    let version = |pod: &Arc<PodFacts>| {
        let group = resolved.groups.iter().find(|group| group.pods.contains(pod)).expect("a group");
        group.target.version.clone()
    };
    let (proxy_a, proxy_b) = (world.proxy(&a), world.proxy(&b));
    acknowledged(&replica, &a, &version(&a)).await;
    acknowledged(&replica, &b, &version(&b)).await;
    assert_eq!((retries(&proxy_a), retries(&proxy_b)), (1, 2));
    let origins = |proxy: &RunningProxy| {
        let origins = proxy.control.snapshot().update().policy.origins;
        origins.into_values().map(|origin| origin.policy).collect::<BTreeSet<_>>()
    };
    assert_eq!(origins(&proxy_a), BTreeSet::from(["for-a".to_owned()]));
    assert_eq!(origins(&proxy_b), BTreeSet::from(["for-b".to_owned()]));

    // A proxy that holds b's token is b: the stream of b's own proxy ends, and a's is not touched.
    let thief = pod("thief");
    let stolen = world.proxy_with_token(&thief, Some(&token(&b)));
    until("the thief has what the token is worth", || retries(&stolen) == 2).await;
    assert_eq!(retries(&proxy_a), 1);
}

fn annotated(pod: &Arc<PodFacts>, value: &str) -> Arc<PodFacts> {
    Arc::new(PodFacts { drain: PodDrain::parse(value).map(Box::new), ..(**pod).clone() })
}

/// How many workers take new requests, once what was pushed is followed.
fn usable(proxy: &RunningProxy) -> usize {
    let now = std::time::Instant::now();
    drain::follow(&proxy.control, now);
    proxy.control.snapshot().workers.iter().filter(|worker| worker.usable(now)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_drains_the_workers_of_its_pod_and_survives_the_operator() {
    let (world, a, b) = (World::new().await, pod("a"), pod("b"));
    let replica = world.replica("one").await;
    let policies = [policy("web", 1, &retry(1))];
    let publish = |a: Arc<PodFacts>| {
        let resolved = replica.publish(&policies, &[a, b.clone()]);
        let of = |name: &str| {
            let has = |pod: &Arc<PodFacts>| pod.name == name;
            let group = resolved.groups.iter().find(|group| group.pods.iter().any(has));
            group.expect("a group").target.version.clone()
        };
        [of("a"), of("b")]
    };
    let [before, of_b] = publish(a.clone());
    let (proxy_a, proxy_b) = (world.proxy(&a), world.proxy(&b));
    acknowledged(&replica, &a, &before).await;
    acknowledged(&replica, &b, &of_b).await;
    assert_eq!((usable(&proxy_a), usable(&proxy_b)), (1, 1));
    let sent = replica.metrics.push_updates.get();

    let [drained, same] = publish(annotated(&a, "worker-1"));
    acknowledged(&replica, &a, &drained).await;
    assert_eq!((usable(&proxy_a), usable(&proxy_b)), (0, 1));
    assert_eq!((same, replica.metrics.push_updates.get()), (of_b, sent + 1), "b is told nothing");
    assert_eq!(client::send(proxy_a.data, get("/", &[])).await.expect("an answer").status, 503);
    serves(&proxy_b).await;

    let [misspelt, _] = publish(annotated(&a, "worker-9"));
    acknowledged(&replica, &a, &misspelt).await;
    assert_eq!(usable(&proxy_a), 1);
    let warnings = proxy_a.control.snapshot().warnings.clone();
    assert_eq!(warnings[0].path, "metadata.annotations[outrigger.dev/drain]");

    let [all, _] = publish(annotated(&a, "all"));
    acknowledged(&replica, &a, &all).await;
    let kept = world.state(&a).join("last-good.json");
    until("it is on disk", || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains(&*all))).await;
    replica.stop().await;
    world.service.lead_to(None);
    proxy_a.drain().await;
    let again = world.proxy(&a);
    until("the last good policy is in force", || again.control.snapshot().source == Source::Disk).await;
    assert_eq!(usable(&again), 0, "the operator is away, and the pod is drained still");

    let two = world.replica("two").await;
    let resolved = two.publish(&policies, std::slice::from_ref(&a));
    acknowledged(&two, &a, &resolved.groups[0].target.version).await;
    assert_eq!(usable(&again), 1, "the annotation is gone");
    serves(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_changes_under_requests_without_one_that_fails() {
    let (world, a) = (World::new().await, pod("a"));
    let replica = world.replica("one").await;
    replica.publish(&[policy("web", 1, &retry(1))], std::slice::from_ref(&a));
    let proxy = Arc::new(world.proxy(&a));
    let (served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (data, served, stop) = (proxy.data, served.clone(), stop.clone());
            tokio::spawn(async move {
                let mut connection = client::Connection::open(data).await.expect("connects");
                while !stop.load(Relaxed) {
                    let answer = connection.send(get("/", &[])).await.expect("an answer");
                    assert_eq!(answer.status, 200);
                    served.fetch_add(1, Relaxed);
                }
            })
        })
        .collect();
    let strategies = ["RoundRobin", "LeastRequest", "Random"];
    for generation in 2..50 {
        let strategy = strategies[generation % 3];
        let spec = format!("loadBalancer: {{type: {strategy}}}\nsessionPersistence: {{}}");
        let resolved = replica.publish(&[policy("web", generation as i64, &spec)], std::slice::from_ref(&a));
        acknowledged(&replica, &a, &resolved.groups[0].target.version).await;
        let before = served.load(Relaxed);
        until("requests are served under it", || before + 4 < served.load(Relaxed)).await;
    }
    stop.store(true, Relaxed);
    for client in clients {
        client.await.expect("no request failed");
    }
}
