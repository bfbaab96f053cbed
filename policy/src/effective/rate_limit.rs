//! Limits, as a proxy counts them.

use std::time::Duration;

/// A token bucket per client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Unique among the route's limits.
    pub name: String,
    /// What tells clients apart.
    pub key: LimitKey,
    /// Tokens that come back per `period`.
    pub requests: u32,
    /// The period of `requests`.
    pub period: Duration,
    /// Tokens the bucket holds.
    pub burst: u32,
}

/// What tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address; an IPv6 client is its /64.
    SourceAddress,
    /// The value of this header, in lower case; requests without it are not limited.
    Header(String),
}
