//! The server as a proxy meets it: TLS, HTTP/2, lines. Only the API server is played by a table of tokens.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use hyper::client::conn::http2::SendRequest;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use outrigger_policy::Violation;
use outrigger_policy::siblings::Certificate;
use outrigger_policy::wire::{AUDIENCE, FromOperator, Update};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;

use super::*;
use crate::controller::observe::{Observed, PodFacts, World};
use crate::controller::resolve::Resolved;
use crate::controller::workload::Place;
use crate::metrics::Metrics;
use crate::push::fleet::Line;
use crate::push::identity::{Claims, Review};
use crate::push::tests::{pod, resolved};

const NAME: &str = "outrigger-push.outrigger.svc";

/// Tokens by what they say: `POD` for a pod of the same name, `operator` for a replica.
struct Table;

impl Review for Table {
    fn claims(&self, token: &str) -> Option<Claims> {
        let (namespace, account, pod) = match token {
            "operator" => ("outrigger", "outrigger-operator", None),
            "bad" => return None,
            pod => ("shop", "web", Some((pod.to_owned(), format!("uid-{pod}")))),
        };
        let (namespace, service_account) = (namespace.to_owned(), account.to_owned());
        Some(Claims { for_us: true, expires: i64::MAX, namespace, service_account, pod })
    }

    fn review(&self, token: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>> {
        let token = token.to_owned();
        Box::pin(async move {
            let status = match token.as_str() {
                "bad" => json!({"authenticated": false}),
                "operator" => json!({
                    "authenticated": true, "audiences": [AUDIENCE],
                    "user": {"username": "system:serviceaccount:outrigger:outrigger-operator"},
                }),
                pod => json!({
                    "authenticated": true, "audiences": [AUDIENCE],
                    "user": {"username": "system:serviceaccount:shop:web", "extra": {
                        "authentication.kubernetes.io/pod-name": [pod],
                        "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")],
                    }},
                }),
            };
            Ok(serde_json::from_value(status).expect("a status"))
        })
    }
}

struct Operator {
    hub: Arc<Hub>,
    observed: Observed,
    address: SocketAddr,
    trust: String,
    stop: watch::Sender<bool>,
}

async fn operator() -> Operator {
    let metrics = Arc::new(Metrics::new());
    let (hub, observed) = (Hub::new(metrics.clone()), Observed::empty());
    let certificates = Certificates::in_memory(&[NAME.to_owned()]).expect("certificates");
    let trust = certificates.trust_bundle();
    let server = Server {
        hub: hub.clone(),
        identity: Identity::new(Table, observed.clone(), metrics),
        certificates,
        replica: "replica-1".to_owned(),
        operator: ("outrigger".to_owned(), "outrigger-operator".to_owned()),
        connections: 8,
        certified: Certified::default(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(serve(listener, Arc::new(server), stopping));
    Operator { hub, observed, address, trust, stop }
}

impl Operator {
    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.trust.as_bytes()) {
            roots.add(certificate.expect("PEM")).expect("a CA");
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.expect("connects");
        let name = ServerName::try_from(NAME).expect("a name");
        let stream =
            tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.expect("TLS");
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .expect("h2");
        tokio::spawn(connection);
        sender
    }

    /// These pods are there, and are to have this version.
    fn publish(&self, version: &str, pods: &[&Arc<PodFacts>]) {
        let world = World { pods: pods.iter().map(|pod| (*pod).clone()).collect(), ..World::default() };
        self.observed.replace(world);
        let resolved: Resolved = resolved(version, pods);
        self.hub.publish(self.hub.begin(), &resolved);
    }
}

fn request(method: Method, path: &str, token: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(format!("https://{NAME}{path}"))
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .body(Full::from(body.into()))
        .expect("a request")
}

fn hello(token: &str, holds: Option<&str>) -> Request<Full<Bytes>> {
    let hello = Hello {
        protocol: PROTOCOL,
        proxy_version: "0.1.0".to_owned(),
        holds: holds.map(ToOwned::to_owned),
        siblings: None,
    };
    request(Method::POST, STREAM_PATH, token, serde_json::to_vec(&hello).expect("JSON"))
}

/// The lines of a response, one by one.
struct Lines(Incoming, BytesMut);

impl Lines {
    async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        let line = timeout(Duration::from_secs(5), async {
            loop {
                if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                    return Some(self.1.split_to(end + 1));
                }
                let frame = self.0.frame().await?.expect("a frame");
                self.1.extend_from_slice(&frame.into_data().expect("data"));
            }
        });
        let line = line.await.expect("no line in time")?;
        Some(serde_json::from_slice(&line).expect("a message"))
    }

    async fn update(&mut self) -> Update {
        match self.next().await {
            Some(FromOperator::Update(update)) => *update,
            other => panic!("not an update: {other:?}"),
        }
    }
}

async fn open(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> Lines {
    let response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.status(), StatusCode::OK);
    Lines(response.into_body(), BytesMut::new())
}

async fn refused(sender: &mut SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> (u16, String) {
    let response = sender.send_request(request).await.expect("a response");
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

async fn answer(sender: &mut SendRequest<Full<Bytes>>, version: &str, violations: Vec<Violation>) -> u16 {
    let ack = serde_json::to_vec(&Ack { version: version.to_owned(), violations }).expect("JSON");
    refused(sender, request(Method::POST, ACK_PATH, "a", ack)).await.0
}

#[tokio::test]
async fn a_proxy_is_welcomed_updated_and_heard() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut sender = operator.connect().await;
    let mut lines = open(&mut sender, hello("a", None)).await;
    match lines.next().await.expect("a line") {
        FromOperator::Welcome { replica, heartbeat_seconds, trust_bundle } => {
            assert_eq!((replica.as_str(), heartbeat_seconds), ("replica-1", 10));
            assert_eq!(trust_bundle, operator.trust);
        }
        other => panic!("not a welcome: {other:?}"),
    }
    assert_eq!(lines.update().await.version, "1");
    assert_eq!(answer(&mut sender, "1", vec![]).await, 204);
    assert_eq!(operator.hub.answers()[&a.uid].version.as_deref(), Some("1"));
    operator.publish("2", &[&a]);
    assert_eq!(lines.update().await.version, "2");
    let violation = Violation { path: "spec.x".into(), reason: "no".into() };
    assert_eq!(answer(&mut sender, "2", vec![violation]).await, 204);
    assert_eq!(operator.hub.answers()[&a.uid].rejection.as_deref(), Some("spec.x: no"));
    assert_eq!(answer(&mut sender, "1", vec![]).await, 204, "too late is no error");
    assert_eq!(operator.hub.answers()[&a.uid].version.as_deref(), Some("2"));
}

#[tokio::test]
async fn a_proxy_that_has_it_is_not_sent_it_and_a_stream_ends_with_its_pod() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut sender = operator.connect().await;
    let mut lines = open(&mut sender, hello("a", Some("1"))).await;
    assert!(matches!(lines.next().await, Some(FromOperator::Welcome { .. })));
    operator.publish("2", &[&a]);
    assert_eq!(lines.update().await.version, "2");
    operator.publish("2", &[]);
    assert!(matches!(lines.next().await, Some(FromOperator::Goaway { .. })));
    assert!(lines.next::<FromOperator>().await.is_none());
}

#[tokio::test]
async fn goodbye_is_said_to_all() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut sender = operator.connect().await;
    let mut lines = open(&mut sender, hello("a", Some("1"))).await;
    assert!(matches!(lines.next().await, Some(FromOperator::Welcome { .. })));
    operator.stop.send_replace(true);
    assert!(matches!(lines.next().await, Some(FromOperator::Goaway { .. })));
    assert!(lines.next::<FromOperator>().await.is_none());
}

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut sender = operator.connect().await;
    let (status, reason) = refused(&mut sender, hello("bad", None)).await;
    assert_eq!((status, reason.as_str()), (401, "the token is not valid: it is no ServiceAccount token\n"));
    let (status, reason) = refused(&mut sender, hello("b", None)).await;
    assert_eq!(status, 401);
    assert!(reason.starts_with("there is no pod 'shop/b'"), "{reason}");
    assert_eq!(refused(&mut sender, hello("operator", None)).await.0, 401, "a replica is no proxy");
    assert_eq!(
        refused(&mut sender, request(Method::GET, ACKS_PATH, "a", "")).await.0,
        403,
        "nor the other way"
    );
}

#[tokio::test]
async fn what_is_not_a_message_is_refused() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut sender = operator.connect().await;
    assert_eq!(answer(&mut sender, "1", vec![]).await, 409, "no stream yet");
    let post = |path, body: Vec<u8>| request(Method::POST, path, "a", body);
    assert_eq!(refused(&mut sender, post(STREAM_PATH, b"{".to_vec())).await.0, 400);
    assert_eq!(refused(&mut sender, post(STREAM_PATH, vec![b' '; BODY + 1])).await.0, 413);
    let newer = br#"{"protocol":2,"proxyVersion":"9"}"#.to_vec();
    assert_eq!(refused(&mut sender, post(STREAM_PATH, newer)).await.0, 426);
    assert_eq!(refused(&mut sender, post("/other", vec![])).await.0, 404);
    assert_eq!(refused(&mut sender, request(Method::GET, STREAM_PATH, "a", "")).await.0, 405);
}

#[tokio::test]
async fn the_lease_holder_hears_every_answer() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut proxy = operator.connect().await;
    let mut stream = open(&mut proxy, hello("a", None)).await;
    assert!(matches!(stream.next().await, Some(FromOperator::Welcome { .. })));
    stream.update().await;
    let mut leader = operator.connect().await;
    let mut lines = open(&mut leader, request(Method::GET, ACKS_PATH, "operator", "")).await;
    let mut known = HashMap::new();
    answer(&mut proxy, "1", vec![]).await;
    while known.get("uid-a") != Some(&Some("1".into())) {
        if let Some(Line::Answer { pod, answer }) = lines.next().await {
            known.insert(pod.to_string(), answer.version);
        }
    }
}

#[tokio::test]
async fn a_report_is_taken_on_a_stream_and_handed_to_the_lease_holder() {
    let (operator, a) = (operator().await, pod("a"));
    operator.publish("1", &[&a]);
    let mut proxy = operator.connect().await;
    let report = Report { version: "1".to_owned(), ..Report::default() };
    let body = serde_json::to_vec(&report).expect("JSON");
    let post = |body: Vec<u8>| request(Method::POST, REPORT_PATH, "a", body);
    assert_eq!(refused(&mut proxy, post(body.clone())).await.0, 409, "no stream yet");
    let mut stream = open(&mut proxy, hello("a", None)).await;
    assert!(matches!(stream.next().await, Some(FromOperator::Welcome { .. })));
    assert_eq!(refused(&mut proxy, request(Method::POST, REPORT_PATH, "bad", body.clone())).await.0, 401);
    assert_eq!(refused(&mut proxy, post(vec![b' '; BODY + 1])).await.0, 413);
    assert_eq!(refused(&mut proxy, post(b"{}".to_vec())).await.0, 400);
    let mut leader = operator.connect().await;
    let mut lines = open(&mut leader, request(Method::GET, ACKS_PATH, "operator", "")).await;
    assert_eq!(refused(&mut proxy, post(body)).await.0, 204);
    let heard = loop {
        if let Some(Line::Answer { answer, .. }) = lines.next().await
            && let Some(heard) = answer.report
        {
            break heard;
        }
    };
    assert_eq!(*heard, report);
    drop((stream, proxy));
    let kept = operator.hub.answers()[&a.uid].report.clone();
    assert_eq!(kept.as_deref(), Some(&report), "it holds when the stream has ended");
}

fn signing_request() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    let csr = request.pem().expect("PEM");
    serde_json::to_vec(&CertificateRequest { csr }).expect("JSON")
}

#[tokio::test]
async fn a_proxy_is_certified_as_what_its_token_says() {
    let operator = operator().await;
    let mut placed = (*pod("a")).clone();
    placed.place = Some(Place {
        workload: "w".to_owned(),
        ip: None,
        port: 8001,
        node: String::new(),
        ready: false,
        workers: vec![],
    });
    operator.publish("1", &[&Arc::new(placed), &pod("b")]);
    let mut sender = operator.connect().await;
    let ask = |token, body| request(Method::POST, CERTIFY_PATH, token, body);
    let (status, answer) = refused(&mut sender, ask("a", signing_request())).await;
    assert_eq!(status, 200, "{answer}");
    let certificate: Certificate = serde_json::from_str(&answer).expect("a certificate");
    assert_eq!((certificate.workload.as_str(), certificate.expires_after_seconds), ("w", 24 * 3600));
    assert_eq!(certificate.renew_after_seconds, certificate.expires_after_seconds * 2 / 3);
    let der = CertificateDer::from_pem_slice(certificate.certificate.as_bytes()).expect("PEM");
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("DER");
    let names = format!("{:?}", parsed.subject_alternative_name().expect("valid").expect("there").value);
    assert!(
        names.contains("\"uid-a.w.siblings.outrigger.dev\"") && names.contains("\"w.siblings."),
        "{names}"
    );

    assert_eq!(refused(&mut sender, ask("b", signing_request())).await.0, 409, "no workload");
    assert_eq!(refused(&mut sender, ask("bad", signing_request())).await.0, 401);
    let garbage = serde_json::to_vec(&CertificateRequest { csr: "garbage".to_owned() }).expect("JSON");
    let (status, reason) = refused(&mut sender, ask("a", garbage)).await;
    assert_eq!(status, 400, "{reason}");
}
