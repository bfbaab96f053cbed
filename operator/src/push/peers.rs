//! The lease holder asks every other replica what its proxies answered, so that a status counts all of them.
//!
//! The other replicas are the operator's own pods. Each is reached by its address, and proves who it is with the
//! certificate of the Service; the lease holder proves who it is with its ServiceAccount token.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Duration, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::fleet::{Fleet, Line};
use super::server::ACKS_PATH;
use crate::certs::Certificates;

/// A replica's line comes at least every 10 seconds.
const SILENCE: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(500);
/// The longest line: one pod's answer and report.
const LINE: usize = 256 << 10;

/// How the other replicas are found and reached.
#[derive(Clone)]
pub struct Settings {
    /// The operator's namespace.
    pub namespace: String,
    /// The labels of the operator's pods.
    pub selector: String,
    /// This replica's pod.
    pub own_pod: String,
    /// The port of the push server.
    pub port: u16,
    /// The name in the replicas' certificate.
    pub server_name: String,
    /// This replica's token for the audience `outrigger.dev`.
    pub token_file: PathBuf,
    /// Whom to trust.
    pub certificates: Certificates,
}

/// Why a replica's answers could not be read.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("no connection: {0}")]
    Connect(#[from] std::io::Error),
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    #[error("no certificate authority in the trust bundle")]
    Bundle,
    #[error("'{0}' is no name of a server")]
    Name(String),
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    #[error("the token is not readable as a header")]
    Token(#[from] http::Error),
    #[error("refused: {0}")]
    Refused(http::StatusCode),
    #[error("not an answer: {0}")]
    Line(#[from] serde_json::Error),
    #[error("nothing was heard in time")]
    Silent,
}

/// The other replicas' pods and their addresses, kept up to date. Never returns.
pub async fn watch_replicas(
    client: Client,
    settings: Settings,
    replicas: watch::Sender<BTreeMap<String, IpAddr>>,
) {
    let pods: Api<Pod> = Api::namespaced(client, &settings.namespace);
    let config = watcher::Config::default().labels(&settings.selector);
    let mut events = std::pin::pin!(watcher(pods, config).default_backoff());
    let mut incoming = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => incoming.clear(),
            Ok(Event::InitApply(pod)) => incoming.extend(address(&pod, &settings.own_pod)),
            Ok(Event::InitDone) => {
                replicas.send_replace(std::mem::take(&mut incoming));
            }
            Ok(Event::Apply(pod)) => replicas.send_modify(|replicas| {
                replicas.remove(&pod.name_any());
                replicas.extend(address(&pod, &settings.own_pod));
            }),
            Ok(Event::Delete(pod)) => replicas.send_modify(|replicas| {
                replicas.remove(&pod.name_any());
            }),
            Err(error) => tracing::warn!(%error, "cannot watch the other replicas, trying again"),
        }
    }
}

/// A pod that runs, is not this one, and has an address.
fn address(pod: &Pod, own: &str) -> Option<(String, IpAddr)> {
    let name = pod.name_any();
    let status = pod.status.as_ref()?;
    let runs = status.phase.as_deref() == Some("Running") && pod.metadata.deletion_timestamp.is_none();
    (runs && name != own).then_some((name, status.pod_ip.as_ref()?.parse().ok()?))
}

/// While this replica holds the lease, reads every other replica's answers. Never returns.
pub async fn follow(
    settings: Settings,
    fleet: Arc<Fleet>,
    mut replicas: watch::Receiver<BTreeMap<String, IpAddr>>,
    mut leadership: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let mut followed: HashMap<(String, IpAddr), AbortHandle> = HashMap::new();
    loop {
        let leads = *leadership.borrow_and_update();
        let wanted: Vec<_> = replicas.borrow_and_update().clone().into_iter().filter(|_| leads).collect();
        followed.retain(|replica, task| {
            let stays = wanted.contains(replica);
            if !stays {
                task.abort();
                fleet.lose(&replica.0);
            }
            stays
        });
        for (name, address) in wanted {
            let key = (name.clone(), address);
            followed
                .entry(key)
                .or_insert_with(|| tasks.spawn(follow_one(settings.clone(), fleet.clone(), name, address)));
        }
        tokio::select! {
            Ok(()) = leadership.changed() => {}
            Ok(()) = replicas.changed() => {}
            Some(_) = tasks.join_next() => {}
            else => return,
        }
    }
}

async fn follow_one(settings: Settings, fleet: Arc<Fleet>, name: String, address: IpAddr) {
    let address = SocketAddr::new(address, settings.port);
    loop {
        let result = read(&settings, &fleet, &name, address).await;
        fleet.lose(&name);
        match result {
            Ok(()) => tracing::debug!(replica = name, "a replica ended its stream of answers"),
            Err(error) => {
                tracing::warn!(replica = name, %error, "cannot read a replica's answers, trying again")
            }
        }
        sleep(RETRY + RETRY.mul_f64(fastrand::f64())).await;
    }
}

/// Reads until the stream ends.
async fn read(settings: &Settings, fleet: &Fleet, name: &str, address: SocketAddr) -> Result<(), Error> {
    let token = tokio::fs::read_to_string(&settings.token_file).await?;
    let mut tls = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
        .with_root_certificates(roots(&settings.certificates.trust_bundle())?)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let server = ServerName::try_from(settings.server_name.clone())
        .map_err(|_| Error::Name(settings.server_name.clone()))?;
    let stream = timeout(CONNECT, async {
        TlsConnector::from(Arc::new(tls)).connect(server, TcpStream::connect(address).await?).await
    });
    let stream = stream.await.map_err(|_| Error::Silent)??;
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .handshake(TokioIo::new(stream))
        .await?;
    let request = Request::get(format!("https://{}{ACKS_PATH}", settings.server_name))
        .header(header::AUTHORIZATION, format!("Bearer {}", token.trim()))
        .body(Empty::<Bytes>::new())?;
    let answers = async {
        let response = timeout(SILENCE, sender.send_request(request)).await.map_err(|_| Error::Silent)??;
        if !response.status().is_success() {
            return Err(Error::Refused(response.status()));
        }
        tracing::info!(replica = name, "reading a replica's answers");
        learn(response.into_body(), fleet, name).await
    };
    tokio::select! {
        result = answers => result,
        result = connection => Ok(result?),
    }
}

async fn learn(mut body: hyper::body::Incoming, fleet: &Fleet, name: &str) -> Result<(), Error> {
    let mut buffer = BytesMut::new();
    while let Some(frame) = timeout(SILENCE, body.frame()).await.map_err(|_| Error::Silent)? {
        if let Ok(data) = frame?.into_data() {
            buffer.extend_from_slice(&data);
        }
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            if let Line::Answer { pod, answer } = serde_json::from_slice(&line)? {
                fleet.learn(name, pod, answer);
            }
        }
        if LINE < buffer.len() {
            return Err(Error::Silent); // a replica never sends such a line
        }
    }
    Ok(())
}

fn roots(bundle: &str) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()).flatten() {
        roots.add(certificate)?;
    }
    if roots.is_empty() { Err(Error::Bundle) } else { Ok(roots) }
}
