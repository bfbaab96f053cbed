//! The operator's push server, started in this process: everything of it but the API server, which a table of
//! tokens and a world that the test tells play.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use outrigger_operator::certs::{Certificates, InMemory};
use outrigger_operator::controller::observe::{Observed, Phase, PodFacts, PolicyFacts, World};
use outrigger_operator::controller::resolve::{Group, Resolved, Target, resolve};
use outrigger_operator::metrics::Metrics;
use outrigger_operator::push::identity::{Claims, Identity, Review};
use outrigger_operator::push::server::{Certified, Server, serve};
use outrigger_operator::push::{Answer, Hub};
use outrigger_operator::session_keys::Master;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The name that the replicas' certificates are for.
pub const NAME: &str = "localhost";

/// One replica.
pub struct Replica {
    /// Who is connected, and what they answered.
    pub hub: Arc<Hub>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// Where it listens.
    pub address: SocketAddr,
    observed: Observed,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Tokens as the API server judges them: `NAMESPACE/POD/UID` is the token of such a pod for proxies,
/// `other-audience/…` the same for somebody else, all else is no token.
struct Tokens;

impl Review for Tokens {
    fn claims(&self, token: &str) -> Option<Claims> {
        let parts: Vec<_> = token.trim_start_matches("other-audience/").split('/').collect();
        let [namespace, pod, uid] = parts[..] else { return None };
        Some(Claims {
            for_us: true,
            expires: i64::MAX,
            namespace: namespace.to_owned(),
            service_account: "default".to_owned(),
            pod: Some((pod.to_owned(), uid.to_owned())),
        })
    }

    fn review(&self, token: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>> {
        let parts: Vec<_> = token.split('/').collect();
        let status = match parts[..] {
            ["other-audience", ..] => json!({
                "authenticated": false,
                "error": "[invalid bearer token, token audiences [\"api\"] is invalid for the target audiences [\"outrigger.dev\"]]",
            }),
            [namespace, pod, uid] => json!({
                "authenticated": true, "audiences": ["outrigger.dev"],
                "user": {"username": format!("system:serviceaccount:{namespace}:default"), "extra": {
                    "authentication.kubernetes.io/pod-name": [pod],
                    "authentication.kubernetes.io/pod-uid": [uid],
                }},
            }),
            _ => json!({"authenticated": false, "error": "[invalid bearer token]"}),
        };
        let status = serde_json::from_value(status).expect("a status");
        Box::pin(async move { Ok(status) })
    }
}

/// A CA, and certificates of it that every replica serves.
pub fn certificates() -> (Certificates, InMemory) {
    InMemory::create(&[NAME.to_owned()]).expect("a CA")
}

impl Replica {
    /// Starts a replica.
    pub async fn start(name: &str, certificates: &Certificates) -> Self {
        let metrics = Arc::new(Metrics::new());
        let (hub, observed) = (Hub::new(metrics.clone()), Observed::empty());
        let server = Server {
            hub: hub.clone(),
            identity: Identity::new(Tokens, observed.clone(), metrics.clone()),
            certificates: certificates.clone(),
            replica: name.to_owned(),
            operator: ("outrigger-system".to_owned(), "outrigger-operator".to_owned()),
            connections: 64,
            certified: Certified::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopping) = watch::channel(false);
        let task = tokio::spawn(serve(listener, Arc::new(server), stopping));
        Self { hub, metrics, address, observed, stop, task }
    }

    /// These policies and pods are there.
    pub fn publish(&self, policies: &[Arc<PolicyFacts>], pods: &[Arc<PodFacts>]) -> Resolved {
        let namespaces =
            pods.iter().map(|pod| (pod.namespace.clone(), Arc::default())).collect::<HashMap<_, _>>();
        let world =
            World { policies: policies.to_vec(), pods: pods.to_vec(), namespaces, ..World::default() };
        let round = self.hub.begin();
        let resolved = resolve(&world, &Master::default());
        self.observed.replace(world);
        self.hub.publish(round, &resolved);
        resolved
    }

    /// As `publish`, with what a later release might send: a version and the lines that bring it.
    pub fn publish_lines(&self, version: &str, lines: &str, pods: &[Arc<PodFacts>]) {
        let target = Arc::new(Target { version: version.into(), line: lines.to_owned().into() });
        let group = Group { policies: vec![], origins: BTreeMap::new(), target, pods: pods.to_vec() };
        self.observed.replace(World { pods: pods.to_vec(), ..World::default() });
        self.hub.publish(self.hub.begin(), &Resolved { groups: vec![group], ..Resolved::default() });
    }

    /// What the proxy of this pod answered last, if it ever connected.
    pub fn answer(&self, pod: &PodFacts) -> Option<Answer> {
        self.hub.answers().remove(&pod.uid)
    }

    /// Says goodbye to every proxy and ends.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.expect("no panic");
    }
}

/// A pod of the namespace `shop` with a label `app` of the same name.
pub fn pod(name: &str) -> Arc<PodFacts> {
    Arc::new(PodFacts {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        uid: format!("uid-{name}").into(),
        labels: [("app".to_owned(), name.to_owned())].into(),
        phase: Phase::Running,
        terminating: false,
        service_account: "default".to_owned(),
        place: None,
        drain: None,
    })
}

/// The token of a pod.
pub fn token(pod: &PodFacts) -> String {
    format!("{}/{}/{}", pod.namespace, pod.name, pod.uid)
}

/// A policy with this spec.
pub fn policy(name: &str, generation: i64, spec: &str) -> Arc<PolicyFacts> {
    Arc::new(PolicyFacts {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        generation,
        created: 0,
        spec: Ok(serde_yaml::from_str(spec).expect("a spec")),
        status: None,
    })
}

/// An address that leads to whichever replica it is told to, as a Service does.
pub struct Service {
    /// Where proxies connect.
    pub address: SocketAddr,
    to: Arc<Mutex<Option<SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Service {
    /// Leads nowhere yet.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let to = Arc::new(Mutex::new(None));
        let target = to.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                let to: Option<SocketAddr> = *target.lock();
                let Some(to) = to else { continue }; // closed at once: nobody is there
                tokio::spawn(async move {
                    let mut to = TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut from, &mut to).await
                });
            }
        });
        Self { address, to, task }
    }

    /// From now on new connections go there.
    pub fn lead_to(&self, replica: Option<&Replica>) {
        *self.to.lock() = replica.map(|replica| replica.address);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.task.abort();
    }
}
