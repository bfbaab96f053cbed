//! The request path. Read it from top to bottom: each line of `try_serve` is one stage.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Request, Response, Version};
use http_body::Body;
use outrigger_policy::effective::LimitKey;

use crate::balance::key;
use crate::body::{ClientBody, Proxied, RequestBody, ResponseBody};
use crate::connection::Client;
use crate::forward::{self, Answer, Deadline, Forward};
use crate::guard;
use crate::interim::{CONTINUE_AFTER, Interim};
use crate::limit::Decision;
use crate::passage::Passage;
use crate::protocol::Needs;
use crate::record::{AnswerHeaders, Exchange, Record};
use crate::rejection::Rejection;
use crate::session::Session;
use crate::siblings::{Arrival, BLAMELESS, UNSERVED, YES};
use crate::snapshot::{Route, Snapshot, Source};
use crate::thread::DataThread;
use crate::worker::Worker;
use crate::{http1, http2, upgrade};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Serves one request: with a worker's answer, or with the reason why there is none. Interim answers go by `interim`.
pub async fn serve(
    thread: Rc<DataThread>,
    client: Rc<Client>,
    request: Request<ClientBody>,
    interim: Interim,
) -> Response<ResponseBody> {
    let mut exchange = Exchange::begin(thread, client);
    exchange.asked.heard(request.method(), request.uri());
    let mut headers = AnswerHeaders::new();
    let serving = async {
        #[cfg(test)]
        assert!(!request.headers().contains_key("x-panic"), "a test asks for it");
        try_serve(&mut exchange, &mut headers, request, &interim).await
    };
    // A panic is this request's affair, and not its connection's.
    let served = AssertUnwindSafe(serving).catch_unwind().await;
    let mut response = match served.unwrap_or(Err(Rejection::Internal)) {
        Ok(Served::Answer(answer, idle)) => answered(exchange, answer, idle),
        Ok(Served::Tunnel(tunnel)) => tunnel.open(exchange),
        Err(rejection) => rejected(exchange, rejection),
    };
    for (name, value) in headers {
        response.headers_mut().append(name, value);
    }
    response
}

/// Answers what is no request: its bytes break a rule.
pub fn refuse(thread: Rc<DataThread>, client: Rc<Client>, rejection: Rejection) -> Response<ResponseBody> {
    rejected(Exchange::begin(thread, client), rejection)
}

/// What a request that was not refused gets.
enum Served {
    /// A worker's answer, and how long its body may stand still.
    Answer(Answer, Duration),
    /// A connection through to a worker.
    Tunnel(upgrade::Tunnel),
}

async fn try_serve(
    exchange: &mut Exchange,
    headers: &mut AnswerHeaders,
    request: Request<ClientBody>,
    interim: &Interim,
) -> Result<Served, Rejection> {
    let thread = exchange.thread.clone();
    let arrival = exchange.client.arrival;
    let snapshot = thread.snapshot();
    let (mut head, body) = request.into_parts();
    exchange.grpc = forward::is_grpc(&head);

    // guard: nothing malformed or ambiguous goes further, and everything else in one form
    let context = guard::Context {
        peer: &exchange.client.peer,
        trust: thread.trust(arrival),
        sibling: arrival == Arrival::Sibling,
        random: fastrand::u128(..),
    };
    let inspected = guard::request(&mut head, body.is_end_stream(), &context)?;
    exchange.asked.client = inspected.client.address;

    // policy, route
    let route = in_force(&snapshot)?.route(&head);
    exchange.route = route.slot;

    // limit
    match arrival {
        Arrival::Client => limit(route, &Asker::of(&head, &inspected.client, exchange.started), headers)?,
        Arrival::Sibling => thread.shard.siblings[1].add(1), // it has asked its own limits, and counted the request
    }

    // breaker: of the service and of the route
    exchange.passage = Some(Passage::enter(&snapshot, route.place, exchange.started)?);

    // session
    let session = session(&thread, route, &head);

    // breaker, balance, forward
    let body = RequestBody::new(body, route.policy.timeout.idle, Some(&exchange.client));
    let forward = Forward {
        thread: &thread,
        snapshot: &snapshot,
        route,
        pinned: session.map(|session| session.worker),
        key: key::of(&route.policy.load_balancer.strategy, &head, inspected.client.address),
        part: if head.version == Version::HTTP_2 { http2::LITTLE } else { http1::BLOCK },
        needs: Needs::of(exchange.grpc, inspected.websocket),
        interim,
        tried: &exchange.asked.worker,
        arrival,
        lane: snapshot.lane(&head.headers, inspected.client.address, (arrival, route), exchange.started),
        started: exchange.started,
        upload: body.progress(),
        passage: exchange.passage.as_ref(),
        deadline: Deadline::of(route, &head.headers, exchange.grpc, exchange.started),
    };
    if inspected.websocket {
        exchange.hurried = forward.deadline.is_the_clients(forward.whole_at());
        let tunnel = Box::pin(upgrade::connect(&forward, head, body)).await?;
        let worker = session_worker(&snapshot, route, tunnel.worker());
        headers.extend(pin(&thread, route, session, (worker, inspected.client.secure)));
        return Ok(Served::Tunnel(tunnel));
    }
    forward::as_http1(&mut head);
    let mut request = Some(Request::from_parts(head, body));
    let mut answer = match inspected.expects {
        false => forward.send(&mut request).await,
        true => Box::pin(continued(interim, forward.send(&mut request))).await,
    }?;
    exchange.hurried = forward.deadline.is_the_clients(forward.whole_at());
    request.into_iter().for_each(|sent| thread.upstreams.buffers().take_over(sent.into_parts().0.headers));
    accept(&mut answer)?;
    let worker = session_worker(&snapshot, route, answer.permit.worker());
    headers.extend(pin(&thread, route, session, (worker, inspected.client.secure)));
    Ok(Served::Answer(answer, route.policy.timeout.idle))
}

/// Nothing is served before it is known under which rules.
fn in_force(snapshot: &Snapshot) -> Result<&Snapshot, Rejection> {
    if snapshot.source == Source::Awaited { Err(Rejection::NoPolicy) } else { Ok(snapshot) }
}

/// Sends a request whose client waits for `100 Continue`. A worker that knows of that asks for the content, or refuses it; for
/// one that says nothing, or that answers well before it has asked, the proxy asks.
async fn continued(
    interim: &Interim,
    sent: impl Future<Output = Result<Answer, Rejection>>,
) -> Result<Answer, Rejection> {
    interim.awaits_continue();
    let mut sent = std::pin::pin!(sent);
    let answer = match tokio::time::timeout(CONTINUE_AFTER, sent.as_mut()).await {
        Ok(answer) => answer?,
        Err(_) => {
            interim.go_on();
            return sent.await;
        }
    };
    if answer.head.status.is_success() {
        interim.go_on();
    }
    Ok(answer)
}

/// Refuses an answer that breaks the protocol: that is its worker's failure.
fn accept(answer: &mut Answer) -> Result<(), Rejection> {
    for said in [UNSERVED, BLAMELESS] {
        answer.head.headers.remove(said); // a proxy's word, not a worker's
    }
    guard::response(&mut answer.head, false).inspect_err(|rejection| {
        answer.permit.refused(*rejection, answer.arrived);
    })?;
    answer.permit.worker().load.heard(&mut answer.head, answer.arrived);
    Ok(())
}

/// What the limits look at.
struct Asker<'a> {
    headers: &'a HeaderMap,
    client: &'a crate::client::Client,
    now: Instant,
}

impl<'a> Asker<'a> {
    fn of(head: &'a Parts, client: &'a crate::client::Client, now: Instant) -> Self {
        Self { headers: &head.headers, client, now }
    }
}

/// Asks every limit of the route; the first that refuses decides. What is left goes on the answer.
fn limit(route: &Route, asker: &Asker<'_>, answer: &mut AnswerHeaders) -> Result<(), Rejection> {
    for bucket in &route.allowance.limits {
        let limit = bucket.limit();
        let decision = match &limit.key {
            LimitKey::SourceAddress => bucket.check(&address_key(asker.client.address), asker.now),
            LimitKey::Header(_) => match bucket.header().and_then(|name| asker.headers.get(name)) {
                Some(value) => bucket.check(value.as_bytes(), asker.now),
                None => continue,
            },
        };
        let Decision { allowed, retry_after, .. } = decision;
        answer.push((RATE_LIMIT, decision.header(&limit.name)));
        answer.push((RATE_LIMIT_POLICY, bucket.policy_header().clone()));
        if !allowed {
            return Err(Rejection::RateLimited(retry_after));
        }
    }
    Ok(())
}

/// What an address is counted under: an IPv6 client holds a /64 at least.
fn address_key(address: IpAddr) -> [u8; 9] {
    let mut key = [0; 9];
    match address {
        IpAddr::V4(v4) => key[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => {
            key[0] = 6;
            key[1..].copy_from_slice(&v6.octets()[..8]);
        }
    }
    key
}

/// The session that the client's cookie says, where there are any.
fn session(thread: &DataThread, route: &Route, head: &Parts) -> Option<Session> {
    let cookie = route.cookie.as_ref()?;
    cookie.read(&head.headers, thread.unix_seconds(), &mut thread.sessions.borrow_mut())
}

/// What a session is to know a worker by; `None` for a sibling, whose proxy chose the worker and pinned the session.
fn session_worker(snapshot: &Snapshot, route: &Route, worker: &Worker) -> Option<u64> {
    worker.sibling.is_none().then(|| snapshot.session_id(route, worker))
}

type Header = (HeaderName, HeaderValue);

/// The session cookie to write, when the request began a session or could not stay with its worker.
fn pin(
    thread: &DataThread,
    route: &Route,
    session: Option<Session>,
    (worker, secure): (Option<u64>, bool),
) -> Option<Header> {
    let (cookie, worker) = (route.cookie.as_ref()?, worker?);
    let now = thread.unix_seconds();
    let session = match session {
        Some(session) if session.worker == worker => return None,
        Some(moved) => {
            thread.shard.sessions[1].add(1);
            Session { worker, ..moved }
        }
        None => {
            thread.shard.sessions[0].add(1);
            cookie.start(worker, now)
        }
    };
    let mut nonce = [0; 12];
    aws_lc_rs::rand::fill(&mut nonce).ok()?; // without randomness there is no session, and the request goes on
    Some((header::SET_COOKIE, cookie.write(session, secure, nonce, now)))
}

/// Brings a worker's answer into the form in which it may go to a client.
fn answered(exchange: Exchange, answer: Answer, idle: Duration) -> Response<ResponseBody> {
    let Answer { head, body, permit, arrived, lease, client } = answer;
    let grpc = exchange.grpc;
    let mut record = Record::answered(exchange, permit, &head, arrived);
    record.client = client;
    let mut proxied = Proxied::new(body, idle, Some(lease), record);
    if let Some(rejection) = proxied.broken_at_once() {
        return refusal(rejection, grpc); // or the client would see its connection closed without a word
    }
    Response::from_parts(head, ResponseBody::Proxied(Box::new(proxied)))
}

/// The proxy's own answer.
fn rejected(mut exchange: Exchange, rejection: Rejection) -> Response<ResponseBody> {
    exchange.rejected(rejection);
    let mut response = refusal(rejection, exchange.grpc);
    if exchange.client.arrival == Arrival::Sibling {
        if rejection.reached_no_worker() {
            response.headers_mut().insert(UNSERVED, YES);
        } else if rejection.is_the_clients_doing() {
            response.headers_mut().insert(BLAMELESS, YES);
        }
    }
    response
}

fn refusal(rejection: Rejection, grpc: bool) -> Response<ResponseBody> {
    if grpc { grpc_rejection(rejection) } else { http_rejection(rejection) }
}

fn http_rejection(rejection: Rejection) -> Response<ResponseBody> {
    let text = Bytes::from(format!("{}\n", rejection.message()));
    let mut response = Response::new(ResponseBody::Own(Some(text)));
    *response.status_mut() = rejection.status();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(PROXY_STATUS, rejection.proxy_status_header());
    if let Some(after) = rejection.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs_f64().ceil().max(1.0) as u64));
    }
    if rejection == Rejection::WebSocketVersion {
        headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    if rejection.closes_connection() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// gRPC clients read the status from `grpc-status`, in an answer of 200 without a body.
fn grpc_rejection(rejection: Rejection) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Own(None));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(PROXY_STATUS, rejection.proxy_status_header());
    headers.insert(GRPC_STATUS, HeaderValue::from(rejection.grpc_status()));
    if let Ok(message) = HeaderValue::from_str(rejection.message()) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}
