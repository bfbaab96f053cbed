//! The breakers of a policy's pods: which are not closed, and which changes are worth an Event. Pure.
//!
//! What a pod's proxy reported holds until it reports something else or the pod is gone: a proxy that is on its way
//! from one replica of the operator to another has closed nothing.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use outrigger_policy::report::{BreakerReport, CanaryReport, Level, Report};

use crate::canary::Samples;
use crate::controller::observe::{Phase, PodFacts};
use crate::controller::resolve::{Group, Resolved};
use crate::crd::{Breaker, MAX_BREAKERS, Workers};
use crate::push::{Answer, Uid};

/// One who begins to look does not tell as news what is older than this, in milliseconds.
const OLD: i64 = 30_000;
/// More changes of a kind at once than this are told in one Event.
const APART: usize = 3;

/// What is heard of one policy's pods.
#[derive(Debug, Default)]
pub(super) struct Heard<'a> {
    /// Counts, of the pods that reported.
    pub(super) workers: Workers,
    /// The live pods of which this policy has the breakers, by `namespace/name`, with what their proxies reported.
    pub(super) pods: BTreeMap<String, Option<&'a Report>>,
    /// What the versions of this policy's canary answered, by proxy.
    pub(super) canary: Vec<&'a CanaryReport>,
}

/// What is heard of each policy's pods, in the order of `resolved.policies`.
pub(super) fn heard<'a>(resolved: &Resolved, answers: &'a HashMap<Uid, Answer>) -> Vec<Heard<'a>> {
    let mut all: Vec<_> = resolved.policies.iter().map(|_| Heard::default()).collect();
    for group in &resolved.groups {
        let owner = owner_of(resolved, group, "circuitBreaker");
        let canary = owner_of(resolved, group, "canary");
        for pod in group.pods.iter().filter(|pod| lives(pod)) {
            let report = answers.get(&pod.uid).and_then(|answer| answer.report.as_deref());
            for policy in &group.policies {
                all[*policy].count(report);
            }
            if let Some(canary) = canary {
                all[canary].canary.extend(report.and_then(|report| report.canary.as_ref()));
            }
            if let Some(owner) = owner {
                all[owner].pods.insert(format!("{}/{}", pod.namespace, pod.name), report);
            }
        }
    }
    for Heard { workers, .. } in &mut all {
        workers.summary = format!("{}/{}", workers.usable, workers.total);
    }
    all
}

/// The policy that a group's section came from.
fn owner_of(resolved: &Resolved, group: &Group, section: &str) -> Option<usize> {
    let name = &group.origins.get(section)?.policy;
    group.policies.iter().copied().find(|policy| resolved.policies[*policy].name == *name)
}

fn lives(pod: &PodFacts) -> bool {
    pod.phase != Phase::Finished && !pod.terminating
}

impl Heard<'_> {
    /// What the versions answered in this epoch, everywhere.
    pub(super) fn samples(&self, epoch: &str) -> Samples {
        let mut samples = Samples::default();
        for report in self.canary.iter().filter(|report| report.epoch == epoch) {
            samples.old.add(&report.old);
            samples.new.add(&report.new);
        }
        samples
    }

    fn count(&mut self, report: Option<&Report>) {
        let Some(report) = report else { return };
        self.workers.total += u32::try_from(report.workers.len()).unwrap_or(u32::MAX);
        self.workers.usable += u32::try_from(report.usable()).unwrap_or(u32::MAX);
    }
}

/// A breaker of the fleet: pod, level, name.
type Key = (String, Level, String);

/// What is said of one.
type Noted<'a> = (&'a Key, String);

/// The breakers of one policy that are not closed.
#[derive(Debug)]
pub(super) struct Ledger {
    known: BTreeMap<Key, BreakerReport>,
    /// When it began, in milliseconds since 1970.
    began: i64,
}

/// What became of a breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Requests do not flow any more.
    Opened,
    /// A few do.
    HalfOpen,
    /// All do.
    Closed,
}

/// Changes of breakers, told in one Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// What became of them.
    pub(super) kind: Kind,
    /// The pod, as `namespace/name`, of the first of them.
    pub(super) pod: String,
    /// What happened, in words.
    pub(super) note: String,
}

impl Ledger {
    /// Begins with what the status says, which may be the word of an earlier lease holder.
    pub(super) fn new(status: &[Breaker], unix_millis: i64) -> Self {
        let known = status.iter().map(|breaker| {
            let (level, name) = parse(&breaker.breaker);
            let report = BreakerReport {
                level,
                name: name.to_owned(),
                state: breaker.state.clone(),
                cause: breaker.cause.clone(),
                since: breaker.since.0.as_millisecond(),
                next_probe: breaker.next_probe.as_ref().map(|time| time.0.as_millisecond()),
            };
            ((breaker.pod.clone(), level, name.to_owned()), report)
        });
        Self { known: known.collect(), began: unix_millis }
    }

    /// Takes in what is heard. Returns what is worth an Event.
    pub(super) fn update(&mut self, pods: &BTreeMap<String, Option<&Report>>) -> Vec<Change> {
        let mut next = BTreeMap::new();
        for (pod, report) in pods {
            match report {
                Some(report) => next.extend(
                    report
                        .breakers
                        .iter()
                        .map(|breaker| ((pod.clone(), breaker.level, breaker.name.clone()), breaker.clone())),
                ),
                None => {
                    let of_pod = self.known.iter().filter(|(key, _)| key.0 == *pod);
                    next.extend(of_pod.map(|(key, breaker)| (key.clone(), breaker.clone())));
                }
            }
        }
        let before = std::mem::replace(&mut self.known, next);
        let mut found: BTreeMap<Kind, Vec<Noted<'_>>> = BTreeMap::new();
        for (key, breaker) in &self.known {
            let same = before.get(key).is_some_and(|before| is_same(before, breaker));
            let old = !before.contains_key(key) && breaker.since < self.began - OLD;
            if !same && !old {
                let kind = if breaker.state == "half-open" { Kind::HalfOpen } else { Kind::Opened };
                found.entry(kind).or_default().push((key, describe(key, breaker)));
            }
        }
        for (key, breaker) in before.iter().filter(|(key, _)| pods.contains_key(&key.0)) {
            if !self.known.contains_key(key) {
                let note = format!("{}: closed; it had opened because: {}", subject(key), breaker.cause);
                found.entry(Kind::Closed).or_default().push((key, note));
            }
        }
        found.into_iter().flat_map(|(kind, changes)| told(kind, &changes)).collect()
    }

    /// How many are in this state.
    pub(super) fn count(&self, state: &str) -> usize {
        self.known.values().filter(|breaker| breaker.state == state).count()
    }

    /// How many are not closed, and the newest of them.
    pub(super) fn list(&self) -> (u32, Vec<Breaker>) {
        let mut newest: Vec<_> = self.known.iter().collect();
        newest.sort_by(|(a, one), (b, other)| (other.since, a).cmp(&(one.since, b)));
        let listed = newest.into_iter().take(MAX_BREAKERS).map(|((pod, level, name), breaker)| Breaker {
            pod: pod.clone(),
            breaker: named(*level, name),
            state: breaker.state.clone(),
            cause: breaker.cause.clone(),
            since: Time(seconds(breaker.since)),
            next_probe: breaker.next_probe.map(|at| Time(seconds(at))),
        });
        (u32::try_from(self.known.len()).unwrap_or(u32::MAX), listed.collect())
    }
}

/// Whether it is the same stretch of the same state; a status keeps whole seconds.
fn is_same(one: &BreakerReport, other: &BreakerReport) -> bool {
    one.state == other.state && seconds(one.since) == seconds(other.since)
}

/// A few changes each in an Event of their own, many in one.
fn told(kind: Kind, changes: &[Noted<'_>]) -> Vec<Change> {
    let change = |key: &Key, note| Change { kind, pod: key.0.clone(), note };
    if changes.len() <= APART {
        return changes.iter().map(|(key, note)| change(key, note.clone())).collect();
    }
    let Some((first, note)) = changes.first() else { return Vec::new() };
    let others: Vec<_> = changes.iter().skip(1).take(5).map(|(key, _)| subject(key)).collect();
    let rest = match changes.len() - 1 - others.len() {
        0 => String::new(),
        rest => format!(" and {rest} more"),
    };
    let what = match kind {
        Kind::Opened => "opened",
        Kind::HalfOpen => "are half-open",
        Kind::Closed => "closed",
    };
    let note = format!("{} breakers {what}. {note}. Also {}{rest}", changes.len(), others.join(", "));
    vec![change(first, note)]
}

fn describe(key: &Key, breaker: &BreakerReport) -> String {
    let subject = subject(key);
    if breaker.state == "half-open" {
        return format!(
            "{subject}: half-open, a few requests probe it; it opened because: {}",
            breaker.cause
        );
    }
    let next = match breaker.next_probe {
        Some(at) => format!("; next probe at {}", seconds(at)),
        None => String::new(),
    };
    format!("{subject}: {} since {}: {}{next}", breaker.state, seconds(breaker.since), breaker.cause)
}

fn subject((pod, level, name): &Key) -> String {
    format!("{} of {pod}", named(*level, name))
}

fn named(level: Level, name: &str) -> String {
    match level {
        Level::Service => level.name().to_owned(),
        Level::Worker | Level::Route => format!("{} {name}", level.name()),
    }
}

fn parse(breaker: &str) -> (Level, &str) {
    match breaker.split_once(' ') {
        Some(("worker", name)) => (Level::Worker, name),
        Some(("route", name)) => (Level::Route, name),
        _ => (Level::Service, "service"),
    }
}

/// A time as Kubernetes writes it: whole seconds.
fn seconds(unix_millis: i64) -> Timestamp {
    Timestamp::from_second(unix_millis.div_euclid(1000)).unwrap_or_default()
}

impl Kind {
    /// The reason of the Event.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Opened => "BreakerOpened",
            Self::HalfOpen => "BreakerHalfOpen",
            Self::Closed => "BreakerClosed",
        }
    }
}

#[cfg(test)]
mod tests;
