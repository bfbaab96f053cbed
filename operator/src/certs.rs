//! Which certificates exist and who holds them: a CA in a Secret, shared by all replicas; a server
//! certificate in each replica's memory, signed by it.
//!
//! Every replica reads the Secret again and again. Only the lease holder changes it and the webhook
//! configurations, and it writes the bundle there before it serves a certificate that needs it.

pub mod authority;
mod bundle;
mod in_memory;
pub mod rotation;
pub(crate) mod store;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use kube::Client;
use outrigger_policy::siblings::{self, Certificate};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

use self::authority::{Authority, Held};
pub use self::in_memory::InMemory;
use self::rotation::{Schedule, Step, Validity};
use self::store::Store;
pub use self::store::owner_reference;

/// How often a replica looks at the Secret and, holding the lease, at the webhook configurations.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often the first look is tried again before the process gives up.
const ATTEMPTS: u32 = 15;
/// How long a proxy's certificate is valid. It asks for another after two thirds of it.
const PROXY_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Where the CA is kept and how long certificates last.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Settings {
    /// The Secret that holds the CA.
    #[arg(long, env = "OUTRIGGER_CA_SECRET", default_value = "outrigger-ca")]
    pub ca_secret: String,
    /// The Services of this namespace that the certificate names.
    #[arg(
        long,
        env = "OUTRIGGER_TLS_SERVICES",
        value_delimiter = ',',
        default_value = "outrigger-push,outrigger-webhook"
    )]
    pub tls_services: Vec<String>,
    /// The cluster's domain, for the Services' full names.
    #[arg(long, env = "OUTRIGGER_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The MutatingWebhookConfiguration whose caBundle is kept up to date.
    #[arg(long, env = "OUTRIGGER_MUTATING_WEBHOOK")]
    pub mutating_webhook: Option<String>,
    /// The ValidatingWebhookConfiguration whose caBundle is kept up to date.
    #[arg(long, env = "OUTRIGGER_VALIDATING_WEBHOOK")]
    pub validating_webhook: Option<String>,
    /// A CA's lifetime.
    #[arg(long, env = "OUTRIGGER_CA_LIFETIME", value_parser = duration, default_value = "8760h")]
    pub ca_lifetime: Duration,
    /// How long a new CA is published before it signs, and an old one after.
    #[arg(long, env = "OUTRIGGER_CA_OVERLAP", value_parser = duration, default_value = "720h")]
    pub ca_overlap: Duration,
    /// A server certificate's lifetime.
    #[arg(long, env = "OUTRIGGER_CERTIFICATE_LIFETIME", value_parser = duration, default_value = "720h")]
    pub certificate_lifetime: Duration,
    /// The operator's namespace.
    #[arg(skip)]
    pub namespace: String,
    /// The Service that owns the Secret.
    #[arg(skip)]
    pub owner: Option<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server did not do what was asked.
    #[error("kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The Secret's content is unusable. It is never overwritten: somebody may have put it there.
    #[error("the secret '{name}' is unusable: {error}; delete it to have a new CA made")]
    Secret {
        /// The Secret's name.
        name: String,
        /// What is wrong with it.
        error: authority::Error,
    },
    /// Making or signing failed.
    #[error(transparent)]
    Make(#[from] authority::Error),
    /// The TLS library refused the certificate.
    #[error("tls: {0}")]
    Tls(#[from] rustls::Error),
    /// Another replica was faster: the next look shows what it wrote.
    #[error("another replica is writing the CA")]
    Conflict,
}

/// The certificates of this replica, always the newest.
#[derive(Clone)]
pub struct Certificates {
    shared: Arc<Shared>,
    tls: Arc<ServerConfig>,
    changed: watch::Receiver<()>,
}

struct Shared {
    leaf: ArcSwap<CertifiedKey>,
    bundle: ArcSwap<String>,
    /// The CA that signs now.
    signer: ArcSwap<Authority>,
}

/// Keeps certificates and Secret in step.
struct Keeper {
    client: Client,
    store: Store,
    settings: Settings,
    /// What was read last; survives the loss of the Secret.
    held: Option<Held>,
    leaf: Option<(Validity, String)>, // and the CA that signed it
}

/// Makes or reads the CA. The task that comes with the certificates keeps everything renewed from then on.
///
/// # Errors
/// The Secret could be neither read nor made for half a minute.
pub async fn start(
    client: Client,
    settings: Settings,
    mut leadership: watch::Receiver<bool>,
) -> anyhow::Result<(Certificates, impl Future<Output = ()> + Send + 'static)> {
    let store =
        Store::new(client.clone(), &settings.namespace, &settings.ca_secret, settings.owner.as_deref());
    let mut keeper = Keeper { client, store, settings, held: None, leaf: None };
    let mut attempt = 0;
    let (leaf, bundle) = loop {
        let leads = *leadership.borrow_and_update();
        match keeper.look(leads, now()).await {
            Ok((leaf, bundle)) => break (leaf, bundle),
            Err(error) if attempt == ATTEMPTS => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "no certificate yet"),
        }
        attempt += 1;
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    let (leaf, signer) = leaf.zip(keeper.signer()).ok_or(Error::Conflict)?; // the first look always makes one
    let (certificates, changes) = Certificates::new(leaf, bundle, signer)?;
    let kept = keep(keeper, certificates.shared.clone(), changes, leadership);
    Ok((certificates, kept))
}

async fn keep(
    mut keeper: Keeper,
    shared: Arc<Shared>,
    changes: watch::Sender<()>,
    mut leadership: watch::Receiver<bool>,
) {
    loop {
        let leads = *leadership.borrow_and_update();
        match keeper.look(leads, now()).await {
            Ok((leaf, bundle)) => {
                if let Some(signer) = keeper.signer() {
                    shared.signer.store(signer);
                }
                let renewed = leaf.is_some();
                if let Some(leaf) = leaf {
                    shared.leaf.store(leaf);
                }
                let published = *shared.bundle.load_full() != bundle;
                if published {
                    shared.bundle.store(Arc::new(bundle));
                }
                if renewed || published {
                    tracing::info!(renewed, published, "the certificates changed");
                    changes.send_replace(());
                }
            }
            Err(Error::Conflict) => {}
            Err(error) => tracing::warn!(%error, "keeping the certificates as they are"),
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            Ok(()) = leadership.changed() => {} // a new holder looks at once
        }
    }
}

// === impl Keeper ===

impl Keeper {
    /// The CA that signs now, as the last look found it.
    fn signer(&self) -> Option<Arc<Authority>> {
        self.held.as_ref().map(|held| held.current().clone())
    }

    /// One look at everything: the new certificate if one is due, and the bundle.
    async fn look(
        &mut self,
        leads: bool,
        now: SystemTime,
    ) -> Result<(Option<Arc<CertifiedKey>>, String), Error> {
        let held = self.hold(leads, now).await?; //                                                 client
        let bundle = held.bundle();
        if leads {
            let (mutating, validating) = (&self.settings.mutating_webhook, &self.settings.validating_webhook);
            let written =
                bundle::apply(&self.client, mutating.as_deref(), validating.as_deref(), &bundle).await; // client
            if let Err(error) = written {
                tracing::warn!(%error, "cannot write the CA bundle into the webhook configurations");
            }
        }
        let leaf = self.renew(&held, now)?;
        self.held = Some(held);
        Ok((leaf, bundle))
    }

    /// The CAs as the Secret has them, after the step that is due.
    async fn hold(&mut self, leads: bool, now: SystemTime) -> Result<Held, Error> {
        let Some(stored) = self.store.read().await? else { return self.create(leads, now).await };
        let held = Held::load(&stored.data)
            .map_err(|error| Error::Secret { name: self.settings.ca_secret.clone(), error })?;
        let schedule = self.settings.schedule();
        let step = rotation::due(&held.validities(), &schedule, now);
        if !leads || step == Step::Keep {
            return Ok(held);
        }
        tracing::info!(?step, "rotating the CA");
        let held = held.advance(step, &schedule, now)?;
        self.store.replace(stored, held.data()).await?.ok_or(Error::Conflict)?;
        Ok(held)
    }

    /// The Secret is not there. On the first look that is a new installation. Later somebody removed it: the
    /// lease holder writes back what it knows, or no proxy would trust any replica again.
    async fn create(&mut self, leads: bool, now: SystemTime) -> Result<Held, Error> {
        let data = match &self.held {
            None => Held::create(&self.settings.schedule(), now)?.data(),
            Some(held) => {
                if leads {
                    tracing::warn!(secret = self.settings.ca_secret, "the CA's secret is gone: restoring it");
                    self.store.create(held.data()).await?;
                }
                return Ok(Held::load(&held.data())?);
            }
        };
        let stored = self.store.create(data).await?.ok_or(Error::Conflict)?;
        tracing::info!(secret = self.settings.ca_secret, "made a CA");
        Ok(Held::load(&stored.data)?)
    }

    /// A new server certificate, if the last one is old or another CA signs now.
    fn renew(&mut self, held: &Held, now: SystemTime) -> Result<Option<Arc<CertifiedKey>>, Error> {
        let signer = held.current().certificate();
        if let Some((validity, signed_by)) = &self.leaf
            && !validity.is_due(now)
            && signed_by == signer
        {
            return Ok(None);
        }
        let validity = Validity::starting(now, self.settings.certificate_lifetime);
        let leaf = held.current().issue(&self.settings.names(), validity)?;
        self.leaf = Some((leaf.validity, signer.to_owned()));
        Ok(Some(certified(leaf)?))
    }
}

// === impl Certificates ===

impl Certificates {
    fn new(
        leaf: Arc<CertifiedKey>,
        bundle: String,
        signer: Arc<Authority>,
    ) -> Result<(Self, watch::Sender<()>), Error> {
        let (changes, changed) = watch::channel(());
        let shared = Arc::new(Shared {
            leaf: ArcSwap::new(leaf),
            bundle: ArcSwap::from_pointee(bundle),
            signer: ArcSwap::new(signer),
        });
        let tls = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(shared.clone());
        Ok((Self { shared, tls: Arc::new(tls), changed }, changes))
    }

    /// Signs a proxy's request: as one pod of one workload, for a day.
    ///
    /// # Errors
    /// The request is none, or does not hold its key.
    pub fn certify(&self, request: &str, workload: &str, instance: &str) -> Result<Certificate, Error> {
        let names = [siblings::instance_name(workload, instance), siblings::workload_name(workload)];
        let now = now();
        let signer = self.shared.signer.load();
        let certified = signer.certify(request, &names, Validity::starting(now, PROXY_LIFETIME))?;
        let left = certified.validity.not_after.duration_since(now).unwrap_or_default().as_secs();
        Ok(Certificate {
            certificate: certified.pem,
            workload: workload.to_owned(),
            renew_after_seconds: left * 2 / 3,
            expires_after_seconds: left,
        })
    }

    /// How to speak TLS 1.3 as the operator, with whatever certificate is newest at each handshake.
    pub fn server_config(&self, alpn: &[&str]) -> Arc<ServerConfig> {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(tls)
    }

    /// The CA certificates that clients are to trust, in PEM: two or three while the CA is rotated.
    pub fn trust_bundle(&self) -> String {
        self.shared.bundle.load().to_string()
    }

    /// Changes when the certificate or the bundle does.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.clone()
    }
}

impl ResolvesServerCert for Shared {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.leaf.load_full())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared(…)") // never the key
    }
}

// === impl Settings ===

impl Settings {
    fn schedule(&self) -> Schedule {
        Schedule { authority: self.ca_lifetime, overlap: self.ca_overlap, leaf: self.certificate_lifetime }
    }

    /// Every name by which a client may ask for one of the Services, shortest first.
    fn names(&self) -> Vec<String> {
        let Self { namespace, cluster_domain, .. } = self;
        let of = |service: &String| {
            [
                format!("{service}.{namespace}.svc"),
                format!("{service}.{namespace}.svc.{cluster_domain}"),
                format!("{service}.{namespace}"),
                service.clone(),
            ]
        };
        self.tls_services.iter().flat_map(of).collect()
    }
}

fn certified(leaf: authority::Leaf) -> Result<Arc<CertifiedKey>, Error> {
    Ok(Arc::new(CertifiedKey::from_der(leaf.chain, leaf.key, &provider())?))
}

fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

#[expect(clippy::disallowed_methods, reason = "the edge that reads the clock for the pure parts")]
pub(crate) fn now() -> SystemTime {
    SystemTime::now()
}

/// A duration as policies write it, for flags.
pub(crate) fn duration(text: &str) -> Result<Duration, outrigger_policy::units::NotADuration> {
    outrigger_policy::units::DurationText(text.to_owned()).parse()
}

#[cfg(test)]
pub(crate) mod tests;
