//! The words of a circuit breaker: its states, the changes between them, and the eras that they begin.

use serde::Serialize;

/// A stretch of time in one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Era(pub(super) u64);

impl Era {
    /// Of a permit that was given although the breaker would not have: its outcome decides nothing.
    pub(super) const NONE: Self = Self(u64::MAX >> 3);

    pub(super) fn next(self) -> Self {
        Self(self.0 + 1)
    }
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
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// The state's name, as the metrics and the API show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// A change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// A rule said so.
    Opened,
    /// A probe failed, or did not come back.
    Reopened,
    /// Its waiting time is over.
    HalfOpened,
    /// Every probe succeeded.
    Closed,
}

impl Transition {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Opened, Self::Reopened, Self::HalfOpened, Self::Closed];

    /// Its name, as logs and metrics show it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Reopened => "reopened",
            Self::HalfOpened => "half-opened",
            Self::Closed => "closed",
        }
    }
}

/// What was counted since the breaker was made.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Calls that succeeded.
    pub successful: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Calls that were slow, failed or not.
    pub slow: u64,
    /// In the order of `Transition::ALL`.
    pub transitions: [u64; Transition::ALL.len()],
}
