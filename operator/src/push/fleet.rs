//! What the proxies of all replicas answered and reported, as the lease holder knows it: its own, and what each other
//! replica streams to it. Nothing of this is stored anywhere: a new lease holder asks again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Answer, Hub, Uid};

/// One line of what a replica streams to the lease holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Line {
    /// What is known of one pod's proxy now.
    Answer {
        /// The pod's UID.
        pod: Uid,
        /// What is known.
        answer: Answer,
    },
    /// Nothing new.
    Heartbeat,
}

/// The answers of other replicas' proxies.
pub struct Fleet {
    remote: Mutex<HashMap<Uid, Remote>>,
    changes: watch::Sender<u64>,
}

struct Remote {
    replica: String,
    answer: Answer,
}

impl Fleet {
    /// Nothing is known yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { remote: Mutex::default(), changes: watch::Sender::new(0) })
    }

    /// Takes in what a replica says. Of two replicas the one to which the proxy connected later is right.
    pub fn learn(&self, replica: &str, pod: Uid, mut answer: Answer) {
        let mut remote = self.remote.lock();
        let newer = remote
            .get(&pod)
            .is_none_or(|known| known.replica == replica || known.answer.since <= answer.since);
        if newer {
            // A proxy that came from another replica reports in a moment; until then what it reported there holds.
            answer.report = answer.report.or_else(|| remote.get(&pod)?.answer.report.clone());
            remote.insert(pod, Remote { replica: replica.to_owned(), answer });
        }
        drop(remote);
        self.changed();
    }

    /// The replica cannot be reached. Its proxies may be on their way to another; what they answered holds.
    pub fn lose(&self, replica: &str) {
        for known in self.remote.lock().values_mut().filter(|known| known.replica == replica) {
            known.answer.connected = false;
        }
        self.changed();
    }

    /// Forgets pods that are gone.
    pub fn retain(&self, live: &HashSet<Uid>) {
        self.remote.lock().retain(|pod, _| live.contains(pod));
    }

    /// What all proxies answered, this replica's included.
    pub fn answers(&self, hub: &Hub) -> HashMap<Uid, Answer> {
        let mut answers = hub.answers();
        for (pod, known) in &*self.remote.lock() {
            let own = answers.get(pod);
            let mut right = match own {
                Some(own) if known.answer.since <= own.since => own.clone(),
                _ => known.answer.clone(),
            };
            right.report = right
                .report
                .or_else(|| own.and_then(|own| own.report.clone()))
                .or_else(|| known.answer.report.clone());
            answers.insert(pod.clone(), right);
        }
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

/// The lines that tell one who was told `told` what is known now; `told` is brought up to date.
pub fn lines(told: &mut HashMap<Uid, Answer>, known: HashMap<Uid, Answer>) -> Vec<Line> {
    let new = known.iter().filter(|(pod, answer)| told.get(*pod) != Some(*answer));
    let lines = new.map(|(pod, answer)| Line::Answer { pod: pod.clone(), answer: answer.clone() }).collect();
    *told = known;
    lines
}

#[cfg(test)]
mod tests {
    use outrigger_policy::report::{CanaryReport, Report};
    use outrigger_policy::sample::Sample;

    use super::*;
    use crate::metrics::Metrics;

    fn answer(version: &str, since: i64) -> Answer {
        Answer { version: Some(version.into()), rejection: None, connected: true, since, report: None }
    }

    fn known(fleet: &Fleet) -> Answer {
        let hub = Hub::new(Arc::new(Metrics::new()));
        fleet.answers(&hub).remove("pod").expect("known")
    }

    #[test]
    fn a_line_reads_back_with_all_that_a_proxy_reports() {
        let sample = Sample { requests: 3, failures: 1, latency: [(9, 2), (40, 1)].into() };
        let canary = CanaryReport { epoch: "v2.1/1".to_owned(), old: sample.clone(), new: sample };
        let report = Report { canary: Some(canary), ..Report::default() };
        let answer = Answer { report: Some(Arc::new(report)), ..answer("1", 10) };
        let line = Line::Answer { pod: "pod".into(), answer };
        let text = serde_json::to_string(&line).expect("serializes");
        assert_eq!(serde_json::from_str::<Line>(&text).expect("reads back"), line);
    }

    #[test]
    fn the_replica_with_the_newer_stream_is_right() {
        let fleet = Fleet::new();
        fleet.learn("a", "pod".into(), answer("1", 10));
        fleet.learn("b", "pod".into(), answer("2", 20));
        fleet.learn("a", "pod".into(), answer("1", 10));
        assert_eq!(known(&fleet).version.as_deref(), Some("2"));
    }

    #[test]
    fn what_a_lost_replicas_proxies_answered_holds() {
        let fleet = Fleet::new();
        fleet.learn("a", "pod".into(), answer("1", 10));
        fleet.lose("a");
        assert_eq!(known(&fleet), Answer { connected: false, ..answer("1", 10) });
        fleet.retain(&HashSet::new());
        assert!(fleet.remote.lock().is_empty());
    }

    #[test]
    fn what_was_reported_holds_until_the_proxy_reports_to_its_new_replica() {
        let fleet = Fleet::new();
        let report =
            |version: &str| Some(Arc::new(Report { version: version.to_owned(), ..Report::default() }));
        fleet.learn("a", "pod".into(), Answer { report: report("1"), ..answer("1", 10) });
        fleet.learn("b", "pod".into(), answer("1", 20));
        assert_eq!(known(&fleet), Answer { report: report("1"), ..answer("1", 20) });
        fleet.learn("b", "pod".into(), Answer { report: report("2"), ..answer("1", 20) });
        assert_eq!(known(&fleet).report, report("2"));
    }

    #[test]
    fn only_what_is_new_is_told() {
        let mut told = HashMap::new();
        let known = |version| HashMap::from([("pod".into(), answer(version, 1))]);
        assert_eq!(lines(&mut told, known("1")).len(), 1);
        assert_eq!(lines(&mut told, known("1")), []);
        assert_eq!(lines(&mut told, known("2")).len(), 1);
        assert_eq!(lines(&mut told, HashMap::new()), [], "the listener sees for itself that a pod is gone");
    }

    #[test]
    fn a_line_reads_back() {
        let line = Line::Answer { pod: "pod".into(), answer: answer("1", 7) };
        let text = serde_json::to_string(&line).expect("serializes");
        assert_eq!(serde_json::from_str::<Line>(&text).expect("reads back"), line);
    }
}
