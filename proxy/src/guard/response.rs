//! What a worker's answer may be: it must not be able to confuse the client, or whoever shares its connection.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::response::Parts;
use http::{StatusCode, Version};

use super::fields::{self, Fields};
use super::{framing, hop_by_hop};
use crate::rejection::Rejection;

/// Refuses an answer that is malformed, and leaves only the fields that are for the client.
///
/// `websocket` says that the request was a WebSocket handshake; nothing else may be answered with 101, which then
/// keeps `Connection` and `Upgrade`.
pub fn response(head: &mut Parts, websocket: bool) -> Result<(), Rejection> {
    if head.headers.len() > super::MAX_HEADERS {
        return Err(Rejection::WorkerProtocol("the worker sent too many fields"));
    }
    let fields = Fields::of(&head.headers);
    if fields.any(Fields::MALFORMED) {
        return Err(Rejection::WorkerProtocol("the worker's answer has a malformed field name"));
    }
    let status = head.status;
    let switched = status == StatusCode::SWITCHING_PROTOCOLS;
    if switched && !(websocket && is_switch(head)) {
        return Err(Rejection::WorkerProtocol("the worker switched to a protocol that nobody asked for"));
    }
    if !switched && !(200..600).contains(&status.as_u16()) {
        return Err(Rejection::WorkerProtocol("the worker's status is no final status"));
    }
    framing(head, fields)?;
    strip(&mut head.headers, fields)?;
    if switched {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    Ok(())
}

/// Leaves only the fields of an interim answer that are for the client. False: it is not to be passed on.
pub fn interim(headers: &mut HeaderMap) -> bool {
    let fields = Fields::of(headers);
    headers.remove(header::CONTENT_LENGTH);
    headers.remove(header::TRANSFER_ENCODING);
    headers.len() <= super::MAX_HEADERS && !fields.any(Fields::MALFORMED) && strip(headers, fields).is_ok()
}

/// RFC 6455 §4.2.2.
fn is_switch(head: &Parts) -> bool {
    let mut options = fields::members(&head.headers, &header::CONNECTION);
    let protocol = fields::only(&head.headers, &header::UPGRADE);
    head.version == Version::HTTP_11
        && protocol.is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"))
        && options.any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

/// The answer is framed anew, so only a length stays, and only where no coding overrides it and the status
/// allows one (RFC 9112 §6.3, RFC 9110 §8.6).
fn framing(head: &mut Parts, fields: Fields) -> Result<(), Rejection> {
    let headers = &mut head.headers;
    let coded = fields.any(Fields::TRANSFER_ENCODING);
    if coded {
        if head.version != Version::HTTP_11 || !framing::is_chunked(headers) {
            return Err(Rejection::WorkerProtocol("the worker's Transfer-Encoding is not one 'chunked'"));
        }
        headers.remove(header::TRANSFER_ENCODING);
    }
    if !fields.any(Fields::CONTENT_LENGTH) {
        return Ok(());
    }
    if coded || head.status == StatusCode::NO_CONTENT || head.status.is_informational() {
        headers.remove(header::CONTENT_LENGTH);
        return Ok(());
    }
    let length = framing::folded_length(headers);
    length
        .ok_or(Rejection::WorkerProtocol("the worker's Content-Length is not one number"))?
        .write_anew(headers);
    Ok(())
}

/// Removes what is for the connection to the worker.
fn strip(headers: &mut HeaderMap, fields: Fields) -> Result<(), Rejection> {
    const ALONE: [(Fields, HeaderName); 2] = [(Fields::UPGRADE, header::UPGRADE), (Fields::TE, header::TE)];
    if fields.any(Fields::CONNECTION) {
        hop_by_hop::nominated(headers)
            .map_err(|_| Rejection::WorkerProtocol("the worker's Connection names too many fields"))?;
    }
    for (kind, name) in ALONE {
        if fields.any(kind) {
            headers.remove(name);
        }
    }
    if fields.any(Fields::KEEP_ALIVE.and(Fields::HOP)) {
        fields::remove(headers, Fields::KEEP_ALIVE.and(Fields::HOP));
    }
    Ok(())
}
