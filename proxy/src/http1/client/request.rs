//! A request as bytes (RFC 9112).

use http::{HeaderMap, Method, Request, header};
use http_body::Body;

use crate::body::RequestBody;

/// How the end of a request's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// There is no body.
    None,
    /// By the number of bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
}

impl Framing {
    /// The length where it is known: the guard has seen to it that a `Content-Length` is one number.
    pub(super) fn of(request: &Request<RequestBody>) -> Self {
        let body = request.body();
        if body.is_end_stream() {
            return Self::None;
        }
        let told = request
            .headers()
            .get(header::CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        told.or_else(|| body.size_hint().exact()).map_or(Self::Chunked, Self::Length)
    }
}

/// Writes a head. Fields that frame are written as `framing` says, whatever the head has.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    (method, target, headers): (&Method, &str, &HeaderMap),
    framing: Framing,
) {
    out.reserve(1024);
    for part in [method.as_str(), " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers {
        let frames =
            *name == header::TRANSFER_ENCODING || framing != Framing::None && *name == header::CONTENT_LENGTH;
        if !frames {
            write_field(out, name.as_str(), value.as_bytes());
        }
    }
    match framing {
        Framing::None => {}
        Framing::Length(length) => {
            write_field(out, "content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => write_field(out, "transfer-encoding", b"chunked"),
    }
    out.extend_from_slice(b"\r\n");
}

fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes what stands before a chunk of so many bytes. After it come `CHUNK_END` or, if it is the last, `LAST_CHUNK_END`.
pub(super) fn write_chunk_size(out: &mut Vec<u8>, bytes: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - bytes.leading_zeros()).div_ceil(4).max(1);
    (0..digits).rev().for_each(|place| out.push(DIGITS[bytes >> (4 * place) & 15]));
    out.extend_from_slice(b"\r\n");
}

/// What stands after a chunk.
pub(super) const CHUNK_END: &[u8] = b"\r\n";
/// What stands after the last chunk with content.
pub(super) const LAST_CHUNK_END: &[u8] = b"\r\n0\r\n\r\n";

/// Writes the end of a chunked body.
pub(super) fn write_end(out: &mut Vec<u8>, trailers: &HeaderMap) {
    out.extend_from_slice(b"0\r\n");
    for (name, value) in trailers {
        write_field(out, name.as_str(), value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn head(framing: Framing, fields: &[(&'static str, &'static str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        let mut out = Vec::new();
        write_head(&mut out, (&Method::POST, "/a?b=c", &headers), framing);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_body_is_framed_once() {
        let fields = [("host", "a"), ("content-length", "7"), ("transfer-encoding", "chunked"), ("x-b", "")];
        let start = "POST /a?b=c HTTP/1.1\r\nhost: a\r\n";
        for (framing, rest) in [
            (Framing::None, "content-length: 7\r\nx-b: \r\n\r\n"),
            (Framing::Length(8), "x-b: \r\ncontent-length: 8\r\n\r\n"),
            (Framing::Chunked, "x-b: \r\ntransfer-encoding: chunked\r\n\r\n"),
        ] {
            assert_eq!(head(framing, &fields), format!("{start}{rest}"));
        }
    }

    #[test]
    fn fields_keep_their_lines() {
        let fields = [("x-a", "1"), ("x-a", "2")];
        assert_eq!(head(Framing::None, &fields), "POST /a?b=c HTTP/1.1\r\nx-a: 1\r\nx-a: 2\r\n\r\n");
    }

    #[test]
    fn sizes_of_chunks_are_hexadecimal() {
        for size in [0, 1, 9, 10, 15, 16, 255, 256, 65_535, 65_536, usize::MAX] {
            let mut out = Vec::new();
            write_chunk_size(&mut out, size);
            assert_eq!(String::from_utf8(out).expect("text"), format!("{size:x}\r\n"));
        }
    }

    #[test]
    fn trailers_follow_the_last_chunk() {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        let mut out = Vec::new();
        write_end(&mut out, &trailers);
        assert_eq!(out, b"0\r\nx-sum: 1\r\n\r\n");
    }
}
