//! `hedge`: a second request to another worker when the first answers late.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RetryBudgetSpec;
use crate::units::DurationText;

/// When the answer of a request without a body and with an idempotent method is late, the same request goes to
/// another worker; the first answer counts, and the other request is cancelled. Exactly one of `delay` and
/// `afterPercentile`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HedgeSpec {
    /// Late is what takes longer than this: 1ms to 1m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DurationText>,
    /// Late is what takes longer than this percentage of the route's recent answers: 50 to 99. There must be 20
    /// of them in the last ten seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_percentile: Option<u32>,
    /// How many of all requests may be hedged. Default: 10 percent, over `10s`, and `minRetryRate` 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudgetSpec>,
}
