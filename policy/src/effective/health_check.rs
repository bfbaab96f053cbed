//! Health checks, as a proxy makes them.

use std::time::Duration;

/// How each worker is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub probe: Probe,
    /// Time between two checks.
    pub interval: Duration,
    /// Up to how much longer or shorter each wait is, in percent of the interval.
    pub interval_jitter_percent: u32,
    /// Up to how long the first check waits; `None`: as long as the worker can be left unchecked.
    pub initial_jitter: Option<Duration>,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Failed checks in a row until a worker is unhealthy.
    pub unhealthy_threshold: u32,
    /// Passed checks in a row until it is healthy again.
    pub healthy_threshold: u32,
}

/// What a check asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// An HTTP request.
    Http(HttpProbe),
    /// The gRPC health protocol.
    Grpc {
        /// The service; empty: the worker as a whole.
        service: String,
    },
    /// A TCP connection.
    Tcp,
}

/// An HTTP request that each worker must answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// The `Host`; `None`: the worker's address.
    pub hostname: Option<String>,
    /// Statuses that pass; empty: 200 to 299.
    pub expected_statuses: Vec<u16>,
}

impl HttpProbe {
    /// Whether an answer of this status passes.
    pub fn passes(&self, status: u16) -> bool {
        if self.expected_statuses.is_empty() {
            (200..300).contains(&status)
        } else {
            self.expected_statuses.contains(&status)
        }
    }
}
