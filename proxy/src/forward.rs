//! Sends a request to a worker: chooses one, gets a connection, waits for the head of the answer; tries again
//! only what never left.

use std::rc::Rc;
use std::time::Instant;

use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version, header, response};
use hyper::body::{Body, Incoming};
use outrigger_policy::effective::WorkerProtocol;
use tokio::time::timeout_at;

use crate::balance::Usable;
use crate::body::{ClientFault, RequestBody};
use crate::pool::{ConnectError, Connection, Lease, Wire};
use crate::rejection::Rejection;
use crate::siblings::{Arrival, UNSERVED};
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
    /// Where it came from: how far it may go.
    pub arrival: Arrival,
    /// When its head had been read.
    pub started: Instant,
}

/// A worker's answer.
pub struct Answer {
    /// Its head.
    pub head: response::Parts,
    /// Its body.
    pub body: Incoming,
    /// The permit of the worker that gave it.
    pub permit: Permit,
    /// Gives the connection back when the answer has been read.
    pub lease: Option<Lease>,
    /// What becomes of the client's body, which may still be on its way.
    pub client: Option<Rc<ClientFault>>,
}

/// How a try ended that gave no answer.
#[expect(clippy::large_enum_variant, reason = "the large one is rare, and a box would cost an allocation")]
enum Failed {
    /// Nothing of the request left: it may go to another worker.
    Unsent(Request<RequestBody>, Rejection),
    /// It left, or the client broke off: it cannot be tried again.
    Final(Rejection),
}

impl Forward<'_> {
    /// Sends the request and waits for the head of the answer.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn send(&self, mut request: Request<RequestBody>) -> Result<Answer, Rejection> {
        let mut usable = self.candidates();
        let mut refused = None;
        for attempt in 0..=self.route.policy.retries {
            self.last_attempt(attempt, &mut usable);
            let mut permit = match self.choose(&mut usable) {
                Some(permit) => permit,
                None => break,
            };
            if 0 < attempt {
                permit.sent_again(Instant::now());
                self.thread.shard.retries.add(1);
            }
            let worker = permit.worker().clone();
            match self.attempt(permit, request).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(rejection)) => return Err(rejection),
                Err(Failed::Unsent(again, rejection)) => {
                    request = again;
                    refused = Some(rejection);
                    self.snapshot.exclude(&mut usable, &worker);
                }
            }
        }
        Err(refused.unwrap_or_else(|| Rejection::NoWorker(self.snapshot.retry_after(self.started))))
    }

    /// A new connection of its own to a worker, with the permit to use it.
    ///
    /// # Errors
    /// That no worker accepts one.
    pub async fn dedicated(&self) -> Result<(Wire, Permit), Rejection> {
        let mut usable = self.candidates();
        let mut refused = None;
        for attempt in 0..=self.route.policy.retries {
            self.last_attempt(attempt, &mut usable);
            let Some(mut permit) = self.choose(&mut usable) else { break };
            match self.thread.upstreams.dedicated(permit.worker(), self.route.policy.timeout.connect).await {
                Ok(stream) => return Ok((stream, permit)),
                Err(error) => {
                    let rejection = Rejection::from(error);
                    permit.refused(rejection, Instant::now());
                    self.snapshot.exclude(&mut usable, permit.worker());
                    refused = Some(rejection);
                }
            }
        }
        Err(refused.unwrap_or_else(|| Rejection::NoWorker(self.snapshot.retry_after(self.started))))
    }

    fn candidates(&self) -> Usable {
        let usable = self.thread.usable(self.snapshot, self.started);
        self.snapshot.candidates(usable, self.arrival, self.route, self.started)
    }

    /// Where several workers of the pod are down and nothing says so yet, they must not use up all attempts.
    fn last_attempt(&self, attempt: u32, usable: &mut Usable) {
        if 0 < attempt && attempt == self.route.policy.retries && self.route.policy.spillover.is_some() {
            self.snapshot.leave_the_pod(usable);
        }
    }

    /// Chooses a worker among those that were not tried yet.
    pub fn choose(&self, usable: &mut Usable) -> Option<Permit> {
        let wish = Wish { pinned: self.pinned, usable, random: fastrand::u64(..), key: self.key };
        self.snapshot.choose(self.route, wish, self.started)
    }

    async fn attempt(&self, mut permit: Permit, request: Request<RequestBody>) -> Result<Answer, Failed> {
        let connection = match self.connection(&permit, &request).await {
            Ok(connection) => connection,
            Err(error) => {
                tracing::debug!(worker = permit.worker().name, %error, "cannot connect");
                let rejection = Rejection::from(error);
                permit.refused(rejection, Instant::now());
                return Err(Failed::Unsent(request, rejection));
            }
        };
        let fault = request.body().fault();
        let again = permit.worker().sibling.as_ref().and_then(|_| copy_of(&request));
        let sent = match connection {
            Connection::Http1(lease) => self.over_http1(lease, &permit, request).await,
            Connection::Http2(sender, lease) => self.over_http2(sender, lease, request).await,
        };
        match sent {
            Sent::Answered(response, lease) => {
                if let Some(fault) = &fault {
                    permit.body_sent(fault.sent_at().unwrap_or_else(Instant::now));
                }
                let (mut head, body) = response.into_parts();
                if let Some(sibling) = &permit.worker().sibling {
                    self.thread.shard.siblings[0].add(1);
                    if head.headers.remove(UNSERVED).is_some() {
                        sibling.rest(Instant::now());
                        permit.refused(Rejection::ConnectFailed, Instant::now());
                        let rejection = Rejection::NoWorker(self.snapshot.retry_after(self.started));
                        return Err(match again {
                            Some(request) => Failed::Unsent(request, rejection),
                            None => Failed::Final(rejection),
                        });
                    }
                }
                Ok(Answer { head, body, permit, lease: Some(lease), client: fault })
            }
            Sent::Unsent(request) => {
                permit.refused(Rejection::WorkerReset, Instant::now());
                Err(Failed::Unsent(request, Rejection::WorkerReset))
            }
            Sent::Broken(rejection) => Err(Failed::Final(blame(permit, fault.as_deref(), rejection))),
        }
    }

    async fn connection(
        &self,
        permit: &Permit,
        request: &Request<RequestBody>,
    ) -> Result<Connection, ConnectError> {
        let worker = permit.worker();
        let limit = self.route.policy.timeout.connect;
        let http2 = match self.snapshot.protocol(worker) {
            WorkerProtocol::H2c => true,
            WorkerProtocol::Http1 => false,
            WorkerProtocol::Auto => is_grpc(request.headers()),
        };
        if http2 {
            return self.thread.upstreams.http2(worker, limit).await;
        }
        match self.thread.upstreams.idle(worker) {
            Some(connection) => Ok(connection),
            None => self.thread.upstreams.connect(worker, limit).await,
        }
    }

    /// A pooled connection that the worker closed in the meantime costs nobody anything: the request comes back
    /// unsent and goes over a new one, to the same worker.
    async fn over_http1(&self, mut lease: Lease, permit: &Permit, mut request: Request<RequestBody>) -> Sent {
        loop {
            let Some(sender) = lease.http1() else { return Sent::Broken(Rejection::Internal) };
            let sent = sender.try_send_request(request);
            match self.within_request_timeout(sent).await {
                Ok(Ok(response)) => return Sent::Answered(response, lease),
                Ok(Err(mut error)) => match error.take_message() {
                    None => return Sent::Broken(Rejection::WorkerReset),
                    Some(unsent) if !lease.reused => return Sent::Unsent(unsent),
                    Some(unsent) => request = unsent,
                },
                Err(rejection) => return Sent::Broken(rejection),
            }
            match self.thread.upstreams.connect(permit.worker(), self.route.policy.timeout.connect).await {
                Ok(Connection::Http1(new)) => lease = new,
                _ => return Sent::Unsent(request),
            }
        }
    }

    async fn over_http2(
        &self,
        mut sender: hyper::client::conn::http2::SendRequest<RequestBody>,
        lease: Lease,
        mut request: Request<RequestBody>,
    ) -> Sent {
        make_absolute(&mut request);
        match self.within_request_timeout(sender.try_send_request(request)).await {
            Ok(Ok(response)) => Sent::Answered(response, lease),
            Ok(Err(mut error)) => match error.take_message() {
                Some(unsent) => Sent::Unsent(unsent),
                None => Sent::Broken(Rejection::WorkerReset),
            },
            Err(rejection) => Sent::Broken(rejection),
        }
    }

    /// Waits for the head of an answer as long as the policy allows.
    ///
    /// # Errors
    /// `WorkerTimeout`.
    pub async fn within_request_timeout<T>(&self, sent: impl Future<Output = T>) -> Result<T, Rejection> {
        match self.route.policy.timeout.request {
            None => Ok(sent.await),
            Some(limit) => {
                let deadline = tokio::time::Instant::from_std(self.started + limit);
                timeout_at(deadline, sent).await.map_err(|_| Rejection::WorkerTimeout)
            }
        }
    }
}

#[expect(clippy::large_enum_variant, reason = "the large one is rare, and a box would cost an allocation")]
enum Sent {
    Answered(Response<Incoming>, Lease),
    Unsent(Request<RequestBody>),
    Broken(Rejection),
}

/// A request without a body can be sent again when a sibling had nobody to give it to.
fn copy_of(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    request.body().is_end_stream().then(|| {
        let mut copy = Request::new(RequestBody::empty());
        *copy.method_mut() = request.method().clone();
        *copy.uri_mut() = request.uri().clone();
        *copy.headers_mut() = request.headers().clone();
        copy
    })
}

/// Who is at fault when a request that left got no answer: the client whose body broke off or is waited for, or
/// the worker. Only the worker's fault is held against the worker.
fn blame(mut permit: Permit, client: Option<&ClientFault>, rejection: Rejection) -> Rejection {
    if let Some(fault) = client.and_then(ClientFault::get) {
        return fault;
    }
    if rejection == Rejection::WorkerTimeout && client.is_some_and(ClientFault::waited_for) {
        return Rejection::ClientBodyTimeout;
    }
    permit.refused(rejection, Instant::now());
    rejection
}

/// Whether a message is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The head as HTTP/1.1 has it.
pub fn as_http1(head: &mut Parts) {
    head.version = Version::HTTP_11;
    join_cookies(&mut head.headers);
    if head.headers.contains_key(header::TE) {
        // What the guard left of it is for the next hop only (RFC 9110 §10.1.4).
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
}

/// HTTP/2 may split the cookie field for better compression; HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(_)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in headers.get_all(header::COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, value);
    }
}

/// HTTP/2 has scheme and authority in the target, and no `host`.
fn make_absolute(request: &mut Request<RequestBody>) {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(header::CONNECTION);
    let host = request.headers_mut().remove(header::HOST);
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.unwrap_or_else(|| Authority::from_static("localhost")));
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

impl From<ConnectError> for Rejection {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::Refused(_) => Self::ConnectFailed,
            ConnectError::Timeout => Self::ConnectTimeout,
            ConnectError::Handshake(_) => Self::WorkerProtocol("the worker does not speak HTTP/2"),
        }
    }
}
