//! Sends a request to a worker: chooses one, sends it, and tries again what is safe to repeat, as the policy says.
//!
//! `attempt` is one try, `over_http2` the same over HTTP/2, `patience` how long it waits for its answer, `connect` finds the connection for it, `repeat` says what may be tried again, `budget` how much of it, `hedge` sends a second request
//! beside a late first one, `deadline` says until when an answer is of use.

mod attempt;
pub mod budget;
mod connect;
pub mod deadline;
mod hedge;
mod latency;
mod over_http2;
mod patience;
pub mod recent;
mod repeat;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Version, header, response};
use smallvec::SmallVec;

use self::attempt::Tried;
pub use self::deadline::Deadline;
use self::patience::Try;
use self::repeat::{Repeat, Wanted};
use crate::balance::Usable;
use crate::body::{AnswerBody, Progress, RequestBody, read_to_end};
use crate::canary::Lane;
use crate::clock;
use crate::interim::Interim;
use crate::passage::Passage;
use crate::pool::Lease;
use crate::protocol::Needs;
use crate::record::{self, Discarded};
use crate::rejection::Rejection;
use crate::siblings::Arrival;
use crate::snapshot::{Route, Snapshot, Wish};
use crate::thread::DataThread;
use crate::worker::Permit;

/// Where a request goes and what it goes by.
pub struct Forward<'a> {
    /// The thread that serves it.
    pub thread: &'a DataThread,
    /// What is in force for it.
    pub snapshot: &'a Snapshot,
    /// Its route.
    pub route: &'a Route,
    /// The worker of its session.
    pub pinned: Option<u64>,
    /// The hash of its key, for strategies by key.
    pub key: Option<u64>,
    /// The version it is for, while one takes over from another.
    pub lane: Lane,
    /// What is read of an answer at once, until its client takes it.
    pub part: usize,
    /// What it needs of a worker's protocol.
    pub needs: Needs,
    /// Where interim answers go.
    pub interim: &'a Interim,
    /// Where it came from: how far it may go.
    pub arrival: Arrival,
    /// The worker that was tried last, by its id.
    pub tried: &'a Cell<Option<u32>>,
    /// When its head had been read.
    pub started: Instant,
    /// How its body gets on, where it has one.
    pub upload: Option<Rc<Progress>>,
    /// Its permits at the breakers of the service and the route.
    pub passage: Option<&'a Passage>,
    /// Until when an answer is of use.
    pub deadline: Deadline,
}

/// Where a request lies. Over HTTP/2 it leaves, and what did not leave in the end lies there again; over HTTP/1.1 only its
/// body does.
pub type Slot = Option<Request<RequestBody>>;

/// A worker's answer.
pub struct Answer {
    /// Its head.
    pub head: response::Parts,
    /// Its body.
    pub body: AnswerBody,
    /// The permit of the worker that gave it.
    pub permit: Permit,
    /// When its head came.
    pub arrived: Instant,
    /// Gives the connection back when the answer has been read.
    pub lease: Lease,
    /// What becomes of the client's body, which may still be on its way.
    pub client: Option<Rc<Progress>>,
}

impl Forward<'_> {
    /// Sends the request and waits for the head of the answer. The request stays in its slot until it leaves: it is
    /// large, and what is handed on is only where it lies.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn send(&self, request: &mut Slot) -> Result<Answer, Rejection> {
        let retry = &self.route.policy.retry;
        let mut choice = Choice::default();
        let Some(permit) = choice.any(self, self.started) else { return Err(choice.nobody(self)) };
        let hedged = self.route.policy.hedge.is_some();
        let wanted = Wanted { retry, hedged, grpc: self.needs == Needs::Http2 };
        let Some(repeat) = request.as_mut().map(|request| Repeat::of(request, wanted)) else {
            return Err(Rejection::Internal);
        };
        self.thread.recent.request(self.route, self.started);
        let mut tried = match self.late_after(&repeat) {
            None => self.attempt(permit, request, (0, &repeat)).await,
            Some(late) => Box::pin(self.hedged(permit, request, late, (&repeat, &mut choice))).await,
        };
        // To find out what workers speak is no retry.
        while matches!(tried, Tried::Unsent(Rejection::NotGrpc))
            && let Some(permit) = choice.untried(self, clock::now())
        {
            tried = self.attempt(permit, request, (0, &repeat)).await;
        }
        for attempt in 1..=retry.num_retries {
            if !repeat.is_wanted(retry, &tried) || !self.is_allowed(&tried, clock::now()) {
                break;
            }
            choice.leaves_the_pod = self.is_last(attempt);
            let Some(permit) = self.next(attempt, &tried, &mut choice).await else { break };
            if !matches!(tried, Tried::Unsent(_)) {
                *request = repeat.request(attempt, request);
                if request.is_none() {
                    break;
                }
                self.discard(tried);
            }
            self.thread.shard.retries.add(1);
            tried = self.attempt(permit, request, (attempt, &repeat)).await;
        }
        tried.into_result()
    }

    /// Waits for the answer to an upgrade as long as policy and client allow.
    ///
    /// # Errors
    /// `UpgradeFailed`, or `DeadlineExceeded` when it is the client that does not wait.
    pub async fn in_time<T>(&self, sent: impl Future<Output = T>) -> Result<T, Rejection> {
        let late = match self.deadline.is_the_clients(self.whole_at()) {
            true => Rejection::DeadlineExceeded,
            false => Rejection::UpgradeFailed("the worker did not answer the handshake in time"),
        };
        self.within(self.limit(Try { number: 0, began: self.started }), sent).await.ok_or(late)
    }

    /// What never left is no load for a worker. The rest keeps to the budget, and waits while a few requests find out
    /// whether all workers are well again.
    fn is_allowed(&self, tried: &Tried, now: Instant) -> bool {
        if matches!(tried, Tried::Unsent(_)) {
            return true;
        }
        if self.snapshot.service_half_open() || self.route.gate.half_open() {
            return false;
        }
        let allowed = self.thread.recent.may_retry(self.route, now);
        if !allowed {
            self.thread.shard.retries_over_budget.add(1);
        }
        allowed
    }

    /// Where several workers of the pod are down and nothing says so yet, they must not use up all attempts.
    fn is_last(&self, attempt: u32) -> bool {
        0 < attempt && attempt == self.route.policy.retry.num_retries && self.route.policy.spillover.is_some()
    }

    fn choose(&self, pinned: Option<u64>, usable: &mut Usable, now: Instant) -> Option<Permit> {
        let wish = Wish { pinned, usable, lane: self.lane, random: fastrand::u64(..), key: self.key };
        self.snapshot.choose(self.route, wish, now)
    }

    fn nobody(&self) -> Rejection {
        Rejection::NoWorker(self.snapshot.retry_after(self.started))
    }

    fn candidates(&self, now: Instant) -> Usable {
        let usable = self.thread.usable(self.snapshot, now);
        self.snapshot.candidates(usable, self.arrival, self.route, now)
    }

    /// The worker of the next try, after the wait before it: one that was not tried where there is one. `None` when
    /// there is no worker, or no time left to wait.
    async fn next(&self, attempt: u32, tried: &Tried, choice: &mut Choice) -> Option<Permit> {
        if matches!(tried, Tried::Unsent(_))
            && let Some(permit) = choice.untried(self, clock::now())
        {
            return Some(permit);
        }
        let until = clock::now() + repeat::back_off(&self.route.policy.retry, attempt, fastrand::f64());
        if self.deadline.at(self.whole_at()).is_some_and(|deadline| deadline <= until) {
            return None;
        }
        tokio::time::sleep_until(until.into()).await;
        let now = clock::now();
        choice.untried(self, now).or_else(|| choice.any(self, now))
    }

    /// An answer that does not go to the client: it counts for its worker, and its connection is kept if its rest is
    /// short.
    fn discard(&self, tried: Tried) {
        let Tried::Answered(answer) = tried else { return };
        let Answer { mut head, body, mut permit, arrived, lease, client: _ } = answer;
        let (grpc, hurried) = (self.needs == Needs::Http2, self.deadline.is_the_clients(self.whole_at()));
        let answer = Discarded { head: &mut head, grpc, hurried };
        record::discarded(&self.thread.shard, &mut permit, answer, arrived);
        tokio::task::spawn_local(async move {
            let _permit = permit; // in flight until its answer is over
            if read_to_end(body).await {
                lease.give_back(clock::now());
            }
        });
    }
}

/// Which workers were tried.
#[derive(Default)]
struct Choice {
    tried: SmallVec<[u32; 4]>,
    /// Whether a sibling is to be chosen, where there is one.
    leaves_the_pod: bool,
    /// Whether a worker could have been chosen, but for its protocol.
    unsuited: bool,
}

impl Choice {
    /// A worker that was not tried yet.
    fn untried(&mut self, forward: &Forward<'_>, now: Instant) -> Option<Permit> {
        self.choose(forward, now, true)
    }

    /// Any worker.
    fn any(&mut self, forward: &Forward<'_>, now: Instant) -> Option<Permit> {
        self.choose(forward, now, false)
    }

    fn choose(&mut self, forward: &Forward<'_>, now: Instant, untried: bool) -> Option<Permit> {
        let snapshot = forward.snapshot;
        let mut usable = forward.candidates(now);
        if untried {
            self.tried.iter().for_each(|id| snapshot.exclude(&mut usable, *id));
        }
        if self.leaves_the_pod {
            snapshot.leave_the_pod(&mut usable, forward.lane);
        }
        let pinned = forward.pinned.filter(|_| self.tried.is_empty()); // its worker was the first to be tried
        let mut permit = forward.choose(pinned, &mut usable, now)?;
        if !forward.suits(permit.worker(), now) {
            self.unsuited = true;
            snapshot.keep(&mut usable, |worker| forward.suits(worker, now));
            permit = forward.choose(None, &mut usable, now)?;
        }
        self.tried.push(permit.worker().id);
        forward.tried.set(Some(permit.worker().id));
        Some(permit)
    }

    /// Why no worker was chosen.
    fn nobody(&self, forward: &Forward<'_>) -> Rejection {
        match (self.unsuited, forward.needs) {
            (true, Needs::Http2) => Rejection::NotGrpc,
            (true, Needs::Http1) => Rejection::UpgradeFailed(NO_WEBSOCKET),
            _ => forward.nobody(),
        }
    }
}

/// Why there is no WebSocket to a worker of HTTP/2.
const NO_WEBSOCKET: &str = "the worker speaks HTTP/2 only, and a WebSocket needs HTTP/1.1";

/// Whether a request is gRPC: as its clients send it, and in no other way ("gRPC over HTTP2", Requests).
pub fn is_grpc(head: &Parts) -> bool {
    head.method == Method::POST && head.version == Version::HTTP_2 && has_grpc_content(&head.headers)
}

/// Whether the content of a message is gRPC's: not that of gRPC-Web, whose type only begins alike.
pub fn has_grpc_content(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some(value) = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes) else { return false };
    let Some((found, rest)) = value.split_at_checked(TYPE.len()) else { return false };
    found.eq_ignore_ascii_case(TYPE) && matches!(rest.trim_ascii_start(), [] | [b'+' | b';', ..])
}

/// The head as HTTP/1.1 has it.
pub fn as_http1(head: &mut Parts) {
    head.version = Version::HTTP_11;
    if head.headers.contains_key(header::TE) {
        // What the guard left of it is for the next hop only (RFC 9110 §10.1.4).
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod timeouts;

    #[test]
    fn only_what_a_grpc_client_sends_is_grpc() {
        let head = |method: &str, version: Version, content_type: &str| {
            let request = Request::builder().method(method).version(version);
            request.header("content-type", content_type).body(()).expect("valid").into_parts().0
        };
        for content_type in ["application/grpc", "application/grpc+proto", "Application/gRPC; a=b"] {
            assert!(is_grpc(&head("POST", Version::HTTP_2, content_type)), "{content_type}");
            assert!(!is_grpc(&head("POST", Version::HTTP_11, content_type)), "HTTP/1.1: {content_type}");
            assert!(!is_grpc(&head("GET", Version::HTTP_2, content_type)), "GET: {content_type}");
        }
        for other in
            ["application/grpc-web", "application/grpc-web+proto", "application/grpcx", "text/plain", ""]
        {
            assert!(!is_grpc(&head("POST", Version::HTTP_2, other)), "{other}");
        }
    }
}
