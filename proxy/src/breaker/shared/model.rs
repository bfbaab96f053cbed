//! What threads share, in every order that loom finds. Run by `scripts/loom`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{self, BreakerMode, BreakerName, FailureStatuses, Wait, Window};

use super::{At, SharedBreaker, State};
use crate::breaker::{Call, Gate, Outcome};

const FAILURE: Call = Call { outcome: Outcome::Answered(500), latency: Duration::ZERO };
const SUCCESS: Call = Call { outcome: Outcome::Answered(200), latency: Duration::ZERO };

/// Opens after one failure, for a second; one probe.
fn settings() -> effective::Breaker {
    let second = Duration::from_secs(1);
    effective::Breaker {
        mode: BreakerMode::Enforced,
        window: Window::Time(10 * second),
        minimum_number_of_calls: 100,
        failure_rate_threshold: None,
        slow_call_rate_threshold: None,
        slow_call_duration_threshold: second,
        consecutive_failures: Some(1),
        consecutive_local_origin_failures: None,
        failures: FailureStatuses::default(),
        wait: Wait { initial: second, multiplier: 1, max: second, jitter_percent: 0 },
        permitted_calls_in_half_open: 1,
        max_wait_in_half_open: None,
        recovery_ramp: Duration::ZERO,
        adaptive: None,
    }
}

fn open(now: Instant) -> SharedBreaker {
    let breaker = SharedBreaker::new(BreakerName::Service);
    breaker.configure(Some(&settings()), None, now);
    let era = breaker.acquire(now).expect("closed");
    breaker.record(era, FAILURE, now);
    breaker
}

/// Two ask for the one probe: one gets it, and giving it back without an outcome leaves none taken.
#[test]
fn one_probe_and_it_comes_back() {
    let now = Instant::now();
    let later = now + Duration::from_secs(3600);
    loom::model(move || {
        let breaker = Arc::new(open(now));
        let other = {
            let breaker = breaker.clone();
            loom::thread::spawn(move || {
                let era = breaker.acquire(later);
                era.into_iter().for_each(|era| breaker.abandon(era));
                era.is_some()
            })
        };
        let mine = breaker.acquire(later);
        let theirs = other.join().expect("no panic");
        assert!(mine.is_some() || theirs, "half-open lets one through");
        if mine.is_some() {
            assert!(!breaker.admits(later), "the probe is taken");
        }
        mine.into_iter().for_each(|era| breaker.abandon(era));
        let probe = breaker.acquire(later).expect("nothing is left taken");
        breaker.record(probe, SUCCESS, later);
        assert_eq!(breaker.state(later), State::Closed);
    });
}

/// A straggler of the closed era comes in while the breaker probes: it decides nothing.
#[test]
fn stragglers_decide_nothing() {
    let now = Instant::now();
    let later = now + Duration::from_secs(3600);
    loom::model(move || {
        let breaker = Arc::new(SharedBreaker::new(BreakerName::Service));
        breaker.configure(Some(&settings()), None, now);
        let [first, straggler] = [(); 2].map(|()| breaker.acquire(now).expect("closed"));
        breaker.record(first, FAILURE, now);
        let other = {
            let breaker = breaker.clone();
            loom::thread::spawn(move || {
                breaker.record(straggler, FAILURE, later);
                breaker.abandon(straggler);
            })
        };
        let probe = breaker.acquire(later).expect("one probe");
        breaker.record(probe, SUCCESS, later);
        other.join().expect("no panic");
        assert_eq!(breaker.state(later), State::Closed);
    });
}

/// Settings are taken away and come back under a request: whatever it says is of another era, or is counted.
#[test]
fn settings_change_under_a_request() {
    let now = Instant::now();
    loom::model(move || {
        let breaker = Arc::new(SharedBreaker::new(BreakerName::Service));
        breaker.configure(Some(&settings()), None, now);
        let other = {
            let breaker = breaker.clone();
            loom::thread::spawn(move || {
                breaker.configure(None, None, now);
                breaker.configure(Some(&settings()), None, now);
            })
        };
        let era = breaker.acquire(now).expect("closed, or none");
        breaker.record(era, FAILURE, now);
        other.join().expect("no panic");
        let open = breaker.state(now) == State::Open;
        assert_eq!(open, !breaker.admits(now), "the word is what the machine says");
    });
}

/// Two threads record at a gate while a third looks: each outcome counts once.
#[test]
fn no_outcome_is_lost_at_a_gate() {
    let now = Instant::now();
    let never = effective::Breaker { consecutive_failures: None, ..settings() };
    loom::model(move || {
        let gate = Arc::new(Gate::new(BreakerName::Service));
        gate.configure(Some(&never), None, now);
        let era = gate.enter(At { now, random: 0 }).expect("closed");
        let others = [(0, FAILURE), (1, SUCCESS)].map(|(shard, call)| {
            let gate = gate.clone();
            loom::thread::spawn(move || gate.record(shard, era, call, now))
        });
        others.into_iter().for_each(|other| other.join().expect("no panic"));
        let view = gate.view(now);
        assert_eq!((view.calls, view.failures), (2, 1));
    });
}
