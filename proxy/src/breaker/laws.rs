//! What holds of a breaker whatever happens to it.

use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use outrigger_policy::effective::{Wait, Window};

use super::tests::{FAILURE, SUCCESS, call};
use super::*;

#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a step is made once")]
enum Step {
    Advance(Duration),
    Acquire,
    /// Gives back one of the permits.
    Record(prop::sample::Index, Outcome),
    Abandon(prop::sample::Index),
    Reconfigure(effective::Breaker),
    ReconfigureTheSame,
    Tick(u64),
}

fn settings() -> impl Strategy<Value = effective::Breaker> {
    let window = prop_oneof![
        (1..20u64).prop_map(|seconds| Window::Time(Duration::from_secs(seconds))),
        (1..20u32).prop_map(Window::Calls),
    ];
    let rules = (prop::option::of(1..4u32), prop::option::of(1..=100u32), 1..6u32, prop::option::of(1..4u32));
    let wait = (1..10u64, 1..4u32, 1..40u64, 0..=100u32);
    let half_open = (1..4u32, prop::option::of(1..30u64));
    let more = (0..5u64, any::<bool>());
    (rules, window, wait, half_open, more).prop_map(|(rules, window, wait, half_open, more)| {
        effective::Breaker {
            window,
            consecutive_failures: rules.0,
            failure_rate_threshold: rules.1,
            minimum_number_of_calls: rules.2,
            consecutive_local_origin_failures: rules.3,
            wait: Wait {
                initial: Duration::from_secs(wait.0),
                multiplier: wait.1,
                max: Duration::from_secs(wait.2.max(wait.0)),
                jitter_percent: wait.3,
            },
            permitted_calls_in_half_open: half_open.0,
            max_wait_in_half_open: half_open.1.map(Duration::from_secs),
            recovery_ramp: Duration::from_secs(more.0),
            adaptive: more.1.then_some(effective::Adaptive {
                learning_window: Duration::from_secs(60),
                deviations: 2,
                failure_rate: [5, 50],
                latency: [Duration::from_millis(1), Duration::from_secs(1)],
            }),
            ..super::tests::settings()
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let broken = Outcome::Failed(Failure::Reset);
    let outcome = prop_oneof![3 => Just(SUCCESS), 1 => Just(FAILURE), 1 => Just(broken)];
    prop_oneof![
        3 => (0..4000u64).prop_map(|millis| Step::Advance(Duration::from_millis(millis))),
        8 => Just(Step::Acquire),
        6 => (any::<prop::sample::Index>(), outcome).prop_map(|(permit, outcome)| Step::Record(permit, outcome)),
        2 => any::<prop::sample::Index>().prop_map(Step::Abandon),
        1 => settings().prop_map(Step::Reconfigure),
        1 => Just(Step::ReconfigureTheSame),
        3 => any::<u64>().prop_map(Step::Tick),
    ]
}

/// A breaker and what must be true of it.
struct World {
    breaker: Breaker,
    settings: effective::Breaker,
    now: Instant,
    permits: Vec<Era>,
    /// Until when it must refuse.
    refuses_until: Option<Instant>,
    /// The half-open era: how many probes it permits, how many succeeded.
    half_open: Option<(Era, u32, u32)>,
}

impl World {
    fn new(settings: effective::Breaker) -> Self {
        let (breaker, now) = (Breaker::new(&settings), Instant::now());
        Self { breaker, settings, now, permits: Vec::new(), refuses_until: None, half_open: None }
    }

    fn take(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Advance(time) => self.now += time,
            Step::Acquire => self.acquire()?,
            Step::Record(index, outcome) if !self.permits.is_empty() => self.record(index, outcome)?,
            Step::Abandon(index) if !self.permits.is_empty() => {
                let era = self.permits.swap_remove(index.index(self.permits.len()));
                self.breaker.abandon(era);
            }
            Step::Record(..) | Step::Abandon(_) => (),
            Step::Tick(random) => self.tick(random)?,
            Step::Reconfigure(settings) => {
                let before = (self.breaker.state(self.now), self.breaker.view(self.now).open_remaining);
                self.breaker.reconfigure(&settings);
                let after = (self.breaker.state(self.now), self.breaker.view(self.now).open_remaining);
                prop_assert_eq!(before, after, "a change keeps the state and the timer");
                self.settings = settings;
            }
            Step::ReconfigureTheSame => {
                let before = (self.breaker.view(self.now), self.breaker.era, self.breaker.admits(self.now));
                self.breaker.reconfigure(&self.settings);
                let after = (self.breaker.view(self.now), self.breaker.era, self.breaker.admits(self.now));
                prop_assert_eq!(before, after, "the same settings again change nothing");
            }
        }
        self.check()
    }

    fn acquire(&mut self) -> TestCaseResult {
        let before = self.breaker.state(self.now);
        let admitted = self.breaker.admits(self.now);
        let permit = self.breaker.acquire(self.now);
        prop_assert_eq!(admitted, permit.is_some(), "what is admitted can be acquired, and nothing else");
        prop_assert!(before != State::Closed || admitted, "closed admits everything");
        if let Some(era) = permit {
            self.permits.push(era);
            let is_new = self.half_open.is_none_or(|(half_open, ..)| half_open != era);
            if before == State::HalfOpen && is_new {
                self.half_open = Some((era, self.settings.permitted_calls_in_half_open, 0));
            }
        }
        Ok(())
    }

    fn record(&mut self, index: prop::sample::Index, outcome: Outcome) -> TestCaseResult {
        let era = self.permits.swap_remove(index.index(self.permits.len()));
        let before = (self.breaker.view(self.now), self.breaker.era);
        let at = At { now: self.now, random: 1 << 63 };
        let transition = self.breaker.record(era, call(outcome), at, || Ok(()));
        if era != before.1 {
            prop_assert_eq!(
                (self.breaker.view(self.now), self.breaker.era),
                (before.0.clone(), before.1),
                "a straggler decides nothing"
            );
            prop_assert_eq!(transition, None);
        }
        if let Some((half_open, permitted, succeeded)) = &mut self.half_open
            && *half_open == era
            && before.1 == era
        {
            *succeeded += u32::from(!outcome.is_failure());
            let expected = match outcome.is_failure() {
                true => Some(Transition::Reopened),
                false => (permitted == succeeded).then_some(Transition::Closed),
            };
            prop_assert_eq!(transition, expected, "all probes must succeed, and one failure is enough");
        }
        self.note(transition)
    }

    /// Time passes, and somebody looks.
    fn tick(&mut self, random: u64) -> TestCaseResult {
        let before = self.breaker.state(self.now);
        let outstanding = self.outstanding();
        let transition = self.breaker.tick(At { now: self.now, random });
        match transition {
            None | Some(Transition::HalfOpened) => {
                prop_assert_eq!(
                    self.breaker.state(self.now),
                    before,
                    "a look changes what is, not what is seen"
                );
                if transition.is_some() {
                    let permitted = self.settings.permitted_calls_in_half_open;
                    self.half_open = Some((self.breaker.era, permitted, 0));
                }
            }
            Some(Transition::Reopened) => {
                prop_assert!(0 < outstanding, "only probes that are out can be given up");
                prop_assert!(self.settings.max_wait_in_half_open.is_some());
            }
            other => prop_assert!(false, "{:?} by a look", other),
        }
        self.note(transition)
    }

    /// Probes of this half-open era that are under way.
    fn outstanding(&self) -> usize {
        self.permits.iter().filter(|era| **era == self.breaker.era).count()
    }

    fn note(&mut self, transition: Option<Transition>) -> TestCaseResult {
        match transition {
            Some(Transition::Opened | Transition::Reopened) => {
                let Wait { initial, max, jitter_percent, .. } = self.settings.wait;
                let wait = self.breaker.view(self.now).open_remaining.unwrap_or_default();
                prop_assert!(initial <= wait, "never shorter than it is set to: {:?}", wait);
                let most = max.mul_f64(1.0 + f64::from(jitter_percent) / 100.0);
                prop_assert!(wait <= most, "never longer than its maximum and the jitter: {:?}", wait);
                self.refuses_until = Some(self.now + wait);
            }
            Some(Transition::Closed) => self.refuses_until = None,
            Some(Transition::HalfOpened) | None => (),
        }
        Ok(())
    }

    fn check(&self) -> TestCaseResult {
        if self.refuses_until.is_some_and(|until| self.now < until) {
            prop_assert!(!self.breaker.admits(self.now), "open admits nothing before its time");
            prop_assert_eq!(self.breaker.state(self.now), State::Open);
        }
        if let Some((era, permitted, succeeded)) = self.half_open
            && era == self.breaker.era
        {
            let probes = self.permits.iter().filter(|permit| **permit == era).count() as u32;
            prop_assert!(probes + succeeded <= permitted, "no more probes than permitted");
            prop_assert_eq!(self.breaker.admits(self.now), probes + succeeded < permitted);
        }
        Ok(())
    }

    /// Once all permits are back, a worker that is well gets its requests again.
    fn recovers(mut self) -> TestCaseResult {
        self.permits.drain(..).for_each(|era| self.breaker.abandon(era));
        self.now = self.refuses_until.map_or(self.now, |until| until.max(self.now));
        for _ in 0..=self.settings.permitted_calls_in_half_open.max(4) {
            if self.breaker.state(self.now) == State::Closed {
                return Ok(());
            }
            let era = self.breaker.acquire(self.now);
            prop_assert!(era.is_some(), "half-open can always go on");
            let at = At { now: self.now, random: 0 };
            era.and_then(|era| self.breaker.record(era, call(SUCCESS), at, || Ok(())));
        }
        prop_assert!(false, "it did not close");
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn the_laws_hold(first in settings(), steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new(first);
        for step in steps {
            world.take(step)?;
        }
        world.recovers()?;
    }
}
