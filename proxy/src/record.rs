//! What a request leaves behind: the breaker's outcome, the worker's load, the counts. Every request has one
//! `Exchange`, and its end is recorded once, however the request ends.

use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, response};
use smallvec::SmallVec;

use crate::body::{Broken, Progress};
use crate::breaker::{Call, Failure, Outcome};
use crate::clock;
use crate::connection::Client;
use crate::drain::worker::Serves;
use crate::forward;
use crate::metrics::{self, Shard};
use crate::passage::Passage;
use crate::refusals::Asked;
use crate::rejection::Rejection;
use crate::thread::DataThread;
use crate::worker::Permit;

/// The status under which a request is counted whose client went away before an answer began (nginx's 499).
const CLIENT_CLOSED_REQUEST: u16 = 499;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

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
    /// What of it a line of the log has.
    pub asked: Asked,
    /// Whether its client does not wait as long as the policy would.
    pub hurried: bool,
    /// Its permits at the breakers of the service and of its route, once it has them.
    pub passage: Option<Passage>,
    status: u16,
    /// When its answer had been read whole.
    ended: Option<Instant>,
}

impl Exchange {
    /// A request's head has been read.
    pub fn begin(thread: Rc<DataThread>, client: Rc<Client>) -> Self {
        thread.shard.active.add(1);
        client.activity.request_began();
        Self {
            asked: Asked::by(&client),
            thread,
            client,
            started: clock::now(),
            route: metrics::no_route(),
            grpc: false,
            hurried: false,
            passage: None,
            status: CLIENT_CLOSED_REQUEST,
            ended: None,
        }
    }

    /// The proxy answers itself.
    pub fn rejected(&mut self, rejection: Rejection) {
        self.status = rejection.status().as_u16();
        if let (Some(passage), Some(failure)) = (&mut self.passage, rejection.failure()) {
            let now = Instant::now();
            passage.finish(Call { outcome: Outcome::Failed(failure), latency: now - self.started }, now);
        }
        self.thread.shard.rejected(rejection);
        self.thread.refusals.refused(rejection, &self.asked, (self.route, &self.thread.snapshot()));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.thread.shard.active.sub(1);
        let ended = self.ended.unwrap_or_else(Instant::now);
        self.thread.shard.answered(self.route, self.status, ended.saturating_duration_since(self.started));
        self.client.activity.request_ended();
    }
}

/// An answer that does not go to the client, and what of its request it is judged by.
pub struct Discarded<'a> {
    /// Its head.
    pub head: &'a mut response::Parts,
    /// Whether it is a gRPC call's.
    pub grpc: bool,
    /// Whether the client does not wait as long as the policy would.
    pub hurried: bool,
}

/// What an answer that came at `now` says of its worker and that does not go to the client: the request is sent once
/// more.
pub fn discarded(shard: &Shard, permit: &mut Permit, answer: Discarded<'_>, now: Instant) {
    let Discarded { head, grpc, hurried } = answer;
    let outcome = outcome(head, grpc);
    if hurried && outcome.is_over_time() {
        permit.excuse();
    }
    head_arrived(shard, permit, head.status.as_u16(), now);
    permit.worker().load.heard(head, now);
    if !outcome.is_failure() {
        permit.answered(now);
    }
    permit.finish(Call { outcome, latency: permit.latency(now) }, now);
}

fn head_arrived(shard: &Shard, permit: &Permit, status: u16, now: Instant) {
    let (worker, latency) = (permit.worker(), permit.latency(now));
    if !permit.is_excused() {
        worker.totals.answers.fetch_add(1, Relaxed);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        worker.totals.latency_micros.fetch_add(micros, Relaxed);
    }
    shard.worker_answered(worker.slot, status, latency);
}

/// What the head of an answer says.
fn outcome(head: &response::Parts, grpc: bool) -> Outcome {
    if !grpc {
        return Outcome::Answered(head.status.as_u16());
    }
    match head.headers.get(GRPC_STATUS) {
        Some(status) => Outcome::grpc(status.as_bytes()),
        None if head.status == 200 && forward::has_grpc_content(&head.headers) => {
            Outcome::GRPC_WITHOUT_STATUS // until the trailers say otherwise
        }
        _ => Outcome::Answered(head.status.as_u16()),
    }
}

/// A request that a worker answers, until the end of the answer.
pub struct Record {
    exchange: Exchange,
    permit: Permit,
    /// What becomes of the client's body, where there is one: it may still be on its way.
    pub client: Option<Rc<Progress>>,
    /// What the request says once its answer has ended well.
    pending: Option<Call>,
}

impl Record {
    /// The head of the answer came at `now`. An error decides at once what the request says of the worker; an answer that
    /// begins well decides when it has ended, and one that breaks off is a failure. Only where a half-open breaker
    /// waits for it does the head decide all: a stream may go on for hours.
    pub fn answered(
        mut exchange: Exchange,
        mut permit: Permit,
        head: &response::Parts,
        now: Instant,
    ) -> Self {
        let status = head.status.as_u16();
        let outcome = outcome(head, exchange.grpc);
        if exchange.hurried && outcome.is_over_time() {
            permit.excuse();
        }
        let waits_for_trailers =
            matches!(outcome, Outcome::Grpc(_)) && !head.headers.contains_key(GRPC_STATUS);
        head_arrived(&exchange.thread.shard, &permit, status, now);
        exchange.status = status;
        if waits_for_trailers || !outcome.is_failure() {
            permit.answered(now);
        }
        let call = Call { outcome, latency: permit.latency(now) };
        let mut record = Self { exchange, permit, client: None, pending: Some(call) };
        if record.permit.is_excused() {
            record.pending = None;
        } else if record.permit.probes() || record.exchange.passage.as_ref().is_some_and(Passage::probes) {
            let outcome = if waits_for_trailers { Outcome::Answered(status) } else { outcome };
            record.decide(Call { outcome, ..call }, now);
        } else if !waits_for_trailers && !outcome.is_plain_success() {
            record.decide(call, now);
        }
        record
    }

    /// The answer's trailers: a gRPC answer says there how it went.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        if !self.exchange.grpc {
            return;
        }
        let Some(status) = trailers.get(GRPC_STATUS) else { return };
        let outcome = Outcome::grpc(status.as_bytes());
        if self.exchange.hurried && outcome.is_over_time() {
            self.excuse();
        }
        match &mut self.pending {
            Some(pending) => pending.outcome = outcome,
            // It was decided by a head that promised better.
            None if outcome.is_failure() && !self.permit.is_excused() => self.failed(),
            None => (),
        }
    }

    /// The answer has ended as it should.
    pub fn ended(&mut self, now: Instant) {
        self.exchange.ended = Some(now);
        self.succeeded(now);
    }

    /// The worker did what was asked of it, though the answer may go on.
    pub fn succeeded(&mut self, now: Instant) {
        if let Some(call) = self.pending {
            self.decide(call, now);
        }
    }

    fn decide(&mut self, call: Call, now: Instant) {
        self.pending = None;
        self.permit.finish(call, now);
        if let Some(passage) = &mut self.exchange.passage {
            passage.finish(call, now);
        }
    }

    /// Bytes of the body went to the client.
    pub fn sent(&self, bytes: usize) {
        self.exchange.thread.shard.bytes[1].add(bytes as u64);
    }

    /// What comes of the request says nothing: the permits go back without an outcome.
    fn excuse(&mut self) {
        self.pending = None;
        self.permit.excuse();
    }

    /// The worker broke off its answer; `held_up` says that it had waited for the client to take what came before.
    pub fn broke_off(&mut self, broken: &Broken, held_up: bool) {
        let Exchange { thread, asked, .. } = &self.exchange;
        thread.shard.broken_off.add(1);
        thread.refusals.broke_off(self.permit.worker(), asked, broken);
        if held_up || self.permit.worker().drain.serves() == Serves::Nothing {
            return self.excuse(); // the client's doing; or it was cut
        }
        match broken {
            Broken::Refused => self.excuse(),
            Broken::Off(_) | Broken::GivenUp => self.failed_by(Failure::Reset),
            Broken::Stalled => self.failed_by(Failure::Timeout),
        }
    }

    /// The same before the first byte of its body: the proxy answers in its place, as is returned.
    pub fn broke_off_at_once(&mut self, broken: &Broken) -> Rejection {
        self.broke_off(broken, false);
        let client = self.client.as_ref().and_then(|client| client.fault());
        let rejection = match (client, self.permit.is_excused()) {
            (Some(fault), _) => fault,
            (None, true) => Rejection::WorkerRefused("the worker broke off its answer"),
            (None, false) => Rejection::WorkerReset,
        };
        self.exchange.rejected(rejection);
        rejection
    }

    /// The answer that began well was a failure after all.
    fn failed(&mut self) {
        self.failed_by(Failure::Reset);
    }

    fn failed_by(&mut self, failure: Failure) {
        self.pending = None;
        if self.client_at_fault(failure) {
            return self.excuse();
        }
        let now = Instant::now();
        self.permit.broke_off(failure, now);
        if let Some(passage) = &mut self.exchange.passage {
            let call = Call { outcome: Outcome::Failed(failure), latency: self.permit.latency(now) };
            passage.broke_off(call, now);
        }
    }

    /// Whether the answer broke off because the client's body did, or stands still because the worker waits for it.
    fn client_at_fault(&self, failure: Failure) -> bool {
        let stalled = failure == Failure::Timeout;
        self.client.as_ref().is_some_and(|client| {
            client.fault().is_some() || client.held_up_its_worker() || stalled && client.waited_for()
        })
    }
}
