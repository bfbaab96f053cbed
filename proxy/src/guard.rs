//! What may pass. Refuses messages that are malformed or that two readers would take for different ones, and
//! brings the rest into one canonical form: what is routed, counted and limited is what the worker receives.
//!
//! `http1` and `http2` read the bytes, and refuse those that are no message (RFC 9112, RFC 9113); the guard judges what the
//! message says. `http1` asks it where a request's content ends before it reads on. Some things the `http` crate (1.5) and
//! hyper's client settle before the guard sees them:
//!
//! - `OPTIONS http://host` without a path is `OPTIONS http://host/`, so it is forwarded for `/` and not for `*`.
//! - HTTP/2: `http2` or `h2` refuses connection-specific fields, a `te` other than `trailers`, and a length that does not match;
//!   the checks for these here are a second line. What `h2` and `http` pass over, `http2::strict` has found before.
//! - Answers: `http1` fails a length that is no number, lengths that differ, and `Transfer-Encoding` in HTTP/1.0. A length
//!   beside chunked is left in sight, and ends the connection.

mod cookies;
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
use http::{Method, Version};

use crate::client::{Client, Peer, Trust};
use crate::rejection::Rejection;
use fields::Fields;

pub use fields::members;
pub use framing::{Content, content, content_length};
pub use response::{interim, response};
pub use target::RawQuery;
pub use trailers::trailers;

/// The most field lines of a request or an answer, over any protocol; as many as Envoy takes.
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
    /// Whether the client waits for `100 Continue` before it sends its content.
    pub expects: bool,
}

/// Refuses a request that is malformed or ambiguous, and brings any other into its canonical form.
///
/// Afterwards the target is in origin form (or `*`), there is exactly one `host`, and the only fields of the connection
/// left are those of a WebSocket handshake and `te: trailers`. `te` needs a `connection: te` beside it in HTTP/1.1 (RFC 9110 §10.1.4), which is for whoever
/// knows the worker's protocol to add.
///
/// `body_ended` says that no content follows the head.
pub fn request(head: &mut Parts, body_ended: bool, context: &Context<'_>) -> Result<Inspected, Rejection> {
    cookies::join(&mut head.headers);
    if head.headers.len() > MAX_HEADERS {
        return Err(Rejection::HeadersTooLarge);
    }
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Rejection::MethodNotAllowed);
    }
    let fields = Fields::of(&head.headers);
    if fields.any(Fields::MALFORMED) {
        return Err(Rejection::BadRequest("the name of a field is malformed"));
    }
    if head.version == Version::HTTP_2 && fields.any(Fields::CONNECTION_SPECIFIC) {
        return Err(Rejection::BadRequest("connection-specific fields have no place in HTTP/2"));
    }
    framing::request(head, fields, body_ended)?;
    let expects = expect(head, fields, body_ended)?;
    host::settle(head, fields)?;
    target::settle(head)?;
    let websocket = hop_by_hop::request(head, fields, body_ended)?;
    let client = forwarded::request(&mut head.headers, fields, context);
    trace::request(&mut head.headers, fields, context.random);
    head.headers.append(header::VIA, via(head.version));
    Ok(Inspected { client, websocket, expects })
}

/// The worker is told that the client waits for `100-continue`, so that it can refuse the content. Other expectations cannot
/// be met. Without content there is nothing to wait for, and in HTTP/1.0 the field means nothing (RFC 9110 §10.1.1).
fn expect(head: &mut Parts, fields: Fields, body_ended: bool) -> Result<bool, Rejection> {
    if !fields.any(Fields::EXPECT) {
        return Ok(false);
    }
    let headers = &mut head.headers;
    match fields::only(headers, &header::EXPECT) {
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {}
        _ => return Err(Rejection::ExpectationFailed),
    }
    let expects = !body_ended && head.version != Version::HTTP_10;
    if !expects {
        headers.remove(header::EXPECT);
    }
    Ok(expects)
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
