//! Builds every part and starts it. All wiring is here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::time::{Duration, timeout};

use crate::admin::{self, Admin};
use crate::certs::{self, Certificates};
use crate::config::Config;
use crate::controller::Controller;
use crate::controller::observe::Observed;
use crate::controller::report::{Reporter, Sources};
use crate::controller::resolve::Resolved;
use crate::essential::Essential;
use crate::leader::Elector;
use crate::metrics::Metrics;
use crate::push::Hub;
use crate::push::fleet::Fleet;
use crate::push::identity::{ApiServer, Identity};
use crate::push::peers;
use crate::push::server::{self, Certified, Server};
use crate::session_keys::{self, Master};
use crate::webhook::{self, Webhook};

/// How long everything may take to stop. Streams and admission requests have their own, shorter limits.
const STOP: Duration = Duration::from_secs(20);

/// A running operator.
pub struct Running {
    /// Where it listens.
    pub addresses: Addresses,
    stop: watch::Sender<bool>,
    /// What must go on for as long as the operator runs.
    essential: Essential,
    /// Those of them that end when told to stop: the servers say goodbye, and the elector gives the lease back.
    stopping: Vec<oneshot::Receiver<()>>,
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
    let (stop, is_stopping) = watch::channel(false);
    let push = listen(config.push_listen).await?;
    let webhook = listen(config.webhook_listen).await?;
    let admin = listen(config.admin_listen).await?;
    let addresses =
        Addresses { push: push.local_addr()?, webhook: webhook.local_addr()?, admin: admin.local_addr()? };

    let mut essential = Essential::default();
    let elector = Elector::new(client.clone(), config.election());
    let leadership = elector.leadership();
    let elected = ended(&mut essential, "leader election", elector.run(is_stopping.clone()));
    let (certificates, keeper) =
        certs::start(client.clone(), config.certificates.clone(), leadership.clone())
            .await
            .context("no certificates")?;
    essential.spawn("certificates", keeper);
    let (keys, keeper) = session_keys::start(client.clone(), config.session_keys.clone(), leadership.clone())
        .await
        .context("no session keys")?;
    essential.spawn("session keys", keeper);

    let (ready, is_ready) = watch::channel(false);
    let parts = Parts::new(client, certificates, leadership, &mut essential);
    let resolved = parts.reconcile(&mut essential, &config, keys);
    parts.follow_peers(&mut essential, &config, addresses.push.port());
    essential.spawn("leadership gauge", count_leadership(parts.leadership.clone(), parts.metrics.clone()));
    essential.spawn("admin port", admin::serve(admin, Arc::new(parts.admin(is_ready))));
    let webhooks = webhook::serve(webhook, parts.webhook(&config), is_stopping.clone());
    let webhooks = ended(&mut essential, "webhooks", webhooks);
    let pushing = push_when_resolved(push, Arc::new(parts.server(&config)), resolved, (ready, is_stopping));
    let pushing = ended(&mut essential, "push", pushing);
    tracing::info!(?addresses, "started");
    Ok(Running { addresses, stop, essential, stopping: vec![webhooks, pushing, elected] })
}

/// Starts an essential task that ends when it is told to stop, and tells when it has.
fn ended(
    essential: &mut Essential,
    name: &'static str,
    task: impl Future<Output = ()> + Send + 'static,
) -> oneshot::Receiver<()> {
    let (tell, told) = oneshot::channel();
    essential.spawn(name, async move {
        task.await;
        let _ = tell.send(()); // nobody waits unless the operator stops
    });
    told
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
    fn new(
        client: Client,
        certificates: Certificates,
        leadership: watch::Receiver<bool>,
        essential: &mut Essential,
    ) -> Self {
        let metrics = Arc::new(Metrics::new());
        let observed = Observed::start(&client, &metrics, essential);
        let (hub, fleet) = (Hub::new(metrics.clone()), Fleet::new());
        Self { client, certificates, leadership, metrics, observed, hub, fleet }
    }

    /// Starts the loop from what is observed to the hub, and the one that reports on it.
    fn reconcile(
        &self,
        essential: &mut Essential,
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
        essential.spawn("controller", controller.run());
        essential.spawn("reporter", reporter.run());
        latest
    }

    fn follow_peers(&self, essential: &mut Essential, config: &Config, port: u16) {
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
        essential.spawn("replicas", peers::watch_replicas(self.client.clone(), settings.clone(), found));
        essential
            .spawn("peers", peers::follow(settings, self.fleet.clone(), replicas, self.leadership.clone()));
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
            certified: Certified::default(),
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
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        let ended = async {
            for stopping in self.stopping {
                let _ = stopping.await; // a panic has been logged
            }
        };
        if timeout(STOP, ended).await.is_err() {
            tracing::warn!("stopping took too long");
        }
        self.essential.shutdown().await;
        tracing::info!("stopped");
    }

    /// Waits until a part has ended that must not, and returns its name.
    pub async fn failed(&mut self) -> &'static str {
        self.essential.ended().await
    }

    /// Its essential tasks.
    pub fn essential(&self) -> &Essential {
        &self.essential
    }
}
