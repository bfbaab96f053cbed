//! Requests from pod to pod: real proxies with certificates of one CA, and those who have none.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use outrigger_policy::siblings::{Certificate, instance_name};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use system_tests::client::{self, Answer, Connection, get, request};
use system_tests::siblings::{Beside, Operator, Pod};
use system_tests::workers::{self, Manner, Worker};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const WORKLOAD: &str = "{loadBalancer: {scope: Workload}}";
const SENT: &str = "outrigger_sibling_requests_sent_total";
const SERVED: &str = "outrigger_sibling_requests_served_total";

async fn started(names: &[&str]) -> Vec<Worker> {
    let mut started = Vec::new();
    for name in names {
        started.push(workers::start(name, Manner::default()).await);
    }
    started
}

/// A proxy of each pod over the workers of these names.
struct Pods {
    operator: Operator,
    proxies: Vec<Beside>,
    workers: Vec<Vec<Worker>>,
}

impl Pods {
    async fn start(names: &[(&str, &[&str])]) -> Self {
        let operator = Operator::start().await;
        let (mut proxies, mut all) = (Vec::new(), Vec::new());
        for (pod, names) in names {
            let workers = started(names).await;
            let addresses: Vec<_> = workers.iter().map(|worker| worker.address).collect();
            proxies.push(Beside::start(&operator, pod, &addresses));
            all.push(workers);
        }
        Self { operator, proxies, workers: all }
    }

    /// Puts a policy in force on all, and waits until each has a certificate to show.
    async fn put(&self, spec: &str, change: impl Fn(usize, Pod) -> Pod) {
        let pods = self.proxies.iter().enumerate().map(|(i, proxy)| change(i, Pod::of(proxy)));
        self.operator.put(spec, &pods.collect::<Vec<_>>());
        for proxy in &self.proxies {
            proxy.is_certified().await;
        }
    }

    async fn stop_workers(&mut self, pod: usize) {
        for worker in self.workers[pod].drain(..) {
            worker.stop().await;
        }
    }
}

fn same(_: usize, pod: Pod) -> Pod {
    pod
}

async fn shares(proxy: &Beside, requests: usize) -> BTreeMap<String, usize> {
    let mut connection = Connection::open(proxy.data).await.expect("connects");
    let mut shares = BTreeMap::new();
    for i in 0..requests {
        let answer = connection.send(get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, 200, "{i}: {answer:?}");
        assert!(answer.header("outrigger-unserved").is_none());
        *shares.entry(answer.worker().to_owned()).or_default() += 1;
    }
    shares
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_workers_are_down_is_served_by_its_sibling() {
    let mut pods = Pods::start(&[("a", &["a1", "a2", "a3"]), ("b", &["b1", "b2"])]).await;
    pods.put(WORKLOAD, same).await;
    pods.proxies[0].reaches(&["b"]).await;
    let before = shares(&pods.proxies[0], 60).await;
    assert_eq!(before.values().copied().collect::<Vec<_>>(), [20, 20, 20], "local first: {before:?}");
    assert_eq!(pods.proxies[0].counter(SENT).await, 0);

    pods.stop_workers(0).await; // and no breaker, no health check says so
    let after = shares(&pods.proxies[0], 200).await;
    assert_eq!(after.keys().collect::<Vec<_>>(), ["b1", "b2"]);
    assert_eq!(after.values().sum::<usize>(), 200, "none failed");
    assert_eq!(pods.proxies[0].counter(SENT).await, 200);
    assert_eq!(pods.proxies[1].counter(SERVED).await, 200);
    let connects = pods.proxies[1].counter("outrigger_connections_accepted_total").await;
    assert!(connects <= 2, "one connection for each thread of the sibling, used again: {connects}");
    let echoed = client::send(pods.proxies[0].data, request("POST", "/echo", &[], "body")).await;
    assert_eq!(echoed.expect("an answer").text(), "body");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_goes_round_in_a_circle() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"]), ("c", &["c1"])]).await;
    pods.put(WORKLOAD, same).await;
    pods.proxies[0].reaches(&["b", "c"]).await;
    for pod in 0..3 {
        pods.stop_workers(pod).await;
    }
    // The first asks both; the next finds them left alone, and hears of its own worker.
    for _ in 0..2 {
        let answer = client::send(pods.proxies[0].data, get("/", &[])).await.expect("an answer");
        assert_eq!(answer.status, 503, "{answer:?}");
        assert!(answer.header("outrigger-unserved").is_none(), "not for clients");
    }
    let mut served = Vec::new();
    for proxy in &pods.proxies {
        served.push(proxy.counter(SERVED).await);
    }
    assert_eq!(served[0], 0, "nobody sent it back");
    assert!(served[1] <= 1 && served[2] <= 1, "each was asked once, and then left alone: {served:?}");
    assert_eq!(served[1] + served[2], pods.proxies[0].counter(SENT).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sibling_without_workers_passes_the_request_by() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"]), ("c", &["c1"])]).await;
    pods.put(WORKLOAD, same).await;
    pods.proxies[0].reaches(&["b", "c"]).await;
    pods.stop_workers(0).await;
    pods.stop_workers(1).await; // what the operator does not know yet
    let shares = shares(&pods.proxies[0], 50).await;
    assert_eq!(shares.into_iter().collect::<Vec<_>>(), [(String::from("c1"), 50)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_hold_whichever_pod_is_reached() {
    let pods = Pods::start(&[("a", &["a1", "a2"]), ("b", &["b1", "b2"])]).await;
    pods.put("{loadBalancer: {scope: Workload}, sessionPersistence: {}}", same).await;
    let [a, b] = &pods.proxies[..] else { panic!("two") };
    a.reaches(&["b"]).await;
    b.reaches(&["a"]).await;
    for from in [a, b] {
        for _ in 0..4 {
            let first = client::send(from.data, get("/", &[])).await.expect("an answer");
            let cookie = first.cookie().expect("a session begins");
            for to in [a, b, a, b] {
                let answer =
                    client::send(to.data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
                assert_eq!(answer.worker(), first.worker());
                assert_eq!(answer.cookie(), None, "the session goes on as it is");
            }
        }
    }
    assert_eq!(a.counter(SENT).await, 8);
    assert_eq!(b.counter(SENT).await, 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_pod_is_gone_is_pinned_anew() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"])]).await;
    pods.put("{loadBalancer: {scope: Workload}, sessionPersistence: {}}", same).await;
    pods.proxies[0].reaches(&["b"]).await;
    let cookie = client::send(pods.proxies[0].data, get("/", &[])).await.expect("an answer").cookie();
    let cookie = cookie.expect("a session begins");
    pods.stop_workers(0).await;
    let moved =
        client::send(pods.proxies[0].data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
    assert_eq!(moved.worker(), "b1");
    let cookie = moved.cookie().expect("the sibling pins it anew");
    let stays =
        client::send(pods.proxies[0].data, get("/", &[("cookie", &cookie)])).await.expect("an answer");
    assert_eq!((stays.worker(), stays.cookie()), ("b1", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_zone_comes_first() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"]), ("c", &["c1"])]).await;
    let zone = |i: usize| ["west", "east", "west"][i].to_owned();
    pods.put(WORKLOAD, |i, pod| Pod { zone: zone(i), ..pod }).await;
    pods.proxies[0].reaches(&["c", "b"]).await;
    pods.stop_workers(0).await;
    assert_eq!(shares(&pods.proxies[0], 40).await.into_keys().collect::<Vec<_>>(), ["c1"]);
    pods.put(WORKLOAD, |i, pod| Pod { zone: zone(i), ready: i != 2, ..pod }).await;
    pods.proxies[0].reaches(&["b"]).await;
    assert_eq!(shares(&pods.proxies[0], 40).await.into_keys().collect::<Vec<_>>(), ["b1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_leave_a_pod_that_is_full() {
    let operator = Operator::start().await;
    let slow = Manner { delay: Duration::from_millis(300), ..Manner::default() };
    let (a1, b1) = (workers::start("a1", slow).await, workers::start("b1", slow).await);
    let a = Beside::start(&operator, "a", &[a1.address]);
    let b = Beside::start(&operator, "b", &[b1.address]);
    let spec = "{loadBalancer: {scope: Workload, spillover: {maxParallelRequests: 2}}}";
    operator.put(spec, &[Pod::of(&a), Pod::of(&b)]);
    a.reaches(&["b"]).await;
    b.is_certified().await;
    let all = (0..8).map(|_| client::send(a.data, get("/", &[])));
    let answers = futures_util::future::join_all(all).await;
    assert!(answers.iter().all(|answer| answer.as_ref().is_ok_and(|answer| answer.status == 200)));
    assert!((2..=3).contains(&a1.count()), "two threads may both see one place: {}", a1.count());
    assert_eq!(a1.count() + b1.count(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_hears_of_the_client_and_not_of_the_proxy_between() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"])]).await;
    pods.put(WORKLOAD, same).await;
    pods.proxies[0].reaches(&["b"]).await;
    let ask = || client::send(pods.proxies[0].data, get("/headers", &[("x-forwarded-for", "6.6.6.6")]));
    let about_client = |answer: &Answer| {
        let text = answer.text();
        let lines = text.lines().filter(|line| line.starts_with("x-forwarded") || line.starts_with("host"));
        let mut lines: Vec<_> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let direct = about_client(&ask().await.expect("an answer"));
    assert_eq!(direct.len(), 4, "{direct:?}");
    pods.stop_workers(0).await;
    let answer = client::send(pods.proxies[0].data, get("/headers", &[("x-forwarded-for", "6.6.6.6")])).await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.worker(), "b1");
    assert_eq!(about_client(&answer), direct);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_counted_once() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"])]).await;
    let spec = "{loadBalancer: {scope: Workload}, rateLimit: {rules: [{name: all, limit: {requests: 5, unit: Hour}}]}}";
    pods.put(spec, same).await;
    pods.proxies[0].reaches(&["b"]).await;
    pods.stop_workers(0).await;
    let mut statuses = Vec::new();
    for _ in 0..6 {
        statuses.push(
            client::send(pods.proxies[0].data, get("/", &[])).await.expect("an answer").status.as_u16(),
        );
    }
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429]);
    let direct = client::send(pods.proxies[1].data, get("/", &[])).await.expect("an answer");
    assert_eq!(direct.status, 200, "the sibling's own limit is untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_go_through_siblings_too() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"])]).await;
    pods.put(WORKLOAD, same).await;
    pods.proxies[0].reaches(&["b"]).await;
    pods.stop_workers(0).await;
    let mut stream = TcpStream::connect(pods.proxies[0].data).await.expect("connects");
    let handshake = "GET /chat HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).await.expect("sent");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    let head = String::from_utf8_lossy(&head).to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("x-worker: b1"), "{head}");
    stream.write_all(b"ping").await.expect("sent");
    let mut echo = [0; 4];
    stream.read_exact(&mut echo).await.expect("the worker echoes");
    assert_eq!(&echo, b"ping");
}

/// One request to a sibling port: its status and the worker that served it; `None` where there was no answer.
async fn knock(
    to: SocketAddr,
    name: &str,
    roots: &str,
    shown: Option<&(rcgen::KeyPair, Certificate)>,
) -> Option<(u16, String)> {
    let mut trusted = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        trusted.add(root.expect("PEM")).expect("a CA");
    }
    let builder = ClientConfig::builder().with_root_certificates(trusted);
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some((key, certificate)) => {
            let chain = CertificateDer::pem_slice_iter(certificate.certificate.as_bytes());
            let chain: Vec<_> = chain.map(|one| one.expect("PEM")).collect();
            let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    let stream = TcpStream::connect(to).await.expect("the port is open");
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    let request = Request::builder().uri("/").header("host", "test").body(Empty::<bytes::Bytes>::new());
    let response = sender.send_request(request.expect("a request")).await.ok()?;
    let worker = response.headers().get("x-worker").map(|name| name.to_str().expect("text").to_owned());
    let status = response.status().as_u16();
    let _ = response.into_body().collect().await;
    Some((status, worker.unwrap_or_default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_use_the_sibling_port() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"])]).await;
    pods.put(WORKLOAD, same).await;
    pods.proxies[0].reaches(&["b"]).await;
    pods.proxies[1].reaches(&["a"]).await;
    let (port, roots) = (pods.proxies[0].sibling, pods.operator.certificates.trust_bundle());
    let name = instance_name("w", "uid-a");
    let elsewhere = Operator::start().await;

    let plain = client::send(port, get("/", &[])).await;
    assert!(plain.is_err(), "no TLS: {plain:?}");
    assert_eq!(knock(port, &name, &roots, None).await, None, "no certificate");
    let other_ca = elsewhere.certify("w", "uid-b");
    assert_eq!(knock(port, &name, &roots, Some(&other_ca)).await, None, "another CA");
    let other_workload = pods.operator.certify("v", "uid-b");
    assert_eq!(knock(port, &name, &roots, Some(&other_workload)).await, None, "another workload");
    assert_eq!(pods.workers[0][0].count(), 0, "nothing got through");
    let refused = pods.proxies[0].counter("outrigger_sibling_connections_refused_total").await;
    assert_eq!(refused, 4);

    let sibling = pods.operator.certify("w", "uid-b");
    let served = knock(port, &name, &roots, Some(&sibling)).await;
    assert_eq!(served, Some((200, String::from("a1"))));
    assert_eq!(knock(port, &instance_name("w", "uid-b"), &roots, Some(&sibling)).await, None, "it is not b");

    // Whoever may use it is served by this pod or by nobody, though the sibling of this pod has workers.
    pods.stop_workers(0).await;
    let (status, _) = knock(port, &name, &roots, Some(&sibling)).await.expect("an answer");
    assert!(matches!(status, 502 | 503), "{status}");
    assert_eq!(pods.workers[1][0].count(), 0);
    assert_eq!(pods.proxies[0].counter(SENT).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_takes_pods_of_other_controllers_while_a_policy_joins_them() {
    let pods = Pods::start(&[("a", &["a1"]), ("b", &["b1"])]).await;
    let apart = |i: usize, pod: Pod| {
        let labels = [(String::from("app"), String::from("web"))].into();
        Pod { workload: ["w", "v"][i].to_owned(), labels, ..pod }
    };
    let [a, b] = &pods.proxies[..] else { panic!("two") };
    let roots = pods.operator.certificates.trust_bundle();
    let certificate = |workload| pods.operator.certify(workload, "uid-c");
    let (same, joined, other) = (certificate("w"), certificate("v"), certificate("u"));
    let knocks =
        async |shown| knock(a.sibling, &instance_name("w", "uid-a"), &roots, Some(shown)).await.is_some();

    let joins = "{subject: {podSelector: {matchLabels: {app: web}}}, loadBalancer: {scope: Workload},
        canary: {podLabel: version, version: v2, steps: [{weight: 20}]}}";
    pods.put(joins, apart).await;
    a.reaches(&["b"]).await;
    b.reaches(&["a"]).await;
    assert!(knocks(&same).await && knocks(&joined).await);
    assert!(!knocks(&other).await, "the policy does not join it");

    pods.put(WORKLOAD, apart).await;
    a.reaches(&[]).await;
    b.reaches(&[]).await;
    assert!(knocks(&same).await);
    assert!(!knocks(&joined).await, "no longer");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_took_a_siblings_address_gets_no_request() {
    let mut pods = Pods::start(&[("a", &["a1"]), ("x", &["x1"])]).await;
    // The list says that b is there; it is x, with a certificate of the same CA.
    let named_b = |i: usize, pod: Pod| if i == 1 { Pod { workload: String::from("v"), ..pod } } else { pod };
    let list = |pods: &Pods| {
        let mut list: Vec<_> =
            pods.proxies.iter().enumerate().map(|(i, proxy)| named_b(i, Pod::of(proxy))).collect();
        list.push(Pod { name: String::from("b"), ..Pod::of(&pods.proxies[1]) });
        list
    };
    pods.operator.put(WORKLOAD, &list(&pods));
    pods.proxies[1].is_certified().await;
    pods.proxies[0].reaches(&["b"]).await;
    pods.proxies[1].reaches(&[]).await;
    pods.stop_workers(0).await;
    let answer = client::send(pods.proxies[0].data, get("/", &[])).await.expect("an answer");
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(pods.workers[1][0].count(), 0);
}
