//! When requests leave the pod, as a proxy follows it.

/// Requests may go to siblings: how many, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spillover {
    /// In percent: the usable share of a level times this is what the level takes, up to everything.
    pub overprovisioning_factor: u32,
    /// Requests in flight for each usable worker of the pod from which on requests leave it.
    pub max_parallel_requests: Option<u32>,
}
