//! An answer as bytes (RFC 9112 §4).

use http::{HeaderMap, StatusCode, Version, header, response};
use http_body::Body;
use hyper::ext::ReasonPhrase;

use crate::body::ResponseBody;
use crate::http1::message::{Framing, write_field};

/// What the request says of the form of its answer.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) version: Version,
    /// Whether the method was HEAD: the answer has no content.
    pub(super) is_head: bool,
    /// Whether the client takes trailers.
    pub(super) trailers: bool,
}

/// How the end of an answer's content is told.
pub(super) fn framing(head: &response::Parts, body: &ResponseBody, asked: Asked) -> Framing {
    match head.status.as_u16() {
        100..200 | 204 | 304 => return Framing::None,
        _ if asked.is_head => return Framing::None,
        _ => {}
    }
    match body.size_hint().exact() {
        Some(length) => Framing::Length(length),
        None if asked.version == Version::HTTP_11 => Framing::Chunked,
        None => Framing::Close,
    }
}

/// What becomes of the connection after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// What the version of HTTP has it do.
    Usual,
    /// It stays open, for a client of HTTP/1.0.
    KeepAlive,
    /// It is closed.
    Close,
    /// It speaks another protocol, as the answer's own fields say.
    Upgrade,
}

/// What is written besides the fields of an answer.
pub(super) struct Besides<'a> {
    pub(super) framing: Framing,
    pub(super) connection: Connection,
    /// The version of the request: a client of HTTP/1.0 is answered in it.
    pub(super) version: Version,
    /// For an answer that has none of its own (RFC 9110 §6.6.1).
    pub(super) date: &'a [u8],
}

/// Writes a head. Fields that frame are written as `besides` says.
pub(super) fn write_head(out: &mut Vec<u8>, head: &response::Parts, besides: &Besides<'_>) {
    out.reserve(1024);
    let start = out.len();
    write_status_line(out, head.status, head.extensions.get::<ReasonPhrase>());
    if besides.version == Version::HTTP_10 {
        out[start..start + 8].copy_from_slice(b"HTTP/1.0");
    }
    let framed = matches!(besides.framing, Framing::Length(_) | Framing::Chunked | Framing::Close);
    let mut dated = false;
    for (name, value) in &head.headers {
        match *name {
            header::TRANSFER_ENCODING => continue,
            header::CONTENT_LENGTH if framed => continue,
            header::CONNECTION if besides.connection != Connection::Upgrade => continue,
            header::DATE => dated = true,
            _ => {}
        }
        write_field(out, name.as_str(), value.as_bytes());
    }
    match besides.framing {
        Framing::Length(length) => {
            write_field(out, "content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => write_field(out, "transfer-encoding", b"chunked"),
        Framing::None | Framing::Close => {}
    }
    match besides.connection {
        Connection::Close => write_field(out, "connection", b"close"),
        Connection::KeepAlive => write_field(out, "connection", b"keep-alive"),
        Connection::Usual | Connection::Upgrade => {}
    }
    if !dated {
        write_field(out, "date", besides.date);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes an interim answer.
pub(super) fn write_interim(out: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
    write_status_line(out, status, None);
    for (name, value) in fields {
        write_field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn write_status_line(out: &mut Vec<u8>, status: StatusCode, reason: Option<&ReasonPhrase>) {
    if status == StatusCode::OK && reason.is_none() {
        return out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    }
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    match reason {
        Some(reason) => out.extend_from_slice(reason.as_bytes()),
        None => out.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes()),
    }
    out.extend_from_slice(b"\r\n");
}
