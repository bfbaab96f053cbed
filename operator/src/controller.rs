//! The reconcile loop: what is there (`observe`), what it means for each pod (`resolve`, pure), to the proxies
//! (`push::Hub`), and back to the user (`report`).
//!
//! There is one loop for all policies rather than one reconcile per policy: a pod's policy is a merge, so each
//! change of one policy is a question about all of them.

pub mod observe;
pub mod report;
pub mod resolve;
pub mod workload;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::observe::Observed;
use self::resolve::Resolved;
use crate::metrics::Metrics;
use crate::push::Hub;
use crate::session_keys::Master;

/// A change waits until nothing else changes for so long…
const QUIET: Duration = Duration::from_millis(50);
/// … and at most for so long.
const PATIENCE: Duration = Duration::from_millis(500);

/// Turns what the API server has into what each proxy gets.
pub struct Controller {
    /// What the API server has.
    pub observed: Observed,
    /// The keys of session cookies.
    pub session_keys: watch::Receiver<Arc<Master>>,
    /// Where the proxies are.
    pub hub: Arc<Hub>,
    /// What was resolved last, for the report; `None` until everything was observed once.
    pub resolved: watch::Sender<Option<Arc<Resolved>>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Controller {
    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut changes = self.observed.changes();
        self.observed.wait_until_synced().await;
        loop {
            changes.borrow_and_update();
            self.reconcile();
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                changed = self.session_keys.changed() => if changed.is_err() { return },
            }
            settle(&mut changes).await;
        }
    }

    fn reconcile(&mut self) {
        let started = Instant::now();
        let round = self.hub.begin();
        let world = self.observed.world();
        let keys = self.session_keys.borrow_and_update().clone();
        let resolved = Arc::new(resolve::resolve(&world, &keys));
        self.hub.publish(round, &resolved);
        tracing::debug!(
            policies = resolved.policies.len(),
            groups = resolved.groups.len(),
            pods = world.pods.len(),
            "reconciled"
        );
        let valid = resolved.policies.iter().filter(|policy| policy.spec.is_ok());
        self.metrics.set_generations(valid.map(|policy| (policy.name.as_str(), policy.generation)));
        self.resolved.send_replace(Some(resolved));
        self.metrics.reconcile_seconds.observe(started.elapsed().as_secs_f64());
    }
}

/// Waits until the changes stop for a moment, so that one `kubectl apply -f` of a directory is one push.
async fn settle(changes: &mut watch::Receiver<u64>) {
    let deadline = Instant::now() + PATIENCE;
    let quiet = async {
        loop {
            changes.borrow_and_update();
            match timeout(QUIET, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    let _ = timeout_at(deadline, quiet).await; // out of patience is as good as quiet
}
