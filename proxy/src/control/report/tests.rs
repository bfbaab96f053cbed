use std::sync::Arc;
use std::time::Duration;

use outrigger_policy::merge::{Candidate, merge};
use outrigger_policy::wire::{KeyRing, Update};

use super::*;
use crate::breaker::{Call, Outcome};
use crate::control::Control;
use crate::snapshot::Source;
use crate::worker::Worker;

const FAILURE: Outcome = Outcome::Answered(500);
const SUCCESS: Outcome = Outcome::Answered(200);
const SPEC: &str = "
circuitBreaker:
  worker: {consecutiveFailures: 3, waitDurationInOpenState: 5s, waitDurationJitter: 0, permittedNumberOfCallsInHalfOpenState: 1}";

fn two_workers() -> (Arc<Control>, Vec<Arc<Worker>>) {
    let address = "127.0.0.1:1".parse().expect("an address");
    let workers: Vec<_> = ["a", "b"].map(|name| Worker::new(name, address)).into();
    let control = Control::new(workers.clone());
    let spec = serde_yaml::from_str(SPEC).expect("a spec");
    let merged = merge(&[Candidate { name: "web", generation: 1, created: 0, spec: &spec }]);
    control.apply(&Update::new(merged, KeyRing::default()), Source::File).expect("valid");
    (control, workers)
}

fn answer(worker: &Arc<Worker>, outcome: Outcome, now: Instant) {
    let call = Call { outcome, latency: Duration::from_millis(1) };
    worker.acquire(now).expect("it admits a request").finish(call, now);
}

struct Clock(Instant);

impl Clock {
    fn at(&self, millis: u64) -> Moment {
        let unix_millis = 1_800_000_000_000 + i64::try_from(millis).expect("small");
        Moment { now: self.0 + Duration::from_millis(millis), unix_millis }
    }
}

#[test]
fn a_breaker_is_reported_from_opening_to_closing_and_time_alone_is_no_news() {
    let (control, workers) = two_workers();
    let (clock, mut observer) = (Clock(Instant::now()), Observer::default());
    let mut look = |millis| observer.report(&control.snapshot(), clock.at(millis));
    let first = look(0);
    assert_eq!(first.usable(), 2);
    assert_eq!((first.breakers.len(), first.version.is_empty()), (0, false));
    assert_eq!(look(100), first);

    (0..3).for_each(|_| answer(&workers[0], FAILURE, clock.at(200).now));
    let open = look(250);
    assert_eq!(open.usable(), 1);
    assert!(open.workers[0].healthy, "an open breaker is no failed check");
    let [breaker] = &open.breakers[..] else { panic!("one is open: {open:?}") };
    assert_eq!((breaker.level, &*breaker.name, &*breaker.state), (Level::Worker, "a", "open"));
    assert_eq!(breaker.cause, "3 failures in a row");
    assert_eq!((breaker.since, breaker.next_probe), (1_800_000_000_250, Some(1_800_000_005_200)));
    assert_eq!(look(3000), open, "nothing happened");

    let half_open = look(5300);
    assert_eq!((half_open.usable(), &*half_open.breakers[0].state), (2, "half-open"));
    assert_eq!(half_open.breakers[0].next_probe, None, "a probe may go now");
    answer(&workers[0], SUCCESS, clock.at(5400).now);
    assert_eq!(look(5500), first);
}

#[test]
fn a_breaker_that_opens_again_between_two_looks_is_news() {
    let (control, workers) = two_workers();
    let (clock, mut observer) = (Clock(Instant::now()), Observer::default());
    (0..3).for_each(|_| answer(&workers[0], FAILURE, clock.at(0).now));
    let first = observer.report(&control.snapshot(), clock.at(10));
    answer(&workers[0], FAILURE, clock.at(6000).now);
    let second = observer.report(&control.snapshot(), clock.at(6010));
    assert_eq!(second.breakers[0].state, "open");
    assert!(first.breakers[0].next_probe < second.breakers[0].next_probe);
}

#[test]
fn a_failed_check_takes_a_worker_out() {
    let (control, workers) = two_workers();
    workers[1].set_healthy(false);
    let at = Moment { now: Instant::now(), unix_millis: 0 };
    let report = Observer::default().report(&control.snapshot(), at);
    assert_eq!(report.usable(), 1);
    assert!(!report.workers[1].healthy && report.breakers.is_empty());
}

#[test]
fn a_worker_that_refuses_connections_counts_as_dead_with_no_check_and_no_breaker() {
    let address = "127.0.0.1:1".parse().expect("an address");
    let workers: Vec<_> = ["a", "b", "c"].map(|name| Worker::new(name, address)).into();
    let control = Control::new(workers.clone());
    let at = Moment { now: Instant::now(), unix_millis: 0 };
    let usable = || Observer::default().report(&control.snapshot(), at).usable();
    workers[0].refuses();
    workers[1].starts();
    assert_eq!(usable(), 1);
    workers.iter().for_each(|worker| worker.accepts());
    assert_eq!(usable(), 3);
}
