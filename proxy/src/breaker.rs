//! The circuit breaker of one worker: closed (requests pass), open (refused), half-open (a few probe it).
//!
//! The states and the settings mean what they mean in resilience4j ("CircuitBreaker" in its documentation; the
//! pattern is Nygard's, "Release It!", 2007). The state machine stands here once; what opens a closed breaker are
//! the rules in the modules below, each a `Trip`. `SharedBreaker` is what requests meet.
//!
//! Three things keep it sound between concurrent requests. To ask (`admits`) changes nothing, so every worker can be
//! asked and only the chosen one gives a permit (`acquire`). A permit that comes back without an outcome
//! (`abandon`) frees its place among the probes. And every permit carries the era it was given in: each change of
//! state begins a new one, and outcomes of an earlier era decide nothing.

mod consecutive_failures;
mod failure_rate;
mod outcome;
mod shared;

#[cfg(test)]
mod laws;

use std::time::{Duration, Instant};

use outrigger_policy::effective;
use serde::Serialize;

use self::consecutive_failures::ConsecutiveFailures;
use self::failure_rate::FailureRate;
pub use self::outcome::{Call, Failure, Outcome};
pub use self::shared::SharedBreaker;

/// A stretch of time in one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Era(u64);

impl Era {
    fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A rule that opens a closed breaker.
pub trait Trip: Send {
    /// Takes note of a call; true when the breaker must open.
    fn observe(&mut self, failed: bool, now: Instant) -> bool;
    /// Forgets what it saw: the breaker closed.
    fn reset(&mut self);
}

/// Which requests pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All.
    Closed,
    /// None.
    Open,
    /// A few, which decide what comes next. A breaker whose waiting time is over is half-open, probed or not.
    HalfOpen,
}

impl State {
    /// The state's name, as the metrics and the API show it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// A change of state that an outcome brought about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// A rule said so.
    Opened,
    /// A probe failed.
    Reopened,
    /// Every probe succeeded.
    Closed,
}

/// What can be seen of a breaker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// `closed`, `open` or `half-open`.
    pub state: &'static str,
    /// Failures in the sliding window.
    pub failures: u64,
    /// Calls in the sliding window.
    pub calls: u64,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// How long it stays open; `None` when it is not.
    pub open_remaining: Option<Duration>,
    /// How often it opened.
    pub times_opened: u64,
}

impl View {
    /// What is to be seen where there is no breaker.
    const NONE: Self = Self {
        state: "closed",
        failures: 0,
        calls: 0,
        consecutive_failures: 0,
        open_remaining: None,
        times_opened: 0,
    };
}

/// The state machine.
pub struct Breaker {
    consecutive_failures: ConsecutiveFailures,
    failure_rate: FailureRate,
    wait: Duration,
    permitted: u32,
    phase: Phase,
    era: Era,
    times_opened: u64,
}

enum Phase {
    Closed,
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
    },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(settings: &effective::Breaker) -> Self {
        Self::in_era(settings, Era(0))
    }

    fn in_era(settings: &effective::Breaker, era: Era) -> Self {
        Self {
            consecutive_failures: ConsecutiveFailures::new(settings.consecutive_failures),
            failure_rate: FailureRate::new(settings),
            wait: settings.wait_duration_in_open_state,
            permitted: settings.permitted_calls_in_half_open,
            phase: Phase::Closed,
            era,
            times_opened: 0,
        }
    }

    /// Puts other settings in force and keeps the state and what was counted. New thresholds are held against the
    /// next outcome. A breaker that is open stays open as long as it was to, and probes under way are as many as
    /// they were to be: a new waiting time counts from the next opening, a new number of probes from the next
    /// half-open era.
    pub fn reconfigure(&mut self, settings: &effective::Breaker) {
        self.consecutive_failures.reconfigure(settings.consecutive_failures);
        self.failure_rate.reconfigure(settings);
        self.wait = settings.wait_duration_in_open_state;
        self.permitted = settings.permitted_calls_in_half_open;
    }

    /// Whether a request may be sent. Changes nothing: it may be asked of workers that are not chosen then.
    pub fn admits(&self, now: Instant) -> bool {
        match self.phase {
            Phase::Closed => true,
            Phase::Open { until } => until <= now,
            Phase::HalfOpen { permitted, taken, .. } => taken < permitted,
        }
    }

    /// Takes the right to send one request, which must be given back by `record` or by `abandon`.
    pub fn acquire(&mut self, now: Instant) -> Option<Era> {
        if !self.admits(now) {
            return None;
        }
        if let Phase::Open { .. } = self.phase {
            self.enter(Phase::HalfOpen { permitted: self.permitted, taken: 0, succeeded: 0 });
        }
        if let Phase::HalfOpen { taken, .. } = &mut self.phase {
            *taken += 1;
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
    /// permit, when its answer breaks off.
    pub fn record(&mut self, era: Era, outcome: Outcome, now: Instant) -> Option<Transition> {
        if era != self.era {
            return None;
        }
        let failed = outcome.is_failure();
        match (&mut self.phase, failed) {
            (Phase::Closed, _) => {
                // Every rule sees every outcome, whatever another says of it.
                let rules: [&mut dyn Trip; 2] = [&mut self.consecutive_failures, &mut self.failure_rate];
                let opens = rules.into_iter().fold(false, |opens, rule| rule.observe(failed, now) | opens);
                opens.then(|| self.open(Transition::Opened, now))
            }
            (Phase::HalfOpen { .. }, true) => Some(self.open(Transition::Reopened, now)),
            (Phase::HalfOpen { permitted, succeeded, .. }, false) => {
                *succeeded += 1;
                (*permitted <= *succeeded).then(|| self.close())
            }
            (Phase::Open { .. }, _) => None, // no permit is of an open era
        }
    }

    /// The state at this time.
    pub fn state(&self, now: Instant) -> State {
        match self.phase {
            Phase::Closed => State::Closed,
            Phase::Open { until } if now < until => State::Open,
            Phase::Open { .. } | Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// What can be seen at this time.
    pub fn view(&self, now: Instant) -> View {
        let counts = self.failure_rate.counts(now);
        let open_remaining = match self.phase {
            Phase::Open { until } if now < until => Some(until - now),
            _ => None,
        };
        View {
            state: self.state(now).name(),
            failures: counts.failures,
            calls: counts.calls,
            consecutive_failures: self.consecutive_failures.seen(),
            open_remaining,
            times_opened: self.times_opened,
        }
    }

    fn open(&mut self, transition: Transition, now: Instant) -> Transition {
        self.times_opened += 1;
        self.enter(Phase::Open { until: now + self.wait });
        transition
    }

    fn close(&mut self) -> Transition {
        self.consecutive_failures.reset();
        self.failure_rate.reset();
        self.enter(Phase::Closed);
        Transition::Closed
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.era = self.era.next();
    }
}

#[cfg(test)]
mod tests;
