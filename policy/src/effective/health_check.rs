//! Health checks, as a proxy makes them.

use std::time::Duration;

/// An HTTP request that each worker must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The path.
    pub path: String,
    /// Time between two checks.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Failed checks in a row until a worker is unhealthy.
    pub unhealthy_threshold: u32,
    /// Passed checks in a row until it is healthy again.
    pub healthy_threshold: u32,
    /// Statuses that pass; empty: 200 to 299.
    pub expected_statuses: Vec<u16>,
}

impl HealthCheck {
    /// Whether an answer of this status passes.
    pub fn passes(&self, status: u16) -> bool {
        if self.expected_statuses.is_empty() {
            (200..300).contains(&status)
        } else {
            self.expected_statuses.contains(&status)
        }
    }
}
