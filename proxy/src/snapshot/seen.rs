//! The workers that may be sent a request, as one data thread found them last.

use std::time::{Duration, Instant};

use super::Snapshot;
use crate::availability;
use crate::balance::Usable;
use crate::breaker::any_waits;

/// While a breaker waits, so that time alone changes who may be sent a request, each of up to so many workers is asked
/// for every request.
const ASKED_EACH_TIME: usize = 16;
/// How old the answer may be then where there are more: to ask hundreds would cost more than all else that a request
/// does.
const RECENT: Duration = Duration::from_millis(1);

/// The workers of one snapshot that could be sent a request at one time.
pub struct Seen {
    serial: u64,
    changes: u64,
    at: Instant,
    usable: Usable,
}

impl Seen {
    /// Asks every worker.
    pub fn new(snapshot: &Snapshot, now: Instant) -> Self {
        let changes = availability::changes();
        Self { serial: snapshot.serial, changes, at: now, usable: snapshot.usable(now) }
    }

    /// Who may be sent a request now. The workers are asked again only where the answer may be another. A breaker that
    /// has opened since gives no permit in any case.
    pub fn now(&mut self, snapshot: &Snapshot, now: Instant) -> Usable {
        if !self.holds(snapshot, now) {
            *self = Self::new(snapshot, now);
        }
        self.usable.clone()
    }

    fn holds(&self, snapshot: &Snapshot, now: Instant) -> bool {
        if self.serial != snapshot.serial || self.changes != availability::changes() {
            return false;
        }
        let recent =
            || ASKED_EACH_TIME < snapshot.workers.len() && now.saturating_duration_since(self.at) < RECENT;
        !any_waits() || recent() && !self.usable.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use outrigger_policy::merge::Merged;
    use outrigger_policy::wire::{KeyRing, Update};
    use proptest::prelude::*;

    use super::*;
    use crate::breaker::{At, Call, Outcome};
    use crate::siblings::Siblings;
    use crate::snapshot::Source;
    use crate::worker::Worker;

    /// Opens after one failure for 5 s, and probes with one request.
    const SPEC: &str = "
circuitBreaker:
  worker: {consecutiveFailures: 1, waitDurationInOpenState: 5s, permittedNumberOfCallsInHalfOpenState: 1}
loadBalancer: {type: RoundRobin}
";

    fn snapshot(workers: u16) -> Snapshot {
        snapshot_of(workers, SPEC)
    }

    fn snapshot_of(workers: u16, spec: &str) -> Snapshot {
        let address = |i| SocketAddr::from(([127, 0, 0, 1], 1000 + i));
        let workers: Vec<_> = (0..workers).map(|i| Worker::new(&format!("seen-{i}"), address(i))).collect();
        let spec = serde_yaml::from_str(spec).expect("a spec");
        let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
        let initial = Snapshot::initial(workers.clone(), Siblings::none(None, Arc::default()));
        initial.next(&update, Source::File, workers).expect("a valid policy")
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Healthy(bool),
        Draining(bool),
        Drained(bool),
        Accepts(bool),
        Probe,
        Answer(u16),
        Look,
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            any::<bool>().prop_map(Step::Healthy),
            any::<bool>().prop_map(Step::Draining),
            any::<bool>().prop_map(Step::Drained),
            any::<bool>().prop_map(Step::Accepts),
            Just(Step::Probe),
            prop_oneof![Just(200), Just(500)].prop_map(Step::Answer),
            Just(Step::Look),
            (0..6000u64).prop_map(Step::Wait),
        ]
    }

    fn take(step: Step, worker: &Arc<Worker>, now: &mut Instant) {
        match step {
            Step::Healthy(healthy) => worker.set_healthy(healthy),
            Step::Draining(draining) => worker.set_draining(draining),
            Step::Drained(drained) => _ = worker.drain.follow(drained, Duration::from_secs(3), *now),
            Step::Accepts(true) => worker.accepts(),
            Step::Accepts(false) => worker.refuses(),
            Step::Probe => drop(worker.acquire(*now)),
            Step::Answer(status) => {
                if let Some(mut permit) = worker.acquire(*now) {
                    permit.finish(Call { outcome: Outcome::Answered(status), latency: Duration::ZERO }, *now);
                }
            }
            Step::Look => worker.breaker.tick(At { now: *now, random: 0 }, 0),
            Step::Wait(millis) => *now += Duration::from_millis(millis),
        }
    }

    proptest! {
        /// Whatever happens, few workers are known as they are; of many it is known after a millisecond that an open
        /// breaker's time is over, and everything else at once.
        #[test]
        fn it_is_what_asking_each_says(
            many in any::<bool>(),
            with_breaker in any::<bool>(),
            steps in prop::collection::vec((0..3usize, step()), 1..60),
        ) {
            let snapshot = snapshot_of(if many { 20 } else { 3 }, if with_breaker { SPEC } else { "{}" });
            let mut now = Instant::now();
            let mut seen = Seen::new(&snapshot, now);
            for (place, step) in steps {
                take(step, &snapshot.workers[place], &mut now);
                prop_assert_eq!(seen.now(&snapshot, now), snapshot.usable(now), "after {:?}", step);
            }
        }
    }

    #[test]
    fn of_many_an_answer_of_the_same_millisecond_is_good_enough_while_a_breaker_waits() {
        let snapshot = snapshot(20);
        let start = Instant::now();
        let mut permit = snapshot.workers[7].acquire(start).expect("a permit");
        permit.finish(Call { outcome: Outcome::Answered(500), latency: Duration::ZERO }, start);
        let open = snapshot.workers[7].breaker.retry_after(start).expect("it is open");
        let mut seen = Seen::new(&snapshot, start);
        let mut at = |time| seen.now(&snapshot, start + time).contains(7);
        let half = RECENT / 2;
        assert!(!at(Duration::ZERO) && !at(open - half));
        assert!(!at(open + half / 2), "its time is over since the answer, but that is recent");
        assert!(at(open + half));
    }

    #[test]
    fn who_accepts_no_connection_is_avoided_where_nothing_else_says_whom_to() {
        let now = Instant::now();
        for (spec, avoided) in [
            ("{}", true),
            (SPEC, false),
            ("{healthCheck: {active: {}}}", false),
            ("{circuitBreaker: {worker: {mode: MetricsOnly}}}", true),
        ] {
            let snapshot = snapshot_of(3, spec);
            let mut seen = Seen::new(&snapshot, now);
            let mut chosen = || seen.now(&snapshot, now).iter().collect::<Vec<_>>();
            let expected = |some: &[usize]| if avoided { some.to_vec() } else { vec![0, 1, 2] };
            snapshot.workers[0].refuses();
            snapshot.workers[1].starts();
            assert_eq!(chosen(), expected(&[2]), "{spec}");
            snapshot.workers[2].refuses();
            assert_eq!(chosen(), [0, 1, 2], "one may be back: {spec}");
            snapshot.workers[0].accepts();
            assert_eq!(chosen(), expected(&[0]), "{spec}");
        }
    }

    #[test]
    fn another_snapshot_is_another_answer() {
        let now = Instant::now();
        let (two, three) = (snapshot(2), snapshot(3));
        let mut seen = Seen::new(&two, now);
        assert_eq!((seen.now(&two, now).len(), seen.now(&three, now).len()), (2, 3));
    }
}
