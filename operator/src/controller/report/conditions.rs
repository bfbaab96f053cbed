//! What the status says of a policy, and which changes of it are worth an Event. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::events::{Event, EventType};
use outrigger_policy::Violation;

use super::progress::Progress;
use crate::controller::observe::PolicyFacts;
use crate::crd::{ACCEPTED, CanaryPhase, PROGRAMMED, READY, Status, reason};

/// The longest message of a condition or an Event (the API server refuses Events of more than 1024).
const MESSAGE: usize = 1000;

/// A change that is worth an Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// Whether something is wrong.
    pub warning: bool,
    /// The Event's reason.
    pub reason: &'static str,
    /// What the Event says.
    pub note: String,
}

/// The status of a policy. A condition's time is that of its last change of status.
pub fn status(
    policy: &PolicyFacts,
    progress: &Progress,
    previous: Option<&Status>,
    now: Timestamp,
) -> Status {
    let verdicts = match &policy.spec {
        Err(violations) => invalid(violations),
        Ok(_) => valid(progress),
    };
    let condition = |(kind, status, reason, message): (&str, bool, &str, String)| {
        let status = if status { "True" } else { "False" };
        let before = previous.and_then(|previous| previous.condition(kind));
        let since =
            before.filter(|before| before.status == status).map(|before| before.last_transition_time.clone());
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: bounded(message),
            observed_generation: Some(policy.generation),
            // whole seconds: that is what the API server keeps
            last_transition_time: since.unwrap_or_else(|| Time(whole_seconds(now))),
        }
    };
    Status {
        observed_generation: policy.generation,
        conditions: verdicts.into_iter().map(condition).collect(),
        proxies: progress.proxies.clone(),
        stragglers: progress.stragglers.clone(),
        workers: progress.workers.clone(),
        open_breakers: progress.open_breakers,
        breakers: progress.breakers.clone(),
        canary: progress.canary.clone(),
    }
}

type Verdict = (&'static str, bool, &'static str, String);

fn invalid(violations: &[Violation]) -> [Verdict; 3] {
    let all: Vec<_> = violations.iter().map(ToString::to_string).collect();
    let message = all.join("; ");
    let consequence = format!("no proxy gets it: {message}");
    [
        (ACCEPTED, false, reason::INVALID, message),
        (PROGRAMMED, false, reason::INVALID, consequence.clone()),
        (READY, false, reason::INVALID, consequence),
    ]
}

fn valid(progress: &Progress) -> [Verdict; 3] {
    let proxies = &progress.proxies;
    let (programmed, why, message) = if proxies.matched == 0 {
        // Vacuously true: nothing is left to be done, and a policy may well be there before its pods.
        (true, reason::NO_PROXIES, "no live pod with a proxy is selected".to_owned())
    } else if proxies.programmed == proxies.matched {
        (true, reason::PROGRAMMED, format!("in force at all {} proxies", proxies.matched))
    } else {
        let why = if proxies.rejected == 0 { reason::RECONCILING } else { reason::PARTIALLY_PROGRAMMED };
        (false, why, behind(progress))
    };
    let ready = if programmed { reason::READY } else { why };
    [
        (ACCEPTED, true, reason::ACCEPTED, "the spec is valid".to_owned()),
        (PROGRAMMED, programmed, why, message.clone()),
        (READY, programmed, ready, message),
    ]
}

fn behind(progress: &Progress) -> String {
    let proxies = &progress.proxies;
    let mut message = format!("in force at {} of {} proxies", proxies.programmed, proxies.matched);
    if 0 < proxies.rejected {
        message.push_str(&format!(", rejected by {}", proxies.rejected));
    }
    if let Some(first) = progress.stragglers.first() {
        message.push_str(&format!("; {}: {}", first.pod, first.reason));
    }
    message
}

/// The changes between two statuses that are worth an Event.
pub fn transitions(previous: Option<&Status>, next: &Status) -> Vec<Transition> {
    let generation = |status: Option<&Status>| status.map_or(0, |status| status.observed_generation);
    let same = generation(previous) == generation(Some(next));
    let was = |kind, holds: &str| {
        same && previous.and_then(|previous| previous.condition(kind)).is_some_and(|c| c.status == holds)
    };
    let message = |kind| next.condition(kind).map(|c| c.message.clone()).unwrap_or_default();
    let mut found = Vec::new();
    if !next.is_true(ACCEPTED) && !was(ACCEPTED, "False") {
        found.push(Transition { warning: true, reason: "PolicyInvalid", note: message(ACCEPTED) });
    }
    if next.is_true(PROGRAMMED) && 0 < next.proxies.matched && !was(PROGRAMMED, "True") {
        let note = format!("generation {} is {}", next.observed_generation, message(PROGRAMMED));
        found.push(Transition { warning: false, reason: "PolicyProgrammed", note });
    }
    let rejected_before = same && previous.is_some_and(|previous| 0 < previous.proxies.rejected);
    if 0 < next.proxies.rejected && !rejected_before {
        let note = format!("generation {} is {}", next.observed_generation, message(PROGRAMMED));
        found.push(Transition { warning: true, reason: "ProxyRejectedPolicy", note });
    }
    found.extend(canary(previous, next));
    found
}

/// What the canary did, if it did anything.
fn canary(previous: Option<&Status>, next: &Status) -> Option<Transition> {
    let next = next.canary.as_ref()?;
    let before =
        previous.and_then(|previous| previous.canary.as_ref()).filter(|before| before.run == next.run);
    if before.is_some_and(|before| (before.phase, before.step) == (next.phase, next.step)) {
        return None;
    }
    let (warning, reason) = match (next.phase, before) {
        (CanaryPhase::Failed, _) => (true, "CanaryFailed"),
        (CanaryPhase::Succeeded, _) => (false, "CanarySucceeded"),
        (CanaryPhase::Progressing, None) => (false, "CanaryStarted"),
        (CanaryPhase::Progressing, Some(_)) => (false, "CanaryAdvanced"),
    };
    Some(Transition { warning, reason, note: next.message.clone() })
}

impl Transition {
    /// The Event to record.
    pub fn event(self) -> Event {
        Event {
            type_: if self.warning { EventType::Warning } else { EventType::Normal },
            reason: self.reason.to_owned(),
            note: Some(bounded(self.note)),
            action: "Push".to_owned(),
            secondary: None,
        }
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

pub(super) fn bounded(text: String) -> String {
    match text.char_indices().nth(MESSAGE) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
