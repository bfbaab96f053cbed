//! Retries and hedges, as a proxy makes them.

use std::time::Duration;

/// What is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often.
    pub num_retries: u32,
    /// When nothing of the request reached a worker.
    pub connect_failure: bool,
    /// When the worker broke off before it answered, or was too slow for `per_try_timeout`.
    pub reset: bool,
    /// When the worker answers one of these; ascending.
    pub statuses: Vec<u16>,
    /// When a gRPC call ends with one of these before its first message; ascending.
    pub grpc_codes: Vec<u8>,
    /// How long each try may take until the head of the answer, if that is limited.
    pub per_try_timeout: Option<Duration>,
    /// The longest wait before the first retry.
    pub base_interval: Duration,
    /// The longest wait before any.
    pub max_interval: Duration,
    /// How many requests may be sent once more.
    pub budget: RetryBudget,
    /// Bytes of a body that are kept.
    pub body_buffer: usize,
}

/// How many of all requests may be sent once more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// The share of the requests, in percent.
    pub percent: u32,
    /// The time over which it is taken.
    pub interval: Duration,
    /// As many a second in any case.
    pub min_retry_rate: u32,
}

/// A second request when the first answers late.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// What is late.
    pub after: HedgeAfter,
    /// How many requests may be hedged.
    pub budget: RetryBudget,
}

/// What is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HedgeAfter {
    /// What takes longer than this.
    Delay(Duration),
    /// What takes longer than so many percent of the recent answers.
    Percentile(u32),
}

impl Retry {
    /// Whether a request may be sent once more that was sent already.
    pub fn repeats_sent(&self) -> bool {
        let triggers = self.reset || !self.statuses.is_empty() || !self.grpc_codes.is_empty();
        0 < self.num_retries && triggers
    }
}
