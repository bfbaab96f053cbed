//! Builds every part and starts it. All wiring is here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Duration, timeout};

use crate::admin::{self, Admin};
use crate::certs::{self, Certificates};
use crate::config::Config;
use crate::controller::Controller;
use crate::controller::observe::Observed;
use crate::controller::report::{Reporter, Sources};
use crate::controller::resolve::Resolved;
use crate::leader::Elector;
use crate::metrics::Metrics;
use crate::push::Hub;
use crate::push::fleet::Fleet;
use crate::push::identity::{ApiServer, Identity};
use crate::push::peers;
use crate::push::server::{self, Server};
use crate::session_keys::{self, Master};
use crate::webhook::{self, Webhook};

/// How long everything may take to stop. Streams and admission requests have their own, shorter limits.
const STOP: Duration = Duration::from_secs(20);

/// A running operator.
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    stop: watch::Sender<bool>,
    /// They end when told to stop.
    servers: Vec<JoinHandle<()>>,
    /// Gives the lease back when told to stop.
    elector: JoinHandle<()>,
    /// They end when dropped.
    tasks: JoinSet<()>,
}

/// Where an operator listens.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// For proxies.
    pub push: SocketAddr,
    /// For the API server.
    pub webhook: SocketAddr,
    /// For metrics and health.
    pub admin: SocketAddr,
}

/// Starts an operator against this cluster. It becomes ready later, when it has seen everything once.
///
/// # Errors
/// An address is taken, or the cluster gives neither certificates nor keys.
pub async fn start(client: Client, config: Config) -> anyhow::Result<Running> {
    let config = config.complete();
    let (stop, stopping) = watch::channel(false);
    let push = listen(config.push_listen).await?;
    let webhook = listen(config.webhook_listen).await?;
    let admin = listen(config.admin_listen).await?;
    let addresses =
        Addresses { push: push.local_addr()?, webhook: webhook.local_addr()?, admin: admin.local_addr()? };

    let elector = Elector::new(client.clone(), config.election());
    let leadership = elector.leadership();
    let elector = tokio::spawn(elector.run(stopping.clone()));
    let certificates = certs::start(client.clone(), config.certificates.clone(), leadership.clone());
    let certificates = certificates.await.context("no certificates")?;
    let keys = session_keys::start(client.clone(), config.session_keys.clone(), leadership.clone());
    let keys = keys.await.context("no session keys")?;

    let mut tasks = JoinSet::new();
    let (ready, is_ready) = watch::channel(false);
    let parts = Parts::new(client, certificates, leadership);
    let resolved = parts.reconcile(&mut tasks, &config, keys);
    parts.follow_peers(&mut tasks, &config, addresses.push.port());
    tasks.spawn(count_leadership(parts.leadership.clone(), parts.metrics.clone()));
    tasks.spawn(admin::serve(admin, Arc::new(parts.admin(is_ready))));
    let servers = vec![
        tokio::spawn(webhook::serve(webhook, parts.webhook(&config), stopping.clone())),
        tokio::spawn(push_when_resolved(push, Arc::new(parts.server(&config)), resolved, (ready, stopping))),
    ];
    tracing::info!(?addresses, "started");
    Ok(Running { addresses, stop, servers, elector, tasks })
}

/// What several parts share.
struct Parts {
    client: Client,
    certificates: Certificates,
    leadership: watch::Receiver<bool>,
    metrics: Arc<Metrics>,
    observed: Observed,
    hub: Arc<Hub>,
    fleet: Arc<Fleet>,
}

/// What was resolved last.
type Latest = watch::Receiver<Option<Arc<Resolved>>>;

impl Parts {
    fn new(client: Client, certificates: Certificates, leadership: watch::Receiver<bool>) -> Self {
        let metrics = Arc::new(Metrics::new());
        let observed = Observed::start(&client, &metrics);
        let (hub, fleet) = (Hub::new(metrics.clone()), Fleet::new());
        Self { client, certificates, leadership, metrics, observed, hub, fleet }
    }

    /// Starts the loop from what is observed to the hub, and the one that reports on it.
    fn reconcile(
        &self,
        tasks: &mut JoinSet<()>,
        config: &Config,
        keys: watch::Receiver<Arc<Master>>,
    ) -> Latest {
        let (resolved, latest) = watch::channel(None);
        let Self { observed, hub, fleet, metrics, leadership, .. } = self;
        let controller = Controller {
            observed: observed.clone(),
            session_keys: keys,
            hub: hub.clone(),
            resolved,
            metrics: metrics.clone(),
        };
        let sources = Sources {
            observed: observed.clone(),
            resolved: latest.clone(),
            hub: hub.clone(),
            fleet: fleet.clone(),
            leadership: leadership.clone(),
        };
        let reporter = Reporter::new(self.client.clone(), sources, config.pod_name.clone(), metrics.clone());
        tasks.spawn(controller.run());
        tasks.spawn(reporter.run());
        latest
    }

    fn follow_peers(&self, tasks: &mut JoinSet<()>, config: &Config, port: u16) {
        let settings = peers::Settings {
            namespace: config.namespace.clone(),
            selector: config.peer_selector.clone(),
            own_pod: config.pod_name.clone(),
            port,
            server_name: config.push_name().to_owned(),
            token_file: config.peer_token_file.clone(),
            certificates: self.certificates.clone(),
        };
        let (found, replicas) = watch::channel(BTreeMap::new());
        tasks.spawn(peers::watch_replicas(self.client.clone(), settings.clone(), found));
        tasks.spawn(peers::follow(settings, self.fleet.clone(), replicas, self.leadership.clone()));
    }

    fn admin(&self, ready: watch::Receiver<bool>) -> Admin {
        Admin { ready, metrics: self.metrics.clone(), certificates: self.certificates.clone() }
    }

    fn webhook(&self, config: &Config) -> Webhook {
        Webhook {
            settings: config.injector.clone(),
            certificates: self.certificates.clone(),
            metrics: self.metrics.webhook.clone(),
        }
    }

    fn server(&self, config: &Config) -> Server {
        let review = ApiServer(self.client.clone());
        Server {
            hub: self.hub.clone(),
            identity: Identity::new(review, self.observed.clone(), self.metrics.clone()),
            certificates: self.certificates.clone(),
            replica: config.pod_name.clone(),
            operator: (config.namespace.clone(), config.service_account.clone()),
            connections: config.push_connections,
        }
    }
}

/// Proxies are let in when there is something to tell them: before, they would wait, or worse, be told of a world
/// that is half seen.
async fn push_when_resolved(
    listener: TcpListener,
    server: Arc<Server>,
    mut resolved: Latest,
    (ready, mut stopping): (watch::Sender<bool>, watch::Receiver<bool>),
) {
    tokio::select! {
        result = resolved.wait_for(Option::is_some) => if result.is_err() { return },
        _ = stopping.wait_for(|stop| *stop) => return,
    }
    ready.send_replace(true);
    tracing::info!("ready");
    server::serve(listener, server, stopping).await;
    ready.send_replace(false);
}

async fn count_leadership(mut leadership: watch::Receiver<bool>, metrics: Arc<Metrics>) {
    loop {
        let leads = *leadership.borrow_and_update();
        metrics.leader.set(i64::from(leads));
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        // A node without IPv6 has no [::] to listen on.
        Err(_) if address.ip() == std::net::Ipv6Addr::UNSPECIFIED => {
            let address = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, address.port()));
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
        }
        Err(error) => Err(error).with_context(|| format!("cannot listen on {address}")),
    }
}

impl Running {
    /// Says goodbye to the proxies, finishes admission requests, gives the lease back.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let mut tasks = self.tasks;
        let ended = async {
            for server in self.servers {
                let _ = server.await; // a panic has been logged
            }
            let _ = self.elector.await;
        };
        if timeout(STOP, ended).await.is_err() {
            tracing::warn!("stopping took too long");
        }
        tasks.shutdown().await;
        tracing::info!("stopped");
    }

    /// Returns when a part ended that must not.
    pub async fn failed(&mut self) {
        self.tasks.join_next().await;
    }
}
