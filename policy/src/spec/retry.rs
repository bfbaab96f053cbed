//! `retry`: what is tried again.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::GrpcCode;
use crate::units::DurationText;

/// What is tried again, on another worker where there is one.
///
/// A request of which nothing left is safe to repeat, whatever it is. Of the others only those with an idempotent
/// method (GET, HEAD, OPTIONS, PUT, DELETE), and gRPC calls that end with one of `retryOn.grpcCodes`. Nothing is tried
/// again after an answer began to go to the client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrySpec {
    /// How often a request is tried again: 0 to 10. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_retries: Option<u32>,
    /// Why a request is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_on: Option<RetryOnSpec>,
    /// How long each try may take, and the wait between two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_retry: Option<PerRetrySpec>,
    /// How many of all requests may be tried again. Requests of which nothing left are not counted: they are no
    /// load for a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<RetryBudgetSpec>,
    /// Bytes of a request's body that are kept to send it once more: 0 to 1048576. Default 0: a request with a
    /// body is then tried again only while nothing of it has left. A longer body is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_buffer: Option<u32>,
}

/// Why a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryOnSpec {
    /// What must have happened. At most 8. Default: `ConnectFailure` and `Reset`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub triggers: Option<Vec<RetryTrigger>>,
    /// Statuses of a worker's answer that are tried again, each 400 to 599. At most 16. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_status_codes: Option<Vec<u16>>,
    /// Codes of gRPC that are tried again, where a call ends with one before its first message. To name one says
    /// that the calls may be repeated; it needs a `bodyBuffer`. At most 16. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_codes: Option<Vec<GrpcCode>>,
}

/// What must have happened for a request to be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetryTrigger {
    /// The worker accepted no connection, or closed it before anything was sent.
    ConnectFailure,
    /// The worker broke off before it answered, or did not answer within `perRetry.timeout`.
    Reset,
    /// The worker answered 502, 503 or 504.
    GatewayError,
    /// The worker answered 500 to 599.
    #[serde(rename = "5xx")]
    ServerError,
}

/// How long each try may take, and the wait between two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PerRetrySpec {
    /// Until the head of the answer, for each try, the first one too, counted from when its worker has all of the
    /// request: 1ms to 1h. Absent: only `timeout.request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// The wait before a try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_off: Option<BackOffSpec>,
}

/// The wait before a try: at random up to `baseInterval`, doubled with each further try. A request of which nothing
/// left goes to a worker that was not tried yet at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackOffSpec {
    /// The longest wait before the first retry: 1ms to 1m. Default `25ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_interval: Option<DurationText>,
    /// The longest wait before any: `baseInterval` to 10m. Default: ten times `baseInterval`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_interval: Option<DurationText>,
}

/// How many of all requests may be sent once more. It keeps retries from becoming a storm when every worker fails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryBudgetSpec {
    /// The share of the requests, in percent: 0 to 100. Default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// The time over which the share is taken: 1s to 1m. Default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<DurationText>,
    /// As many a second are allowed in any case, for routes with few requests: 0 to 10000. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_retry_rate: Option<u32>,
}
