//! From the operator to the proxies: who is connected to this replica, what each is to have, what each answered.
//!
//! A stream is told by a `watch` channel: it holds the latest target and nothing older, so a slow proxy costs
//! nothing but its own delay.

pub mod fleet;
pub mod identity;
pub mod peers;
pub mod server;
pub mod session;

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use k8s_openapi::jiff::Timestamp;
use outrigger_policy::report::Report;
use outrigger_policy::wire::Ack;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};

use self::session::{Reception, Session, Verdict};
use crate::controller::observe::PodFacts;
use crate::controller::resolve::{Resolved, Target};
use crate::controller::workload::SiblingSet;
use crate::metrics::Metrics;

/// A pod's UID.
pub type Uid = Arc<str>;

/// The proxies of this replica.
pub struct Hub {
    state: Mutex<State>,
    /// Counts changes of answers.
    changes: watch::Sender<u64>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    /// Counts publications, to tell streams that one did not know yet.
    round: u64,
    targets: HashMap<Uid, Arc<Target>>,
    siblings: HashMap<Uid, Arc<SiblingSet>>,
    streams: HashMap<Uid, Stream>,
    /// What proxies answered whose streams ended: it holds as long as their pods live.
    departed: HashMap<Uid, Answer>,
    next_id: u64,
}

struct Stream {
    id: u64,
    /// The round in which it opened.
    round: u64,
    /// When it opened, in milliseconds since 1970.
    since: i64,
    session: Session,
    report: Option<Arc<Report>>,
    target: watch::Sender<Option<Arc<Target>>>,
    siblings: watch::Sender<Option<Arc<SiblingSet>>>,
}

/// What is known of one proxy's policy and workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    /// The version it answered last; none while an answer is awaited.
    pub version: Option<Arc<str>>,
    /// Why it rejected that version, if it did.
    pub rejection: Option<String>,
    /// Whether its stream is open.
    pub connected: bool,
    /// When its stream opened, in milliseconds since 1970: of two replicas' answers the newer counts.
    pub since: i64,
    /// What it reported last of its workers, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Arc<Report>>,
}

/// What a stream carries next.
#[derive(Debug)]
pub enum News {
    /// Another policy.
    Target(Arc<Target>),
    /// A line that changes the list of siblings.
    Siblings(Bytes),
}

/// What a proxy says it has when its stream opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// The version of its policy.
    pub update: Option<String>,
    /// The version of its list of siblings.
    pub siblings: Option<String>,
}

/// An open stream; dropping it closes it.
pub struct Connection {
    hub: Arc<Hub>,
    pod: Uid,
    id: u64,
    target: watch::Receiver<Option<Arc<Target>>>,
    siblings: watch::Receiver<Option<Arc<SiblingSet>>>,
    /// The list of siblings that the proxy has, if it is known.
    sent: Option<Arc<SiblingSet>>,
    /// The version of the list that the proxy said it has, until something is sent.
    held: Option<String>,
}

// === impl Hub ===

impl Hub {
    /// Nobody is connected yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changes: watch::Sender::new(0), metrics })
    }

    /// Before the world is looked at for the next `publish`: streams that open from here on may be of pods that
    /// it does not see yet.
    pub fn begin(&self) -> u64 {
        let mut state = self.state.lock();
        state.round += 1;
        state.round
    }

    /// Gives every stream what it is to have. Streams of pods that are gone end.
    pub fn publish(&self, round: u64, resolved: &Resolved) {
        let mut targets = HashMap::new();
        for group in &resolved.groups {
            targets.extend(group.pods.iter().map(|pod| (pod.uid.clone(), group.target.clone())));
        }
        let mut state = self.state.lock();
        let State { streams, departed, .. } = &mut *state;
        streams.retain(|pod, stream| match targets.get(pod) {
            Some(target) => {
                stream.give(target);
                stream.give_siblings(resolved.siblings.get(pod));
                true
            }
            None => round <= stream.round,
        });
        departed.retain(|pod, _| targets.contains_key(pod));
        self.metrics.connected_proxies.set(i64::try_from(streams.len()).unwrap_or(i64::MAX));
        state.targets = targets;
        state.siblings.clone_from(&resolved.siblings);
        drop(state);
        self.changed();
    }

    /// Opens a stream for a pod. An older one of the same pod ends: the proxy connected anew.
    pub fn connect(self: &Arc<Self>, pod: &PodFacts, holds: Holds) -> Connection {
        let mut state = self.state.lock();
        state.next_id += 1;
        let (id, round) = (state.next_id, state.round);
        let (sender, target) = watch::channel(state.targets.get(&pod.uid).cloned());
        let (siblings_sender, siblings) = watch::channel(state.siblings.get(&pod.uid).cloned());
        let since = Timestamp::now().as_millisecond();
        // What the proxy reported on an older stream holds until it reports on this one.
        let older = state.streams.remove(&pod.uid).map(|older| older.report);
        let report = older.or_else(|| Some(state.departed.get(&pod.uid)?.report.clone())).flatten();
        let stream = Stream {
            id,
            round,
            since,
            session: Session::new(holds.update),
            report,
            target: sender,
            siblings: siblings_sender,
        };
        state.streams.insert(pod.uid.clone(), stream);
        self.metrics.connected_proxies.set(i64::try_from(state.streams.len()).unwrap_or(i64::MAX));
        drop(state);
        self.changed();
        let (hub, pod) = (self.clone(), pod.uid.clone());
        Connection { hub, pod, id, target, siblings, sent: None, held: holds.siblings }
    }

    /// Takes in what a proxy made of an update. `None`: its stream is not here.
    pub fn receive(&self, pod: &str, ack: &Ack) -> Option<Reception> {
        let reception = self.state.lock().streams.get_mut(pod)?.session.receive(ack);
        self.metrics.count_ack(reception);
        if reception != Reception::Stale {
            self.changed();
        }
        Some(reception)
    }

    /// Takes in what a proxy reports. `None`: its stream is not here.
    pub fn report(&self, pod: &str, report: Report) -> Option<()> {
        let mut state = self.state.lock();
        let stream = state.streams.get_mut(pod)?;
        let report = Arc::new(report.bounded());
        let news = stream.report.as_ref() != Some(&report);
        stream.report = Some(report);
        drop(state);
        self.metrics.reports.inc();
        if news {
            self.changed();
        }
        Some(())
    }

    /// What is known of every proxy that is or was connected here.
    pub fn answers(&self) -> HashMap<Uid, Answer> {
        let state = self.state.lock();
        let mut answers = state.departed.clone();
        answers.extend(state.streams.iter().map(|(pod, stream)| (pod.clone(), stream.answer())));
        answers
    }

    /// Changes when an answer does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }
}

// === impl Stream ===

impl Stream {
    fn give(&self, target: &Arc<Target>) {
        self.target.send_if_modified(|current| {
            let new = current.as_ref().is_none_or(|current| current.version != target.version);
            if new {
                *current = Some(target.clone());
            }
            new
        });
    }

    /// A proxy that is to have no siblings keeps its list, and makes nothing of it.
    fn give_siblings(&self, set: Option<&Arc<SiblingSet>>) {
        self.siblings.send_if_modified(|current| {
            let version = |set: &Arc<SiblingSet>| set.siblings.version().to_owned();
            let new = current.as_ref().map(version) != set.map(version);
            if new {
                *current = set.cloned();
            }
            new
        });
    }

    fn answer(&self) -> Answer {
        let (version, rejection) = match self.session.verdict() {
            None => (None, None),
            Some((version, Verdict::Acknowledged)) => (Some(version), None),
            Some((version, Verdict::Rejected(reason))) => (Some(version), Some(reason)),
        };
        Answer { version, rejection, connected: true, since: self.since, report: self.report.clone() }
    }
}

// === impl Connection ===

impl Connection {
    /// What the proxy has not yet: the policy first. `None`: the stream is to end, because the pod is gone or has
    /// another stream.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            let target = self.target.borrow_and_update().clone();
            if let Some(target) = target
                && self.offer(&target.version)?
            {
                return Some(News::Target(target));
            }
            let latest = self.siblings.borrow_and_update().clone();
            if let Some(line) = latest.and_then(|latest| self.siblings_line(&latest)) {
                return Some(News::Siblings(line));
            }
            tokio::select! {
                changed = self.target.changed() => changed.ok()?,
                changed = self.siblings.changed() => changed.ok()?,
            }
        }
    }

    /// The line that makes the proxy's list of siblings this one, unless it has it.
    fn siblings_line(&mut self, latest: &Arc<SiblingSet>) -> Option<Bytes> {
        let held = self.held.take();
        let version = latest.siblings.version();
        let has = match &self.sent {
            Some(sent) => sent.siblings.version() == version,
            None => held.as_deref() == Some(version),
        };
        let before = self.sent.replace(latest.clone());
        (!has).then(|| latest.line_after(before.as_ref().map(|set| &set.siblings)))
    }

    /// For how long the proxy has owed an answer.
    pub fn lag(&self) -> Option<Duration> {
        let state = self.hub.state.lock();
        let stream = state.streams.get(&self.pod).filter(|stream| stream.id == self.id)?;
        stream.session.lag(Instant::now())
    }

    /// Whether this version must be sent; `None` if the stream is not in use any more.
    fn offer(&self, version: &Arc<str>) -> Option<bool> {
        let mut state = self.hub.state.lock();
        let stream = state.streams.get_mut(&self.pod).filter(|stream| stream.id == self.id)?;
        let send = stream.session.offer(version, Instant::now());
        drop(state);
        if send {
            self.hub.metrics.push_updates.inc();
        }
        self.hub.changed();
        Some(send)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut state = self.hub.state.lock();
        let mine = state.streams.get(&self.pod).is_some_and(|stream| stream.id == self.id);
        if !mine {
            return;
        }
        if let Some(stream) = state.streams.remove(&self.pod) {
            let answer = Answer { connected: false, ..stream.answer() };
            state.departed.insert(self.pod.clone(), answer);
        }
        self.hub.metrics.connected_proxies.set(i64::try_from(state.streams.len()).unwrap_or(i64::MAX));
        drop(state);
        self.hub.changed();
    }
}

#[cfg(test)]
pub(crate) mod tests;
