//! What a request says of whoever answered it. The one place where answers and errors are told apart.

use std::fmt;
use std::time::Duration;

/// How a request ended. What a client did wrong, and what the proxy refused by itself, is no outcome.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// An answer of this HTTP status.
    Answered(u16),
    /// A gRPC answer of this status, from the answer's head or its trailers.
    Grpc(u8),
    /// There was no whole answer.
    Failed(Failure),
}

/// Why there was no whole answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The worker accepted no connection.
    ConnectFailed,
    /// The worker accepted no connection in time.
    ConnectTimeout,
    /// The connection was closed or reset before the end of the answer.
    Reset,
    /// The answer did not come in time, or stood still.
    Timeout,
    /// The answer broke the protocol.
    Protocol,
}

/// A request that has ended: its outcome, and how long its answer took.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call {
    /// How it ended.
    pub outcome: Outcome,
    /// From the time the worker had all of the request to the head of its answer.
    pub latency: Duration,
}

/// gRPC's UNKNOWN: what its clients make of an answer without a status.
const GRPC_UNKNOWN: u8 = 2;

impl Outcome {
    /// The outcome that a `grpc-status` field tells. One that cannot be read is gRPC's UNKNOWN.
    pub fn grpc(status: &[u8]) -> Self {
        let code = std::str::from_utf8(status).ok().and_then(|text| text.parse().ok());
        Self::Grpc(code.filter(|code| *code <= 16).unwrap_or(GRPC_UNKNOWN))
    }

    /// The outcome of a gRPC answer that ended without a status.
    pub const GRPC_WITHOUT_STATUS: Self = Self::Grpc(GRPC_UNKNOWN);

    /// Whether it is a failure where no policy says what is one. A client brings 501 and 505 about at will, by a method or a
    /// version that nobody has.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Answered(status) => 500 <= status && !matches!(status, 501 | 505),
            Self::Grpc(code) => matches!(code, 2 | 13 | 14 | 15), // UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS
            Self::Failed(_) => true,
        }
    }

    /// Whether the worker says that the time for its answer is over.
    pub fn is_over_time(self) -> bool {
        matches!(self, Self::Answered(504) | Self::Grpc(4)) // DEADLINE_EXCEEDED
    }

    /// Whether nothing but success can be made of it, unless the answer breaks off.
    pub fn is_plain_success(self) -> bool {
        match self {
            Self::Answered(status) => status < 400,
            Self::Grpc(code) => code == 0,
            Self::Failed(_) => false,
        }
    }
}

impl Failure {
    /// Whether it was seen on this side of the connection: the worker is dead, hung or restarting, rather than in
    /// doubt about a request.
    pub fn is_local_origin(self) -> bool {
        self != Self::Protocol
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(status) => write!(f, "status {status}"),
            Self::Grpc(code) => write!(f, "gRPC status {code}"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ConnectFailed => "connection refused",
            Self::ConnectTimeout => "connection not accepted in time",
            Self::Reset => "connection reset",
            Self::Timeout => "no answer in time",
            Self::Protocol => "broken protocol",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_status_is_read_as_clients_read_it() {
        assert_eq!(Outcome::grpc(b"0"), Outcome::Grpc(0));
        assert_eq!(Outcome::grpc(b"14"), Outcome::Grpc(14));
        for odd in [&b""[..], b"17", b"-1", b"ok", b"\xff"] {
            assert_eq!(Outcome::grpc(odd), Outcome::GRPC_WITHOUT_STATUS, "{odd:?}");
        }
    }

    #[test]
    fn only_broken_protocol_is_not_of_local_origin() {
        let all = [
            Failure::ConnectFailed,
            Failure::ConnectTimeout,
            Failure::Reset,
            Failure::Timeout,
            Failure::Protocol,
        ];
        assert_eq!(all.map(Failure::is_local_origin), [true, true, true, true, false]);
    }
}
