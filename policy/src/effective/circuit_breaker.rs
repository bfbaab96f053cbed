//! Circuit breakers, as a proxy runs them.

use std::time::Duration;

/// A worker's circuit breaker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// Opens after so many failures in a row; `None`: never.
    pub consecutive_failures: Option<u32>,
    /// Opens when so many of the window's calls failed, in percent; `None`: never.
    pub failure_rate_threshold: Option<u32>,
    /// The window's length.
    pub sliding_window: Duration,
    /// Calls the window must hold before the rate counts.
    pub minimum_number_of_calls: u32,
    /// How long it stays open.
    pub wait_duration_in_open_state: Duration,
    /// Calls let through in half-open; all must succeed.
    pub permitted_calls_in_half_open: u32,
}
