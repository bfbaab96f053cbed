use std::time::Duration;

use outrigger_policy::sample::bucket;
use outrigger_policy::{Spec, compile};
use proptest::prelude::*;

use super::*;

const THREE: &str =
    "{version: v2, steps: [{weight: 10, pause: 1m}, {weight: 50, pause: 2m}, {weight: 100, pause: 30s}]}";

fn rules(canary: &str) -> Rules {
    let spec: Spec = serde_yaml::from_str(&format!("canary: {canary}")).expect("a spec");
    compile(&spec).expect("valid").canary.expect("there")
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).expect("a time")
}

fn sample(requests: u64, failures: u64, millis: u64) -> Sample {
    let place = bucket(Duration::from_millis(millis)) as u16;
    Sample { requests, failures, latency: [(place, requests - failures)].into() }
}

fn good() -> Samples {
    Samples { old: sample(1000, 1, 20), new: sample(200, 0, 20) }
}

fn bad() -> Samples {
    Samples { old: sample(1000, 1, 20), new: sample(200, 10, 20) }
}

/// At which second each weight came.
type Weights = Vec<(i64, u32)>;

/// Looks every second until it ends; says at which second each change came.
fn run(rules: &Rules, samples: impl Fn(&Canary) -> Samples, seconds: i64) -> (Canary, Weights) {
    let mut state = next(rules, None, &Samples::default(), at(0));
    let mut weights = vec![(0, state.weight)];
    for second in 1..=seconds {
        let before = state.weight;
        state = next(rules, Some(&state), &samples(&state), at(second));
        if state.weight != before {
            weights.push((second, state.weight));
        }
    }
    (state, weights)
}

#[test]
fn a_good_version_takes_over_step_by_step() {
    let (state, weights) = run(&rules(THREE), |_| good(), 300);
    assert_eq!(weights, [(0, 10), (60, 50), (180, 100)]);
    assert_eq!((state.phase, state.weight), (CanaryPhase::Succeeded, 100));
    assert_eq!(state.message, "version v2 took over: it was not worse in any of 3 steps");
    assert_eq!(state.since.0, at(210));
}

#[test]
fn a_version_with_more_failures_is_switched_back_and_it_is_said_why() {
    let (state, weights) = run(&rules(THREE), |state| if state.step == 2 { bad() } else { good() }, 300);
    assert_eq!(weights, [(0, 10), (60, 50), (70, 0)]);
    assert_eq!(state.phase, CanaryPhase::Failed);
    assert_eq!(
        state.message,
        "version v2 was switched back in step 2 of 3 (version v2 gets 50 %): its error rate is 5.00 % of 200 \
         requests, the old version's 0.10 % of 1000: worse by more than the 1 percentage points allowed \
         (maxErrorRateMargin)"
    );
    assert_eq!((state.new.requests, state.new.error_rate.as_str()), (200, "5.00%"));
}

#[test]
fn a_slower_version_is_switched_back() {
    let slower = Samples { old: sample(1000, 0, 20), new: sample(200, 0, 40) };
    let (state, _) = run(&rules(THREE), |_| slower.clone(), 20);
    assert_eq!(state.phase, CanaryPhase::Failed);
    assert!(state.message.contains("5 % of its answers take at least"), "{}", state.message);
}

#[test]
fn a_step_waits_for_its_requests() {
    let few = Samples { old: sample(1000, 0, 20), new: sample(19, 0, 20) };
    let (state, weights) = run(&rules(THREE), |_| few.clone(), 3600);
    assert_eq!(weights, [(0, 10)]);
    assert_eq!(
        state.message,
        "step 1 of 3 (version v2 gets 10 %): waiting for the new version (19 of 100 requests so far)"
    );
}

#[test]
fn at_full_weight_it_is_held_against_what_the_old_version_did_before() {
    let alone = |failures| Samples { old: Sample::default(), new: sample(500, failures, 20) };
    let switched =
        |failures| move |state: &Canary| if state.weight == 100 { alone(failures) } else { good() };
    let (state, _) = run(&rules(THREE), switched(25), 400);
    assert_eq!(state.phase, CanaryPhase::Failed, "{}", state.message);
    assert_eq!(run(&rules(THREE), switched(0), 400).0.phase, CanaryPhase::Succeeded);
}

#[test]
fn a_switch_at_once_measures_the_old_version_first() {
    let rules = rules("{version: green, steps: [{weight: 100, pause: 1m}], analysis: {interval: 20s}}");
    let of = |failures| {
        move |state: &Canary| match state.weight {
            0 => Samples { old: sample(100, 0, 20), new: Sample::default() },
            _ => Samples { old: Sample::default(), new: sample(100, failures, 20) },
        }
    };
    let (state, weights) = run(&rules, of(0), 200);
    assert_eq!((state.phase, weights), (CanaryPhase::Succeeded, vec![(0, 0), (20, 100)]));
    let (state, weights) = run(&rules, of(50), 200);
    assert_eq!((state.phase, weights), (CanaryPhase::Failed, vec![(0, 0), (20, 100), (40, 0)]));
}

#[test]
fn an_operator_that_starts_in_the_middle_goes_on() {
    let rules = rules(THREE);
    let (state, _) = run(&rules, |_| good(), 100);
    let text = serde_json::to_string(&state).expect("serializes");
    let kept: Canary = serde_json::from_str(&text).expect("reads back");
    assert_eq!(kept, state, "the status says everything");
    assert_eq!(share(&kept), CanaryShare { weight: 50, epoch: "v2.1/2".to_owned() });
    let later = next(&rules, Some(&kept), &good(), at(1000));
    assert_eq!((later.step, later.weight), (3, 100), "one step at a time, however long nobody looked");
}

#[test]
fn what_was_decided_stays_until_another_version_or_attempt() {
    let (failed, _) = run(&rules(THREE), |_| bad(), 60);
    let edited = rules("{version: v2, steps: [{weight: 5}], analysis: {maxErrorRateMargin: 90}}");
    assert_eq!(next(&edited, Some(&failed), &good(), at(999)), failed);
    for other in ["{version: v3, steps: [{weight: 5}]}", "{version: v2, attempt: 2, steps: [{weight: 5}]}"] {
        let anew = next(&rules(other), Some(&failed), &good(), at(999));
        assert_eq!((anew.phase, anew.step, anew.weight), (CanaryPhase::Progressing, 1, 5), "{other}");
        assert_ne!(epoch(&anew), epoch(&failed));
    }
}

#[test]
fn edited_steps_apply_to_the_step_at_hand() {
    let (state, _) = run(&rules(THREE), |_| good(), 100);
    assert_eq!((state.step, state.weight), (2, 50));
    let gentler = rules("{version: v2, steps: [{weight: 10}, {weight: 20, pause: 2m}]}");
    let state = next(&gentler, Some(&state), &good(), at(101));
    assert_eq!((state.steps, state.weight), (2, 20));
    let state = next(&gentler, Some(&state), &good(), at(181));
    assert_eq!(state.phase, CanaryPhase::Succeeded);
}

proptest! {
    /// Whatever is heard and whenever it is looked at: the weight is that of a step, it falls only to 0 and then for
    /// good, and the status alone decides.
    #[test]
    fn the_weight_only_grows_or_falls_to_nothing(
        looks in prop::collection::vec((0_i64..100, 0_u64..300, 0_u64..300, 0_u64..20), 1..60),
    ) {
        let rules = rules(THREE);
        let mut state = next(&rules, None, &Samples::default(), at(0));
        let mut now = 0;
        for (wait, old, new, failures) in looks {
            now += wait;
            let samples = Samples { old: sample(old, 0, 20), new: sample(new, failures.min(new), 20) };
            let following = next(&rules, Some(&state), &samples, at(now));
            match following.phase {
                CanaryPhase::Failed => prop_assert_eq!(following.weight, 0),
                _ => prop_assert!(state.weight <= following.weight),
            }
            prop_assert!([0, 10, 50, 100].contains(&following.weight));
            prop_assert!(following.step <= state.step + 1);
            if state.phase != CanaryPhase::Progressing {
                prop_assert_eq!(&following, &state);
            }
            state = following;
        }
    }
}
