use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// The settings that the flags default to, with a fixed image.
pub(super) fn settings() -> inject::Settings {
    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        settings: inject::Settings,
    }
    let flags: Flags =
        clap::Parser::parse_from(["operator", "--proxy-image", "registry.example/outrigger-proxy:1"]);
    flags.settings
}

struct Running {
    address: SocketAddr,
    certificates: Certificates,
    metrics: Metrics,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
}

async fn start() -> Running {
    let certificates = Certificates::in_memory(&["outrigger-webhook.system.svc".to_owned()]).expect("made");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound");
    let (stop, stopped) = watch::channel(false);
    let metrics = Metrics::default();
    let webhook =
        Webhook { settings: settings(), certificates: certificates.clone(), metrics: metrics.clone() };
    let served = tokio::spawn(serve(listener, webhook, stopped));
    Running { address, certificates, metrics, stop, served }
}

/// A verified connection.
async fn verified(running: &Running) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(running.certificates.trust_bundle().as_bytes()) {
        roots.add(root.expect("PEM")).expect("a CA");
    }
    let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(running.address).await.expect("connected");
    let name = ServerName::try_from("outrigger-webhook.system.svc").expect("a name");
    tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("verified")
}

/// Sends bytes over a verified connection and reads until the server closes.
async fn exchange(running: &Running, request: &[u8]) -> String {
    let mut stream = verified(running).await;
    let mut answer = Vec::new();
    // A refused body may be answered before all of it was sent.
    let _ = stream.write_all(request).await;
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[tokio::test]
async fn both_webhooks_answer_over_tls_and_are_counted() {
    let running = start().await;
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": [
        {"name": "app", "ports": [{"name": "worker-a", "containerPort": 8081}]}]}});
    let answer = exchange(&running, &post("/inject", &admission::tests::review("CREATE", &pod))).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\"JSONPatch\""), "{answer}");
    let policy = json!({"apiVersion": "outrigger.dev/v1alpha1", "kind": "ClusterPolicy",
        "metadata": {"name": "web"}, "spec": {"priority": 9_999_999}});
    let answer = exchange(&running, &post("/validate", &admission::tests::review("UPDATE", &policy))).await;
    assert!(answer.contains("\"allowed\":false") && answer.contains("spec.priority: must be"), "{answer}");
    let counted =
        |webhook, outcome| running.metrics.requests.get_or_create(&Labels { webhook, outcome }).get();
    assert_eq!((counted("inject", "injected"), counted("validate", "refused")), (1, 1));
}

#[tokio::test]
async fn nonsense_is_refused_and_harms_nobody() {
    let running = start().await;
    for (request, status) in [
        (post("/inject", b"{"), "400"),
        (post("/validate", "[".repeat(1 << 20).as_bytes()), "400"),
        (post("/validate", &vec![b' '; BODY + 1]), "413"),
        (post("/elsewhere", b"{}"), "404"),
        (b"GET /inject HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_vec(), "405"),
    ] {
        let answer = exchange(&running, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
    }
    let _silent = TcpStream::connect(running.address).await.expect("connected");
    let answer =
        exchange(&running, &post("/validate", &admission::tests::review("DELETE", &Value::Null))).await;
    assert!(answer.contains("\"allowed\":true"), "{answer}");
}

#[tokio::test]
async fn told_to_stop_it_stops() {
    let running = start().await;
    running.stop.send(true).expect("listening");
    timeout(Duration::from_secs(5), running.served).await.expect("in time").expect("no panic");
    assert!(TcpStream::connect(running.address).await.is_err());
}

/// The API server's requests are answered whoever else holds connections, silent or with half a body.
#[tokio::test]
async fn nobody_can_hold_every_place() {
    let running = start().await;
    let mut held = Vec::new();
    for _ in 0..BOUNDS.connections + 20 {
        held.push(TcpStream::connect(running.address).await.expect("accepted"));
    }
    let request = "GET /inject HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(exchange(&running, request.as_bytes()).await.starts_with("HTTP/1.1 405"));
    drop(held);
}

#[tokio::test]
async fn what_bodies_take_is_bounded() {
    let running = start().await;
    let half =
        format!("POST /inject HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n{}", "x".repeat(BODY - 1));
    let mut held = Vec::new();
    for _ in 0..BOUNDS.bytes / BODY + 5 {
        let mut stream = verified(&running).await;
        let _ = stream.write_all(half.as_bytes()).await; // some have given way
        held.push(stream);
    }
    let mut ended = 0;
    for mut stream in held {
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 64])).await;
        ended += usize::from(read.is_ok_and(|read| !matches!(read, Ok(read) if 0 < read)));
    }
    assert!(4 <= ended, "{ended} gave way");
}
