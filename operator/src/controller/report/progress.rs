//! How many proxies have each policy in force, out of what is wanted and what was answered. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use crate::controller::observe::{Phase, PodFacts};
use crate::controller::resolve::{Group, Resolved};
use crate::crd::{Breaker, Canary, MAX_STRAGGLERS, Proxies, Straggler, Workers};
use crate::push::{Answer, Uid};

/// How far one policy got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Counts.
    pub proxies: Proxies,
    /// At most `MAX_STRAGGLERS`: those that rejected it first, then by pod.
    pub stragglers: Vec<Straggler>,
    /// Counts, of the proxies that reported.
    pub workers: Workers,
    /// How many breakers are not closed.
    pub open_breakers: u32,
    /// At most `MAX_BREAKERS` of them.
    pub breakers: Vec<Breaker>,
    /// How far the canary is.
    pub canary: Option<Canary>,
}

/// What became of a target at one proxy.
enum State {
    /// It is not counted: it stops, or it does not run yet.
    Away,
    Programmed,
    Rejected(String),
    Waiting(String),
}

/// How far each policy got, in the order of `resolved.policies`. `age` tells for how long a version has been wanted.
pub fn progress(
    resolved: &Resolved,
    answers: &HashMap<Uid, Answer>,
    age: impl Fn(&str) -> Duration,
) -> Vec<Progress> {
    let mut all = vec![Tally::default(); resolved.policies.len()];
    for group in &resolved.groups {
        let tally = of_group(group, answers, age(&group.target.version));
        for policy in &group.policies {
            all[*policy].add(&tally);
        }
    }
    all.into_iter().map(Tally::progress).collect()
}

/// Counts, and the first stragglers with whether they rejected it.
#[derive(Clone, Default)]
struct Tally {
    proxies: Proxies,
    found: Vec<(bool, Straggler)>,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.proxies.matched += other.proxies.matched;
        self.proxies.programmed += other.proxies.programmed;
        self.proxies.rejected += other.proxies.rejected;
        self.found.extend(other.found.iter().cloned());
    }

    fn progress(mut self) -> Progress {
        self.proxies.summary = format!("{}/{}", self.proxies.programmed, self.proxies.matched);
        let stragglers = first(self.found).into_iter().map(|(_, straggler)| straggler).collect();
        Progress { proxies: self.proxies, stragglers, ..Progress::default() }
    }
}

fn of_group(group: &Group, answers: &HashMap<Uid, Answer>, age: Duration) -> Tally {
    let mut proxies = Proxies::default();
    let mut found = Vec::new();
    for pod in &group.pods {
        let straggler = |reason| Straggler { pod: format!("{}/{}", pod.namespace, pod.name), reason };
        match state(pod, &group.target.version, answers.get(&pod.uid), age) {
            State::Away => continue,
            State::Programmed => proxies.programmed += 1,
            State::Rejected(reason) => {
                proxies.rejected += 1;
                found.push((true, straggler(format!("rejected: {reason}"))));
            }
            State::Waiting(reason) => found.push((false, straggler(reason))),
        }
        proxies.matched += 1;
    }
    Tally { proxies, found: first(found) }
}

fn first(mut found: Vec<(bool, Straggler)>) -> Vec<(bool, Straggler)> {
    found.sort_by(|(a, one), (b, other)| (Reverse(a), &one.pod).cmp(&(Reverse(b), &other.pod)));
    found.truncate(MAX_STRAGGLERS);
    found
}

/// A pod counts once it runs; one that still starts, once its proxy answered anything.
fn state(pod: &PodFacts, target: &str, answer: Option<&Answer>, age: Duration) -> State {
    let version = answer.and_then(|answer| answer.version.as_deref());
    let starting = pod.phase == Phase::Pending && version.is_none();
    if pod.terminating || pod.phase == Phase::Finished || starting {
        return State::Away;
    }
    match answer {
        Some(answer) if version == Some(target) => match &answer.rejection {
            None => State::Programmed,
            Some(reason) => State::Rejected(reason.clone()),
        },
        Some(Answer { connected: true, .. }) => State::Waiting(match coarse(age) {
            None => "not acknowledged yet".to_owned(),
            Some(age) => format!("not acknowledged for more than {age}"),
        }),
        _ => State::Waiting("not connected".to_owned()),
    }
}

/// In steps, so that waiting alone does not change a status every second.
fn coarse(age: Duration) -> Option<&'static str> {
    let steps = [(3600, "1h"), (600, "10m"), (60, "1m"), (10, "10s")];
    steps.iter().find(|(seconds, _)| Duration::from_secs(*seconds) <= age).map(|(_, text)| *text)
}
