//! A try over HTTP/2: a stream to the worker, and another where the worker did nothing for the request.

use std::pin::{Pin, pin};

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version, header};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http2::SendRequest};

use super::attempt::{CLOSING, Sent, Unanswered};
use super::connect::NoConnection;
use super::patience::Try;
use super::repeat::Repeat;
use super::{Forward, Slot};
use crate::body::{AnswerBody, RequestBody};
use crate::clock;
use crate::http2::{self, Refusal};
use crate::pool::{Connection, Lease};
use crate::rejection::Rejection;
use crate::worker::Permit;

/// A request goes over so many streams at most.
const MOST_STREAMS: u32 = 4;

/// A stream on a connection to a worker.
pub(super) struct Stream {
    pub(super) sender: SendRequest<RequestBody>,
    pub(super) lease: Lease,
}

impl Forward<'_> {
    /// A worker that closes a connection, or takes fewer streams than it said, costs nobody anything: the request goes over
    /// another stream, to the same worker, where nothing of it was sent, or the worker says that it did nothing for it and it was kept
    /// (RFC 9113 §8.7). One that may be repeated goes so, too, when a connection ends on which it was just sent.
    pub(super) async fn over_http2(
        &self,
        mut stream: Stream,
        (permit, this): (&mut Permit, Try),
        (request, repeat): (&mut Slot, &Repeat),
    ) -> Sent {
        for number in 1.. {
            let Some(mut outgoing) = request.take() else {
                return Err(Unanswered::Broken(Rejection::Internal));
            };
            make_absolute(&mut outgoing);
            let sent = pin!(stream.sender.try_send_request(outgoing));
            let error = match self.patiently(this, permit, response(sent, request)).await {
                Ok(Ok(response)) => return Ok((response.map(AnswerBody::Hyper), stream.lease)),
                Ok(Err(error)) => error,
                // The worker did not have all of that time.
                Err(_) if stream.lease.waited => {
                    return Err(Unanswered::NotConnected { error: NoConnection::Full, left: true });
                }
                Err(limit) => return Err(Unanswered::Late(limit)),
            };
            let refusal = http2::refusal(&error);
            let connection_ends = !http2::is_of_a_stream(&error);
            if connection_ends {
                stream.lease.is_the_last();
            }
            let ends = number == MOST_STREAMS;
            match (request.as_mut(), refusal) {
                (Some(unsent), _) => {
                    make_relative(unsent);
                    if ends || !stream.lease.reused {
                        return Err(Unanswered::Unsent);
                    }
                }
                (None, Some(Refusal::Unprocessed)) if !ends => *request = repeat.once_more(true),
                (None, _) if !ends && connection_ends && self.was_closing(&stream.lease, this) => {
                    *request = repeat.once_more(false);
                }
                (None, _) => {}
            }
            if request.is_none() {
                return Err(self.ended(permit, refusal));
            }
            self.thread.shard.stale_connections.add(1);
            drop(stream); // it is over, and may be the last that the worker allows
            stream = match self.stream(permit.worker(), self.limit(this)).await {
                Ok(Connection::Http2(sender, lease)) => Stream { sender, lease },
                Ok(Connection::Http1(_)) => return Err(Unanswered::Broken(Rejection::Internal)),
                Err(error) => return Err(Unanswered::NotConnected { error, left: false }),
            };
        }
        Err(Unanswered::Broken(Rejection::Internal))
    }

    /// Whether a connection that ends now was being closed when the request was sent on it.
    fn was_closing(&self, lease: &Lease, this: Try) -> bool {
        lease.reused && clock::now() < this.began + CLOSING
    }

    /// What it means that a stream ended without an answer.
    fn ended(&self, permit: &Permit, refusal: Option<Refusal>) -> Unanswered {
        match refusal {
            None => {
                permit.worker().speaks.forget(); // it may be another program now
                Unanswered::Broken(Rejection::WorkerReset)
            }
            Some(Refusal::Unprocessed) => {
                Unanswered::Broken(Rejection::WorkerRefused("the worker did nothing for the request"))
            }
            Some(Refusal::Refused) => {
                Unanswered::Refused(Rejection::WorkerRefused("the worker refused the request"))
            }
        }
    }
}

/// The head of the answer. What never left is put back into its slot.
async fn response(
    sent: Pin<&mut impl Future<Output = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>>>,
    request: &mut Slot,
) -> Result<Response<Incoming>, hyper::Error> {
    sent.await.map_err(|mut error| {
        *request = error.take_message();
        error.into_error()
    })
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

/// The way back: the next worker may speak HTTP/1.1.
fn make_relative(request: &mut Request<RequestBody>) {
    *request.version_mut() = Version::HTTP_11;
    if request.headers().contains_key(header::TE) {
        request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("te"));
    }
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = None;
    let host = parts.authority.take().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(header::HOST, host);
    }
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_never_left_over_http2_is_what_it_was() {
        let original = Request::get("/a?b=c").header("host", "web:8000").header("te", "trailers");
        let mut request = original.body(RequestBody::empty()).expect("valid");
        make_absolute(&mut request);
        assert_eq!(request.uri(), "http://web:8000/a?b=c");
        assert!(!request.headers().contains_key("host"));
        make_relative(&mut request);
        assert_eq!(
            (request.uri().to_string().as_str(), &request.headers()["host"]),
            ("/a?b=c", &HeaderValue::from_static("web:8000"))
        );
        assert_eq!(request.headers()["connection"], "te");
    }
}
