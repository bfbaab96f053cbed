//! Circuit breakers of workers, routes and the service: closed (requests pass), open (refused), half-open (a few
//! probe it).
//!
//! The states and the settings mean what they mean in resilience4j ("CircuitBreaker" in its documentation; the
//! pattern is Nygard's, "Release It!", 2007). The state machine stands here once, for every level; what opens a
//! closed breaker are the rules in the modules below, each a `Trip`. `SharedBreaker` is what requests meet at a
//! worker, `Gate` what they meet at a route and at the service.
//!
//! Three things keep it sound between concurrent requests. To ask (`admits`) changes nothing, so every worker can be
//! asked and only the chosen one gives a permit (`acquire`). A permit that comes back without an outcome
//! (`abandon`) frees its place among the probes. And every permit carries the era it was given in: each change of
//! state begins a new one, and outcomes of an earlier era decide nothing.

mod adaptive;
mod command;
mod consecutive_failures;
mod failure_rate;
pub mod gate;
mod local_origin;
mod outcome;
mod pool;
mod rules;
mod shared;
mod slow_call_rate;
mod state;
mod sync;
mod view;
pub mod watch;
mod window;

#[cfg(test)]
mod laws;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use outrigger_policy::effective::{self, BreakerMode};

pub use self::adaptive::Learned;
pub use self::command::{Action, Command, Hold, NoBreaker};
pub use self::gate::{Gate, Refused};
pub use self::outcome::{Call, Failure, Outcome};
pub use self::pool::{Held, Pool, Rules as PoolRules, Standing};
use self::rules::{Cause, Rules, Seen};
pub use self::shared::{At, SharedBreaker, any_takes_a_share, any_waits};
pub use self::state::{Era, State, Tally, Transition};
pub use self::view::{LastError, View};
pub use self::window::Counts;
use self::window::SlidingWindow;

/// Failures that are remembered.
const ERRORS: usize = 8;

/// The state machine.
pub struct Breaker {
    settings: effective::Breaker,
    /// Whether it is enforced: the settings' mode, or what people hold it in.
    mode: BreakerMode,
    window: SlidingWindow,
    rules: Rules,
    phase: Phase,
    era: Era,
    /// When the phase began; `None` for the first.
    since: Option<Instant>,
    /// How often it opened without staying closed for long in between, and how long it last waited.
    openings_in_a_row: u32,
    last_wait: Duration,
    /// Why it last left the closed state.
    cause: Option<Cause>,
    held: Option<Held>,
    errors: VecDeque<(Instant, Outcome)>,
    tally: Tally,
}

enum Phase {
    /// `ramp` is when the share began to grow; `None` when it is whole.
    Closed {
        ramp: Option<Instant>,
    },
    Open {
        until: Instant,
    },
    /// `permitted` is what was permitted when the era began: were it to change under the probes, they could be
    /// enough already, with none left to say so.
    HalfOpen {
        permitted: u32,
        /// Probes under way and probes that succeeded.
        taken: u32,
        succeeded: u32,
        /// When the last probe was taken.
        last_taken: Instant,
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: &effective::Breaker) -> Self {
        Self::in_era(settings, Era(0))
    }

    fn in_era(settings: &effective::Breaker, era: Era) -> Self {
        Self {
            mode: settings.mode,
            window: SlidingWindow::new(settings.window),
            rules: Rules::new(settings),
            phase: Phase::Closed { ramp: None },
            era,
            since: None,
            openings_in_a_row: 0,
            last_wait: Duration::ZERO,
            cause: None,
            held: None,
            errors: VecDeque::new(),
            tally: Tally::default(),
            settings: settings.clone(),
        }
    }

    /// Puts other settings in force and keeps the state and what was counted. New thresholds are held against the
    /// next outcome. A breaker that is open stays open as long as it was to, and probes under way are as many as
    /// they were to be: a new waiting time counts from the next opening, a new number of probes from the next
    /// half-open era.
    pub fn reconfigure(&mut self, settings: &effective::Breaker) {
        self.rules.reconfigure(settings);
        self.window.reconfigure(settings.window);
        self.settings = settings.clone();
    }

    /// Enforces it or not. Its state goes on beneath.
    pub fn set_mode(&mut self, mode: BreakerMode, now: Instant) {
        let was_forced_open = self.mode == BreakerMode::ForcedOpen && mode != self.mode;
        self.mode = mode;
        if let Phase::Closed { ramp } = &mut self.phase
            && was_forced_open
            && !self.settings.recovery_ramp.is_zero()
        {
            *ramp = Some(now); // it was as good as open
        }
    }

    /// Whether a request may be sent. Changes nothing: it may be asked of workers that are not chosen then.
    pub fn admits(&self, now: Instant) -> bool {
        match self.mode {
            BreakerMode::ForcedOpen => false,
            BreakerMode::ForcedClosed | BreakerMode::MetricsOnly => true,
            BreakerMode::Enforced => self.lets_through(now),
        }
    }

    fn lets_through(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Closed { .. } => true,
            Phase::Open { until } => until <= now,
            Phase::HalfOpen { permitted, taken, .. } => taken < permitted,
        }
    }

    /// Takes the right to send one request, which must be given back by `record` or by `abandon`.
    pub fn acquire(&mut self, now: Instant) -> Option<Era> {
        if !self.admits(now) {
            return None;
        }
        let passed_over = match self.mode {
            BreakerMode::ForcedClosed => !matches!(self.phase, Phase::Closed { .. }),
            _ => !self.lets_through(now),
        };
        if passed_over {
            return Some(Era::NONE);
        }
        if let Phase::Open { .. } = self.phase {
            self.half_open(now);
        }
        if let Phase::HalfOpen { taken, last_taken, .. } = &mut self.phase {
            *taken += 1;
            *last_taken = now;
        }
        Some(self.era)
    }

    /// Gives a permit back without an outcome.
    pub fn abandon(&mut self, era: Era) {
        if let Phase::HalfOpen { taken, succeeded, .. } = &mut self.phase
            && era == self.era
            && *succeeded < *taken
        {
            *taken -= 1;
        }
    }

    /// Gives a permit back with its outcome. One that decided early may still be followed by a failure of the same
    /// permit, when its answer breaks off. `may_open` is asked when a rule says that the breaker must open.
    pub fn record(
        &mut self,
        era: Era,
        call: Call,
        at: At,
        may_open: impl FnOnce() -> Result<(), Held>,
    ) -> Option<Transition> {
        if era != self.era {
            return None;
        }
        let seen = self.see(call, at.now);
        match &mut self.phase {
            Phase::Closed { .. } => {
                self.window.add(&seen, at.now);
                let cause = self.rules.observe(&seen, &self.window.counts(at.now), at.now)?;
                if self.mode == BreakerMode::ForcedClosed {
                    return None;
                }
                self.held = may_open().err();
                if self.held.is_some() {
                    return None;
                }
                Some(self.open(Transition::Opened, cause, at))
            }
            Phase::HalfOpen { .. } if seen.failed => {
                Some(self.open(Transition::Reopened, format!("a probe failed: {}", call.outcome), at))
            }
            Phase::HalfOpen { .. } if seen.slow && self.settings.slow_call_rate_threshold.is_some() => {
                let cause = format!("a probe took {:.1} s", call.latency.as_secs_f64());
                Some(self.open(Transition::Reopened, cause, at))
            }
            Phase::HalfOpen { permitted, succeeded, .. } => {
                *succeeded += 1;
                (*permitted <= *succeeded).then(|| self.close(at.now))
            }
            Phase::Open { .. } => None, // no permit is of an open era
        }
    }

    /// What a call means by these settings.
    fn judge(&self, call: Call) -> Seen {
        let failures = &self.settings.failures;
        let (failed, local_origin) = match call.outcome {
            Outcome::Answered(status) => (failures.has_http(status), false),
            Outcome::Grpc(code) => (failures.has_grpc(code), false),
            Outcome::Failed(failure) => (true, failure.is_local_origin()),
        };
        let slow = self.settings.slow_call_duration_threshold < call.latency;
        Seen { failed, slow, local_origin, latency: call.latency }
    }

    /// Whether a call failed or was slow.
    fn is_bad(&self, call: Call) -> bool {
        let Seen { failed, slow, .. } = self.judge(call);
        failed || slow
    }

    /// Counts a call, and remembers it when it failed.
    fn see(&mut self, call: Call, now: Instant) -> Seen {
        let seen @ Seen { failed, slow, .. } = self.judge(call);
        if failed {
            self.tally.failed += 1;
            self.errors.truncate(ERRORS - 1);
            self.errors.push_front((now, call.outcome));
        } else {
            self.tally.successful += 1;
        }
        self.tally.slow += u64::from(slow);
        seen
    }

    /// What time brings about: to be called now and then.
    pub fn tick(&mut self, at: At) -> Option<Transition> {
        match &mut self.phase {
            Phase::Open { until } if *until <= at.now => Some(self.half_open(at.now)),
            Phase::HalfOpen { taken, succeeded, last_taken, .. } if *succeeded < *taken => {
                let (outstanding, limit) = (*taken - *succeeded, self.settings.max_wait_in_half_open?);
                if at.now.saturating_duration_since(*last_taken) < limit {
                    return None;
                }
                let cause = format!("{outstanding} probes did not come back within {limit:?}");
                Some(self.open(Transition::Reopened, cause, at))
            }
            Phase::Closed { ramp } => {
                let whole =
                    |since: Instant| self.settings.recovery_ramp <= at.now.saturating_duration_since(since);
                *ramp = ramp.filter(|since| !whole(*since));
                None
            }
            _ => None,
        }
    }

    /// The state at this time. What is forced is in the state it is forced to be in.
    pub fn state(&self, now: Instant) -> State {
        match (self.mode, &self.phase) {
            (BreakerMode::ForcedOpen, _) => State::Open,
            (BreakerMode::ForcedClosed, _) | (_, Phase::Closed { .. }) => State::Closed,
            (_, Phase::Open { until }) if now < *until => State::Open,
            (_, Phase::Open { .. } | Phase::HalfOpen { .. }) => State::HalfOpen,
        }
    }

    /// Forgets what it saw and is closed, as if it were new. What was learned stays.
    pub fn reset(&mut self, now: Instant) {
        self.openings_in_a_row = 0;
        self.errors.clear();
        self.cause = None;
        if let Phase::Closed { .. } = self.phase {
            self.forget();
            self.enter(Phase::Closed { ramp: None }, now);
        } else {
            self.close(now);
        }
    }

    /// Lets the next few requests decide, whatever the state.
    pub fn probe(&mut self, now: Instant) {
        self.half_open(now);
    }

    fn open(&mut self, transition: Transition, cause: Cause, at: At) -> Transition {
        let stayed_closed = match (&self.phase, self.since) {
            (Phase::Closed { .. }, Some(since)) => self.last_wait <= at.now.saturating_duration_since(since),
            (Phase::Closed { .. }, None) => true,
            _ => false,
        };
        self.openings_in_a_row = if stayed_closed { 1 } else { self.openings_in_a_row.saturating_add(1) };
        self.last_wait = wait(&self.settings.wait, self.openings_in_a_row, at.random);
        self.cause = Some(cause);
        self.held = None;
        self.count(transition);
        self.enter(Phase::Open { until: at.now + self.last_wait }, at.now);
        transition
    }

    fn half_open(&mut self, now: Instant) -> Transition {
        self.count(Transition::HalfOpened);
        let permitted = self.settings.permitted_calls_in_half_open;
        self.enter(Phase::HalfOpen { permitted, taken: 0, succeeded: 0, last_taken: now }, now);
        Transition::HalfOpened
    }

    fn close(&mut self, now: Instant) -> Transition {
        self.forget();
        self.count(Transition::Closed);
        let ramp = (!self.settings.recovery_ramp.is_zero()).then_some(now);
        self.enter(Phase::Closed { ramp }, now);
        Transition::Closed
    }

    fn forget(&mut self) {
        self.rules.reset();
        self.window.reset();
        self.held = None;
    }

    fn count(&mut self, transition: Transition) {
        self.tally.transitions[transition as usize] += 1;
    }

    fn enter(&mut self, phase: Phase, now: Instant) {
        self.phase = phase;
        self.since = Some(now);
        self.era = self.era.next();
    }
}

/// How long to stay open the n-th time in a row.
fn wait(wait: &effective::Wait, openings_in_a_row: u32, random: u64) -> Duration {
    let mut grown = wait.initial;
    for _ in 1..openings_in_a_row {
        if wait.max <= grown || wait.multiplier <= 1 {
            break;
        }
        grown = grown.saturating_mul(wait.multiplier);
    }
    let grown = grown.min(wait.max);
    #[expect(clippy::cast_precision_loss, reason = "a random part of a jitter need not be exact")]
    let part = (random >> 11) as f64 / (1u64 << 53) as f64;
    grown + grown.mul_f64(part * f64::from(wait.jitter_percent) / 100.0)
}

#[cfg(test)]
mod tests;
