//! The pods beside this one, as this proxy knows them, and what may be sent to them.
//!
//! A sibling is a member of the choice like a worker, with a breaker and a load of its own; which of its workers
//! serves is for its own proxy to choose, who knows how they are. What comes from a sibling is only ever served by
//! the workers of this pod: see `Arrival` and `Snapshot::candidates`.

mod identity;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use outrigger_policy::siblings::{self, NotApplicable, SiblingsChange};
use rustls_pki_types::ServerName;

use crate::session;
use crate::worker::Worker;

pub use identity::{Credentials, Error, Identity, signing_request};

/// On the answer of a sibling: no worker of its pod could be given the request, so that it may go elsewhere.
pub const UNSERVED: HeaderName = HeaderName::from_static("outrigger-unserved");
/// The value of `UNSERVED` and of `BLAMELESS`.
pub const YES: HeaderValue = HeaderValue::from_static("1");
/// On the answer of a sibling: the client is the reason for it, so that it says nothing of the sibling.
pub const BLAMELESS: HeaderName = HeaderName::from_static("outrigger-blameless");

/// How long a sibling that could not serve is left alone.
const REST: Duration = Duration::from_secs(1);

/// Where a request came from, and so how far it may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// A client. It may go as far as the policy says.
    Client,
    /// Another proxy of the workload, over the sibling port. It goes to a worker of this pod or nowhere: no request
    /// makes more than one step from pod to pod, so none goes round in a circle.
    Sibling,
}

/// What a proxy is to its siblings, as the member of a choice: another pod's proxy.
pub struct Sibling {
    /// The pod's instance.
    pub instance: String,
    /// The zone of its node.
    pub zone: String,
    /// The names of its workers.
    pub workers: Vec<String>,
    /// Its version, where a canary tells pods apart.
    pub version: Option<String>,
    /// The workload that it must show, where it is not sure to be this proxy's.
    workload: Option<String>,
    /// What sessions know its workers by.
    pub session_ids: Box<[u64]>,
    identity: Arc<Identity>,
    since: Instant,
    /// Until when it is left alone, because it could not serve: in milliseconds after `since`.
    rests_until: AtomicU64,
}

/// The siblings that are known.
pub struct Siblings {
    /// This proxy's own instance; without one it has no siblings.
    instance: Option<String>,
    identity: Arc<Identity>,
    /// What the operator said.
    list: siblings::Siblings,
    /// The zone of this proxy.
    zone: String,
    /// Whether this proxy itself is on the list.
    listed: bool,
    /// The others: those in the same zone first, and in each zone each proxy begins with another one.
    members: Vec<Arc<Worker>>,
}

impl Sibling {
    /// Whether it may be sent a request, as far as its breaker does not decide.
    pub fn reachable(&self, now: Instant) -> bool {
        self.identity.is_valid(now) && self.rests_until.load(Relaxed) <= self.millis(now)
    }

    /// It could not serve a request: the next ones go elsewhere for a moment.
    pub fn rest(&self, now: Instant) {
        self.rests_until.store(self.millis(now + REST), Relaxed);
    }

    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_millis()).unwrap_or(u64::MAX)
    }

    /// What this proxy shows it, and the name that it must show.
    pub fn secure(&self, now: Instant) -> Option<(Arc<Credentials>, ServerName<'static>)> {
        let credentials = self.identity.current(now)?;
        let workload = self.workload.as_deref().unwrap_or(credentials.workload());
        let name = siblings::instance_name(workload, &self.instance);
        Some((credentials, ServerName::try_from(name).ok()?))
    }
}

impl Siblings {
    /// None are known yet.
    pub fn none(instance: Option<String>, identity: Arc<Identity>) -> Self {
        let (list, zone) = (siblings::Siblings::default(), String::new());
        Self { instance, identity, list, zone, listed: false, members: Vec::new() }
    }

    /// What siblings are shown and must show.
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// This proxy's own instance.
    pub fn instance(&self) -> Option<&str> {
        self.instance.as_deref()
    }

    /// The zone of this proxy, if the operator named one.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    /// Whether requests can go to the pods of their version: this pod's is known, and this proxy has something to
    /// show to the others.
    pub fn tell_versions(&self, now: Instant) -> bool {
        self.listed && self.identity.is_valid(now)
    }

    /// The version of this pod, where a canary tells pods apart.
    pub fn pod_version(&self) -> Option<&str> {
        self.list.get(self.instance.as_deref()?)?.version.as_deref()
    }

    /// Takes connections of the pods on the list and of no others.
    pub fn admit_listed(&self) {
        self.identity.admit(self.list.workloads());
    }

    /// The version of the list; `None` before there was one.
    pub fn version(&self) -> Option<&str> {
        Some(self.list.version()).filter(|version| !version.is_empty())
    }

    /// The others, nearest first.
    pub fn members(&self) -> &[Arc<Worker>] {
        &self.members
    }

    /// What sessions know a worker of this pod by, where siblings are reached too: in another pod a worker of the same
    /// name is another.
    pub fn session_id(&self, worker: &str) -> Option<u64> {
        Some(session_id(self.instance.as_deref()?, worker))
    }

    /// The siblings after a change. Those that stay keep their breakers, loads and connections.
    ///
    /// # Errors
    /// It is a change of another list.
    pub fn after(&self, change: SiblingsChange) -> Result<Self, NotApplicable> {
        let list = self.list.after(change)?;
        let (instance, identity) = (self.instance.clone(), self.identity.clone());
        let Some(own) = &instance else {
            return Ok(Self { list, ..Self::none(instance, identity) });
        };
        let here = list.get(own);
        let (listed, zone) = (here.is_some(), here.map(|own| own.zone.clone()).unwrap_or_default());
        let mut others: Vec<_> = list.members().filter(|other| other.instance != *own).collect();
        let after_own = others.iter().position(|other| *own < other.instance).unwrap_or(0);
        others.rotate_left(after_own);
        others.sort_by_key(|other| other.zone != zone); // stable: the order within each half stays
        let members = others.into_iter().map(|other| self.member(other)).collect();
        Ok(Self { instance, identity, zone, listed, members, list })
    }

    fn member(&self, said: &siblings::Sibling) -> Arc<Worker> {
        let same = |worker: &&Arc<Worker>| {
            worker.address == said.address
                && worker.sibling.as_ref().is_some_and(|sibling| {
                    sibling.instance == said.instance
                        && sibling.zone == said.zone
                        && sibling.workers == said.workers
                        && sibling.version == said.version
                        && sibling.workload == said.workload
                })
        };
        let worker = match self.members.iter().find(same) {
            Some(worker) => worker.clone(),
            None => Worker::sibling(&said.pod, said.address, self.sibling(said)),
        };
        worker.set_healthy(said.ready);
        worker
    }

    fn sibling(&self, said: &siblings::Sibling) -> Sibling {
        Sibling {
            instance: said.instance.clone(),
            zone: said.zone.clone(),
            workers: said.workers.clone(),
            version: said.version.clone(),
            workload: said.workload.clone(),
            session_ids: said.workers.iter().map(|worker| session_id(&said.instance, worker)).collect(),
            identity: self.identity.clone(),
            since: Instant::now(),
            rests_until: AtomicU64::new(0),
        }
    }
}

fn session_id(instance: &str, worker: &str) -> u64 {
    session::worker_id(&format!("{instance}/{worker}")) // a worker's name has no slash
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    pub(crate) fn said(instance: &str, zone: &str, ready: bool) -> siblings::Sibling {
        siblings::Sibling {
            instance: instance.to_owned(),
            pod: format!("web-{instance}"),
            address: SocketAddr::from(([10, 0, 0, 1], 8001)),
            zone: zone.to_owned(),
            ready,
            workers: vec![String::from("worker-a"), String::from("worker-b")],
            version: None,
            workload: None,
        }
    }

    fn after(siblings: &Siblings, said: Vec<siblings::Sibling>) -> Siblings {
        let list = outrigger_policy::siblings::Siblings::new(said);
        siblings.after(list.change_from(None)).expect("a whole list applies")
    }

    fn instances(siblings: &Siblings) -> Vec<&str> {
        let members = siblings.members.iter().filter_map(|member| member.sibling.as_ref());
        members.map(|sibling| sibling.instance.as_str()).collect()
    }

    fn none(instance: &str) -> Siblings {
        Siblings::none(Some(instance.to_owned()), Arc::default())
    }

    #[test]
    fn the_nearest_come_first_and_each_proxy_begins_with_another() {
        let all = || {
            vec![
                said("a", "west", true),
                said("b", "east", true),
                said("c", "west", true),
                said("d", "east", true),
                said("e", "west", true),
            ]
        };
        assert_eq!(instances(&after(&none("a"), all())), ["c", "e", "b", "d"]);
        assert_eq!(instances(&after(&none("c"), all())), ["e", "a", "d", "b"]);
        assert_eq!(instances(&after(&none("d"), all())), ["b", "e", "a", "c"]);
        let unknown = Siblings::none(None, Arc::default());
        assert!(instances(&after(&unknown, all())).is_empty(), "it would not know itself");
    }

    #[test]
    fn who_stays_keeps_its_state() {
        let one = after(&none("a"), vec![said("a", "", true), said("b", "", true), said("c", "", true)]);
        let two = after(&one, vec![said("a", "", true), said("b", "", false), said("c", "west", true)]);
        assert_eq!(one.members[0].id, two.members[0].id);
        assert!(!two.members[0].healthy(), "the same one, not ready");
        assert_ne!(one.members[1].id, two.members[1].id, "its zone is another");
        assert!(two.members[1].healthy());
    }

    #[test]
    fn versions_can_be_told_once_this_pod_is_on_the_list_and_certified() {
        let of = |instance: &str, version: &str| siblings::Sibling {
            version: Some(version.to_owned()),
            ..said(instance, "", true)
        };
        let now = Instant::now();
        let elsewhere = after(&none("x"), vec![of("a", "v1"), of("b", "v2")]);
        elsewhere.identity.install_for_tests();
        assert!(!elsewhere.tell_versions(now) && elsewhere.pod_version().is_none());
        let here = after(&none("a"), vec![of("a", "v1"), of("b", "v2")]);
        assert!(!here.tell_versions(now), "there is no certificate");
        here.identity.install_for_tests();
        assert!(here.tell_versions(now));
        assert_eq!(here.pod_version(), Some("v1"));
        let there = here.members[0].sibling.as_ref().expect("a sibling");
        assert_eq!(there.version.as_deref(), Some("v2"));
        let relabelled = after(&here, vec![of("a", "v1"), of("b", "v3")]);
        let there = relabelled.members[0].sibling.as_ref().expect("a sibling");
        assert_eq!(there.version.as_deref(), Some("v3"));
    }

    #[test]
    fn a_sibling_shows_the_workload_that_the_list_says() {
        let joined = |workload: Option<&str>| siblings::Sibling {
            workload: workload.map(str::to_owned),
            ..said("b", "", true)
        };
        for (workload, expected) in [(None, "w"), (Some("canary"), "canary")] {
            let siblings = after(&none("a"), vec![said("a", "", true), joined(workload)]);
            siblings.identity.install_for_tests();
            let sibling = siblings.members[0].sibling.as_ref().expect("a sibling");
            let (_, name) = sibling.secure(Instant::now()).expect("certified");
            assert_eq!(name.to_str(), siblings::instance_name(expected, "b"));
        }
    }

    #[test]
    fn a_worker_has_another_session_id_in_each_pod() {
        let siblings = after(&none("a"), vec![said("a", "", true), said("b", "", true)]);
        let there = siblings.members[0].sibling.as_ref().expect("a sibling");
        let here = [siblings.session_id("worker-a"), siblings.session_id("worker-b")].map(Option::unwrap);
        let mut all = [&*there.session_ids, &here].concat();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 4);
        let seen_by_b = after(&none("b"), vec![said("a", "", true), said("b", "", true)]);
        assert_eq!(&*seen_by_b.members[0].sibling.as_ref().expect("a sibling").session_ids, here);
    }

    #[test]
    fn a_sibling_that_could_not_serve_rests_and_without_a_certificate_none_is_reachable() {
        let siblings = after(&none("a"), vec![said("a", "", true), said("b", "", true)]);
        let sibling = siblings.members[0].sibling.as_ref().expect("a sibling");
        let now = Instant::now();
        assert!(!sibling.reachable(now), "there is no certificate");
        siblings.identity.install_for_tests();
        assert!(sibling.reachable(now));
        sibling.rest(now);
        assert!(!sibling.reachable(now + REST / 2));
        assert!(sibling.reachable(now + REST));
    }
}
