//! A request as bytes (RFC 9112).

use http::{HeaderMap, Method, Request, Uri, header};
use http_body::Body;

use crate::body::RequestBody;
use crate::http1::message::{Framing, write_field};

/// The length where it is known: the guard has seen to it that a `Content-Length` is one number.
pub(super) fn framing(request: &Request<RequestBody>) -> Framing {
    let body = request.body();
    if body.is_end_stream() {
        return Framing::None;
    }
    let told =
        request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    told.or_else(|| body.size_hint().exact()).map_or(Framing::Chunked, Framing::Length)
}

/// What a request asks for.
pub(super) struct Target<'a> {
    pub(super) uri: &'a Uri,
    /// The query with its question mark, where the client wrote it in another way than `uri` has it.
    pub(super) query: Option<&'a [u8]>,
}

impl Target<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        match self.query {
            None => {
                let target = self.uri.path_and_query().map_or("/", |target| target.as_str());
                out.extend_from_slice(target.as_bytes());
            }
            Some(query) => {
                out.extend_from_slice(self.uri.path().as_bytes());
                out.extend_from_slice(query);
            }
        }
    }
}

/// Writes a head. Fields that frame are written as `framing` says, whatever the head has.
pub(super) fn write_head(
    out: &mut Vec<u8>,
    method: &Method,
    target: &Target<'_>,
    headers: &HeaderMap,
    framing: Framing,
) {
    out.reserve(1024);
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    target.write(out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        let frames =
            *name == header::TRANSFER_ENCODING || framing != Framing::None && *name == header::CONTENT_LENGTH;
        if !frames {
            write_field(out, name.as_str(), value.as_bytes());
        }
    }
    match framing {
        Framing::Length(length) => {
            write_field(out, "content-length", itoa::Buffer::new().format(length).as_bytes());
        }
        Framing::Chunked => write_field(out, "transfer-encoding", b"chunked"),
        Framing::None | Framing::Close => {}
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
        let target = Target { uri: &Uri::from_static("/a?b=c"), query: None };
        write_head(&mut out, &Method::POST, &target, &headers, framing);
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
    fn a_query_is_written_as_it_came() {
        let mut out = Vec::new();
        let target = Target { uri: &Uri::from_static("/a?b=%3C"), query: Some(b"?b=<") };
        write_head(&mut out, &Method::GET, &target, &HeaderMap::new(), Framing::None);
        assert_eq!(out, b"GET /a?b=< HTTP/1.1\r\n\r\n");
    }

    #[test]
    fn fields_keep_their_lines() {
        let fields = [("x-a", "1"), ("x-a", "2")];
        assert_eq!(head(Framing::None, &fields), "POST /a?b=c HTTP/1.1\r\nx-a: 1\r\nx-a: 2\r\n\r\n");
    }
}
