//! Why the proxy answered a request itself: one enum, one status, one `Proxy-Status` token, one metric label each.

use std::time::Duration;

use http::{HeaderValue, StatusCode};

use crate::breaker::Failure;

/// Why the proxy answered itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The request is malformed or ambiguous; the text says which rule it breaks.
    BadRequest(&'static str),
    /// CONNECT or TRACE.
    MethodNotAllowed,
    /// An `Expect` other than `100-continue`.
    ExpectationFailed,
    /// A transfer coding other than `chunked`.
    NotImplemented,
    /// More header fields, or longer ones, than the proxy takes.
    HeadersTooLarge,
    /// The client's body broke off or broke the framing.
    ClientBody,
    /// The client did not send its body in time; the text says for whom.
    ClientBodyTimeout(&'static str),
    /// A limit of the policy; the client may come again after this time.
    RateLimited(Duration),
    /// No policy has come yet, and nothing is served before.
    NoPolicy,
    /// No worker is usable; the soonest that one may be tried again.
    NoWorker(Duration),
    /// The service's breaker is open; how long until a request may pass.
    ServiceOpen(Duration),
    /// The route's breaker is open; how long until a request may pass.
    RouteOpen(Duration),
    /// No worker accepted a connection.
    ConnectFailed,
    /// No worker accepted a connection in time.
    ConnectTimeout,
    /// The worker closed or reset the connection before its answer was whole.
    WorkerReset,
    /// The worker's answer did not come in time.
    WorkerTimeout,
    /// The worker took nothing more of the request's body, and did not answer.
    WorkerStalled,
    /// The answer did not come as soon as the client said it must.
    DeadlineExceeded,
    /// The worker's answer broke the protocol; the text says how.
    WorkerProtocol(&'static str),
    /// A gRPC call, for workers of which none speaks HTTP/2.
    NotGrpc,
    /// The worker would not change the protocol as the client asked; the text says how it went.
    UpgradeFailed(&'static str),
    /// The worker refused the request in a way that says nothing of the worker; the text says how.
    WorkerRefused(&'static str),
    /// The request path failed in itself.
    Internal,
    /// A version of HTTP that the proxy does not speak.
    HttpVersion,
    /// A WebSocket handshake of a version other than 13.
    WebSocketVersion,
    /// Plain HTTP on a port that speaks TLS.
    PlainHttp,
    /// The request's head did not come whole in time.
    HeadTimeout,
    /// As many connections are open as the proxy takes, and this one has to give way.
    ConnectionLimit,
    /// As many connections are open from this address as the proxy takes.
    AddressLimit,
    /// The process has no memory for what this connection or request takes.
    MemoryLimit,
    /// This machine has no descriptor, port or memory for a connection to a worker.
    LocalExhaustion,
    /// The worker takes no more requests at once than it has.
    WorkerFull,
}

impl Rejection {
    /// Neither the client's body nor the answer moved, and the worker waited for the body.
    pub const CLIENT_STOOD_STILL: Self =
        Self::ClientBodyTimeout("the client sent nothing more of the request's body for too long");
    /// The worker ended the exchange while it waited for the client's body.
    pub const CLIENT_HELD_UP: Self =
        Self::ClientBodyTimeout("the worker did not wait any longer for the rest of the request's body");

    /// The answer's status.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::ClientBody => StatusCode::BAD_REQUEST,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::NotImplemented | Self::NotGrpc => StatusCode::NOT_IMPLEMENTED,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::ClientBodyTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::RateLimited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoPolicy
            | Self::NoWorker(_)
            | Self::ServiceOpen(_)
            | Self::RouteOpen(_)
            | Self::ConnectionLimit
            | Self::AddressLimit
            | Self::MemoryLimit
            | Self::LocalExhaustion
            | Self::WorkerFull
            | Self::ConnectFailed => StatusCode::SERVICE_UNAVAILABLE,
            Self::WorkerReset | Self::WorkerProtocol(_) | Self::UpgradeFailed(_) | Self::WorkerRefused(_) => {
                StatusCode::BAD_GATEWAY
            }
            Self::ConnectTimeout | Self::WorkerTimeout | Self::WorkerStalled | Self::DeadlineExceeded => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::HttpVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::WebSocketVersion => StatusCode::UPGRADE_REQUIRED,
            Self::PlainHttp => StatusCode::BAD_REQUEST,
            Self::HeadTimeout => StatusCode::REQUEST_TIMEOUT,
        }
    }

    /// The `error` token of RFC 9209 §2.3.
    pub fn proxy_status(self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::NotImplemented | Self::ExpectationFailed | Self::ClientBody => {
                "http_request_error"
            }
            Self::ClientBodyTimeout(_) | Self::HeadersTooLarge | Self::HeadTimeout => "http_request_error",
            Self::HttpVersion | Self::WebSocketVersion | Self::PlainHttp | Self::NotGrpc => {
                "http_request_error"
            }
            Self::MethodNotAllowed | Self::RateLimited(_) => "http_request_denied",
            Self::NoPolicy => "proxy_configuration_error",
            Self::NoWorker(_) | Self::ServiceOpen(_) | Self::RouteOpen(_) => "destination_unavailable",
            Self::ConnectFailed => "connection_refused",
            Self::ConnectTimeout => "connection_timeout",
            Self::WorkerReset | Self::WorkerRefused(_) => "connection_terminated",
            Self::UpgradeFailed(_) => "http_upgrade_failed",
            Self::WorkerTimeout | Self::WorkerStalled | Self::DeadlineExceeded => "http_response_timeout",
            Self::WorkerProtocol(_) => "http_protocol_error",
            Self::Internal | Self::LocalExhaustion => "proxy_internal_error",
            Self::WorkerFull => "connection_limit_reached",
            Self::ConnectionLimit | Self::AddressLimit | Self::MemoryLimit => "proxy_internal_response",
        }
    }

    /// The `Proxy-Status` field.
    pub fn proxy_status_header(self) -> HeaderValue {
        let details = match self {
            Self::ServiceOpen(_) => "; details=\"the service's circuit breaker is open\"",
            Self::RouteOpen(_) => "; details=\"the route's circuit breaker is open\"",
            _ => "",
        };
        let value = format!("outrigger; error={}{details}", self.proxy_status());
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("outrigger"))
    }

    /// The status of gRPC that tells its client the same (gRPC's mapping of HTTP statuses).
    pub fn grpc_status(self) -> u16 {
        match self {
            Self::RateLimited(_) => 8, // RESOURCE_EXHAUSTED
            Self::WorkerTimeout | Self::ConnectTimeout | Self::DeadlineExceeded => 4, // DEADLINE_EXCEEDED
            Self::WorkerStalled => 4,  // DEADLINE_EXCEEDED
            Self::ClientBodyTimeout(_) => 4, // a call's body stays open, and its time is over all the same
            Self::NoWorker(_) | Self::ServiceOpen(_) | Self::RouteOpen(_) => 14, // UNAVAILABLE
            Self::NoPolicy | Self::ConnectFailed | Self::WorkerReset => 14, // UNAVAILABLE
            Self::ConnectionLimit | Self::AddressLimit | Self::MemoryLimit => 14, // UNAVAILABLE
            Self::LocalExhaustion | Self::WorkerFull => 14, // UNAVAILABLE
            Self::MethodNotAllowed | Self::NotGrpc => 12, // UNIMPLEMENTED
            _ => 13,                   // INTERNAL
        }
    }

    /// What it says of whoever should have answered; `None`: nothing, for the client or the proxy is the reason.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::ConnectFailed => Some(Failure::ConnectFailed),
            Self::ConnectTimeout => Some(Failure::ConnectTimeout),
            Self::WorkerReset => Some(Failure::Reset),
            Self::WorkerTimeout | Self::WorkerStalled => Some(Failure::Timeout),
            Self::WorkerProtocol(_) => Some(Failure::Protocol),
            _ => None,
        }
    }

    /// The label of the metrics and of the access log.
    pub fn label(self) -> &'static str {
        Self::LABELS[self.index()]
    }

    /// Every label, in the order of `index`.
    pub const LABELS: [&'static str; 32] = [
        "bad_request",
        "method_not_allowed",
        "expectation_failed",
        "not_implemented",
        "headers_too_large",
        "client_body",
        "client_body_timeout",
        "rate_limited",
        "no_worker",
        "connect_failed",
        "connect_timeout",
        "worker_reset",
        "worker_timeout",
        "worker_protocol",
        "internal",
        "service_open",
        "route_open",
        "deadline_exceeded",
        "http_version",
        "websocket_version",
        "plain_http",
        "head_timeout",
        "no_policy",
        "not_grpc",
        "upgrade_failed",
        "worker_refused",
        "connection_limit",
        "address_limit",
        "worker_stalled",
        "memory_limit",
        "local_exhaustion",
        "worker_full",
    ];

    /// The place of this rejection in `LABELS`.
    pub fn index(self) -> usize {
        match self {
            Self::BadRequest(_) => 0,
            Self::MethodNotAllowed => 1,
            Self::ExpectationFailed => 2,
            Self::NotImplemented => 3,
            Self::HeadersTooLarge => 4,
            Self::ClientBody => 5,
            Self::ClientBodyTimeout(_) => 6,
            Self::RateLimited(_) => 7,
            Self::NoWorker(_) => 8,
            Self::ConnectFailed => 9,
            Self::ConnectTimeout => 10,
            Self::WorkerReset => 11,
            Self::WorkerTimeout => 12,
            Self::WorkerProtocol(_) => 13,
            Self::Internal => 14,
            Self::ServiceOpen(_) => 15,
            Self::RouteOpen(_) => 16,
            Self::DeadlineExceeded => 17,
            Self::HttpVersion => 18,
            Self::WebSocketVersion => 19,
            Self::PlainHttp => 20,
            Self::HeadTimeout => 21,
            Self::NoPolicy => 22,
            Self::NotGrpc => 23,
            Self::UpgradeFailed(_) => 24,
            Self::WorkerRefused(_) => 25,
            Self::ConnectionLimit => 26,
            Self::AddressLimit => 27,
            Self::WorkerStalled => 28,
            Self::MemoryLimit => 29,
            Self::LocalExhaustion => 30,
            Self::WorkerFull => 31,
        }
    }

    /// One line for the person who reads the answer.
    pub fn message(self) -> &'static str {
        match self {
            Self::BadRequest(rule) => rule,
            Self::MethodNotAllowed => "this method is not allowed here",
            Self::ExpectationFailed => "only 'Expect: 100-continue' is understood",
            Self::NotImplemented => "no transfer coding but 'chunked' is understood",
            Self::HeadersTooLarge => "too many header fields, or too long ones",
            Self::ClientBody => "the request's body broke off or broke the framing",
            Self::ClientBodyTimeout(whom) => whom,
            Self::RateLimited(_) => "too many requests",
            Self::NoPolicy => "the proxy has no policy yet",
            Self::NoWorker(_) => "no worker is available",
            Self::ServiceOpen(_) => "too many requests failed: the service's circuit breaker is open",
            Self::RouteOpen(_) => "too many requests failed: the route's circuit breaker is open",
            Self::ConnectFailed => "no worker accepted the connection",
            Self::ConnectTimeout => "no worker accepted the connection in time",
            Self::WorkerReset => "the worker closed the connection before it answered",
            Self::WorkerTimeout => "the worker did not answer in time",
            Self::WorkerStalled => "the worker took no more of the request's body and did not answer",
            Self::DeadlineExceeded => "the client's deadline has passed",
            Self::WorkerProtocol(rule) | Self::UpgradeFailed(rule) | Self::WorkerRefused(rule) => rule,
            Self::NotGrpc => "the workers do not speak HTTP/2, which gRPC needs",
            Self::Internal => "internal error",
            Self::HttpVersion => "only HTTP/1.0, HTTP/1.1 and HTTP/2 are understood",
            Self::WebSocketVersion => "only version 13 of WebSocket is understood",
            Self::PlainHttp => "this port speaks TLS: use https",
            Self::HeadTimeout => "the request's head did not come in time",
            Self::ConnectionLimit => "too many connections: one that waits for its client gives way",
            Self::AddressLimit => "too many connections from this address",
            Self::MemoryLimit => "the proxy has no memory for this just now",
            Self::LocalExhaustion => {
                "the proxy has no descriptor, port or memory for a connection to a worker"
            }
            Self::WorkerFull => "the worker takes no more requests at once than it has",
        }
    }

    /// The `Retry-After` of the answer, if it has one.
    pub fn retry_after(self) -> Option<Duration> {
        match self {
            Self::RateLimited(after)
            | Self::NoWorker(after)
            | Self::ServiceOpen(after)
            | Self::RouteOpen(after) => Some(after),
            Self::NoPolicy | Self::ConnectFailed => Some(Duration::from_secs(1)),
            Self::ConnectionLimit | Self::MemoryLimit => Some(Duration::from_secs(1)),
            Self::LocalExhaustion | Self::WorkerFull => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// Whether the client is the reason: a proxy that passed the request on learns nothing from it.
    pub fn is_the_clients_doing(self) -> bool {
        match self {
            Self::BadRequest(_) | Self::MethodNotAllowed | Self::ExpectationFailed | Self::NotImplemented => {
                true
            }
            Self::HeadersTooLarge | Self::ClientBody | Self::ClientBodyTimeout(_) | Self::RateLimited(_) => {
                true
            }
            Self::DeadlineExceeded | Self::NotGrpc | Self::UpgradeFailed(_) | Self::WorkerRefused(_) => true,
            Self::HttpVersion | Self::WebSocketVersion | Self::PlainHttp | Self::HeadTimeout => true,
            Self::ConnectionLimit | Self::AddressLimit | Self::MemoryLimit => true,
            Self::LocalExhaustion | Self::WorkerFull => true,
            Self::NoWorker(_)
            | Self::ServiceOpen(_)
            | Self::RouteOpen(_)
            | Self::Internal
            | Self::NoPolicy => false,
            Self::ConnectFailed | Self::ConnectTimeout | Self::WorkerReset => false,
            Self::WorkerTimeout | Self::WorkerStalled | Self::WorkerProtocol(_) => false,
        }
    }

    /// Whether no worker has seen anything of the request.
    pub fn reached_no_worker(self) -> bool {
        matches!(
            self,
            Self::NoPolicy
                | Self::NoWorker(_)
                | Self::ConnectFailed
                | Self::ConnectTimeout
                | Self::LocalExhaustion
                | Self::WorkerFull
        )
    }

    /// Whether the client's connection must be closed after the answer: its framing cannot be trusted.
    pub fn closes_connection(self) -> bool {
        matches!(
            self,
            Self::BadRequest(_)
                | Self::NotImplemented
                | Self::HeadersTooLarge
                | Self::ExpectationFailed
                | Self::ClientBody
                | Self::ClientBodyTimeout(_)
                | Self::MethodNotAllowed
                | Self::HttpVersion
                | Self::PlainHttp
                | Self::HeadTimeout
                | Self::ConnectionLimit
                | Self::AddressLimit
                | Self::MemoryLimit
        )
    }
}
