//! One request: served, and answered as its client reads.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, request, response};
use http_body::{Body, Frame};

use super::content::Incoming;
use super::room::{LITTLE, Part, Room, Unsent};
use super::strict::{Findings, Head};
use crate::body::{Broken, ClientBody, ResponseBody};
use crate::connection::{Client, Holding};
use crate::guard::RawQuery;
use crate::interim::Interim;
use crate::rejection::Rejection;
use crate::thread::DataThread;

/// What the requests of one connection share.
pub(super) struct Shared {
    pub(super) thread: Rc<DataThread>,
    pub(super) client: Rc<Client>,
    pub(super) findings: Rc<Findings>,
    pub(super) room: Rc<Room>,
    /// What the heads of requests that have no answer yet take of memory.
    pub(super) heads: Cell<usize>,
}

/// The way back to the client of one request.
pub struct Respond(RefCell<SendResponse<Part>>);

impl Respond {
    /// Sends an interim answer.
    pub fn interim(&self, status: StatusCode, fields: &HeaderMap) {
        let mut interim = Response::new(());
        *interim.status_mut() = status;
        interim.headers_mut().clone_from(fields);
        let _ = self.0.borrow_mut().send_informational(interim); // the client may be gone, which the answer finds
    }

    /// Ready when the client no longer wants an answer.
    fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.0.borrow_mut().poll_reset(cx).map(drop)
    }

    fn reset(&self, reason: Reason) {
        self.0.borrow_mut().send_reset(reason);
    }
}

/// What the head of a request takes of its connection's memory, until there is an answer.
struct Charge<'a> {
    shared: &'a Shared,
    memory: usize,
}

impl<'a> Charge<'a> {
    fn new(shared: &'a Shared, memory: usize) -> Self {
        shared.heads.set(shared.heads.get() + memory);
        Self { shared, memory }
    }
}

impl Drop for Charge<'_> {
    fn drop(&mut self) {
        self.shared.heads.set(self.shared.heads.get() - self.memory);
    }
}

/// A request that was taken on.
pub(super) struct Taken {
    /// What was found in its head.
    pub(super) found: Head,
    /// Why it is refused, if it is.
    pub(super) refused: Option<Rejection>,
    /// What it takes of memory until its answer has ended.
    pub(super) holding: Holding,
}

/// Serves a request, and answers it.
pub(super) async fn exchange(
    shared: Rc<Shared>,
    request: Request<RecvStream>,
    respond: SendResponse<Part>,
    taken: Taken,
) {
    let Taken { found, refused, holding: _holding } = taken;
    let charge = Charge::new(&shared, found.memory);
    let respond = Rc::new(Respond(RefCell::new(respond)));
    let is_head = request.method() == Method::HEAD;
    let (thread, client) = (shared.thread.clone(), shared.client.clone());
    let response = match refused {
        Some(rejection) => Some(crate::request::refuse(thread, client, rejection)),
        None => {
            let (mut parts, stream) = request.into_parts();
            if let Some(target) = found.target {
                unmask(&mut parts, &target);
            }
            let content = Incoming::new(stream, &parts.headers, &shared.findings);
            let request = Request::from_parts(parts, ClientBody::Http2(content));
            let interim = Interim::over_http2(respond.clone());
            let mut serving = pin!(crate::request::serve(thread, client, request, interim));
            poll_fn(|cx| match respond.poll_reset(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => serving.as_mut().poll(cx).map(Some),
            })
            .await
        }
    };
    drop(charge);
    if let Some(response) = response {
        answer(&shared, &respond, response, is_head).await;
    }
}

/// Puts the target in its place that `h2` has seen masked. Where it is too long now, the guard refuses a request without one.
fn unmask(parts: &mut request::Parts, target: &Bytes) {
    let Some((encoded, query)) = RawQuery::of(target) else { return };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = PathAndQuery::from_maybe_shared(encoded).ok();
    parts.uri = Uri::from_parts(uri).unwrap_or_default();
    parts.extensions.insert(query);
}

async fn answer(shared: &Shared, respond: &Respond, response: Response<ResponseBody>, is_head: bool) {
    let (mut head, body) = response.into_parts();
    let ends = is_head || body.is_end_stream();
    finish(&mut head, &body, shared, ends);
    let sent = respond.0.borrow_mut().send_response(Response::from_parts(head, ()), ends);
    match sent {
        Ok(_) if ends => {}
        Ok(stream) => Answer { shared, stream, body, unsent: None }.send().await,
        Err(error) => {
            tracing::debug!(%error, "an answer cannot be sent over HTTP/2");
            respond.reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// Brings an answer into the form of HTTP/2.
fn finish(head: &mut response::Parts, body: &ResponseBody, shared: &Shared, ends: bool) {
    if let ResponseBody::Own(_) = body {
        // They are for HTTP/1.1; of a worker's answer the guard has left none.
        head.headers.remove(header::CONNECTION);
        head.headers.remove(header::UPGRADE);
    }
    if !head.headers.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::from_bytes(&shared.thread.date())
    {
        head.headers.insert(header::DATE, date);
    }
    if !ends && let Some(length) = body.size_hint().exact() {
        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
}

/// An answer whose head was sent.
struct Answer<'a> {
    shared: &'a Shared,
    stream: SendStream<Part>,
    body: ResponseBody,
    /// Once something was sent that others follow.
    unsent: Option<Rc<Unsent>>,
}

/// What comes next of an answer's content, unless its client is gone.
type Next = Option<Option<Result<Frame<Bytes>, Broken>>>;

impl Answer<'_> {
    async fn send(mut self) {
        loop {
            self.body.take_at_most(self.shared.room.next());
            let Some(frame) = poll_fn(|cx| self.poll_next(cx)).await else { return };
            let goes_on = match frame {
                Some(Ok(frame)) => self.frame(frame),
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    false
                }
                None => {
                    let _ = self.stream.send_data(Part::default(), true); // or the client is gone
                    false
                }
            };
            if !goes_on || !self.has_left().await {
                return;
            }
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => self.stream.poll_reset(cx).map(|_| None),
        }
    }

    /// Sends a part. Whether another follows.
    fn frame(&mut self, frame: Frame<Bytes>) -> bool {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers()
                    && self.stream.send_trailers(trailers).is_err()
                {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                }
                return false;
            }
        };
        let ends = self.body.is_end_stream();
        let part = match &mut self.unsent {
            None if ends && data.len() <= LITTLE => Part::last(data),
            unsent => Part::new(data, unsent.get_or_insert_default(), &self.shared.room),
        };
        self.stream.send_data(part, ends).is_ok() && !ends
    }

    /// Waits until what was sent has left, or nearly. False: the client does not read it.
    async fn has_left(&mut self) -> bool {
        let Some(unsent) = &self.unsent else { return true };
        if unsent.has_room() {
            return true;
        }
        let _unread = Holding::of_unread_stream(self.shared.client.activity.clone());
        let patience = self.shared.thread.connections.limits().stall;
        let left = poll_fn(|cx| unsent.poll(cx));
        let left = self.shared.thread.alarms.within(Instant::now() + patience, left).await;
        if left.is_none() {
            tracing::debug!(client = %self.shared.client.peer.address, "an answer was not read: its stream is reset");
            self.stream.send_reset(Reason::CANCEL);
        }
        left.is_some()
    }
}
