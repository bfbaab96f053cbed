//! Pods that a test makes up, their proxies, and the operator that tells them of each other, all in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::future::BoxFuture;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use outrigger_operator::certs::Certificates;
use outrigger_operator::controller::observe::{Observed, Phase, PodFacts, PolicyFacts, World};
use outrigger_operator::controller::resolve;
use outrigger_operator::controller::workload::Place;
use outrigger_operator::crd::Status;
use outrigger_operator::metrics::Metrics;
use outrigger_operator::push::Hub;
use outrigger_operator::push::identity::{Claims, Identity, Review};
use outrigger_operator::push::server::{self, Certified, Server};
use outrigger_operator::session_keys::Master;
use outrigger_policy::selector::Labels;
use outrigger_policy::siblings::Certificate;
use outrigger_policy::wire::{AUDIENCE, CanaryShare};
use outrigger_proxy::app::{self, Running, Workers};
use outrigger_proxy::config::{Cli, Command};
use outrigger_proxy::control::Control;
use outrigger_proxy::siblings::signing_request;
use outrigger_proxy::worker::Worker;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::client::{self, get};

/// An operator, until it is dropped.
pub struct Operator {
    /// The CA, as the replicas have it.
    pub certificates: Certificates,
    hub: Arc<Hub>,
    observed: Observed,
    keys: Master,
    port: u16,
    generation: AtomicI64,
    _stop: watch::Sender<bool>,
}

/// A pod of the namespace `shop`.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name; its UID is `uid-NAME`.
    pub name: String,
    /// The workload that it is of.
    pub workload: String,
    /// Its labels.
    pub labels: Labels,
    /// Its sibling port.
    pub address: SocketAddr,
    /// The zone of its node; empty: none.
    pub zone: String,
    /// Whether its proxy is ready.
    pub ready: bool,
    /// The names of its workers.
    pub workers: Vec<String>,
}

/// Takes the name of a pod for its token.
struct PodNames;

impl Review for PodNames {
    fn claims(&self, token: &str) -> Option<Claims> {
        Some(Claims {
            for_us: true,
            expires: i64::MAX,
            namespace: "shop".to_owned(),
            service_account: "web".to_owned(),
            pod: Some((token.to_owned(), format!("uid-{token}"))),
        })
    }

    fn review(&self, token: &str) -> BoxFuture<'_, Result<TokenReviewStatus, kube::Error>> {
        let status = json!({
            "authenticated": true, "audiences": [AUDIENCE],
            "user": {"username": "system:serviceaccount:shop:web", "extra": {
                "authentication.kubernetes.io/pod-name": [token],
                "authentication.kubernetes.io/pod-uid": [format!("uid-{token}")],
            }},
        });
        Box::pin(async move { Ok(serde_json::from_value(status).expect("a status")) })
    }
}

impl Operator {
    /// Starts one that knows of no pod yet.
    pub async fn start() -> Self {
        let metrics = Arc::new(Metrics::new());
        let (hub, observed) = (Hub::new(metrics.clone()), Observed::empty());
        let certificates = Certificates::in_memory(&[String::from("localhost")]).expect("certificates");
        let server = Server {
            hub: hub.clone(),
            identity: Identity::new(PodNames, observed.clone(), metrics),
            certificates: certificates.clone(),
            replica: String::from("replica-1"),
            operator: (String::from("outrigger"), String::from("operator")),
            connections: 64,
            certified: Certified::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (stop, stopping) = watch::channel(false);
        tokio::spawn(server::serve(listener, Arc::new(server), stopping));
        let keys = Master::in_memory().expect("randomness");
        Self { certificates, hub, observed, keys, port, generation: AtomicI64::new(0), _stop: stop }
    }

    /// These pods are there, and one policy of this spec selects them all.
    pub fn put(&self, spec: &str, pods: &[Pod]) {
        self.put_with(spec, pods, None);
    }

    /// The same, and so far is the canary of that policy.
    pub fn put_step(&self, spec: &str, pods: &[Pod], canary: &CanaryShare) {
        let (run, step) = canary.epoch.split_once('/').expect("run and step");
        let status = json!({"canary": {
            "run": run, "phase": "Progressing", "message": "", "weight": canary.weight, "steps": 9,
            "step": step.parse::<u32>().expect("a number"),
            "since": "2026-01-01T00:00:00Z", "analyzed": "2026-01-01T00:00:00Z",
        }});
        self.put_with(spec, pods, Some(serde_json::from_value(status).expect("a status")));
    }

    fn put_with(&self, spec: &str, pods: &[Pod], status: Option<Status>) {
        let spec: outrigger_policy::Spec = serde_yaml::from_str(spec).expect("the test's YAML is a spec");
        outrigger_policy::compile(&spec).expect("the test's policy is valid");
        let policy = PolicyFacts {
            name: String::from("test"),
            uid: String::from("test"),
            generation: self.generation.fetch_add(1, Relaxed),
            created: 0,
            spec: Ok(spec),
            status,
        };
        let world = World {
            policies: vec![Arc::new(policy)],
            pods: pods.iter().map(Pod::facts).collect(),
            zones: pods.iter().map(|pod| (pod.zone.clone(), pod.zone.clone())).collect(),
            ..World::default()
        };
        self.observed.replace(world.clone());
        self.hub.publish(self.hub.begin(), &resolve::resolve(&world, &self.keys));
    }

    /// A key and its certificate, as a pod of this workload would get them.
    pub fn certify(&self, workload: &str, instance: &str) -> (rcgen::KeyPair, Certificate) {
        let (key, request) = signing_request().expect("randomness");
        (key, self.certificates.certify(&request, workload, instance).expect("signed"))
    }
}

impl Pod {
    /// The pod of a proxy: ready, of the workload `w`, in no zone.
    pub fn of(proxy: &Beside) -> Self {
        Self {
            name: proxy.pod.clone(),
            workload: String::from("w"),
            labels: Labels::new(),
            address: proxy.sibling,
            zone: String::new(),
            ready: true,
            workers: proxy.workers.clone(),
        }
    }

    fn facts(&self) -> Arc<PodFacts> {
        Arc::new(PodFacts {
            name: self.name.clone(),
            namespace: String::from("shop"),
            uid: format!("uid-{}", self.name).into(),
            labels: self.labels.clone(),
            phase: Phase::Running,
            terminating: false,
            service_account: String::from("web"),
            drain: None,
            place: Some(Place {
                workload: self.workload.clone(),
                ip: Some(self.address.ip()),
                port: self.address.port(),
                node: self.zone.clone(),
                ready: self.ready,
                workers: self.workers.clone(),
            }),
        })
    }
}

/// A proxy that takes its policy from an operator, until the test ends.
pub struct Beside {
    /// Where it serves clients.
    pub data: SocketAddr,
    /// Where it serves siblings.
    pub sibling: SocketAddr,
    /// The policy in force.
    pub control: Arc<Control>,
    pod: String,
    workers: Vec<String>,
    admin: SocketAddr,
    _running: Running,
    _dir: TempDir,
}

impl Beside {
    /// Starts the proxy of a pod over these workers, named `worker-1`, `worker-2`, …
    pub fn start(operator: &Operator, pod: &str, workers: &[SocketAddr]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default(); // the tests of a file share it
        let dir = TempDir::new().expect("a temporary directory");
        let token = dir.path().join("token");
        std::fs::write(&token, pod).expect("writable");
        let text = |path: &Path| path.display().to_string();
        let args = [
            ("--operator", format!("localhost:{}", operator.port)),
            ("--operator-ca", operator.certificates.trust_bundle()),
            ("--token-file", text(&token)),
            ("--instance", format!("uid-{pod}")),
            ("--sibling-listen", String::from("127.0.0.1:0")),
            ("--listen", String::from("127.0.0.1:0")),
            ("--admin-listen", String::from("127.0.0.1:0")),
            ("--threads", String::from("2")),
            ("--workers", String::from("unused=1")),
        ];
        let args = args.iter().map(|(name, value)| format!("{name}={value}")); // PEM begins with dashes
        let args = ["outrigger-proxy", "serve", "--admin-open"].map(String::from).into_iter().chain(args);
        let Command::Serve(serve) = Cli::try_parse_from(args).expect("valid flags").command else {
            panic!("the flags are those of `serve`")
        };
        let names: Vec<_> = (1..=workers.len()).map(|i| format!("worker-{i}")).collect();
        let workers = names.iter().zip(workers).map(|(name, address)| Worker::new(name, *address));
        let running =
            app::start(&serve.process, Workers::Given(workers.collect())).expect("the proxy starts");
        Self {
            data: running.data,
            sibling: running.sibling.expect("it serves siblings"),
            control: running.control.clone(),
            pod: pod.to_owned(),
            workers: names,
            admin: running.admin,
            _running: running,
            _dir: dir,
        }
    }

    /// The siblings that it may send requests to, nearest first.
    pub fn usable(&self) -> Vec<String> {
        let now = Instant::now();
        let snapshot = self.control.snapshot();
        let members = snapshot.siblings.members().iter();
        let usable = members.filter(|worker| {
            worker.usable(now) && worker.sibling.as_ref().is_some_and(|sibling| sibling.reachable(now))
        });
        usable.map(|worker| worker.name.clone()).collect()
    }

    /// Waits until it may send requests to these siblings and no others.
    pub async fn reaches(&self, pods: &[&str]) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while self.usable() != pods {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let late = |_| panic!("{} reaches {:?}, not {pods:?}", self.pod, self.usable());
        waited.await.unwrap_or_else(late);
    }

    /// Waits until it has a certificate to show to siblings.
    pub async fn is_certified(&self) {
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while !self.control.snapshot().siblings.identity().is_valid(Instant::now()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{} has no certificate", self.pod));
    }

    /// A counter of its metrics.
    pub async fn counter(&self, name: &str) -> u64 {
        let page = client::send(self.admin, get("/metrics", &[])).await.expect("a page").text();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        line.unwrap_or_else(|| panic!("there is no {name} in {page}"))
    }

    /// `/api/snapshot`.
    pub async fn view(&self) -> serde_json::Value {
        let address = self.admin.to_string();
        let request = http::Request::builder().uri("/api/snapshot").header("host", address);
        let request = request.body(http_body_util::Full::default()).expect("a request");
        let answer = client::send(self.admin, request).await.expect("an answer");
        serde_json::from_slice(&answer.body).expect("JSON")
    }
}
