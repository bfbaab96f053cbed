//! What the worker is told about the client: only what the proxy saw, or heard from a hop that it trusts
//! (RFC 7239 §8.1).

use http::header::{self, HeaderMap, HeaderValue};

use super::Context;
use super::fields::{self, Fields, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use crate::client::Client;

const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");

/// Sets `X-Forwarded-For`, `-Proto` and `-Host`. What a peer that is not trusted says in these, in others of their
/// kind, in `Forwarded` or `X-Real-IP` is dropped; a name that only looks like one of the proxy's always is.
pub(super) fn request(headers: &mut HeaderMap, fields: Fields, context: &Context<'_>) -> Client {
    let peer = context.peer;
    let trusted = context.trust.trusts(peer);
    let drop = if trusted { Fields::ALIAS } else { Fields::ALIAS.and(Fields::SPOOF) };
    if fields.any(drop) {
        fields::remove(headers, drop);
    }
    let mut client = Client { address: peer.ip(), secure: peer.tls };
    if trusted && fields.any(Fields::X_FORWARDED_FOR) {
        client.address = context.trust.client(peer, headers.get_all(&X_FORWARDED_FOR).iter());
        if !context.sibling {
            append_peer(headers, peer.text());
        }
    } else {
        headers.insert(&X_FORWARDED_FOR, peer.text().clone());
    }
    if trusted && fields.any(Fields::X_FORWARDED_PROTO) {
        client.secure = heard_secure(headers).unwrap_or(peer.tls);
    }
    headers.insert(&X_FORWARDED_PROTO, if client.secure { HTTPS } else { HTTP });
    if !(trusted && fields.any(Fields::X_FORWARDED_HOST))
        && let Some(host) = headers.get(header::HOST).cloned()
    {
        headers.insert(&X_FORWARDED_HOST, host);
    }
    client
}

/// What a trusted hop says in `X-Forwarded-Proto`; the first member, should each hop have added one.
fn heard_secure(headers: &HeaderMap) -> Option<bool> {
    let first = fields::members(headers, &X_FORWARDED_PROTO).next()?;
    match first {
        _ if first.eq_ignore_ascii_case(b"https") => Some(true),
        _ if first.eq_ignore_ascii_case(b"http") => Some(false),
        _ => None,
    }
}

/// Adds the peer to the addresses that it sent, all in one line.
fn append_peer(headers: &mut HeaderMap, peer: &HeaderValue) {
    let mut list = Vec::new();
    for line in headers.get_all(&X_FORWARDED_FOR) {
        list.extend_from_slice(line.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(peer.as_bytes());
    let list = HeaderValue::from_maybe_shared(bytes::Bytes::from(list));
    headers.insert(&X_FORWARDED_FOR, list.unwrap_or_else(|_| peer.clone()));
}
