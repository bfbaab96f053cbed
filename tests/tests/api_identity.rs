//! Who may open the push stream, judged by a real API server: a token for us, of a pod that is there, and no other.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use system_tests::cluster::{
    SYSTEM, apply, install_chart, kubectl, kubectl_json, node_file, own_node, run, spawn, wait,
};
use system_tests::push::PushClient;
use system_tests::tools::Started;

/// The namespace of the pods of this test.
const PODS: &str = "api-identity";
const AUDIENCE: &str = "outrigger.dev";
const SERVER: &str = "outrigger-push.outrigger-system.svc";
const SOON: Duration = Duration::from_secs(60);

/// The push Service, reached through the API server.
struct Push {
    address: SocketAddr,
    trusted: String,
    _forward: Option<Started>,
}

impl Push {
    fn reach() -> Self {
        let (address, forward) = if own_node() { (Self::service(), None) } else { Self::forwarded() };
        let webhooks = kubectl_json(&["get", "mutatingwebhookconfiguration", "outrigger"]);
        let bundle =
            webhooks["webhooks"][0]["clientConfig"]["caBundle"].as_str().expect("the CA's certificates");
        let trusted = String::from_utf8(STANDARD.decode(bundle).expect("base64")).expect("PEM");
        Self { address, trusted, _forward: forward }
    }

    /// The Service's own address: the machine has a route to it.
    fn service() -> SocketAddr {
        let service = kubectl_json(&["get", "service", "outrigger-push", "-n", SYSTEM]);
        let (address, port) = (&service["spec"]["clusterIP"], &service["spec"]["ports"][0]["port"]);
        format!("{}:{port}", address.as_str().expect("an address")).parse().expect("an address")
    }

    /// A port of this machine that leads there.
    fn forwarded() -> (SocketAddr, Option<Started>) {
        let mut forward =
            spawn("kubectl", &["port-forward", "-n", SYSTEM, "service/outrigger-push", ":8443"]);
        let mut line = String::new();
        let stdout = forward.0.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where"); // Forwarding from 127.0.0.1:1234 -> 8443
        let address = line.split_whitespace().nth(2).and_then(|address| address.parse().ok());
        (address.unwrap_or_else(|| panic!("no address: {line}")), Some(forward))
    }

    /// What the holder of this token is told: a status, and the first lines of the stream or the refusal.
    async fn hello(&self, token: Option<&str>) -> (u16, String) {
        let mut client =
            PushClient::connect(self.address, SERVER, &self.trusted).await.expect("it is the operator");
        let (status, text) = client.hello(token, 2).await.expect("an answer");
        (status.as_u16(), text)
    }
}

/// Pods that never run, but are there, with the label that says that they have a proxy.
fn pods(names: &[&str]) {
    let _ = run("kubectl", &["delete", "namespace", PODS, "--ignore-not-found", "--wait"]);
    kubectl(&["create", "namespace", PODS]);
    wait("the namespace has its account", SOON, || {
        run("kubectl", &["get", "serviceaccount", "default", "-n", PODS]).ok()
    });
    for name in names {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": PODS, "labels": {"app": name, "outrigger.dev/injected": "true"}},
            "spec": {"nodeSelector": {"nowhere": "at-all"}, "containers": [{"name": "a", "image": "localhost/none"}]},
        });
        apply(&pod.to_string()).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// A token that is bound to a pod.
fn token(pod: &str, audience: &str) -> String {
    let bound = ["--bound-object-kind", "Pod", "--bound-object-name", pod];
    let how = ["create", "token", "default", "-n", PODS, "--audience", audience, "--duration", "10m"];
    kubectl(&[&how[..], &bound].concat()).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_token_for_us_of_a_pod_that_is_there_opens_a_stream() {
    install_chart();
    pods(&["mine", "other", "doomed"]);
    let policies = ["mine", "other"].map(|name| {
        let subject = format!("{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {PODS}}}}}, podSelector: {{matchLabels: {{app: {name}}}}}}}");
        format!("apiVersion: outrigger.dev/v1alpha1\nkind: ClusterPolicy\nmetadata: {{name: api-for-{name}}}\nspec: {{subject: {subject}, retry: {{numRetries: 3}}}}\n")
    });
    apply(&policies.join("---\n")).expect("valid");
    let push = Push::reach();

    let (status, text) = push.hello(Some(&token("mine", AUDIENCE))).await;
    assert_eq!(status, 200, "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((&lines[0]["type"], &lines[1]["type"]), (&json!("welcome"), &json!("update")));
    assert!(
        text.contains("api-for-mine") && !text.contains("api-for-other"),
        "its own policy and no other: {text}"
    );

    let doomed = token("doomed", AUDIENCE);
    assert_eq!(push.hello(Some(&doomed)).await.0, 200, "while its pod is there");
    kubectl(&["delete", "pod", "doomed", "-n", PODS, "--grace-period=0", "--force"]);
    let account = ["create", "token", "default", "-n", PODS, "--audience", AUDIENCE];
    let unlabelled = "other";
    kubectl(&["label", "pod", unlabelled, "-n", PODS, "outrigger.dev/injected-"]);
    wait("the operator sees that the pods are gone", SOON, || {
        let policy = kubectl_json(&["get", "orp", "api-for-other"]);
        (policy["status"]["proxies"]["matched"] == 0).then_some(())
    });

    for (what, token, reason) in [
        ("no token", None, "a ServiceAccount token is needed"),
        ("no token of anybody", Some("guess".to_owned()), "the token is not valid"),
        (
            "a token for the API server",
            Some(token("mine", "https://kubernetes.default.svc")),
            "the token is not for the audience",
        ),
        ("a token for somebody else", Some(token("mine", "vault")), "the token is not for the audience"),
        ("a token of no pod", Some(kubectl(&account).trim().to_owned()), "the token is not bound to a pod"),
        ("a token of a pod that is gone", Some(doomed), "there is no pod"),
        ("a token of a pod without a proxy", Some(token(unlabelled, AUDIENCE)), "there is no pod"),
    ] {
        let (status, text) = push.hello(token.as_deref()).await;
        assert_eq!(status, 401, "{what}: {text}");
        // A token of a pod that is gone is refused by the operator's own watch, or by the API server before that.
        assert!(
            text.contains(reason) || what.contains("gone") && text.contains("not valid"),
            "{what}: {text}"
        );
    }

    match expired() {
        Some(expired) => {
            let (status, text) = push.hello(Some(&expired)).await;
            assert_eq!((status, text.contains("the token is not valid")), (401, true), "expired: {text}");
        }
        None => println!("    left out: only the cluster's own key can make a token that has expired"),
    }
    assert_eq!(push.hello(Some(&token("mine", AUDIENCE))).await.0, 200, "the right one still opens a stream");

    let mut client = PushClient::connect(push.address, SERVER, &push.trusted).await.expect("connects");
    let mine = token("mine", AUDIENCE);
    let (status, text) =
        client.send("GET", "/push/v1/acks", Some(&mine), (Vec::new(), 1)).await.expect("an answer");
    assert_eq!(status, 403, "what all proxies answered is for the operator alone: {text}");

    kubectl(&["delete", "orp", "api-for-mine", "api-for-other"]);
    kubectl(&["delete", "namespace", PODS, "--wait=false"]);
}

/// The token of the pod `mine` as it was an hour ago, signed with the cluster's key.
fn expired() -> Option<String> {
    let key = node_file("pki/sa.key")?;
    let mine = token("mine", AUDIENCE);
    let (head, rest) = mine.split_once('.').expect("three parts");
    let claims = URL_SAFE_NO_PAD.decode(rest.split('.').next().expect("claims")).expect("base64");
    let mut claims: Value = serde_json::from_slice(&claims).expect("JSON");
    for time in ["iat", "nbf", "exp"] {
        claims[time] = (claims[time].as_i64().expect("a time") - 7200).into();
    }
    let signed = format!("{head}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(key).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = openssl.spawn().expect("openssl runs");
    child.stdin.take().expect("piped").write_all(signed.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "openssl signs");
    Some(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(output.stdout)))
}
