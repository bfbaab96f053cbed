//! Fields that are for one connection only, and stay there (RFC 9110 §7.6.1).

use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{HeaderMap, Method, Version};

use super::fields::{self, Fields};
use crate::rejection::Rejection;

/// The most members of `Connection`: each is looked up, and no honest message names more than a few.
const MAX_OPTIONS: usize = 32;

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("upgrade");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Removes what is for the connection to the client. Says whether the request is a WebSocket handshake, which
/// keeps `Connection` and `Upgrade`; any other offer to change the protocol is not passed on.
pub(super) fn request(head: &mut Parts, fields: Fields, body_ended: bool) -> Result<bool, Rejection> {
    let offers = fields.any(Fields::CONNECTION) && nominated(&mut head.headers)?;
    if fields.any(Fields::KEEP_ALIVE.and(Fields::HOP)) {
        fields::remove(&mut head.headers, Fields::KEEP_ALIVE.and(Fields::HOP));
    }
    if fields.any(Fields::TE) {
        te(head)?;
    }
    let websocket = offers && body_ended && offers_websocket(head);
    if websocket {
        handshake(&head.headers)?;
        head.headers.insert(header::CONNECTION, UPGRADE);
        head.headers.insert(header::UPGRADE, WEBSOCKET);
        head.headers.remove(header::CONTENT_LENGTH);
        head.headers.remove(header::TE);
    } else if fields.any(Fields::UPGRADE) {
        head.headers.remove(header::UPGRADE);
    }
    Ok(websocket)
}

/// Removes `Connection` and the fields that it names, but for those that are the proxy's to judge: a client must
/// not make it drop the framing, or what it tells the worker. Says whether `upgrade` was among the options.
pub(super) fn nominated(headers: &mut HeaderMap) -> Result<bool, Rejection> {
    let mut upgrade = false;
    let mut names = Vec::new();
    for (place, option) in fields::members(headers, &header::CONNECTION).enumerate() {
        if place == MAX_OPTIONS {
            return Err(Rejection::BadRequest("Connection names too many fields"));
        }
        if option.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
        } else if !(option.is_empty()
            || option.eq_ignore_ascii_case(b"keep-alive")
            || option.eq_ignore_ascii_case(b"close"))
        {
            names.extend(HeaderName::from_bytes(option).ok().filter(|name| !fields::is_ours(name)));
        }
    }
    headers.remove(header::CONNECTION);
    for name in names {
        headers.remove(name);
    }
    Ok(upgrade)
}

/// `te: trailers` says that the client takes trailers, which gRPC asks for; transfer codings are of the connection
/// (RFC 9110 §10.1.4, RFC 9113 §8.2.2).
fn te(head: &mut Parts) -> Result<(), Rejection> {
    let only = fields::only(&head.headers, &header::TE);
    if only.is_some_and(|value| value == "trailers") {
        return Ok(());
    }
    if head.version == Version::HTTP_2 {
        return Err(Rejection::BadRequest("te other than 'trailers'"));
    }
    let is_trailers = |coding: &[u8]| coding.eq_ignore_ascii_case(b"trailers");
    if fields::members(&head.headers, &header::TE).any(is_trailers) {
        head.headers.insert(header::TE, TRAILERS);
    } else {
        head.headers.remove(header::TE);
    }
    Ok(())
}

/// Whether the client offers to speak WebSocket. Any other offer is not passed on, and the request is served without it.
fn offers_websocket(head: &Parts) -> bool {
    let protocol = fields::only(&head.headers, &header::UPGRADE);
    head.method == Method::GET
        && head.version == Version::HTTP_11
        && protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Refuses a handshake that no worker could take (RFC 6455 §4.2.1, §4.4). Served as a plain request it would be answered in a
/// way that its client cannot understand.
fn handshake(headers: &HeaderMap) -> Result<(), Rejection> {
    const KEY: Rejection = Rejection::BadRequest("Sec-WebSocket-Key is not one key of 16 bytes");
    if fields::only(headers, &header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Rejection::WebSocketVersion);
    }
    let key = fields::only(headers, &header::SEC_WEBSOCKET_KEY).ok_or(KEY)?.as_bytes();
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    match key.strip_suffix(b"==") {
        Some(text) if text.len() == 22 && text.iter().all(is_base64) => Ok(()),
        _ => Err(KEY),
    }
}
