use outrigger_policy::{Spec, Violation};
use proptest::prelude::*;

use super::*;
use crate::controller::observe::{Phase, PodFacts};
use crate::controller::resolve::{Group, Target};
use crate::crd::{ACCEPTED, MAX_STRAGGLERS, READY};
use crate::push::{Answer, Uid};

fn pod(name: &str) -> PodFacts {
    PodFacts {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        uid: name.into(),
        labels: [].into(),
        phase: Phase::Running,
        terminating: false,
        service_account: "web".to_owned(),
        place: None,
        drain: None,
    }
}

fn policy(generation: i64) -> PolicyFacts {
    let spec = Ok(Spec::default());
    PolicyFacts { name: "web".into(), uid: "u".into(), generation, created: 0, spec, status: None }
}

/// One policy, generation 1, that selects these pods and is version `v`.
fn resolved(pods: Vec<PodFacts>) -> Resolved {
    let target = Arc::new(Target { version: "v".into(), line: bytes::Bytes::new() });
    let group = Group {
        policies: vec![0],
        origins: [].into(),
        target,
        pods: pods.into_iter().map(Arc::new).collect(),
    };
    Resolved { policies: vec![Arc::new(policy(1))], groups: vec![group], ..Resolved::default() }
}

fn answer(version: Option<&str>, rejection: Option<&str>) -> Answer {
    Answer {
        version: version.map(Into::into),
        rejection: rejection.map(Into::into),
        connected: true,
        since: 0,
        report: None,
    }
}

fn answers(of: &[(&str, Answer)]) -> HashMap<Uid, Answer> {
    of.iter().map(|(pod, answer)| ((*pod).into(), answer.clone())).collect()
}

fn of_one(resolved: &Resolved, answers: &HashMap<Uid, Answer>, age: u64) -> Progress {
    progress(resolved, answers, |_| Duration::from_secs(age)).remove(0)
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("a time")
}

#[test]
fn programmed_is_what_every_live_proxy_acknowledged() {
    let mut stopping = pod("d");
    stopping.terminating = true;
    let mut starting = pod("e");
    starting.phase = Phase::Pending;
    let resolved = resolved(vec![pod("a"), pod("b"), stopping, starting]);
    let acknowledged = answer(Some("v"), None);
    let all = answers(&[("a", acknowledged.clone()), ("b", acknowledged.clone())]);
    let progress = of_one(&resolved, &all, 0);
    assert_eq!(progress.proxies.summary, "2/2");
    let status = status(&policy(1), &progress, None, now());
    for kind in [ACCEPTED, PROGRAMMED, READY] {
        assert!(status.is_true(kind), "{status:?}");
    }
    assert_eq!(status.condition(PROGRAMMED).expect("there").reason, reason::PROGRAMMED);

    let one =
        answers(&[("a", acknowledged.clone()), ("b", answer(Some("older"), None)), ("e", acknowledged)]);
    let progress = of_one(&resolved, &one, 0);
    assert_eq!(progress.proxies.summary, "2/3", "a pod that starts counts once its proxy answered");
}

#[test]
fn stragglers_are_named_with_the_reason() {
    let resolved = resolved(vec![pod("a"), pod("b"), pod("c"), pod("d")]);
    let known = answers(&[
        ("b", answer(None, None)),
        ("c", answer(Some("v"), Some("spec.x: unknown"))),
        ("d", Answer { connected: false, ..answer(Some("older"), None) }),
    ]);
    let progress = of_one(&resolved, &known, 75);
    let found: Vec<_> = progress.stragglers.iter().map(|s| (s.pod.as_str(), s.reason.as_str())).collect();
    assert_eq!(
        found,
        [
            ("shop/c", "rejected: spec.x: unknown"),
            ("shop/a", "not connected"),
            ("shop/b", "not acknowledged for more than 1m"),
            ("shop/d", "not connected"),
        ]
    );
    let status = status(&policy(1), &progress, None, now());
    let programmed = status.condition(PROGRAMMED).expect("there");
    assert_eq!(programmed.reason, reason::PARTIALLY_PROGRAMMED);
    assert_eq!(
        programmed.message,
        "in force at 0 of 4 proxies, rejected by 1; shop/c: rejected: spec.x: unknown"
    );
}

#[test]
fn a_proxy_that_left_still_has_what_it_acknowledged() {
    let left = Answer { connected: false, ..answer(Some("v"), None) };
    assert_eq!(of_one(&resolved(vec![pod("a")]), &answers(&[("a", left)]), 0).proxies.summary, "1/1");
}

#[test]
fn a_policy_without_proxies_is_programmed_vacuously() {
    let status = status(&policy(1), &of_one(&resolved(vec![]), &HashMap::new(), 0), None, now());
    assert!(status.is_true(READY));
    assert_eq!(status.condition(PROGRAMMED).expect("there").reason, reason::NO_PROXIES);
    assert_eq!(status.proxies.summary, "0/0");
    assert_eq!(transitions(None, &status), []);
}

#[test]
fn an_invalid_policy_says_all_that_is_wrong() {
    let violation = |path: &str| Violation { path: path.into(), reason: "must be better".into() };
    let invalid = PolicyFacts { spec: Err(vec![violation("spec.a"), violation("spec.b")]), ..policy(1) };
    let status = status(&invalid, &Progress::default(), None, now());
    let accepted = status.condition(ACCEPTED).expect("there");
    assert_eq!((accepted.status.as_str(), accepted.reason.as_str()), ("False", reason::INVALID));
    assert_eq!(accepted.message, "spec.a: must be better; spec.b: must be better");
    assert!(!status.is_true(READY));
    assert_eq!(transitions(None, &status)[0].reason, "PolicyInvalid");
    assert_eq!(transitions(Some(&status), &status), []);
}

#[test]
fn a_condition_keeps_its_time_while_its_status_stays() {
    let resolved = resolved(vec![pod("a"), pod("b")]);
    let none = status(&policy(1), &of_one(&resolved, &HashMap::new(), 0), None, now());
    let later = now() + k8s_openapi::jiff::SignedDuration::from_secs(9);
    let one = answers(&[("a", answer(Some("v"), None))]);
    let some = status(&policy(1), &of_one(&resolved, &one, 0), Some(&none), later);
    let time = |status: &Status| status.condition(PROGRAMMED).expect("there").last_transition_time.0;
    assert_eq!(time(&none), time(&some));
    let both = answers(&[("a", answer(Some("v"), None)), ("b", answer(Some("v"), None))]);
    let all = status(&policy(1), &of_one(&resolved, &both, 0), Some(&some), later);
    assert_eq!(time(&all), later);
    let events: Vec<_> = transitions(Some(&some), &all).iter().map(|t| t.reason).collect();
    assert_eq!(events, ["PolicyProgrammed"]);
    assert_eq!(transitions(Some(&all), &all), []);
}

#[test]
fn a_rejection_is_one_event_per_generation() {
    let resolved = resolved(vec![pod("a")]);
    let rejected = answers(&[("a", answer(Some("v"), Some("no")))]);
    let progress = of_one(&resolved, &rejected, 0);
    let first = status(&policy(1), &progress, None, now());
    let reasons = |from: Option<&Status>, to: &Status| -> Vec<_> {
        transitions(from, to).iter().map(|transition| transition.reason).collect()
    };
    assert_eq!(reasons(None, &first), ["ProxyRejectedPolicy"]);
    assert!(reasons(Some(&first), &first).is_empty());
    let next = status(&policy(2), &progress, Some(&first), now());
    assert_eq!(reasons(Some(&first), &next), ["ProxyRejectedPolicy"]);
}

#[test]
fn each_step_of_a_canary_is_one_event_and_news() {
    let led = PolicyFacts {
        spec: Ok(
            serde_yaml::from_str("canary: {version: v2, steps: [{weight: 10, pause: 20s}]}").expect("a spec")
        ),
        ..policy(1)
    };
    let begin = lead(&led, None, &Heard::default()).expect("it begins");
    let of = |canary: &Canary| Status { canary: Some(canary.clone()), ..Status::default() };
    let told = |from: Option<&Canary>, to: &Canary| -> Vec<_> {
        let found = transitions(from.map(of).as_ref(), &of(to));
        found.into_iter().filter(|t| t.reason.starts_with("Canary")).map(|t| (t.warning, t.reason)).collect()
    };
    assert_eq!(told(None, &begin), [(false, "CanaryStarted")]);
    assert_eq!(told(Some(&begin), &begin), []);
    let mut next = begin.clone();
    next.step = 2;
    assert_eq!(told(Some(&begin), &next), [(false, "CanaryAdvanced")]);
    next.phase = CanaryPhase::Failed;
    next.message = "its error rate".to_owned();
    assert_eq!(told(Some(&begin), &next), [(true, "CanaryFailed")]);
    assert_eq!(pace(Some(&of(&begin)), &of(&next), Some(Duration::from_millis(300)), true), Pace::Now);
    let another = Canary { run: "v3.1".to_owned(), ..begin.clone() };
    assert_eq!(told(Some(&next), &another), [(false, "CanaryStarted")]);
    let invalid = PolicyFacts { spec: Err(vec![]), ..policy(2) };
    assert_eq!(lead(&invalid, Some(&begin), &Heard::default()), Some(begin), "it is not forgotten");
    assert_eq!(lead(&policy(1), Some(&next), &Heard::default()), None, "it was removed");
}

#[test]
fn a_status_is_written_when_it_changed_and_not_too_often() {
    let two = resolved(vec![pod("a"), pod("b"), pod("c")]);
    let of = |acknowledged: &[&str]| {
        let known: Vec<_> = acknowledged.iter().map(|pod| (*pod, answer(Some("v"), None))).collect();
        status(&policy(1), &of_one(&two, &answers(&known), 0), None, now())
    };
    let (none, one, all) = (of(&[]), of(&["a"]), of(&["a", "b", "c"]));
    let [moment, second] = [Duration::from_millis(300), Duration::from_secs(2)];
    assert_eq!(pace(None, &none, None, true), Pace::Now);
    assert_eq!(pace(Some(&none), &none, Some(second), true), Pace::Never);
    assert_eq!(pace(Some(&none), &one, Some(moment), true), Pace::Later);
    assert_eq!(pace(Some(&none), &one, Some(second), true), Pace::Now);
    assert_eq!(pace(Some(&none), &all, Some(moment), true), Pace::Now, "news do not wait");
    // a new lease holder that has not heard of everybody yet
    assert_eq!(pace(Some(&all), &one, None, false), Pace::Later);
    assert_eq!(pace(Some(&all), &one, None, true), Pace::Now);
}

proptest! {
    /// Programmed means every counted proxy, whatever the fleet looks like; and the list stays short.
    #[test]
    fn counts_agree(states in prop::collection::vec(0..6_u8, 0..40)) {
        let mut pods = Vec::new();
        let mut known = HashMap::new();
        for (i, state) in states.iter().enumerate() {
            let mut pod = pod(&format!("p{i}"));
            let answer = match state {
                0 => Some(answer(Some("v"), None)),
                1 => Some(answer(Some("v"), Some("no"))),
                2 => Some(answer(Some("older"), None)),
                3 => Some(answer(None, None)),
                4 => { pod.terminating = true; Some(answer(Some("v"), None)) }
                _ => None,
            };
            known.extend(answer.map(|answer| (pod.uid.clone(), answer)));
            pods.push(pod);
        }
        let progress = of_one(&resolved(pods), &known, 0);
        let count = |state: u8| u32::try_from(states.iter().filter(|s| **s == state).count()).unwrap_or(0);
        prop_assert_eq!(progress.proxies.programmed, count(0));
        prop_assert_eq!(progress.proxies.rejected, count(1));
        prop_assert_eq!(progress.proxies.matched, u32::try_from(states.len()).unwrap_or(0) - count(4));
        let behind = progress.proxies.matched - progress.proxies.programmed;
        prop_assert_eq!(progress.stragglers.len(), MAX_STRAGGLERS.min(behind as usize));
        let status = status(&policy(1), &progress, None, now());
        prop_assert_eq!(status.is_true(PROGRAMMED), behind == 0);
    }
}
