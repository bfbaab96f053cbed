//! The Events of policies. Each is bounded in length and time, and those of a policy's breakers in number.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::time::{Duration, Instant, timeout};

use super::breakers::{Change, Kind};
use super::budget::Budget;
use super::conditions::{Transition, bounded};
use super::{MANAGER, WRITES};
use crate::controller::observe::PolicyFacts;
use crate::crd::ClusterPolicy;
use crate::metrics::Metrics;

const WRITE: Duration = Duration::from_secs(5);

/// An Event to be made.
pub(super) struct Pending {
    recorder: Recorder,
    event: Event,
    policy: ObjectReference,
}

/// Makes Events.
pub(super) struct Events {
    client: Client,
    reporter: Reporter,
    metrics: Arc<Metrics>,
    /// By the policy's UID, for its generation. A recorder takes two Events of the same reason for one and keeps
    /// the first one's words; those of another generation are other words.
    recorders: HashMap<String, (i64, Recorder)>,
    /// What each policy may still make of breakers, by its UID.
    budgets: HashMap<String, Budget>,
}

impl Events {
    /// No Event is made yet.
    pub(super) fn new(client: Client, replica: String, metrics: Arc<Metrics>) -> Self {
        let reporter = Reporter { controller: MANAGER.to_owned(), instance: Some(replica) };
        Self { client, reporter, metrics, recorders: HashMap::new(), budgets: HashMap::new() }
    }

    /// The Events that tell how a policy's status changed.
    pub(super) fn of_transitions(
        &mut self,
        policy: &PolicyFacts,
        transitions: Vec<Transition>,
    ) -> Vec<Pending> {
        let fresh = || (policy.generation, Recorder::new(self.client.clone(), self.reporter.clone()));
        let entry = self.recorders.entry(policy.uid.clone()).or_insert_with(fresh);
        if entry.0 != policy.generation {
            *entry = fresh();
        }
        let recorder = &entry.1;
        let pending = |transition: Transition| Pending::new(recorder.clone(), policy, transition.event());
        transitions.into_iter().map(pending).collect()
    }

    /// The Events that tell what a policy's breakers did.
    pub(super) fn of_breakers(
        &mut self,
        policy: &PolicyFacts,
        changes: Vec<Change>,
        now: Instant,
    ) -> Vec<Pending> {
        let Self { budgets, client, reporter, .. } = self;
        let pending = changes.into_iter().filter_map(|Change { kind, pod, note }| {
            let budget = budgets.entry(policy.uid.clone()).or_insert_with(|| Budget::new(now));
            let event = Event {
                type_: if kind == Kind::Opened { EventType::Warning } else { EventType::Normal },
                reason: kind.reason().to_owned(),
                note: Some(bounded(budget.admit(note, now)?)),
                action: "Watch".to_owned(),
                secondary: pod_reference(&pod),
            };
            // a recorder of its own: these words are never those of another Event
            Some(Pending::new(Recorder::new(client.clone(), reporter.clone()), policy, event))
        });
        pending.collect()
    }

    /// Forgets policies that are gone.
    pub(super) fn retain(&mut self, policies: &HashSet<&str>) {
        self.recorders.retain(|uid, _| policies.contains(uid.as_str()));
        self.budgets.retain(|uid, _| policies.contains(uid.as_str()));
    }

    /// Makes them.
    pub(super) async fn make(&self, pending: Vec<Pending>) {
        let writes = pending.into_iter().map(|Pending { recorder, event, policy }| async move {
            let error = match timeout(WRITE, recorder.publish(&event, &policy)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => String::from("it took too long"),
            };
            self.metrics.report_errors.inc();
            tracing::warn!(policy = policy.name, error, "cannot record an event");
        });
        futures_util::stream::iter(writes).buffer_unordered(WRITES).collect::<()>().await;
    }
}

impl Pending {
    fn new(recorder: Recorder, policy: &PolicyFacts, event: Event) -> Self {
        let mut object = ClusterPolicy::default();
        object.metadata.name = Some(policy.name.clone());
        object.metadata.uid = Some(policy.uid.clone());
        Self { recorder, event, policy: object.object_ref(&()) }
    }
}

fn pod_reference(pod: &str) -> Option<ObjectReference> {
    let (namespace, name) = pod.split_once('/')?;
    Some(ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_owned()),
        name: Some(name.to_owned()),
        ..ObjectReference::default()
    })
}
