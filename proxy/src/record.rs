//! What a request leaves behind: the breaker's outcome, the worker's load, the counts. Every request has one
//! `Exchange`, and its end is recorded once, however the request ends.

use std::rc::Rc;
use std::time::Instant;

use http::StatusCode;
use http::header::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::body::Broken;
use crate::breaker::Outcome;
use crate::connection::Client;
use crate::metrics;
use crate::rejection::Rejection;
use crate::thread::DataThread;
use crate::worker::Permit;

/// The status under which a request is counted whose client went away before an answer began (nginx's 499).
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Fields that go on a request's answer, whoever gives it.
pub type AnswerHeaders = SmallVec<[(HeaderName, HeaderValue); 3]>;

/// One request from its head to the end of its answer.
pub struct Exchange {
    /// The thread that serves it.
    pub thread: Rc<DataThread>,
    /// The connection it came on.
    pub client: Rc<Client>,
    /// When its head had been read.
    pub started: Instant,
    /// The metrics slot of its route.
    pub route: usize,
    /// Whether it is gRPC: refusals then have the form that its clients understand.
    pub grpc: bool,
    status: u16,
}

impl Exchange {
    /// A request's head has been read.
    pub fn begin(thread: Rc<DataThread>, client: Rc<Client>) -> Self {
        thread.shard.active.add(1);
        client.activity.request_began();
        Self {
            thread,
            client,
            started: Instant::now(),
            route: metrics::no_route(),
            grpc: false,
            status: CLIENT_CLOSED_REQUEST,
        }
    }

    /// The proxy answers itself.
    pub fn rejected(&mut self, rejection: Rejection) {
        self.status = rejection.status().as_u16();
        self.thread.shard.rejected(rejection);
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.thread.shard.active.sub(1);
        self.thread.shard.answered(self.route, self.status, self.started.elapsed());
        self.client.activity.request_ended();
    }
}

/// A request that a worker answers, until the end of the answer.
pub struct Record {
    exchange: Exchange,
    permit: Permit,
}

impl Record {
    /// The head of the answer is here. It decides what the request says of the worker: an answer of 500 or
    /// above is a failure. A stream may go on for hours, and a half-open breaker cannot wait for its end.
    pub fn answered(mut exchange: Exchange, mut permit: Permit, status: StatusCode) -> Self {
        let now = Instant::now();
        let outcome = if status.is_server_error() { Outcome::Failure } else { Outcome::Success };
        permit.finish(outcome, now);
        let latency = now - exchange.started;
        exchange.thread.shard.worker_answered(permit.worker().slot, status.as_u16(), latency);
        exchange.status = status.as_u16();
        Self { exchange, permit }
    }

    /// Bytes of the body went to the client.
    pub fn sent(&self, bytes: usize) {
        self.exchange.thread.shard.bytes[1].add(bytes as u64);
    }

    /// The worker broke off its answer: one more failure.
    pub fn broke_off(&mut self, broken: &Broken) {
        tracing::debug!(worker = self.permit.worker().name, error = %broken, "answer broke off");
        self.failed();
    }

    /// The answer that began well was a failure after all.
    pub fn failed(&mut self) {
        self.permit.failed_late(Instant::now());
    }

    /// The proxy answers after all.
    pub fn rejected(&mut self, rejection: Rejection) {
        self.exchange.rejected(rejection);
    }
}
