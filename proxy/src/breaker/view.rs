//! What can be seen of a breaker.

use std::time::{Duration, Instant};

use outrigger_policy::effective::BreakerMode;

use super::{Breaker, Counts, Hold, Learned, Outcome, Phase, State, Tally, Transition};

/// What can be seen of a breaker at one time. There is no word of a client in it.
#[derive(Clone, PartialEq, Debug)]
pub struct View {
    /// `closed`, `open` or `half-open`.
    pub state: &'static str,
    /// Whether the policy configures a breaker here.
    pub configured: bool,
    /// Whether it is enforced.
    pub mode: BreakerMode,
    /// What people said of it.
    pub hold: Option<Hold>,
    /// Since when it has been in its state; `None`: from the beginning.
    pub since: Option<Instant>,
    /// Why it last left the closed state, in words.
    pub cause: Option<String>,
    /// Why it stays closed though a rule says that it must open, in words.
    pub held: Option<&'static str>,
    /// Failures in the sliding window.
    pub failures: u64,
    /// Calls in the sliding window.
    pub calls: u64,
    /// Slow calls in the sliding window.
    pub slow_calls: u64,
    /// The mean latency of the calls in the sliding window.
    pub mean_latency: Duration,
    /// Failures in a row.
    pub consecutive_failures: u32,
    /// How long it stays open; `None` when it is not, or when that is not known.
    pub open_remaining: Option<Duration>,
    /// How often it opened.
    pub times_opened: u64,
    /// What was learned, where it is adaptive.
    pub learned: Option<Learned>,
    /// The last failures, latest first.
    pub errors: Vec<LastError>,
    /// What was counted since it was made.
    pub tally: Tally,
}

/// A failure that is remembered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastError {
    /// When it was.
    pub at: Instant,
    /// What it was.
    pub outcome: Outcome,
}

impl View {
    /// What is to be seen where there is no breaker.
    pub(super) const NONE: Self = Self {
        state: State::Closed.name(),
        configured: false,
        mode: BreakerMode::Enforced,
        hold: None,
        since: None,
        cause: None,
        held: None,
        failures: 0,
        calls: 0,
        slow_calls: 0,
        mean_latency: Duration::ZERO,
        consecutive_failures: 0,
        open_remaining: None,
        times_opened: 0,
        learned: None,
        errors: Vec::new(),
        tally: Tally { successful: 0, failed: 0, slow: 0, transitions: [0; Transition::ALL.len()] },
    };
}

impl Breaker {
    /// What can be seen at this time.
    pub fn view(&self, now: Instant) -> View {
        let counts @ Counts { calls, failures, slow, .. } = self.window.counts(now);
        let open_remaining = match self.phase {
            Phase::Open { until } if now < until => Some(until - now),
            _ => None,
        };
        let transitions = &self.tally.transitions;
        View {
            state: self.state(now).name(),
            configured: true,
            mode: self.mode,
            hold: None,
            since: self.since,
            cause: self.cause.clone(),
            held: self.held.map(super::Held::text),
            failures,
            calls,
            slow_calls: slow,
            mean_latency: Duration::from_secs_f64(counts.mean_micros() / 1e6),
            consecutive_failures: self.rules.failures_in_a_row(),
            open_remaining,
            times_opened: transitions[Transition::Opened as usize]
                + transitions[Transition::Reopened as usize],
            learned: self.rules.learned(calls),
            errors: self
                .errors
                .iter()
                .map(|(at, outcome)| LastError { at: *at, outcome: *outcome })
                .collect(),
            tally: self.tally,
        }
    }
}
