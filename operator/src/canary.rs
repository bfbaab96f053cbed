//! Leads a new version from step to step, and back to the old one when it is worse. Pure: rules, what the status says,
//! what the versions answered, and the time in; what the status is to say out.
//!
//! All there is to know stands in the policy's status, so an operator that starts goes on where another stopped, and
//! every replica pushes the same share. Proxies count anew in each step (an *epoch*), so what they counted needs no
//! point to count from, may be heard twice, and compares the two versions under one share only: over several
//! shares the sums would mislead wherever load and failures go up and down together (Simpson's paradox).

mod verdict;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use outrigger_policy::effective::Canary as Rules;
use outrigger_policy::sample::Sample;
use outrigger_policy::wire::CanaryShare;

use self::verdict::{Reference, Verdict, judge};
use crate::crd::{Baseline, Canary, CanaryPhase, Figures};

/// What the two versions answered in the present epoch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    /// The old version.
    pub old: Sample,
    /// The new version.
    pub new: Sample,
}

/// What proxies are told of a canary in this state.
pub fn share(state: &Canary) -> CanaryShare {
    CanaryShare { weight: state.weight, epoch: epoch(state) }
}

/// The epoch of a canary in this state.
pub fn epoch(state: &Canary) -> String {
    format!("{}/{}", state.run, state.step)
}

/// The state that follows. Without a state, or with that of another run, the canary begins.
pub fn next(rules: &Rules, previous: Option<&Canary>, samples: &Samples, now: Timestamp) -> Canary {
    match previous.filter(|previous| previous.run == rules.run()) {
        None => begin(rules, now),
        Some(state) if state.phase == CanaryPhase::Progressing => progress(rules, state, samples, now),
        Some(state) => state.clone(),
    }
}

fn begin(rules: &Rules, now: Timestamp) -> Canary {
    // Before a switch at once, the old version is measured: afterwards it gets nothing that it could be measured by.
    let switches_at_once = weight(rules, 1) == 100;
    let step = u32::from(!switches_at_once);
    let since = Time(whole_seconds(now));
    let mut state = Canary {
        run: rules.run(),
        phase: CanaryPhase::Progressing,
        message: String::new(),
        step,
        steps: steps(rules),
        weight: 0,
        since: since.clone(),
        analyzed: since,
        old: Figures::default(),
        new: Figures::default(),
        baseline: None,
    };
    enter(&mut state, rules, step, now);
    state
}

fn progress(rules: &Rules, state: &Canary, samples: &Samples, now: Timestamp) -> Canary {
    let mut next = state.clone();
    next.steps = steps(rules);
    next.weight = weight(rules, state.step); // the steps may have been edited
    let elapsed = |since: &Time, at_least: std::time::Duration| {
        SignedDuration::try_from(at_least).is_ok_and(|at_least| at_least <= now.duration_since(since.0))
    };
    if !elapsed(&state.analyzed, rules.analysis.interval) {
        return next;
    }
    next.analyzed = Time(whole_seconds(now));
    next.old = figures(rules, &samples.old);
    next.new = figures(rules, &samples.new);
    let measured = Reference::of(&samples.old, rules.analysis.latency_percentile);
    let reference = match &state.baseline {
        Some(baseline) if next.weight == 100 => Reference::from(baseline),
        _ => measured,
    };
    let pause = match state.step.checked_sub(1) {
        Some(place) => rules.steps.get(place as usize).map_or(rules.analysis.interval, |step| step.pause),
        None => rules.analysis.interval,
    };
    match judge(&rules.analysis, next.weight, &reference, &samples.new) {
        Verdict::Worse(why) => fail(&mut next, rules, &why, now),
        Verdict::NotWorse if elapsed(&state.since, pause) => {
            if next.weight < 100 {
                next.baseline = Some(measured.into());
            }
            enter(&mut next, rules, state.step + 1, now);
        }
        Verdict::NotWorse => next.message = format!("{}: not worse", place(&next, rules)),
        Verdict::Waiting(of) => next.message = format!("{}: waiting for {of}", place(&next, rules)),
    }
    next
}

/// Begins a step, or ends after the last one.
fn enter(state: &mut Canary, rules: &Rules, step: u32, now: Timestamp) {
    let now = Time(whole_seconds(now));
    (state.since, state.analyzed) = (now.clone(), now);
    state.steps = steps(rules);
    if state.steps < step {
        state.phase = CanaryPhase::Succeeded;
        state.weight = 100;
        state.message =
            format!("version {} took over: it was not worse in any of {} steps", rules.version, state.steps);
        return;
    }
    state.step = step;
    state.weight = weight(rules, step);
    (state.old, state.new) = (Figures::default(), Figures::default());
    state.message = place(state, rules);
}

fn fail(state: &mut Canary, rules: &Rules, why: &str, now: Timestamp) {
    state.message = format!("version {} was switched back in {}: {why}", rules.version, place(state, rules));
    state.phase = CanaryPhase::Failed;
    state.weight = 0;
    state.since = Time(whole_seconds(now));
}

fn place(state: &Canary, rules: &Rules) -> String {
    let Canary { step, steps, weight, .. } = state;
    match step {
        0 => format!("measuring the old version before the switch to {}", rules.version),
        _ => format!("step {step} of {steps} (version {} gets {weight} %)", rules.version),
    }
}

fn steps(rules: &Rules) -> u32 {
    u32::try_from(rules.steps.len()).unwrap_or(u32::MAX)
}

/// The new version's share in this step, counted from 1; 0 in the one before the first.
fn weight(rules: &Rules, step: u32) -> u32 {
    let Some(place) = step.checked_sub(1) else { return 0 };
    rules.steps.get(place as usize).or(rules.steps.last()).map_or(0, |step| step.weight)
}

fn figures(rules: &Rules, sample: &Sample) -> Figures {
    let percentile = rules.analysis.latency_percentile;
    let rank = sample.latencies() as f64 * f64::from(percentile) / 100.0;
    let latency = sample.of_rank(rank).map(|latency| format!("{:.1}ms", latency.as_secs_f64() * 1000.0));
    Figures {
        requests: i64::try_from(sample.requests).unwrap_or(i64::MAX),
        error_rate: format!("{:.2}%", sample.error_rate() * 100.0),
        latency: latency.unwrap_or_default(),
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

// === impl Baseline ===

impl From<Reference> for Baseline {
    fn from(reference: Reference) -> Self {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        Self {
            requests: number(reference.requests),
            failures: number(reference.failures),
            latency_micros: reference.latency.map(|latency| latency.as_micros() as i64),
        }
    }
}

impl From<&Baseline> for Reference {
    fn from(baseline: &Baseline) -> Self {
        let number = |number: i64| u64::try_from(number).unwrap_or_default();
        Self {
            requests: number(baseline.requests),
            failures: number(baseline.failures),
            latency: baseline.latency_micros.map(|micros| std::time::Duration::from_micros(number(micros))),
        }
    }
}

#[cfg(test)]
mod tests;
