//! Status codes of gRPC, by the names that its documentation uses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A status code of gRPC other than OK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[repr(u8)]
pub enum GrpcCode {
    /// 1: the caller gave up.
    Cancelled = 1,
    /// 2: an error without a name.
    Unknown,
    /// 3: the request is wrong, whatever the state.
    InvalidArgument,
    /// 4: too late.
    DeadlineExceeded,
    /// 5: there is no such thing.
    NotFound,
    /// 6: there is one already.
    AlreadyExists,
    /// 7: this caller may not.
    PermissionDenied,
    /// 8: a quota or a disk is full.
    ResourceExhausted,
    /// 9: the state does not allow it.
    FailedPrecondition,
    /// 10: a conflict, such as a failed transaction.
    Aborted,
    /// 11: past the end.
    OutOfRange,
    /// 12: the method does not exist.
    Unimplemented,
    /// 13: an invariant is broken.
    Internal,
    /// 14: not now.
    Unavailable,
    /// 15: data is lost.
    DataLoss,
    /// 16: who is this?
    Unauthenticated,
}

impl GrpcCode {
    /// The number that `grpc-status` has.
    pub fn number(self) -> u8 {
        self as u8
    }
}
