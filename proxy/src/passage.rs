//! The way of one request through the breakers of the service and of its route: once for a request, however often it
//! is tried. What the client got in the end is what the request says of them.

use std::cell::Cell;
use std::time::Instant;

use crate::breaker::{At, Call, Era, Refused, gate};
use crate::rejection::Rejection;
use crate::thread::View;

/// Permits of the service's and the route's breaker. Dropped without an outcome they are given back: the client went
/// away or was at fault, or the proxy refused the request.
pub struct Passage {
    snapshot: View,
    /// The place of the route.
    route: usize,
    service_era: Era,
    route_era: Era,
    finished: Cell<bool>,
    /// Its outcome was a failure, which counts once, or what comes of it says nothing.
    settled: Cell<bool>,
}

impl Passage {
    /// Asks both breakers.
    ///
    /// # Errors
    /// Which of them is open, and for how long.
    pub fn enter(snapshot: &View, route: usize, now: Instant) -> Result<Self, Rejection> {
        let at = || At { now, random: fastrand::u64(..) };
        let service_era = snapshot
            .service
            .enter(at())
            .map_err(|Refused { retry_after }| Rejection::ServiceOpen(retry_after.unwrap_or_default()))?;
        let route_era = snapshot.routes[route].gate.enter(at()).map_err(|Refused { retry_after }| {
            snapshot.service.abandon(service_era);
            Rejection::RouteOpen(retry_after.unwrap_or_default())
        })?;
        let (finished, settled) = Default::default();
        Ok(Self { snapshot: snapshot.clone(), route, service_era, route_era, finished, settled })
    }

    /// Whether the next outcomes decide if requests pass again.
    pub fn probes(&self) -> bool {
        self.snapshot.service.half_open() || self.snapshot.routes[self.route].gate.half_open()
    }

    /// What the request says of the route and of the service.
    pub fn finish(&mut self, call: Call, now: Instant) {
        if !self.finished.replace(true) {
            self.record(call, now);
        }
    }

    /// The answer broke off: the request's outcome, or, where that was decided early, a failure after all.
    pub fn broke_off(&mut self, call: Call, now: Instant) {
        self.finished.set(true);
        if !self.settled.get() {
            self.record(call, now);
        }
    }

    /// What comes of the request is the client's doing: half-open breakers get their permits back.
    pub fn excuse(&self) {
        self.settled.set(true);
        self.abandon();
    }

    fn abandon(&self) {
        if !self.finished.replace(true) {
            self.snapshot.service.abandon(self.service_era);
            self.snapshot.routes[self.route].gate.abandon(self.route_era);
        }
    }

    fn record(&self, call: Call, now: Instant) {
        self.settled.set(call.outcome.is_failure());
        let shard = gate::shard();
        self.snapshot.service.record(shard, self.service_era, call, now);
        self.snapshot.routes[self.route].gate.record(shard, self.route_era, call, now);
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::rc::Rc;
    use std::sync::Arc;
    use std::time::Duration;

    use outrigger_policy::merge::Merged;
    use outrigger_policy::wire::{KeyRing, Update};

    use super::*;
    use crate::breaker::Outcome;
    use crate::control::Control;
    use crate::snapshot::Source;

    const SPEC: &str = "
circuitBreaker:
  service: {consecutiveFailures: 2, waitDurationJitter: 0, permittedNumberOfCallsInHalfOpenState: 1}
  route: {consecutiveFailures: 3}
routes: [{name: api, match: {path: {value: /api}}}]";

    fn apply(control: &Control, spec: &str) {
        let spec = serde_yaml::from_str(spec).expect("a spec");
        let update = Update::new(Merged { spec, ..Merged::default() }, KeyRing::default());
        control.apply(&update, Source::File).expect("valid");
    }

    fn control() -> Arc<Control> {
        let control = Control::new(Vec::new());
        apply(&control, SPEC);
        control
    }

    fn view(control: &Control) -> View {
        Rc::new(control.snapshot())
    }

    fn enter(control: &Control, now: Instant) -> Result<Passage, Rejection> {
        Passage::enter(&view(control), 0, now)
    }

    fn ends(control: &Control, status: u16, now: Instant) {
        let call = Call { outcome: Outcome::Answered(status), latency: Duration::ZERO };
        enter(control, now).expect("both let it pass").finish(call, now);
    }

    #[test]
    fn the_first_that_is_open_refuses_and_says_for_how_long() {
        let (control, now) = (control(), Instant::now());
        (0..2).for_each(|_| ends(&control, 500, now));
        assert_eq!(enter(&control, now).err(), Some(Rejection::ServiceOpen(Duration::from_secs(5))));
        ends(&control, 200, now + Duration::from_secs(5));
        assert_eq!(control.snapshot().service.view(now).state, "closed");
        let later = now + Duration::from_secs(6);
        for status in [500, 200, 500, 200, 500] {
            ends(&control, status, later);
        }
        apply(
            &control,
            &SPEC.replace("service: {consecutiveFailures: 2", "service: {consecutiveFailures: 9"),
        );
        (0..2).for_each(|_| ends(&control, 500, later));
        assert!(matches!(enter(&control, later).err(), Some(Rejection::RouteOpen(_))), "three in a row");
        assert!(Passage::enter(&view(&control), 1, later).is_ok(), "the other route's is closed");
    }

    #[test]
    fn a_permit_comes_back_whatever_happens() {
        let (control, now) = (control(), Instant::now());
        (0..2).for_each(|_| ends(&control, 500, now));
        let later = now + Duration::from_secs(5);
        drop(enter(&control, later).expect("the probe")); // the client is gone
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _probe = enter(&control, later).expect("it came back");
            assert!(enter(&control, later).is_err(), "one probe at a time");
            panic!("while it holds a permit");
        }));
        assert!(panicked.is_err());
        // The route refuses what the service had let pass: the service's permit comes back.
        let route = &control.snapshot().routes[0].gate;
        let hold = crate::breaker::Command {
            action: crate::breaker::Action::Open,
            reason: String::from("a test"),
            until_unix_millis: i64::MAX,
        };
        route.command(hold, later, 0).expect("always possible");
        assert!(matches!(enter(&control, later).err(), Some(Rejection::RouteOpen(_))));
        let other = Passage::enter(&view(&control), 1, later);
        assert!(other.is_ok(), "the probe is free again");
    }

    #[test]
    fn a_failure_counts_once_and_what_is_excused_never() {
        let (control, now) = (control(), Instant::now());
        let failed = Call { outcome: Outcome::Answered(500), latency: Duration::ZERO };
        let mut failing = enter(&control, now).expect("closed");
        failing.finish(failed, now);
        failing.broke_off(failed, now); // its error broke off, too
        assert_eq!(control.snapshot().service.view(now).tally.failed, 1);
        let mut excused = enter(&control, now).expect("closed still");
        excused.excuse();
        excused.finish(failed, now);
        excused.broke_off(failed, now);
        assert_eq!(control.snapshot().service.view(now).tally.failed, 1);
        ends(&control, 500, now);
        let later = now + Duration::from_secs(5);
        let probe = enter(&control, later).expect("the probe");
        assert!(enter(&control, later).is_err(), "one at a time");
        probe.excuse();
        assert!(enter(&control, later).is_ok(), "it stands aside for another");
    }

    #[test]
    fn a_policy_that_changes_keeps_the_breakers() {
        let (control, now) = (control(), Instant::now());
        (0..2).for_each(|_| ends(&control, 500, now));
        let before = control.snapshot();
        let seen = |snapshot: &crate::snapshot::Snapshot| -> Vec<_> {
            snapshot.gates().map(|gate| (gate.name().clone(), gate.view(now))).collect()
        };
        apply(&control, &format!("{SPEC}\nretry: {{numRetries: 1}}"));
        let after = control.snapshot();
        assert_ne!(before.version, after.version);
        assert_eq!(seen(&before), seen(&after));
        assert!(enter(&control, now).is_err(), "it is open still");
        apply(&control, "circuitBreaker: {service: {consecutiveFailures: 2}}");
        assert_eq!(control.snapshot().routes.len(), 1, "the route is gone, and its breaker with it");
        assert_eq!(control.snapshot().service.view(now), before.service.view(now));
        apply(&control, "{}");
        assert!(enter(&control, now).is_ok(), "a section that is removed lets everything pass");
    }
}
