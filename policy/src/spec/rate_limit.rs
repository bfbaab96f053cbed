//! `rateLimit`: how much one client may send.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Limits on what one client may send.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitSpec {
    /// The limits; a request must pass all. At most 16.
    #[serde(default)]
    pub rules: Vec<RateLimitRuleSpec>,
}

/// One limit: a token bucket per client, in each proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimitRuleSpec {
    /// The rule's name, as the `RateLimit` header and the metrics show it: letters, digits, `-`, `_`. At most 63.
    pub name: String,
    /// What tells clients apart. Default: their address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_selector: Option<ClientSelectorSpec>,
    /// How much is allowed.
    pub limit: LimitSpec,
}

/// What tells clients apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientSelectorSpec {
    /// Default `SourceAddress`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<ClientSelectorType>,
    /// The header of type `Header`. Requests without it are not limited by the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
}

/// Kinds of client selectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClientSelectorType {
    /// The client's address, as the trusted hops report it. IPv6 clients are told apart by their /64.
    #[default]
    SourceAddress,
    /// The value of a header.
    Header,
}

/// An amount per unit of time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LimitSpec {
    /// Requests per unit: 1 to 10000000.
    pub requests: u32,
    /// The unit. Default `Second`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<LimitUnit>,
    /// Requests that may come at once: 1 to 10000000. Default: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// Units of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LimitUnit {
    /// One second.
    #[default]
    Second,
    /// Sixty seconds.
    Minute,
    /// Sixty minutes.
    Hour,
}
