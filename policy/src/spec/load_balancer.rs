//! `loadBalancer`: how a worker is chosen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a worker is chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoadBalancerSpec {
    /// The strategy. Default `RoundRobin`.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<LoadBalancerType>,
}

/// The strategies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum LoadBalancerType {
    /// In turn, as often as the weights say, evenly spread.
    #[default]
    RoundRobin,
    /// At random, as often as the weights say.
    Random,
    /// The worker with the fewest requests in flight for its weight.
    LeastRequest,
}
