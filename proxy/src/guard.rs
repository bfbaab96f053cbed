//! What may pass. Refuses messages that are malformed or that two readers would take for different ones, and
//! brings the rest into one canonical form: what is routed, counted and limited is what the worker receives.
//!
//! hyper reads the bytes of clients and `http1` those of workers; the guard sees what lies between. Some things hyper (1.12)
//! and `http` (1.5) settle before a request gets here, and the guard cannot see that they occurred:
//!
//! - `Content-Length` beside `Transfer-Encoding`: the length is dropped, chunked alone counts, and the connection
//!   is closed after the answer (the second choice of RFC 9112 §6.1).
//! - `Content-Length` lines that are equal become one; a length that is no number, lines that differ,
//!   `Transfer-Encoding` in HTTP/1.0 and a last coding other than chunked are answered with 400 by hyper itself.
//!   Earlier lines and codings are left in sight, and refused here.
//! - A fragment (`/a#b`) is cut off by `http::Uri`, so `#` is never forwarded, but neither refused.
//! - `OPTIONS http://host` without a path is `OPTIONS http://host/`, so it is forwarded for `/` and not for `*`.
//! - Over HTTP/1.1, `100 Continue` is sent by hyper as soon as the body is read; over HTTP/2 nobody sends it.
//! - HTTP/2: `h2` resets streams with connection-specific fields, a `te` other than `trailers`, or a length that
//!   does not match; the checks for these here are a second line.
//! - Answers: `http1` fails a length that is no number, lengths that differ, and `Transfer-Encoding` in HTTP/1.0; it
//!   swallows interim answers other than 101. A length beside chunked is left in sight, and ends the connection.

mod fields;
mod forwarded;
mod framing;
mod hop_by_hop;
mod host;
mod response;
mod target;
mod trace;
mod trailers;

#[cfg(test)]
mod tests;

use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Version};

use crate::client::{Client, Peer, Trust};
use crate::rejection::Rejection;
use fields::Fields;

pub use fields::members;
pub use framing::content_length;
pub use response::response;
pub use trailers::trailers;

/// The most field lines of a request or an answer, over any protocol; as many as Envoy takes. It is hyper's own bound for
/// HTTP/1.1, too: to be told any other, or this one, costs it allocations for each head.
pub const MAX_HEADERS: usize = 100;

/// What a request is judged by, besides itself.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// Who sent it.
    pub peer: &'a Peer,
    /// Whom the proxy believes.
    pub trust: &'a Trust,
    /// Whether the peer is a sibling: it has told the worker of the client already.
    pub sibling: bool,
    /// What the request's id is made of, should it have none.
    pub random: u128,
}

/// What was learned from a request that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// Who sent it.
    pub client: Client,
    /// Whether it is a WebSocket handshake; only then are `Connection` and `Upgrade` left.
    pub websocket: bool,
}

/// Refuses a request that is malformed or ambiguous, and brings any other into its canonical form.
///
/// Afterwards the target is in origin form (or `*`), there is exactly one `host`, and the only fields of the connection
/// left are those of a WebSocket handshake and `te: trailers`. `te` needs a `connection: te` beside it in HTTP/1.1 (RFC 9110 §10.1.4), which is for whoever
/// knows the worker's protocol to add.
///
/// `body_ended` says that no content follows the head.
pub fn request(head: &mut Parts, body_ended: bool, context: &Context<'_>) -> Result<Inspected, Rejection> {
    if head.headers.len() > MAX_HEADERS {
        return Err(Rejection::HeadersTooLarge);
    }
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Rejection::MethodNotAllowed);
    }
    let fields = Fields::of(&head.headers);
    if head.version == Version::HTTP_2 && fields.any(Fields::CONNECTION_SPECIFIC) {
        return Err(Rejection::BadRequest("connection-specific fields have no place in HTTP/2"));
    }
    framing::request(head, fields, body_ended)?;
    expect(&mut head.headers, fields)?;
    host::settle(head, fields)?;
    target::settle(head)?;
    let websocket = hop_by_hop::request(head, fields, body_ended)?;
    let client = forwarded::request(&mut head.headers, fields, context);
    trace::request(&mut head.headers, fields, context.random);
    head.headers.append(header::VIA, via(head.version));
    Ok(Inspected { client, websocket })
}

/// `100-continue` is met by hyper, so the worker need not hear of it; others cannot be (RFC 9110 §10.1.1).
fn expect(headers: &mut HeaderMap, fields: Fields) -> Result<(), Rejection> {
    if !fields.any(Fields::EXPECT) {
        return Ok(());
    }
    match fields::only(headers, &header::EXPECT) {
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {}
        _ => return Err(Rejection::ExpectationFailed),
    }
    headers.remove(header::EXPECT);
    Ok(())
}

/// The proxy's line of `Via`: how the message came, and a pseudonym (RFC 9110 §7.6.3).
fn via(received: Version) -> HeaderValue {
    // Constants: a text would be looked through for each request.
    const HTTP_2: HeaderValue = HeaderValue::from_static("2 outrigger");
    const HTTP_11: HeaderValue = HeaderValue::from_static("1.1 outrigger");
    const HTTP_10: HeaderValue = HeaderValue::from_static("1.0 outrigger");
    match received {
        Version::HTTP_2 => HTTP_2,
        Version::HTTP_10 => HTTP_10,
        _ => HTTP_11,
    }
}
