//! Which replica may write: the one that holds a Lease. All replicas do everything else.
//!
//! The holder renews every 5 seconds a lease of 15, and stops writing when 10 seconds passed without a renewal:
//! so it stops before another starts. Clocks are not compared: a replica counts the time since it last saw the
//! lease change.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::certs::owner_reference;

const DURATION: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(5);
const DEMOTE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
const CALL: Duration = Duration::from_secs(3);

/// What the election is about.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The operator's namespace.
    pub namespace: String,
    /// The Lease.
    pub lease: String,
    /// This replica.
    pub identity: String,
    /// The Service that owns the Lease, so that it goes with it.
    pub owner: Option<String>,
}

/// Takes part in the election.
pub struct Elector {
    client: Client,
    leases: Api<Lease>,
    settings: Settings,
    leads: watch::Sender<bool>,
    seen: Option<Seen>,
}

/// The lease as it was seen to change last.
struct Seen {
    /// Holder and time of renewal: they change with every renewal.
    mark: (Option<String>, Option<MicroTime>),
    at: Instant,
}

/// What to do about the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Nobody holds it.
    Acquire,
    /// This replica holds it.
    Renew,
    /// Another replica holds it.
    Wait,
}

impl Elector {
    /// Not elected yet.
    pub fn new(client: Client, settings: Settings) -> Self {
        let leases = Api::namespaced(client.clone(), &settings.namespace);
        Self { client, leases, settings, leads: watch::Sender::new(false), seen: None }
    }

    /// Whether this replica holds the lease.
    pub fn leadership(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Takes part until told to stop, and then gives the lease back.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut renewed = Instant::now();
        loop {
            let started = Instant::now(); // what counts is when the renewal was sent, not when it was confirmed
            let wait = match timeout(CALL, self.attempt()).await {
                Ok(Ok(true)) => {
                    renewed = started;
                    self.set(true);
                    RENEW
                }
                Ok(Ok(false)) => {
                    self.set(false);
                    RETRY + RETRY.mul_f64(fastrand::f64())
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot reach the lease");
                    RETRY
                }
                Err(_) => {
                    tracing::warn!("the lease did not answer in time");
                    RETRY
                }
            };
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                () = self.demote(renewed + DEMOTE, wait) => {}
            }
        }
        self.release().await;
    }

    /// Waits, and stops leading on the way if the time is up.
    async fn demote(&self, deadline: Instant, wait: Duration) {
        let now = Instant::now();
        if *self.leads.borrow() && deadline < now + wait {
            sleep(deadline.saturating_duration_since(now)).await;
            tracing::warn!("the lease was not renewed in time: another replica may lead now");
            self.set(false);
            return;
        }
        sleep(wait).await;
    }

    fn set(&self, leads: bool) {
        let changed = self.leads.send_if_modified(|current| std::mem::replace(current, leads) != leads);
        if changed {
            tracing::info!(leads, replica = self.settings.identity, "leadership changed");
        }
    }

    /// Looks at the lease and takes or renews it if that may be. Returns whether this replica holds it now.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let Some(mut lease) = self.leases.get_opt(&self.settings.lease).await? else {
            return created(self.leases.create(&PostParams::default(), &self.first().await?).await);
        };
        let spec = lease.spec.get_or_insert_default();
        let unchanged = self.unchanged_for(spec);
        let step = step(spec, &self.settings.identity, unchanged);
        let transitions = spec.lease_transitions.unwrap_or(0);
        match step {
            Step::Wait => return Ok(false),
            Step::Renew => spec.renew_time = Some(MicroTime(Timestamp::now())),
            Step::Acquire => *spec = self.held(transitions + 1),
        }
        // The resourceVersion that was read goes along: of two replicas that try, one gets a conflict.
        created(self.leases.replace(&self.settings.lease, &PostParams::default(), &lease).await)
    }

    /// For how long the lease has been as it is.
    fn unchanged_for(&mut self, spec: &LeaseSpec) -> Duration {
        let mark = (spec.holder_identity.clone(), spec.renew_time.clone());
        match &self.seen {
            Some(seen) if seen.mark == mark => seen.at.elapsed(),
            _ => {
                self.seen = Some(Seen { mark, at: Instant::now() });
                Duration::ZERO
            }
        }
    }

    async fn first(&self) -> kube::Result<Lease> {
        let Settings { namespace, lease, owner, .. } = &self.settings;
        let mut metadata = ObjectMeta { name: Some(lease.clone()), ..ObjectMeta::default() };
        if let Some(owner) = owner {
            metadata.owner_references = Some(vec![owner_reference(&self.client, namespace, owner).await?]);
        }
        Ok(Lease { metadata, spec: Some(self.held(0)) })
    }

    fn held(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.settings.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Lets the next replica lead at once.
    async fn release(&mut self) {
        let led = *self.leads.borrow();
        self.set(false); // first: nothing may be written once another can have it
        if !led {
            return;
        }
        let release = async {
            let mut lease = self.leases.get(&self.settings.lease).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.settings.identity.as_str()) {
                spec.holder_identity = None;
                self.leases.replace(&self.settings.lease, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if !matches!(timeout(CALL, release).await, Ok(Ok(()))) {
            tracing::warn!("cannot give the lease back: another replica leads when it ends");
        }
    }
}

/// What is to be done about a lease that has been the same for so long.
fn step(spec: &LeaseSpec, identity: &str, unchanged: Duration) -> Step {
    let lasts = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    match spec.holder_identity.as_deref() {
        None | Some("") => Step::Acquire,
        Some(holder) if holder == identity => Step::Renew,
        Some(_) if lasts.map_or(DURATION, Duration::from_secs) < unchanged => Step::Acquire,
        Some(_) => Step::Wait,
    }
}

/// A conflict means that another replica was faster.
fn created(result: kube::Result<Lease>) -> kube::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(error)) if error.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held_by(holder: Option<&str>) -> LeaseSpec {
        LeaseSpec {
            holder_identity: holder.map(ToOwned::to_owned),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        }
    }

    #[test]
    fn a_lease_is_taken_when_nobody_holds_it() {
        let long = Duration::from_secs(16);
        assert_eq!(step(&held_by(None), "me", Duration::ZERO), Step::Acquire);
        assert_eq!(step(&held_by(Some("")), "me", Duration::ZERO), Step::Acquire);
        assert_eq!(step(&held_by(Some("me")), "me", Duration::ZERO), Step::Renew);
        assert_eq!(step(&held_by(Some("other")), "me", Duration::from_secs(15)), Step::Wait);
        assert_eq!(step(&held_by(Some("other")), "me", long), Step::Acquire);
        let short = LeaseSpec { lease_duration_seconds: Some(1), ..held_by(Some("other")) };
        assert_eq!(step(&short, "me", Duration::from_secs(2)), Step::Acquire);
    }

    #[test]
    fn a_holder_stops_before_another_may_start() {
        assert!(
            DEMOTE + CALL < DURATION + RETRY,
            "a renewal in flight when the holder stops is over by then"
        );
        assert!(RENEW + CALL < DEMOTE);
    }
}
