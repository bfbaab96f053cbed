//! What the process is told by flags or the environment. Policy never comes this way.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::{certs, leader, session_keys, webhook};

/// The settings of `outrigger-operator run`.
#[derive(Clone, Debug, clap::Args)]
pub struct Config {
    /// The operator's namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "outrigger")]
    pub namespace: String,
    /// This replica's pod.
    #[arg(long, env = "POD_NAME", default_value = "outrigger-operator")]
    pub pod_name: String,
    /// The operator's ServiceAccount: replicas know each other by it.
    #[arg(long, env = "POD_SERVICE_ACCOUNT", default_value = "outrigger-operator")]
    pub service_account: String,
    /// The labels of the operator's pods.
    #[arg(
        long,
        env = "OUTRIGGER_PEER_SELECTOR",
        default_value = "app.kubernetes.io/name=outrigger,app.kubernetes.io/component=operator"
    )]
    pub peer_selector: String,
    /// This replica's own token for the audience `outrigger.dev`.
    #[arg(long, env = "OUTRIGGER_PEER_TOKEN_FILE", default_value = "/var/run/secrets/outrigger.dev/token")]
    pub peer_token_file: PathBuf,
    /// The Lease whose holder writes status, Events and Secrets.
    #[arg(long, env = "OUTRIGGER_LEASE", default_value = "outrigger-operator")]
    pub lease: String,
    /// The Service that owns the Secrets and the Lease that the operator makes, so that they go with it.
    #[arg(long, env = "OUTRIGGER_OWNER_SERVICE")]
    pub owner_service: Option<String>,
    /// Where proxies connect.
    #[arg(long, env = "OUTRIGGER_PUSH_LISTEN", default_value = "[::]:8443")]
    pub push_listen: SocketAddr,
    /// The most proxies connected to this replica.
    #[arg(long, env = "OUTRIGGER_PUSH_CONNECTIONS", default_value_t = 16_000)]
    pub push_connections: usize,
    /// Where the API server asks about pods and policies.
    #[arg(long, env = "OUTRIGGER_WEBHOOK_LISTEN", default_value = "[::]:9443")]
    pub webhook_listen: SocketAddr,
    /// Where metrics and health are served.
    #[arg(long, env = "OUTRIGGER_ADMIN_LISTEN", default_value = "[::]:9900")]
    pub admin_listen: SocketAddr,
    /// The log filter: a level, or levels by module.
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info")]
    pub log: String,
    /// Certificates.
    #[command(flatten)]
    pub certificates: certs::Settings,
    /// Keys of session cookies.
    #[command(flatten)]
    pub session_keys: session_keys::Settings,
    /// The proxies that pods get.
    #[command(flatten)]
    pub injector: webhook::inject::Settings,
}

impl Config {
    /// Gives the parts what they share with the whole.
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.certificates.namespace.clone_from(&self.namespace);
        self.certificates.owner.clone_from(&self.owner_service);
        self.session_keys.namespace.clone_from(&self.namespace);
        self.session_keys.owner.clone_from(&self.owner_service);
        self
    }

    /// What the election is about.
    pub fn election(&self) -> leader::Settings {
        leader::Settings {
            namespace: self.namespace.clone(),
            lease: self.lease.clone(),
            identity: self.pod_name.clone(),
            owner: self.owner_service.clone(),
        }
    }

    /// The name by which proxies and replicas know the push server.
    pub fn push_name(&self) -> &str {
        let address = self.injector.push_address.as_str();
        address.rsplit_once(':').map_or(address, |(host, _)| host)
    }
}
