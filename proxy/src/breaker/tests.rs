use std::time::{Duration, Instant};

use outrigger_policy::effective;

use super::*;

pub(crate) const SUCCESS: Outcome = Outcome::Answered(200);
pub(crate) const FAILURE: Outcome = Outcome::Answered(500);

/// Opens after two failures in a row, for 5 seconds, and then lets one probe through.
pub(crate) fn settings() -> effective::Breaker {
    effective::Breaker {
        consecutive_failures: Some(2),
        failure_rate_threshold: None,
        sliding_window: Duration::from_secs(10),
        minimum_number_of_calls: 10,
        wait_duration_in_open_state: Duration::from_secs(5),
        permitted_calls_in_half_open: 1,
    }
}

fn finish(breaker: &mut Breaker, outcome: Outcome, now: Instant) -> Option<Transition> {
    let era = breaker.acquire(now).expect("admitted");
    breaker.record(era, outcome, now)
}

fn opened(settings: &effective::Breaker, now: Instant) -> Breaker {
    let mut breaker = Breaker::new(settings);
    assert_eq!(finish(&mut breaker, FAILURE, now), None);
    assert_eq!(finish(&mut breaker, FAILURE, now), Some(Transition::Opened));
    breaker
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn opens_probes_and_closes() {
    let start = Instant::now();
    let mut breaker = opened(&settings(), start);
    assert!(!breaker.admits(start + seconds(4)));
    assert_eq!(breaker.view(start + seconds(4)).open_remaining, Some(seconds(1)));
    assert_eq!(breaker.state(start + seconds(4)), State::Open);

    let later = start + seconds(5);
    assert_eq!(breaker.state(later), State::HalfOpen);
    let probe = breaker.acquire(later).expect("one probe");
    assert!(!breaker.admits(later) && breaker.acquire(later).is_none(), "only one");
    assert_eq!(breaker.record(probe, SUCCESS, later), Some(Transition::Closed));
    assert_eq!((breaker.state(later), breaker.view(later).consecutive_failures), (State::Closed, 0));
}

#[test]
fn a_failed_probe_opens_it_again_for_the_whole_time() {
    let start = Instant::now();
    let mut breaker = opened(&settings(), start);
    let later = start + seconds(7);
    assert_eq!(finish(&mut breaker, FAILURE, later), Some(Transition::Reopened));
    assert!(!breaker.admits(later + seconds(4)) && breaker.admits(later + seconds(5)));
    assert_eq!(breaker.view(later).times_opened, 2);
}

#[test]
fn every_probe_must_succeed() {
    let start = Instant::now();
    let settings = effective::Breaker { permitted_calls_in_half_open: 3, ..settings() };
    let mut breaker = opened(&settings, start);
    let later = start + seconds(5);
    assert_eq!(finish(&mut breaker, SUCCESS, later), None);
    let probes = [(); 2].map(|()| breaker.acquire(later).expect("three probes in all"));
    assert_eq!(breaker.acquire(later), None, "a probe that succeeded keeps its place");
    assert_eq!(breaker.record(probes[0], SUCCESS, later), None);
    assert_eq!(breaker.record(probes[1], SUCCESS, later), Some(Transition::Closed));
}

#[test]
fn asking_takes_no_probe_and_abandoning_gives_it_back() {
    let start = Instant::now();
    let mut breaker = opened(&settings(), start);
    let later = start + seconds(5);
    assert!((0..3).all(|_| breaker.admits(later)));
    let probe = breaker.acquire(later).expect("asking took nothing");
    breaker.abandon(probe);
    assert!(breaker.acquire(later).is_some());
}

#[test]
fn stragglers_decide_nothing() {
    let start = Instant::now();
    let mut breaker = Breaker::new(&settings());
    let [slow, hung, ..] = [(); 2].map(|()| breaker.acquire(start).expect("closed"));
    finish(&mut breaker, FAILURE, start);
    finish(&mut breaker, FAILURE, start);
    let later = start + seconds(5);
    let probe = breaker.acquire(later).expect("one probe");
    assert_eq!(breaker.record(slow, SUCCESS, later), None);
    breaker.abandon(hung);
    assert_eq!(breaker.acquire(later), None, "still probing");
    assert_eq!(breaker.record(probe, FAILURE, later), Some(Transition::Reopened));
}

#[test]
fn an_answer_that_breaks_off_is_a_failure_after_all() {
    let start = Instant::now();
    let settings = effective::Breaker { permitted_calls_in_half_open: 2, ..settings() };
    let mut breaker = opened(&settings, start);
    let later = start + seconds(5);
    let probe = breaker.acquire(later).expect("two probes");
    assert_eq!(breaker.record(probe, SUCCESS, later), None);
    assert_eq!(breaker.record(probe, FAILURE, later), Some(Transition::Reopened));
}

#[test]
fn a_change_keeps_the_timer_and_the_counts() {
    let start = Instant::now();
    let mut breaker = Breaker::new(&effective::Breaker { consecutive_failures: Some(5), ..settings() });
    (0..3).for_each(|_| assert_eq!(finish(&mut breaker, FAILURE, start), None));
    breaker.reconfigure(&effective::Breaker { wait_duration_in_open_state: seconds(9), ..settings() });
    assert!(breaker.admits(start), "the new limit of 2 is held against the next outcome");
    assert_eq!(finish(&mut breaker, FAILURE, start), Some(Transition::Opened));

    breaker.reconfigure(&effective::Breaker { wait_duration_in_open_state: seconds(1), ..settings() });
    assert!(!breaker.admits(start + seconds(8)), "it stays open as long as it was to");
    let later = start + seconds(9);
    assert_eq!(finish(&mut breaker, FAILURE, later), Some(Transition::Reopened));
    assert!(breaker.admits(later + seconds(1)), "the new time counts from here");
}

#[test]
fn the_view_is_data() {
    let start = Instant::now();
    let view = serde_json::to_value(opened(&settings(), start).view(start)).expect("serializes");
    assert_eq!(view["state"], "open");
    assert_eq!((&view["failures"], &view["calls"]), (&2.into(), &2.into()));
    assert_eq!(view["consecutiveFailures"], 2);
}
