use std::time::Duration;

use outrigger_policy::effective::{self, BreakerMode, FailureStatuses, Wait, Window};

use super::*;

pub(crate) const SUCCESS: Outcome = Outcome::Answered(200);
pub(crate) const FAILURE: Outcome = Outcome::Answered(500);

/// A call of this outcome that took no time.
pub(crate) fn call(outcome: Outcome) -> Call {
    Call { outcome, latency: Duration::ZERO }
}

/// Opens after two failures in a row, for 5 seconds, and then lets one probe through.
pub(crate) fn settings() -> effective::Breaker {
    effective::Breaker {
        mode: BreakerMode::Enforced,
        window: Window::Time(seconds(10)),
        minimum_number_of_calls: 10,
        failure_rate_threshold: None,
        slow_call_rate_threshold: None,
        slow_call_duration_threshold: seconds(1),
        consecutive_failures: Some(2),
        consecutive_local_origin_failures: None,
        failures: FailureStatuses::default(),
        wait: Wait { initial: seconds(5), multiplier: 1, max: seconds(60), jitter_percent: 0 },
        permitted_calls_in_half_open: 1,
        max_wait_in_half_open: None,
        recovery_ramp: Duration::ZERO,
        adaptive: None,
    }
}

fn waiting(initial: u64) -> Wait {
    Wait { initial: seconds(initial), ..settings().wait }
}

fn at(now: Instant) -> At {
    At { now, random: 0 }
}

fn record(breaker: &mut Breaker, era: Era, outcome: Outcome, now: Instant) -> Option<Transition> {
    breaker.record(era, call(outcome), at(now), || Ok(()))
}

fn finish(breaker: &mut Breaker, outcome: Outcome, now: Instant) -> Option<Transition> {
    let era = breaker.acquire(now).expect("admitted");
    record(breaker, era, outcome, now)
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
    assert_eq!(record(&mut breaker, probe, SUCCESS, later), Some(Transition::Closed));
    assert_eq!((breaker.state(later), breaker.view(later).consecutive_failures), (State::Closed, 0));
}

#[test]
fn a_failed_probe_opens_it_again_for_the_whole_time() {
    let start = Instant::now();
    let mut breaker = opened(&settings(), start);
    let later = start + seconds(7);
    assert_eq!(finish(&mut breaker, FAILURE, later), Some(Transition::Reopened));
    assert!(!breaker.admits(later + seconds(4)) && breaker.admits(later + seconds(5)));
    let view = breaker.view(later);
    assert_eq!((view.times_opened, view.cause.as_deref()), (2, Some("a probe failed: status 500")));
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
    assert_eq!(record(&mut breaker, probes[0], SUCCESS, later), None);
    assert_eq!(record(&mut breaker, probes[1], SUCCESS, later), Some(Transition::Closed));
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
    assert_eq!(record(&mut breaker, slow, SUCCESS, later), None);
    breaker.abandon(hung);
    assert_eq!(breaker.acquire(later), None, "still probing");
    assert_eq!(record(&mut breaker, probe, FAILURE, later), Some(Transition::Reopened));
}

#[test]
fn an_answer_that_breaks_off_is_a_failure_after_all() {
    let start = Instant::now();
    let settings = effective::Breaker { permitted_calls_in_half_open: 2, ..settings() };
    let mut breaker = opened(&settings, start);
    let later = start + seconds(5);
    let probe = breaker.acquire(later).expect("two probes");
    assert_eq!(record(&mut breaker, probe, SUCCESS, later), None);
    let broken = Outcome::Failed(Failure::Reset);
    assert_eq!(record(&mut breaker, probe, broken, later), Some(Transition::Reopened));
}

#[test]
fn a_change_keeps_the_timer_and_the_counts() {
    let start = Instant::now();
    let mut breaker = Breaker::new(&effective::Breaker { consecutive_failures: Some(5), ..settings() });
    (0..3).for_each(|_| assert_eq!(finish(&mut breaker, FAILURE, start), None));
    breaker.reconfigure(&effective::Breaker { wait: waiting(9), ..settings() });
    assert!(breaker.admits(start), "the new limit of 2 is held against the next outcome");
    assert_eq!(finish(&mut breaker, FAILURE, start), Some(Transition::Opened));

    breaker.reconfigure(&effective::Breaker { wait: waiting(1), ..settings() });
    assert!(!breaker.admits(start + seconds(8)), "it stays open as long as it was to");
    let later = start + seconds(9);
    assert_eq!(finish(&mut breaker, FAILURE, later), Some(Transition::Reopened));
    assert!(breaker.admits(later + seconds(1)), "the new time counts from here");
}

#[test]
fn the_wait_grows_until_it_stayed_closed_for_as_long() {
    let growing = Wait { initial: seconds(5), multiplier: 3, max: seconds(40), jitter_percent: 0 };
    let mut now = Instant::now();
    let mut breaker = opened(&effective::Breaker { wait: growing, ..settings() }, now);
    for expected in [5, 15, 40, 40] {
        assert_eq!(breaker.view(now).open_remaining, Some(seconds(expected)));
        now += seconds(expected);
        assert_eq!(finish(&mut breaker, FAILURE, now), Some(Transition::Reopened));
    }
    now += seconds(40);
    assert_eq!(finish(&mut breaker, SUCCESS, now), Some(Transition::Closed));
    now += seconds(39);
    (0..2).for_each(|_| _ = finish(&mut breaker, FAILURE, now));
    assert_eq!(breaker.view(now).open_remaining, Some(seconds(40)), "closed for less than it was open");
    now += seconds(40);
    finish(&mut breaker, SUCCESS, now);
    now += seconds(40);
    (0..2).for_each(|_| _ = finish(&mut breaker, FAILURE, now));
    assert_eq!(breaker.view(now).open_remaining, Some(seconds(5)), "it was well for as long");
}

#[test]
fn jitter_adds_up_to_its_part() {
    let jittered = Wait { jitter_percent: 50, ..waiting(10) };
    assert_eq!(wait(&jittered, 1, 0), seconds(10));
    let most = wait(&jittered, 1, u64::MAX);
    assert!(seconds(14) < most && most <= seconds(15), "{most:?}");
    let half = wait(&jittered, 1, u64::MAX / 2);
    assert_eq!(half.as_millis(), 12_500, "{half:?}");
}

#[test]
fn probes_that_never_come_back_are_given_up() {
    let start = Instant::now();
    let settings = effective::Breaker { max_wait_in_half_open: Some(seconds(30)), ..settings() };
    let mut breaker = opened(&settings, start);
    let later = start + seconds(5);
    assert_eq!(breaker.tick(at(later)), Some(Transition::HalfOpened));
    assert_eq!(breaker.tick(at(later + seconds(900))), None, "without a probe there is nothing to wait for");
    let later = later + seconds(1000);
    let hung = breaker.acquire(later).expect("one probe");
    assert_eq!(breaker.tick(at(later + seconds(29))), None);
    assert_eq!(breaker.tick(at(later + seconds(30))), Some(Transition::Reopened));
    assert_eq!(record(&mut breaker, hung, SUCCESS, later + seconds(31)), None, "it is a straggler now");
    let cause = breaker.view(later).cause;
    assert_eq!(cause.as_deref(), Some("1 probes did not come back within 30s"));
}

#[test]
fn failed_connections_in_a_row_open_and_answers_do_not() {
    let local = effective::Breaker {
        consecutive_failures: None,
        consecutive_local_origin_failures: Some(2),
        ..settings()
    };
    let (mut breaker, now) = (Breaker::new(&local), Instant::now());
    let refused = Outcome::Failed(Failure::ConnectFailed);
    for outcome in [refused, FAILURE, refused, Outcome::Failed(Failure::Protocol), refused] {
        assert_eq!(finish(&mut breaker, outcome, now), None, "{outcome}");
    }
    assert_eq!(finish(&mut breaker, Outcome::Failed(Failure::Timeout), now), Some(Transition::Opened));
    assert_eq!(breaker.view(now).cause.as_deref(), Some("2 failed connections in a row"));
}

#[test]
fn slow_calls_open_it_and_a_slow_probe_does_too() {
    let slow = effective::Breaker {
        consecutive_failures: None,
        slow_call_rate_threshold: Some(50),
        minimum_number_of_calls: 2,
        window: Window::Calls(2),
        ..settings()
    };
    let (mut breaker, now) = (Breaker::new(&slow), Instant::now());
    let mut take = |millis: u64, now| {
        let era = breaker.acquire(now).expect("admitted");
        let call = Call { outcome: SUCCESS, latency: Duration::from_millis(millis) };
        breaker.record(era, call, at(now), || Ok(()))
    };
    assert_eq!(take(1000, now), None, "not longer than the threshold");
    assert_eq!(take(1001, now), Some(Transition::Opened));
    assert_eq!(take(5000, now + seconds(5)), Some(Transition::Reopened));
    assert_eq!(take(1, now + seconds(10)), Some(Transition::Closed));
}

#[test]
fn the_policy_says_which_answers_are_failures() {
    let mut failures = FailureStatuses::NONE;
    failures.add_http(429);
    failures.add_grpc(8);
    let (mut breaker, now) = (Breaker::new(&effective::Breaker { failures, ..settings() }), Instant::now());
    for outcome in [FAILURE, Outcome::Grpc(13), FAILURE] {
        finish(&mut breaker, outcome, now);
    }
    assert_eq!(breaker.view(now).failures, 0);
    finish(&mut breaker, Outcome::Answered(429), now);
    assert_eq!(finish(&mut breaker, Outcome::Grpc(8), now), Some(Transition::Opened));
}

#[test]
fn a_breaker_that_is_held_closed_opens_when_it_no_longer_is() {
    let (mut breaker, now) = (Breaker::new(&settings()), Instant::now());
    let era = breaker.acquire(now).expect("closed");
    for _ in 0..5 {
        assert_eq!(breaker.record(era, call(FAILURE), at(now), || Err(Held::AllAlike)), None);
    }
    assert!(breaker.admits(now));
    assert_eq!(breaker.view(now).held, Some(Held::AllAlike.text()));
    assert_eq!(record(&mut breaker, era, FAILURE, now), Some(Transition::Opened));
    assert_eq!(breaker.view(now).held, None);
}

#[test]
fn modes_change_what_passes_and_not_the_state_beneath() {
    let start = Instant::now();
    let mut breaker = opened(&settings(), start);
    breaker.set_mode(BreakerMode::ForcedClosed, start);
    assert_eq!((breaker.state(start), breaker.acquire(start)), (State::Closed, Some(Era::NONE)));
    breaker.set_mode(BreakerMode::Enforced, start);
    assert_eq!(breaker.view(start + seconds(1)).open_remaining, Some(seconds(4)), "the timer goes on");
    breaker.set_mode(BreakerMode::ForcedOpen, start);
    assert!(!breaker.admits(start + seconds(99)) && breaker.acquire(start + seconds(99)).is_none());

    let mut breaker = Breaker::new(&settings());
    breaker.set_mode(BreakerMode::ForcedClosed, start);
    (0..9).for_each(|_| assert_eq!(finish(&mut breaker, FAILURE, start), None));
    assert_eq!(breaker.view(start).failures, 9, "what happens is counted");
    breaker.set_mode(BreakerMode::Enforced, start);
    assert_eq!(finish(&mut breaker, FAILURE, start), Some(Transition::Opened));
}

#[test]
fn metrics_only_goes_through_the_states_and_refuses_nothing() {
    let start = Instant::now();
    let mut breaker = opened(&effective::Breaker { mode: BreakerMode::MetricsOnly, ..settings() }, start);
    assert_eq!(breaker.state(start), State::Open);
    assert_eq!(breaker.acquire(start), Some(Era::NONE));
    let later = start + seconds(5);
    breaker.tick(at(later));
    let probe = breaker.acquire(later).expect("a probe");
    assert_eq!(breaker.acquire(later), Some(Era::NONE), "passes, and decides nothing");
    assert_eq!(record(&mut breaker, Era::NONE, FAILURE, later), None);
    assert_eq!(record(&mut breaker, probe, SUCCESS, later), Some(Transition::Closed));
}

#[test]
fn people_can_reset_and_probe() {
    let start = Instant::now();
    let mut breaker = opened(&settings(), start);
    breaker.reset(start);
    let view = breaker.view(start);
    assert_eq!((view.state, view.calls, view.cause, view.errors.len()), ("closed", 0, None, 0));
    breaker.probe(start);
    assert_eq!(breaker.state(start), State::HalfOpen);
    assert_eq!(finish(&mut breaker, FAILURE, start), Some(Transition::Reopened));
}

#[test]
fn the_last_failures_are_remembered_latest_first() {
    let never = effective::Breaker { consecutive_failures: None, ..settings() };
    let (mut breaker, start) = (Breaker::new(&never), Instant::now());
    for i in 0..20 {
        finish(&mut breaker, Outcome::Answered(500 + i), start + seconds(i.into()));
    }
    let errors = breaker.view(start).errors;
    assert_eq!(errors.len(), ERRORS);
    assert_eq!(
        (errors[0].at, errors[0].outcome.to_string()),
        (start + seconds(19), String::from("status 519"))
    );
}
